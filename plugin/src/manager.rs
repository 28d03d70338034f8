//! The plugin's state, on the reactor thread, and the callbacks that change it.
//!
//! Calls into Flux may call back before they return (an exception takes the job to CLEANUP), so neither here nor in
//! `delivery`, `resume` and `records` is a `RefCell` borrowed across one.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{BTreeSet, HashMap, HashSet},
    ffi::CStr,
    io,
    path::{Path, PathBuf},
    rc::{Rc, Weak},
};

use config::{Config, Part};
use ffi::{Args, Flux, JobId, JobState, Jobtap, Kept, LogLevel, PendingFuture, Plugin, PluginError, State, Watcher};
use protocol::{Configure, Failure, Reply};
use serde_json::{Value, json};

use crate::{
    agent::{Agent, Event, Place},
    deliveries::Deliveries,
    eventlog::Eventlog,
    facts::Needed,
    handover::{self, Handover},
    membership::Membership,
    owners::Owners,
    records::RecordStore,
    resume::Reader,
    stats::{Counter, Stats, Stay},
};

/// What tells the plugins apart that deliver.
#[derive(Debug)]
pub struct Kind {
    /// The name of the plugin, and the start of its lines in the log.
    pub name: &'static str,
    /// The description of the prolog in which a job is held, and the type of exceptions.
    pub prolog: &'static CStr,
    /// The key of the records, in the directory of the job.
    pub key: &'static str,
    /// Whether the next plugin looks for records of deliveries that were under way, since it cannot do them once more.
    pub looks_for_records: bool,
    /// What the job lacks without its record, for its user.
    pub what: &'static str,
    /// The part of the configuration that it uses.
    pub part: Part,
    /// The items with the handle of Flux: what is left for the next plugin.
    pub handover: &'static CStr,
    /// The mark of the plugin in charge.
    pub active: &'static CStr,
    /// The events of jobs whose contexts are kept when eventlogs are read.
    pub events: &'static [&'static str],
}

/// What a plugin does in place of what is done for rules. Where it is of no use, a plugin has none.
pub trait Hooks {
    /// The eventlog of a job was read ([`Inner::read_eventlog`]).
    fn resume(self: Rc<Self>, job: JobId, eventlog: &Eventlog);
    /// Adds to what is left for the next plugin.
    fn leave(&self, handover: &mut Handover);
    /// A job cannot get what it was to get. The plugin ends it: exception and prolog.
    fn failed(&self, job: JobId, why: &Failure);
}

/// The plugin that delivers workflow tokens.
static WORKFLOW_TOKEN: Kind = Kind {
    name: "workflow-token",
    prolog: c"workflow-token",
    key: seal::key::WORKFLOW_TOKEN,
    looks_for_records: false,
    what: "workflow token",
    part: Part::Tokens,
    handover: c"workflow-token::handover",
    active: c"workflow-token::active",
    events: &[],
};

/// The name of the agent's socket, in the directory of the broker.
const SOCKET: &str = "workflow-token-agent";

/// The name of its program.
const PROGRAM: &str = "workflow-token-agent";

/// Which updates this plugin has a say in.
const UPDATE: &CStr = c"job.update.attributes.system.project";

/// When jobs are submitted or updated, and when their dependencies are collected.
const VALIDATE: &CStr = c"job.validate";
const DEPEND: &CStr = c"job.state.depend";

/// The state of the plugin `workflow-token`.
pub(crate) struct Manager {
    inner: Rc<Inner>,
    /// Whether it minds the projects of jobs. A plugin that handles [`UPDATE`] consents to such updates, where nobody else may.
    minds_projects: Cell<bool>,
    /// Itself, as callbacks are given it.
    kept: OnceCell<Kept<Manager>>,
}

