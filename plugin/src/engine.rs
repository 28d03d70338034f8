// SPDX-License-Identifier: MIT OR Apache-2.0

//! The engine that all plugins share: configuration, deliveries, and jobs from before the plugin was loaded.
//!
//! Calls into Flux may call back before they return (an exception moves the job to CLEANUP), so no `RefCell` is
//! borrowed across a call.

use std::{
    cell::OnceCell,
    ffi::CStr,
    io,
    rc::{Rc, Weak},
};

use config::Part;
use ffi::{Args, Flux, Future, JobId, JobState, Jobtap, LogLevel, Plugin, PluginError};
use protocol::{Code, Failure, Origin, Owner, SecretText};
use seal::{ExposeSecret, Variables};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    configuration::{Configuration, Current},
    deliveries::{Deliveries, Delivering, DeliveryEvent},
    eventlog::{Eventlog, Past},
    handover::Handover,
    identity::Identity,
    jobspec::Spec,
    prologs::Prologs,
    reader::{self, ReadEvent, Reader, Subject},
    stats::CallbackTimer,
    succession::Succession,
    table::{End, Purpose},
    ticker::Ticker,
};

/// The longest table, in bytes of JSON. A frame has room for it and for the options of the plugin.
const LONGEST_TABLE: usize = protocol::MAX_FRAME / 2;

/// The eventlogs of jobs. Without it, the plugin does not know whether a prolog holds the job.
static EVENTLOG: Subject = Subject {
    key: c"eventlog",
    name: "eventlog",
    otherwise: "the job may wait",
    is_optional: false,
};

/// The functions that each plugin implements itself.
pub trait Hooks {
    /// Resumes a job whose eventlog was read ([`Engine::read_eventlog`]).
    fn resume(self: Rc<Self>, job: JobId, eventlog: &Eventlog);
    /// Adds the plugin's own state to the handover.
    fn leave(&self, handover: &mut Handover);
    /// Ends a job whose delivery failed: exception and prolog.
    fn failed(&self, job: JobId, why: &Failure);
}

/// Called with the generation of a configuration, a uid, and the facts about the user, or an error for the operator.
pub type OnOwner = Box<dyn Fn(u32, u32, Result<Owner, String>)>;

/// The state that every plugin has on the reactor thread.
pub struct Engine {
    /// The prologs and exceptions of jobs.
    pub prologs: Prologs,
    /// The deliveries under way.
    pub deliveries: Rc<Deliveries>,
    hooks: OnceCell<Weak<dyn Hooks>>,
    on_owner: OnceCell<OnOwner>,
    configuration: Configuration,
    succession: Succession,
    reader: Rc<Reader>,
    ticker: Rc<Ticker>,
}

impl Engine {
    /// Returns the engine of a plugin that is being loaded. `overrides` are keys that override those of the
    /// configuration's table.
    pub fn new(identity: &'static Identity, jobtap: Jobtap<'static>, plugin: Plugin<'_>, overrides: Value) -> Rc<Self> {
        let prologs = Prologs { identity, jobtap };
        Rc::new_cyclic(|this: &Weak<Self>| {
            let deliveries = Deliveries::new(prologs, {
                let this = this.clone();
                move |event| {
                    if let Some(engine) = this.upgrade() {
                        engine.delivery_event(event);
                    }
                }
            });
            let reader = Reader::new(jobtap, &EVENTLOG, {
                let this = this.clone();
                move |event| {
                    let Some(engine) = this.upgrade() else { return };
                    match event {
                        ReadEvent::Read(job, text) => {
                            engine.deliveries.unless_it_panics(job, || engine.resume(job, &text));
                        }
                        ReadEvent::Log(level, line) => engine.log(level, &line),
                    }
                }
            });
            let ticker = Ticker::new(jobtap.flux(), {
                let this = this.clone();
                move || this.upgrade().is_some_and(|engine| engine.ticked())
            });
            Self {
                prologs,
                deliveries,
                hooks: OnceCell::new(),
                on_owner: OnceCell::new(),
                configuration: Configuration::new(identity.part, overrides, plugin.path().as_deref()),
                succession: Succession::new(identity),
                reader,
                ticker,
            }
        })
    }

