// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs one job in its own instance, in a temporary directory.
//!
//! Imitates the user's view of `flux run`: the output of the job, an exception as `flux job attach` prints it, and the
//! exit code of the job.

use std::cell::Cell;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::process::ExitCode;
use std::rc::Rc;

use nix::unistd::User;
use serde_json::{Map, Value, json};

use crate::Plugins;
use crate::control;
use crate::exec::Stream;
use crate::instance::Instance;
use crate::job::{self, Job, State};

#[derive(clap::Args)]
/// The options of `run`.
pub struct Args {
    /// Run the job as this user (needs root)
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    plugins: Plugins,
    /// The number of nodes, each with a job shell
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=job::NODES_MAX))]
    nodes: u64,
    /// An option for the job shell
    #[arg(short = 'o', long = "setopt", value_name = "OPT[=VAL]")]
    option: Vec<String>,
    /// An attribute of the job, below attributes.system unless it starts with a dot
    #[arg(long, value_name = "KEY=VAL")]
    setattr: Vec<String>,
    /// The command and its arguments
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

impl Args {
    fn jobspec(&self) -> Value {
        let environment: Map<String, Value> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, json!(value.into_string().ok()?))))
            .collect();
        let mut attributes = json!({"system": {"shell": {"options": {}}}});
        if let Ok(cwd) = std::env::current_dir() {
            attributes["system"]["cwd"] = json!(cwd.to_string_lossy());
        }
        for (prefix, settings) in [("system.shell.options.", &self.option), ("system.", &self.setattr)] {
            for setting in settings {
                let (key, value) = setting.split_once('=').unwrap_or((setting, "1"));
                let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
                let path = match key.strip_prefix('.') {
                    Some(path) => path.to_owned(),
                    None => format!("{prefix}{key}"),
                };
                set(&mut attributes, &path, value);
            }
        }
        job::jobspec(&self.command, self.nodes, environment.into(), &attributes)
    }
}

/// Sets a value under a path with dots. Replaces values on the path that are not objects.
fn set(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for key in path.split('.') {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[key];
    }
    *place = value;
}

/// Runs a job.
pub fn main(args: &Args) -> Result<ExitCode, String> {
    let owner = nix::unistd::geteuid().as_raw();
    let userid = match &args.user {
        None => owner,
        Some(name) => match User::from_name(name) {
            Ok(Some(user)) => user.uid.as_raw(),
            _ => return Err(format!("{name}: no such user")),
        },
    };
    let signals = control::signals()?;
    let statedir = tempfile::tempdir().map_err(|e| format!("cannot make a directory for the instance: {e}"))?;
    let instance = Instance::start(statedir.path(), &args.plugins)?;
    let job = Rc::new(Cell::new(None::<Result<Rc<Job>, String>>));

    let (submitted, weak) = (job.clone(), instance.me.clone());
    instance.submit(
        userid,
        16,
        args.jobspec(),
        Box::new(move |result| {
            let found = result.and_then(|id| {
                weak.upgrade()
                    .and_then(|instance| instance.job(id))
                    .ok_or_else(|| "the job no longer exists".to_owned())
            });
            submitted.set(Some(found));
        }),
    );

    let reactor = instance.handle.reactor.clone();
    let weak = instance.me.clone();
    let signal_fd = signals.as_fd().as_raw_fd();
    let _signals = reactor.watch(signal_fd, move || {
        let _ = signals.read_signal();
        let Some(instance) = weak.upgrade() else { return };
        for job in instance.active_jobs() {
            instance.raise(&job, "cancel", 0, "interrupted by ctrl-C", instance.owner);
        }
    });
    let mut view = View::default();
    reactor.run(|| match job.take() {
        Some(Ok(found)) => {
            if view.show(&instance, &found) {
                reactor.stop();
            }
            job.set(Some(Ok(found)));
        }
        Some(Err(error)) => {
            view.error = Some(error);
            reactor.stop();
        }
        None => (),
    });
    instance.shutdown();
    match view.error {
        Some(error) => Err(error),
        None => Ok(ExitCode::from(if instance.has_failed() { 1 } else { view.exit_code() })),
    }
}

/// The output and events of the job that were already shown.
#[derive(Default)]
struct View {
    events: usize,
    output: usize,
    start: f64,
    status: Option<i64>,
    fatal: bool,
    error: Option<String>,
}

impl View {
    /// Shows new output and events. Returns true if the job has ended.
    fn show(&mut self, instance: &Instance, job: &Job) -> bool {
        for (stream, bytes) in instance.exec.output_after(job.id, self.output) {
            self.output += 1;
            let _ = match stream {
                Stream::Stdout => std::io::stdout()
                    .write_all(&bytes)
                    .and_then(|()| std::io::stdout().flush()),
                Stream::Stderr => std::io::stderr().write_all(&bytes),
            };
        }
        let entries = job.eventlog.borrow();
        for entry in &entries[self.events..job.committed.get()] {
            let context = &entry.context;
            match entry.name.as_str() {
                "submit" => self.start = entry.timestamp,
                "exception" => {
                    let (kind, note) = (
                        context["type"].as_str().unwrap_or(""),
                        context["note"].as_str().unwrap_or(""),
                    );
                    let (severity, time) = (&context["severity"], entry.timestamp - self.start);
                    eprintln!(
                        "{time:.3}s: job.exception {} type={kind} severity={severity} {note}",
                        job.id
                    );
                    self.fatal |= *severity == 0;
                }
                "finish" => {
                    self.status = context["status"].as_i64();
                    match self.exit_code() {
                        0 => (),
                        code if code > 128 => eprintln!("flux-job: task(s) {}", signal_name(code - 128)),
                        code => eprintln!("flux-job: task(s) exited with exit code {code}"),
                    }
                }
                _ => (),
            }
        }
        self.events = job.committed.get();
        job.state.get() == State::Inactive && self.events == entries.len()
    }

    /// Returns the exit code of `flux job attach`: 1 for a job that received an exception before it could fail by
    /// itself.
    fn exit_code(&self) -> u8 {
        let code = match self.status {
            None => 1,
            Some(status) if status & 0x7f != 0 => 128 + (status & 0x7f),
            Some(status) => (status >> 8) & 0xff,
        };
        if code == 0 && self.fatal { 1 } else { code as u8 }
    }
}

fn signal_name(signal: u8) -> String {
    // SAFETY: strsignal returns a string that is valid until the next call in this thread; it is copied at once.
    unsafe { crate::c::string(libc::strsignal(signal.into())) }.unwrap_or_default()
}
