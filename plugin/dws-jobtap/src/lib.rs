//! `dws-jobtap.so` for the job manager: the life of a rabbit job, between the job manager and the service for Data Workflow Services.
//!
//! A rabbit job is one with the attribute `system.dw`. The service (flux-coral2-dws) creates, sets up and tears down its
//! workflow in Kubernetes, and this plugin holds the job meanwhile:
//!
//! ```text
//! DEPEND   dependency dws-create ── dws.create ──► service ── resource-update ──► jobspec updated, dependency removed
//! RUN      prolog dws-setup ─────── dws.setup ───► service ── prolog-remove ────► variables sealed and committed,
//!                                                                                 event with their names, prolog finished
//! CLEANUP  epilog dws-epilog ────── dws.post_run ► service ── epilog-remove ────► epilog finished
//! ```
//!
//! An exception in the prolog finishes it; one in the epilog has the workflow torn down at once (`dws.teardown`); the
//! exception `dws-epilog-timeout`, which comes when the option `epilog-timeout` says so, finishes the epilog and has the
//! service disable what was not cleaned up (`dws.abort`).
//!
//! Where it is not known how far a job is, as after a restart, its eventlog is read. A job that comes to CLEANUP meanwhile is
//! held by its epilog, of which the service hears when it is known whether shells are running.
//!
//! A prolog is finished only where it is known to be outstanding: Flux counts prologs, and one finish too many would
//! finish that of somebody else.

mod constraints;
mod depend;
mod epilog;
mod lifecycle;
mod orphans;
mod prolog;
mod request;
mod resume;
mod service;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ffi::CStr,
    io,
    rc::Rc,
};

use config::Part;
use ffi::{
    Args, JobId, JobState, Jobtap, KeptRequest, LogLevel, PendingFuture, Plugin, PluginError, Watcher, guard,
    raw::flux_plugin_t,
};
use plugin::{Engine, Eventlog, Handover, Hooks, Identity};
use protocol::Failure;
use serde_json::{Value, json};

use lifecycle::{Epilog, Lifecycle, Machine, Prolog, PrologEvent, WorkflowEvent};

const DEPENDENCY: &CStr = c"dws-create";
const PROLOG: &CStr = c"dws-setup";
const EPILOG: &CStr = c"dws-epilog";
/// The exception that ends an epilog, if the instance owner raises it: the service then disables rabbits and drains nodes.
const EPILOG_TIMEOUT: &CStr = c"dws-epilog-timeout";
/// The event that tells the names of a job's variables.
const EVENT: &CStr = c"dws_environment";

/// The event by which the service names the Workflow of a job, once that exists, and the key that it has there.
const MEMO: &str = "memo";
const MEMO_WORKFLOW: &str = "rabbit_workflow";

/// After how many seconds the service is asked again, if it was not there.
const AGAIN: f64 = 5.0;

/// Where a job says that it is a rabbit job.
const DW: [&str; 4] = ["jobspec", "attributes", "system", "dw"];

static DWS: Identity = Identity {
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

/// The state of the plugin.
struct Dws(Rc<Rabbits>);

struct Rabbits {
    engine: Rc<Engine>,
    jobs: RefCell<HashMap<JobId, Rabbit>>,
    /// In seconds; none if not positive.
    epilog_timeout: f64,
    /// What the plugin that was loaded before left, until the jobs are known again; nothing if there was none.
    left: RefCell<Option<HashMap<JobId, Lifecycle>>>,
    orphans: orphans::Orphans,
    /// Whether it was said that a job waits for the service.
    no_service: Cell<bool>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    created: Cell<u64>,
    set_up: Cell<u64>,
    torn_down: Cell<u64>,
}

/// A rabbit job that is active.
#[derive(Default)]
struct Rabbit {
    uid: u32,
    life: Lifecycle,
    /// Whether this plugin is called for its events.
    subscribed: bool,
    /// What is asked of it while its eventlog is read.
    waiting: Vec<Waiting>,
    /// Who is waiting to hear that the prolog is finished.
    requests: Vec<Asker>,
    calls: HashMap<Call, PendingFuture>,
    /// When its epilog is over, and when the service is asked again.
    timer: Option<Watcher>,
    later: Option<Watcher>,
}

/// What is done once it is known how far a job is.
type Waiting = Box<dyn FnOnce(&Rc<Rabbits>)>;

/// What is asked of others for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Call {
    Create,
    Resources,
    Setup,
    PostRun,
    Record,
}

