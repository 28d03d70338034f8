//! The job shell plugin: opens the sealed record of its job and exports the variables.
//!
//! It sends its one lookup while the shell is still loading plugins, and uses the answer in `shell.init`, so that a job
//! waits for at most one round trip. Where the rules are known here (see [`settings`]), a job that none of them can match
//! costs nothing.

mod export;
mod settings;

use std::{cell::RefCell, ffi::CStr};

use ffi::{Args, Future, Plugin, PluginError, Shell, ShellLogLevel};
use serde_json::json;

use crate::settings::{Expectation, Settings};

/// The plugin's name, and the component of what it logs.
const NAME: &CStr = c"workflow-token";

/// How long the lookup may take, in seconds. The job manager has the answer in its cache; what takes longer is broken.
const LOOKUP_TIMEOUT: f64 = 60.0;

/// What the plugin knows between its load and `shell.init`.
struct Pending {
    settings: Settings,
    expectation: Expectation,
    lookup: RefCell<Option<Future>>,
}

/// Loads the plugin: to be called by `flux_plugin_init`. Returns what that returns.
pub fn init(plugin: Plugin<'static>) -> i32 {
    ffi::quiet_panics();
    let Some(shell) = plugin.shell() else { return -1 };
    match load(plugin, &shell) {
        Ok(()) => 0,
        Err(why) => {
            shell.log(NAME, ShellLogLevel::Error, &why);
            -1
        }
    }
}

fn load(plugin: Plugin<'static>, shell: &Shell<'_>) -> Result<(), String> {
    let wrong = |e: std::io::Error| format!("the plugin cannot be loaded: {e}");
    plugin.set_name(NAME).map_err(wrong)?;
    let job = shell.job().map_err(wrong)?;
    let settings = Settings::of(&plugin.conf(), job.instance_owner)?;
    for warning in &settings.warnings {
        shell.log(NAME, ShellLogLevel::Warn, warning);
    }
    let expectation = settings.expectation(shell);
    if expectation == Expectation::No {
        return Ok(());
    }
    let payload = json!({ "id": job.jobid, "keys": [seal::key::WORKFLOW_TOKEN], "flags": 0 }).to_string();
    let flux = shell
        .flux()
        .ok_or("the plugin cannot be loaded: the shell has no handle")?;
    let lookup = flux.rpc(c"job-info.lookup", &payload).map_err(wrong)?;
    let pending = Pending {
        settings,
        expectation,
        lookup: RefCell::new(Some(lookup)),
    };
    let pending = plugin.keep(pending).map_err(wrong)?;
    plugin.handle(c"shell.init", &pending, shell_init).map_err(wrong)
}

/// `shell.init`: the tasks have not started yet, in any shell of the job.
fn shell_init(pending: &Pending, plugin: Plugin<'_>, _: &Args<'_>) -> Result<(), PluginError> {
    let Some(shell) = plugin.shell() else { return Ok(()) };
    let Some(lookup) = pending.lookup.take() else {
        return Ok(());
    };
    match export::export(&shell, &pending.settings, pending.expectation, &lookup) {
        Ok(()) => Ok(()),
        // One exception with one clear line; returning an error would add a second one that says nothing.
        Err(why) => shell.fatal(NAME, &why),
    }
}
