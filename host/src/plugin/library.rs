//! Opens a plugin library: the one place where foreign code begins to run.
//!
//! # Safety
//!
//! `dlopen` runs the library's constructors with the host's rights, and nothing in this process can stop them. Whoever puts a
//! file into the plugin directory is trusted as much as the host itself.
#![expect(unsafe_code, reason = "dlopen and dlsym have no safe form")]

use std::error::Error as _;
use std::path::Path;

use libc::RTLD_NODELETE;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use qtasks_plugin_api::abi::ROOT_SYMBOL;
use qtasks_plugin_api::abi::loaded::{Layout, Module, ModuleError};

/// Why a library could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// `dlopen` refused; the text is the dynamic linker's.
    #[error("the dynamic linker refused it: {0}")]
    Open(String),
    /// No root symbol.
    #[error(
        "it has a manifest and no symbol {ROOT_SYMBOL}; build it with export_plugin! and without a version script that hides symbols"
    )]
    NoRoot,
    /// A root that this host cannot call.
    #[error(transparent)]
    Module(#[from] ModuleError),
}

/// Opens the library at `path` and gives its root module. The library stays loaded until the process ends, also when this fails:
/// a thread-local destructor that a library registered would otherwise run in unmapped memory. `RTLD_NODELETE` keeps it there for a
/// library that closes its own handle as well.
///
/// # Errors
///
/// [`OpenError`].
///
/// # Safety
///
/// The file's constructors run with all rights of this process, and its root symbol is believed to be what `export_plugin!`
/// makes. The caller vouches for the file: the operator put it into the plugin directory, and its manifest was read. With
/// [`Layout::ComparedBefore`] the caller also vouches that a probe by this host's version compared the layout of these very bytes.
pub(crate) unsafe fn open(path: &Path, layout: Layout) -> Result<Module, OpenError> {
    // SAFETY: the caller vouches for the constructors.
    let opened = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) };
    let library = opened.map_err(|error| OpenError::Open(reason(&error)))?;
    // SAFETY: only the symbol's address is taken here; what lies there is `from_root_symbol`'s business.
    let found = unsafe { library.get::<*const ()>(ROOT_SYMBOL) }.map(|symbol| symbol.as_raw_ptr().cast_const().cast::<()>());
    // Nothing is ever unloaded.
    std::mem::forget(library);
    let symbol = found.map_err(|_| OpenError::NoRoot)?;
    // SAFETY: the caller vouches for the symbol and for a comparison before, and the library was just leaked.
    Ok(unsafe { Module::from_root_symbol(symbol, layout) }?)
}

/// libloading says only "dlopen failed"; the linker's own words are in the source.
fn reason(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}