    /// Sets the functions of the plugin, once.
    pub fn hook(&self, hooks: Weak<dyn Hooks>) {
        let is_first = self.hooks.set(hooks).is_ok();
        debug_assert!(is_first);
    }

    /// Sets the function that is called when the agent reports a user, once.
    pub fn on_owner(&self, known: OnOwner) {
        let is_first = self.on_owner.set(known).is_ok();
        debug_assert!(is_first);
    }

    /// Requests the facts about a user from the agent, unless a request is pending.
    pub fn look_up(&self, generation: u32, uid: u32) {
        self.deliveries.agent.look_up(generation, uid);
    }

    // Configuration and takeover

    /// Applies a configuration, or rejects it and keeps the former one. The first one makes this plugin the active one.
    /// Returns whether it is the first.
    ///
    /// # Errors
    /// The invalid key or other cause, for the user who has Flux reload its configuration.
    pub fn configure(&self, args: &Args<'_>) -> Result<bool, PluginError> {
        let all = args
            .all()
            .map_err(|e| PluginError(format!("the configuration of Flux cannot be read: {e}")))?;
        let conf = &all["conf"];
        let config = self.configuration.parse(conf).map_err(|e| PluginError(e.to_string()))?;
        let table = json!({ config::TABLE: conf[config::TABLE] }).to_string();
        if table.len() > LONGEST_TABLE {
            let (table, length) = (config::TABLE, table.len());
            return Err(PluginError(format!(
                "the table {table} takes {length} bytes, and the agent takes at most {LONGEST_TABLE}: shorten it"
            )));
        }
        for line in &config.obsolete {
            self.log(LogLevel::Warning, line);
        }
        let part = self.prologs.identity.part;
        let config = config.only(part);
        let address = self.configuration.address(&config, self.flux()).map_err(PluginError)?;
        let is_first = !self.succession.is_active();
        if is_first {
            let delivered = self.succession.take_charge(self.flux()).map_err(PluginError)?;
            self.deliveries.removals.inherit(delivered);
        }
        let is_used = part != Part::Tokens || !config.rules.is_empty() || !config.projects.is_empty();
        self.deliveries.removals.enable(config.unlink);
        let generation = self.configuration.replace(config).generation;
        if is_used {
            let request = self.configuration.request(generation, table, self.flux());
            self.deliveries.agent.configure(request);
            self.deliveries.agent.connect_to(address);
        }
        self.deliveries.agent.retire_unused(generation);
        if !self.deliveries.removals.is_idle() {
            self.tick();
        }
        Ok(is_first)
    }

    fn delivery_event(&self, event: DeliveryEvent<'_>) {
        match event {
            DeliveryEvent::Pending => self.tick(),
            DeliveryEvent::Failed(job, why) => {
                if let Some(hooks) = self.hooks() {
                    hooks.failed(job, why);
                }
            }
            DeliveryEvent::Configured(generation, wrong) => self.configured(generation, wrong),
            DeliveryEvent::Owner(generation, uid, owner) => {
                if let Some(known) = self.on_owner.get() {
                    known(generation, uid, owner);
                }
            }
        }
    }

    /// Reports a configuration that the agent cannot use.
    fn configured(&self, generation: u32, wrong: Option<String>) {
        let is_current = self.current().is_some_and(|current| current.generation == generation);
        if let Some(wrong) = wrong.filter(|_| is_current) {
            let what = self.prologs.identity.what;
            let line = format!("{wrong}. Jobs get no {what} until this is corrected [agent-configuration]");
            self.log(LogLevel::Err, &line);
        }
    }

    /// Ends everything when the plugin is removed or the job manager ends. Jobs stay in their prologs: the next plugin
    /// resumes them.
    pub fn end(&self) {
        if self.succession.is_active() {
            ffi::guard((), || self.leave());
            // After any failure, a successor must be able to take over.
            self.succession.give_up_charge(self.flux());
        }
        // Flux must not call back after the object is unmapped.
        self.deliveries.agent.close();
        self.configuration.clear();
    }

