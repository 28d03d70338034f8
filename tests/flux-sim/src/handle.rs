// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Flux handle: the process's view of its broker, and the messages that both exchange.
//!
//! Imitates `flux_t` with its aux items, `flux_log(3)`, `flux_rpc(3)` and `flux_respond(3)`. In the instance, the
//! simulator itself is the broker. For a job shell, the broker is at the other end of a socket.

use std::cell::{Cell, OnceCell};
use std::ffi::{CStr, CString};
use std::rc::{Rc, Weak};
use std::sync::OnceLock;
use std::time::Instant;

use ffi::raw::{flux_free_f, flux_future_t, flux_kvs_txn_t, flux_msg_t, flux_reactor_t, flux_t};
use libc::{c_char, c_int, c_void};

use crate::c::{self, Aux, fail, set_errno};
use crate::future::{Done, Failure, Future, Outcome};
use crate::kvs::Txn;
use crate::reactor::Reactor;

/// Answers the requests of a handle.
pub trait Broker {
    /// Logs a message, for display by `flux dmesg`.
    fn log(&self, level: c_int, text: &str);
    /// Answers a request on a later turn.
    fn request(&self, topic: String, payload: Option<CString>, done: Done);
    /// Commits a transaction on a later turn.
    fn commit(&self, txn: Txn, done: Done);
    /// Looks up a key on a later turn.
    fn lookup(&self, key: String, done: Done);
    /// Makes some progress with outstanding work while the caller blocks on a future. Returns an error number if no
    /// progress is possible or the deadline has passed.
    fn progress(&self, deadline: Option<Instant>) -> Result<(), c_int>;
}

/// The handle of this process.
pub struct Handle {
    /// The reactor of the process.
    pub reactor: Rc<Reactor>,
    /// Outlives every plugin.
    pub aux: Aux,
    broker: OnceCell<Weak<dyn Broker>>,
    /// Used once the broker no longer exists.
    none: Rc<dyn Broker>,
}

impl Handle {
    /// Creates a handle that is not connected yet.
    pub fn new() -> Rc<Handle> {
        Rc::new(Handle {
            reactor: Rc::default(),
            aux: Aux::default(),
            broker: OnceCell::new(),
            none: Rc::new(Disconnected),
        })
    }

    /// Connects the handle, once.
    pub fn connect(&self, broker: Weak<dyn Broker>) {
        let _ = self.broker.set(broker);
    }

    /// Returns the broker at the other end.
    pub fn broker(&self) -> Rc<dyn Broker> {
        self.broker
            .get()
            .and_then(Weak::upgrade)
            .unwrap_or_else(|| self.none.clone())
    }

    /// Returns the handle as a C pointer, borrowed.
    pub fn as_ptr(self: &Rc<Self>) -> *mut flux_t {
        Rc::as_ptr(self).cast_mut().cast()
    }

    /// Returns a future and the function that fulfills it. The future may be destroyed first.
    pub fn future(self: &Rc<Self>) -> (Rc<Future>, Done) {
        let future = Future::new(self);
        let weak = Rc::downgrade(&future);
        let done = move |outcome| {
            if let Some(future) = weak.upgrade() {
                future.fulfill(outcome);
            }
        };
        (future, Box::new(done))
    }
}

struct Disconnected;

impl Broker for Disconnected {
    fn log(&self, level: c_int, text: &str) {
        eprintln!("{}: {text}", level_name(level));
    }
    fn request(&self, _: String, _: Option<CString>, done: Done) {
        done(Err(Failure::errno(libc::ENOTCONN)));
    }
    fn commit(&self, _: Txn, done: Done) {
        done(Err(Failure::errno(libc::ENOTCONN)));
    }
    fn lookup(&self, _: String, done: Done) {
        done(Err(Failure::errno(libc::ENOTCONN)));
    }
    fn progress(&self, _: Option<Instant>) -> Result<(), c_int> {
        Err(libc::ENOTCONN)
    }
}

/// Returns the name of a syslog level.
pub fn level_name(level: c_int) -> &'static str {
    const NAMES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
    NAMES[(level & 7) as usize]
}

/// A request held by the service that answers it. The service may keep it until then.
pub struct Message {
    topic: CString,
    payload: Option<CString>,
    userid: u32,
    done: Cell<Option<Done>>,
}

impl Message {
    /// Creates a request from a user.
    pub fn new(topic: &str, payload: Option<CString>, userid: u32, done: Done) -> Rc<Message> {
        Rc::new(Message {
            topic: c::cstring(topic),
            payload,
            userid,
            done: Cell::new(Some(done)),
        })
    }

