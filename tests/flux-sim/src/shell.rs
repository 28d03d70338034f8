// SPDX-License-Identifier: MIT OR Apache-2.0

//! The job shell: a separate process that runs one task of a job as the job owner.
//!
//! Imitates `flux-shell-plugins(7)` and the stages of the job shell: it loads plugins, then runs `shell.init`, a
//! barrier, `shell.post-init`, the task, `shell.start`, a barrier, and once the task has ended `task.exit`,
//! `shell.finish` and `shell.exit`. Log lines go to standard error in the format of `flux job attach`.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio, exit};
use std::rc::{Rc, Weak};
use std::time::Instant;

use ffi::raw::{flux_plugin_t, flux_shell_t, flux_t};
use libc::{c_char, c_int, c_void};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, User};
use serde_json::{Map, Value, json};

use crate::c::{self, Json, cstring, fail, malloced, set_errno, strerror};
use crate::channel::Channel;
use crate::exec::exit_fd;
use crate::future::{Done, Failure};
use crate::handle::{Broker, Handle};
use crate::job::hostname;
use crate::jobid::JobId;
use crate::kvs::Txn;
use crate::plugin::{Home, Plugin, plugin};
use crate::reactor::Watcher;

const FATAL: c_int = 0;
const ERROR: c_int = 3;
const NOTICE: c_int = 5;

thread_local! {
    /// The shell of this process, for functions that do not receive it as an argument.
    static SHELL: RefCell<Option<Rc<Shell>>> = const { RefCell::new(None) };
}

/// A job shell.
pub struct Shell {
    me: Weak<Shell>,
    handle: Rc<Handle>,
    channel: Rc<Channel>,
    /// The instance's information about the job.
    init: Value,
    /// The jobspec with the environment of the job, which plugins change.
    jobspec: RefCell<Value>,
    /// Every version of the shell's info from which C code may have borrowed strings. The last one is current.
    info: RefCell<Vec<Json>>,
    info_stale: Cell<bool>,
    /// Options from which C code may have borrowed strings.
    options: RefCell<Vec<Json>>,
    /// The verbosity that the job requested. A plugin that sets the option later changes nothing.
    verbosity: OnceCell<c_int>,
    plugins: RefCell<Vec<Rc<Plugin>>>,
    pending: RefCell<BTreeMap<u64, Done>>,
    next_seq: Cell<u64>,
    /// The result of the barrier in which the shell waits.
    barrier: Cell<Option<bool>>,
    connected: Cell<bool>,
    task: OnceCell<Pid>,
    exception_raised: Cell<bool>,
}

/// Runs as a job shell. Standard input is the connection to the instance.
pub fn main() -> ! {
    let Some(channel) = connect() else {
        eprintln!("flux-shell: this program starts job shells itself: its standard input is not a connection");
        exit(1)
    };
    let handle = Handle::new();
    let Some((channel, init)) = hello(channel, &handle) else {
        eprintln!("flux-shell: lost the connection to the instance");
        exit(1)
    };
    let shell = Rc::new_cyclic(|me: &Weak<Shell>| Shell {
        me: me.clone(),
        handle,
        channel,
        jobspec: RefCell::new(init["jobspec"].clone()),
        init,
        info: RefCell::default(),
        info_stale: Cell::new(true),
        options: RefCell::default(),
        verbosity: OnceCell::new(),
        plugins: RefCell::default(),
        pending: RefCell::default(),
        next_seq: Cell::new(0),
        barrier: Cell::new(None),
        connected: Cell::new(true),
        task: OnceCell::new(),
        exception_raised: Cell::new(false),
    });
    shell.handle.connect(shell.me.clone());
    SHELL.set(Some(shell.clone()));
    let code = shell.run();
    shell.destroy();
    exit(code)
}

/// Moves the connection away from standard input, which tasks would inherit.
fn connect() -> Option<UnixStream> {
    let socket: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned().ok()?;
    let null = std::fs::File::open("/dev/null").ok()?;
    nix::unistd::dup2_stdin(&null).ok()?;
    let stream = UnixStream::from(socket);
    stream.peer_addr().ok()?;
    Some(stream)
}

/// Waits for the first message of the instance.
fn hello(stream: UnixStream, handle: &Rc<Handle>) -> Option<(Rc<Channel>, Value)> {
    let channel = Channel::new(stream, handle.reactor.clone()).ok()?;
    loop {
        wait_readable(&channel, -1);
        if let Some(init) = channel.receive()?.into_iter().next() {
            return Some((channel, init));
        }
    }
}