/// Deliveries, on the reactor thread: what all plugins of this crate have in common.
pub struct Inner {
    pub(crate) kind: &'static Kind,
    pub(crate) hooks: OnceCell<Weak<dyn Hooks>>,
    pub(crate) jobtap: Jobtap<'static>,
    /// Keys in place of those of the configuration.
    overrides: Value,
    /// Where the program of the agent may be.
    programs: Vec<PathBuf>,
    this: Weak<Inner>,
    current: RefCell<Option<Current>>,
    pub(crate) agent: Rc<Agent>,
    pub(crate) records: Rc<RecordStore>,
    /// What the plugin that was loaded before left, until every job is known again.
    pub(crate) left: RefCell<Option<Handover>>,
    pub(crate) deliveries: RefCell<Deliveries>,
    /// Jobs that have a record. A tree, as those of the deliveries.
    pub(crate) delivered: RefCell<BTreeSet<JobId>>,
    /// Jobs that had a record when the plugin was removed, until they are seen to be active still.
    pub(crate) ended_meanwhile: RefCell<HashSet<JobId>>,
    /// Jobs of which it is not known yet how far they are.
    pub(crate) reader: Reader,
    /// Jobs that are held until it is known in which projects their owners are.
    pub(crate) membership: Membership,
    /// Whether this is the one that is in charge.
    pub(crate) active: Cell<bool>,
    /// Lookups, by number.
    pub(crate) pending: RefCell<HashMap<u64, PendingFuture>>,
    numbers: Cell<u64>,
    generations: Cell<u32>,
    pub(crate) ticker: RefCell<Option<Watcher>>,
    /// For how many ticks no work was pending.
    pub(crate) idle_ticks: Cell<u32>,
    pub(crate) stats: RefCell<Stats>,
}

/// The configuration in force, as the agent knows it by its generation.
#[derive(Clone)]
pub(crate) struct Current {
    pub(crate) config: Rc<Config>,
    pub(crate) generation: u32,
    /// What is read of the jobspecs of jobs.
    pub(crate) needed: Needed,
    /// What the agent has told of users for it.
    pub(crate) owners: Rc<RefCell<Owners>>,
}

/// Has a plugin called that has projects to mind. Where there are none, no job pays for these callbacks.
fn handle_projects(plugin: Plugin<'_>, kept: &Kept<Manager>) -> io::Result<()> {
    plugin.handle(VALIDATE, kept, |m: &Manager, _, args| m.validate(args))?;
    plugin.handle(UPDATE, kept, |m: &Manager, _, args| m.update_project(args))?;
    plugin.handle(DEPEND, kept, |m: &Manager, _, args| m.job_depend(args))
}

impl Manager {
    /// For the plugin that is being loaded. It does nothing before it is configured.
    pub(crate) fn new(jobtap: Jobtap<'static>, plugin: Plugin<'_>) -> io::Result<Self> {
        Ok(Self {
            inner: Inner::new(&WORKFLOW_TOKEN, jobtap, plugin, plugin.conf()?)?,
            minds_projects: Cell::new(false),
            kept: OnceCell::new(),
        })
    }

    /// Tells it how callbacks are given it.
    pub(crate) fn is_kept(&self, kept: Kept<Manager>) {
        // Once, when the plugin is loaded.
        let _ = self.kept.set(kept);
    }

    /// `conf.update`: refuses what is wrong, and the former configuration stays. Deliveries under way keep theirs.
    pub(crate) fn conf_update(&self, plugin: Plugin<'_>, args: &Args<'_>) -> Result<(), PluginError> {
        Inner::configure(&self.inner, args)?;
        let wanted = self.inner.has_projects();
        let Some(kept) = self.kept.get().filter(|_| wanted != self.minds_projects.get()) else {
            return Ok(());
        };
        let changed = match wanted {
            true => handle_projects(plugin, kept),
            false => [VALIDATE, UPDATE, DEPEND]
                .iter()
                .try_for_each(|topic| plugin.unhandle(topic)),
        };
        changed.map_err(|e| PluginError(format!("the projects of jobs cannot be minded: {e}")))?;
        self.minds_projects.set(wanted);
        Ok(())
    }

    /// `job.validate`: refuses a job whose owner is not in the project that it is to be in.
    fn validate(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let stay = Stay::begin();
        let answer = Inner::validate(&self.inner, args);
        self.inner.account(&stay, None);
        answer
    }