    /// Answers the request, unless it was answered already.
    pub fn respond(&self, outcome: Outcome) {
        if let Some(done) = self.done.take() {
            done(outcome);
        }
    }

    /// Returns the topic of the request.
    pub fn topic(&self) -> String {
        self.topic.to_string_lossy().into_owned()
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // Nobody holds the message any more, so nobody can answer it. In Flux, the requester would wait for ever.
        let text = format!("{}: the service did not respond", self.topic());
        self.respond(Err(Failure::new(libc::EPROTO, text)));
    }
}

/// Returns the handle behind a C pointer, with its own reference.
///
/// # Safety
/// `h` is NULL or a valid handle.
pub unsafe fn handle(h: *mut flux_t) -> Option<Rc<Handle>> {
    c::check_thread();
    if h.is_null() {
        set_errno(libc::EINVAL);
        return None;
    }
    let h = h.cast::<Handle>().cast_const();
    // SAFETY: as promised by the caller; a flux_t is only ever made from an Rc<Handle>.
    unsafe {
        Rc::increment_strong_count(h);
        Some(Rc::from_raw(h))
    }
}

/// flux_get_reactor(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_get_reactor(h: *mut flux_t) -> *mut flux_reactor_t {
    // SAFETY: the caller passes NULL or a valid handle.
    match unsafe { handle(h) } {
        Some(handle) => Rc::as_ptr(&handle.reactor).cast_mut().cast(),
        None => std::ptr::null_mut(),
    }
}

/// The directory of the instance, while it runs.
pub static RUNDIR: OnceLock<CString> = OnceLock::new();

/// The file from which the configuration was read when the instance started.
pub static CONFIG_PATH: OnceLock<CString> = OnceLock::new();

/// flux_attr_get(3), for the attributes that plugins read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_attr_get(h: *mut flux_t, name: *const c_char) -> *const c_char {
    static HOSTNAME: OnceLock<CString> = OnceLock::new();
    if h.is_null() || name.is_null() {
        set_errno(libc::EINVAL);
        return std::ptr::null();
    }
    // SAFETY: not NULL, and therefore a C string.
    match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"hostname" => HOSTNAME
            .get_or_init(|| CString::new(crate::job::hostname()).unwrap_or_default())
            .as_ptr(),
        b"rundir" => RUNDIR.get().map_or(std::ptr::null(), |path| path.as_ptr()),
        b"config.path" => CONFIG_PATH.get().map_or(std::ptr::null(), |path| path.as_ptr()),
        // The instance is not nested in another one.
        b"jobid-path" => c"/".as_ptr(),
        _ => {
            set_errno(libc::ENOENT);
            std::ptr::null()
        }
    }
}

/// flux_aux_get(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_aux_get(h: *mut flux_t, name: *const c_char) -> *mut c_void {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe { handle(h).map_or(std::ptr::null_mut(), |handle| handle.aux.get(name)) }
}

/// flux_aux_set(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_aux_set(
    h: *mut flux_t,
    name: *const c_char,
    aux: *mut c_void,
    destroy: flux_free_f,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers, and a destructor for the item.
    unsafe { handle(h).map_or(-1, |handle| handle.aux.set(name, aux, destroy)) }
}

/// The tail of flux_log(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_log(h: *mut flux_t, level: c_int, text: *const c_char) {
    // SAFETY: the shim passes on the handle of its caller, and a string of its own.
    unsafe {
        let text = c::string(text).unwrap_or_default();
        let text = text.trim_end();
        match h.is_null() {
            true => Disconnected.log(level, text),
            false => handle(h)
                .into_iter()
                .for_each(|handle| handle.broker().log(level, text)),
        }
    }
}

/// flux_rpc(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_rpc(
    h: *mut flux_t,
    topic: *const c_char,
    s: *const c_char,
    _nodeid: u32,
    flags: c_int,
) -> *mut flux_future_t {
    const NORESPONSE: c_int = 1;
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let (Some(handle), Some(topic)) = (handle(h), c::string(topic)) else {
            set_errno(libc::EINVAL);
            return std::ptr::null_mut();
        };
        if flags & !NORESPONSE != 0 {
            set_errno(libc::EINVAL);
            return std::ptr::null_mut();
        }
        let payload = (!s.is_null()).then(|| CStr::from_ptr(s).to_owned());
        let (future, done) = handle.future();
        if flags & NORESPONSE != 0 {
            future.fulfill(Ok(None));
        }
        handle.broker().request(topic, payload, done);
        future.into_raw()
    }
}

