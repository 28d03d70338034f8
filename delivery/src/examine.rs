// SPDX-License-Identifier: MIT OR Apache-2.0

//! Warnings about a valid configuration. The log reports them once for each configuration.

use std::{path::PathBuf, sync::Arc};

use config::{Part, TABLE};
use nix::unistd::{Group, User};
use protocol::Configure;

use crate::engine::Engine;

impl Engine {
    /// Returns warnings, one line each. A thread reads the files and queries the name service; if it hangs, there are
    /// no warnings.
    pub async fn examine(self: &Arc<Self>, configure: &Configure) -> Vec<String> {
        let (engine, path) = (Arc::clone(self), configure.path.clone());
        let (table, part) = (configure.conf.clone(), configure.part);
        let examine = move || {
            let mut warnings = engine.digit_names();
            // Arrays in files matter to all parts; the main part reports them.
            if part == Part::Tokens {
                warnings.extend(path.map(|path| replaced(path, &table)).unwrap_or_default());
            }
            warnings
        };
        // The look-up belongs to no user, and is not urgent.
        let examined = self.shared.lookups.run(u32::MAX, self.config.timeout, examine);
        examined.await.unwrap_or_default()
    }

    /// Returns a line for each name of digits that no user or group has: most are meant as ids. Blocks.
    fn digit_names(&self) -> Vec<String> {
        let nobody = |kind, name: &str| match kind {
            "user" => User::from_name(name).is_ok_and(|user| user.is_none()),
            _ => Group::from_name(name).is_ok_and(|group| group.is_none()),
        };
        let names = self.config.digit_names().into_iter();
        let wrong = names.filter(|(_, kind, name)| nobody(*kind, name));
        let line = |(key, kind, name)| {
            format!(
                "{key}: no {kind} has the name \"{name}\". Write {name} without quotes if it is the id of the {kind}"
            )
        };
        wrong.map(line).collect()
    }
}

/// Returns a line for each array that Flux replaced by that of a later file, unless the active configuration is from
/// elsewhere (flux-config(1), `load`). Blocks.
fn replaced(path: PathBuf, configured: &str) -> Vec<String> {
    let Ok(files) = config::read_files(&path) else {
        return Vec::new();
    };
    let configured: serde_json::Value = serde_json::from_str(configured).unwrap_or_default();
    if files.conf.get(TABLE) != configured.get(TABLE) {
        return Vec::new();
    }
    let line = |replaced: &config::Replaced| format!("{replaced}. Write all of {} in one file", replaced.key);
    files.replaced.iter().map(line).collect()
}
