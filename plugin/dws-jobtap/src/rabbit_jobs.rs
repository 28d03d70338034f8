// SPDX-License-Identifier: MIT OR Apache-2.0

//! The state of the plugin: the active rabbit jobs, the stage of each, and the failure of a job.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ffi::CStr,
    io,
    rc::Rc,
};

use config::Part;
use ffi::{Args, JobId, Jobtap, KeptRequest, LogLevel, PendingFuture, Plugin, PluginError, Watcher};
use plugin::{Engine, Identity};
use serde_json::Value;

use crate::{
    lifecycle::{EpilogEvent, Knowledge, KnowledgeEvent, Lifecycle, Machine, PrologEvent, ShellsEvent, WorkflowEvent},
    orphans::Orphans,
};

pub const DEPENDENCY: &CStr = c"dws-create";
pub const PROLOG: &CStr = c"dws-setup";
pub const EPILOG: &CStr = c"dws-epilog";
/// The exception that ends an epilog. If the instance owner raises it, the service disables rabbits and drains nodes.
pub const EPILOG_TIMEOUT: &CStr = c"dws-epilog-timeout";
/// The event with the names of a job's variables.
pub const EVENT: &CStr = c"dws_environment";

/// The event in which the service names the existing Workflow of a job, and the key of the name.
pub const MEMO: &str = "memo";
pub const MEMO_WORKFLOW: &str = "rabbit_workflow";

/// The attribute with the directives of a rabbit job.
pub const DW: [&str; 4] = ["jobspec", "attributes", "system", "dw"];

/// The pause before an absent service is called again, in seconds.
pub const AGAIN: f64 = 5.0;

pub static DWS: Identity = Identity {
    name: "dws",
    prolog: PROLOG,
    key: seal::key::DWS_ENVIRONMENT,
    looks_for_records: true,
    what: "environment from DWS",
    part: Part::Rabbits,
    handover: c"workflow-token::dws-handover",
    active: c"workflow-token::dws-active",
    events: &[MEMO],
};

/// The rabbit jobs of the instance.
pub struct RabbitJobs {
    pub engine: Rc<Engine>,
    pub jobs: RefCell<HashMap<JobId, RabbitJob>>,
    /// In seconds. If it is not positive, epilogs have no timeout.
    pub epilog_timeout: f64,
    /// The jobs in the handover for which Flux has not called `job.new` yet; none without a former plugin in this job
    /// manager.
    pub inherited: RefCell<Option<HashMap<JobId, Lifecycle>>>,
    pub orphans: Orphans,
    /// Set after the absence of the service was logged, and cleared when the service answers.
    pub no_service: Cell<bool>,
    pub counts: Counts,
}

#[derive(Default)]
pub struct Counts {
    pub created: Cell<u64>,
    pub set_up: Cell<u64>,
    pub torn_down: Cell<u64>,
}

/// An active rabbit job.
#[derive(Default)]
pub struct RabbitJob {
    pub uid: u32,
    pub life: Lifecycle,
    /// Set if this plugin receives the events of the job.
    subscribed: bool,
    /// Requests about the job that wait until its eventlog is read.
    waiting: Vec<Waiting>,
    /// Requests of the service that are answered when the prolog finishes.
    pub requests: Vec<Unanswered>,
    pub calls: HashMap<Call, PendingFuture>,
    /// The timeout of the epilog.
    pub timer: Option<Watcher>,
    /// The timer for the next call of the service.
    pub later: Option<Watcher>,
}

/// Runs once the state of a job is known.
pub type Waiting = Box<dyn FnOnce(&Rc<RabbitJobs>)>;

/// A pending call for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    Create,
    Resources,
    Setup,
    PostRun,
    Record,
}

impl Call {
    /// Returns the name with which tests inject a fault into the reply.
    pub fn fault(self) -> &'static str {
        match self {
            Call::Create => "answer-create",
            Call::Resources => "answer-resources",
            Call::Setup => "answer-setup",
            Call::PostRun => "answer-post-run",
            Call::Record => "answer-record",
        }
    }
}

/// A pending request of the service. If it is dropped, the service gets an error.
pub struct Unanswered(pub Option<KeptRequest>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(request) = self.0.take() {
            let why = "the job has ended, or the plugin dws-jobtap is being removed";
            // An error cannot be reported to anyone else.
            let _ = request.refuse(nix::errno::Errno::EINVAL as i32, why);
        }
    }
}

impl RabbitJobs {
    /// Reads the configuration of the plugin: its own key, and overrides for the engine.
    ///
    /// # Errors
    /// The engine rejects the overrides.
    pub fn new(jobtap: Jobtap<'static>, plugin: Plugin<'_>) -> io::Result<Self> {
        let conf = plugin.conf()?;
        let mut keys = conf.as_object().cloned().unwrap_or_default();
        let timeout = keys.remove("epilog-timeout");
        let overrides = if keys.is_empty() {
            Value::Null
        } else {
            Value::Object(keys)
        };
        let engine = Engine::new(&DWS, jobtap, plugin, overrides);
        let epilog_timeout = match (&timeout, timeout.as_ref().and_then(Value::as_f64)) {
            (_, Some(seconds)) if seconds.is_finite() => seconds,
            (None, _) => {
                if conf.is_null() {
                    engine.log(
                        LogLevel::Info,
                        "failed to unpack config: there is none: epilogs have no timeout",
                    );
                }
                0.0
            }
            (Some(_), _) => {
                let line =
                    "failed to unpack config: epilog-timeout must be a number of seconds: epilogs have no timeout";
                engine.log(LogLevel::Err, line);
                0.0
            }
        };
        engine.log(LogLevel::Info, &format!("epilog timeout = {epilog_timeout:.3}s"));
        Ok(Self {
            engine,
            jobs: RefCell::default(),
            epilog_timeout,
            inherited: RefCell::default(),
            orphans: Orphans::default(),
            no_service: Cell::default(),
            counts: Counts::default(),
        })
    }

