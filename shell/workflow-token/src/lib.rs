//! `workflow-token.so` for the job shell.

mod enclosing;
mod expectation;
mod follower;
mod token;

use ffi::{Plugin, guard, raw::flux_plugin_t};

/// The job shell calls this when it has loaded the object, flux-shell-plugins(7).
///
/// # Safety
/// `p` is the plugin that the object was loaded for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_init(p: *mut flux_plugin_t) -> i32 {
    // SAFETY: the plugin lives until its object is unmapped, and everything that keeps it is destroyed before.
    guard(-1, || token::init(unsafe { Plugin::borrow(p) }))
}
