// SPDX-License-Identifier: MIT OR Apache-2.0

//! The messages between the plugin in slurmstepd and `workflow-token-slurmstepd`, each in one frame on a socket, and
//! the record that both open.
//!
//! ```text
//! plugin ── Start ──► program     plugin ◄── Started ── program     plugin ── pid (u32) of each task ──► program
//! ```
//!
//! The program ends when the plugin closes the socket, or when all tasks have ended.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use seal::{Error, Expected, Munge, Opened, Owner, Record};
use secure_path::Owners;
use serde::{Deserialize, Serialize};

/// The maximum length of [`Start`] and [`Started`], in bytes: a sealed record and some paths.
pub const MAX_MESSAGE: usize = 4 << 20;

/// The maximum length of a message with a pid, in bytes.
pub const MAX_PID: usize = 16;

/// The default paths of the program, in order of preference.
const PROGRAMS: [&str; 2] = [
    "/usr/libexec/workflow-token-slurmstepd",
    "/usr/local/libexec/workflow-token-slurmstepd",
];

/// The time allowed for a restart of munged.
const MUNGED_TIMEOUT: Duration = Duration::from_secs(10);

/// The first message of the plugin: the tasks of a step on one node, and their first record.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// The configuration of the cluster.
    pub config: PathBuf,
    /// The node name.
    pub node: String,
    /// The job id.
    pub jobid: u32,
    /// The uid of the job owner.
    pub uid: u32,
    /// The primary group of the job owner.
    pub gid: u32,
    /// The number of tasks on this node.
    pub tasks: u32,
    /// Set if tasks may receive the signal that a rule configures.
    pub signals: bool,
    /// The sealed record, in JSON.
    pub record: String,
}

/// The variables that name the files of tokens, and the paths; or the reason why there are none, for the operator.
pub type Started = Result<Vec<(String, PathBuf)>, String>;

/// A record on a node of its job.
#[derive(Debug)]
pub struct LocalRecord {
    /// The sealed record.
    pub record: Record,
    /// The job to which the record must belong.
    pub jobid: u32,
    /// The uid of the agent. Only records sealed by this uid are valid.
    pub agent_uid: u32,
}

impl LocalRecord {
    /// Opens the record as the effective user of this process. Blocks for at most ten seconds while munged does not
    /// respond.
    ///
    /// # Errors
    /// As for [`Record::open`].
    pub fn open(&self, munge: &Munge) -> Result<Opened, Error> {
        let expected = Expected {
            owner: Owner {
                jobid: self.jobid.into(),
                uid: nix::unistd::geteuid().as_raw(),
            },
            instance_owner: self.agent_uid,
        };
        self.record.open_within(MUNGED_TIMEOUT, munge, &expected)
    }
}

/// Returns the path of the program: the configured one, or the installed one.
///
/// # Errors
/// Text for the operator: the program is missing, or users other than root and this user could change it.
pub fn step_program(configured: Option<&Path>) -> Result<PathBuf, String> {
    let found = match configured {
        Some(program) => program,
        None => {
            let mut places = PROGRAMS.iter().map(Path::new);
            let missing = || {
                format!(
                    "{} is missing: install it on this node, or set the key step-program to its path",
                    PROGRAMS[0]
                )
            };
            places.find(|place| place.exists()).ok_or_else(missing)?
        }
    };
    secure_path::check_program(found, Owners::process())
        .map_err(|e| format!("{}, the key step-program of the table slurm: {e}", found.display()))?;
    Ok(found.to_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_program_that_others_can_change_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        let error = || step_program(Some(&program)).unwrap_err();
        assert!(error().contains("step-program"), "{}", error());
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(error().contains("lets others write to it"), "{}", error());
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(step_program(Some(&program)).unwrap(), program);
    }
}
