// SPDX-License-Identifier: MIT OR Apache-2.0

//! Starts the program that keeps the tokens of a step in files on this node and renews them. A plugin in slurmstepd
//! must not start threads.

use std::{
    io::{self, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use slurm::{Deadline, MAX_MESSAGE, Start, Started, exchange};

/// The time that the program has to write the files. It allows for a restart of munged.
const STARTING: Duration = Duration::from_secs(15);

/// The timeout for sending a pid to the program.
const SENDING: Duration = Duration::from_secs(1);

/// The files of a step.
pub struct Files {
    program: UnixStream,
    /// The variables that name the files, and the paths.
    pub variables: Vec<(String, PathBuf)>,
}

impl Files {
    /// Starts the program, and waits until it has written the files.
    ///
    /// # Errors
    /// Text for the operator.
    pub fn write(program: &Path, start: &Start) -> Result<Self, String> {
        let failed = |e: io::Error| format!("{}: {e}", program.display());
        let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut child = Command::new(program)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let started = exchange::<Started>(&mut ours, start, MAX_MESSAGE, Deadline::after(STARTING));
        end(&mut child, started.is_err());
        let variables = started.map_err(failed)??;
        ours.set_write_timeout(Some(SENDING)).map_err(failed)?;
        let program = ours;
        Ok(Self { program, variables })
    }

    /// Sends the pid of a task to the program.
    ///
    /// # Errors
    /// Text for the operator: the program has ended or does not read.
    pub fn task(&mut self, pid: u32) -> Result<(), String> {
        let frame = protocol::encode(&pid).map_err(|e| e.to_string())?;
        self.program.write_all(&frame).map_err(|e| e.to_string())
    }
}

/// Reaps the started process. The program is its child (daemon(3)), so the process has ended once the program replies.
fn end(child: &mut Child, has_failed: bool) {
    if has_failed {
        let _ = child.kill();
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_program_that_is_missing_or_ends_is_an_error_that_names_it() {
        let start = Start {
            config: PathBuf::new(),
            node: "n1".to_owned(),
            jobid: 7,
            uid: 1000,
            gid: 1000,
            tasks: 1,
            signals: true,
            record: String::new(),
        };
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        let error = || Files::write(&program, &start).err().unwrap();
        assert!(error().starts_with(program.to_str().unwrap()), "{}", error());
        fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(error().starts_with(program.to_str().unwrap()), "{}", error());
    }
}
