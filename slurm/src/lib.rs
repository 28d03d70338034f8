// SPDX-License-Identifier: MIT OR Apache-2.0

//! Code shared by the Slurm components: the configuration, the cache of records, one bounded request to the agent, and
//! the record of a job on its nodes.
#![forbid(unsafe_code)]

mod cache;
mod client;
mod exchange;
mod step;

use std::path::{Path, PathBuf};

use config::{Config, Principal, Slurm, TABLE};
use nix::unistd::User;
use serde_json::Value;

pub use cache::{cached, forget};
pub use client::{Answer, Node, ask};
pub use exchange::{Deadline, MAX_REPLY, exchange};
pub use step::{LocalRecord, MAX_MESSAGE, MAX_PID, Start, Started, step_program};

/// The default configuration file of a cluster.
pub const CONFIG: &str = "/etc/slurm/workflow-token.toml";

/// Returns the configuration named by the plugin argument `config=` in plugstack.conf.
pub fn config_of(arguments: &[String]) -> PathBuf {
    let named = arguments.iter().find_map(|argument| argument.strip_prefix("config="));
    named.unwrap_or(CONFIG).into()
}

/// Shortens an error, which names its file, to one line for logs: a mistake of TOML is shown with its line and a mark below it.
fn in_one_line(error: &str) -> String {
    let mut lines = error.lines();
    match (lines.next(), lines.next_back()) {
        (Some(place), Some(mistake)) => format!("{place}: {mistake}"),
        _ => error.to_owned(),
    }
}

/// The configuration of a cluster.
#[derive(Debug)]
pub struct Site {
    /// The table `workflow-token`.
    pub config: Config,
    /// The subtable `slurm`.
    pub slurm: Slurm,
    /// All tables, unparsed.
    pub conf: Value,
}

impl Site {
    /// Reads a file, or all files of a directory.
    ///
    /// # Errors
    /// Text for the operator that names the file, the key and the mistake.
    pub fn read(path: &Path) -> Result<Self, String> {
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let files = config::read_files(path).map_err(|e| in_one_line(&e.to_string()))?;
        let config = Config::from_json(&files.conf).map_err(|e| failed(&e))?;
        let missing = || {
            failed(&format_args!(
                "{TABLE}.slurm: is missing: add it to name the cluster and its agents"
            ))
        };
        let slurm = config.slurm.clone().ok_or_else(missing)?;
        let conf = files.conf;
        Ok(Self { config, slurm, conf })
    }

    /// Returns the uid of the agent's user. Blocks on the name service.
    ///
    /// # Errors
    /// Text for the operator: the user does not exist.
    pub fn agent_uid(&self) -> Result<u32, String> {
        let name = match &self.slurm.user {
            Principal::Id(uid) => return Ok(*uid),
            Principal::Name(name) => name,
        };
        let failed = |why: &dyn std::fmt::Display| format!("{TABLE}.slurm.user: {}: {why}", name.escape_debug());
        match User::from_name(name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            Ok(None) => Err(failed(
                &"this user does not exist on this node: create it with the uid that it has elsewhere",
            )),
            Err(e) => Err(failed(&e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_of_toml_is_one_line_that_names_the_file_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("site.toml");
        std::fs::write(&path, "[workflow-token]\ntimeout = = 1\n").unwrap();
        let error = Site::read(&path).unwrap_err();
        let begin = format!("{}: TOML parse error at line 2, column 11: ", path.display());
        assert!(error.starts_with(&begin) && error.lines().count() == 1, "{error}");
        assert!(
            Site::read(&directory.path().join("missing"))
                .unwrap_err()
                .contains("No such file")
        );
    }
}
