// SPDX-License-Identifier: MIT OR Apache-2.0

//! Futures.
//!
//! Imitates `flux_future_then(3)`, `flux_future_get(3)` and their family. A continuation runs on a later turn than the
//! one in which the future is fulfilled, even if it was fulfilled earlier. While a caller blocks on a future, services
//! make progress, but no watcher and no other continuation runs.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use ffi::raw::{flux_continuation_f, flux_future_t};
use libc::{c_char, c_int, c_void};

use crate::c::{check_thread, cstring, fail, strerror};
use crate::handle::Handle;

/// An error number and its message.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The error number, as in errno.
    pub errnum: c_int,
    /// The message, by default that of strerror(3).
    pub text: String,
}

impl Failure {
    /// Creates a failure with its own message.
    pub fn new(errnum: c_int, text: impl Into<String>) -> Failure {
        Failure {
            errnum,
            text: text.into(),
        }
    }

    /// Creates a failure with the message of the error number.
    pub fn errno(errnum: c_int) -> Failure {
        Failure {
            errnum,
            text: strerror(errnum),
        }
    }
}

/// The outcome of a request or a commit, with an optional value as text.
pub type Outcome = Result<Option<CString>, Failure>;

/// A function that receives an outcome.
pub type Done = Box<dyn FnOnce(Outcome)>;

enum State {
    Pending,
    Value(Option<CString>),
    Error(c_int, CString),
}

/// A future of a handle.
pub struct Future {
    handle: Weak<Handle>,
    state: RefCell<State>,
    then: Cell<Option<(unsafe extern "C" fn(*mut flux_future_t, *mut c_void), *mut c_void)>>,
    /// Counts calls of then(), to tell a timer from that of an earlier call.
    armed: Cell<u64>,
}

impl Future {
    /// Creates a pending future.
    pub fn new(handle: &Rc<Handle>) -> Rc<Future> {
        Rc::new(Future {
            handle: Rc::downgrade(handle),
            state: RefCell::new(State::Pending),
            then: Cell::new(None),
            armed: Cell::new(0),
        })
    }

    /// Passes a reference to C, which releases it with flux_future_destroy(3).
    pub fn into_raw(self: Rc<Self>) -> *mut flux_future_t {
        crate::c::FUTURES.add(1);
        Rc::into_raw(self).cast_mut().cast()
    }

    /// Fulfills the future. Ignores all outcomes but the first.
    pub fn fulfill(self: &Rc<Self>, outcome: Outcome) {
        if self.is_ready() {
            return;
        }
        *self.state.borrow_mut() = match outcome {
            Ok(value) => State::Value(value),
            Err(failure) => State::Error(failure.errnum, cstring(failure.text)),
        };
        if self.then.get().is_some() {
            self.schedule();
        }
    }

    fn is_ready(&self) -> bool {
        !matches!(*self.state.borrow(), State::Pending)
    }

    fn schedule(self: &Rc<Self>) {
        if let Some(handle) = self.handle.upgrade() {
            handle.reactor.future_ready(Rc::downgrade(self));
        }
    }

    /// Calls the continuation, if one is set and the C side still holds the future.
    pub fn call_continuation(self: Rc<Self>) {
        if Rc::strong_count(&self) == 1 {
            return;
        }
        if let Some((callback, arg)) = self.then.get() {
            // SAFETY: the plugin supplied this callback for this argument, and destroys the future before either
            // becomes invalid. The reference held here keeps the future alive if the callback destroys it.
            unsafe { callback(Rc::as_ptr(&self).cast_mut().cast(), arg) }
        }
    }

    /// Blocks until the future is fulfilled or the timeout expires (never if negative). On failure, returns an error
    /// number.
    fn wait(&self, timeout: f64) -> Result<(), c_int> {
        let deadline = seconds(timeout).and_then(|timeout| Instant::now().checked_add(timeout));
        while !self.is_ready() {
            if timeout == 0.0 {
                return Err(libc::ETIMEDOUT);
            }
            let handle = self.handle.upgrade().ok_or(libc::EINVAL)?;
            handle.broker().progress(deadline)?;
        }
        Ok(())
    }

    /// Blocks until the future is fulfilled, and reads the value.
    fn get(&self) -> Result<*const c_char, c_int> {
        self.wait(-1.0)?;
        match &*self.state.borrow() {
            State::Value(Some(value)) => Ok(value.as_ptr()),
            State::Value(None) => Ok(std::ptr::null()),
            State::Error(errnum, _) => Err(*errnum),
            State::Pending => Err(libc::EDEADLK),
        }
    }

