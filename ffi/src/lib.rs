//! The C API of libflux-core, jobtap and the job shell: declared once, in [`raw`], and safe types over it.
//!
//! No Flux header or library is needed to build. The rules of the C side that the types here keep:
//! - A Flux object belongs to the thread of its reactor: no type here is `Send`.
//! - What a callback is given lives until the callback returns: such types borrow.
//! - No panic may cross into C: every callback goes through [`guard`].
//!
//! There is no policy here.

pub mod raw;

mod args;
mod future;
mod handle;
mod jobid;
mod kvs;
pub mod memory;
mod message;
mod plugin;
mod reactor;
mod shell;

use std::{
    ffi::{CStr, CString, c_char},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

pub use args::{Args, JobState};
pub use future::{Future, FutureError, PendingFuture};
pub use handle::{Flux, LogLevel};
pub use jobid::JobId;
pub use kvs::Transaction;
pub use message::{KeptRequest, Request};
pub use plugin::{Handler, Jobtap, Kept, Plugin, PluginError, Service, State};
pub use reactor::Watcher;
pub use shell::{JobFacts, Shell, ShellLogLevel};

/// Runs what a callback of C calls, and turns a panic into `fallback`. The panic's message is dropped: it may quote
/// anything.
pub fn guard<T>(fallback: T, f: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or(fallback)
}

/// Has panics reported by their place only: a panic's message may quote what it stumbled on. To be called once, when a
/// plugin is loaded; it concerns no other object, as each has its own runtime.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("workflow-token: an internal error at {place}: please report it");
    }));
}

/// Panics at this place if a test asks for it: the environment variable `WORKFLOW_TOKEN_FAULT` names a file, which holds the
/// name of a place. The first caller from that place removes the file, and panics.
#[cfg(feature = "fault-injection")]
#[track_caller]
pub fn inject_fault(place: &str) {
    if let Some(file) = std::env::var_os("WORKFLOW_TOKEN_FAULT")
        && std::fs::read_to_string(&file).is_ok_and(|wanted| wanted == place)
        && std::fs::remove_file(&file).is_ok()
    {
        panic!("a test wants that");
    }
}

/// Does nothing: only builds with the feature `fault-injection` inject faults.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub fn inject_fault(_place: &str) {}

/// The error of the C call that just failed, from errno.
fn last_error() -> io::Error {
    io::Error::last_os_error()
}

/// Text as C takes it: a key, a name, a payload.
///
/// # Errors
/// EINVAL: it has a NUL, which no C string can have.
pub fn c_text(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// A line for people as C takes it, a NUL in it shown as `\0`.
pub fn c_line(line: &str) -> CString {
    CString::new(line.replace('\0', "\\0")).unwrap_or_default()
}

/// JSON that C gave.
///
/// # Errors
/// It cannot be read: serde_json takes 127 levels, and Flux more.
fn read_json(text: &str) -> io::Result<serde_json::Value> {
    serde_json::from_str(text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// A string of C, with U+FFFD for bytes that are no UTF-8. Nearly all are, for which this is faster than
/// [`CStr::to_string_lossy`].
fn text_of(text: &CStr) -> std::borrow::Cow<'_, str> {
    text.to_str().map_or_else(|_| text.to_string_lossy(), Into::into)
}

/// A string that C owns, or nothing where it is null.
///
/// # Safety
/// `text` is null or a NUL-terminated string that outlives `'a`.
pub unsafe fn borrowed<'a>(text: *const c_char) -> Option<std::borrow::Cow<'a, str>> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller says so.
    Some(text_of(unsafe { CStr::from_ptr(text) }))
}

/// Takes a string that C allocated with malloc, and frees it.
///
/// # Safety
/// `text` is null or a NUL-terminated string allocated with malloc, and is not used afterwards.
unsafe fn taken(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller says so.
    unsafe {
        let owned = text_of(CStr::from_ptr(text)).into_owned();
        libc::free(text.cast());
        Some(owned)
    }
}

/// Keeps the shared object that this code is in mapped for as long as the process lives, whoever closes it.
///
/// For threads that cannot be joined because they hang in a system call: they return to code that is still there.
pub fn pin_object() {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    let here = pin_object as *const () as *const libc::c_void;
    // SAFETY: an address in this object, and a place for what is known of it; the name is valid where the call succeeds.
    unsafe {
        if libc::dladdr(here, info.as_mut_ptr()) != 0 {
            let name = info.assume_init().dli_fname;
            libc::dlopen(name, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE);
        }
    }
}