/// Waits for data to receive. Returns false if the timeout expires first.
fn wait_readable(channel: &Channel, timeout: c_int) -> bool {
    let mut fd = libc::pollfd {
        fd: channel.fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&mut fd, 1, timeout) != 0 }
}

impl Shell {
    fn jobid(&self) -> JobId {
        JobId(self.init["jobid"].as_u64().unwrap_or(0))
    }

    fn rank(&self) -> i64 {
        self.init["rank"].as_i64().unwrap_or(0)
    }

    fn size(&self) -> i64 {
        self.init["size"].as_i64().unwrap_or(1)
    }

    fn option(&self, name: &str) -> Option<Value> {
        self.jobspec
            .borrow()
            .pointer("/attributes/system/shell/options")?
            .get(name)
            .cloned()
    }

    /// Sets an option of the job shell, or removes it. Returns false if there is none to remove.
    fn set_option(&self, name: &str, value: Option<Value>) -> bool {
        self.verbose();
        let mut jobspec = self.jobspec.borrow_mut();
        let options = object_at(&mut jobspec, &["attributes", "system", "shell", "options"]);
        self.info_stale.set(true);
        match value {
            Some(value) => {
                options.insert(name.to_owned(), value);
                true
            }
            None => options.remove(name).is_some(),
        }
    }

    fn verbose(&self) -> c_int {
        *self.verbosity.get_or_init(|| {
            self.option("verbose")
                .and_then(|verbose| verbose.as_i64())
                .map_or(0, |verbose| verbose.clamp(0, 2) as c_int)
        })
    }

    /// Runs all stages. Returns the exit code.
    fn run(self: &Rc<Self>) -> i32 {
        self.drop_privileges();
        let signals = self.signals();
        self.change_directory();
        self.load_plugins();
        self.set_environment();
        self.stage("shell.init");
        self.barrier_all();
        self.stage("shell.post-init");
        let child = self.start_task();
        self.stage("shell.start");
        self.barrier_all();
        let code = self.wait_for(child, &signals);
        for topic in ["task.exit", "shell.finish"] {
            let _ = self.call(topic);
        }
        match self.call("shell.exit") {
            true => code,
            false => {
                self.log(None, ERROR, "shell_exit callback(s) failed");
                code.max(1)
            }
        }
    }

    /// Becomes the job owner before it examines anything of the job.
    fn drop_privileges(&self) {
        let uid = nix::unistd::Uid::from_raw(self.init["userid"].as_u64().unwrap_or(0) as u32);
        if uid != nix::unistd::geteuid() {
            let user = match User::from_uid(uid) {
                Ok(Some(user)) => user,
                _ => self.fatal(None, 1, &format!("uid {uid} is not in the password database")),
            };
            let dropped = nix::unistd::initgroups(&cstring(user.name), user.gid)
                .and_then(|()| nix::unistd::setgid(user.gid))
                .and_then(|()| nix::unistd::setuid(uid));
            if let Err(e) = dropped {
                self.fatal(None, 1, &format!("cannot become uid {uid}: {}", e.desc()));
            }
        }
        // Must follow setuid(2), which clears it. A shell does not outlive its instance.
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    }

