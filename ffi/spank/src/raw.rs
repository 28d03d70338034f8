// SPDX-License-Identifier: MIT OR Apache-2.0

//! The declarations of spank.h (spank(8)), written by hand: exactly what this workspace uses, as of Slurm 21.08.
//!
//! The symbols are not linked: they resolve in the program that loads the plugin. `tests/abi.rs` compares each
//! declaration with the installed header. Since 21.08 the header has only gained entries.
#![allow(non_camel_case_types, missing_docs)]

use libc::{c_char, c_int, c_long, c_uint, c_void};

pub type spank_t = *mut c_void;
/// `ESPANK_SUCCESS` is 0 in all releases; other values differ.
pub type spank_err_t = c_int;

/// The last argument is 0 in srun, sbatch and salloc, and 1 in slurmstepd.
pub type spank_opt_cb_f = Option<unsafe extern "C" fn(val: c_int, optarg: *const c_char, remote: c_int) -> c_int>;

/// Slurm copies the option and its strings, and modifies neither.
#[repr(C)]
pub struct spank_option {
    pub name: *mut c_char,
    pub arginfo: *mut c_char,
    pub usage: *mut c_char,
    pub has_arg: c_int,
    pub val: c_int,
    pub cb: spank_opt_cb_f,
}

pub const S_JOB_UID: c_uint = 0;
pub const S_JOB_GID: c_uint = 1;
pub const S_JOB_ID: c_uint = 2;
pub const S_JOB_STEPID: c_uint = 3;
pub const S_JOB_LOCAL_TASK_COUNT: c_uint = 6;
pub const S_TASK_ID: c_uint = 11;
pub const S_TASK_GLOBAL_ID: c_uint = 12;
pub const S_TASK_PID: c_uint = 14;

pub const S_CTX_LOCAL: c_uint = 1;
pub const S_CTX_REMOTE: c_uint = 2;
pub const S_CTX_ALLOCATOR: c_uint = 3;
pub const S_CTX_JOB_SCRIPT: c_uint = 5;

unsafe extern "C" {
    pub fn spank_context() -> c_uint;
    pub fn spank_get_item(spank: spank_t, item: c_uint, ...) -> spank_err_t;
    pub fn spank_getenv(spank: spank_t, var: *const c_char, buf: *mut c_char, len: c_int) -> spank_err_t;
    pub fn spank_setenv(spank: spank_t, var: *const c_char, val: *const c_char, overwrite: c_int) -> spank_err_t;
    pub fn spank_option_register(spank: spank_t, opt: *mut spank_option) -> spank_err_t;
    pub fn spank_job_control_setenv(
        sp: spank_t,
        name: *const c_char,
        value: *const c_char,
        overwrite: c_int,
    ) -> spank_err_t;
    pub fn spank_job_control_unsetenv(sp: spank_t, name: *const c_char) -> spank_err_t;
    pub fn slurm_spank_log(format: *const c_char, ...);
    pub fn slurm_error(format: *const c_char, ...);
    /// Returns the release, in the form of `SLURM_VERSION_NUMBER` (slurm.h).
    pub fn slurm_api_version() -> c_long;
}
