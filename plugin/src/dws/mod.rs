//! The plugin `dws`: the life of a rabbit job, between the job manager and the service for Data Workflow Services.
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
mod request;
mod resume;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    ffi::CStr,
    io,
    rc::Rc,
};

use ffi::{
    Args, FutureError, JobId, JobState, Jobtap, KeptRequest, LogLevel, PendingFuture, Plugin, PluginError, Request,
    Watcher,
};
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use crate::{
    dws::request::{EpilogRemove, Malformed, PrologRemove, ResourceUpdate},
    manager::{Hooks, Inner, Kind},
    work::Failure,
};

const DEPENDENCY: &CStr = c"dws-create";
const PROLOG: &CStr = c"dws-setup";
const EPILOG: &CStr = c"dws-epilog";
/// The exception that ends an epilog, whoever raises it.
const EPILOG_TIMEOUT: &CStr = c"dws-epilog-timeout";
/// The event that tells the names of a job's variables.
const EVENT: &CStr = c"dws_environment";

/// Where a job says that it is a rabbit job.
const DW: [&str; 4] = ["jobspec", "attributes", "system", "dw"];
const TOLERANCE: [&str; 4] = ["jobspec", "attributes", "system", "dw_failure_tolerance"];
const CONSTRAINTS: [&str; 4] = ["jobspec", "attributes", "system", "constraints"];
const ALLOW_RABBITS: [&str; 4] = ["jobspec", "attributes", "system", "allow_rabbits"];

pub(crate) static DWS: Kind = Kind {
    name: "dws",
    prolog: PROLOG,
    key: seal::key::DWS_ENVIRONMENT,
    looks_for_records: true,
    what: "environment from DWS",
    left_in_flight: c"workflow-token::dws-in-flight",
    left_delivered: c"workflow-token::dws-delivered",
    left_unknown: c"workflow-token::dws-unknown",
    active: c"workflow-token::dws-active",
};

/// The state of the plugin.
pub(crate) struct Dws(Rc<Rabbits>);

struct Rabbits {
    inner: Rc<Inner>,
    jobs: RefCell<HashMap<JobId, Rabbit>>,
    /// In seconds; none if not positive.
    epilog_timeout: f64,
    /// What the plugin that was loaded before left, until the jobs are known again.
    left: RefCell<Option<resume::Left>>,
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
    /// Whether it is from before this plugin was loaded, so that its workflow may be there already.
    from_before: bool,
    /// Whether it may have a workflow.
    created: bool,
    /// Whether its resources are known, so that it does not wait for its workflow any more.
    released: bool,
    /// Whether its epilog was started to hold it, while it is not known whether it had one before.
    held: bool,
    /// The same of a prolog.
    held_in_prolog: bool,
    /// How far it was is being read from its eventlog; what is asked of it meanwhile waits.
    unread: Option<Vec<Waiting>>,
    subscribed: bool,
    /// Whether it is known to have started. Of jobs that were replayed after a restart, Flux itself does not tell.
    started: bool,
    /// Whether none of its shells will be heard of again.
    over: bool,
    prolog: Stage,
    /// Whether `dws.setup` is still to be sent.
    setup_to_come: bool,
    epilog: Stage,
    /// Whether `dws.post_run` is still to be sent.
    post_run_to_come: bool,
    /// Whether that was sent before, for all that is known.
    post_run_again: bool,
    /// Whether it is looked for the record that the plugin before this one may have committed.
    looking: bool,
    /// Who is waiting to hear that the prolog is finished.
    requests: Vec<Asker>,
    calls: HashMap<Call, PendingFuture>,
    /// When its epilog is over, and when its eventlog is to be read.
    timer: Option<Watcher>,
    later: Option<Watcher>,
}

/// What is done once it is known how far a job is.
type Waiting = Box<dyn FnOnce(&Rc<Rabbits>)>;

/// A prolog or an epilog of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    ToCome,
    Outstanding,
    Finished,
}

/// What is asked of others for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Call {
    Create,
    Resources,
    Setup,
    PostRun,
    Written,
    Eventlog,
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
            Call::Written => "answer-written",
            Call::Eventlog => "answer-eventlog",
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