impl Call {
    /// What it is called where tests have its answer come upon a fault.
    fn name(self) -> &'static str {
        match self {
            Call::Create => "answer-create",
            Call::Resources => "answer-resources",
            Call::Setup => "answer-setup",
            Call::PostRun => "answer-post-run",
            Call::Record => "answer-record",
        }
    }
}

/// A request that waits for its answer. It gets one whatever becomes of the job.
struct Asker(Option<KeptRequest>);

impl Drop for Asker {
    fn drop(&mut self) {
        if let Some(request) = self.0.take() {
            let why = "the job has ended, or the plugin dws-jobtap is being removed";
            // Nobody else would be told.
            let _ = request.refuse(nix::errno::Errno::EINVAL as i32, why);
        }
    }
}

/// What the job manager calls when it has loaded the object, flux-jobtap-plugins(7).
///
/// # Safety
/// `p` is the plugin that the object was loaded for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_plugin_init(p: *mut flux_plugin_t) -> i32 {
    guard(-1, || {
        // SAFETY: the plugin lives until its object is unmapped, and everything that keeps it is destroyed before.
        let this = unsafe { Plugin::borrow(p) };
        plugin::load(this, "dws", load)
    })
}

/// Loads the plugin.
fn load(plugin: Plugin<'static>) -> io::Result<()> {
    plugin.set_name(c"dws")?;
    let jobtap = Jobtap::new(plugin).ok_or_else(|| io::Error::other("it is a plugin for the job manager"))?;
    let dws = plugin.keep(Dws::new(jobtap, plugin)?)?;
    plugin.handle(c"conf.update", &dws, |d: &Dws, _, args| d.0.configure(args))?;
    plugin.handle(c"job.new", &dws, |d: &Dws, _, args| d.0.job_new(args))?;
    plugin.handle(c"job.state.depend", &dws, |d: &Dws, _, args| d.0.depend(args))?;
    plugin.handle(c"job.state.run", &dws, |d: &Dws, _, args| d.0.run(args))?;
    plugin.handle(c"job.state.cleanup", &dws, |d: &Dws, _, args| d.0.cleanup(args))?;
    plugin.handle(c"job.state.inactive", &dws, |d: &Dws, _, args| d.0.inactive(args))?;
    plugin.handle(c"job.event.finish", &dws, |d: &Dws, _, args| d.0.finish(args))?;
    plugin.handle(c"job.event.release", &dws, |d: &Dws, _, args| d.0.release(args))?;
    plugin.handle(c"job.event.memo", &dws, |d: &Dws, _, args| d.0.memo(args))?;
    plugin.handle(c"job.event.exception", &dws, |d: &Dws, _, args| d.0.exception(args))?;
    plugin.handle(c"plugin.query", &dws, |d: &Dws, _, args| d.0.query(args))?;
    jobtap.serve(c"resource-update", &dws, |d: &Dws, request| {
        d.0.resource_update(request)
    })?;
    jobtap.serve(c"prolog-remove", &dws, |d: &Dws, request| d.0.prolog_remove(request))?;
    jobtap.serve(c"epilog-remove", &dws, |d: &Dws, request| d.0.epilog_remove(request))
}

impl Dws {
    fn new(jobtap: Jobtap<'static>, plugin: Plugin<'_>) -> io::Result<Self> {
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
        let rabbits = Rc::new(Rabbits {
            engine,
            jobs: RefCell::default(),
            epilog_timeout,
            left: RefCell::default(),
            orphans: orphans::Orphans::default(),
            no_service: Cell::default(),
            counts: Counts::default(),
        });
        let hooks = Rc::downgrade(&rabbits);
        rabbits.engine.hook(hooks);
        Ok(Self(rabbits))
    }
}

impl ffi::State for Dws {
    fn panicked(&self, topic: &CStr, args: &Args<'_>) {
        self.0.panicked(topic, args);
    }