    pub fn jobtap(&self) -> Jobtap<'static> {
        self.engine.jobtap()
    }

    // The state of a job

    /// Returns the job of a callback, if it is a rabbit job.
    pub fn rabbit_job(&self, args: &Args<'_>) -> Option<JobId> {
        let (job, uid, _) = args.job_owner_state()?;
        if !args.has(&DW) {
            return None;
        }
        self.jobs.borrow_mut().entry(job).or_default().uid = uid;
        Some(job)
    }

    pub fn with<T: Default>(&self, job: JobId, f: impl FnOnce(&mut RabbitJob) -> T) -> T {
        self.jobs.borrow_mut().get_mut(&job).map(f).unwrap_or_default()
    }

    pub fn life(&self, job: JobId) -> Lifecycle {
        self.with(job, |rabbit| rabbit.life)
    }

    /// Applies an event to a state machine of a job. Returns false if the event is ignored.
    fn on<M: Machine>(&self, job: JobId, machine: fn(&mut Lifecycle) -> &mut M, event: M::Event) -> bool {
        self.with(job, |rabbit| machine(&mut rabbit.life).on(event))
    }

    pub fn on_workflow(&self, job: JobId, event: WorkflowEvent) -> bool {
        self.on(job, |life| &mut life.workflow, event)
    }

    pub fn on_shells(&self, job: JobId, event: ShellsEvent) -> bool {
        self.on(job, |life| &mut life.shells, event)
    }

    pub fn on_prolog(&self, job: JobId, event: PrologEvent) -> bool {
        self.on(job, |life| &mut life.prolog, event)
    }

    pub fn on_epilog(&self, job: JobId, event: EpilogEvent) -> bool {
        self.on(job, |life| &mut life.epilog, event)
    }

    pub fn has_started(&self, job: JobId) -> bool {
        self.life(job).shells.have_started() || self.jobtap().was_posted(job, c"start")
    }

    /// Reads the eventlog of a job in an unknown state.
    pub fn read_eventlog(&self, job: JobId) {
        self.on(job, |life| &mut life.knowledge, KnowledgeEvent::Lost);
        Engine::read_eventlog(&self.engine, job);
    }

    /// Records that the state of a job is known. Returns the functions that wait for it.
    pub fn now_known(&self, job: JobId) -> Vec<Waiting> {
        self.engine.forget_eventlog(job);
        self.on(job, |life| &mut life.knowledge, KnowledgeEvent::Gained);
        self.with(job, |rabbit| std::mem::take(&mut rabbit.waiting))
    }

    /// Calls `f` once the state of a job is known, possibly at once.
    pub fn when_known(self: &Rc<Self>, job: JobId, f: impl FnOnce(&Rc<Self>) + 'static) {
        let mut jobs = self.jobs.borrow_mut();
        if let Some(rabbit) = jobs
            .get_mut(&job)
            .filter(|rabbit| rabbit.life.knowledge == Knowledge::Reading)
        {
            rabbit.waiting.push(Box::new(f));
            return;
        }
        drop(jobs);
        f(self);
    }

    /// Subscribes this plugin to the events of a job, once.
    pub fn subscribe(&self, job: JobId) -> Result<(), PluginError> {
        if self.with(job, |rabbit| std::mem::replace(&mut rabbit.subscribed, true)) {
            return Ok(());
        }
        self.jobtap().subscribe(job).map_err(|e| {
            self.with(job, |rabbit| rabbit.subscribed = false);
            let line = "dws-jobtap: error initializing exception-monitoring";
            self.engine.log(LogLevel::Err, &format!("{job}: {line}: {e}"));
            self.raise_current(job, line)
        })
    }

    // Exceptions

    /// Raises the exception of a failed callback, and returns its error.
    pub fn raise_current(&self, job: JobId, text: &str) -> PluginError {
        self.raise(job, c"dws", text);
        PluginError(text.to_owned())
    }

    /// Raises the exception of a job whose Workflow failed.
    pub fn fail(&self, job: JobId, kind: &CStr, why: &str) {
        self.raise(job, kind, &format!("DWS workflow interactions failed: {why}"));
    }

    pub fn raise(&self, job: JobId, kind: &CStr, text: &str) {
        if let Err(e) = self.jobtap().raise(job, kind, 0, text) {
            let line = format!("{job}: the exception could not be raised: {e}: {text}");
            self.engine.log(LogLevel::Err, &line);
        }
    }

    /// Calls `f`. If it panics, fails the job.
    pub fn unless_it_panics(&self, job: JobId, f: impl FnOnce()) {
        let done = ffi::guard(false, || {
            f();
            true
        });
        if !done {
            ffi::guard((), || self.fault(job));
        }
    }

    /// Fails a job after a panic. The callback of the exception finishes the prolog or epilog.
    pub fn fault(&self, job: JobId) {
        let line = format!("{job}: an internal error: see its location in the broker's output");
        self.engine.log(LogLevel::Err, &line);
        // Without it, the plugin does not receive the exception. An error is logged.
        let _ = self.subscribe(job);
        let text = "an internal error of the plugin dws-jobtap: if this goes on, ask the operators: the cause is in the log of \
                    Flux";
        self.raise(job, c"dws", text);
    }
}
