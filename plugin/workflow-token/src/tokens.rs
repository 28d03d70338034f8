// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tokens of the jobs of an instance: rules, deliveries, renewals, and jobs from before the plugin was loaded.

use std::{
    collections::HashSet,
    io,
    rc::{Rc, Weak},
};

use config::Part;
use ffi::{Args, JobId, JobState, Jobtap, Plugin, PluginError};
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

/// Rules, projects and renewals of the jobs of one instance.
pub(crate) struct Tokens {
    /// The engine, which all plugins use.
    pub engine: Rc<Engine>,
    /// The members of projects.
    pub membership: Rc<Membership>,
    renewals: Rc<Renewals>,
    expiry: Expiry,
}

/// A job that a rule may match.
struct Matching {
    current: Current,
    rules: Vec<u32>,
    spec: Spec,
}

impl Tokens {
    /// Returns a state that does nothing until it is configured.
    pub fn new(jobtap: Jobtap<'static>, plugin: Plugin<'_>) -> io::Result<Rc<Self>> {
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
        Ok(tokens)
    }

    /// Ends everything when the plugin is removed.
    pub fn end(&self) {
        self.engine.end();
        self.membership.end();
        self.renewals.end();
        self.expiry.end();
    }

    /// Discards all state of a job that was canceled or has ended. Returns whether a delivery was under way.
    pub fn give_up(&self, job: JobId) -> bool {
        self.membership.forget(job);
        self.membership.shortfalls.forget(job);
        self.renewals.forget(job);
        let was_under_way = self.engine.deliveries.give_up(job);
        if was_under_way {
            self.engine.prologs.finish(job, 1);
        }
        was_under_way
    }

    /// Returns the number of jobs with renewed tokens.
    pub fn renewed(&self) -> usize {
        self.renewals.len()
    }

    pub fn configure(&self, args: &Args<'_>) -> Result<(), PluginError> {
        if self.engine.configure(args)? {
            let held: Option<HashSet<JobId>> = self.engine.inherited();
            self.membership.inherit(held.unwrap_or_default());
        }
        self.membership.reconsider();
        Ok(())
    }

    /// Checks the token requests of a job.
    pub fn check_requests(&self, args: &Args<'_>) -> Result<(), String> {
        let (Some(current), Some((_, uid, _))) = (self.engine.current(), args.job_owner_state()) else {
            return Ok(());
        };
        let requests = jobspec::requests(args)?;
        if requests.is_empty() {
            return Ok(());
        }
        let config = &current.config;
        let asked = jobspec::asked(args);
        // The owner counts as unknown: the delivery checks the rules for the owner.
        let candidates = config.candidates(&JobFacts {
            args,
            uid,
            projects: &config.projects,
            asked: &asked,
            owner: None,
        });
        config.check_requests(&candidates, &requests)
    }

    /// Begins a delivery, within the callback for the job's transition to RUN.
    pub fn start(self: &Rc<Self>, args: &Args<'_>) {
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
                // The deliveries have logged the failure.
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

    /// Begins the renewal of a running job's record, under the current rules.
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
            let why = "no rule matches it any more";
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
        // The owner counts as unknown. The agent looks up the owner, because groups and identity tokens change.
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

    /// Resumes a job that had left SCHED when the plugin was loaded.
    pub fn resume_active(self: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, state: JobState) {
        self.engine.is_active_still(job);
        match self.engine.past(job) {
            // In the same job manager, the handover is exact, and the eventlog in the KVS may lack events.
            Some(Past::None) if state == JobState::Run => self.start_late(args, job, uid),
            Some(past) => self.settle(args, job, uid, state, past),
            None => self.engine.read_eventlog(job),
        }
    }

    /// Begins the delivery of a job that entered RUN while no plugin was loaded, if another prolog still holds it. If
    /// the job has started, Flux rejects the prolog.
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

    /// Fails a job that entered RUN before this job manager loaded a plugin, and that another prolog still holds. Only
    /// callbacks of the job can start a prolog, and there may be none before the job starts.
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
        // The job may have changed during the read.
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