    /// Blocks until the future is fulfilled, and copies the outcome.
    pub fn outcome(&self) -> Outcome {
        self.wait(-1.0).map_err(Failure::errno)?;
        match &*self.state.borrow() {
            State::Value(value) => Ok(value.clone()),
            State::Error(errnum, text) => Err(Failure::new(*errnum, text.to_string_lossy())),
            State::Pending => Err(Failure::errno(libc::EDEADLK)),
        }
    }
}

fn seconds(timeout: f64) -> Option<Duration> {
    (timeout >= 0.0)
        .then(|| Duration::try_from_secs_f64(timeout).ok())
        .flatten()
}

/// Returns the future behind a C pointer.
///
/// # Safety
/// `f` is NULL or a future that was not destroyed.
unsafe fn future<'a>(f: *mut flux_future_t) -> Option<&'a Future> {
    check_thread();
    // SAFETY: as promised by the caller; a flux_future_t is only ever made from an Rc<Future>.
    unsafe { f.cast::<Future>().cast_const().as_ref() }
}

/// Stores the value of a future in `*value`, unless `value` is NULL.
///
/// # Safety
/// `f` is NULL or valid, and `value` is NULL or points to a pointer.
unsafe fn value_get(f: *mut flux_future_t, value: *mut *const c_char) -> c_int {
    // SAFETY: as promised by the caller.
    let Some(future) = (unsafe { future(f) }) else {
        return fail(libc::EINVAL);
    };
    match future.get() {
        Ok(s) => {
            if !value.is_null() {
                // SAFETY: as promised by the caller.
                unsafe { *value = s }
            }
            0
        }
        Err(errnum) => fail(errnum),
    }
}

/// flux_future_then(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_future_then(
    f: *mut flux_future_t,
    timeout: f64,
    cb: flux_continuation_f,
    arg: *mut c_void,
) -> c_int {
    let (false, Some(cb)) = (f.is_null(), cb) else {
        return fail(libc::EINVAL);
    };
    // SAFETY: the caller passes a valid future. The reference of the C side stays.
    let future = unsafe {
        let f = f.cast::<Future>().cast_const();
        Rc::increment_strong_count(f);
        Rc::from_raw(f)
    };
    let Some(handle) = future.handle.upgrade() else {
        return fail(libc::EINVAL);
    };
    future.then.set(Some((cb, arg)));
    future.armed.set(future.armed.get() + 1);
    if future.is_ready() {
        future.schedule();
    } else if let Some(timeout) = seconds(timeout) {
        let (armed, weak) = (future.armed.get(), Rc::downgrade(&future));
        handle.reactor.after(timeout, move || {
            if let Some(future) = weak.upgrade().filter(|future| future.armed.get() == armed) {
                future.fulfill(Err(Failure::errno(libc::ETIMEDOUT)));
            }
        });
    }
    0
}

/// flux_future_get(3). The result is the payload rather than the message that contains it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_future_get(f: *mut flux_future_t, result: *mut *const c_void) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe { value_get(f, result.cast()) }
}

/// flux_future_wait_for(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_future_wait_for(f: *mut flux_future_t, timeout: f64) -> c_int {
    // SAFETY: the caller passes NULL or a valid future.
    let Some(future) = (unsafe { future(f) }) else {
        return fail(libc::EINVAL);
    };
    match future.wait(timeout) {
        Ok(()) => 0,
        Err(errnum) => fail(errnum),
    }
}

/// flux_future_has_error(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_future_has_error(f: *mut flux_future_t) -> bool {
    // SAFETY: the caller passes NULL or a valid future.
    unsafe { future(f) }.is_some_and(|future| matches!(*future.state.borrow(), State::Error(..)))
}

/// flux_future_error_string(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_future_error_string(f: *mut flux_future_t) -> *const c_char {
    // SAFETY: the caller passes NULL or a valid future.
    match unsafe { future(f) }.map(|future| future.state.borrow()).as_deref() {
        Some(State::Error(_, text)) => text.as_ptr(),
        _ => std::ptr::null(),
    }
}

/// flux_future_destroy(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_future_destroy(f: *mut flux_future_t) {
    check_thread();
    if !f.is_null() {
        crate::c::FUTURES.add(-1);
        // SAFETY: the caller releases its reference, which came from into_raw().
        drop(unsafe { Rc::from_raw(f.cast::<Future>().cast_const()) });
    }
}

/// flux_rpc_get(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_rpc_get(f: *mut flux_future_t, s: *mut *const c_char) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe { value_get(f, s) }
}

/// flux_kvs_lookup_get(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_kvs_lookup_get(f: *mut flux_future_t, value: *mut *const c_char) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe { value_get(f, value) }
}
