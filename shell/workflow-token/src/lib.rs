// SPDX-License-Identifier: MIT OR Apache-2.0

//! `workflow-token.so` for the job shell.

mod enclosing;
mod expectation;
mod follower;
mod token;

use ffi::{Plugin, guard, raw::flux_plugin_t};

/// The entry point, called by the job shell after it loads the object: flux-shell-plugins(7).
///
/// # Safety
/// `p` is the plugin for which the object was loaded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_init(p: *mut flux_plugin_t) -> i32 {
    // SAFETY: the plugin lives until its object is unmapped. Everything that holds it is destroyed earlier.
    guard(-1, || token::init(unsafe { Plugin::borrow(p) }))
}
