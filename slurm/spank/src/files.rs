//! The program that keeps the tokens of a step in files on this node, and renews them: slurmstepd must have no threads.

use std::{
    io::{self, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use secure_path::Owners;
use slurm::{Deadline, MAX_MESSAGE, Start, Started, exchange};

/// Where the program is, unless the configuration says so.
const PROGRAMS: [&str; 2] = [
    "/usr/libexec/workflow-token-slurmstepd",
    "/usr/local/libexec/workflow-token-slurmstepd",
];

/// The time that the program may take to write the files: munged may be restarted meanwhile.
const STARTING: Duration = Duration::from_secs(15);

/// The time that the program may take to take a pid.
const SENDING: Duration = Duration::from_secs(1);

/// The files of a step.
pub struct Files {
    program: UnixStream,
    /// The variables that name them, with their paths.
    pub variables: Vec<(String, PathBuf)>,
}

impl Files {
    /// Has the files written.
    ///
    /// # Errors
    /// For the operator.
    pub fn write(program: Option<&Path>, start: &Start) -> Result<Self, String> {
        let program = find(program)?;
        let failed = |e: io::Error| format!("{}: {e}", program.display());
        let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut child = Command::new(&program)
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

    /// Tells the program of a task.
    ///
    /// # Errors
    /// For the operator: tasks get no signals.
    pub fn task(&mut self, pid: u32) -> Result<(), String> {
        let frame = protocol::encode(&pid).map_err(|e| e.to_string())?;
        self.program.write_all(&frame).map_err(|e| e.to_string())
    }
}

/// Waits for the process that the program was started with: it has ended when the program replies.
fn end(child: &mut Child, has_failed: bool) {
    if has_failed {
        let _ = child.kill();
    }
    let _ = child.wait();
}

fn find(program: Option<&Path>) -> Result<PathBuf, String> {
    let mut places = program
        .map_or_else(|| PROGRAMS.map(Path::new).to_vec(), |program| vec![program])
        .into_iter();
    let found = places.find(|place| place.exists()).ok_or_else(|| match program {
        Some(program) => format!("{}: there is no such program: see step-program", program.display()),
        None => format!(
            "{} was not found: install it, or name it with step-program",
            PROGRAMS[0]
        ),
    })?;
    secure_path::check_program(found, Owners::process()).map_err(|e| format!("{}: {e}", found.display()))?;
    Ok(found.to_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn start() -> Start {
        Start {
            config: PathBuf::new(),
            node: "n1".to_owned(),
            jobid: 7,
            uid: 1000,
            gid: 1000,
            tasks: 1,
            signals: true,
            record: String::new(),
        }
    }

    fn error(program: &Path) -> String {
        Files::write(Some(program), &start()).err().unwrap()
    }

    #[test]
    fn a_program_that_is_missing_or_not_to_be_trusted_or_ends_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        assert!(error(&program).contains("there is no such program: see step-program"));
        fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(
            error(&program).contains("lets others write to it"),
            "{}",
            error(&program)
        );
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(
            error(&program).starts_with(program.to_str().unwrap()),
            "{}",
            error(&program)
        );
    }
}