/// flux_kvs_commit(3), in the primary namespace only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_kvs_commit(
    h: *mut flux_t,
    ns: *const c_char,
    _flags: c_int,
    txn: *mut flux_kvs_txn_t,
) -> *mut flux_future_t {
    // SAFETY: the caller passes NULL or valid pointers; a flux_kvs_txn_t is only ever a Txn.
    unsafe {
        let (Some(handle), Some(txn)) = (handle(h), txn.cast::<Txn>().as_ref()) else {
            set_errno(libc::EINVAL);
            return std::ptr::null_mut();
        };
        let (future, done) = handle.future();
        match is_primary(ns) {
            true => handle.broker().commit(txn.clone(), done),
            false => done(Err(Failure::errno(libc::ENOTSUP))),
        }
        future.into_raw()
    }
}

/// flux_kvs_lookup(3), for values in the primary namespace only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_kvs_lookup(
    h: *mut flux_t,
    ns: *const c_char,
    flags: c_int,
    key: *const c_char,
) -> *mut flux_future_t {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let key = c::string(key).filter(|key| !key.is_empty());
        let (Some(handle), Some(key), 0) = (handle(h), key, flags) else {
            set_errno(libc::EINVAL);
            return std::ptr::null_mut();
        };
        let (future, done) = handle.future();
        match is_primary(ns) {
            true => handle.broker().lookup(key, done),
            false => done(Err(Failure::errno(libc::ENOTSUP))),
        }
        future.into_raw()
    }
}

/// # Safety
/// `ns` is NULL or a C string.
unsafe fn is_primary(ns: *const c_char) -> bool {
    // SAFETY: as promised by the caller.
    unsafe { c::string(ns) }.is_none_or(|ns| ns == "primary")
}

/// flux_request_decode(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_request_decode(
    msg: *const flux_msg_t,
    topic: *mut *const c_char,
    s: *mut *const c_char,
) -> c_int {
    // SAFETY: the caller passes NULL or the message passed to its handler, and NULL or valid pointers for the results.
    unsafe {
        let Some(message) = msg.cast::<Message>().as_ref() else {
            return fail(libc::EINVAL);
        };
        if !topic.is_null() {
            *topic = message.topic.as_ptr();
        }
        if !s.is_null() {
            *s = message
                .payload
                .as_ref()
                .map_or(std::ptr::null(), |payload| payload.as_ptr());
        }
    }
    0
}

/// flux_respond(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_respond(h: *mut flux_t, request: *const flux_msg_t, s: *const c_char) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let (false, Some(message)) = (h.is_null(), request.cast::<Message>().as_ref()) else {
            return fail(libc::EINVAL);
        };
        message.respond(Ok((!s.is_null()).then(|| CStr::from_ptr(s).to_owned())));
    }
    0
}

/// flux_respond_error(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_respond_error(
    h: *mut flux_t,
    request: *const flux_msg_t,
    errnum: c_int,
    errstr: *const c_char,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let (false, Some(message)) = (h.is_null(), request.cast::<Message>().as_ref()) else {
            return fail(libc::EINVAL);
        };
        let errnum = if errnum == 0 { libc::EINVAL } else { errnum };
        message.respond(Err(match c::string(errstr) {
            Some(text) => Failure::new(errnum, text),
            None => Failure::errno(errnum),
        }));
    }
    0
}

/// flux_msg_incref(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_msg_incref(msg: *const flux_msg_t) -> *const flux_msg_t {
    c::check_thread();
    if !msg.is_null() {
        // SAFETY: a flux_msg_t is only ever made from an Rc<Message>, and the caller holds a reference.
        unsafe { Rc::increment_strong_count(msg.cast::<Message>()) };
    }
    msg
}

/// flux_msg_decref(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_msg_decref(msg: *const flux_msg_t) {
    c::check_thread();
    if !msg.is_null() {
        // SAFETY: the caller releases a reference obtained from flux_msg_incref.
        drop(unsafe { Rc::from_raw(msg.cast::<Message>()) });
    }
}

/// flux_msg_get_userid(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_msg_get_userid(msg: *const flux_msg_t, userid: *mut u32) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let (Some(message), false) = (msg.cast::<Message>().as_ref(), userid.is_null()) else {
            return fail(libc::EINVAL);
        };
        *userid = message.userid;
    }
    0
}
