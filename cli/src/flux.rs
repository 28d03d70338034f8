// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs `flux` and the commands of Slurm, with a timeout.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use config::Config;

use crate::print;
use crate::within::TIMEOUT;

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program does not exist.
    #[error("the command {0} is not on PATH: add the directory that contains it, such as /usr/bin, to PATH")]
    NotFound(&'static str),
    /// It could not be run.
    #[error("{command} could not be run: {error}")]
    NotRun { command: String, error: io::Error },
    /// The command did not end in time.
    #[error(
        "{command} did not answer within {} seconds and was killed: check whether the scheduler hangs",
        TIMEOUT.as_secs()
    )]
    TimedOut { command: String },
    /// The output exceeds every expected size.
    #[error(
        "{command} printed more than {MAX_OUTPUT} bytes and was killed: check that the one on PATH is the real one"
    )]
    TooMuch { command: String },
    /// The command failed. `says` is its standard error, without secrets, on one line.
    #[error("{command} failed: {says}")]
    Failed { command: String, says: String },
}

impl Error {
    /// Returns whether the error shows that there is no Flux instance.
    pub fn is_no_instance(&self) -> bool {
        self.says("flux_open") || self.says("broker socket") || matches!(self, Self::NotFound(_))
    }

    /// Returns whether only the instance owner gets a reply.
    pub fn is_denied(&self) -> bool {
        [
            "restricted to",
            "owner credentials",
            "not permitted",
            "Permission denied",
        ]
        .iter()
        .any(|text| self.says(text))
    }

    /// Returns whether flux failed with a message that contains `text`.
    pub fn says(&self, text: &str) -> bool {
        matches!(self, Self::Failed { says, .. } if says.contains(text))
    }
}

/// The maximum output. A sealed record has at most 1.5 MiB; a configuration or a query reply is far smaller.
const MAX_OUTPUT: usize = 4 << 20;

/// Returns the output of `flux ARGS…`, without the newline at its end.
///
/// # Errors
/// Those of [`run_program`].
pub fn run(args: &[&str]) -> Result<String, Error> {
    run_program("flux", args)
}

/// Returns the output of a program, without the newline at its end.
///
/// # Errors
/// [`Error`], also if the output is not UTF-8.
pub fn run_program(program: &'static str, args: &[&str]) -> Result<String, Error> {
    let command = || format!("{program} {}", print::hidden(args.join(" ")));
    let mut child = Command::new(program)
        .args(args)
        // The messages that this module compares are those of strerror(3).
        .env("LC_ALL", "C")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound(program),
            _ => Error::NotRun {
                command: command(),
                error,
            },
        })?;

    let deadline = Instant::now() + TIMEOUT;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let ended = await_end(&mut child, &stdout, &stderr, deadline);
    if ended.is_none() {
        kill(&mut child);
    }
    let Some((status, output, errors)) = ended else {
        return Err(Error::TimedOut { command: command() });
    };

    if output.len() > MAX_OUTPUT {
        return Err(Error::TooMuch { command: command() });
    }
    if !status.success() {
        let lines = token::redact_lines(&errors, &[]);
        let says = if lines.is_empty() {
            status.to_string()
        } else {
            lines.join("; ")
        };
        return Err(Error::Failed {
            command: command(),
            says,
        });
    }
    let mut output = String::from_utf8(output).map_err(|_| Error::Failed {
        command: command(),
        says: "its output is not UTF-8".to_owned(),
    })?;
    output.truncate(output.trim_end_matches('\n').len());
    Ok(output)
}

/// Reads a pipe in a thread, so that the two pipes do not block each other. If a descendant keeps the pipe open, the
/// thread is abandoned.
fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (done, wait) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // After an error, use the bytes that were read.
            let _ = pipe.take(MAX_OUTPUT as u64 + 1).read_to_end(&mut bytes);
        }
        done.send(bytes)
    });
    wait
}

type Ended = (ExitStatus, Vec<u8>, Vec<u8>);

fn await_end(
    child: &mut Child,
    stdout: &mpsc::Receiver<Vec<u8>>,
    stderr: &mpsc::Receiver<Vec<u8>>,
    deadline: Instant,
) -> Option<Ended> {
    let left = || deadline.saturating_duration_since(Instant::now());
    let output = stdout.recv_timeout(left()).ok()?;
    let errors = stderr.recv_timeout(left()).ok()?;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some((status, output, errors)),
            Ok(None) if left().is_zero() => return None,
            Ok(None) => thread::sleep(Duration::from_millis(2)),
            Err(_) => return None,
        }
    }
}

fn kill(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // This fails if the process has already ended.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
}

/// Returns the configuration of the enclosing Flux instance.
///
/// # Errors
/// A message for the operator.
pub fn configuration() -> Result<Config, String> {
    let conf = run(&["config", "get"]).map_err(|e| e.to_string())?;
    let conf = serde_json::from_str(&conf).map_err(|e| format!("the configuration of Flux: {e}"))?;
    Config::from_json(&conf).map_err(|e| e.to_string())
}
