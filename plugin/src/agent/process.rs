// SPDX-License-Identifier: MIT OR Apache-2.0

//! The process of an agent that the plugin started.

use std::{
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use secure_path::{Owners, Refusal, check_program};

/// The process, if known. The broker may reap it first.
#[derive(Default)]
pub(super) struct Process(Option<(Child, Instant)>);

/// The state of the process.
pub(super) enum Startup {
    /// No process was started, or it has served.
    None,
    /// It was started at this time, and runs.
    Starting(Instant),
    /// It ended before it served. Its status is unknown if the broker reaped it.
    Ended,
}

impl Process {
    /// Returns the state of the process.
    pub fn poll(&mut self) -> Startup {
        let Some((child, since)) = &mut self.0 else {
            return Startup::None;
        };
        match child.try_wait() {
            Ok(None) => Startup::Starting(*since),
            // An error means that the broker reaped it first.
            Ok(Some(_)) | Err(_) => Startup::Ended,
        }
    }

    /// Stops observing the process.
    pub fn forget(&mut self) {
        if let Some((mut child, _)) = self.0.take() {
            // Reaps it, unless the broker has.
            let _ = child.try_wait();
        }
    }

    /// Starts the first of the programs that exists, if only root and the instance owner can modify it.
    ///
    /// # Errors
    /// The step that failed, for the operator.
    pub fn start(&mut self, programs: &[PathBuf], socket: &Path) -> Result<(), String> {
        for program in programs {
            match check_program(program, Owners::process()) {
                Ok(()) => {}
                Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(refusal) => return Err(format!("{} is not run: {refusal}", program.display())),
            }
            let mut command = Command::new(program);
            command.arg("--socket").arg(socket).process_group(0);
            command.stdin(Stdio::null()).stdout(Stdio::null());
            // These variables are meant for the broker.
            for variable in ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
                command.env_remove(variable);
            }
            match command.spawn() {
                Ok(child) => {
                    self.0 = Some((child, Instant::now()));
                    return Ok(());
                }
                Err(e) => return Err(format!("{} cannot be run: {e}", program.display())),
            }
        }
        let tried: Vec<String> = programs.iter().map(|path| path.display().to_string()).collect();
        Err(format!(
            "its program was not found (tried {}): install it, or set the key agent-program",
            tried.join(", ")
        ))
    }
}
