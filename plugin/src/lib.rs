//! The delivery of workflow tokens, for the job manager of Flux.
//!
//! A job that a rule matches is held in a prolog while its token is fetched, checked, sealed and committed:
//!
//! ```text
//! job.state.run ── prolog-start ──► fetch ──► check ──► seal ──┐   (threads of tokio: `work`)
//!                                                              │ queue + eventfd (`workers`)
//! reactor thread (`delivery`) ◄─────────────────────────────────┘
//!    └─► KVS commit ──► prolog-finish status=0 ──► job shells start
//! ```
//!
//! The job manager is one thread that must never wait. Everything that may block happens on other threads, which own
//! no Flux object and hand plain data back. What talks to Flux runs on the reactor thread: `manager` (the state, and the
//! callbacks), `delivery`, `resume` (after a reload or restart) and `records` (their removal).

mod deliveries;
mod delivery;
mod dws;
mod eventlog;
mod facts;
mod handover;
mod held;
mod identity;
mod manager;
mod membership;
mod owner;
mod pmi;
mod records;
mod resume;
mod stats;
mod work;
mod workers;

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
