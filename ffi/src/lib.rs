// SPDX-License-Identifier: MIT OR Apache-2.0

//! The C API of libflux-core, jobtap and the job shell: the declarations are in [`raw`]; the rest are safe types over
//! them.
//!
//! The build needs no Flux header or library. The types keep these rules of the C side:
//! - A Flux object belongs to the thread of its reactor: no type here is `Send`.
//! - An argument of a callback lives until the callback returns: such types borrow.
//! - No panic may cross into C: every callback goes through [`guard`].
//!
//! This crate contains no policy.

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

/// Calls `f` on behalf of a C callback, and turns a panic into `fallback`. It drops the panic's message, which may
/// quote anything.
pub fn guard<T>(fallback: T, f: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or(fallback)
}

/// Makes panics report only their location: the message may quote secret data. Call it once, when a plugin is loaded.
/// It affects no other object, because each has its own runtime.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        eprintln!("workflow-token: an internal error at {place}: please report it");
    }));
}

/// Panics if a test requests it: the environment variable `WORKFLOW_TOKEN_FAULT` names a file that contains the name of
/// a place. The first caller that passes this name removes the file and panics.
#[cfg(feature = "fault-injection")]
#[track_caller]
pub fn inject_fault(place: &str) {
    if let Some(file) = std::env::var_os("WORKFLOW_TOKEN_FAULT")
        && std::fs::read_to_string(&file).is_ok_and(|wanted| wanted == place)
        && std::fs::remove_file(&file).is_ok()
    {
        panic!("fault injected");
    }
}

/// Does nothing: only builds with the feature `fault-injection` inject faults.
#[cfg(not(feature = "fault-injection"))]
#[inline(always)]
pub fn inject_fault(_place: &str) {}

/// Returns the error of the C call that just failed, from errno.
fn last_error() -> io::Error {
    io::Error::last_os_error()
}

/// Converts a key, a name or a payload into a C string.
///
/// # Errors
/// EINVAL: the text contains a NUL, which no C string can.
pub fn c_text(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Converts a line for people into a C string. A NUL appears as `\0`.
pub fn c_line(line: &str) -> CString {
    CString::new(line.replace('\0', "\\0")).unwrap_or_default()
}

/// Parses JSON that C returned.
///
/// # Errors
/// InvalidData: serde_json accepts 127 levels; Flux accepts more.
fn read_json(text: &str) -> io::Result<serde_json::Value> {
    serde_json::from_str(text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Converts a C string, with U+FFFD in place of bytes that are not UTF-8. Nearly all strings are UTF-8, and for them
/// this is faster than [`CStr::to_string_lossy`].
fn text_of(text: &CStr) -> std::borrow::Cow<'_, str> {
    text.to_str().map_or_else(|_| text.to_string_lossy(), Into::into)
}

/// Returns a string that C owns, or None if it is null.
///
/// # Safety
/// `text` is null or a NUL-terminated string that outlives `'a`.
pub unsafe fn borrowed<'a>(text: *const c_char) -> Option<std::borrow::Cow<'a, str>> {
    if text.is_null() {
        return None;
    }
    // SAFETY: guaranteed by the caller.
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
    // SAFETY: guaranteed by the caller.
    unsafe {
        let owned = text_of(CStr::from_ptr(text)).into_owned();
        libc::free(text.cast());
        Some(owned)
    }
}

/// Keeps the shared object that contains this code mapped until the process exits, even if the host closes it.
///
/// Threads that hang in a system call cannot be joined: when they return, their code must still be mapped.
pub fn pin_object() {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    let here = pin_object as *const () as *const libc::c_void;
    // SAFETY: an address in this object, and a place for the result. The name is valid if the call succeeds.
    unsafe {
        if libc::dladdr(here, info.as_mut_ptr()) != 0 {
            let name = info.assume_init().dli_fname;
            libc::dlopen(name, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE);
        }
    }
}
