// SPDX-License-Identifier: MIT OR Apache-2.0

//! Watchers of the reactor: flux_fd_watcher_create(3), flux_timer_watcher_create(3).

use std::{
    ffi::{c_int, c_void},
    io,
    os::fd::RawFd,
    rc::Rc,
};

use crate::{guard, last_error, raw};

/// A watcher of a file descriptor or a timer. Dropping it stops and destroys it.
pub struct Watcher {
    raw: *mut raw::flux_watcher_t,
    callback: *mut Callback,
}

/// Shared with the running call, because a callback may drop its own watcher.
type Callback = Rc<dyn Fn()>;

impl Watcher {
    /// Calls `f` whenever the descriptor is readable.
    pub(crate) fn readable(reactor: *mut raw::flux_reactor_t, fd: RawFd, f: Callback) -> io::Result<Self> {
        // SAFETY: a live reactor, and an argument that outlives the watcher.
        Self::new(reactor, f, |arg| unsafe {
            raw::flux_fd_watcher_create(reactor, fd, raw::FLUX_POLLIN, Some(called), arg)
        })
    }

    /// Calls `f` whenever the descriptor is writable.
    pub(crate) fn writable(reactor: *mut raw::flux_reactor_t, fd: RawFd, f: Callback) -> io::Result<Self> {
        // SAFETY: a live reactor, and an argument that outlives the watcher.
        Self::new(reactor, f, |arg| unsafe {
            raw::flux_fd_watcher_create(reactor, fd, raw::FLUX_POLLOUT, Some(called), arg)
        })
    }

    /// Calls `f` after `seconds` seconds, then every `repeat` seconds unless `repeat` is 0.
    pub(crate) fn timer(reactor: *mut raw::flux_reactor_t, seconds: f64, repeat: f64, f: Callback) -> io::Result<Self> {
        // SAFETY: a live reactor, and an argument that outlives the watcher.
        Self::new(reactor, f, |arg| unsafe {
            raw::flux_timer_watcher_create(reactor, seconds, repeat, Some(called), arg)
        })
    }

    fn new(
        reactor: *mut raw::flux_reactor_t,
        f: Callback,
        create: impl FnOnce(*mut c_void) -> *mut raw::flux_watcher_t,
    ) -> io::Result<Self> {
        if reactor.is_null() {
            return Err(last_error());
        }
        let callback = Box::into_raw(Box::new(f));
        let raw = create(callback.cast::<c_void>());
        if raw.is_null() {
            let error = last_error();
            // SAFETY: no watcher holds it.
            drop(unsafe { Box::from_raw(callback) });
            return Err(error);
        }
        // SAFETY: just created.
        unsafe { raw::flux_watcher_start(raw) };
        Ok(Self { raw, callback })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // SAFETY: owned. A destroyed watcher never calls its callback.
        unsafe {
            raw::flux_watcher_stop(self.raw);
            raw::flux_watcher_destroy(self.raw);
            drop(Box::from_raw(self.callback));
        }
    }
}

unsafe extern "C" fn called(_: *mut raw::flux_reactor_t, _: *mut raw::flux_watcher_t, _: c_int, arg: *mut c_void) {
    // SAFETY: the callback outlives its watcher, and the reactor has one thread.
    let callback = unsafe { Rc::clone(&*arg.cast::<Callback>()) };
    guard((), || callback());
}
