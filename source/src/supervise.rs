//! The program that stands between the broker and a command: it starts the command, collects what it prints, and kills
//! it with its process group when told to, at its timeout, or when the broker is gone.
//!
//! It exists because the job manager is a thread of a broker that reaps every child it gets (`waitpid(-1)` on SIGCHLD,
//! in libsubprocess and libev), so that a plugin cannot learn how a child of its own ended. It is the same program as
//! `flux workflow-token`, run as `flux-workflow-token supervise`, with the request on standard input and the answer on
//! standard output. Neither arguments nor output of the command are ever in its own arguments.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::sys::signal::SigSet;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// How much of a command's standard error is kept, in bytes: its beginning.
pub(crate) const MAX_STDERR: usize = 8192;

/// What to run: one line of JSON on standard input, which then stays open. Closing it kills the command.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Request {
    pub argv: Vec<String>,
    /// Added to the environment of the command.
    pub env: BTreeMap<String, String>,
    pub timeout_ms: u64,
    /// The command is killed when it prints more than this many bytes.
    pub max_stdout: usize,
}

/// How the command ended: one line of JSON on standard output, and behind it what the command printed: `stdout` bytes,
/// then `stderr` bytes.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Answer {
    pub ended: Ended,
    pub stdout: usize,
    pub stderr: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ended {
    Exit(i32),
    Signal(i32),
    Timeout,
    TooMuch,
    NotStarted(String),
}

/// Runs one command as the request on standard input says. To be called with nothing else running in the process.
pub fn main() -> ExitCode {
    match run(io::stdin().lock(), io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("flux-workflow-token: supervise: {e}: this is run by the job manager plugin, not by hand");
            ExitCode::FAILURE
        }
    }
}

fn run(mut input: io::StdinLock<'_>, mut output: impl Write) -> io::Result<()> {
    let mut line = String::new();
    // More than the kernel takes as arguments is no request.
    input.by_ref().take(4 << 20).read_line(&mut line)?;
    let request: Request = serde_json::from_str(&line).map_err(io::Error::other)?;
    let mut stdout = Zeroizing::new(Vec::with_capacity(request.max_stdout + 4096));
    let mut stderr = Zeroizing::new(Vec::with_capacity(MAX_STDERR + 4096));
    let ended = match start(&request) {
        Ok(child) => attend(child, &request, io::stdin().as_fd(), &mut stdout, &mut stderr)?,
        Err(e) => Ended::NotStarted(e.to_string()),
    };
    // What a command that failed printed is handed over too: it is looked for in its standard error, and hidden there.
    stderr.truncate(MAX_STDERR);
    let answer = Answer {
        ended,
        stdout: stdout.len(),
        stderr: stderr.len(),
    };
    writeln!(output, "{}", serde_json::to_string(&answer).map_err(io::Error::other)?)?;
    output.write_all(&stdout)?;
    output.write_all(&stderr)?;
    output.flush()
}

fn start(request: &Request) -> io::Result<Child> {
    // What the broker leaves open for its children is none of a command's business.
    close_fds::set_fds_cloexec(3, &[]);
    // Threads of the broker have all signals blocked, which is inherited; the command gets them as a login shell would.
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

/// Waits for the command to end, whichever way, and leaves nothing of its process group behind.
fn attend(
    mut child: Child,
    request: &Request,
    control: BorrowedFd<'_>,
    stdout: &mut Zeroizing<Vec<u8>>,
    stderr: &mut Zeroizing<Vec<u8>>,
) -> io::Result<Ended> {
    let group = rustix::process::Pid::from_child(&child);
    let pidfd = pidfd_open(group, PidfdFlags::empty())?;
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
    let mut killed = None;
    let mut exited: Option<ExitStatus> = None;
    loop {
        if exited.is_some() && out.is_none() && err.is_none() {
            break;
        }
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        if killed.is_none() && exited.is_none() {
            fds.push(PollFd::from_borrowed_fd(control, PollFlags::IN));
        }
        fds.extend(out.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        fds.extend(err.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let left = match (&killed, &exited) {
            // Whoever left the process group may still hold the pipes: what is there is read, and no more waited for.
            (_, Some(_)) => Duration::ZERO,
            (Some(_), None) => Duration::from_secs(1),
            (None, None) => deadline.saturating_duration_since(Instant::now()),
        };
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let count = match poll(&mut fds, Some(&timeout)) {
            Ok(n) => n,
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        let process = ready.next().unwrap_or(false);
        let told = killed.is_none() && exited.is_none() && ready.next().unwrap_or(false);
        let out_ready = out.is_some() && ready.next().unwrap_or(false);
        let err_ready = err.is_some() && ready.next().unwrap_or(false);
        if out_ready && !fill(&mut out, stdout, request.max_stdout)? && killed.is_none() {
            killed = Some(Ended::TooMuch);
        }
        if err_ready {
            fill(&mut err, stderr, MAX_STDERR)?;
        }
        if process && exited.is_none() {
            // What the command left running in its group goes with it. It is not reaped yet, so the number is still its.
            let _ = kill_process_group(group, Signal::KILL);
            exited = Some(child.wait()?);
            continue;
        }
        if exited.is_some() && !out_ready && !err_ready {
            break;
        }
        if killed.is_none() && exited.is_none() && (told || (count == 0 && Instant::now() >= deadline)) {
            killed = Some(Ended::Timeout);
        }
        if killed.is_some() && exited.is_none() {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
    let status = match exited {
        Some(status) => status,
        None => child.wait()?,
    };
    Ok(match (killed, status.code(), status.signal()) {
        (Some(why), ..) => why,
        (None, Some(code), _) => Ended::Exit(code),
        (None, None, signal) => Ended::Signal(signal.unwrap_or(0)),
    })
}

/// Reads what is there. At the end of the pipe it is closed. Beyond the limit, what comes is thrown away, and `false`
/// returned.
fn fill(pipe: &mut Option<impl Read>, into: &mut Zeroizing<Vec<u8>>, limit: usize) -> io::Result<bool> {
    let Some(reader) = pipe else { return Ok(true) };
    let mut buffer = Zeroizing::new([0; 4096]);
    match reader.read(&mut buffer[..]) {
        Ok(0) => *pipe = None,
        // One byte beyond the limit is kept, so that who reads it sees that there was more.
        Ok(n) => {
            let room = (limit + 1).saturating_sub(into.len());
            into.extend_from_slice(&buffer[..n.min(room)]);
        }
        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
        Err(e) => return Err(e),
    }
    Ok(into.len() <= limit)
}
