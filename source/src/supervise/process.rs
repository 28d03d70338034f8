// SPDX-License-Identifier: MIT OR Apache-2.0

//! The supervisor process, which runs one command.

use std::{
    io::{self, BufRead, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::SigSet;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{DumpableBehavior, Pid, PidfdFlags, pidfd_open, set_dumpable_behavior},
};
use zeroize::Zeroizing;

use super::{
    descendants::{Descendants, adopt},
    protocol::{Ended, KILLING, MAX_STDERR, Report, Request},
};

/// The interval of repeated kills. The command may start other processes until it ends.
const AGAIN: Duration = Duration::from_millis(20);

/// The maximum number of reads of the pipes after the command has ended: the capacity of a pipe (fcntl(2),
/// F_SETPIPE_SZ). Another process may still write to them.
const MAX_REST: usize = (1 << 20) / 4096;

/// Runs the command of the request on standard input. The process must have no other purpose.
pub fn main() -> ExitCode {
    match serve(io::stdin().lock(), io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("workflow-token: supervise: {e}: only the agent and doctor run this");
            ExitCode::FAILURE
        }
    }
}

fn serve(mut input: io::StdinLock<'_>, mut output: impl Write) -> io::Result<()> {
    secure_path::close_inherited(None)?;
    // A core dump would contain the output of the command.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    adopt()?;
    let mut line = Zeroizing::new(String::with_capacity(1 << 16));
    // The limit exceeds the largest arguments that the kernel accepts.
    input.by_ref().take(4 << 20).read_line(&mut line)?;
    let request: Request = serde_json::from_str(&line).map_err(io::Error::other)?;
    let mut printed = Printed {
        stdout: Kept::new(request.max_stdout),
        stderr: Kept::new(MAX_STDERR),
    };
    let child = match start(&request) {
        Ok(child) => child,
        Err(e) => return answer(&mut output, Ended::NotStarted(e.to_string()), 0, &printed),
    };
    let mut family = Descendants::of(Pid::from_child(&child));
    let attended = attend(child, &mut family, &request, io::stdin().as_fd(), &mut printed);
    let answered = match &attended {
        Ok((ended, left)) => answer(&mut output, ended.clone(), *left, &printed),
        Err(_) => Ok(()),
    };
    if !matches!(attended, Ok((Ended::Exit(_) | Ended::Signal(_), _))) {
        family.outlive()?;
    }
    attended.and(answered)
}

/// Writes the report and the output of a command. The client needs the standard output of a failed command, too, to
/// redact it from the standard error.
fn answer(output: &mut impl Write, ended: Ended, left: usize, printed: &Printed) -> io::Result<()> {
    let stderr = &printed.stderr.bytes[..printed.stderr.bytes.len().min(MAX_STDERR)];
    let report = Report {
        ended,
        stdout: printed.stdout.bytes.len(),
        stderr: stderr.len(),
        wrote: printed.stderr.total,
        left,
    };
    writeln!(output, "{}", serde_json::to_string(&report).map_err(io::Error::other)?)?;
    output.write_all(&printed.stdout.bytes)?;
    output.write_all(stderr)?;
    output.flush()
}

fn start(request: &Request) -> io::Result<Child> {
    // Blocked signals are inherited from the thread of the engine. The command starts with none blocked, as from a
    // shell.
    SigSet::empty().thread_set_mask()?;
    let (program, args) = request
        .argv
        .split_first()
        .ok_or_else(|| io::Error::other("there is no command"))?;
    let mut command = Command::new(program);
    command.args(args).envs(&request.env).current_dir("/").process_group(0);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Waits until the command has ended, or until the time to kill it is over. Returns its end and the number of remaining
/// processes.
fn attend(
    mut child: Child,
    family: &mut Descendants,
    request: &Request,
    control: BorrowedFd<'_>,
    printed: &mut Printed,
) -> io::Result<(Ended, usize)> {
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
    // The reason why it is being killed, and the deadline for that.
    let mut killing: Option<(Ended, Instant)> = None;
    let mut rest = MAX_REST;
    loop {
        let now = Instant::now();
        let next = match (&killing, family.status) {
            (Some((_, give_up)), _) => (*give_up).min(now + AGAIN),
            // A process that has left the process group may hold the pipes open. Read what is available, and do not
            // wait.
            (None, Some(_)) => now,
            (None, None) => deadline,
        };
        let (runs, listens) = (family.status.is_none(), killing.is_none());
        let mut fds = Vec::with_capacity(4);
        fds.extend(runs.then(|| PollFd::new(&pidfd, PollFlags::IN)));
        fds.extend(listens.then(|| PollFd::from_borrowed_fd(control, PollFlags::IN)));
        fds.extend(out.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(err.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut fds, Some(&timespec(next.saturating_duration_since(now)))) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        let ended = runs && ready.next().unwrap_or(false);
        let told = listens && ready.next().unwrap_or(false);
        let out_ready = out.is_some() && ready.next().unwrap_or(false);
        let err_ready = err.is_some() && ready.next().unwrap_or(false);
        if out_ready {
            printed.stdout.fill(&mut out)?;
        }
        if err_ready {
            printed.stderr.fill(&mut err)?;
        }
        if ended {
            family.command_ended()?;
            continue;
        }
        rest = rest.saturating_sub(usize::from(family.status.is_some()));
        let is_over = told || rest == 0 || Instant::now() >= deadline;
        let give_up = Instant::now() + KILLING;
        if killing.is_none() && printed.stdout.is_too_much() {
            killing = Some((Ended::TooMuch, give_up));
        }
        match (&killing, family.status) {
            (None, Some(status)) if is_over || (!out_ready && !err_ready) => {
                let signal = || Ended::Signal(status.terminating_signal().unwrap_or(0));
                return Ok((status.exit_status().map_or_else(signal, Ended::Exit), 0));
            }
            (None, None) if is_over => killing = Some((Ended::Timeout, give_up)),
            _ => {}
        }
        if let Some((why, give_up)) = &killing {
            let left = family.kill()?;
            if (left == 0 && !out_ready && !err_ready) || Instant::now() >= *give_up {
                return Ok((why.clone(), left));
            }
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

/// The output of a command.
struct Printed {
    stdout: Kept,
    stderr: Kept,
}

/// The beginning of one stream of a command.
struct Kept {
    bytes: Zeroizing<Vec<u8>>,
    limit: usize,
    total: u64,
}

impl Kept {
    fn new(limit: usize) -> Self {
        Self {
            bytes: Zeroizing::new(Vec::with_capacity(limit + 1)),
            limit,
            total: 0,
        }
    }

    /// Reads the available bytes, and closes the pipe at its end. Bytes beyond the limit are dropped.
    fn fill(&mut self, pipe: &mut Option<impl Read>) -> io::Result<()> {
        let Some(reader) = pipe else { return Ok(()) };
        let mut buffer = Zeroizing::new([0; 4096]);
        match reader.read(&mut buffer[..]) {
            Ok(0) => *pipe = None,
            // One byte beyond the limit is kept, to indicate that there was more.
            Ok(n) => {
                self.total = self.total.saturating_add(n as u64);
                let room = (self.limit + 1).saturating_sub(self.bytes.len());
                self.bytes.extend_from_slice(&buffer[..n.min(room)]);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn is_too_much(&self) -> bool {
        self.bytes.len() > self.limit
    }
}
