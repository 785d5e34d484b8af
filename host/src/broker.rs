//! Where tasks wait. [`memory`] holds them in this process, for `run` and for tests.

pub mod memory;

pub use memory::MemoryBroker;