    fn request_panicked(&self, payload: Option<&str>) {
        if let Some(job) = request::job(payload) {
            self.0.fault(job);
        }
    }
}

impl Drop for Dws {
    fn drop(&mut self) {
        self.0.engine.end();
    }
}

impl Hooks for Rabbits {
    fn resume(self: Rc<Self>, job: JobId, eventlog: &Eventlog) {
        if self.orphans.contains(job) {
            self.orphan_unless_it_panics(|| self.resume_orphan(job, eventlog));
        } else {
            self.unless_it_panics(job, || {
                ffi::inject_fault("answer-eventlog");
                self.resume_from(job, eventlog);
            });
        }
    }

    fn leave(&self, handover: &mut Handover) {
        handover.own = self.leave_jobs();
    }

    fn failed(&self, job: JobId, why: &Failure) {
        self.engine.prologs.log_failure(job, why);
        self.undelivered(job, why);
    }
}

impl Rabbits {
    fn configure(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let first = !self.engine.is_active();
        self.engine.configure(args)?;
        if first {
            self.take_over();
        }
        Ok(())
    }

    fn jobtap(&self) -> Jobtap<'static> {
        self.engine.jobtap()
    }

    fn query(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let mut answer = self.engine.counters();
        let count = |which: fn(&Rabbit) -> bool| self.jobs.borrow().values().filter(|rabbit| which(rabbit)).count();
        answer["epilog-timeout"] = json!(self.epilog_timeout);
        answer["jobs"] = json!({
            "active": self.jobs.borrow().len(),
            "in-prolog": count(|rabbit| rabbit.life.prolog.is_outstanding()),
            "in-epilog": count(|rabbit| rabbit.life.epilog.is_outstanding()),
            "gone": self.orphans.count(),
        });
        answer["created"] = json!(self.counts.created.get());
        answer["set-up"] = json!(self.counts.set_up.get());
        answer["torn-down"] = json!(self.counts.torn_down.get());
        args.answer(&answer);
        Ok(())
    }

    // What is known of a job

    /// The job of a callback, if it is a rabbit job.
    fn rabbit_job(&self, args: &Args<'_>) -> Option<JobId> {
        let (job, uid, _) = args.job_owner_state()?;
        if !args.has(&DW) {
            return None;
        }
        self.jobs.borrow_mut().entry(job).or_default().uid = uid;
        Some(job)
    }

    fn with<T: Default>(&self, job: JobId, f: impl FnOnce(&mut Rabbit) -> T) -> T {
        self.jobs.borrow_mut().get_mut(&job).map(f).unwrap_or_default()
    }

    /// Applies an event to one of the state machines of a job. Returns whether it was not ignored.
    fn on<M: Machine>(&self, job: JobId, machine: fn(&mut Lifecycle) -> &mut M, event: M::Event) -> bool {
        self.with(job, |rabbit| machine(&mut rabbit.life).on(event))
    }

    fn on_prolog(&self, job: JobId, event: PrologEvent) -> bool {
        self.on(job, |life| &mut life.prolog, event)
    }

    fn life(&self, job: JobId) -> Lifecycle {
        self.with(job, |rabbit| rabbit.life)
    }

    /// Has this plugin called for the events of a job, once.
    fn subscribe(&self, job: JobId) -> Result<(), PluginError> {
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

    // Faults of this plugin

    /// A callback has panicked. The job manager goes on whatever it returned, so the job is ended here.
    fn panicked(self: &Rc<Self>, topic: &CStr, args: &Args<'_>) {
        let Some((job, _, state)) = args.job_owner_state() else {
            return;
        };
        if self.rabbit_job(args).is_none() {
            return;
        }
        match topic.to_bytes() {
            // It is not known to any other callback yet, and cannot have an exception in NEW.
            b"job.new" if state == JobState::New => {}
            // Another exception would come here again.
            b"job.event.exception" => drop(self.end_prolog(job)),
            b"job.state.inactive" => drop(self.jobs.borrow_mut().remove(&job)),
            b"job.state.run" => {
                // It is started as soon as this callback returns, unless a prolog holds it, exception or not.
                if self.life(job).prolog == Prolog::None && self.jobtap().prolog_start(PROLOG).is_ok() {
                    self.on_prolog(job, PrologEvent::Started);
                }
                self.fault(job);
            }
            b"job.state.cleanup" => {
                // Its workflow is torn down all the same, once its shells are over.
                self.end_prolog(job);
                if self.life(job).epilog == Epilog::None && !self.has_started(job) {
                    // The log says what goes wrong.
                    let _ = self.start_epilog(job);
                }
                self.fault(job);
            }
            b"job.event.finish" | b"job.event.release" => {
                let _ = self.shells_are_over(job, topic == c"job.event.finish");
                self.fault(job);
            }
            _ => self.fault(job),
        }
    }

    /// What is done for a job, which fails where it comes upon a fault of this plugin.
    fn unless_it_panics(&self, job: JobId, f: impl FnOnce()) {
        let done = ffi::guard(false, || {
            f();
            true
        });
        if !done {
            ffi::guard((), || self.fault(job));
        }
    }

    /// The callback of the exception finishes what is outstanding.
    fn fault(&self, job: JobId) {
        let line = format!("{job}: an internal error: its place is in the broker's output");
        self.engine.log(LogLevel::Err, &line);
        // Without it nobody hears of the exception; what goes wrong is in the log.
        let _ = self.subscribe(job);
        let text = "an internal error of the plugin dws-jobtap: if this goes on, ask the operators: the cause is in the log of \
                    Flux";
        self.raise(job, c"dws", text);
    }

    // Exceptions

    /// The exception of a callback that failed.
    fn raise_current(&self, job: JobId, text: &str) -> PluginError {
        self.raise(job, c"dws", text);
        PluginError(text.to_owned())
    }

    /// The exception that tells what became of the workflow.
    fn fail(&self, job: JobId, kind: &CStr, why: &str) {
        self.raise(job, kind, &format!("DWS workflow interactions failed: {why}"));
    }

    fn raise(&self, job: JobId, kind: &CStr, text: &str) {
        if let Err(e) = self.jobtap().raise(job, kind, 0, text) {
            let line = format!("{job}: the exception could not be raised: {e}: {text}");
            self.engine.log(LogLevel::Err, &line);
        }
    }

    fn exception(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let context = ["entry", "context"];
        let Some(job) = args.job() else { return Ok(()) };
        if args.integer(&[context[0], context[1], "severity"]) != Some(0) {
            return Ok(());
        }
        if self.end_prolog(job) {
            return Ok(());
        }
        if !self.in_epilog(job) {
            return Ok(());
        }
        let kind = args.string(&[context[0], context[1], "type"]);
        // Flux records the instance owner as the one who raised the exceptions of plugins.
        let is_from_owner =
            args.integer(&[context[0], context[1], "userid"]) == Some(nix::unistd::geteuid().as_raw().into());
        if is_from_owner && kind.as_deref().map(str::as_bytes) == Some(EPILOG_TIMEOUT.to_bytes()) {
            self.tell(job, c"dws.abort");
            self.finish_epilog(job, 1).map_err(PluginError)
        } else {
            // If the service has not been told of the end yet, it will be.
            if self.life(job).epilog.is_sent() {
                self.tell(job, c"dws.teardown");
            }
            Ok(())
        }
    }

    /// Finishes the prolog of a job that must not start, if it is outstanding.
    fn end_prolog(&self, job: JobId) -> bool {
        if !self.life(job).prolog.is_outstanding() {
            return false;
        }
        self.engine.deliveries.give_up(job);
        // The log says what went wrong.
        let _ = self.finish_prolog(job, 1);
        self.answer_all(job, &Err("the job has got an exception".to_owned()));
        true
    }

    fn inactive(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let Some(job) = args.job() else { return Ok(()) };
        self.engine.ended(job);
        let ended = self.jobs.borrow_mut().remove(&job);
        drop(ended);
        Ok(())
    }

    /// The service has named the Workflow of a job: it exists.
    fn memo(&self, args: &Args<'_>) -> Result<(), PluginError> {
        if args.has(&["entry", "context", MEMO_WORKFLOW])
            && let Some(job) = self.rabbit_job(args)
        {
            self.on(job, |life| &mut life.workflow, WorkflowEvent::Created);
        }
        Ok(())
    }
}
