// SPDX-License-Identifier: MIT OR Apache-2.0

//! The C names that the simulator exports: every name that plugins may call, with its declared type. The names of
//! jansson are in the library with which the simulator is linked, and plugins find them there.

use std::hint::black_box;

use ffi::raw::signature;

/// Fails to compile if the simulator defines a function with a type other than the one that plugins use.
macro_rules! check {
    ($($module:ident: $($name:ident)*;)*) => {$($(
        const _: signature::$name = crate::$module::$name;
    )*)*};
}

check! {
    future: flux_future_then flux_future_get flux_future_wait_for flux_future_has_error flux_future_error_string
        flux_future_destroy flux_rpc_get flux_kvs_lookup_get;
    handle: flux_get_reactor flux_attr_get flux_aux_get flux_aux_set flux_rpc flux_kvs_commit flux_kvs_lookup flux_request_decode
        flux_respond flux_respond_error flux_msg_get_userid flux_msg_incref flux_msg_decref;
    jobid: flux_job_kvs_key flux_job_id_encode flux_job_id_parse;
    jobtap: flux_jobtap_get_flux flux_jobtap_service_register flux_jobtap_prolog_start flux_jobtap_prolog_finish
        flux_jobtap_job_lookup flux_jobtap_epilog_start flux_jobtap_epilog_finish flux_jobtap_dependency_add
        flux_jobtap_dependency_remove flux_jobtap_job_subscribe flux_jobtap_job_event_posted;
    kvs: flux_kvs_txn_create flux_kvs_txn_destroy flux_kvs_txn_put_raw flux_kvs_txn_unlink;
    plugin: flux_plugin_set_name flux_plugin_get_path flux_plugin_get_conf flux_plugin_add_handler flux_plugin_aux_set
        flux_plugin_aux_get flux_plugin_arg_get flux_plugin_arg_set flux_plugin_arg_strerror flux_plugin_arg_destroy;
    reactor: flux_fd_watcher_create flux_timer_watcher_create flux_watcher_start flux_watcher_stop flux_watcher_destroy;
    shell: flux_plugin_get_shell flux_shell_get_flux flux_shell_get_info flux_shell_getopt flux_shell_setopt;
}

macro_rules! addresses {
    ($($name:ident)*) => { [$(ffi::raw::$name as *const ()),*] };
}

/// Refers to every declared function, so that the linker keeps it, and fails if one is undefined.
pub fn keep() {
    black_box(ffi::with_every_function!(addresses));
}