/// Loads the plugin `dws`.
pub(crate) fn load(plugin: Plugin<'static>) -> io::Result<()> {
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
        let conf = plugin.conf();
        let mut keys = conf.as_object().cloned().unwrap_or_default();
        let timeout = keys.remove("epilog-timeout");
        let overrides = if keys.is_empty() {
            Value::Null
        } else {
            Value::Object(keys)
        };
        let inner = Inner::new(&DWS, jobtap, plugin, overrides)?;
        let epilog_timeout = match (&timeout, timeout.as_ref().and_then(Value::as_f64)) {
            (_, Some(seconds)) if seconds.is_finite() => seconds,
            (None, _) => {
                if conf.is_null() {
                    inner.log(
                        LogLevel::Info,
                        "failed to unpack config: there is none: epilogs have no timeout",
                    );
                }
                0.0
            }
            (Some(_), _) => {
                let line =
                    "failed to unpack config: epilog-timeout must be a number of seconds: epilogs have no timeout";
                inner.log(LogLevel::Err, line);
                0.0
            }
        };
        inner.log(LogLevel::Info, &format!("epilog timeout = {epilog_timeout:.3}s"));
        let rabbits = Rc::new(Rabbits {
            inner,
            jobs: RefCell::default(),
            epilog_timeout,
            left: RefCell::default(),
            no_service: Cell::default(),
            counts: Counts::default(),
        });
        let hooks = Rc::downgrade(&rabbits);
        // It has none yet.
        let _ = rabbits.inner.hooks.set(hooks);
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
        let looking = ffi::guard(Vec::new(), || self.0.leave());
        self.0.inner.end();
        self.0.leave_looking(looking);
    }
}

impl Hooks for Rabbits {
    /// Eventlogs are read by [`Rabbits`] itself.
    fn resume(&self, _: JobId, _: &str) {}

    fn ticked(&self) {}

    fn fails(&self, job: JobId, why: &Failure) -> bool {
        self.undelivered(job, why);
        true
    }
}

impl Rabbits {
    fn configure(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let first = !self.inner.active.get();
        Inner::configure(&self.inner, args)?;
        if first {
            *self.left.borrow_mut() = resume::Left::of(&self.inner);
        }
        Ok(())
    }