    /// Delivers signals that end a job as events.
    fn signals(&self) -> SignalFd {
        let set: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
        let fd = set
            .thread_block()
            .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC));
        fd.unwrap_or_else(|e| self.fatal(None, 1, &format!("signalfd: {}", e.desc())))
    }

    fn change_directory(&self) {
        let cwd = self
            .jobspec
            .borrow()
            .pointer("/attributes/system/cwd")
            .and_then(Value::as_str)
            .map(str::to_owned);
        let Some(cwd) = cwd else { return };
        if let Err(e) = std::env::set_current_dir(&cwd) {
            let error = strerror(e.raw_os_error().unwrap_or(0));
            self.log(
                None,
                ERROR,
                &format!("Could not change dir to {cwd}: {error}. Going to /tmp instead"),
            );
            if std::env::set_current_dir("/tmp").is_err() {
                self.log(None, ERROR, "Could not change dir to /tmp");
            }
        }
    }

    fn load_plugins(self: &Rc<Self>) {
        for entry in self.init["plugins"].as_array().into_iter().flatten() {
            let path = entry["load"].as_str().unwrap_or("");
            let home = Home::Shell(self.me.clone());
            match Plugin::load(path, &entry["conf"], home, self.handle.reactor.clone()) {
                Ok(plugin) => {
                    // The last plugin of a name replaces an earlier one.
                    let mut plugins = self.plugins.borrow_mut();
                    let old = plugins
                        .iter()
                        .position(|old| old.name() == plugin.name())
                        .map(|at| plugins.remove(at));
                    plugins.push(plugin);
                    drop(plugins);
                    old.into_iter().for_each(|old| old.destroy());
                }
                Err((_, failure)) => {
                    self.log(None, ERROR, &failure.text);
                    self.fatal(None, 1, &format!("cannot load the plugin {path}"));
                }
            }
        }
    }

    fn set_environment(&self) {
        let id = self.jobid().to_string();
        let size = self.size().to_string();
        for (name, value) in [
            ("FLUX_JOB_ID", id.as_str()),
            ("FLUX_JOB_ID_PATH", &format!("/{id}")),
            ("FLUX_JOB_SIZE", &size),
            ("FLUX_JOB_NNODES", &size),
            ("FLUX_KVS_NAMESPACE", &format!("job-{}", self.jobid().0)),
        ] {
            self.set_env(true, name, value);
        }
    }

    fn set_env(&self, overwrite: bool, name: &str, value: &str) {
        let mut jobspec = self.jobspec.borrow_mut();
        let environment = object_at(&mut jobspec, &["attributes", "system", "environment"]);
        if overwrite || !environment.contains_key(name) {
            environment.insert(name.to_owned(), json!(value));
            self.info_stale.set(true);
        }
    }

    fn environment(&self) -> Map<String, Value> {
        let jobspec = self.jobspec.borrow();
        let environment = jobspec
            .pointer("/attributes/system/environment")
            .and_then(Value::as_object);
        environment.cloned().unwrap_or_default()
    }

    /// Calls all plugins. Returns false if one of them failed, after all were called.
    fn call(&self, topic: &str) -> bool {
        let plugins = self.plugins.borrow().clone();
        let mut all = true;
        for plugin in plugins {
            if plugin.call(topic, None).is_err() {
                self.log(None, ERROR, &format!("plugin '{}': {topic} failed", plugin.name()));
                all = false;
            }
        }
        all
    }

    fn stage(&self, topic: &str) {
        if !self.call(topic) {
            self.fatal(None, 1, &format!("{} callback(s) failed", topic.replace('.', "_")));
        }
    }

    /// Waits until all shells of the job have arrived.
    fn barrier_all(&self) {
        if self.size() == 1 {
            return;
        }
        self.barrier.set(None);
        self.channel.send(&json!({"barrier": true}));
        while self.barrier.get().is_none() {
            if self.progress(None).is_err() {
                exit(1);
            }
        }
        // The instance has raised an exception with the reason.
        if self.barrier.get() == Some(false) {
            self.kill_task(Signal::SIGKILL);
            exit(1);
        }
    }

    fn start_task(&self) -> Child {
        let command: Vec<String> = self
            .jobspec
            .borrow()
            .pointer("/tasks/0/command")
            .and_then(Value::as_array)
            .map(|words| {
                words
                    .iter()
                    .filter_map(|word| word.as_str().map(str::to_owned))
                    .collect()
            })
            .unwrap_or_default();
        let Some((program, args)) = command.split_first() else {
            self.fatal(None, 1, "the job has no command")
        };
        let environment = self.environment();
        let mut task = Command::new(program);
        task.args(args)
            .env_clear()
            .envs(
                environment
                    .iter()
                    .filter_map(|(name, value)| value.as_str().map(|value| (name, value))),
            )
            .env("FLUX_TASK_RANK", self.rank().to_string())
            .env("FLUX_TASK_LOCAL_ID", "0")
            .stdin(Stdio::null())
            .process_group(0);
        // SAFETY: between fork and exec, the closure makes two system calls and allocates nothing.
        unsafe {
            task.pre_exec(|| {
                SigSet::empty().thread_set_mask()?;
                Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
            });
        }
        match task.spawn() {
            Ok(child) => {
                let _ = self.task.set(Pid::from_raw(child.id() as i32));
                child
            }
            Err(e) => {
                let code = match e.raw_os_error() {
                    Some(libc::EPERM | libc::EACCES) => 126,
                    Some(libc::ENOENT) => 127,
                    _ => 1,
                };
                let (rank, host) = (self.rank(), hostname());
                let error = e.raw_os_error().map_or_else(|| e.to_string(), strerror);
                self.fatal(
                    None,
                    code,
                    &format!("task {rank} (host {host}): start failed: {program}: {error}"),
                );
            }
        }
    }

    /// Runs the reactor until the task has ended. Returns its exit code, as a login shell computes it.
    fn wait_for(self: &Rc<Self>, mut child: Child, signals: &SignalFd) -> i32 {
        let ended = exit_fd(&child);
        let watchers: Vec<Rc<Watcher>> = {
            let reactor = &self.handle.reactor;
            let (shell, signal_shell) = (Rc::clone(self), Rc::clone(self));
            let signals = signals.as_fd().as_raw_fd();
            let stop = Rc::clone(reactor);
            vec![
                reactor.watch(self.channel.fd(), move || {
                    let _ = shell.receive();
                    if !shell.connected.get() {
                        shell.kill_task(Signal::SIGKILL);
                    }
                }),
                reactor.watch(signals, move || signal_shell.forward_signal(signals)),
                match &ended {
                    Ok(ended) => reactor.watch(ended.as_raw_fd(), move || stop.stop()),
                    Err(e) => self.fatal(None, 1, &format!("cannot wait for the task: {e}")),
                },
            ]
        };
        self.handle.reactor.run(|| ());
        watchers.iter().for_each(|watcher| watcher.stop());
        match child.wait() {
            Ok(status) => status
                .code()
                .or_else(|| status.signal().map(|signal| 128 + signal))
                .unwrap_or(1),
            Err(_) => 1,
        }
    }

    fn forward_signal(&self, fd: c_int) {
        // SAFETY: signalfd_siginfo is plain data, and the kernel writes no more than its size.
        let signo = unsafe {
            let mut info: libc::signalfd_siginfo = std::mem::zeroed();
            let size = size_of::<libc::signalfd_siginfo>();
            let n = libc::read(fd, std::ptr::from_mut(&mut info).cast(), size);
            if n == size as isize { info.ssi_signo } else { return }
        };
        if let Ok(signal) = Signal::try_from(signo as i32) {
            self.kill_task(signal);
        }
    }

    fn kill_task(&self, signal: Signal) {
        if let Some(&pid) = self.task.get() {
            let _ = killpg(pid, signal);
        }
    }

    fn destroy(&self) {
        for plugin in self.plugins.take() {
            plugin.destroy();
        }
        self.handle.aux.destroy();
    }

    fn log(&self, component: Option<&str>, level: c_int, text: &str) {
        if level > NOTICE + self.verbose() {
            return;
        }
        let label = match level {
            ..=2 => ": FATAL",
            3 => ": ERROR",
            4 => ":  WARN",
            5 => "",
            6 => ": DEBUG",
            _ => ": TRACE",
        };
        let component = component.map(|component| format!(": {component}")).unwrap_or_default();
        let line = format!(
            "flux-shell[{}]{label}{component}: {}\n",
            self.rank(),
            text.trim_end_matches('\n')
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    /// Logs, raises an exception on the job, and ends the shell.
    fn fatal(&self, component: Option<&str>, code: i32, text: &str) -> ! {
        self.log(component, FATAL, text);
        self.kill_task(Signal::SIGKILL);
        if !self.exception_raised.replace(true) {
            let payload = json!({"id": self.jobid().0, "type": "exec", "severity": 0, "note": text});
            let (future, done) = self.handle.future();
            self.request(
                "job-manager.raise".into(),
                crate::instance::json_payload(&payload),
                done,
            );
            if let Err(failure) = future.outcome() {
                eprintln!("flux-shell: failed to raise job exception: {}", failure.text);
            }
        }
        exit(code)
    }

    /// Handles messages from the instance. Returns an error when the connection has ended.
    fn receive(&self) -> Result<(), c_int> {
        let Some(messages) = self.channel.receive() else {
            self.connected.set(false);
            for done in self.pending.take().into_values() {
                done(Err(Failure::errno(libc::ECONNRESET)));
            }
            return Err(libc::ECONNRESET);
        };
        for message in messages {
            if let Some(all_entered) = message["barrier"].as_bool() {
                self.barrier.set(Some(all_entered));
            }
            let done = message["seq"]
                .as_u64()
                .and_then(|seq| self.pending.borrow_mut().remove(&seq));
            if let Some(done) = done {
                done(match message["errnum"].as_i64() {
                    Some(errnum) => Err(Failure::new(errnum as c_int, message["errstr"].as_str().unwrap_or(""))),
                    None => Ok(message["payload"].as_str().map(cstring)),
                });
            }
        }
        Ok(())
    }

    /// Returns the current info object, borrowed.
    fn info_json(&self) -> *mut c_void {
        let mut versions = self.info.borrow_mut();
        if self.info_stale.replace(false) {
            match Json::parse(&self.info_value().to_string()) {
                Ok(info) => versions.push(info),
                Err(_) => set_errno(libc::EINVAL),
            }
        }
        versions.last().map_or(std::ptr::null_mut(), Json::as_ptr)
    }

    fn info_value(&self) -> Value {
        json!({
            "jobid": self.jobid().0,
            "rank": self.rank(),
            "instance_owner": self.init["instance_owner"],
            "size": self.size(),
            "ntasks": self.size(),
            "service": format!("{}-shell-{}", self.init["userid"], self.jobid()),
            "jobspec": *self.jobspec.borrow(),
            "R": self.init["R"],
            "options": {"verbose": self.verbose()},
        })
    }
}

impl Broker for Shell {
    fn log(&self, level: c_int, text: &str) {
        self.channel.send(&json!({"log": {"level": level, "text": text}}));
    }

    fn request(&self, topic: String, payload: Option<CString>, done: Done) {
        if !self.connected.get() {
            return done(Err(Failure::errno(libc::ECONNRESET)));
        }
        let seq = self.next_seq.get();
        self.next_seq.set(seq + 1);
        self.pending.borrow_mut().insert(seq, done);
        let payload = payload.map(|payload| payload.to_string_lossy().into_owned());
        self.channel
            .send(&json!({"seq": seq, "topic": topic, "payload": payload}));
    }

    fn commit(&self, _txn: Txn, done: Done) {
        done(Err(Failure::new(
            libc::EPERM,
            "a job shell has no access to the primary namespace",
        )));
    }

    fn lookup(&self, _key: String, done: Done) {
        done(Err(Failure::new(
            libc::EPERM,
            "a job shell has no access to the primary namespace",
        )));
    }

    fn progress(&self, deadline: Option<Instant>) -> Result<(), c_int> {
        let timeout = match deadline {
            None => -1,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(libc::ETIMEDOUT);
                }
                c_int::try_from(left.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX)
            }
        };
        match wait_readable(&self.channel, timeout) {
            true => self.receive(),
            false => Err(libc::ETIMEDOUT),
        }
    }
}

