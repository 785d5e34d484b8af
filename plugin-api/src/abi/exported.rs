//! The plugin's side of the boundary: the root module of any [`Export`], made of generic functions, each behind the panic guard.
#![expect(unsafe_code, reason = "the functions of the root module turn the host's instance pointer back into the plugin")]

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use abi_stable::library::{CheckTypeLayout, LibHeader, RootModuleResult};
use abi_stable::prefix_type::{PrefixRefTrait, WithMetadata};
use abi_stable::std_types::{RResult, RStr, RString};

use super::{AbiCall, AbiCompletion, AbiCreated, AbiHost, AbiOutcome, PluginModule, PluginModuleRef, kind};
use crate::answer::Answer;
use crate::config::PluginConfig;
use crate::entry::Run;
use crate::error::{CONFIG_ERROR, Error, ErrorBody};
use crate::event::Call;
use crate::export::Export;
use crate::guard::guard;
use crate::host::{CancelFlag, Host, HostServices, Init, Level, LogLine, from_nanos};
use crate::manifest::Mode;
#[cfg(feature = "async")]
use crate::runtime;

/// What a plugin library exports under [`ROOT_SYMBOL`](super::ROOT_SYMBOL).
#[repr(transparent)]
#[allow(missing_debug_implementations, reason = "abi_stable's header has none")]
pub struct Root(LibHeader);

impl Root {
    /// The root of a plugin.
    #[must_use]
    pub const fn new<P: Export>() -> Self {
        // SAFETY: `constructor` returns what `module` makes, which is a `PluginModuleRef`.
        Self(unsafe { LibHeader::from_constructor::<PluginModuleRef>(constructor::<P>, CheckTypeLayout::Yes) })
    }
}

extern "C" fn constructor<P: Export>() -> RootModuleResult {
    let module = module::<P, true>().to_prefix_ref();
    // SAFETY: the host casts it back to a `PluginModuleRef` after checking the layout, as `Root::new` promises.
    RResult::ROk(unsafe { module.cast() })
}

/// The root module of `P`. `LIBRARY` says that this is a library of its own, whose log statics the host cannot see.
pub(crate) fn module<P: Export, const LIBRARY: bool>() -> PluginModuleRef {
    PluginModuleRef(Module::<P, LIBRARY>::FUNCTIONS.static_as_prefix())
}

struct Module<P, const LIBRARY: bool>(PhantomData<P>);

impl<P: Export, const LIBRARY: bool> Module<P, LIBRARY> {
    const FUNCTIONS: &'static WithMetadata<PluginModule> = &WithMetadata::new(PluginModule {
        manifest: manifest::<P>,
        create: create::<P, LIBRARY>,
        start: start::<P>,
        call: call::<P>,
        call_async: call_async::<P>,
        cancel: cancel::<P>,
        stop: stop::<P>,
        destroy: destroy::<P>,
        query,
    });
}

/// A created plugin. The host holds a pointer to it from `create` to `destroy`.
struct Instance<P> {
    plugin: Arc<P>,
    host: Host,
    running: Arc<RunningCalls>,
    #[cfg(feature = "async")]
    runtime: Option<runtime::Runtime>,
}

/// The calls that can be cancelled, by id. Shared with the async ones, which may outlive the instance.
type RunningCalls = Mutex<HashMap<u64, Running>>;

/// Nothing panics while the lock is held, and a map is whole at any time.
fn lock(running: &RunningCalls) -> MutexGuard<'_, HashMap<u64, Running>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call that can be cancelled.
struct Running {
    flag: CancelFlag,
    #[cfg(feature = "async")]
    task: Option<runtime::TaskHandle>,
}

impl<P> Instance<P> {
    fn running(&self) -> MutexGuard<'_, HashMap<u64, Running>> {
        lock(&self.running)
    }

    fn begin(&self, id: u64) -> Begun<'_, P> {
        let flag = CancelFlag::new();
        let running = Running {
            flag: flag.clone(),
            #[cfg(feature = "async")]
            task: None,
        };
        self.running().insert(id, running);
        Begun { instance: self, id, flag }
    }
}

/// A running call; ends when dropped, panic or not.
struct Begun<'a, P> {
    instance: &'a Instance<P>,
    id: u64,
    flag: CancelFlag,
}

impl<P> Drop for Begun<'_, P> {
    fn drop(&mut self) {
        self.instance.running().remove(&self.id);
    }
}

