//! Plugins in a process of their own: to be probed, or to be called there for good.
//!
//! Both are the same program, the host's own executable started as a *guest*, on the same sealed bytes, over a private socket:
//! `frame` is what goes over it, [`guest`] the guest's side, `sandbox` what it gives up before it loads anything, `surroundings` what
//! loading may change in it and should not, `spawn` how it is started and ended, `supervisor` the host's side of a plugin that lives
//! there, `restart` all lives of its process, started by its `recipe`, `connection` one of them, and `output` what that logs and prints.

mod connection;
pub(crate) mod ended;
pub(crate) mod frame;
pub mod guest;
mod output;
pub(crate) mod recipe;
mod restart;
pub(crate) mod sandbox;
pub(crate) mod spawn;
pub(crate) mod supervisor;
mod surroundings;

pub use sandbox::SandboxLevel;
pub use spawn::GuestError;
