//! The plugin trait, and the macros that make a library's manifest, entries and root symbol of it.

use crate::config::PluginConfig;
use crate::entry::Entry;
use crate::error::Error;
use crate::host::Host;

/// A plugin: made once from its configuration, shared by all calls.
///
/// Its handlers and tasks are methods that [`export_plugin!`](crate::export_plugin) names.
pub trait Plugin: Sized + Send + Sync + 'static {
    /// Its configuration, `[plugins.NAME.config]` of the operator's file; `()` for none. See [`config!`](crate::config).
    type Config: PluginConfig;

    /// Makes the plugin. Called once, on the thread that loads plugins; may block, within the start deadline.
    ///
    /// # Errors
    ///
    /// Any error refuses the plugin, with its message shown to the operator. A panic does the same.
    fn create(config: Self::Config, host: Host) -> Result<Self, Error>;

    /// Called once after `create`, before the first event, on the same thread and within the same deadline.
    ///
    /// # Errors
    ///
    /// Any error refuses the plugin.
    fn start(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Called once, after the last call has ended or was given up at its deadline: one that goes on all the same may still run. On a thread
    /// where it may wait, for some seconds; whoever shuts down does not wait longer.
    ///
    /// # Errors
    ///
    /// An error is logged; the plugin is gone all the same.
    fn stop(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// What the macros add to a [`Plugin`]: its manifest and its entries. Not implemented by hand.
pub trait Export: Plugin {
    /// The manifest as JSON.
    const MANIFEST: &'static str;
    /// Handlers first, then tasks, as in the manifest.
    const ENTRIES: &'static [Entry<Self>];
}

/// Makes a plugin of a type: its manifest, its table of handlers and tasks, and the library's root symbol.
///
/// ```
/// # #![allow(dead_code)]
/// use qtasks_plugin_api::{Error, Event, Host, Plugin, TaskContext, TaskError, TriggerError, export_plugin};
///
/// struct Everything;
///
/// impl Plugin for Everything {
///     type Config = ();
///     fn create(_config: (), _host: Host) -> Result<Self, Error> {
///         Ok(Self)
///     }
/// }
///
/// impl Everything {
///     fn on_error(&self, event: TriggerError<'_>) -> Option<i32> {
///         (event.e.kind == "TaskPluginTriggerError").then_some(123)
///     }
///     fn on_any(&self, _event: Event<'_>) {}
///     fn add(&self, _ctx: &TaskContext, args: (i64, i64), _kwargs: ()) -> Result<i64, TaskError> {
///         args.0.checked_add(args.1).ok_or_else(|| "too large".into())
///     }
/// }
///
/// export_plugin! {
///     plugin: Everything,
///     name: "everything",                                        // optional, as are version and priority
///     priority: 10,
///     handlers: {
///         task_executor_run_task_trigger_error => on_error,      // may wait; `async f` and `inline f` are the other modes
///         global => inline on_any,                               // every trigger
///     },
///     tasks: { add => inline add, "math.add" => inline add },    // a text where the name is no identifier
/// }
/// ```
///
/// A task takes the plugin, a [`&TaskContext`](crate::TaskContext), positional and named arguments, and returns a `Result`; an async one
/// takes the same. What arguments may be, [`read_argument`](crate::read_argument) says.
///
/// Name, version, description and authors come from the plugin's `Cargo.toml`. The words stand in this order; each may be left out, but
/// `plugin` may not. A name that is no trigger does not compile:
///
/// ```compile_fail,E0080
/// # use qtasks_plugin_api::{Error, Event, Host, Plugin, export_plugin};
/// # struct Misspelt;
/// # impl Plugin for Misspelt {
/// #     type Config = ();
/// #     fn create(_: (), _: Host) -> Result<Self, Error> { Ok(Self) }
/// # }
/// # impl Misspelt { fn on_start(&self, _: Event<'_>) {} }
/// export_plugin! { plugin: Misspelt, handlers: { worker_strat => on_start } }
/// ```
///
/// Neither does one that is listed twice, be it a trigger or a task:
///
/// ```compile_fail,E0080
/// # use qtasks_plugin_api::{Error, Host, Plugin, TaskContext, TaskError, define_plugin};
/// # struct Twice;
/// # impl Plugin for Twice {
/// #     type Config = ();
/// #     fn create(_: (), _: Host) -> Result<Self, Error> { Ok(Self) }
/// # }
/// # impl Twice {
/// #     fn one(&self, _: &TaskContext, _: (), _: ()) -> Result<i32, TaskError> { Ok(1) }
/// #     fn other(&self, _: &TaskContext, _: (), _: ()) -> Result<i32, TaskError> { Ok(2) }
/// # }
/// define_plugin! { plugin: Twice, tasks: { count => one, count => inline other } }
/// ```
///
/// A plugin that is linked into an application instead of being a library uses
/// [`define_plugin!`](crate::define_plugin), which takes the same words and exports no symbol.
#[macro_export]
macro_rules! export_plugin {
    ($($words:tt)*) => {
        $crate::__plugin! { [__root] $($words)* }
    };
}

/// Makes a plugin of a type without exporting it: for a plugin that is linked into an application.
///
/// Takes the words of [`export_plugin!`](crate::export_plugin).
#[macro_export]
macro_rules! define_plugin {
    ($($words:tt)*) => {
        $crate::__plugin! { [] $($words)* }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __plugin {
    (
        [$($root:ident)?]
        plugin: $plugin:ty
        $(, name: $name:expr)?
        $(, version: $version:expr)?
        $(, priority: $priority:expr)?
        $(, handlers: $handlers:tt)?
        $(, tasks: $tasks:tt)?
        $(,)?
    ) => {
        $crate::__define_plugin! {
            [$($root)?]
            $plugin,
            $crate::__first!($($name,)? ::core::env!("CARGO_PKG_NAME"),),
            $crate::__first!($($version,)? ::core::env!("CARGO_PKG_VERSION"),),
            $crate::__first!($($priority,)? 0,),
            [$($handlers $handlers)?]
            [$($tasks $tasks)?]
        }
    };
    ($($other:tt)*) => {
        $crate::__expected_words!();
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __define_plugin {
    // Each table comes twice: of an identifier rustc forgets where its author wrote it, of a token or an expression it does not.
    (
        [$($root:ident)?]
        $plugin:ty, $name:expr, $version:expr, $priority:expr,
        [$(
            { $($trigger:ident => $($handler:ident)+),* $(,)? }
            { $($_trigger:tt => $handler_word:tt $($handler_method:expr)?),* $(,)? }
        )?]
        [$(
            { $($task:tt => $($body:ident)+),* $(,)? }
            { $($_task:tt => $body_word:tt $($body_method:expr)?),* $(,)? }
        )?]
    ) => {
        impl $crate::__private::Export for $plugin {
            const MANIFEST: &'static str = {
                const FACTS: $crate::__private::StaticManifest = $crate::__private::StaticManifest {
                    name: $name,
                    version: $version,
                    description: ::core::env!("CARGO_PKG_DESCRIPTION"),
                    authors: ::core::env!("CARGO_PKG_AUTHORS"),
                    unwinds: ::core::cfg!(panic = "unwind"),
                    priority: $priority,
                    handlers: &[$($(
                        (
                            $crate::__private::known_trigger(::core::stringify!($trigger)),
                            $crate::__mode!($($handler)+),
                        ),
                    )*)?],
                    tasks: &[$($(
                        ($crate::__private::task_name($crate::__task_name!($task)), $crate::__mode!($($body)+)),
                    )*)?],
                    config: <<$plugin as $crate::Plugin>::Config as $crate::PluginConfig>::SCHEMA,
                };
                $($(
                    const _: () = $crate::__private::listed_once(
                        FACTS.handlers,
                        ::core::stringify!($trigger),
                        ::core::concat!(
                            "`", ::core::stringify!($trigger), "` is listed twice: name one handler, which may call both",
                        ),
                    );
                )*)?
                $($(
                    const _: () = $crate::__private::listed_once(
                        FACTS.tasks,
                        $crate::__private::task_name($crate::__task_name!($task)),
                        ::core::concat!(
                            "the task `", $crate::__task_name!($task), "` is listed twice: give one of them another name",
                        ),
                    );
                )*)?
                const LEN: usize = $crate::__private::manifest_len(&FACTS);
                const BYTES: [u8; LEN] = $crate::__private::manifest_bytes::<LEN>(&FACTS);
                $crate::__private::text_of(&BYTES)
            };

            const ENTRIES: &'static [$crate::__private::Entry<Self>] = &[
                $($($crate::__handler!($($handler)+, $handler_word $($handler_method)?),)*)?
                $($($crate::__task!($($body)+, $body_word $($body_method)?),)*)?
            ];
        }

        $($crate::$root!($plugin);)?
    };
    ($($other:tt)*) => {
        $crate::__expected_words!();
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __root {
    ($plugin:ty) => {
        const _: () = {
            const MANIFEST: &str = <$plugin as $crate::__private::Export>::MANIFEST;

            #[used]
            #[unsafe(link_section = ".note.qtasks.plugin")]
            static MANIFEST_NOTE: $crate::__private::Note<{ MANIFEST.len() }> =
                $crate::__private::Note::new($crate::__private::bytes_of(MANIFEST));

            #[unsafe(export_name = "qtasks_plugin_root_1")]
            static ROOT: $crate::__private::Root = $crate::__private::Root::new::<$plugin>();
        };
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __expected_words {
    () => {
        ::core::compile_error!(
            "expected, in this order and each but the first left out at will: `plugin: TYPE`, `name: \"…\"`, \
             `version: \"…\"`, `priority: NUMBER`, `handlers: { TRIGGER => METHOD, … }`, `tasks: { NAME => METHOD, … }`"
        );
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __first {
    ($first:expr, $($rest:expr,)*) => {
        $first
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __task_name {
    ($name:ident) => {
        ::core::stringify!($name)
    };
    ($name:literal) => {
        $name
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __mode {
    (async $method:ident) => {
        $crate::__private::Mode::Async
    };
    (inline $method:ident) => {
        $crate::__private::Mode::Inline
    };
    // Other words before it are told where the method is called.
    ($($method:ident)+) => {
        $crate::__private::Mode::Blocking
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __handler {
    (async $method:ident, $_async:tt $written:expr) => {
        $crate::__async_handler!($method, $written)
    };
    (inline $method:ident, $_inline:tt $written:expr) => {
        $crate::__sync_handler!(Inline, $method, $written)
    };
    ($method:ident, $written:tt) => {
        $crate::__sync_handler!(Blocking, $method, $written)
    };
    ($($words:ident)+, $($_written:tt)+) => {
        $crate::__no_mode!($($words)+)
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __no_mode {
    ($($words:ident)+) => {
        ::core::compile_error!(::core::concat!(
            "found `=>", $(" ", ::core::stringify!($words),)+ "`; expected `=> METHOD`, `=> inline METHOD` or `=> async METHOD`",
        ))
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __sync_handler {
    ($mode:ident, $method:ident, $written:expr) => {
        $crate::__private::Entry::<Self>::sync($crate::__private::Mode::$mode, |plugin, call| {
            let $method = <Self>::$method;
            $crate::__private::handle(plugin, call, $written)
        })
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __task {
    (async $method:ident, $_async:tt $written:expr) => {
        $crate::__async_task!($method, $written)
    };
    (inline $method:ident, $_inline:tt $written:expr) => {
        $crate::__sync_task!(Inline, $method, $written)
    };
    ($method:ident, $written:tt) => {
        $crate::__sync_task!(Blocking, $method, $written)
    };
    ($($words:ident)+, $($_written:tt)+) => {
        $crate::__no_mode!($($words)+)
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __sync_task {
    ($mode:ident, $method:ident, $written:expr) => {
        $crate::__private::Entry::<Self>::sync($crate::__private::Mode::$mode, |plugin, call| {
            let $method = <Self>::$method;
            $crate::__private::run_task(plugin, &$crate::__private::open_task(call), $written)
        })
    };
}

#[cfg(feature = "async")]
#[doc(hidden)]
#[macro_export]
macro_rules! __async_handler {
    ($method:ident, $written:expr) => {
        $crate::__private::Entry::<Self>::asynchronous(|plugin, call| {
            ::std::boxed::Box::pin(async move {
                let $method = <Self>::$method;
                $crate::__private::handle_async(&*plugin, &call.as_call(), $written).await
            })
        })
    };
}

#[cfg(feature = "async")]
#[doc(hidden)]
#[macro_export]
macro_rules! __async_task {
    ($method:ident, $written:expr) => {
        $crate::__private::Entry::<Self>::asynchronous(|plugin, call| {
            ::std::boxed::Box::pin(async move {
                let $method = <Self>::$method;
                $crate::__private::run_task_async(&*plugin, &$crate::__private::open_task(&call.as_call()), $written).await
            })
        })
    };
}

#[cfg(not(feature = "async"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __async_handler {
    ($method:ident, $written:expr) => {
        ::core::compile_error!("an async handler needs qtasks-plugin-api with features = [\"async\"]")
    };
}

#[cfg(not(feature = "async"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __async_task {
    ($method:ident, $written:expr) => {
        ::core::compile_error!("an async task needs qtasks-plugin-api with features = [\"async\"]")
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::task::TaskContext;
    use crate::testing::TestHost;

    struct Names;

    impl Plugin for Names {
        type Config = ();

        fn create(_config: (), _host: Host) -> Result<Self, Error> {
            Ok(Self)
        }
    }

    impl Names {
        fn name(&self, ctx: &TaskContext, _args: (), _kwargs: ()) -> Result<String, Error> {
            Ok(ctx.task_name().to_owned())
        }
    }

    crate::define_plugin! { plugin: Names, tasks: { r#match => name, "my.task" => name, "reports, a/b" => inline name } }

    #[test]
    fn a_tasks_name_is_an_identifier_or_a_text() {
        let host = TestHost::<Names>::start("{}").expect("it starts");
        for name in ["match", "my.task", "reports, a/b"] {
            assert_eq!(host.run_task(name, &json!([]), &json!({})).expect(name), name);
        }
    }
}