/// Turns the host's pointer back into the instance.
///
/// # Safety
///
/// `instance` must come from `create::<P>` of this library, and `destroy` must not have been called with it.
unsafe fn instance_behind<'a, P>(instance: *const ()) -> &'a Instance<P> {
    // SAFETY: as promised by the caller; `Instance` is only shared, never borrowed mutably.
    unsafe { &*instance.cast::<Instance<P>>() }
}

extern "C" fn manifest<P: Export>() -> RStr<'static> {
    RStr::from_str(P::MANIFEST)
}

extern "C" fn create<P: Export, const LIBRARY: bool>(init: RStr<'_>, host: AbiHost) -> AbiCreated {
    let created = guard(|| create_instance::<P, LIBRARY>(init.as_str(), host));
    match created.unwrap_or_else(|panic| Err(Error::from_body(panic))) {
        Ok(instance) => AbiCreated { instance: Box::into_raw(instance).cast(), outcome: AbiOutcome::pass() },
        Err(error) => AbiCreated { instance: std::ptr::null(), outcome: AbiOutcome::failed(&error.into_body()) },
    }
}

fn create_instance<P: Export, const LIBRARY: bool>(init: &str, host: AbiHost) -> Result<Box<Instance<P>>, Error> {
    let init: Init = serde_json::from_str(init).map_err(|error| Error::msg(format_args!("unreadable init: {error}")))?;
    let config = P::Config::from_json(init.config.get())
        .map_err(|error| Error::from_body(ErrorBody::new(CONFIG_ERROR, error.to_string())))?;
    let host = Host::new(RemoteHost(host), init);
    if LIBRARY {
        crate::logging::install(&host);
    }
    #[cfg(feature = "async")]
    let runtime =
        if P::ENTRIES.iter().any(|entry| entry.mode == Mode::Async) { Some(runtime::Runtime::new(host.plugin())?) } else { None };
    Ok(Box::new(Instance {
        plugin: Arc::new(P::create(config, host.clone())?),
        host,
        running: Arc::default(),
        #[cfg(feature = "async")]
        runtime,
    }))
}

extern "C" fn start<P: Export>(pointer: *const ()) -> AbiOutcome {
    lifecycle(|| {
        // SAFETY: the host passes what `create::<P>` gave it, before `destroy`.
        let instance = unsafe { instance_behind::<P>(pointer) };
        instance.plugin.start()
    })
}

extern "C" fn stop<P: Export>(pointer: *const ()) -> AbiOutcome {
    lifecycle(|| {
        // SAFETY: the host passes what `create::<P>` gave it, before `destroy`.
        let instance = unsafe { instance_behind::<P>(pointer) };
        instance.plugin.stop()
    })
}

fn lifecycle(step: impl FnOnce() -> Result<(), Error>) -> AbiOutcome {
    match guard(step) {
        Ok(Ok(())) => AbiOutcome::pass(),
        Ok(Err(error)) => AbiOutcome::failed(&error.into_body()),
        Err(panic) => AbiOutcome::failed(&panic),
    }
}

extern "C" fn call<P: Export>(pointer: *const (), call: AbiCall<'_>) -> AbiOutcome {
    let answered = guard(|| {
        // SAFETY: the host passes what `create::<P>` gave it, before `destroy`.
        let instance = unsafe { instance_behind::<P>(pointer) };
        let Some(entry) = P::ENTRIES.get(call.entry as usize) else {
            return no_such_entry::<P>(call.entry);
        };
        let run = |cancel: &CancelFlag| match entry.run {
            Run::Sync(run) => run(
                &instance.plugin,
                &Call { name: call.name.as_str(), input: call.input.as_str(), cancel, host: &instance.host },
            ),
            #[cfg(feature = "async")]
            Run::Async(_) => Answer::Failed(Error::msg("an async entry was called as a sync one")),
        };
        if entry.mode == Mode::Inline { run(&const { CancelFlag::never() }) } else { run(&instance.begin(call.id).flag) }
    });
    answered.map_or_else(|panic| AbiOutcome::failed(&panic), AbiOutcome::from)
}

fn no_such_entry<P: Export>(entry: u32) -> Answer {
    let count = P::ENTRIES.len();
    Answer::Failed(Error::msg(format_args!("entry {entry} was called, this plugin has {count}")))
}

#[cfg(not(feature = "async"))]
#[expect(clippy::extra_unused_type_parameters, reason = "the same signature as with the feature")]
extern "C" fn call_async<P: Export>(_: *const (), call: AbiCall<'_>, completion: AbiCompletion) {
    let error = ErrorBody::new("Error", "an async entry was called in a plugin built without the feature `async`");
    (completion.complete)(call.id, AbiOutcome::failed(&error));
}

