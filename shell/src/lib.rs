// SPDX-License-Identifier: MIT OR Apache-2.0

//! Code shared by the job shell plugins: looks up a sealed record, opens it as the job owner, exports its variables,
//! and reads the settings in the shell's initrc.
#![forbid(unsafe_code)]

mod record;
mod settings;

use std::ffi::CStr;

use ffi::{Plugin, Shell, ShellLogLevel};

pub use record::{LOOKUP_TIMEOUT, Reader, answer, late, look_up};
pub use settings::Settings;

/// Names a plugin and loads it. `flux_plugin_init` calls this and returns its result.
pub fn init(plugin: Plugin<'static>, name: &CStr, load: fn(Plugin<'static>, &Shell<'_>) -> Result<(), String>) -> i32 {
    ffi::quiet_panics();
    ffi::inject_fault("flux_plugin_init");
    let Some(shell) = plugin.shell() else { return -1 };
    let named = plugin.set_name(name).map_err(not_loaded);
    match named.and_then(|()| load(plugin, &shell)) {
        Ok(()) => 0,
        Err(why) => {
            shell.log(name, ShellLogLevel::Error, &why);
            -1
        }
    }
}

/// Reads `conf` of `plugin.load { file = …, conf = { … } }`.
///
/// # Errors
/// The configuration cannot be parsed.
pub fn conf(plugin: Plugin<'_>) -> Result<serde_json::Value, String> {
    plugin
        .conf()
        .map_err(|e| format!("conf in the initrc cannot be read: {e}"))
}

/// Returns a log line: a call of Flux failed while the plugin was loaded.
pub fn not_loaded(e: std::io::Error) -> String {
    format!("the plugin cannot be loaded: {e}")
}
