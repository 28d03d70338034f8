// SPDX-License-Identifier: MIT OR Apache-2.0

//! The declarations, written by hand: exactly the functions that this workspace calls.
//!
//! Sources: the man pages of flux-core, sections 3 and 7 (flux-jobtap-plugins(7), flux-shell-plugins(7)), and RFC 18,
//! 20 and 21 of the Flux project. The symbols are not linked: they resolve when a job manager or a job shell loads a
//! plugin, or in the Flux simulator, which defines the same names. `tests/abi.rs` compares each declaration with the
//! installed headers.
#![allow(non_camel_case_types, missing_docs)]

use libc::{c_char, c_int, c_void};

macro_rules! opaque {
    ($($name:ident),* $(,)?) => {$(
        /// An object of the C API, used only behind a pointer.
        #[repr(C)]
        pub struct $name {
            _opaque: [u8; 0],
            // Not Send, Sync or Unpin: a Flux object belongs to its reactor thread.
            _thread: core::marker::PhantomData<(*mut u8, core::marker::PhantomPinned)>,
        }
    )*};
}

opaque! {
    flux_t, flux_reactor_t, flux_watcher_t, flux_future_t, flux_kvs_txn_t, flux_msg_t, flux_msg_handler_t,
    flux_plugin_t, flux_plugin_arg_t, flux_shell_t, json_t,
    json_error_t,
}

/// RFC 19: a job id, 64 bits.
pub type flux_jobid_t = u64;
pub type flux_free_f = Option<unsafe extern "C" fn(arg: *mut c_void)>;
pub type flux_plugin_f = Option<
    unsafe extern "C" fn(
        p: *mut flux_plugin_t,
        topic: *const c_char,
        args: *mut flux_plugin_arg_t,
        data: *mut c_void,
    ) -> c_int,
>;
pub type flux_watcher_f =
    Option<unsafe extern "C" fn(r: *mut flux_reactor_t, w: *mut flux_watcher_t, revents: c_int, arg: *mut c_void)>;
pub type flux_continuation_f = Option<unsafe extern "C" fn(f: *mut flux_future_t, arg: *mut c_void)>;
pub type flux_msg_handler_f =
    Option<unsafe extern "C" fn(h: *mut flux_t, mh: *mut flux_msg_handler_t, msg: *const flux_msg_t, arg: *mut c_void)>;

/// flux_plugin_arg_get(3): the arguments that the host passed in.
pub const FLUX_PLUGIN_ARG_IN: c_int = 0;
/// flux_plugin_arg_set(3): the results that the plugin passes out.
pub const FLUX_PLUGIN_ARG_OUT: c_int = 1;
/// flux_reactor(3): the descriptor is readable.
pub const FLUX_POLLIN: c_int = 1;
pub const FLUX_POLLOUT: c_int = 2;
/// flux_rpc(3): the nearest broker that serves the topic.
pub const FLUX_NODEID_ANY: u32 = u32::MAX;
/// Job states, RFC 21.
pub const FLUX_JOB_STATE_NEW: c_int = 1;
pub const FLUX_JOB_STATE_DEPEND: c_int = 2;
pub const FLUX_JOB_STATE_RUN: c_int = 16;
pub const FLUX_JOB_STATE_CLEANUP: c_int = 32;
pub const FLUX_JOB_STATE_INACTIVE: c_int = 64;
/// jobtap.h: the job that the running callback concerns.
pub const FLUX_JOBTAP_CURRENT_JOB: flux_jobid_t = flux_jobid_t::MAX;
/// jansson, json_dumps(): no white space; accept any value, not only objects and arrays.
pub const JSON_COMPACT: usize = 0x20;
pub const JSON_ENCODE_ANY: usize = 0x200;
/// Log levels of the job shell, flux-shell-plugins(7).
pub const FLUX_SHELL_ERROR: c_int = 3;
pub const FLUX_SHELL_WARN: c_int = 4;
pub const FLUX_SHELL_DEBUG: c_int = 6;

macro_rules! functions {
    ($(fn $name:ident($($params:tt)*) $(-> $ret:ty)?;)*) => {
        unsafe extern "C" {
            $(pub fn $name($($params)*) $(-> $ret)?;)*
        }

        /// The type of each function, under the function's name, for the comparison with the real headers.
        pub mod signature {
            use super::*;
            $(pub type $name = unsafe extern "C" fn($($params)*) $(-> $ret)?;)*
        }

        /// Calls the macro `$callback` with the names of all declared functions.
        #[macro_export]
        macro_rules! with_every_function {
            ($callback:ident) => { $callback! { $($name)* } };
        }
    };
}

