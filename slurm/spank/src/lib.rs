// SPDX-License-Identifier: MIT OR Apache-2.0

//! `workflow-token-spank.so`: the edge to Slurm, see spank(8).
//!
//! Every callback returns 0. If a required plugin fails, Slurm drains one node after the other.

mod expectation;
mod files;
mod plugin;
mod request;

use std::{
    ffi::{c_char, c_int},
    sync::atomic::AtomicU32,
};

use ffi::guard;
use spank::{Spank, raw::spank_t};

/// Slurm reads this symbol by name.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static plugin_name: [u8; 15] = *b"workflow-token\0";

/// Slurm reads this symbol by name.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static plugin_type: [u8; 6] = *b"spank\0";

/// Slurm reads this symbol by name. Since 21.08 it loads only plugins of its own release, so the constructor below sets
/// the value to the release that loads this object. The declarations of spank.h have not changed since.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static plugin_version: AtomicU32 = AtomicU32::new(0);

/// Slurm reads this symbol by name.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static spank_plugin_version: c_int = 1;

/// dlopen(3) calls this before Slurm reads `plugin_version`.
#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static SET_VERSION: extern "C" fn() = {
    extern "C" fn set_version() {
        plugin_version.store(spank::release(), std::sync::atomic::Ordering::Relaxed);
    }
    set_version
};

/// Called in srun, sbatch, salloc, slurmd and slurmstepd.
///
/// # Safety
/// As spank(8) requires of callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_init(spank: spank_t, argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: these are the arguments of this callback.
    unsafe { enter(spank, argc, argv, plugin::init) };
    0
}

/// Called in srun, sbatch and salloc, once their options are known, and in slurmstepd.
///
/// # Safety
/// As spank(8) requires of callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_init_post_opt(spank: spank_t, argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: these are the arguments of this callback.
    if spank::context().is_client() && !unsafe { enter(spank, argc, argv, request::submit) } {
        // The panic's location was printed. The job must not be submitted without its requests.
        spank::exit_now(1);
    }
    0
}

/// Called for each occurrence of the option, and in slurmstepd for the last one.
///
/// # Safety
/// As spank(8) requires of option callbacks.
unsafe extern "C" fn option(_value: c_int, argument: *const c_char, remote: c_int) -> c_int {
    guard(-1, || {
        // SAFETY: Slurm passes a C string, or a null pointer.
        let argument = unsafe { ffi::borrowed(argument) };
        if remote == 0 {
            request::add(argument.unwrap_or_default().into_owned());
        }
        0
    })
}

/// Called in each task, as the job owner.
///
/// # Safety
/// As spank(8) requires of callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_task_init(spank: spank_t, argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: these are the arguments of this callback.
    if !unsafe { enter(spank, argc, argv, plugin::task_init) } {
        // The panic's location is in slurmd.log.
        spank::exit_now(1);
    }
    0
}

/// Called for each task that was forked, in slurmstepd, as root. The task starts after this returns.
///
/// # Safety
/// As spank(8) requires of callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_task_post_fork(spank: spank_t, argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: these are the arguments of this callback.
    unsafe { enter(spank, argc, argv, plugin::forked) };
    0
}

/// Called on each node after a job, as root.
///
/// # Safety
/// As spank(8) requires of callbacks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_job_epilog(spank: spank_t, argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: these are the arguments of this callback.
    unsafe { enter(spank, argc, argv, plugin::forget) };
    0
}

/// Calls `f` with the arguments of a callback. Returns false if `f` panicked: no panic may cross into C.
///
/// # Safety
/// The arguments are those of the callback that is running.
unsafe fn enter(
    spank: spank_t,
    argc: c_int,
    argv: *const *const c_char,
    f: impl FnOnce(&Spank<'_>, &[String]),
) -> bool {
    ffi::quiet_panics();
    guard(false, || {
        // SAFETY: guaranteed by the caller.
        let (spank, arguments) = unsafe { (Spank::borrow(spank), spank::arguments(argc, argv)) };
        f(&spank, &arguments);
        true
    })
}
