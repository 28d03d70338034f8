//! The plugin's state: rules, and jobs from before it was loaded.

use std::{
    cell::{Cell, OnceCell},
    collections::HashSet,
    ffi::CStr,
    io,
    rc::{Rc, Weak},
};

use config::{Part, Rule};
use ffi::{Args, JobId, JobState, Jobtap, Kept, Plugin, PluginError};
use plugin::{
    CallbackTimer, Counter, Current, Delivered, Delivering, Engine, Eventlog, Handover, Hooks, Identity, Past, Perilog,
    Purpose,
    jobspec::{self, Spec},
};
use protocol::{Code, Failure, Origin};
use serde_json::json;

use crate::{
    expiry::Expiry,
    facts::JobFacts,
    projects::Membership,
    renewals::{RenewalEvent, Renewals},
};

/// The names of the plugin.
static WORKFLOW_TOKEN: Identity = Identity {
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

/// The topics of checks at submission. Jobs pay only for the callbacks that the configuration needs.
const VALIDATE: &CStr = c"job.validate";
const UPDATE: &CStr = c"job.update.attributes.system.project";
const DEPEND: &CStr = c"job.state.depend";

/// The state of the plugin, which callbacks get.
pub(crate) struct WorkflowToken {
    tokens: Rc<Tokens>,
    /// True while [`UPDATE`] is handled. A plugin that handles it permits such updates, which Flux rejects otherwise.
    permits_updates: Cell<bool>,
    /// True while [`DEPEND`] is handled.
    depends: Cell<bool>,
    /// True while [`VALIDATE`] is handled.
    validates: Cell<bool>,
    /// This state, as handlers are added with it.
    kept: OnceCell<Kept<WorkflowToken>>,
}

/// Rules, projects and renewals of the jobs of one instance.
struct Tokens {
    engine: Rc<Engine>,
    membership: Rc<Membership>,
    renewals: Rc<Renewals>,
    expiry: Expiry,
}

/// A job that a rule may match.
struct Matching {
    current: Current,
    rules: Vec<u32>,
    spec: Spec,
}

impl WorkflowToken {
    /// Returns the state of a plugin that is being loaded. It does nothing before it is configured.
    pub fn new(jobtap: Jobtap<'static>, plugin: Plugin<'_>) -> io::Result<Self> {
        let engine = Engine::new(&WORKFLOW_TOKEN, jobtap, plugin, plugin.conf()?);
        let membership = Membership::new(Rc::clone(&engine));
        let known = Rc::downgrade(&membership);
        engine.on_owner(Box::new(move |generation, uid, owner| {
            if let Some(membership) = known.upgrade() {
                membership.known(generation, uid, owner);
            }
        }));
        let tokens = Rc::new_cyclic(|this: &Weak<Tokens>| Tokens {
            renewals: Renewals::new(jobtap, {
                let this = this.clone();
                move |event| {
                    if let Some(tokens) = this.upgrade() {
                        tokens.renewal_event(event);
                    }
                }
            }),
            expiry: Expiry::new(Rc::clone(&engine)),
            engine,
            membership,
        });
        let hooks = Rc::downgrade(&tokens);
        tokens.engine.hook(hooks);
        Ok(Self {
            tokens,
            permits_updates: Cell::new(false),
            depends: Cell::new(false),
            validates: Cell::new(false),
            kept: OnceCell::new(),
        })
    }

    /// Sets how handlers are added with this state, once.
    pub fn is_kept(&self, kept: Kept<WorkflowToken>) {
        let is_first = self.kept.set(kept).is_ok();
        debug_assert!(is_first);
    }

    /// `conf.update`: rejects a wrong configuration and keeps the former. Deliveries under way keep theirs.
    pub fn conf_update(&self, plugin: Plugin<'_>, args: &Args<'_>) -> Result<(), PluginError> {
        self.tokens.configure(args)?;
        let Some(kept) = self.kept.get() else { return Ok(()) };
        let changed = self.handle_topics(plugin, kept);
        changed.map_err(|e| PluginError(format!("jobs cannot be checked when they are submitted: {e}")))
    }

    /// Handles the topics that the configuration needs, and no others.
    fn handle_topics(&self, plugin: Plugin<'_>, kept: &Kept<WorkflowToken>) -> io::Result<()> {
        let Some(config) = self.tokens.engine.current().map(|current| current.config) else {
            return Ok(());
        };
        let has_projects = !config.projects.is_empty();
        let depends = has_projects || config.foresees();
        let validates = depends || config.rules.iter().any(Rule::takes_requests);
        if validates != self.validates.get() {
            match validates {
                true => plugin.handle(VALIDATE, kept, |w: &WorkflowToken, _, args| w.validate(args))?,
                false => plugin.unhandle(VALIDATE)?,
            }
            self.validates.set(validates);
        }
        if depends != self.depends.get() {
            match depends {
                true => plugin.handle(DEPEND, kept, |w: &WorkflowToken, _, args| {
                    w.with_membership(|membership| membership.depend(args));
                    Ok(())
                })?,
                false => plugin.unhandle(DEPEND)?,
            }
            self.depends.set(depends);
        }
        if has_projects != self.permits_updates.get() {
            match has_projects {
                true => plugin.handle(UPDATE, kept, |w: &WorkflowToken, _, args| {
                    w.with_membership(|membership| membership.update_project(args))
                })?,
                false => plugin.unhandle(UPDATE)?,
            }
            self.permits_updates.set(has_projects);
        }
        Ok(())
    }

    /// `job.validate`: rejects a job whose owner is not in its project, that requests a token that it cannot have, or whose
    /// token cannot last.
    fn validate(&self, args: &Args<'_>) -> Result<(), PluginError> {
        self.with_membership(|membership| membership.validate(args))?;
        self.tokens.check_requests(args).map_err(PluginError)?;
        self.with_membership(|membership| membership.check_shortfall(args))
    }

    /// `job.new`: resumes a job from before the plugin was loaded.
    pub fn job_new(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let Some((job, uid, state)) = args.job_owner_state() else {
            return Ok(());
        };
        match state {
            JobState::Run | JobState::Cleanup => self.tokens.resume_active(args, job, uid, state),
            JobState::Depend => self.tokens.membership.resume(job, uid),
            JobState::New | JobState::Pending | JobState::Inactive => {}
        }
        Ok(())
    }

    /// `job.state.run`: begins the delivery of a job that a rule may match.
    pub fn job_run(&self, args: &Args<'_>) -> Result<(), PluginError> {
        self.tokens.start(args);
        Ok(())
    }

    /// `job.state.cleanup`: gives up the delivery of a job that was canceled or has ended.
    pub fn job_cleanup(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let timer = CallbackTimer::start();
        let Some(job) = args.job() else { return Ok(()) };
        let Tokens {
            engine,
            membership,
            renewals,
            ..
        } = &*self.tokens;
        membership.forget(job);
        membership.shortfalls.forget(job);
        renewals.forget(job);
        if engine.deliveries.give_up(job) {
            engine.prologs.finish(job, 1);
            engine.deliveries.account(&timer, None);
        }
        Ok(())
    }

    /// `job.state.inactive`: removes the record of a job of which nothing runs any more.
    pub fn job_inactive(&self, args: &Args<'_>) -> Result<(), PluginError> {
        if let Some(job) = args.job() {
            self.tokens.engine.ended(job);
        }
        Ok(())
    }

    /// `plugin.query`: counters.
    pub fn query(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let mut answer = self.tokens.engine.counters();
        answer["held"] = json!(self.tokens.membership.held().len());
        answer["renewing"] = json!(self.tokens.renewals.len());
        answer["known-users"] = json!(self.tokens.membership.known_users());
        args.answer(&answer);
        Ok(())
    }

    fn with_membership<T>(&self, f: impl FnOnce(&Membership) -> T) -> T {
        let timer = CallbackTimer::start();
        let result = f(&self.tokens.membership);
        self.tokens.engine.deliveries.account(&timer, None);
        result
    }
}

impl ffi::State for WorkflowToken {
    fn panicked(&self, topic: &CStr, args: &Args<'_>) {
        self.tokens.engine.panicked(topic, args);
    }
}

impl Drop for WorkflowToken {
    fn drop(&mut self) {
        self.tokens.engine.end();
        self.tokens.membership.end();
        self.tokens.renewals.end();
        self.tokens.expiry.end();
    }
}

impl Tokens {
    fn configure(&self, args: &Args<'_>) -> Result<(), PluginError> {
        if self.engine.configure(args)? {
            let held: Option<HashSet<JobId>> = self.engine.inherited();
            self.membership.inherit(held.unwrap_or_default());
        }
        self.membership.reconsider();
        Ok(())
    }

    /// Checks what a job requests of its tokens.
    fn check_requests(&self, args: &Args<'_>) -> Result<(), String> {
        let (Some(current), Some((_, uid, _))) = (self.engine.current(), args.job_owner_state()) else {
            return Ok(());
        };
        let requests = jobspec::requests(args)?;
        if requests.is_empty() {
            return Ok(());
        }
        let config = &current.config;
        let asked = jobspec::asked(args);
        // The delivery decides by its owner.
        let candidates = config.candidates(&JobFacts {
            args,
            uid,
            projects: &config.projects,
            asked: &asked,
            owner: None,
        });
        config.check_requests(&candidates, &requests)
    }

    /// Begins a delivery within the callback of the job's change to RUN.
    fn start(self: &Rc<Self>, args: &Args<'_>) {
        let timer = CallbackTimer::start();
        let Some((job, uid, _)) = args.job_owner_state() else {
            return;
        };
        let Some(matching) = self.matching(args, uid) else {
            return;
        };
        let Engine {
            deliveries, prologs, ..
        } = &*self.engine;
        if deliveries.is_under_way(job) {
            return;
        }
        if let Err(e) = prologs.start() {
            // The job must not start without its token.
            prologs.raise(job, &e);
            return;
        }
        deliveries.unless_it_panics(job, || self.begin(matching, job, uid, &timer));
    }

    fn begin(self: &Rc<Self>, matching: Matching, job: JobId, uid: u32, timer: &CallbackTimer) {
        let tokens = Rc::downgrade(self);
        let end = move |result: Result<Delivered, Failure>| {
            let Some(tokens) = tokens.upgrade() else { return };
            let prologs = &tokens.engine.prologs;
            match result {
                Ok(delivered) => {
                    tokens.membership.shortfalls.report_delivered(job, &delivered.warnings);
                    prologs.finish(job, 0);
                    tokens.renewals.committed(job, &delivered);
                }
                // The deliveries have logged it.
                Err(why) => prologs.end(job, &why),
            }
        };
        self.deliver(matching, job, uid, Purpose::Start, end);
        self.engine.deliveries.account(timer, Some(job));
    }

    fn deliver(
        &self,
        matching: Matching,
        job: JobId,
        uid: u32,
        purpose: Purpose,
        end: impl FnOnce(Result<Delivered, Failure>) + 'static,
    ) {
        let Matching { current, rules, spec } = matching;
        if let Err(why) = &spec.requests {
            let why = Failure::new(Code::RequestDenied, why.clone(), why.clone());
            self.engine.deliveries.reject(job, Some(Box::new(end)), &why);
            return;
        }
        let request = Delivering {
            job,
            uid,
            purpose,
            origin: Origin::Rules(rules),
            spec,
        };
        self.engine.deliveries.begin(&current, request, Some(Box::new(end)));
    }

    fn renewal_event(self: &Rc<Self>, event: RenewalEvent) {
        match event {
            RenewalEvent::Due(job, records) => self.renew(job, records),
            RenewalEvent::Expired(job, on_expiry) => self.expiry.expired(job, on_expiry),
            RenewalEvent::Log(level, line) => self.engine.log(level, &line),
        }
    }

    /// Begins the delivery of the next record of a job that runs, by the rules in force.
    fn renew(self: &Rc<Self>, job: JobId, records: u32) {
        let timer = CallbackTimer::start();
        let args = self.engine.jobtap().lookup(job);
        let Some((args, uid)) = args.and_then(|args| {
            let (_, uid, state) = args.job_owner_state()?;
            (state == JobState::Run).then_some((args, uid))
        }) else {
            return self.renewals.forget(job);
        };
        let Some(matching) = self.matching(&args, uid) else {
            let why = "no rule is for it any more";
            return self.renewals.failed(job, &Failure::new(Code::RulesChanged, why, why));
        };
        let tokens = Rc::downgrade(self);
        let end = move |result: Result<Delivered, Failure>| {
            let Some(tokens) = tokens.upgrade() else { return };
            match result {
                Ok(delivered) => tokens.renewals.committed(job, &delivered),
                Err(why) => tokens.renewals.failed(job, &why),
            }
        };
        self.deliver(matching, job, uid, Purpose::Renewal(records), end);
        self.engine.deliveries.account(&timer, Some(job));
    }

    /// Returns the rules that may match a job; none if no rule can.
    fn matching(&self, args: &Args<'_>, uid: u32) -> Option<Matching> {
        let current = self.engine.current()?;
        if current.config.rules.is_empty() {
            return None;
        }
        let spec = current.spec(args);
        // The owner counts as unknown. The agent looks it up: groups and identity tokens change.
        let rules = current.config.candidates(&JobFacts {
            args,
            uid,
            projects: &current.config.projects,
            asked: &spec.asked,
            owner: None,
        });
        if rules.is_empty() {
            return None;
        }
        let rules = rules.into_iter().filter_map(|rule| u32::try_from(rule).ok());
        Some(Matching {
            rules: rules.collect(),
            spec,
            current,
        })
    }

    /// Resumes a job that was past SCHED when the plugin was loaded.
    fn resume_active(self: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, state: JobState) {
        self.engine.is_active_still(job);
        match self.engine.past(job) {
            // In the same job manager the handover is exact, and the eventlog in the KVS may be behind.
            Some(Past::None) if state == JobState::Run => self.start_late(args, job, uid),
            Some(past) => self.settle(args, job, uid, state, past),
            None => self.engine.read_eventlog(job),
        }
    }

    /// Begins the delivery of a job that entered RUN while no plugin was loaded, if another prolog still holds it. Flux
    /// rejects a prolog of a job that has started.
    fn start_late(self: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32) {
        let timer = CallbackTimer::start();
        let Some(matching) = self.matching(args, uid) else {
            return;
        };
        let Engine {
            deliveries, prologs, ..
        } = &*self.engine;
        if prologs.start().is_ok() {
            deliveries.unless_it_panics(job, || self.begin(matching, job, uid, &timer));
        }
    }

    fn settle(self: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, state: JobState, past: Past) {
        let timer = CallbackTimer::start();
        if past == Past::Finished(0) && state == JobState::Run {
            self.renewals.resume(job);
        }
        if !self.engine.settle(job, state, past) {
            return;
        }
        match self.matching(args, uid) {
            Some(matching) => self.begin(matching, job, uid, &timer),
            None => {
                let why = "no rule matches it any more: the configuration was changed during its delivery";
                let why = Failure::new(Code::RulesChanged, "the rules were changed: submit it again", why);
                self.engine.deliveries.fail(job, &why);
            }
        }
    }

    /// Fails a job that entered RUN before this job manager had a plugin, and that something else still holds: only callbacks
    /// of the job can start a prolog, and none need come before it starts.
    fn too_late(&self, args: &Args<'_>, job: JobId, uid: u32) {
        if self.matching(args, uid).is_some() {
            let user = "it was allocated before tokens were delivered here: submit it again";
            let why =
                "it was in RUN, and not started, when the plugin was loaded into this job manager for the first time";
            self.engine.deliveries.count(Counter::Failed);
            self.engine.prologs.raise(job, &Failure::new(Code::TooLate, user, why));
        }
    }
}

impl Hooks for Tokens {
    fn resume(self: Rc<Self>, job: JobId, eventlog: &Eventlog) {
        ffi::inject_fault("eventlog");
        // The job may have changed since it was read.
        let Some(args) = self.engine.jobtap().lookup(job) else {
            return;
        };
        let Some((_, uid, state)) = args.job_owner_state() else {
            return;
        };
        if state == JobState::Inactive || self.engine.deliveries.is_under_way(job) {
            return;
        }
        if state == JobState::Depend {
            return self.membership.resume_from(job, uid, eventlog);
        }
        let past = eventlog.past(Perilog::Prolog, WORKFLOW_TOKEN.name);
        if past == Past::None && state == JobState::Run && !eventlog.has_started() {
            return self.too_late(&args, job, uid);
        }
        self.settle(&args, job, uid, state, past);
    }

    fn leave(&self, handover: &mut Handover) {
        handover.own = json!(self.membership.held());
    }

    fn failed(&self, job: JobId, why: &Failure) {
        self.engine.prologs.refuse(job, why);
    }
}
