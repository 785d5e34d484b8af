//! The plugin trait, and the macros that make a library's manifest, entries and root symbol of it.

#[cfg(feature = "async")]
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::answer::Answer;
use crate::config::PluginConfig;
use crate::error::{Error, TaskError};
use crate::event::Call;
use crate::host::Host;
use crate::manifest::Mode;
#[cfg(feature = "async")]
use crate::runtime::{BoxFuture, OwnedCall};
use crate::task::{self, TaskContext};

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

/// One handler or task.
#[derive(Debug)]
pub struct Entry<P: 'static> {
    /// How it runs.
    pub mode: Mode,
    /// The function.
    pub run: Run<P>,
}

/// The function of an entry.
#[derive(Debug)]
pub enum Run<P: 'static> {
    /// Runs on the calling thread.
    Sync(fn(&P, &Call<'_>) -> Answer),
    /// Runs on the plugin's runtime.
    #[cfg(feature = "async")]
    Async(fn(Arc<P>, OwnedCall) -> BoxFuture<Answer>),
}

impl<P> Entry<P> {
    /// A sync entry.
    #[must_use]
    pub const fn sync(mode: Mode, run: fn(&P, &Call<'_>) -> Answer) -> Self {
        Self { mode, run: Run::Sync(run) }
    }

    /// An async entry.
    #[cfg(feature = "async")]
    #[must_use]
    pub const fn asynchronous(run: fn(Arc<P>, OwnedCall) -> BoxFuture<Answer>) -> Self {
        Self { mode: Mode::Async, run: Run::Async(run) }
    }
}

/// A task's call taken apart: context, positional and named arguments.
///
/// # Errors
///
/// When the arguments do not have the shape that the task takes.
pub fn open_task<A: DeserializeOwned, K: DeserializeOwned>(call: &Call<'_>) -> Result<(TaskContext, A, K), TaskError> {
    let (context, args, kwargs) = task::open(call)?;
    Ok((context, task::read_argument("args", args)?, task::read_argument("kwargs", kwargs)?))
}

/// A task's return value, as an answer.
pub fn ran<T: Serialize, E: Into<TaskError>>(returned: Result<T, E>) -> Answer {
    match returned.map_err(Into::into).and_then(|value| task::write_result(&value)) {
        Ok(raw) => Answer::Result(raw),
        Err(error) => refused(error),
    }
}

/// A task's error, as an answer.
#[must_use]
pub fn refused(error: TaskError) -> Answer {
    Answer::Failed(Error::from_body(error.into_body()))
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
///     tasks: { add => inline add },
/// }
/// ```
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
    (plugin: $plugin:ty $(, $($rest:tt)*)?) => {
        $crate::define_plugin! { plugin: $plugin, $($($rest)*)? }

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

/// Makes a plugin of a type without exporting it: for a plugin that is linked into an application.
///
/// Takes the words of [`export_plugin!`](crate::export_plugin).
#[macro_export]
macro_rules! define_plugin {
    (plugin: $plugin:ty) => {
        $crate::define_plugin! { plugin: $plugin, }
    };
    (
        plugin: $plugin:ty,
        $(name: $name:expr,)?
        $(version: $version:expr,)?
        $(priority: $priority:expr,)?
        $(handlers: { $($trigger:ident => $($handler:ident)+),* $(,)? } $(,)?)?
        $(tasks: { $($task:ident => $($body:ident)+),* $(,)? } $(,)?)?
    ) => {
        impl $crate::__private::Export for $plugin {
            const MANIFEST: &'static str = {
                const FACTS: $crate::__private::StaticManifest = $crate::__private::StaticManifest {
                    name: $crate::__first!($($name,)? ::core::env!("CARGO_PKG_NAME"),),
                    version: $crate::__first!($($version,)? ::core::env!("CARGO_PKG_VERSION"),),
                    description: ::core::env!("CARGO_PKG_DESCRIPTION"),
                    authors: ::core::env!("CARGO_PKG_AUTHORS"),
                    unwinds: ::core::cfg!(panic = "unwind"),
                    priority: $crate::__first!($($priority,)? 0,),
                    handlers: &[$($(
                        (
                            $crate::__private::known_trigger(
                                ::core::stringify!($trigger),
                                ::core::concat!(
                                    "no trigger is called `", ::core::stringify!($trigger),
                                    "`: see `Trigger` for the names; `global` is every trigger",
                                ),
                            ),
                            $crate::__mode!($($handler)+),
                        ),
                    )*)?],
                    tasks: &[$($(
                        ($crate::__private::plain_name(::core::stringify!($task)), $crate::__mode!($($body)+)),
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
                        $crate::__private::plain_name(::core::stringify!($task)),
                        ::core::concat!(
                            "the task `", ::core::stringify!($task), "` is listed twice: give one of them another name",
                        ),
                    );
                )*)?
                const LEN: usize = $crate::__private::manifest_len(&FACTS);
                const BYTES: [u8; LEN] = $crate::__private::manifest_bytes::<LEN>(&FACTS);
                $crate::__private::text_of(&BYTES)
            };

            const ENTRIES: &'static [$crate::__private::Entry<Self>] = &[
                $($($crate::__handler!($($handler)+),)*)?
                $($($crate::__task!($($body)+),)*)?
            ];
        }
    };
    ($($other:tt)*) => {
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
    (async $method:ident) => {
        $crate::__async_handler!($method)
    };
    (inline $method:ident) => {
        $crate::__sync_handler!(Inline, $method)
    };
    ($method:ident) => {
        $crate::__sync_handler!(Blocking, $method)
    };
    ($($words:ident)+) => {
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
    ($mode:ident, $method:ident) => {
        $crate::__private::Entry::<Self>::sync($crate::__private::Mode::$mode, |plugin, call| {
            match $crate::FromCall::from_call(call) {
                ::core::result::Result::Ok(event) => $crate::IntoAnswer::into_answer(plugin.$method(event)),
                ::core::result::Result::Err(error) => $crate::Answer::Failed(error),
            }
        })
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __task {
    (async $method:ident) => {
        $crate::__async_task!($method)
    };
    (inline $method:ident) => {
        $crate::__sync_task!(Inline, $method)
    };
    ($method:ident) => {
        $crate::__sync_task!(Blocking, $method)
    };
    ($($words:ident)+) => {
        $crate::__no_mode!($($words)+)
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __sync_task {
    ($mode:ident, $method:ident) => {
        $crate::__private::Entry::<Self>::sync($crate::__private::Mode::$mode, |plugin, call| match $crate::__private::open_task(
            call,
        ) {
            ::core::result::Result::Ok((context, args, kwargs)) => $crate::__private::ran(plugin.$method(&context, args, kwargs)),
            ::core::result::Result::Err(error) => $crate::__private::refused(error),
        })
    };
}

#[cfg(feature = "async")]
#[doc(hidden)]
#[macro_export]
macro_rules! __async_handler {
    ($method:ident) => {
        $crate::__private::Entry::<Self>::asynchronous(|plugin, call| {
            ::std::boxed::Box::pin(async move {
                let event = $crate::FromCall::from_call(&call.as_call());
                match event {
                    ::core::result::Result::Ok(event) => $crate::IntoAnswer::into_answer(plugin.$method(event).await),
                    ::core::result::Result::Err(error) => $crate::Answer::Failed(error),
                }
            })
        })
    };
}

#[cfg(feature = "async")]
#[doc(hidden)]
#[macro_export]
macro_rules! __async_task {
    ($method:ident) => {
        $crate::__private::Entry::<Self>::asynchronous(|plugin, call| {
            ::std::boxed::Box::pin(async move {
                let opened = $crate::__private::open_task(&call.as_call());
                match opened {
                    ::core::result::Result::Ok((context, args, kwargs)) => {
                        $crate::__private::ran(plugin.$method(&context, args, kwargs).await)
                    }
                    ::core::result::Result::Err(error) => $crate::__private::refused(error),
                }
            })
        })
    };
}

#[cfg(not(feature = "async"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __async_handler {
    ($method:ident) => {
        ::core::compile_error!("an async handler needs qtasks-plugin-api with features = [\"async\"]")
    };
}

#[cfg(not(feature = "async"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __async_task {
    ($method:ident) => {
        ::core::compile_error!("an async task needs qtasks-plugin-api with features = [\"async\"]")
    };
}