/// Returns the object at a path in a JSON value. Replaces values that are not objects.
fn object_at<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Map<String, Value> {
    let object = as_object(value);
    match path.split_first() {
        Some((first, rest)) => object_at(object.entry(*first).or_insert(Value::Null), rest),
        None => object,
    }
}

fn as_object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("it was made an object"),
    }
}

/// Returns the shell behind a C pointer.
///
/// # Safety
/// `shell` is NULL or the shell of this process.
unsafe fn shell<'a>(shell: *mut flux_shell_t) -> Option<&'a Shell> {
    c::check_thread();
    // SAFETY: as promised by the caller; a flux_shell_t is only ever made from the Rc<Shell> of this process.
    unsafe { shell.cast::<Shell>().cast_const().as_ref() }
}

/// flux_plugin_get_shell(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_get_shell(p: *mut flux_plugin_t) -> *mut flux_shell_t {
    // SAFETY: the caller passes NULL or a loaded plugin.
    match unsafe { plugin(p) }.map(|plugin| &plugin.home) {
        Some(Home::Shell(shell)) => shell.as_ptr().cast_mut().cast(),
        _ => {
            set_errno(libc::ENOENT);
            std::ptr::null_mut()
        }
    }
}

/// flux_shell_get_flux(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_shell_get_flux(sh: *mut flux_shell_t) -> *mut flux_t {
    // SAFETY: the caller passes NULL or the shell.
    match unsafe { shell(sh) } {
        Some(shell) => shell.handle.as_ptr(),
        None => {
            set_errno(libc::EINVAL);
            std::ptr::null_mut()
        }
    }
}

