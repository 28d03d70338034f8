// SPDX-License-Identifier: MIT OR Apache-2.0

//! Checks that the declarations of the crates `ffi` and `spank` agree with the headers of flux-core and Slurm.
//!
//! `build.rs` runs bindgen if the headers are installed. A function whose declaration differs does not compile here.

#[cfg(flux_headers)]
#[allow(
    dead_code,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    missing_docs,
    clippy::all
)]
mod real {
    // Objects used only behind pointers come from `ffi`, so that the signatures can be compared.
    use ffi::raw::{
        flux_future_t, flux_kvs_txn_t, flux_msg_handler_t, flux_msg_t, flux_plugin_arg_t, flux_plugin_t,
        flux_reactor_t, flux_shell_t, flux_t, flux_watcher_t, json_error_t, json_t,
    };

    include!(concat!(env!("OUT_DIR"), "/abi.rs"));
}

#[cfg(flux_headers)]
macro_rules! coerce {
    ($($name:ident)*) => {
        /// Compiled but never instantiated: the functions cannot be linked.
        #[allow(dead_code, clippy::extra_unused_type_parameters)]
        fn each_declaration_has_the_type_of_the_real_function<T>() {
            $(let _: ffi::raw::signature::$name = real::$name;)*
        }
    };
}

#[cfg(flux_headers)]
ffi::with_every_function!(coerce);

#[test]
#[cfg_attr(not(flux_headers), ignore = "the headers of flux-core are not installed")]
fn constants_have_the_values_of_the_real_headers() {
    #[cfg(flux_headers)]
    for (name, ours, real) in [
        (
            "FLUX_PLUGIN_ARG_IN",
            i64::from(ffi::raw::FLUX_PLUGIN_ARG_IN),
            i64::from(real::FLUX_PLUGIN_ARG_IN),
        ),
        (
            "FLUX_PLUGIN_ARG_OUT",
            i64::from(ffi::raw::FLUX_PLUGIN_ARG_OUT),
            i64::from(real::FLUX_PLUGIN_ARG_OUT),
        ),
        (
            "FLUX_JOB_STATE_DEPEND",
            i64::from(ffi::raw::FLUX_JOB_STATE_DEPEND),
            i64::from(real::FLUX_JOB_STATE_DEPEND),
        ),
        (
            "JSON_COMPACT",
            ffi::raw::JSON_COMPACT as i64,
            i64::from(real::JSON_COMPACT),
        ),
        (
            "FLUX_POLLIN",
            i64::from(ffi::raw::FLUX_POLLIN),
            i64::from(real::FLUX_POLLIN),
        ),
        (
            "FLUX_POLLOUT",
            i64::from(ffi::raw::FLUX_POLLOUT),
            i64::from(real::FLUX_POLLOUT),
        ),
        (
            "FLUX_NODEID_ANY",
            i64::from(ffi::raw::FLUX_NODEID_ANY),
            i64::from(real::FLUX_NODEID_ANY),
        ),
        (
            "FLUX_JOB_STATE_RUN",
            i64::from(ffi::raw::FLUX_JOB_STATE_RUN),
            i64::from(real::FLUX_JOB_STATE_RUN),
        ),
        (
            "FLUX_JOB_STATE_CLEANUP",
            i64::from(ffi::raw::FLUX_JOB_STATE_CLEANUP),
            i64::from(real::FLUX_JOB_STATE_CLEANUP),
        ),
        (
            "FLUX_JOB_STATE_INACTIVE",
            i64::from(ffi::raw::FLUX_JOB_STATE_INACTIVE),
            i64::from(real::FLUX_JOB_STATE_INACTIVE),
        ),
        (
            "FLUX_SHELL_ERROR",
            i64::from(ffi::raw::FLUX_SHELL_ERROR),
            i64::from(real::FLUX_SHELL_ERROR),
        ),
        (
            "FLUX_SHELL_WARN",
            i64::from(ffi::raw::FLUX_SHELL_WARN),
            i64::from(real::FLUX_SHELL_WARN),
        ),
        (
            "FLUX_SHELL_DEBUG",
            i64::from(ffi::raw::FLUX_SHELL_DEBUG),
            i64::from(real::FLUX_SHELL_DEBUG),
        ),
    ] {
        assert_eq!(ours, real, "{name}");
    }
}

#[cfg(slurm_headers)]
#[allow(
    dead_code,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    missing_docs,
    clippy::all
)]
mod slurm {
    use spank::raw::spank_t;

    include!(concat!(env!("OUT_DIR"), "/spank.rs"));
}

#[cfg(slurm_headers)]
const _: () = assert!(size_of::<slurm::spank_err_t>() == size_of::<spank::raw::spank_err_t>());

