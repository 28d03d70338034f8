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
mod eventlog;
mod facts;
mod handover;
mod held;
mod manager;
mod membership;
mod owners;
mod records;
mod resume;
mod stats;

use ffi::{Jobtap, Plugin};

pub use eventlog::{Eventlog, Past, Perilog};
pub use handover::Handover;
use manager::Manager;
pub use manager::{Hooks, Inner as Engine, Kind};
pub use stats::{Counter, Stay as Callback};

/// That of each shared object is its own.
#[cfg(any(test, feature = "fault-injection"))]
#[global_allocator]
static MEMORY: ffi::memory::Counted = ffi::memory::Counted::new();

/// Loads the plugin `workflow-token`: to be called by `flux_plugin_init`. Returns what that returns.
pub fn init(plugin: Plugin<'static>) -> i32 {
    load(plugin, "workflow-token", load_tokens)
}

/// Loads a plugin: to be called by `flux_plugin_init`. `load` registers its callbacks. Returns what `flux_plugin_init` returns.
pub fn load(plugin: Plugin<'static>, name: &str, load: fn(Plugin<'static>) -> std::io::Result<()>) -> i32 {
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

fn load_tokens(plugin: Plugin<'static>) -> std::io::Result<()> {
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