    /// `job.update.attributes.system.project`: refuses an update to a project that the job owner is not in.
    fn update_project(&self, args: &Args<'_>) -> Result<(), PluginError> {
        Inner::update_project(&self.inner, args)
    }

    /// `job.state.depend`: holds a job while it is not known whether its owner is in its project.
    fn job_depend(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let stay = Stay::begin();
        Inner::depend(&self.inner, args);
        self.inner.account(&stay, None);
        Ok(())
    }

    /// `job.new`: a job that is past SCHED is known from before. Its delivery is taken up where it was left.
    pub(crate) fn job_new(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let Some((job, uid, state)) = args.job_owner_state() else {
            return Ok(());
        };
        match state {
            JobState::Run | JobState::Cleanup => Inner::resume(&self.inner, args, job, uid, state),
            JobState::Depend => Inner::depended(&self.inner, job, uid),
            JobState::New | JobState::Pending | JobState::Inactive => {}
        }
        Ok(())
    }

    /// `job.state.run`: begins the delivery of a job that a rule matches.
    pub(crate) fn job_run(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let stay = Stay::begin();
        let Some((job, uid, _)) = args.job_owner_state() else {
            return Ok(());
        };
        Inner::start(&self.inner, args, job, uid, &stay);
        Ok(())
    }

    /// `job.state.cleanup`: the job was canceled, or ended. A delivery under way is given up.
    pub(crate) fn job_cleanup(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let stay = Stay::begin();
        let Some(job) = args.job() else { return Ok(()) };
        self.inner.membership.forget(job);
        if self.inner.give_up(job) {
            self.inner.finish_prolog(job, 1);
            self.inner.account(&stay, None);
        }
        Ok(())
    }

    /// `job.state.inactive`: nothing of the job runs any more, and its record is removed.
    pub(crate) fn job_inactive(&self, args: &Args<'_>) -> Result<(), PluginError> {
        if let Some(job) = args.job() {
            self.inner.ended(job);
        }
        Ok(())
    }

    /// `plugin.query`: counters.
    pub(crate) fn query(&self, args: &Args<'_>) -> Result<(), PluginError> {
        args.answer(&self.inner.counters());
        Ok(())
    }
}

impl State for Manager {
    fn panicked(&self, topic: &CStr, args: &Args<'_>) {
        self.inner.panicked(topic, args);
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.inner.end();
    }
}

impl Inner {
    /// For a plugin that is being loaded. `overrides` are keys in place of those of the configuration's table.
    pub fn new(
        kind: &'static Kind,
        jobtap: Jobtap<'static>,
        plugin: Plugin<'_>,
        overrides: Value,
    ) -> io::Result<Rc<Self>> {
        let programs = programs(plugin.path());
        Ok(Rc::new_cyclic(|this: &Weak<Self>| {
            let owner = this.clone();
            let agent = Agent::new(jobtap.flux(), move |event| {
                let Some(inner) = owner.upgrade() else { return };
                match event {
                    Event::Reply(reply) => Self::replied(&inner, reply),
                    Event::Log(level, line) => inner.log(level, &line),
                }
            });
            Self {
                kind,
                hooks: OnceCell::new(),
                jobtap,
                overrides,
                programs,
                this: this.clone(),
                current: RefCell::default(),
                agent,
                records: RecordStore::new(jobtap.flux(), kind.key, this.clone()),
                left: RefCell::default(),
                deliveries: RefCell::default(),
                delivered: RefCell::default(),
                ended_meanwhile: RefCell::default(),
                reader: Reader::default(),
                membership: Membership::default(),
                active: Cell::new(false),
                pending: RefCell::default(),
                numbers: Cell::new(0),
                generations: Cell::new(0),
                ticker: RefCell::default(),
                idle_ticks: Cell::new(0),
                stats: RefCell::default(),
            }
        }))
    }

