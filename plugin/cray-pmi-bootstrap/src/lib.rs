// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cray-pmi-bootstrap.so` for the job manager: gives each job with several nodes two ports and a secret, which Cray's
//! libpmi uses to connect its tasks. It replaces the plugin of that name of flux-coral2, whose event contains the
//! secret. Here, the event contains only the ports, and the secret is sealed.
//!
//! A job has its ports from RUN until its tasks have ended. After a reload, the handover contains the ports of all
//! jobs; after a restart, their eventlogs do. New jobs wait in their prologs until all eventlogs are read.
//!
//! Modules use only modules above them: `hosts`, `ports`, `variables`, `waiting`; `pmi_jobs`; `callbacks`.

mod callbacks;
mod hosts;
mod pmi_jobs;
mod ports;
mod variables;
mod waiting;

use std::io;

use ffi::{Jobtap, Plugin, guard, raw::flux_plugin_t};

use callbacks::Pmi;

/// Loads the plugin (flux-jobtap-plugins(7)).
///
/// # Safety
/// `p` must be the plugin that the object was loaded for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_init(p: *mut flux_plugin_t) -> i32 {
    guard(-1, || {
        // SAFETY: the plugin lives until its object is unmapped, and everything that refers to it is destroyed before.
        let this = unsafe { Plugin::borrow(p) };
        plugin::load(this, "cray-pmi-bootstrap", load)
    })
}

/// Registers the callbacks.
///
/// # Errors
/// The object is not loaded by a job manager, its configuration is invalid, or ENOMEM.
fn load(plugin: Plugin<'static>) -> io::Result<()> {
    plugin.set_name(c"cray-pmi-bootstrap")?;
    let jobtap = Jobtap::new(plugin).ok_or_else(|| io::Error::other("it is a plugin for the job manager"))?;
    let pmi = plugin.keep(Pmi::new(jobtap, plugin)?)?;
    plugin.handle(c"conf.update", &pmi, |p: &Pmi, _, args| p.conf_update(args))?;
    plugin.handle(c"job.new", &pmi, |p: &Pmi, _, args| p.0.job_new(args))?;
    plugin.handle(c"job.state.run", &pmi, |p: &Pmi, _, args| p.0.job_run(args))?;
    plugin.handle(c"job.state.cleanup", &pmi, |p: &Pmi, _, args| p.0.job_cleanup(args))?;
    plugin.handle(c"job.state.inactive", &pmi, |p: &Pmi, _, args| p.0.job_inactive(args))?;
    plugin.handle(c"plugin.query", &pmi, |p: &Pmi, _, args| p.query(args))?;
    Ok(())
}
