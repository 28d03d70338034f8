// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tests the ownership between C and the safe types. The C side is written in Rust, so that Miri checks both sides:
//! nothing is freed twice, used after it was freed, or leaked, whichever callback runs within which call.
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "the C side receives back its own objects"
)]

use std::{
    cell::{Cell, RefCell},
    ffi::{CStr, CString, c_char, c_int, c_void},
    ptr,
    rc::Rc,
};

use ffi::{Args, Flux, Jobtap, Plugin, PluginError, Request, State, Transaction, raw::*};

// The C side: objects are boxes, and tests invoke callbacks at will.

struct FakeFuture {
    then: Cell<Option<(flux_continuation_f, *mut c_void)>>,
    payload: Option<CString>,
}

struct FakeWatcher {
    callback: flux_watcher_f,
    arg: *mut c_void,
}

#[derive(Default)]
struct FakePlugin {
    handlers: RefCell<Vec<(CString, flux_plugin_f, *mut c_void)>>,
    services: RefCell<Vec<(flux_msg_handler_f, *mut c_void)>>,
    aux: RefCell<Vec<(*mut c_void, flux_free_f)>>,
}

struct FakeMessage {
    references: Cell<usize>,
    payload: CString,
}

thread_local! {
    static CONF: RefCell<Option<CString>> = const { RefCell::new(None) };
    static FUTURES: Cell<usize> = const { Cell::new(0) };
    static LAST: Cell<*mut FakeFuture> = const { Cell::new(ptr::null_mut()) };
    static WATCHER: Cell<*mut FakeWatcher> = const { Cell::new(ptr::null_mut()) };
    static TRANSACTIONS: Cell<usize> = const { Cell::new(0) };
    static ANSWERS: RefCell<Vec<Result<(), c_int>>> = const { RefCell::new(Vec::new()) };
    static LEFT: Cell<(*mut c_void, flux_free_f)> = const { Cell::new((ptr::null_mut(), None)) };
}

fn new_future(payload: Option<CString>) -> *mut flux_future_t {
    let future = Box::into_raw(Box::new(FakeFuture {
        then: Cell::new(None),
        payload,
    }));
    FUTURES.set(FUTURES.get() + 1);
    LAST.set(future);
    future.cast()
}

/// The text lives until it is replaced.
#[unsafe(no_mangle)]
extern "C" fn flux_plugin_get_conf(_: *mut flux_plugin_t) -> *const c_char {
    CONF.with_borrow(|conf| conf.as_ref().map_or(ptr::null(), |text| text.as_ptr()))
}

#[unsafe(no_mangle)]
extern "C" fn flux_plugin_get_shell(p: *mut flux_plugin_t) -> *mut flux_shell_t {
    p.cast()
}

#[unsafe(no_mangle)]
extern "C" fn flux_shell_getopt(_: *mut flux_shell_t, _: *const c_char, value: *mut *mut c_char) -> c_int {
    CONF.with_borrow(|conf| match conf {
        // SAFETY: the address of a string that the caller frees with free(3).
        Some(text) => unsafe {
            *value = libc::strdup(text.as_ptr());
            1
        },
        None => 0,
    })
}

#[unsafe(no_mangle)]
extern "C" fn flux_plugin_arg_get(_: *mut flux_plugin_arg_t, _: c_int, value: *mut *mut c_char) -> c_int {
    flux_shell_getopt(ptr::null_mut(), ptr::null(), value) - 1
}

#[unsafe(no_mangle)]
extern "C" fn flux_jobtap_job_lookup(_: *mut flux_plugin_t, _: flux_jobid_t) -> *mut flux_plugin_arg_t {
    ptr::without_provenance_mut(8)
}

#[unsafe(no_mangle)]
extern "C" fn flux_rpc(_: *mut flux_t, _: *const c_char, _: *const c_char, _: u32, _: c_int) -> *mut flux_future_t {
    new_future(Some(c"{}".to_owned()))
}

#[unsafe(no_mangle)]
extern "C" fn flux_kvs_commit(
    _: *mut flux_t,
    _: *const c_char,
    _: c_int,
    _: *mut flux_kvs_txn_t,
) -> *mut flux_future_t {
    new_future(None)
}