    /// Takes a configuration, or refuses it and keeps the former. The first one makes the plugin active.
    pub fn configure(inner: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let all = args
            .all()
            .map_err(|e| PluginError(format!("the configuration of Flux cannot be read: {e}")))?;
        let config = Config::with_overrides(&all["conf"], &inner.overrides).map_err(|e| PluginError(e.to_string()))?;
        for line in &config.obsolete {
            inner.log(LogLevel::Warning, line);
        }
        let config = config.only(inner.kind.part);
        let place = inner.place(&config).map_err(PluginError)?;
        if !inner.active.get() {
            Self::activate(inner)?;
        }
        let works = inner.kind.part != Part::Tokens || !config.rules.is_empty() || !config.projects.is_empty();
        let generation = inner.generations.get() + 1;
        inner.generations.set(generation);
        let former = inner.current.replace(Some(Current {
            needed: Needed::by(&config),
            config: Rc::new(config),
            generation,
            owners: Rc::default(),
        }));
        drop(former);
        if works {
            let table = json!({ config::TABLE: all["conf"][config::TABLE] });
            inner.agent.configure(Configure {
                generation,
                conf: table.to_string(),
                overrides: inner.overrides.to_string(),
                part: inner.kind.part,
                instance: instance(inner.flux()),
            });
            inner.agent.place(place);
        }
        inner.agent.retire_unused(generation);
        inner.decide_anew();
        if !inner.ended_meanwhile.borrow().is_empty() || !inner.membership.is_idle() {
            inner.tick();
        }
        Ok(())
    }

    /// The agent has taken a configuration, or cannot use it here.
    pub(crate) fn configured(&self, generation: u32, wrong: Option<String>) {
        let is_current = self.current().is_some_and(|current| current.generation == generation);
        if let Some(wrong) = wrong.filter(|_| is_current) {
            let line = format!(
                "{wrong}. Jobs get no {} until this is corrected [agent-configuration]",
                self.kind.what
            );
            self.log(LogLevel::Err, &line);
        }
    }

    /// Where the agent of a configuration is.
    fn place(&self, config: &Config) -> Result<Place, String> {
        if let Some(socket) = &config.agent {
            return Ok(Place {
                socket: socket.clone(),
                programs: None,
            });
        }
        let rundir = self
            .flux()
            .attribute(c"rundir")
            .ok_or("the broker has no rundir for the agent: set the key agent")?;
        let programs = config.agent_program.iter().chain(&self.programs).cloned();
        Ok(Place {
            socket: Path::new(&rundir).join(SOCKET),
            programs: Some(programs.collect()),
        })
    }

    pub(crate) fn current(&self) -> Option<Current> {
        self.current.borrow().clone()
    }

    pub(crate) fn weak(&self) -> Weak<Self> {
        self.this.clone()
    }

    /// Sets what the plugin does in place of rules, once.
    pub fn hook(&self, hooks: Weak<dyn Hooks>) {
        let is_first = self.hooks.set(hooks).is_ok();
        debug_assert!(is_first);
    }

