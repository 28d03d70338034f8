// SPDX-License-Identifier: MIT OR Apache-2.0

//! Futures: flux_future_create(3), flux_rpc(3), flux_kvs_lookup(3).

use std::{
    cell::Cell,
    ffi::{c_char, c_void},
    fmt, io, ptr,
    rc::Rc,
};

use crate::{borrowed, guard, last_error, raw};

/// A future that is destroyed when dropped.
pub struct Future {
    raw: *mut raw::flux_future_t,
}

/// The error of a future: the errno, and the text that came with it.
#[derive(Debug)]
pub struct FutureError {
    error: io::Error,
    text: Option<String>,
}

impl FutureError {
    /// Returns the errno.
    pub fn errno(&self) -> i32 {
        self.error.raw_os_error().unwrap_or(0)
    }
}

impl fmt::Display for FutureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => f.write_str(text),
            None => write!(f, "{}", self.error),
        }
    }
}

impl std::error::Error for FutureError {}

/// State attached to a future until it is fulfilled. C holds a pointer to it.
struct Hook {
    continuation: Box<dyn FnOnce(Future)>,
    /// Emptied by whoever takes the future: its continuation, or the [`PendingFuture`] when dropped.
    slot: Slot,
}

type Slot = Rc<Cell<Option<(*mut raw::flux_future_t, *mut Hook)>>>;

impl Future {
    /// # Safety
    /// `raw` is null, or a future that nothing else destroys.
    pub(crate) unsafe fn own(raw: *mut raw::flux_future_t) -> io::Result<Self> {
        if raw.is_null() {
            Err(last_error())
        } else {
            Ok(Self { raw })
        }
    }

    /// Calls `f` on the reactor thread once the future is fulfilled, with success or an error, or after `timeout`
    /// seconds (ETIMEDOUT). A negative timeout never expires. Dropping the result cancels: it drops `f` without
    /// calling it.
    ///
    /// # Errors
    /// From flux_future_then(3).
    pub fn then(self, timeout: f64, f: impl FnOnce(Future) + 'static) -> io::Result<PendingFuture> {
        let slot = Slot::default();
        let hook = Box::into_raw(Box::new(Hook {
            continuation: Box::new(f),
            slot: Rc::clone(&slot),
        }));
        // SAFETY: the continuation receives the hook at most once. A future that is destroyed earlier never calls
        // it.
        if unsafe { raw::flux_future_then(self.raw, timeout, Some(fulfilled), hook.cast()) } < 0 {
            let error = last_error();
            // SAFETY: the call failed, so the hook is still ours.
            drop(unsafe { Box::from_raw(hook) });
            return Err(error);
        }
        slot.set(Some((self.raw, hook)));
        std::mem::forget(self);
        Ok(PendingFuture { slot })
    }

    /// Waits for the future without running other callbacks. Call it only on a thread that may block, such as that
    /// of a job shell.
    ///
    /// # Errors
    /// [`FutureError`], with ETIMEDOUT after `timeout` seconds.
    pub fn wait(&self, timeout: f64) -> Result<(), FutureError> {
        // SAFETY: a live future.
        if unsafe { raw::flux_future_wait_for(self.raw, timeout) } < 0 {
            Err(self.error())
        } else {
            Ok(())
        }
    }

    /// Waits for the future, and returns its error if it failed.
    ///
    /// # Errors
    /// [`FutureError`].
    pub fn get(&self) -> Result<(), FutureError> {
        // SAFETY: a live future. A null result pointer is allowed.
        if unsafe { raw::flux_future_get(self.raw, ptr::null_mut()) } < 0 {
            Err(self.error())
        } else {
            Ok(())
        }
    }

    /// Returns the payload of the response to an RPC. Waits until it arrives.
    ///
    /// # Errors
    /// [`FutureError`].
    pub fn rpc(&self) -> Result<Option<String>, FutureError> {
        self.text(raw::flux_rpc_get)
    }

    /// Returns the value of a KVS lookup. Waits until it arrives.
    ///
    /// # Errors
    /// [`FutureError`].
    pub fn value(&self) -> Result<Option<String>, FutureError> {
        self.text(raw::flux_kvs_lookup_get)
    }

    fn text(
        &self,
        get: unsafe extern "C" fn(*mut raw::flux_future_t, *mut *const c_char) -> i32,
    ) -> Result<Option<String>, FutureError> {
        let mut text = ptr::null();
        // SAFETY: a live future, and the address of a pointer to a string that the future owns. The string is
        // copied.
        unsafe {
            if get(self.raw, &mut text) < 0 {
                return Err(self.error());
            }
            Ok(borrowed(text).map(|text| text.into_owned()))
        }
    }

    fn error(&self) -> FutureError {
        let error = last_error();
        // SAFETY: a live future. The future owns the text, or it is static. It is copied.
        let text = unsafe {
            if raw::flux_future_has_error(self.raw) {
                borrowed(raw::flux_future_error_string(self.raw)).map(|text| text.into_owned())
            } else {
                None
            }
        };
        FutureError { error, text }
    }
}

impl Drop for Future {
    fn drop(&mut self) {
        // SAFETY: owned, and destroyed once.
        unsafe { raw::flux_future_destroy(self.raw) }
    }
}

/// A future whose continuation has not run yet. Dropping it cancels the continuation.
#[must_use = "dropping it cancels the continuation"]
pub struct PendingFuture {
    slot: Slot,
}

impl Drop for PendingFuture {
    fn drop(&mut self) {
        if let Some((raw, hook)) = self.slot.take() {
            // SAFETY: the continuation has not been called, otherwise the slot would be empty. A destroyed future
            // calls none.
            unsafe {
                raw::flux_future_destroy(raw);
                drop(Box::from_raw(hook));
            }
        }
    }
}

unsafe extern "C" fn fulfilled(raw: *mut raw::flux_future_t, arg: *mut c_void) {
    // SAFETY: `then` passed this pointer to C for exactly one call.
    let hook = unsafe { Box::from_raw(arg.cast::<Hook>()) };
    hook.slot.take();
    let future = Future { raw };
    guard((), || (hook.continuation)(future));
}