#[unsafe(no_mangle)]
extern "C" fn flux_future_then(f: *mut flux_future_t, _: f64, cb: flux_continuation_f, arg: *mut c_void) -> c_int {
    let future = unsafe { &*f.cast::<FakeFuture>() };
    future.then.set(Some((cb, arg)));
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_future_destroy(f: *mut flux_future_t) {
    drop(unsafe { Box::from_raw(f.cast::<FakeFuture>()) });
    FUTURES.set(FUTURES.get() - 1);
}

#[unsafe(no_mangle)]
extern "C" fn flux_future_get(_: *mut flux_future_t, _: *mut *const c_void) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_rpc_get(f: *mut flux_future_t, s: *mut *const c_char) -> c_int {
    let future = unsafe { &*f.cast::<FakeFuture>() };
    unsafe { *s = future.payload.as_ref().map_or(ptr::null(), |text| text.as_ptr()) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_future_has_error(_: *mut flux_future_t) -> bool {
    false
}

#[unsafe(no_mangle)]
extern "C" fn flux_future_error_string(_: *mut flux_future_t) -> *const c_char {
    ptr::null()
}

#[unsafe(no_mangle)]
extern "C" fn flux_kvs_txn_create() -> *mut flux_kvs_txn_t {
    TRANSACTIONS.set(TRANSACTIONS.get() + 1);
    Box::into_raw(Box::new(0_u8)).cast()
}

#[unsafe(no_mangle)]
extern "C" fn flux_kvs_txn_destroy(txn: *mut flux_kvs_txn_t) {
    TRANSACTIONS.set(TRANSACTIONS.get() - 1);
    drop(unsafe { Box::from_raw(txn.cast::<u8>()) });
}

#[unsafe(no_mangle)]
extern "C" fn flux_kvs_txn_put_raw(
    _: *mut flux_kvs_txn_t,
    _: c_int,
    _: *const c_char,
    _: *const c_void,
    _: usize,
) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_kvs_txn_unlink(_: *mut flux_kvs_txn_t, _: c_int, _: *const c_char) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_kvs_lookup(_: *mut flux_t, _: *const c_char, _: c_int, _: *const c_char) -> *mut flux_future_t {
    new_future(None)
}

#[unsafe(no_mangle)]
extern "C" fn flux_get_reactor(h: *mut flux_t) -> *mut flux_reactor_t {
    h.cast()
}

#[unsafe(no_mangle)]
extern "C" fn flux_fd_watcher_create(
    _: *mut flux_reactor_t,
    _: c_int,
    _: c_int,
    callback: flux_watcher_f,
    arg: *mut c_void,
) -> *mut flux_watcher_t {
    let watcher = Box::into_raw(Box::new(FakeWatcher { callback, arg }));
    WATCHER.set(watcher);
    watcher.cast()
}

#[unsafe(no_mangle)]
extern "C" fn flux_watcher_start(_: *mut flux_watcher_t) {}

#[unsafe(no_mangle)]
extern "C" fn flux_watcher_stop(_: *mut flux_watcher_t) {}

#[unsafe(no_mangle)]
extern "C" fn flux_watcher_destroy(w: *mut flux_watcher_t) {
    drop(unsafe { Box::from_raw(w.cast::<FakeWatcher>()) });
    WATCHER.set(ptr::null_mut());
}

#[unsafe(no_mangle)]
extern "C" fn flux_jobtap_get_flux(p: *mut flux_plugin_t) -> *mut flux_t {
    p.cast()
}

#[unsafe(no_mangle)]
extern "C" fn flux_plugin_aux_set(
    p: *mut flux_plugin_t,
    _: *const c_char,
    value: *mut c_void,
    free: flux_free_f,
) -> c_int {
    let plugin = unsafe { &*p.cast::<FakePlugin>() };
    plugin.aux.borrow_mut().push((value, free));
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_plugin_add_handler(
    p: *mut flux_plugin_t,
    topic: *const c_char,
    cb: flux_plugin_f,
    arg: *mut c_void,
) -> c_int {
    let (plugin, topic) = unsafe { (&*p.cast::<FakePlugin>(), CStr::from_ptr(topic).to_owned()) };
    plugin.handlers.borrow_mut().push((topic, cb, arg));
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_jobtap_service_register(
    p: *mut flux_plugin_t,
    _: *const c_char,
    cb: flux_msg_handler_f,
    arg: *mut c_void,
) -> c_int {
    let plugin = unsafe { &*p.cast::<FakePlugin>() };
    plugin.services.borrow_mut().push((cb, arg));
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_plugin_arg_set(_: *mut flux_plugin_arg_t, _: c_int, _: *const c_char) -> c_int {
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_request_decode(msg: *const flux_msg_t, _: *mut *const c_char, s: *mut *const c_char) -> c_int {
    unsafe { *s = (*msg.cast::<FakeMessage>()).payload.as_ptr() };
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_msg_incref(msg: *const flux_msg_t) -> *const flux_msg_t {
    let message = unsafe { &*msg.cast::<FakeMessage>() };
    message.references.set(message.references.get() + 1);
    msg
}

#[unsafe(no_mangle)]
extern "C" fn flux_msg_decref(msg: *const flux_msg_t) {
    let references = unsafe { &(*msg.cast::<FakeMessage>()).references };
    references.set(references.get() - 1);
}

#[unsafe(no_mangle)]
extern "C" fn flux_respond(_: *mut flux_t, _: *const flux_msg_t, _: *const c_char) -> c_int {
    ANSWERS.with_borrow_mut(|answers| answers.push(Ok(())));
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_respond_error(_: *mut flux_t, _: *const flux_msg_t, errnum: c_int, _: *const c_char) -> c_int {
    ANSWERS.with_borrow_mut(|answers| answers.push(Err(errnum)));
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_aux_set(_: *mut flux_t, _: *const c_char, aux: *mut c_void, destroy: flux_free_f) -> c_int {
    let (former, free) = LEFT.replace((aux, destroy));
    if let (false, Some(free)) = (former.is_null(), free) {
        unsafe { free(former) };
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn flux_aux_get(_: *mut flux_t, _: *const c_char) -> *mut c_void {
    LEFT.get().0
}

// Not used here, but linked.
#[unsafe(no_mangle)]
extern "C" fn flux_job_id_encode(_: flux_jobid_t, _: *const c_char, _: *mut c_char, _: usize) -> c_int {
    -1
}

#[unsafe(no_mangle)]
extern "C" fn flux_plugin_arg_destroy(_: *mut flux_plugin_arg_t) {}

// How a test invokes callbacks.

struct Loaded(Box<FakePlugin>);

impl Loaded {
    fn new() -> Self {
        Self(Box::default())
    }

    fn raw(&self) -> *mut flux_plugin_t {
        (&raw const *self.0).cast_mut().cast()
    }

    fn plugin(&self) -> Plugin<'_> {
        // SAFETY: the plugin lives as long.
        unsafe { Plugin::borrow(self.raw()) }
    }

    fn flux(&self) -> Flux<'_> {
        Jobtap::new(self.plugin()).unwrap().flux()
    }

    fn call(&self, topic: &CStr) -> c_int {
        let handlers = self.0.handlers.borrow();
        let (_, callback, arg) = handlers.iter().find(|handler| *handler.0 == *topic).unwrap();
        // SAFETY: as C calls it.
        unsafe { callback.unwrap()(self.raw(), topic.as_ptr(), ptr::null_mut(), *arg) }
    }

    fn request(&self, payload: &CStr) -> usize {
        let message = FakeMessage {
            references: Cell::new(1),
            payload: payload.to_owned(),
        };
        let (callback, arg) = self.0.services.borrow()[0];
        // SAFETY: as C calls it.
        unsafe {
            callback.unwrap()(self.raw().cast(), ptr::null_mut(), (&raw const message).cast(), arg);
        }
        message.references.get()
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        for (value, free) in self.0.aux.take() {
            // SAFETY: once, as C does when a plugin is destroyed.
            unsafe { free.unwrap()(value) };
        }
    }
}

fn fulfill(future: *mut FakeFuture) {
    // SAFETY: called once, with the arguments of `flux_future_then`.
    unsafe {
        let (callback, arg) = (*future).then.take().unwrap();
        callback.unwrap()(future.cast(), arg);
    }
}

fn readable() {
    // SAFETY: the watcher was started and not destroyed.
    unsafe {
        let (callback, arg) = ((*WATCHER.get()).callback, (*WATCHER.get()).arg);
        callback.unwrap()(ptr::null_mut(), ptr::null_mut(), POLLIN, arg);
    }
}

const POLLIN: c_int = FLUX_POLLIN;

#[test]
fn a_future_is_destroyed_once_by_its_continuation_or_its_owner() {
    let loaded = Loaded::new();
    let heard = Rc::new(Cell::new(0));
    let ask = || {
        let heard = Rc::clone(&heard);
        let future = loaded.flux().rpc(c"topic", "{}").unwrap();
        let pending = future.then(-1.0, move |future| {
            assert_eq!(future.rpc().unwrap().as_deref(), Some("{}"));
            heard.set(heard.get() + 1);
        });
        (pending.unwrap(), LAST.get())
    };
    let (pending, future) = ask();
    fulfill(future);
    drop(pending);
    assert_eq!((heard.get(), FUTURES.get()), (1, 0));
    let (pending, _) = ask();
    drop(pending);
    assert_eq!((heard.get(), FUTURES.get(), Rc::strong_count(&heard)), (1, 0, 1));
    drop(loaded.flux().rpc(c"topic", "{}"));
    assert_eq!(FUTURES.get(), 0);
}

#[test]
fn a_continuation_may_drop_its_pending_future_and_may_panic() {
    let loaded = Loaded::new();
    let slot = Rc::new(RefCell::new(None));
    for panics in [false, true] {
        let mine = Rc::clone(&slot);
        let future = loaded.flux().commit(Transaction::new().unwrap()).unwrap();
        let pending = future.then(60.0, move |future| {
            drop(mine.borrow_mut().take());
            assert!(future.get().is_ok());
            assert!(!panics, "injected fault");
        });
        *slot.borrow_mut() = Some(pending.unwrap());
        fulfill(LAST.get());
        assert_eq!((FUTURES.get(), TRANSACTIONS.get()), (0, 0));
        assert_eq!(Rc::strong_count(&slot), 1);
    }
}

#[test]
fn a_watcher_may_be_dropped_by_its_own_callback_and_its_callback_may_panic() {
    let loaded = Loaded::new();
    let (slot, called) = (Rc::new(RefCell::new(None)), Rc::new(Cell::new(0)));
    let (mine, count) = (Rc::clone(&slot), Rc::clone(&called));
    let watcher = loaded.flux().watch(0, move || {
        count.set(count.get() + 1);
        assert!(count.get() != 1, "injected fault");
        drop(mine.borrow_mut().take());
        // The captures of the callback are still alive.
        count.set(count.get() + 1);
    });
    *slot.borrow_mut() = Some(watcher.unwrap());
    readable();
    readable();
    assert_eq!(called.get(), 3);
    assert!(WATCHER.get().is_null());
    assert_eq!((Rc::strong_count(&slot), Rc::strong_count(&called)), (1, 1));
}

struct Kept {
    calls: Cell<usize>,
    panics: Rc<Cell<usize>>,
}

impl State for Kept {
    fn panicked(&self, topic: &CStr, _: &Args<'_>) {
        assert_eq!(topic, c"faulty");
        self.panics.set(self.panics.get() + 1);
    }

    fn request_panicked(&self, payload: Option<&str>) {
        assert!(payload.is_some_and(|payload| payload.contains("panic")));
        self.panics.set(self.panics.get() + 1);
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.panics.set(self.panics.get() + 100);
    }
}

#[test]
fn kept_state_is_dropped_once_and_told_of_panics_and_each_request_is_answered_once() {
    let panics = Rc::new(Cell::new(0));
    {
        let loaded = Loaded::new();
        let kept = Kept {
            panics: Rc::clone(&panics),
            calls: Cell::new(0),
        };
        let kept = loaded.plugin().keep(kept).unwrap();
        let plugin = loaded.plugin();
        plugin
            .handle(c"good", &kept, |kept: &Kept, _, _| {
                kept.calls.set(kept.calls.get() + 1);
                Ok(())
            })
            .unwrap();
        plugin
            .handle(c"refused", &kept, |_: &Kept, _, _| Err(PluginError("no".to_owned())))
            .unwrap();
        plugin
            .handle(c"faulty", &kept, |_: &Kept, _, _| panic!("a fault"))
            .unwrap();
        let serve = |_: &Kept, request: Request<'_>| match request.payload().unwrap() {
            Some("panic") => panic!("a fault"),
            Some("keep") => drop(request.keep()),
            Some("respond, and panic") => {
                request.respond(None).unwrap();
                panic!("a fault");
            }
            _ => request.respond(None).unwrap(),
        };
        Jobtap::new(plugin).unwrap().serve(c"method", &kept, serve).unwrap();
        assert_eq!(
            [c"good", c"refused", c"faulty", c"good"].map(|topic| loaded.call(topic)),
            [0, -1, -1, 0]
        );
        assert_eq!(panics.get(), 1);
        assert_eq!(loaded.request(c"answer"), 1);
        assert_eq!(loaded.request(c"keep"), 1);
        assert_eq!(loaded.request(c"panic"), 1);
        assert_eq!(loaded.request(c"respond, and panic"), 1);
        assert_eq!(ANSWERS.take(), [Ok(()), Err(libc::EPROTO), Ok(())]);
        assert_eq!(panics.get(), 3);
    }
    assert_eq!(panics.get(), 103, "it was not dropped once");
}

#[test]
fn kept_state_is_rejected_for_another_plugin_and_after_its_own() {
    let handle = |plugin: Plugin<'_>, kept: &ffi::Kept<Kept>| plugin.handle(c"good", kept, |_: &Kept, _, _| Ok(()));
    let serve = |plugin, kept: &ffi::Kept<Kept>| {
        let jobtap = Jobtap::new(plugin).unwrap();
        jobtap.serve(c"method", kept, |_: &Kept, request: Request<'_>| {
            let _ = request.respond(None);
        })
    };
    let other = Loaded::new();
    let kept = {
        let loaded = Loaded::new();
        let kept = Kept {
            panics: Rc::default(),
            calls: Cell::new(0),
        };
        let kept = loaded.plugin().keep(kept).unwrap();
        handle(loaded.plugin(), &kept).unwrap();
        assert!(handle(other.plugin(), &kept).is_err(), "another plugin accepted it");
        assert!(serve(other.plugin(), &kept).is_err(), "another plugin accepted it");
        kept.clone()
    };
    assert!(handle(other.plugin(), &kept).is_err(), "the plugin is destroyed");
}

#[test]
fn a_text_with_a_nul_is_refused_rather_than_cut_short() {
    let loaded = Loaded::new();
    assert!(loaded.flux().rpc(c"topic", "{}\0").is_err());
}

#[test]
fn unreadable_json_does_not_count_as_none() {
    let loaded = Loaded::new();
    let (plugin, shell) = (loaded.plugin(), loaded.plugin().shell().unwrap());
    assert!(plugin.conf().unwrap().is_null());
    assert_eq!(shell.option(c"workflow-token").unwrap(), None);
    let args = Jobtap::new(plugin).unwrap().lookup(ffi::JobId(1)).unwrap();
    assert!(args.all().is_err());
    let deep = |levels| ["{\"a\":".repeat(levels), "1".to_owned(), "}".repeat(levels)].concat();
    for text in [deep(140).as_str(), deep(600).as_str(), "{", ""] {
        CONF.set(Some(CString::new(text).unwrap()));
        assert!(plugin.conf().is_err(), "{text}");
        assert!(shell.option(c"workflow-token").is_err(), "{text}");
        assert!(args.all().is_err(), "{text}");
    }
    CONF.set(Some(c"{\"a\":1}".to_owned()));
    assert_eq!(args.all().unwrap()["a"], 1);
    CONF.set(None);
}

#[test]
fn a_handover_item_is_freed_when_it_is_replaced() {
    let loaded = Loaded::new();
    let flux = loaded.flux();
    assert!(flux.left(c"workflow-token::x").is_none() && !flux.is_left(c"workflow-token::x"));
    for bytes in [&b"1"[..], b"12345678", b"123456789", b""] {
        flux.leave(c"workflow-token::x", bytes).unwrap();
        assert_eq!(flux.left(c"workflow-token::x").unwrap_or_default(), bytes);
        assert_eq!(flux.is_left(c"workflow-token::x"), !bytes.is_empty());
    }
    assert!(flux.leave(c"x", b"1").is_err(), "a name without our prefix");
    let (left, free) = LEFT.replace((ptr::null_mut(), None));
    // SAFETY: as C does when the handle is destroyed.
    unsafe { free.unwrap()(left) };
}

/// Earlier versions left a count, followed by that many job ids.
#[test]
fn job_ids_of_an_earlier_version_and_damaged_bytes_are_not_read() {
    let loaded = Loaded::new();
    let flux = loaded.flux();
    let magic = u64::from_be_bytes(*b"handover");
    for words in [
        &[0][..],
        &[1, 7],
        &[2, 7, 8],
        &[3, 7, 8, 1],
        &[1, magic],
        &[3, magic, 9, 1],
        &[3, magic, u64::MAX, 1],
    ] {
        let mut block = words.to_vec();
        LEFT.set((block.as_mut_ptr().cast(), None));
        assert_eq!(flux.left(c"workflow-token::x"), None, "{words:?}");
        assert_eq!(flux.is_left(c"workflow-token::x"), words[0] != 0, "{words:?}");
    }
    LEFT.set((ptr::null_mut(), None));
}