/// flux_shell_killall(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_shell_killall(sh: *mut flux_shell_t, sig: c_int) {
    // SAFETY: the caller passes NULL or the shell.
    let task = unsafe { shell(sh) }.and_then(|shell| shell.task.get());
    if let (Some(task), Ok(signal)) = (task, Signal::try_from(sig)) {
        // The task may have ended.
        let _ = killpg(*task, signal);
    }
}

/// flux_shell_get_info(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_shell_get_info(sh: *mut flux_shell_t, json_str: *mut *mut c_char) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let (Some(shell), false) = (shell(sh), json_str.is_null()) else {
            return fail(libc::EINVAL);
        };
        *json_str = malloced(&shell.info_value().to_string());
    }
    0
}

/// flux_shell_getopt(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_shell_getopt(
    sh: *mut flux_shell_t,
    name: *const c_char,
    json_str: *mut *mut c_char,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    unsafe {
        let (Some(shell), Some(name)) = (shell(sh), c::string(name)) else {
            return fail(libc::EINVAL);
        };
        let Some(value) = shell.option(&name) else { return 0 };
        if !json_str.is_null() {
            *json_str = malloced(&value.to_string());
        }
    }
    1
}

/// flux_shell_setopt(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_shell_setopt(
    sh: *mut flux_shell_t,
    name: *const c_char,
    json_str: *const c_char,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers.
    let (shell, name, text) = unsafe { (shell(sh), c::string(name), c::string(json_str)) };
    let (Some(shell), Some(name)) = (shell, name) else {
        return fail(libc::EINVAL);
    };
    let value = match text.map(|text| Json::parse(&text)) {
        None => None,
        Some(Ok(json)) => Some(json.value()),
        // Flux leaves errno undefined in this case.
        Some(Err(_)) => return fail(libc::EINVAL),
    };
    match shell.set_option(&name, value) {
        true => 0,
        false => -1,
    }
}