/// Compiled, but never called.
#[cfg(slurm_headers)]
#[allow(dead_code)]
fn an_option_of_spank_has_the_members_of_the_real_one(ours: spank::raw::spank_option) -> slurm::spank_option {
    let spank::raw::spank_option {
        name,
        arginfo,
        usage,
        has_arg,
        val,
        cb,
    } = ours;
    slurm::spank_option {
        name,
        arginfo,
        usage,
        has_arg,
        val,
        cb,
    }
}

#[cfg(slurm_headers)]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<slurm::spank_option>() == size_of::<spank::raw::spank_option>());
    assert!(offset_of!(slurm::spank_option, arginfo) == offset_of!(spank::raw::spank_option, arginfo));
    assert!(offset_of!(slurm::spank_option, has_arg) == offset_of!(spank::raw::spank_option, has_arg));
    assert!(offset_of!(slurm::spank_option, cb) == offset_of!(spank::raw::spank_option, cb));
};

/// Compiled but never instantiated: the functions cannot be linked. The error types differ between releases of Slurm,
/// so only their size is compared.
#[cfg(slurm_headers)]
#[allow(dead_code, clippy::extra_unused_type_parameters)]
fn each_function_of_spank_takes_what_the_real_one_takes<T>() {
    use spank::raw::{self, spank_t};

    type Variadic<A, B, R> = unsafe extern "C" fn(A, B, ...) -> R;
    type OneVariadic<A> = unsafe extern "C" fn(A, ...);
    type Four<A, B, C, D, R> = unsafe extern "C" fn(A, B, C, D) -> R;
    fn same<A, B, R, S>(_: Variadic<A, B, R>, _: Variadic<A, B, S>) {}
    fn same_four<A, B, C, D, R, S>(_: Four<A, B, C, D, R>, _: Four<A, B, C, D, S>) {}
    fn same_one<A>(_: OneVariadic<A>, _: OneVariadic<A>) {}

    same(raw::spank_get_item, slurm::spank_get_item);
    same_four(raw::spank_getenv, slurm::spank_getenv);
    same_four(raw::spank_setenv, slurm::spank_setenv);
    same_four(raw::spank_job_control_setenv, slurm::spank_job_control_setenv);
    let _: [unsafe extern "C" fn(spank_t, *const std::ffi::c_char) -> _; 1] = [raw::spank_job_control_unsetenv];
    let _: [unsafe extern "C" fn(spank_t, *const std::ffi::c_char) -> _; 1] = [slurm::spank_job_control_unsetenv];
    let _: [unsafe extern "C" fn(spank_t, *mut slurm::spank_option) -> _; 1] = [slurm::spank_option_register];
    let _: [unsafe extern "C" fn(spank_t, *mut raw::spank_option) -> _; 1] = [raw::spank_option_register];
    same_one(raw::slurm_spank_log, slurm::slurm_spank_log);
    same_one(raw::slurm_error, slurm::slurm_error);
    let _: [unsafe extern "C" fn() -> std::ffi::c_uint; 2] = [raw::spank_context, slurm::spank_context];
    let _: [unsafe extern "C" fn() -> std::ffi::c_long; 2] = [raw::slurm_api_version, slurm::slurm_api_version];
}

#[test]
#[cfg_attr(
    not(slurm_headers),
    ignore = "the header of Slurm or libclang is not installed: install libslurm-dev and libclang-dev"
)]
fn constants_of_spank_have_the_values_of_the_real_header() {
    #[cfg(slurm_headers)]
    {
        use spank::raw;
        let ours = [
            raw::S_TASK_ID,
            raw::S_TASK_PID,
            raw::S_JOB_GID,
            raw::S_JOB_LOCAL_TASK_COUNT,
            raw::S_JOB_UID,
            raw::S_JOB_ID,
            raw::S_JOB_STEPID,
            raw::S_TASK_GLOBAL_ID,
        ];
        let real = [
            slurm::S_TASK_ID,
            slurm::S_TASK_PID,
            slurm::S_JOB_GID,
            slurm::S_JOB_LOCAL_TASK_COUNT,
            slurm::S_JOB_UID,
            slurm::S_JOB_ID,
            slurm::S_JOB_STEPID,
            slurm::S_TASK_GLOBAL_ID,
        ];
        assert_eq!(ours, real);
        let ours = [
            raw::S_CTX_LOCAL,
            raw::S_CTX_REMOTE,
            raw::S_CTX_ALLOCATOR,
            raw::S_CTX_JOB_SCRIPT,
        ];
        let real = [
            slurm::S_CTX_LOCAL,
            slurm::S_CTX_REMOTE,
            slurm::S_CTX_ALLOCATOR,
            slurm::S_CTX_JOB_SCRIPT,
        ];
        assert_eq!(ours, real);
    }
}
