//! `cray-pmi-bootstrap.so` for the job manager.

use ffi::{Plugin, guard, raw::flux_plugin_t};

/// What the job manager calls when it has loaded the object, flux-jobtap-plugins(7).
///
/// # Safety
/// `p` is the plugin that the object was loaded for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_init(p: *mut flux_plugin_t) -> i32 {
    // SAFETY: the plugin lives until its object is unmapped, and everything that keeps it is destroyed before.
    guard(-1, || plugin::init_cray_pmi_bootstrap(unsafe { Plugin::borrow(p) }))
}