/// Returns the option that flux_shell_getopt_unpack(3) reads, borrowed, or NULL.
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_shell_option(sh: *mut flux_shell_t, name: *const c_char) -> *mut c_void {
    // SAFETY: the shim passes on the arguments of its caller.
    let (shell, name) = unsafe { (shell(sh), c::string(name)) };
    let option = shell.and_then(|shell| Some((shell, shell.option(&name?)?)));
    let Some((shell, Ok(json))) = option.map(|(shell, value)| (shell, Json::parse(&value.to_string()))) else {
        return std::ptr::null_mut();
    };
    let pointer = json.as_ptr();
    shell.options.borrow_mut().push(json);
    pointer
}

/// Returns the object that flux_shell_info_unpack(3) reads, borrowed.
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_shell_info(sh: *mut flux_shell_t) -> *mut c_void {
    // SAFETY: the shim passes on the shell of its caller.
    unsafe { shell(sh) }.map_or(std::ptr::null_mut(), Shell::info_json)
}

/// The second part of flux_shell_setenvf(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_shell_setenv(
    sh: *mut flux_shell_t,
    overwrite: c_int,
    name: *const c_char,
    value: *const c_char,
) -> c_int {
    // SAFETY: the shim passes on the arguments of its caller, and a string of its own.
    unsafe {
        let (Some(shell), Some(name)) = (shell(sh), c::string(name)) else {
            return fail(libc::EINVAL);
        };
        // The environment is a JSON object, which contains only UTF-8.
        let Ok(value) = CStr::from_ptr(value).to_str() else {
            return fail(libc::ENOMEM);
        };
        shell.set_env(overwrite != 0, &name, value);
    }
    0
}

/// Returns the shell of this process. Outside a shell, messages go to standard error.
fn this_shell() -> Option<Rc<Shell>> {
    SHELL.with_borrow(Clone::clone)
}

/// The second part of flux_shell_log(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_shell_log(
    component: *const c_char,
    level: c_int,
    _file: *const c_char,
    _line: c_int,
    text: *const c_char,
) {
    // SAFETY: the shim passes on the arguments of its caller, and a string of its own.
    let (component, text) = unsafe { (c::string(component), c::string(text).unwrap_or_default()) };
    match this_shell() {
        Some(shell) => shell.log(component.as_deref(), level, &text),
        None => eprintln!("flux-shell: {text}"),
    }
}

/// The second part of flux_shell_fatal(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn sim_shell_fatal(
    component: *const c_char,
    _file: *const c_char,
    _line: c_int,
    exit_code: c_int,
    text: *const c_char,
) {
    // SAFETY: the shim passes on the arguments of its caller, and a string of its own.
    let (component, text) = unsafe { (c::string(component), c::string(text).unwrap_or_default()) };
    match this_shell() {
        Some(shell) => shell.fatal(component.as_deref(), exit_code, &text),
        None => eprintln!("flux-shell: FATAL: {text}"),
    }
    exit(exit_code)
}
