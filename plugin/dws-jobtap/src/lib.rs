// SPDX-License-Identifier: MIT OR Apache-2.0

//! `dws-jobtap.so` for the job manager: moves a rabbit job through its states, together with the service for Data
//! Workflow Services.
//!
//! A rabbit job has the attribute `system.dw`. The service (flux-coral2-dws) creates, sets up and tears down its
//! workflow in Kubernetes, and this plugin holds the job meanwhile:
//!
//! ```text
//! DEPEND   dependency dws-create ── dws.create ──► service ── resource-update ──► jobspec updated, dependency removed
//! RUN      prolog dws-setup ─────── dws.setup ───► service ── prolog-remove ────► variables sealed and committed,
//!                                                                                 event with their names, prolog finished
//! CLEANUP  epilog dws-epilog ────── dws.post_run ► service ── epilog-remove ────► epilog finished
//! ```
//!
//! An exception in the prolog finishes it. One in the epilog makes the service tear down the workflow at once
//! (`dws.teardown`). The exception `dws-epilog-timeout`, raised after the option `epilog-timeout`, finishes the epilog
//! and makes the service disable the rabbits that were not cleaned up (`dws.abort`).
//!
//! If the state of a job is unknown, as after a restart, its eventlog is read. Meanwhile, an epilog holds a job that
//! enters CLEANUP; the plugin calls the service once it knows whether shells are running.
//!
//! A prolog is finished only if it is known to be outstanding: Flux counts prologs, so an additional finish would
//! finish that of another plugin.
//!
//! Modules use only modules above them: `lifecycle`, `orphans`, `request`, `constraints`; `rabbit_jobs`, the state;
//! `service`, calls and replies; `depend`, `prolog`, `epilog`, `exception`, `teardown`, one for each stage; `resume`;
//! `callbacks`.

mod callbacks;
mod constraints;
mod depend;
mod epilog;
mod exception;
mod lifecycle;
mod orphans;
mod prolog;
mod rabbit_jobs;
mod request;
mod resume;
mod service;
mod teardown;

use std::io;

use ffi::{Jobtap, Plugin, guard, raw::flux_plugin_t};

use callbacks::Dws;

/// Loads the plugin (flux-jobtap-plugins(7)).
///
/// # Safety
/// `p` must be the plugin that the object was loaded for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_init(p: *mut flux_plugin_t) -> i32 {
    guard(-1, || {
        // SAFETY: the plugin lives until its object is unmapped, and everything that refers to it is destroyed before.
        let this = unsafe { Plugin::borrow(p) };
        plugin::load(this, "dws", load)
    })
}

/// Registers the callbacks.
///
/// # Errors
/// The object is not loaded by a job manager, its configuration is invalid, or ENOMEM.
fn load(plugin: Plugin<'static>) -> io::Result<()> {
    plugin.set_name(c"dws")?;
    let jobtap = Jobtap::new(plugin).ok_or_else(|| io::Error::other("it is a plugin for the job manager"))?;
    let dws = plugin.keep(Dws::new(jobtap, plugin)?)?;
    plugin.handle(c"conf.update", &dws, |d: &Dws, _, args| d.configure(args))?;
    plugin.handle(c"job.new", &dws, |d: &Dws, _, args| d.0.job_new(args))?;
    plugin.handle(c"job.state.depend", &dws, |d: &Dws, _, args| d.0.depend(args))?;
    plugin.handle(c"job.state.run", &dws, |d: &Dws, _, args| d.0.run(args))?;
    plugin.handle(c"job.state.cleanup", &dws, |d: &Dws, _, args| d.0.cleanup(args))?;
    plugin.handle(c"job.state.inactive", &dws, |d: &Dws, _, args| d.inactive(args))?;
    plugin.handle(c"job.event.finish", &dws, |d: &Dws, _, args| d.0.finish(args))?;
    plugin.handle(c"job.event.release", &dws, |d: &Dws, _, args| d.0.release(args))?;
    plugin.handle(c"job.event.memo", &dws, |d: &Dws, _, args| d.0.memo(args))?;
    plugin.handle(c"job.event.exception", &dws, |d: &Dws, _, args| d.0.exception(args))?;
    plugin.handle(c"plugin.query", &dws, |d: &Dws, _, args| d.query(args))?;
    jobtap.serve(c"resource-update", &dws, |d: &Dws, request| {
        d.0.resource_update(request)
    })?;
    jobtap.serve(c"prolog-remove", &dws, |d: &Dws, request| d.0.prolog_remove(request))?;
    jobtap.serve(c"epilog-remove", &dws, |d: &Dws, request| d.0.epilog_remove(request))
}
