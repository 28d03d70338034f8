//! The plugins for the job shell. Each opens a sealed record of its job, as the job owner:
//!
//! - `workflow-token.so` exports the variables of the workflow token (`token`);
//! - `dws_environment.so` those that Data Workflow Services give to a rabbit job (`dws`);
//! - `cray-pmi-bootstrap.so` hands on to `cray_pals.so` what Cray's libpmi wires the job up with (`bootstrap`).
//!
//! A job that a plugin is not for costs nothing, or one round trip.

mod bootstrap;
mod dws;
mod record;
mod settings;
mod token;

use ffi::{Plugin, Shell, ShellLogLevel};

use crate::record::Kind;

/// Loads the plugin `workflow-token`: to be called by `flux_plugin_init`. Returns what that returns.
pub fn init(plugin: Plugin<'static>) -> i32 {
    loaded(plugin, &token::KIND, token::load)
}

/// Loads the plugin `dws_environment`: to be called by `flux_plugin_init`. Returns what that returns.
pub fn init_dws_environment(plugin: Plugin<'static>) -> i32 {
    loaded(plugin, &dws::KIND, dws::load)
}

/// Loads the plugin `cray-pmi-bootstrap`: to be called by `flux_plugin_init`. Returns what that returns.
pub fn init_cray_pmi_bootstrap(plugin: Plugin<'static>) -> i32 {
    loaded(plugin, &bootstrap::KIND, bootstrap::load)
}

type Load = fn(Plugin<'static>, &Shell<'_>) -> Result<(), String>;

fn loaded(plugin: Plugin<'static>, kind: &Kind, load: Load) -> i32 {
    ffi::quiet_panics();
    ffi::inject_fault("flux_plugin_init");
    let Some(shell) = plugin.shell() else { return -1 };
    let named = plugin.set_name(kind.name);
    let named = named.map_err(|e| format!("the plugin cannot be loaded: {e}"));
    match named.and_then(|()| load(plugin, &shell)) {
        Ok(()) => 0,
        Err(why) => {
            shell.log(kind.name, ShellLogLevel::Error, &why);
            -1
        }
    }
}