    fn jobtap(&self) -> Jobtap<'static> {
        self.inner.jobtap
    }

    fn query(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let mut answer = self.inner.counters();
        let count = |which: fn(&Rabbit) -> bool| self.jobs.borrow().values().filter(|rabbit| which(rabbit)).count();
        answer["epilog-timeout"] = json!(self.epilog_timeout);
        answer["jobs"] = json!({
            "active": self.jobs.borrow().len(),
            "in-prolog": count(|rabbit| rabbit.prolog == Stage::Outstanding),
            "in-epilog": count(|rabbit| rabbit.epilog == Stage::Outstanding),
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

    fn state(&self, job: JobId) -> Option<JobState> {
        let args = self.jobtap().lookup(job)?;
        args.job_owner_state().map(|(_, _, state)| state)
    }

    /// Has this plugin called for the events of a job, once.
    fn subscribe(&self, job: JobId) -> Result<(), PluginError> {
        if self.with(job, |rabbit| std::mem::replace(&mut rabbit.subscribed, true)) {
            return Ok(());
        }
        self.jobtap().subscribe(job).map_err(|e| {
            self.with(job, |rabbit| rabbit.subscribed = false);
            let line = "dws-jobtap: error initializing exception-monitoring";
            self.inner.log(LogLevel::Err, &format!("{job}: {line}: {e}"));
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
                let to_come = self.with(job, |rabbit| rabbit.prolog == Stage::ToCome);
                if to_come && self.jobtap().prolog_start(PROLOG).is_ok() {
                    self.with(job, |rabbit| rabbit.prolog = Stage::Outstanding);
                }
                self.fault(job);
            }
            b"job.state.cleanup" => {
                // Its workflow is torn down all the same, once its shells are over.
                self.end_prolog(job);
                let to_come = self.with(job, |rabbit| rabbit.epilog == Stage::ToCome);
                if to_come && !self.has_started(job) {
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
        self.inner.log(LogLevel::Err, &line);
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
            self.inner.log(LogLevel::Err, &line);
        }
    }

    // Requests to the service

    /// Asks, and calls `then` with the answer, unless the job is gone or the plugin removed by then.
    fn call(
        self: &Rc<Self>,
        job: JobId,
        call: Call,
        asked: io::Result<ffi::Future>,
        then: impl FnOnce(&Rc<Self>, ffi::Future) + 'static,
    ) -> io::Result<()> {
        let weak = Rc::downgrade(self);
        let pending = asked?.then(-1.0, move |future| {
            let Some(me) = weak.upgrade() else { return };
            let done = me.with(job, |rabbit| rabbit.calls.remove(&call));
            me.unless_it_panics(job, || {
                ffi::stumble(call.name());
                then(&me, future);
            });
            drop(done);
        })?;
        self.with(job, |rabbit| rabbit.calls.insert(call, pending));
        Ok(())
    }

    /// Tells the service something to which nothing depends on its answer.
    fn tell(&self, job: JobId, topic: &CStr) {
        let payload = json!({ "jobid": job.0 }).to_string();
        if let Err(e) = self.inner.flux().rpc(topic, &payload) {
            let line = format!("Failed to send {} RPC for job {job}: {e}", topic.to_string_lossy());
            self.inner.log(LogLevel::Err, &line);
        }
    }

    // DEPEND

    fn depend(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some(job) = self.rabbit_job(args) else {
            return Ok(());
        };
        self.hold(job)?;
        self.subscribe(job)?;
        if self.with(job, |rabbit| rabbit.from_before) {
            // Its eventlog tells whether it still has to wait.
            return Ok(());
        }
        self.ask_to_create(job, args)
    }

    /// Has a job wait for its workflow, if it does not yet.
    fn hold(&self, job: JobId) -> Result<(), PluginError> {
        self.jobtap().dependency_add(job, DEPENDENCY).map_err(|e| {
            let line = format!("Failed to add dws jobtap dependency for {job}: {e}");
            self.inner.log(LogLevel::Err, &line);
            self.raise_current(job, "Failed to add dws jobtap dependency")
        })
    }

    /// Has the service create the workflow of a job that waits for it.
    fn ask_to_create(self: &Rc<Self>, job: JobId, args: &Args<'_>) -> Result<(), PluginError> {
        let tolerance = match (args.integer(&TOLERANCE), args.has(&TOLERANCE)) {
            (Some(tolerance), _) => tolerance,
            (None, false) => 0,
            (None, true) => {
                let text = "jobtap plugin failed to unpack args: dw_failure_tolerance must be an integer";
                return Err(self.raise_current(job, text));
            }
        };
        let uid = self.with(job, |rabbit| rabbit.uid);
        let json_of = |path: &[&str]| args.json(path).unwrap_or_else(|| "null".to_owned());
        let payload = format!(
            r#"{{"dw_directives":{},"jobid":{},"resources":{},"userid":{uid},"failure_tolerance":{tolerance}}}"#,
            json_of(&DW),
            job.0,
            json_of(&["jobspec", "resources"]),
        );
        let asked = self.inner.flux().rpc(c"dws.create", &payload);
        self.call(job, Call::Create, asked, move |me, future| me.created(job, &future))
            .map_err(|e| {
                let line = format!("Failed to send dws.create RPC for {job}: {e}");
                self.inner.log(LogLevel::Err, &line);
                self.raise_current(job, "Failed to send dws.create RPC")
            })
    }

    fn created(self: &Rc<Self>, job: JobId, future: &ffi::Future) {
        let from_before = self.with(job, |rabbit| rabbit.from_before);
        match answer(future) {
            Ok(Answer::Success) => {
                self.with(job, |rabbit| rabbit.created = true);
                self.counts.created.set(self.counts.created.get() + 1);
            }
            // It was created for the plugin that was there before this one, or before a restart.
            Ok(Answer::Failure(Some(why))) if from_before && why.contains("already exists") => {}
            Ok(Answer::Failure(why)) => {
                let why = why.unwrap_or_else(|| "dws.create RPC returned failure".to_owned());
                self.fail(job, DEPENDENCY, &why);
            }
            // After a restart, the service may take longer to be there than the job manager.
            Err(Unanswered::NoService) if from_before => {
                self.again(job, "dws.create", |me, job| me.create_again(job));
            }
            Err(Unanswered::NoService) => self.fail(
                job,
                DEPENDENCY,
                "dws.create RPC could not be sent. Admins: is the flux-coral2-dws service loaded?",
            ),
            Err(Unanswered::Other(e)) => {
                self.inner.log(LogLevel::Err, &format!("{job}: dws.create: {e}"));
                self.fail(job, DEPENDENCY, "Failed to unpack dws.create RPC");
            }
        }
    }

    fn resource_update(&self, request: Request<'_>) {
        ffi::stumble("resource-update");
        let update = match request.payload().ok().map(ResourceUpdate::parse) {
            Some(Ok(update)) => update,
            malformed => return self.malformed(request, "resource-update", malformed.and_then(Result::err)),
        };
        let job = update.job;
        if let Some(errmsg) = update.errmsg {
            self.fail(job, c"dws", &errmsg);
            return self.respond(request, Ok(()));
        }
        let result = self.update(job, update.resources, update.exclude);
        self.respond(request, result);
    }

    fn update(&self, job: JobId, resources: Value, exclude: Value) -> Result<(), String> {
        let args = self.jobtap().lookup(job);
        let Some(args) = args.filter(|args| {
            let known = args.job_owner_state();
            known.is_some_and(|(_, _, state)| state == JobState::Depend)
        }) else {
            return Err("job not found in depend state".to_owned());
        };
        let mut updates = Map::from_iter([("resources".to_owned(), resources)]);
        if !exclude.is_null() {
            let constraints = constraints(&args, exclude).ok_or_else(|| {
                let why = "Could not generate new constraints";
                self.inner.log(LogLevel::Err, &format!("{why} for {job}"));
                self.fail(job, c"dws", why);
                why.to_owned()
            })?;
            updates.insert("attributes.system.constraints".to_owned(), constraints);
        }
        drop(args);
        // Before what comes next: the job may go on within it.
        self.with(job, |rabbit| rabbit.released = true);
        if let Err(e) = self.jobtap().update_jobspec(job, &Value::Object(updates)) {
            let why = "could not update jobspec with new constraints and resources";
            self.inner.log(LogLevel::Err, &format!("{job}: {why}: {e}"));
            self.fail(job, c"dws", "Internal error: failed to update jobspec");
            return Err(why.to_owned());
        }
        self.jobtap().dependency_remove(job, DEPENDENCY).map_err(|e| {
            let why = "Failed to remove dependency for job";
            self.inner.log(LogLevel::Err, &format!("dws-create: {why} {job}: {e}"));
            why.to_owned()
        })
    }

    // RUN

    fn run(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some(job) = self.rabbit_job(args) else {
            return Ok(());
        };
        self.subscribe(job)?;
        // Whatever it was before, it begins here.
        let waiting = self.with(job, |rabbit| rabbit.unread.take());
        if let Err(e) = self.jobtap().prolog_start(PROLOG) {
            let line = format!("Failed to start dws jobtap prolog for {job}: {e}");
            self.inner.log(LogLevel::Err, &line);
            return Err(self.raise_current(job, "Failed to start dws jobtap prolog"));
        }
        self.with(job, |rabbit| rabbit.prolog = Stage::Outstanding);
        self.set_up(job);
        for f in waiting.into_iter().flatten() {
            f(self);
        }
        Ok(())
    }

    /// Sends `dws.setup`, once it is known which resources the job has.
    fn set_up(self: &Rc<Self>, job: JobId) {
        self.with(job, |rabbit| rabbit.setup_to_come = true);
        let asked = job.kvs_key("R").and_then(|key| self.inner.flux().lookup(&key));
        let sent = self.call(job, Call::Resources, asked, move |me, future| {
            me.with(job, |rabbit| rabbit.setup_to_come = false);
            if me.with(job, |rabbit| rabbit.prolog != Stage::Outstanding) {
                // It was canceled meanwhile, and the service was told to tear its workflow down.
                return;
            }
            let resources = future.value().ok().flatten();
            // It goes on as it is.
            match resources.filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok()) {
                Some(resources) => me.send_setup(job, &resources),
                None => me.fail_prolog(job, "Failed to unpack R"),
            }
        });
        if let Err(e) = sent {
            self.inner
                .log(LogLevel::Err, &format!("{job}: R could not be looked up: {e}"));
            self.fail_prolog(job, "Failed to look up R");
        }
    }

    fn send_setup(self: &Rc<Self>, job: JobId, resources: &str) {
        let payload = format!(r#"{{"jobid":{},"R":{resources}}}"#, job.0);
        let asked = self.inner.flux().rpc(c"dws.setup", &payload);
        let sent = self.call(job, Call::Setup, asked, move |me, future| match answer(&future) {
            Ok(Answer::Success) => {}
            Ok(Answer::Failure(why)) => {
                me.fail_prolog(job, why.as_deref().unwrap_or("dws.setup RPC returned failure"));
            }
            Err(Unanswered::NoService) if me.with(job, |rabbit| rabbit.from_before) => {
                me.with(job, |rabbit| rabbit.setup_to_come = true);
                me.again(job, "dws.setup", |me, job| {
                    if me.with(job, |rabbit| rabbit.prolog == Stage::Outstanding) {
                        me.set_up(job);
                    }
                });
            }
            Err(e) => {
                me.inner.log(LogLevel::Err, &format!("{job}: dws.setup: {}", e.text()));
                me.fail_prolog(job, "Failed to unpack dws.setup RPC");
            }
        });
        if let Err(e) = sent {
            self.inner
                .log(LogLevel::Err, &format!("{job}: dws.setup could not be sent: {e}"));
            self.fail_prolog(job, "Failed to send dws.setup RPC");
        }
    }

    /// The job must not start. Its prolog is finished by the callback of the exception.
    fn fail_prolog(&self, job: JobId, why: &str) {
        if self.with(job, |rabbit| rabbit.prolog == Stage::Outstanding) {
            let line = format!("Failed to setup DWS workflow object for job {job}");
            self.inner.log(LogLevel::Err, &line);
            self.fail(job, PROLOG, why);
        }
    }

    fn prolog_remove(self: &Rc<Self>, request: Request<'_>) {
        ffi::stumble("prolog-remove");
        let remove = match request.payload().ok().map(PrologRemove::parse) {
            Some(Ok(remove)) => remove,
            malformed => return self.malformed(request, "prolog-remove", malformed.and_then(Result::err)),
        };
        let asker = Asker(Some(request.keep()));
        self.when_known(remove.job, move |me| me.deliver(remove, asker));
    }

    /// Seals the variables; the prolog is finished when they are where the job shells find them.
    fn deliver(self: &Rc<Self>, PrologRemove { job, variables }: PrologRemove, asker: Asker) {
        let prolog = self.jobs.borrow().get(&job).map(|rabbit| rabbit.prolog);
        match prolog {
            Some(Stage::Outstanding) => {}
            // The service was restarted, and says again what it said before.
            Some(Stage::Finished) if self.state(job) == Some(JobState::Run) => return self.answer(asker, Ok(())),
            Some(Stage::Finished | Stage::ToCome) | None => {
                let why = "the job has no prolog dws-setup: it is not a rabbit job in RUN";
                return self.answer(asker, Err(why.to_owned()));
            }
        }
        let (first, lookup) = self.with(job, |rabbit| {
            rabbit.requests.push(asker);
            rabbit.looking = false;
            (rabbit.requests.len() == 1, rabbit.calls.remove(&Call::Record))
        });
        drop(lookup);
        if !first {
            return;
        }
        let uid = self.with(job, |rabbit| rabbit.uid);
        let weak = Rc::downgrade(self);
        let end = move |result: Result<Vec<String>, Failure>| {
            let Some(me) = weak.upgrade() else { return };
            match result {
                Ok(names) => me.delivered(job, &names),
                Err(why) => me.undelivered(job, &why),
            }
        };
        self.inner.give(job, uid, variables, Some(Box::new(end)));
    }

    fn delivered(&self, job: JobId, names: &[String]) {
        // It tells what there is; what it is, is in the record only.
        if let Err(e) = self.jobtap().post(job, EVENT, &json!({ "names": names })) {
            let line = format!("{job}: failed to post the event dws_environment: {e}");
            self.inner.log(LogLevel::Err, &line);
        }
        let askers = self.with(job, |rabbit| std::mem::take(&mut rabbit.requests));
        let result = self.finish_prolog(job, 0);
        if result.is_ok() {
            self.counts.set_up.set(self.counts.set_up.get() + 1);
        }
        for asker in askers {
            self.answer(asker, result.clone());
        }
    }

    fn undelivered(&self, job: JobId, why: &Failure) {
        // The exception, which comes first, would answer them with less.
        let askers = self.with(job, |rabbit| std::mem::take(&mut rabbit.requests));
        self.fail_prolog(
            job,
            &format!(
                "its environment could not be delivered: {}: if this goes on, ask the operators: the cause is in the log \
                 of Flux",
                why.user
            ),
        );
        for asker in askers {
            self.answer(
                asker,
                Err(format!("its environment could not be delivered: {}", why.user)),
            );
        }
    }

    fn finish_prolog(&self, job: JobId, status: i32) -> Result<(), String> {
        let was = self.with(job, |rabbit| {
            let was = rabbit.prolog;
            if was == Stage::Outstanding {
                rabbit.prolog = Stage::Finished;
            }
            was
        });
        if was != Stage::Outstanding {
            return Err("the prolog is not outstanding".to_owned());
        }
        self.jobtap().prolog_finish(job, PROLOG, status).map_err(|e| {
            let line = format!("Failed to finish prolog dws-setup for job {job}: {e}");
            self.inner.log(LogLevel::Err, &line);
            "failed to finish prolog".to_owned()
        })
    }

    // CLEANUP

    fn cleanup(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some(job) = self.rabbit_job(args) else {
            return Ok(());
        };
        self.subscribe(job)?;
        self.end_prolog(job);
        if self.with(job, |rabbit| rabbit.epilog != Stage::ToCome) {
            return Ok(());
        }
        if self.with(job, |rabbit| rabbit.unread.is_some()) {
            if args.previous_state() == Some(JobState::Run) {
                return self.start_epilog(job);
            }
            // It has not started, whatever its eventlog says.
            let waiting = self.with(job, |rabbit| rabbit.unread.take());
            let started = self.start_epilog(job);
            for f in waiting.into_iter().flatten() {
                f(self);
            }
            return started;
        }
        // The epilog of a job that has started begins when its shells have finished.
        if self.has_started(job) {
            return Ok(());
        }
        self.start_epilog(job)
    }

    /// The shells of a job have finished.
    fn finish(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        match self.rabbit_job(args) {
            Some(job) => self.shells_are_over(job, true),
            None => Ok(()),
        }
    }

    /// Nothing of a job uses its resources any more. Where its shells were lost, there is no `finish` before.
    fn release(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let is_final = args.json(&["entry", "context", "final"]).as_deref() == Some("true");
        match self.rabbit_job(args).filter(|_| is_final) {
            Some(job) => self.shells_are_over(job, false),
            None => Ok(()),
        }
    }

    fn shells_are_over(self: &Rc<Self>, job: JobId, finished: bool) -> Result<(), PluginError> {
        self.with(job, |rabbit| {
            rabbit.over = true;
            rabbit.started |= finished;
        });
        if self.with(job, |rabbit| rabbit.epilog == Stage::ToCome) && self.state(job) == Some(JobState::Cleanup) {
            return self.start_epilog(job);
        }
        self.send_post_run(job);
        Ok(())
    }

    fn has_started(&self, job: JobId) -> bool {
        self.with(job, |rabbit| rabbit.started) || self.jobtap().was_posted(job, c"start")
    }

    /// Starts the epilog, from within a callback that is about the job.
    fn start_epilog(self: &Rc<Self>, job: JobId) -> Result<(), PluginError> {
        if let Err(e) = self.jobtap().epilog_start(EPILOG) {
            let line = format!("Failed to start jobtap epilog for {job}: {e}");
            self.inner.log(LogLevel::Err, &line);
            return Err(self.raise_current(job, "Failed to start jobtap epilog"));
        }
        self.with(job, |rabbit| {
            rabbit.epilog = Stage::Outstanding;
            rabbit.post_run_to_come = true;
        });
        self.send_post_run(job);
        Ok(())
    }

    /// Has the service tear the workflow down, once it is known that no shell is running.
    fn send_post_run(self: &Rc<Self>, job: JobId) {
        let has_run = self.has_started(job);
        let due = self.with(job, |rabbit| {
            let due = rabbit.post_run_to_come && rabbit.unread.is_none() && (rabbit.over || !has_run);
            rabbit.post_run_to_come &= !due;
            due
        });
        if !due {
            return;
        }
        self.mind_epilog(job);
        let payload = json!({ "jobid": job.0, "run_started": has_run }).to_string();
        let asked = self.inner.flux().rpc(c"dws.post_run", &payload);
        let sent = self.call(job, Call::PostRun, asked, move |me, future| match answer(&future) {
            Ok(Answer::Success) => {}
            // Where there is a workflow, it must not be forgotten: not in a shutdown either, which may end the service first.
            Err(Unanswered::NoService) if me.with(job, |rabbit| rabbit.created) => {
                let in_epilog = me.in_epilog(job);
                me.with(job, |rabbit| rabbit.post_run_to_come = in_epilog);
                me.again(job, "dws.post_run", |me, job| me.send_post_run(job));
            }
            Ok(Answer::Failure(why)) if me.with(job, |rabbit| rabbit.post_run_again) => {
                // It is on its way already, or gone.
                let why = why.unwrap_or_default();
                let line = format!(
                    "{job}: dws.post_run, which may have been sent before: {why}: waiting for the service to end its epilog"
                );
                me.inner.log(LogLevel::Warning, &line);
            }
            Ok(Answer::Failure(why)) => {
                me.fail_epilog(job, why.as_deref().unwrap_or("<no error string provided>"));
            }
            Err(e) => {
                me.inner
                    .log(LogLevel::Err, &format!("{job}: dws.post_run: {}", e.text()));
                me.fail_epilog(job, "Failed to send dws.post_run RPC");
            }
        });
        if let Err(e) = sent {
            self.inner.log(
                LogLevel::Err,
                &format!("Failed to send dws.post_run RPC for {job}: {e}"),
            );
            self.fail_epilog(job, "Failed to send dws.post_run RPC");
        }
    }

    /// Raises the exception that ends the epilog, when its time is over.
    fn mind_epilog(self: &Rc<Self>, job: JobId) {
        if self.epilog_timeout <= 0.0 || self.with(job, |rabbit| rabbit.timer.is_some()) {
            return;
        }
        let weak = Rc::downgrade(self);
        let timer = self.inner.flux().after(self.epilog_timeout, move || {
            let Some(me) = weak.upgrade() else { return };
            me.unless_it_panics(job, || {
                ffi::stumble("epilog-timeout");
                if me.in_epilog(job) {
                    me.raise(job, EPILOG_TIMEOUT, "DWS epilog timed out");
                }
            });
        });
        match timer {
            Ok(timer) => self.with(job, |rabbit| rabbit.timer = Some(timer)),
            Err(e) => {
                let line = format!("Failed to init dws-epilog timeout for {job}: {e}");
                self.inner.log(LogLevel::Err, &line);
                self.fail_epilog(job, "Failed to init dws-epilog timeout");
            }
        }
    }

    fn fail_epilog(&self, job: JobId, why: &str) {
        if !self.in_epilog(job) {
            return;
        }
        let line = format!("Failed to clean up DWS workflow object for job {job}");
        self.inner.log(LogLevel::Err, &line);
        // The exception has the workflow torn down, if the epilog is outstanding still.
        self.fail(job, EPILOG, why);
        // Who is told has heard already.
        let _ = self.finish_epilog(job, 1);
    }

    fn in_epilog(&self, job: JobId) -> bool {
        self.with(job, |rabbit| rabbit.epilog == Stage::Outstanding)
    }

    fn finish_epilog(&self, job: JobId, status: i32) -> Result<(), String> {
        let was = self.with(job, |rabbit| {
            let was = rabbit.epilog;
            if was == Stage::Outstanding {
                rabbit.epilog = Stage::Finished;
                rabbit.post_run_to_come = false;
            }
            was
        });
        if was != Stage::Outstanding {
            return Err("could not finish epilog: it is not outstanding".to_owned());
        }
        self.jobtap().epilog_finish(job, EPILOG, status).map_err(|e| {
            let line = format!("Failed to finish epilog dws-epilog for job {job}: {e}");
            self.inner.log(LogLevel::Err, &line);
            "could not finish epilog".to_owned()
        })
    }

    fn epilog_remove(self: &Rc<Self>, request: Request<'_>) {
        ffi::stumble("epilog-remove");
        let EpilogRemove { job } = match request.payload().ok().map(EpilogRemove::parse) {
            Some(Ok(remove)) => remove,
            malformed => return self.malformed(request, "epilog-remove", malformed.and_then(Result::err)),
        };
        let asker = Asker(Some(request.keep()));
        self.when_known(job, move |me| {
            if me.state(job) != Some(JobState::Cleanup) {
                return me.answer(asker, Err("job not found in CLEANUP state".to_owned()));
            }
            let result = me.finish_epilog(job, 0);
            if result.is_ok() {
                me.counts.torn_down.set(me.counts.torn_down.get() + 1);
            }
            me.answer(asker, result);
        });
    }

    // Whatever the state

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
        if kind.as_deref().map(str::as_bytes) == Some(EPILOG_TIMEOUT.to_bytes()) {
            self.tell(job, c"dws.abort");
            self.finish_epilog(job, 1).map_err(PluginError)
        } else {
            // Where the service has not been told of the end yet, it will be.
            if self.with(job, |rabbit| !rabbit.post_run_to_come) {
                self.tell(job, c"dws.teardown");
            }
            Ok(())
        }
    }

    /// Finishes the prolog of a job that must not start, if it is outstanding.
    fn end_prolog(&self, job: JobId) -> bool {
        if !self.with(job, |rabbit| rabbit.prolog == Stage::Outstanding) {
            return false;
        }
        self.inner.give_up(job);
        // The log says what went wrong.
        let _ = self.finish_prolog(job, 1);
        self.answer_all(job, &Err("the job has got an exception".to_owned()));
        true
    }

    fn inactive(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let Some(job) = args.job() else { return Ok(()) };
        self.inner.ended(job);
        let gone = self.jobs.borrow_mut().remove(&job);
        drop(gone);
        Ok(())
    }

    // Answers to the service

    fn malformed(&self, request: Request<'_>, method: &str, malformed: Option<Malformed>) {
        let why = malformed
            .as_ref()
            .map_or("it has no payload", |malformed| &malformed.why);
        let line = format!("received malformed dws.{method} RPC");
        if let Some(job) = malformed.as_ref().and_then(|malformed| malformed.job) {
            self.fail(job, c"exception", &format!("{line}: {why}"));
        }
        self.inner.log(
            LogLevel::Err,
            &format!(
                "{line}: {why}: the flux-coral2-dws service and the plugin dws-jobtap may be out of sync: see which \
                 versions they are"
            ),
        );
        self.respond(request, Err(line));
    }

    fn respond(&self, request: Request<'_>, result: Result<(), String>) {
        self.answer(Asker(Some(request.keep())), result);
    }

    fn answer_all(&self, job: JobId, result: &Result<(), String>) {
        for asker in self.with(job, |rabbit| std::mem::take(&mut rabbit.requests)) {
            self.answer(asker, result.clone());
        }
    }

    fn answer(&self, mut asker: Asker, result: Result<(), String>) {
        let Some(request) = asker.0.take() else { return };
        // It is there.
        self.no_service.set(false);
        let sent = match result {
            Ok(()) => request.respond(None),
            Err(why) => request.refuse(nix::errno::Errno::EINVAL as i32, &why),
        };
        if let Err(e) = sent {
            let line = format!("an answer to flux-coral2-dws could not be sent: {e}");
            self.inner.log(LogLevel::Err, &line);
        }
    }
}

/// What the service answers: `success`, and perhaps `errstr`.
enum Answer {
    Success,
    Failure(Option<String>),
}

/// Why there is no answer.
enum Unanswered {
    NoService,
    Other(String),
}

impl Unanswered {
    fn text(&self) -> &str {
        match self {
            Unanswered::NoService => "no service answers to it: is flux-coral2-dws running?",
            Unanswered::Other(why) => why,
        }
    }
}

fn answer(future: &ffi::Future) -> Result<Answer, Unanswered> {
    let no_service = |e: &FutureError| e.errno() == nix::errno::Errno::ENOSYS as i32;
    let text = future.rpc().map_err(|e| match no_service(&e) {
        true => Unanswered::NoService,
        false => Unanswered::Other(e.to_string()),
    })?;
    let answer: Value = serde_json::from_str(text.as_deref().unwrap_or_default())
        .map_err(|e| Unanswered::Other(format!("its answer is no JSON: {e}")))?;
    match answer["success"].as_bool() {
        Some(true) => Ok(Answer::Success),
        Some(false) => Ok(Answer::Failure(answer["errstr"].as_str().map(str::to_owned))),
        None => Err(Unanswered::Other(
            "its answer does not say whether it succeeded".to_owned(),
        )),
    }
}

/// The constraints of a job, with those that the service adds. None where the job's own cannot be understood.
fn constraints(args: &Args<'_>, exclude: Value) -> Option<Value> {
    let old = match args.json(&CONSTRAINTS) {
        Some(text) => Some(serde_json::from_str(&text).ok()?),
        None => None,
    };
    let allow_rabbits = match args.json(&ALLOW_RABBITS).as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return None,
    };
    Some(constraints::combine(old, exclude, allow_rabbits))
}
