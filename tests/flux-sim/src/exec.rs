// SPDX-License-Identifier: MIT OR Apache-2.0

//! Execution: starts the shells of a job, collects their output, and reports how they ended.
//!
//! Imitates job-exec as seen by the job manager (`start`, `finish`, `release`): one shell on this node for each node of
//! the job, a barrier between them, and SIGTERM then SIGKILL when a job receives a fatal exception. A shell of a user
//! other than the instance owner drops root privileges before it loads anything.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use serde_json::{Value, json};

use crate::channel::Channel;
use crate::instance::Instance;
use crate::job::{Job, State};
use crate::jobid::JobId;
use crate::reactor::Watcher;

/// The time between SIGTERM and SIGKILL. This is Flux's default.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum output kept for one job. Later output is dropped.
const OUTPUT_MAX: usize = 64 << 20;

/// The origin of a piece of output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output of the tasks.
    Stdout,
    /// Standard error of the tasks, and the log of the shells.
    Stderr,
}

/// The output of a job, in order of arrival.
#[derive(Default)]
pub struct Output {
    pieces: Vec<(Stream, Vec<u8>)>,
    size: usize,
}

impl Output {
    /// Returns the output of one stream, or of both.
    pub fn text(&self, stream: Option<Stream>) -> String {
        let wanted = self
            .pieces
            .iter()
            .filter(|(from, _)| stream.is_none_or(|stream| stream == *from));
        let bytes: Vec<u8> = wanted.flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The execution service of an instance.
pub struct Exec {
    shell_plugins: Value,
    ready: Cell<bool>,
    runs: RefCell<BTreeMap<JobId, Rc<Run>>>,
    outputs: RefCell<BTreeMap<JobId, Output>>,
}

/// A job that has shells.
struct Run {
    job: Rc<Job>,
    shells: RefCell<Vec<Rc<ShellProcess>>>,
    /// Set once a fatal exception was raised: the job fails, however its shells end.
    exception: Cell<bool>,
    /// The largest wait status of the shells that have ended.
    status: Cell<i32>,
}

struct ShellProcess {
    rank: usize,
    child: RefCell<Child>,
    pid: Pid,
    channel: Rc<Channel>,
    pidfd: OwnedFd,
    pipes: RefCell<Vec<(Stream, File)>>,
    watchers: RefCell<Vec<Rc<Watcher>>>,
    exited: Cell<bool>,
    in_barrier: Cell<bool>,
    barriers: Cell<u32>,
}

/// Returns a descriptor that becomes readable when a child has ended.
pub fn exit_fd(child: &Child) -> io::Result<OwnedFd> {
    match pidfd_open(rustix::process::Pid::from_child(child), PidfdFlags::empty()) {
        // Valgrind does not implement the call. Instead, a thread waits and closes its end, and leaves the status to be
        // collected.
        Err(rustix::io::Errno::NOSYS) => {
            let (reader, writer) = UnixStream::pair()?;
            let id = Id::Pid(Pid::from_raw(child.id() as i32));
            std::thread::spawn(move || {
                let _ = waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
                drop(writer);
            });
            Ok(reader.into())
        }
        opened => Ok(opened?),
    }
}

impl Exec {
    /// Creates a service that does not start jobs yet, with the plugins of its shells and their configuration.
    pub fn new(shell_plugins: Value) -> Exec {
        Exec {
            shell_plugins,
            ready: Cell::new(false),
            runs: RefCell::default(),
            outputs: RefCell::default(),
        }
    }

    /// Starts jobs from now on.
    pub fn hello(&self) {
        self.ready.set(true);
    }

    /// Stops starting jobs: they wait in RUN.
    pub fn hold(&self) {
        self.ready.set(false);
    }

    /// Returns the output of a job, as far as this process has received it.
    pub fn output(&self, id: JobId, stream: Option<Stream>) -> String {
        self.outputs
            .borrow()
            .get(&id)
            .map(|output| output.text(stream))
            .unwrap_or_default()
    }

    /// Returns the pieces of output of a job after the first `seen`.
    pub fn output_after(&self, id: JobId, seen: usize) -> Vec<(Stream, Vec<u8>)> {
        self.outputs
            .borrow()
            .get(&id)
            .map(|output| output.pieces[seen..].to_vec())
            .unwrap_or_default()
    }

    /// Requests the start of a job. The responses are events.
    pub fn start(&self, instance: &Rc<Instance>, job: &Rc<Job>) {
        if !self.ready.get() || job.start_pending.replace(true) {
            return;
        }
        let (instance, job) = (Rc::clone(instance), Rc::clone(job));
        let reactor = instance.handle.reactor.clone();
        reactor.defer(move || instance.exec.launch(&instance, &job));
    }

    fn launch(&self, instance: &Rc<Instance>, job: &Rc<Job>) {
        let run = Rc::new(Run {
            job: Rc::clone(job),
            shells: RefCell::default(),
            exception: Cell::new(job.state.get() != State::Run),
            status: Cell::new(0),
        });
        self.runs.borrow_mut().insert(job.id, run.clone());
        if run.exception.get() {
            return self.complete(instance, &run);
        }
        let launched = match job.started.get() {
            true => Err("the instance was restarted while the job ran: its job shells are lost".into()),
            false => (0..job.nodes()).try_for_each(|rank| self.spawn(instance, &run, rank)),
        };
        match launched {
            Ok(()) => {
                instance.post(job, "start", Value::Null);
            }
            Err(error) => {
                self.raise(instance, &run, &error);
                if run.shells.borrow().is_empty() {
                    self.complete(instance, &run);
                }
            }
        }
    }

    fn raise(&self, instance: &Rc<Instance>, run: &Rc<Run>, note: &str) {
        if !run.exception.get() {
            instance.raise(&run.job, "exec", 0, note, instance.owner);
        }
    }

    fn spawn(&self, instance: &Rc<Instance>, run: &Rc<Run>, rank: usize) -> Result<(), String> {
        let job = &run.job;
        let userid = job.userid.get();
        if userid != instance.owner && instance.owner != 0 {
            return Err(format!(
                "cannot start a job shell as uid {userid}: this instance does not run as root"
            ));
        }
        let shell = ShellProcess::start(instance, rank).map_err(|e| format!("cannot start a job shell: {e}"))?;
        shell.channel.send(&json!({
            "jobid": job.id.0,
            "rank": rank,
            "size": job.nodes(),
            "instance_owner": instance.owner,
            "userid": userid,
            "jobspec": job.jobspec,
            "R": *job.resources.borrow(),
            "plugins": self.shell_plugins,
        }));
        run.shells.borrow_mut().push(shell.clone());
        shell.watch(instance, run);
        Ok(())
    }

    fn collect(&self, id: JobId, stream: Stream, bytes: &[u8]) {
        let mut outputs = self.outputs.borrow_mut();
        let output = outputs.entry(id).or_default();
        if output.size + bytes.len() <= OUTPUT_MAX {
            output.size += bytes.len();
            output.pieces.push((stream, bytes.to_vec()));
        }
    }

    /// Handles a fatal exception that was raised on a job.
    pub fn cancel(&self, instance: &Rc<Instance>, job: &Rc<Job>) {
        let Some(run) = self.runs.borrow().get(&job.id).cloned() else {
            return;
        };
        if run.exception.replace(true) {
            return;
        }
        run.signal(Signal::SIGTERM);
        run.end_barrier(false);
        let weak = Rc::downgrade(&run);
        instance.handle.reactor.after(KILL_TIMEOUT, move || {
            if let Some(run) = weak.upgrade() {
                run.signal(Signal::SIGKILL);
            }
        });
    }

    /// Kills all shells and waits for them.
    pub fn kill_all(&self) {
        for run in self.runs.take().into_values() {
            run.signal(Signal::SIGKILL);
            for shell in run.shells.take() {
                shell.watchers.take().iter().for_each(|watcher| watcher.stop());
                let _ = shell.child.borrow_mut().wait();
            }
        }
    }

    fn request(&self, instance: &Rc<Instance>, run: &Rc<Run>, shell: &Rc<ShellProcess>, message: &Value) {
        if message.get("barrier").is_some() {
            shell.in_barrier.set(true);
            if run.exception.get() {
                run.end_barrier(false);
            } else if run.shells.borrow().iter().all(|shell| shell.in_barrier.get()) {
                run.end_barrier(true);
            }
        } else if let Some(log) = message.get("log") {
            let level = log["level"]
                .as_i64()
                .and_then(|level| i32::try_from(level).ok())
                .unwrap_or(libc::LOG_INFO);
            instance.log_from("flux-shell", level, log["text"].as_str().unwrap_or(""));
        } else if let (Some(seq), Some(topic)) = (message["seq"].as_u64(), message["topic"].as_str()) {
            let payload = message["payload"]
                .as_str()
                .and_then(|payload| CString::new(payload).ok());
            let channel = Rc::downgrade(&shell.channel);
            let done = Box::new(move |outcome| {
                let Some(channel) = Weak::upgrade(&channel) else { return };
                channel.send(&match outcome {
                    Ok(Some::<CString>(payload)) => json!({"seq": seq, "payload": payload.to_string_lossy()}),
                    Ok(None) => json!({"seq": seq}),
                    Err(crate::future::Failure { errnum, text }) => {
                        json!({"seq": seq, "errnum": errnum, "errstr": text})
                    }
                });
            });
            // The socket belongs to a shell that runs as the job owner.
            instance.request_as(run.job.userid.get(), topic.to_owned(), payload, done);
        }
    }

    fn exited(&self, instance: &Rc<Instance>, run: &Rc<Run>, shell: &Rc<ShellProcess>) {
        let Ok(Some(status)) = shell.child.borrow_mut().try_wait() else {
            return;
        };
        shell.exited.set(true);
        shell.watchers.take().iter().for_each(|watcher| watcher.stop());
        shell.drain(self, run.job.id, OUTPUT_MAX >> 16);
        for message in shell.channel.receive().unwrap_or_default() {
            self.request(instance, run, shell, &message);
        }
        run.status.set(run.status.get().max(status.into_raw()));
        if run.job.nodes() > 1 && shell.barriers.get() == 0 {
            self.raise(
                instance,
                run,
                &format!("rank {} terminated before first barrier", shell.rank),
            );
        }
        if run.shells.borrow().iter().all(|shell| shell.exited.get()) {
            self.complete(instance, run);
        }
    }

    fn complete(&self, instance: &Rc<Instance>, run: &Rc<Run>) {
        self.runs.borrow_mut().remove(&run.job.id);
        let job = &run.job;
        // The status of shells lost with an earlier instance is unknown.
        if job.started.get() && !run.shells.borrow().is_empty() {
            let status = match run.status.get() {
                0 if run.exception.get() => 1 << 8,
                status => status,
            };
            instance.post(job, "finish", json!({"status": status}));
        }
        job.start_pending.set(false);
        instance.post(job, "release", json!({"ranks": "all", "final": true}));
    }
}

impl Run {
    fn signal(&self, signal: Signal) {
        for shell in self.shells.borrow().iter().filter(|shell| !shell.exited.get()) {
            // The child was not reaped, so its pid was not reused.
            let _ = kill(shell.pid, signal);
        }
    }

    fn end_barrier(&self, all_entered: bool) {
        for shell in self
            .shells
            .borrow()
            .iter()
            .filter(|shell| shell.in_barrier.replace(false))
        {
            shell.barriers.set(shell.barriers.get() + u32::from(all_entered));
            shell.channel.send(&json!({"barrier": all_entered}));
        }
    }
}

impl ShellProcess {
    /// Starts a process of this program that becomes a job shell.
    fn start(instance: &Rc<Instance>, rank: usize) -> io::Result<Rc<ShellProcess>> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg0("flux-sim")
            .arg("shell")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().map(|pipe| (Stream::Stdout, OwnedFd::from(pipe)));
        let stderr = child.stderr.take().map(|pipe| (Stream::Stderr, OwnedFd::from(pipe)));
        let pipes: Vec<(Stream, File)> = stdout
            .into_iter()
            .chain(stderr)
            .map(|(s, fd)| (s, File::from(fd)))
            .collect();
        for (_, pipe) in &pipes {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Rc::new(ShellProcess {
            rank,
            pid: Pid::from_raw(child.id() as i32),
            pidfd: exit_fd(&child)?,
            child: RefCell::new(child),
            channel: Channel::new(ours, instance.handle.reactor.clone())?,
            pipes: RefCell::new(pipes),
            watchers: RefCell::default(),
            exited: Cell::new(false),
            in_barrier: Cell::new(false),
            barriers: Cell::new(0),
        }))
    }

    /// Registers the shell with the reactor until it ends.
    fn watch(self: &Rc<Self>, instance: &Rc<Instance>, run: &Rc<Run>) {
        let reactor = &instance.handle.reactor;
        let (weak, weak_run, weak_shell) = (instance.me.clone(), Rc::downgrade(run), Rc::downgrade(self));
        let callback = move |serve: fn(&Rc<Instance>, &Rc<Run>, &Rc<ShellProcess>)| {
            let (instance, run, shell) = (weak.clone(), weak_run.clone(), weak_shell.clone());
            move || {
                if let (Some(instance), Some(run), Some(shell)) = (instance.upgrade(), run.upgrade(), shell.upgrade()) {
                    serve(&instance, &run, &shell);
                }
            }
        };
        let mut watchers = vec![
            reactor.watch(
                self.pidfd.as_raw_fd(),
                callback(|instance, run, shell| {
                    instance.exec.exited(instance, run, shell);
                }),
            ),
            reactor.watch(
                self.channel.fd(),
                callback(|instance, run, shell| shell.serve(instance, run)),
            ),
        ];
        for (_, pipe) in &*self.pipes.borrow() {
            let drain = callback(|instance, run, shell| shell.drain(&instance.exec, run.job.id, 16));
            watchers.push(reactor.watch(pipe.as_raw_fd(), drain));
        }
        *self.watchers.borrow_mut() = watchers;
    }

    fn serve(self: &Rc<Self>, instance: &Rc<Instance>, run: &Rc<Run>) {
        match self.channel.receive() {
            Some(messages) => {
                messages
                    .iter()
                    .for_each(|message| instance.exec.request(instance, run, self, message));
            }
            // The shell is ending, or will never send another request.
            None => self.stop_watching(self.channel.fd()),
        }
    }

    fn stop_watching(&self, fd: RawFd) {
        self.watchers
            .borrow()
            .iter()
            .filter(|watcher| watcher.fd() == Some(fd))
            .for_each(|watcher| watcher.stop());
    }

    /// Reads up to `limit` pieces of output of the shell and its task, so that an endless writer does not block the
    /// reactor.
    fn drain(&self, exec: &Exec, id: JobId, limit: usize) {
        let mut buf = [0; 65536];
        let mut pieces = Vec::new();
        for (stream, pipe) in &*self.pipes.borrow() {
            for _ in 0..limit {
                match (&*pipe).read(&mut buf) {
                    Ok(n) if n > 0 => pieces.push((*stream, buf[..n].to_vec())),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => (),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    _ => {
                        self.stop_watching(pipe.as_raw_fd());
                        break;
                    }
                }
            }
        }
        pieces
            .iter()
            .for_each(|(stream, bytes)| exec.collect(id, *stream, bytes));
    }
}
