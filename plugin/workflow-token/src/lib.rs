// SPDX-License-Identifier: MIT OR Apache-2.0

//! `workflow-token.so` for the job manager: holds a job in a prolog until its sealed workflow token is in the KVS.

mod callbacks;
mod expiry;
mod facts;
mod owners;
mod pending_owners;
mod projects;
mod renewals;
mod shortfalls;
mod tokens;

use std::io;

use ffi::{Jobtap, Plugin, guard, raw::flux_plugin_t};

use callbacks::WorkflowToken;

/// Loads the plugin, flux-jobtap-plugins(7).
///
/// # Safety
/// `p` is the plugin that the object was loaded for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_init(p: *mut flux_plugin_t) -> i32 {
    guard(-1, || {
        // SAFETY: the plugin lives until its object is unmapped, and everything that keeps it is destroyed before.
        let this = unsafe { Plugin::borrow(p) };
        plugin::load(this, "workflow-token", load)
    })
}

fn load(plugin: Plugin<'static>) -> io::Result<()> {
    plugin.set_name(c"workflow-token")?;
    let jobtap = Jobtap::new(plugin).ok_or_else(|| io::Error::other("it is a plugin for the job manager"))?;
    let state = WorkflowToken::new(jobtap, plugin)?;
    let kept = plugin.keep_with(state, |state, kept| state.is_kept(kept))?;
    plugin.handle(c"conf.update", &kept, |w: &WorkflowToken, plugin, args| {
        w.conf_update(plugin, args)
    })?;
    plugin.handle(c"job.new", &kept, |w: &WorkflowToken, _, args| w.job_new(args))?;
    plugin.handle(c"job.state.run", &kept, |w: &WorkflowToken, _, args| w.job_run(args))?;
    plugin.handle(c"job.state.cleanup", &kept, |w: &WorkflowToken, _, args| {
        w.job_cleanup(args)
    })?;
    plugin.handle(c"job.state.inactive", &kept, |w: &WorkflowToken, _, args| {
        w.job_inactive(args)
    })?;
    plugin.handle(c"plugin.query", &kept, |w: &WorkflowToken, _, args| w.query(args))
}