    fn leave(&self) {
        self.ticker.stop();
        ffi::inject_fault("leave");
        let in_flight = self.deliveries.leave();
        let count = in_flight.len();
        self.reader.end();
        let mut handover = Handover {
            in_flight,
            delivered: self.deliveries.removals.jobs(),
            unknown: self.reader.jobs(),
            own: Value::Null,
        };
        if let Some(hooks) = self.hooks() {
            ffi::guard((), || hooks.leave(&mut handover));
        }
        handover.leave(self.flux(), self.prologs.identity);
        if count > 0 {
            let line = format!(
                "removed with {count} deliveries under way: their jobs wait in their prologs until the plugin is loaded again"
            );
            self.log(LogLevel::Warning, &line);
        }
    }

    // Deliveries, and jobs from before the plugin was loaded

    /// Begins the delivery of provided variables to a job whose prolog has started.
    pub fn provide(&self, job: JobId, uid: u32, variables: Variables, end: Option<End>) {
        let timer = CallbackTimer::start();
        let Some(current) = self.current() else {
            // Flux configures a plugin before it calls it for any job.
            return self.deliveries.reject(job, end, &Failure::internal());
        };
        let lengths = variables
            .iter()
            .map(|(name, value)| name.len() + value.expose_secret().len());
        let length: usize = lengths.sum();
        if length > seal::MAX_PAYLOAD {
            let room = seal::MAX_PAYLOAD;
            let why = format!("its variables take {length} bytes, and a record has room for {room}");
            let why = Failure::new(Code::TooLarge, why.clone(), why);
            return self.deliveries.reject(job, end, &why);
        }
        // Look up the jobspec of the job, including updates.
        let needed = current.needed;
        let args = needed.anything().then(|| self.jobtap().lookup(job)).flatten();
        let spec = args.map_or_else(Spec::none, |args| Spec::of(&args, needed));
        let provided = variables.iter().map(|(name, value)| {
            let value = Zeroizing::new(value.expose_secret().to_owned());
            (name.to_owned(), SecretText(value))
        });
        let origin = Origin::Provided(provided.collect());
        let request = Delivering {
            job,
            uid,
            purpose: Purpose::Start,
            origin,
            spec,
        };
        self.deliveries.begin(&current, request, end);
        self.deliveries.account(&timer, Some(job));
    }

    /// Removes the record of an inactive job, if it may have one.
    pub fn ended(&self, job: JobId) {
        // A job whose eventlog was not read may have a record.
        let is_unread = self.reader.forget(job);
        if self.deliveries.removals.ended(job, is_unread) {
            self.tick();
        }
    }

    /// Reports the end of a job to the agent, if status lists are configured.
    pub fn report_end(&self, job: JobId) {
        let has_lists = self.current().is_some_and(|current| {
            let issuer = current.config.issuer.as_ref();
            issuer.is_some_and(|issuer| issuer.status_list.is_some())
        });
        if has_lists {
            self.deliveries.agent.ended(job);
        }
    }

    /// Reads the eventlog of a job, for [`Hooks::resume`].
    pub fn read_eventlog(&self, job: JobId) {
        self.reader.read(job);
        self.tick();
    }

    /// Stops reading the eventlog of a job.
    pub fn forget_eventlog(&self, job: JobId) {
        self.reader.forget(job);
    }

    /// Returns whether the state of every job is known.
    pub fn knows_all(&self) -> bool {
        self.reader.is_idle()
    }

    fn resume(&self, job: JobId, text: &str) {
        if let Some(hooks) = self.hooks() {
            hooks.resume(job, &Eventlog::parse(text, self.prologs.identity.events));
        }
    }

    /// Resumes a job from before the plugin was loaded, according to the state of its prolog. Returns whether the
    /// prolog waits for a delivery.
    pub fn settle(&self, job: JobId, state: JobState, past: Past) -> bool {
        match (past, state) {
            (Past::None, _) => false,
            (Past::Finished(_), _) => {
                self.deliveries.removals.may_exist(job);
                false
            }
            (Past::Outstanding, JobState::Run) => {
                self.deliveries.stats.borrow_mut().resumed += 1;
                true
            }
            (Past::Outstanding, _) => {
                self.deliveries.stats.borrow_mut().canceled += 1;
                self.prologs.finish(job, 1);
                false
            }
        }
    }