#[cfg(feature = "async")]
extern "C" fn call_async<P: Export>(pointer: *const (), call: AbiCall<'_>, completion: AbiCompletion) {
    let id = call.id;
    let completion = runtime::Completion::new(move |outcome| (completion.complete)(id, outcome));
    let spawned = guard(|| {
        // SAFETY: the host passes what `create::<P>` gave it, before `destroy`.
        let instance = unsafe { instance_behind::<P>(pointer) };
        let Some(entry) = P::ENTRIES.get(call.entry as usize) else {
            return completion.finish(no_such_entry::<P>(call.entry).into());
        };
        let (Run::Async(run), Some(runtime)) = (&entry.run, &instance.runtime) else {
            let error = Error::msg("a sync entry was called as an async one");
            return completion.finish(Answer::Failed(error).into());
        };
        let begun = instance.begin(id);
        let call = runtime::OwnedCall {
            name: call.name.as_str().to_owned(),
            input: call.input.as_str().to_owned(),
            cancel: begun.flag.clone(),
            host: instance.host.clone(),
        };
        let future = run(Arc::clone(&instance.plugin), call);
        // The call ends in `forget`, on the runtime's thread.
        std::mem::forget(begun);
        let running = Arc::clone(&instance.running);
        let forget = move || drop(lock(&running).remove(&id));
        let task = runtime.spawn(future, forget, completion);
        if let Some(running) = instance.running().get_mut(&id) {
            running.task = Some(task);
        }
    });
    // A panic before the future ran dropped the completion, which told the host.
    drop(spawned);
}

extern "C" fn cancel<P: Export>(pointer: *const (), id: u64) {
    let cancelled = guard(|| {
        // SAFETY: the host passes what `create::<P>` gave it, before `destroy`.
        let instance = unsafe { instance_behind::<P>(pointer) };
        if let Some(running) = instance.running().get(&id) {
            running.flag.cancel();
            #[cfg(feature = "async")]
            if let Some(task) = &running.task {
                task.abort();
            }
        }
    });
    drop(cancelled);
}

extern "C" fn destroy<P: Export>(pointer: *const ()) {
    let destroyed = guard(|| {
        // SAFETY: the host calls this once, last, with what `create::<P>` gave it.
        let instance = unsafe { Box::from_raw(pointer.cast_mut().cast::<Instance<P>>()) };
        let host = instance.host.clone();
        if let Err(panic) = guard(|| drop(instance)) {
            host.log(Level::Error, format_args!("the plugin's Drop panicked: {panic}"));
        }
    });
    // The host's log is all there is to tell; a panic in telling it ends here.
    drop(destroyed);
}

extern "C" fn query(_id: u64) -> *const () {
    std::ptr::null()
}

impl AbiOutcome {
    pub(crate) fn pass() -> Self {
        Self { kind: kind::PASS, payload: RString::new() }
    }

    pub(crate) fn failed(error: &ErrorBody) -> Self {
        Self::json(kind::FAILED, error)
    }

    fn json(kind: u32, value: &impl serde::Serialize) -> Self {
        // Only the plain structs of this crate come here; they always have a JSON form.
        Self { kind, payload: serde_json::to_string(value).unwrap_or_default().into() }
    }
}

impl From<Answer> for AbiOutcome {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Pass => Self::pass(),
            Answer::Result(raw) => {
                let text: Box<str> = raw.into();
                Self { kind: kind::RESULT, payload: String::from(text).into() }
            }
            Answer::Directive(directive) => Self::json(kind::DIRECTIVE, &directive),
            Answer::Failed(error) => Self::failed(&error.into_body()),
        }
    }
}

/// The host's services, behind the functions it passed in.
struct RemoteHost(AbiHost);

// SAFETY: the host promises that `context` may be used from any thread until the process ends.
unsafe impl Send for RemoteHost {}
// SAFETY: as above; the functions may be called concurrently.
unsafe impl Sync for RemoteHost {}

impl HostServices for RemoteHost {
    fn log(&self, line: LogLine<'_>) {
        let (target, message) = (RStr::from_str(line.target), RStr::from_str(line.message));
        (self.0.log)(self.0.context, line.level as u32, target, message, RStr::from_str(line.fields));
    }

    fn max_level(&self) -> Level {
        Level::from_number((self.0.max_level)(self.0.context))
    }

    fn now(&self) -> SystemTime {
        from_nanos((self.0.now)(self.0.context))
    }
}
