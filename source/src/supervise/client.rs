// SPDX-License-Identifier: MIT OR Apache-2.0

//! Starts a supervisor and reads its report.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use secure_path::{Owners, Refusal, check_program, find_program};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    runtime::Handle,
};
use zeroize::Zeroizing;

use super::protocol::{Ended, KILLING, MAX_STDERR, Report, Request};
use crate::Slot;

/// The time after the timeout of its command within which the supervisor must report.
const GRACE: Duration = KILLING.saturating_add(Duration::from_secs(1));

/// The end and output of a command.
pub(crate) struct Output {
    pub report: Report,
    pub stdout: Zeroizing<Vec<u8>>,
    pub stderr: Zeroizing<Vec<u8>>,
}

/// Runs a command under a supervisor. Returns at most [`GRACE`] after the timeout of the command. Rejects a command or
/// a supervisor that others can change.
///
/// Dropping the future kills the command. In any case, `slot` is held until the supervisor has ended.
///
/// # Errors
/// The supervisor could not be started or did not answer; [`io::ErrorKind::TimedOut`] after [`GRACE`].
pub(crate) async fn run(supervisors: Vec<PathBuf>, request: Request, slot: Slot) -> io::Result<Output> {
    let limit = Duration::from_millis(request.timeout_ms).saturating_add(GRACE);
    match tokio::time::timeout(limit, converse(supervisors, request, slot)).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn converse(supervisors: Vec<PathBuf>, mut request: Request, slot: Slot) -> io::Result<Output> {
    let start = move || {
        // This closure owns the request and the slot, because a hung file system may block it after the future is
        // dropped.
        let program = request
            .argv
            .first_mut()
            .ok_or_else(|| io::Error::other("there is no command"))?;
        if let Err(refusal) = resolve(program) {
            return Ok(Err(refusal));
        }
        start(&supervisors, slot).map(|supervisor| Ok((supervisor, request)))
    };
    // The message of a panic is dropped, because it may contain a secret.
    let started = tokio::task::spawn_blocking(start).await;
    let (mut supervisor, request) = match started.map_err(|_| io::Error::other("an internal error"))?? {
        Ok(started) => started,
        Err(refusal) => return Ok(Output::not_started(&refusal)),
    };
    let (to, from) = supervisor.pipes()?;
    to.write_all(&request.to_line()?).await?;
    read(from, request.max_stdout).await
}

/// Replaces the name of a program with its path, and checks the path.
fn resolve(program: &mut String) -> Result<(), Refusal> {
    let found = find_program(Path::new(&*program), Owners::process())?;
    *program = found.into_os_string().into_string().map_err(|path| {
        Refusal::Untrusted(format!(
            "{} is not UTF-8: rename its directory",
            Path::new(&path).display()
        ))
    })?;
    Ok(())
}

async fn read(from: &mut pipe::Receiver, max_stdout: usize) -> io::Result<Output> {
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "its answer was cut off");
    let limit = max_stdout + 1 + MAX_STDERR + 4096;
    let mut from = from.take(limit as u64);
    // The buffer never grows, which would leave copies of secrets in memory.
    let mut all = Zeroizing::new(Vec::with_capacity(limit));
    loop {
        if let Some(end) = all.iter().position(|b| *b == b'\n') {
            let report: Report = serde_json::from_slice(&all[..end])?;
            let stderr = (end + 1).checked_add(report.stdout).ok_or_else(cut)?;
            let whole = stderr.checked_add(report.stderr).ok_or_else(cut)?;
            if all.len() >= whole {
                return Ok(Output {
                    stdout: Zeroizing::new(all[end + 1..stderr].to_vec()),
                    stderr: Zeroizing::new(all[stderr..whole].to_vec()),
                    report,
                });
            }
        }
        if from.read_buf(&mut *all).await? == 0 {
            return Err(match all.is_empty() {
                true => io::Error::new(io::ErrorKind::UnexpectedEof, "it returned no answer"),
                false => cut(),
            });
        }
    }
}

impl Output {
    fn not_started(refusal: &Refusal) -> Self {
        Self {
            report: Report {
                ended: Ended::NotStarted(refusal.to_string()),
                stdout: 0,
                stderr: 0,
                wrote: 0,
                left: 0,
            },
            stdout: Zeroizing::default(),
            stderr: Zeroizing::default(),
        }
    }
}

fn start(supervisors: &[PathBuf], slot: Slot) -> io::Result<Supervisor> {
    for program in supervisors {
        let failed = |e: &dyn std::fmt::Display| io::Error::other(format!("its supervisor {}: {e}", program.display()));
        match check_program(program, Owners::process()) {
            Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::NotFound => continue,
            checked => checked.map_err(|e| failed(&e))?,
        }
        let mut command = Command::new(program);
        command.arg("supervise").process_group(0);
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| failed(&e))?;
        return Ok(Supervisor {
            child: Some(child),
            pipes: None,
            slot,
        });
    }
    let tried = supervisors
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ");
    Err(io::Error::other(format!(
        "its supervisor was not found (tried {tried}): install the program again"
    )))
}

/// A running supervisor. Dropping this makes it end, and its slot is held until it has ended.
struct Supervisor {
    child: Option<Child>,
    pipes: Option<(pipe::Sender, pipe::Receiver)>,
    slot: Slot,
}

impl Supervisor {
    fn pipes(&mut self) -> io::Result<(&mut pipe::Sender, &mut pipe::Receiver)> {
        let missing = || io::Error::other("it has no pipes");
        let child = self.child.as_mut().ok_or_else(missing)?;
        let to = OwnedFd::from(child.stdin.take().ok_or_else(missing)?);
        let from = OwnedFd::from(child.stdout.take().ok_or_else(missing)?);
        let pipes = (pipe::Sender::from_owned_fd(to)?, pipe::Receiver::from_owned_fd(from)?);
        let (to, from) = self.pipes.insert(pipes);
        Ok((to, from))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let (slot, pipes) = (self.slot.clone(), self.pipes.take());
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            // It ends, and so closes its standard output, after its standard input is closed and its command has ended.
            drop(child.stdin.take());
            let from = match (pipes, child.stdout.take()) {
                (Some((_, from)), _) => Ok(from),
                (None, Some(stdout)) => pipe::Receiver::from_owned_fd(OwnedFd::from(stdout)),
                (None, None) => return,
            };
            if let Ok(mut from) = from {
                let mut rest = Zeroizing::new([0; 4096]);
                while matches!(from.read(&mut rest[..]).await, Ok(n) if n > 0) {}
            }
            // It ends soon. A broker may have reaped it already.
            let _ = tokio::task::spawn_blocking(move || child.wait()).await;
            drop(slot);
        });
    }
}