    /// Returns the jobtap of the plugin.
    pub fn jobtap(&self) -> Jobtap<'static> {
        self.jobtap
    }

    /// Returns whether this plugin is in charge: it is configured.
    pub fn is_active(&self) -> bool {
        self.active.get()
    }

    /// Returns how long a delivery may take; nothing before the plugin is configured.
    pub fn timeout(&self) -> Option<std::time::Duration> {
        self.current().map(|current| current.config.timeout)
    }

    /// Returns what the plugin before this one added to the handover; nothing if there is none that this one knows.
    pub fn left<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        self.left.borrow().as_ref()?.own()
    }

    /// A job from before is active: its record, if it has one, is not to be removed yet.
    pub fn is_active_still(&self, job: JobId) {
        self.ended_meanwhile.borrow_mut().remove(&job);
    }

    /// A job may have a record, which is removed when the job has ended.
    pub fn may_have_record(&self, job: JobId) {
        self.delivered.borrow_mut().insert(job);
    }

    /// Returns whether a delivery for this job is under way.
    pub fn is_delivering(&self, job: JobId) -> bool {
        self.deliveries.borrow().contains(job)
    }

    /// Counts something that the engine does not see.
    pub fn count(&self, counter: Counter) {
        let mut stats = self.stats.borrow_mut();
        match counter {
            Counter::Resumed => stats.resumed += 1,
            Counter::Failed => stats.failed += 1,
            Counter::Canceled => stats.canceled += 1,
        }
    }

    /// A job was canceled, or ended: a delivery of it that is under way is given up. Returns whether there was one.
    pub fn give_up(&self, job: JobId) -> bool {
        let Some(delivery) = self.take_out(job) else {
            return false;
        };
        // A commit may be done already, whatever is heard of it.
        if delivery.stage == crate::deliveries::Stage::Committing {
            self.delivered.borrow_mut().insert(job);
        }
        drop(delivery);
        self.stats.borrow_mut().canceled += 1;
        true
    }

    /// A job is inactive: its record, if it has one, is removed.
    pub fn ended(&self, job: JobId) {
        // If its eventlog has not been read yet, it may have one.
        let is_unread = self.reader.forget(job);
        if (self.delivered.borrow_mut().remove(&job) || is_unread) && self.unlinks() {
            self.records.remove([job]);
            self.tick();
        }
    }

    /// What `plugin.query` answers with.
    pub fn counters(&self) -> Value {
        let mut answer = self.stats.borrow().to_json();
        answer["in-flight"] = json!(self.deliveries.borrow().len());
        answer["held"] = json!(self.membership.held().len());
        #[cfg(any(test, feature = "fault-injection"))]
        {
            answer["memory"] = json!(crate::MEMORY.bytes());
        }
        answer["version"] = json!(env!("CARGO_PKG_VERSION"));
        let current = self.current();
        let current = current.as_ref();
        answer["known-users"] = json!(current.map_or(0, |current| current.owners.borrow().count()));
        answer["rules"] = json!(current.map_or(0, |current| current.config.rules.len()));
        answer["agent"] = json!(if self.agent.is_connected() {
            "connected"
        } else {
            "not connected"
        });
        answer
    }

    fn has_projects(&self) -> bool {
        self.current()
            .is_some_and(|current| !current.config.projects.is_empty())
    }

    /// A callback has panicked. The job manager goes on whatever it returned, so the job is ended here: it must not start
    /// without what it was to get, and no prolog of this plugin may be left.
    pub fn panicked(&self, topic: &CStr, args: &Args<'_>) {
        let Some(job) = args.job() else { return };
        let state = args.job_owner_state().map(|(_, _, state)| state);
        match topic.to_bytes() {
            b"job.new" if matches!(state, Some(JobState::Run | JobState::Cleanup)) => {
                self.fail(job, &Failure::internal())
            }
            b"job.state.run" => {
                // It is started as soon as this callback returns, unless a prolog holds it, exception or not.
                let held = self.deliveries.borrow().contains(job);
                if held || self.jobtap.prolog_start(self.kind.prolog).is_ok() {
                    self.fail(job, &Failure::internal());
                } else {
                    self.raise(job, &Failure::internal());
                }
            }
            b"job.state.cleanup" if self.give_up(job) => self.finish_prolog(job, 1),
            _ => {}
        }
    }

    pub(crate) fn hooks(&self) -> Option<Rc<dyn Hooks>> {
        self.hooks.get()?.upgrade()
    }

    /// Returns the handle of the job manager.
    pub fn flux(&self) -> Flux<'static> {
        self.jobtap.flux()
    }

    /// Writes a line to the log of the instance, with the name of the plugin.
    pub fn log(&self, level: LogLevel, line: &str) {
        self.flux().log(level, &format!("{}: {line}", self.kind.name));
    }

    /// The first configuration has come: this plugin is the one that is in charge, unless another one is already.
    fn activate(inner: &Rc<Self>) -> Result<(), PluginError> {
        let flux = inner.flux();
        if flux.is_left(inner.kind.active) {
            return Err(PluginError(format!(
                "{} is already loaded, under another file name: remove that first",
                inner.kind.name
            )));
        }
        handover::take_charge(flux, inner.kind)
            .map_err(|e| PluginError(format!("{} cannot be put in charge: {e}", inner.kind.name)))?;
        inner.active.set(true);
        *inner.left.borrow_mut() = Handover::take(flux, inner.kind);
        if let Some(left) = &*inner.left.borrow() {
            *inner.ended_meanwhile.borrow_mut() = left.delivered.clone();
        }
        Ok(())
    }

    pub(crate) fn unlinks(&self) -> bool {
        self.current().is_some_and(|current| current.config.unlink)
    }

    pub(crate) fn number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    /// Adds a stay to the delivery of a job, if that is still on its way, and to the longest of all callbacks.
    pub fn account(&self, stay: &Stay, job: Option<JobId>) {
        if let Some(job) = job
            && let Some(delivery) = self.deliveries.borrow_mut().of(job)
        {
            delivery.cpu += stay.cpu();
        }
        self.stats.borrow_mut().callback(stay);
    }

    /// The plugin is being removed, or the job manager ends. Jobs in their prolog stay there: the next plugin that is
    /// loaded takes them up.
    pub fn end(&self) {
        if self.active.get() {
            ffi::guard((), || self.leave());
            // Whatever went wrong: the next one must not be kept out.
            handover::give_up_charge(self.flux(), self.kind);
        }
        // Nothing may be called back once the object is unmapped.
        self.agent.close();
        let current = self.current.borrow_mut().take();
        drop(current);
    }

    fn leave(&self) {
        let ticker = self.ticker.borrow_mut().take();
        drop(ticker);
        ffi::inject_fault("leave");
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        drop(pending);
        let deliveries = std::mem::take(&mut *self.deliveries.borrow_mut());
        let arrived = self.agent.take_received().into_iter().filter_map(|reply| match reply {
            Reply::Delivered { number, record, .. } => Some((number, deliveries.job_of(number)?, record)),
            _ => None,
        });
        self.records.leave(self.kind.looks_for_records, arrived);
        let in_flight: Vec<JobId> = deliveries.jobs().collect();
        drop(deliveries);
        self.reader.end();
        let mut handover = Handover {
            in_flight: in_flight.iter().copied().collect(),
            delivered: self.delivered.borrow().iter().copied().collect(),
            unknown: self.reader.jobs().into_iter().collect(),
            held: self.membership.held().into_iter().collect(),
            own: Value::Null,
        };
        if let Some(hooks) = self.hooks() {
            ffi::guard((), || hooks.leave(&mut handover));
        }
        handover.leave(self.flux(), self.kind);
        if !in_flight.is_empty() {
            let line = format!(
                "removed with {} deliveries under way: their jobs wait in their prologs until the plugin is loaded again",
                in_flight.len()
            );
            self.log(LogLevel::Warning, &line);
        }
    }
}