    /// Returns the state of a job's prolog according to the handover; none without a predecessor in this job manager,
    /// or if the predecessor did not know.
    pub fn past(&self, job: JobId) -> Option<Past> {
        self.succession.past(job)
    }

    /// Returns the plugin's own part of the handover; none if it is missing or has another format.
    pub fn inherited<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        self.succession.own()
    }

    /// Keeps the record of a job from before the plugin was loaded, if it has one: the job is still active.
    pub fn is_active_still(&self, job: JobId) {
        self.deliveries.removals.is_active(job);
    }

    /// Records that a job may have a record, which is removed after the end of the job.
    pub fn may_have_record(&self, job: JobId) {
        self.deliveries.removals.may_exist(job);
    }

    // Time

    /// Starts the ticker when work is pending.
    fn tick(&self) {
        if let Err(e) = self.ticker.start() {
            self.log(LogLevel::Err, &format!("no timer can be started: {e}"));
        }
    }

    /// Fails overdue deliveries, removes records, and retries reads. Returns whether work is pending.
    fn ticked(&self) -> bool {
        ffi::inject_fault("tick");
        let timer = CallbackTimer::start();
        let is_pending = self.deliveries.tick();
        self.reader.tick();
        self.deliveries.stats.borrow_mut().callback(&timer);
        is_pending || !self.reader.is_idle()
    }

    // Faults

    /// Ends the job of a callback that panicked. The job manager ignores the return value of the callback. The job must
    /// neither start without its variables nor keep a prolog of this plugin.
    pub fn panicked(&self, topic: &CStr, args: &Args<'_>) {
        let Some(job) = args.job() else { return };
        let state = args.job_owner_state().map(|(_, _, state)| state);
        match topic.to_bytes() {
            b"job.new" if matches!(state, Some(JobState::Run | JobState::Cleanup)) => {
                self.deliveries.fail(job, &Failure::internal());
            }
            b"job.state.run" => {
                // Flux starts the job as soon as this callback returns, even after an exception, unless a prolog holds
                // it.
                if self.deliveries.is_under_way(job) || self.jobtap().prolog_start(self.prologs.identity.prolog).is_ok()
                {
                    self.deliveries.fail(job, &Failure::internal());
                } else {
                    self.prologs.raise(job, &Failure::internal());
                }
            }
            b"job.state.cleanup" if self.deliveries.give_up(job) => self.prologs.finish(job, 1),
            _ => {}
        }
    }

    // Access

    fn hooks(&self) -> Option<Rc<dyn Hooks>> {
        self.hooks.get()?.upgrade()
    }

    /// Returns the jobtap of the plugin.
    pub fn jobtap(&self) -> Jobtap<'static> {
        self.prologs.jobtap
    }

    /// Returns the handle of the job manager.
    pub fn flux(&self) -> Flux<'static> {
        self.jobtap().flux()
    }

    /// Writes a line to the log of the instance, with the name of the plugin.
    pub fn log(&self, level: LogLevel, line: &str) {
        self.prologs.log(level, line);
    }

    /// Returns the active configuration; none before the first.
    pub fn current(&self) -> Option<Current> {
        self.configuration.current()
    }

    /// Returns the state of an active job.
    pub fn state(&self, job: JobId) -> Option<JobState> {
        reader::active_state(self.jobtap(), job)
    }

    /// Sends an empty commit. When it completes, all earlier commits are in the KVS.
    ///
    /// # Errors
    /// The request cannot be sent.
    pub fn commit_nothing(&self) -> io::Result<Future> {
        reader::commit_nothing(self.flux())
    }

    // Counters

    /// Returns the answer to `plugin.query`.
    pub fn counters(&self) -> Value {
        let mut answer = self.deliveries.stats.borrow().to_json();
        answer["in-flight"] = json!(self.deliveries.len());
        #[cfg(any(test, feature = "fault-injection"))]
        {
            answer["memory"] = json!(crate::MEMORY.bytes());
        }
        answer["version"] = json!(env!("CARGO_PKG_VERSION"));
        answer["rules"] = json!(self.current().map_or(0, |current| current.config.rules.len()));
        answer["agent"] = json!(if self.deliveries.agent.is_connected() {
            "connected"
        } else {
            "not connected"
        });
        answer
    }
}
