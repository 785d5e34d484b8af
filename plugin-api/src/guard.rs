//! The panic guard: a panic in a plugin becomes an error, with its message and its place.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::error::{ErrorBody, PANIC_ERROR};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `body`; a panic becomes an error of type `Panic`.
///
/// Panic hooks are one per library, so the first use in each library installs one that remembers the place of a guarded panic
/// instead of printing it, and hands every other panic to the hook that was there before.
///
/// # Errors
///
/// When `body` panics.
pub fn guard<T>(body: impl FnOnce() -> T) -> Result<T, Box<ErrorBody>> {
    install_hook();
    DEPTH.set(DEPTH.get() + 1);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    DEPTH.set(DEPTH.get() - 1);
    outcome.map_err(describe)
}

fn describe(payload: Box<dyn Any + Send>) -> Box<ErrorBody> {
    let message = if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "panicked with a value that is not text".to_owned()
    };
    // The payload's own Drop may panic: such a payload is leaked, since nothing else would end.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    let mut body = Box::new(ErrorBody::new(PANIC_ERROR, message));
    body.location = LOCATION.take();
    body
}

fn install_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if DEPTH.get() > 0 {
                let place = info.location().map(|at| format!("{}:{}:{}", at.file(), at.line(), at.column()));
                LOCATION.set(place);
            } else {
                previous(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    struct PanicsInDrop;

    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("again");
        }
    }

    #[test]
    fn every_payload_becomes_an_error_with_its_place() {
        let text = guard(|| panic!("{} apples", 3)).expect_err("a panic");
        assert_eq!((&*text.kind, text.message.as_str()), (PANIC_ERROR, "3 apples"));
        assert!(text.location.expect("a place").contains("guard.rs:"));
        let other = guard(|| std::panic::panic_any(7)).expect_err("a panic");
        assert_eq!(other.message, "panicked with a value that is not text");
        let twice = guard(|| std::panic::panic_any(PanicsInDrop)).expect_err("a panic");
        assert_eq!(twice.kind, PANIC_ERROR);
        assert_eq!(guard(|| 5).expect("no panic"), 5);
    }
}
