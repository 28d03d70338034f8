//! The delivery of secrets, for the job manager of Flux.
//!
//! A job that is to get a secret is held in a prolog while the agent fetches, checks and seals it, and until the sealed
//! record is in the KVS:
//!
//! ```text
//! job.state.run ── prolog-start ──► agent client ──► agent (another process): fetch, check, seal
//!                                        │
//! prolog-finish ◄── record store ◄───────┘   KVS commit
//! ```
//!
//! The job manager is one thread that must never wait. These plugins have no other: their only input and output beside
//! Flux is a socket that does not block, and timers of Flux enforce every deadline. `manager` has the state and the
//! callbacks, `delivery` the way of one job, `agent` the client, `records` the record store, `resume` what follows a
//! reload or restart.

mod agent;
mod deliveries;
mod delivery;
mod dws;
mod eventlog;
mod facts;
mod handover;
mod held;
mod manager;
mod membership;
mod owners;
mod pmi;
mod records;
mod resume;
mod stats;

use ffi::{Jobtap, Plugin};

use manager::Manager;

/// That of each shared object is its own.
#[cfg(any(test, feature = "fault-injection"))]
#[global_allocator]
static MEMORY: ffi::memory::Counted = ffi::memory::Counted::new();

/// Loads the plugin `workflow-token`: to be called by `flux_plugin_init`. Returns what that returns.
pub fn init(plugin: Plugin<'static>) -> i32 {
    loaded(plugin, "workflow-token", load)
}

/// Loads the plugin `dws`, for rabbit jobs: to be called by `flux_plugin_init`. Returns what that returns.
pub fn init_dws(plugin: Plugin<'static>) -> i32 {
    loaded(plugin, "dws", dws::load)
}

/// Loads the plugin `cray-pmi-bootstrap`: to be called by `flux_plugin_init`. Returns what that returns.
pub fn init_cray_pmi_bootstrap(plugin: Plugin<'static>) -> i32 {
    loaded(plugin, "cray-pmi-bootstrap", pmi::load)
}

fn loaded(plugin: Plugin<'static>, name: &str, load: fn(Plugin<'static>) -> std::io::Result<()>) -> i32 {
    ffi::quiet_panics();
    ffi::inject_fault("flux_plugin_init");
    match load(plugin) {
        Ok(()) => 0,
        Err(error) => {
            if let Some(jobtap) = Jobtap::new(plugin) {
                let line = format!("{name}: cannot be loaded: {error}");
                jobtap.flux().log(ffi::LogLevel::Err, &line);
            }
            -1
        }
    }
}

fn load(plugin: Plugin<'static>) -> std::io::Result<()> {
    plugin.set_name(c"workflow-token")?;
    let jobtap = Jobtap::new(plugin).ok_or_else(|| std::io::Error::other("it is a plugin for the job manager"))?;
    let manager = Manager::new(jobtap, plugin)?;
    let manager = plugin.keep_with(manager, |manager, kept| manager.is_kept(kept))?;
    plugin.handle(c"conf.update", &manager, |m: &Manager, plugin, args| {
        m.conf_update(plugin, args)
    })?;
    plugin.handle(c"job.new", &manager, |m: &Manager, _, args| m.job_new(args))?;
    plugin.handle(c"job.state.run", &manager, |m: &Manager, _, args| m.job_run(args))?;
    plugin.handle(c"job.state.cleanup", &manager, |m: &Manager, _, args| {
        m.job_cleanup(args)
    })?;
    plugin.handle(c"job.state.inactive", &manager, |m: &Manager, _, args| {
        m.job_inactive(args)
    })?;
    plugin.handle(c"plugin.query", &manager, |m: &Manager, _, args| m.query(args))?;
    Ok(())
}