/// Returns where the program of the agent may be: in the plugin's own tree, or where Flux looks for programs.
fn programs(plugin: Option<PathBuf>) -> Vec<PathBuf> {
    let mut places = Vec::new();
    // PREFIX/lib/flux/job-manager/plugins/workflow-token.so, or one deeper, as in PREFIX/lib/x86_64-linux-gnu.
    let in_place = |path: &Path| {
        path.parent()
            .is_some_and(|dir| dir.ends_with("flux/job-manager/plugins"))
    };
    if let Some(path) = plugin.as_deref().filter(|path| in_place(path)) {
        let prefixes = path.ancestors().skip(5).take(2);
        places.extend(prefixes.map(|prefix| prefix.join("libexec").join(PROGRAM)));
    }
    places.push(Path::new("/usr/libexec").join(PROGRAM));
    places
}

/// What this instance is called in tokens: the host that its first broker runs on, and, where it runs in another instance,
/// the ids of the jobs that lead to it. Both stay when it is restarted, unlike `broker.uuid`.
fn instance(flux: Flux<'_>) -> String {
    let host = flux.attribute(c"hostname").unwrap_or_default();
    let path = flux.attribute(c"jobid-path").unwrap_or_default();
    format!("{host}{}", path.trim_end_matches('/'))
}