functions! {
    // libflux-core: handle, log, reactor
    fn flux_get_reactor(h: *mut flux_t) -> *mut flux_reactor_t;
    fn flux_attr_get(h: *mut flux_t, name: *const c_char) -> *const c_char;
    fn flux_aux_get(h: *mut flux_t, name: *const c_char) -> *mut c_void;
    fn flux_aux_set(h: *mut flux_t, name: *const c_char, aux: *mut c_void, destroy: flux_free_f) -> c_int;
    fn flux_log(h: *mut flux_t, level: c_int, fmt: *const c_char, ...) -> c_int;
    fn flux_fd_watcher_create(r: *mut flux_reactor_t, fd: c_int, events: c_int, cb: flux_watcher_f, arg: *mut c_void) -> *mut flux_watcher_t;
    fn flux_timer_watcher_create(r: *mut flux_reactor_t, after: f64, repeat: f64, cb: flux_watcher_f, arg: *mut c_void) -> *mut flux_watcher_t;
    fn flux_watcher_start(w: *mut flux_watcher_t);
    fn flux_watcher_stop(w: *mut flux_watcher_t);
    fn flux_watcher_destroy(w: *mut flux_watcher_t);
    // libflux-core: futures, RPC, messages
    fn flux_future_then(f: *mut flux_future_t, timeout: f64, cb: flux_continuation_f, arg: *mut c_void) -> c_int;
    fn flux_future_get(f: *mut flux_future_t, result: *mut *const c_void) -> c_int;
    fn flux_future_wait_for(f: *mut flux_future_t, timeout: f64) -> c_int;
    fn flux_future_has_error(f: *mut flux_future_t) -> bool;
    fn flux_future_error_string(f: *mut flux_future_t) -> *const c_char;
    fn flux_future_destroy(f: *mut flux_future_t);
    fn flux_rpc(h: *mut flux_t, topic: *const c_char, s: *const c_char, nodeid: u32, flags: c_int) -> *mut flux_future_t;
    fn flux_rpc_get(f: *mut flux_future_t, s: *mut *const c_char) -> c_int;
    fn flux_request_decode(msg: *const flux_msg_t, topic: *mut *const c_char, s: *mut *const c_char) -> c_int;
    fn flux_respond(h: *mut flux_t, request: *const flux_msg_t, s: *const c_char) -> c_int;
    fn flux_respond_error(h: *mut flux_t, request: *const flux_msg_t, errnum: c_int, errstr: *const c_char) -> c_int;
    fn flux_msg_get_userid(msg: *const flux_msg_t, userid: *mut u32) -> c_int;
    fn flux_msg_incref(msg: *const flux_msg_t) -> *const flux_msg_t;
    fn flux_msg_decref(msg: *const flux_msg_t);
    // libflux-core: KVS
    fn flux_kvs_txn_create() -> *mut flux_kvs_txn_t;
    fn flux_kvs_txn_destroy(txn: *mut flux_kvs_txn_t);
    fn flux_kvs_txn_put_raw(
        txn: *mut flux_kvs_txn_t,
        flags: c_int,
        key: *const c_char,
        data: *const c_void,
        len: usize,
    ) -> c_int;
    fn flux_kvs_txn_unlink(txn: *mut flux_kvs_txn_t, flags: c_int, key: *const c_char) -> c_int;
    fn flux_kvs_commit(h: *mut flux_t, ns: *const c_char, flags: c_int, txn: *mut flux_kvs_txn_t) -> *mut flux_future_t;
    fn flux_kvs_lookup(h: *mut flux_t, ns: *const c_char, flags: c_int, key: *const c_char) -> *mut flux_future_t;
    fn flux_kvs_lookup_get(f: *mut flux_future_t, value: *mut *const c_char) -> c_int;
    // libflux-core: job ids
    fn flux_job_kvs_key(buf: *mut c_char, bufsz: c_int, id: flux_jobid_t, key: *const c_char) -> c_int;
    fn flux_job_id_encode(id: flux_jobid_t, r#type: *const c_char, buf: *mut c_char, bufsz: usize) -> c_int;
    fn flux_job_id_parse(s: *const c_char, id: *mut flux_jobid_t) -> c_int;
    // libflux-core: plugins
    fn flux_plugin_set_name(p: *mut flux_plugin_t, name: *const c_char) -> c_int;
    fn flux_plugin_get_path(p: *mut flux_plugin_t) -> *const c_char;
    fn flux_plugin_get_conf(p: *mut flux_plugin_t) -> *const c_char;
    fn flux_plugin_add_handler(p: *mut flux_plugin_t, topic: *const c_char, cb: flux_plugin_f, arg: *mut c_void) -> c_int;
    fn flux_plugin_aux_set(p: *mut flux_plugin_t, key: *const c_char, val: *mut c_void, free_fn: flux_free_f) -> c_int;
    fn flux_plugin_aux_get(p: *mut flux_plugin_t, key: *const c_char) -> *mut c_void;
    fn flux_plugin_arg_get(args: *mut flux_plugin_arg_t, flags: c_int, json_str: *mut *mut c_char) -> c_int;
    fn flux_plugin_arg_set(args: *mut flux_plugin_arg_t, flags: c_int, json_str: *const c_char) -> c_int;
    fn flux_plugin_arg_unpack(args: *mut flux_plugin_arg_t, flags: c_int, fmt: *const c_char, ...) -> c_int;
    fn flux_plugin_arg_strerror(args: *mut flux_plugin_arg_t) -> *const c_char;
    // jobtap
    fn flux_jobtap_get_flux(p: *mut flux_plugin_t) -> *mut flux_t;
    fn flux_jobtap_service_register(p: *mut flux_plugin_t, method: *const c_char, cb: flux_msg_handler_f, arg: *mut c_void) -> c_int;
    fn flux_jobtap_prolog_start(p: *mut flux_plugin_t, description: *const c_char) -> c_int;
    fn flux_jobtap_prolog_finish(p: *mut flux_plugin_t, id: flux_jobid_t, description: *const c_char, status: c_int) -> c_int;
    fn flux_jobtap_raise_exception(p: *mut flux_plugin_t, id: flux_jobid_t, r#type: *const c_char, severity: c_int, fmt: *const c_char, ...) -> c_int;
    fn flux_jobtap_error(p: *mut flux_plugin_t, args: *mut flux_plugin_arg_t, fmt: *const c_char, ...) -> c_int;
    fn flux_jobtap_job_lookup(p: *mut flux_plugin_t, id: flux_jobid_t) -> *mut flux_plugin_arg_t;
    fn flux_plugin_arg_destroy(args: *mut flux_plugin_arg_t);
    fn flux_jobtap_epilog_start(p: *mut flux_plugin_t, description: *const c_char) -> c_int;
    fn flux_jobtap_epilog_finish(p: *mut flux_plugin_t, id: flux_jobid_t, description: *const c_char, status: c_int) -> c_int;
    fn flux_jobtap_dependency_add(p: *mut flux_plugin_t, id: flux_jobid_t, description: *const c_char) -> c_int;
    fn flux_jobtap_dependency_remove(p: *mut flux_plugin_t, id: flux_jobid_t, description: *const c_char) -> c_int;
    fn flux_jobtap_job_subscribe(p: *mut flux_plugin_t, id: flux_jobid_t) -> c_int;
    fn flux_jobtap_job_event_posted(p: *mut flux_plugin_t, id: flux_jobid_t, name: *const c_char) -> c_int;
    fn flux_jobtap_event_post_pack(p: *mut flux_plugin_t, id: flux_jobid_t, name: *const c_char, fmt: *const c_char, ...) -> c_int;
    fn flux_jobtap_jobspec_update_id_pack(p: *mut flux_plugin_t, id: flux_jobid_t, fmt: *const c_char, ...) -> c_int;
    // job shell
    fn flux_plugin_get_shell(p: *mut flux_plugin_t) -> *mut flux_shell_t;
    fn flux_shell_get_flux(shell: *mut flux_shell_t) -> *mut flux_t;
    fn flux_shell_killall(shell: *mut flux_shell_t, sig: c_int);
    fn flux_shell_get_info(shell: *mut flux_shell_t, json_str: *mut *mut c_char) -> c_int;
    fn flux_shell_info_unpack(shell: *mut flux_shell_t, fmt: *const c_char, ...) -> c_int;
    fn flux_shell_getopt(shell: *mut flux_shell_t, name: *const c_char, json_str: *mut *mut c_char) -> c_int;
    fn flux_shell_setopt(shell: *mut flux_shell_t, name: *const c_char, json_str: *const c_char) -> c_int;
    fn flux_shell_setenvf(shell: *mut flux_shell_t, overwrite: c_int, name: *const c_char, fmt: *const c_char, ...) -> c_int;
    fn flux_shell_log(component: *const c_char, level: c_int, file: *const c_char, line: c_int, fmt: *const c_char, ...);
    fn flux_shell_fatal(component: *const c_char, file: *const c_char, line: c_int, errnum: c_int, exit_code: c_int, fmt: *const c_char, ...);
    // jansson, whose objects Flux accepts and returns
    fn json_loads(input: *const c_char, flags: usize, error: *mut json_error_t) -> *mut json_t;
    fn json_dumps(json: *const json_t, flags: usize) -> *mut c_char;
}
