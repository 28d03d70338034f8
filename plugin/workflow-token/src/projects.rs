// SPDX-License-Identifier: MIT OR Apache-2.0

//! Checks the projects of jobs that are submitted or updated.
//!
//! Callbacks that may reject a job run on the reactor thread, which cannot wait for the name service. If the job owner
//! is known, the callback decides. Otherwise the job is accepted, and a dependency holds it until the agent has looked
//! up the owner; then it continues or fails. The delivery looks up the owner again and makes the final decision.

use std::{
    cell::RefCell,
    collections::HashSet,
    ffi::CStr,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use config::{Asked, Denied, Person};
use ffi::{Args, JobId, JobState, LogLevel, PluginError, Watcher};
use plugin::{CallbackTimer, Current, Engine, Eventlog, TURN, Ticker, jobspec};

use crate::{
    facts::JobFacts,
    owners::{KnownOwners, Owner},
    pending_owners::{DueJob, PendingOwners},
    shortfalls::{self, Foreseen, Shortfalls},
};

/// The dependency that holds a job whose owner is unknown.
const DEPENDENCY: &CStr = c"workflow-token-project";

/// The pause before a failed look-up is retried.
const RETRY: Duration = Duration::from_secs(5);

/// Decides which jobs may be in their projects.
pub(crate) struct Membership {
    engine: Rc<Engine>,
    /// Warns users of accepted jobs.
    pub shortfalls: Shortfalls,
    owners: RefCell<KnownOwners>,
    pending: RefCell<PendingOwners>,
    /// The jobs that the predecessor held.
    inherited: RefCell<HashSet<JobId>>,
    /// The timer for the next turn of due jobs.
    turn: RefCell<Option<Watcher>>,
    ticker: Rc<Ticker>,
}

/// The decision about a job and its project.
enum Standing {
    Fine,
    Denied(Denied),
    Unknown,
}

impl Membership {
    pub fn new(engine: Rc<Engine>) -> Rc<Self> {
        Rc::new_cyclic(|this: &Weak<Self>| {
            let weak = this.clone();
            let flux = engine.flux();
            Self {
                shortfalls: Shortfalls::new(Rc::clone(&engine)),
                engine,
                owners: RefCell::default(),
                pending: RefCell::default(),
                inherited: RefCell::default(),
                turn: RefCell::default(),
                ticker: Ticker::new(flux, move || weak.upgrade().is_some_and(|this| this.ticked())),
            }
        })
    }

    /// Returns the held jobs.
    pub fn held(&self) -> HashSet<JobId> {
        self.pending.borrow().jobs().collect()
    }

    /// Takes over the jobs that the predecessor held.
    pub fn inherit(&self, jobs: HashSet<JobId>) {
        *self.inherited.borrow_mut() = jobs;
    }

    /// Stops holding a job that is in CLEANUP.
    pub fn forget(&self, job: JobId) {
        self.pending.borrow_mut().remove(job);
    }

    /// Returns the number of known users.
    pub fn known_users(&self) -> usize {
        self.owners.borrow().count()
    }

    /// Forgets all owners and decides all held jobs again, because the configuration has changed.
    pub fn reconsider(&self) {
        self.owners.borrow_mut().clear();
        self.pending.borrow_mut().look_all_up(Instant::now());
        if self.pending.borrow().len() > 0 {
            self.tick();
        }
    }

    /// Stops all timers when the plugin is removed.
    pub fn end(&self) {
        self.ticker.stop();
        drop(self.turn.take());
    }

    /// `job.validate`: rejects a job whose owner is not in its project. Flux calls it when a job is submitted, and when
    /// a job is updated, then with the updated jobspec.
    pub fn validate(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let Some((current, job, uid, state)) = self.with_projects(args) else {
            return Ok(());
        };
        let asked = jobspec::asked(args);
        match state {
            JobState::New => match self.standing(&current, args, &asked, uid) {
                Standing::Denied(why) => Err(refusal(&why)),
                Standing::Fine => Ok(()),
                Standing::Unknown => {
                    self.engine.look_up(current.generation, uid);
                    Ok(())
                }
            },
            _ => {
                let former = self.engine.jobtap().lookup(job).map(|args| jobspec::asked(&args));
                let is_new = former.as_ref() != Some(&asked);
                self.check_update(&current, args, &asked, is_new)
            }
        }
    }

    /// `job.update.attributes.system.project`: rejects an update to a project that the owner is not in. If other
    /// plugins declare the update validated, Flux does not call `job.validate`.
    pub fn update_project(&self, args: &Args<'_>) -> Result<(), PluginError> {
        match self.with_projects(args) {
            Some((current, ..)) => self.check_update(&current, args, &jobspec::asked_by_update(args), true),
            None => Ok(()),
        }
    }

    fn check_update(&self, current: &Current, args: &Args<'_>, asked: &Asked, is_new: bool) -> Result<(), PluginError> {
        let Some((_, uid, state)) = args.job_owner_state() else {
            return Ok(());
        };
        if matches!(state, JobState::Run | JobState::Cleanup | JobState::Inactive) {
            let why = "its project cannot be changed any more: the job has been allocated, or has ended";
            return if is_new {
                Err(PluginError(why.to_owned()))
            } else {
                Ok(())
            };
        }
        match self.standing(current, args, asked, uid) {
            Standing::Fine => Ok(()),
            Standing::Denied(why) => Err(refusal(&why)),
            Standing::Unknown => {
                self.engine.look_up(current.generation, uid);
                let why = format!("it is not known yet in which projects uid {uid} is: try again in a moment");
                if is_new { Err(PluginError(why)) } else { Ok(()) }
            }
        }
    }

    /// `job.validate`: rejects a job whose token expires too early, or an update of the time limit with that effect, if
    /// its rule requires it.
    pub fn check_shortfall(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let (Some(current), Some((job, uid, state))) = (self.engine.current(), args.job_owner_state()) else {
            return Ok(());
        };
        let former = (state != JobState::New)
            .then(|| self.engine.jobtap().lookup(job))
            .flatten();
        if former.is_some_and(|former| jobspec::time_limit(&former) == jobspec::time_limit(args)) {
            return Ok(());
        }
        let rejected = self.foresee(&current, args, uid).rejected;
        rejected.map_or(Ok(()), |why| Err(PluginError(why)))
    }

    /// Predicts shortfalls of the tokens of a job from the current knowledge.
    fn foresee(&self, current: &Current, args: &Args<'_>, uid: u32) -> Foreseen {
        let (config, owners) = (&current.config, self.owners.borrow());
        let job = JobFacts {
            args,
            uid,
            projects: &config.projects,
            asked: &jobspec::asked(args),
            owner: owners.known(uid),
        };
        shortfalls::foresee(config, &job)
    }

    /// `job.state.depend`: holds a job with a pending owner, and warns the user of any other job whose token falls short.
    pub fn depend(&self, args: &Args<'_>) {
        // On load, Flux also calls it for jobs whose dependencies are already resolved.
        if args.previous_state() != Some(JobState::New) {
            return;
        }
        let (Some(current), Some((job, uid, _))) = (self.engine.current(), args.job_owner_state()) else {
            return;
        };
        match self.standing(&current, args, &jobspec::asked(args), uid) {
            Standing::Fine => {
                let foreseen = self.foresee(&current, args, uid);
                if let Err(why) = self.shortfalls.report(job, foreseen) {
                    self.deny(job, &why);
                }
            }
            // The owner was not known at submission.
            Standing::Denied(why) => self.deny(job, &why.to_string()),
            Standing::Unknown => {
                if let Err(e) = self.engine.jobtap().dependency_add(job, DEPENDENCY) {
                    // The delivery looks up the owner anyway.
                    let line = format!("{job}: it could not be held until its owner is known: {e}");
                    return self.engine.log(LogLevel::Warning, &line);
                }
                self.hold(job, uid);
                self.engine.look_up(current.generation, uid);
            }
        }
    }

    /// Resumes a job that was in DEPEND before the plugin was loaded: the predecessor may hold it.
    pub fn resume(&self, job: JobId, uid: u32) {
        if self.engine.past(job).is_none() {
            self.engine.read_eventlog(job);
        } else if self.inherited.borrow_mut().remove(&job) {
            self.hold_again(job, uid);
        }
    }

    /// Resumes a job in DEPEND according to its eventlog.
    pub fn resume_from(&self, job: JobId, uid: u32, eventlog: &Eventlog) {
        let dependency = DEPENDENCY.to_string_lossy();
        if eventlog.was_added(&dependency) && !eventlog.was_removed(&dependency) {
            self.hold_again(job, uid);
        }
    }

    fn hold(&self, job: JobId, uid: u32) {
        self.pending.borrow_mut().insert(job, uid, Instant::now());
        self.tick();
    }

    fn tick(&self) {
        if let Err(e) = self.ticker.start() {
            self.engine.log(LogLevel::Err, &format!("no timer can be started: {e}"));
        }
    }

    fn ticked(self: &Rc<Self>) -> bool {
        let timer = CallbackTimer::start();
        self.decide_due();
        self.engine.deliveries.account(&timer, None);
        self.pending.borrow().len() > 0
    }

    /// Holds a job that the predecessor held.
    fn hold_again(&self, job: JobId, uid: u32) {
        self.hold(job, uid);
        self.pending.borrow_mut().look_up_at(uid, Instant::now());
    }

    fn with_projects(&self, args: &Args<'_>) -> Option<(Current, JobId, u32, JobState)> {
        let current = self.engine.current()?;
        if current.config.projects.is_empty() {
            return None;
        }
        let (job, uid, state) = args.job_owner_state()?;
        Some((current, job, uid, state))
    }

    /// Returns whether a job may be in the project that it requests, or in none, from the current knowledge.
    fn standing(&self, current: &Current, args: &Args<'_>, asked: &Asked, uid: u32) -> Standing {
        let config = &current.config;
        if config.projects.is_empty() {
            return Standing::Fine;
        }
        // A project that does not exist has no members.
        if let Err(why) = config.projects.asked(asked) {
            return Standing::Denied(why);
        }
        let owners = self.owners.borrow();
        let job = JobFacts {
            args,
            uid,
            projects: &config.projects,
            asked,
            owner: owners.known(uid),
        };
        let needs_project = |rule: &usize| config.rules[*rule].source.needs_project();
        let Some(owner) = job.owner else {
            // A job that requests no project, and needs none, is not held.
            return match asked {
                Asked::Nothing if !config.candidates(&job).iter().any(needs_project) => Standing::Fine,
                _ => Standing::Unknown,
            };
        };
        match config.projects.of_job(asked, owner) {
            Err(why) => {
                self.log_refused(owner);
                Standing::Denied(why)
            }
            Ok(Some(_)) => Standing::Fine,
            Ok(None) => {
                let applies = |rule: usize| config.rules[rule].conditions.hold(&job) == Some(true);
                let groups = config.by_name(&config.candidates(&job));
                match groups.iter().any(|group| applies(group[0]) && needs_project(&group[0])) {
                    true => Standing::Denied(config.projects.needed(owner)),
                    false => Standing::Fine,
                }
            }
        }
    }

    /// Stores a user that the agent reported. The user's held jobs continue or fail.
    pub fn known(self: &Rc<Self>, generation: u32, uid: u32, owner: Result<protocol::Owner, String>) {
        let Some(current) = self.engine.current() else { return };
        match owner {
            Ok(owner) if current.generation == generation => {
                self.owners.borrow_mut().insert(uid, owner);
                self.pending.borrow_mut().decide(uid, true);
            }
            // The look-up was for a former configuration.
            Ok(_) => self.pending.borrow_mut().look_up_at(uid, Instant::now()),
            Err(e) => {
                self.pending.borrow_mut().look_up_at(uid, Instant::now() + RETRY);
                let line = format!("the owner of a job, uid {uid}, could not be looked up: {e}: trying again");
                return self.engine.log(LogLevel::Err, &line);
            }
        }
        self.decide_due();
    }

    /// Logs for the operator why an identity token is not used.
    fn log_refused(&self, owner: &Owner) {
        if let Some(why) = owner.refused() {
            let line = format!("the identity token of {} is not used: {}", owner.name(), why.operator);
            self.engine.log(LogLevel::Info, &line);
        }
    }

    /// Decides due jobs, unless a turn for them is scheduled.
    fn decide_due(self: &Rc<Self>) {
        if self.turn.borrow().is_none() {
            self.take_turn();
        }
    }

    /// Decides some of the due jobs. The rest follows in the next turns.
    fn take_turn(self: &Rc<Self>) {
        let Some(current) = self.engine.current() else { return };
        let due = self
            .pending
            .borrow_mut()
            .due(Instant::now(), current.config.timeout, TURN);
        let (due, more) = due;
        if more {
            let weak = Rc::downgrade(self);
            let turn = self.engine.flux().after(0.0, move || {
                let Some(this) = weak.upgrade() else { return };
                let done = this.turn.borrow_mut().take();
                ffi::guard((), || this.take_turn());
                drop(done);
            });
            // Without a timer, the next tick decides them.
            *self.turn.borrow_mut() = turn.ok();
        }
        for due in due {
            let deliveries = &self.engine.deliveries;
            deliveries.unless_it_panics(due.job, || self.decide_one(&current, &due));
        }
    }

    fn decide_one(&self, current: &Current, due: &DueJob) {
        let DueJob { job, uid, .. } = *due;
        if due.is_late {
            let seconds = current.config.timeout.as_secs_f64();
            let line = format!(
                "{job}: uid {uid} could not be looked up within {seconds} s (timeout): is the name service up?"
            );
            self.engine.log(LogLevel::Err, &line);
            let why = "it could not be found out in time whether its owner is in its project: submit it again, and if this \
                       goes on, ask the operators";
            self.deny(job, why);
        } else if !self.decide(job) {
            self.engine.look_up(current.generation, uid);
        }
    }

    /// Decides a held job: releases it, or ends it. Returns false if its owner is still unknown.
    fn decide(&self, job: JobId) -> bool {
        let Some(args) = self.engine.jobtap().lookup(job) else {
            self.forget(job);
            return true;
        };
        let current = self.engine.current();
        let (standing, foreseen) = match (args.job_owner_state(), current) {
            (Some((_, uid, JobState::Depend)), Some(current)) => {
                let standing = self.standing(&current, &args, &jobspec::asked(&args), uid);
                match standing {
                    Standing::Fine => (standing, self.foresee(&current, &args, uid)),
                    _ => (standing, Foreseen::default()),
                }
            }
            _ => {
                self.forget(job);
                return true;
            }
        };
        drop(args);
        match standing {
            Standing::Unknown => return false,
            Standing::Denied(why) => self.deny(job, &why.to_string()),
            Standing::Fine => {
                if let Err(why) = self.shortfalls.report(job, foreseen) {
                    self.deny(job, &why);
                    return true;
                }
                self.forget(job);
                if let Err(e) = self.engine.jobtap().dependency_remove(job, DEPENDENCY) {
                    let line = format!("{job}: its dependency could not be removed: {e}: cancel the job");
                    self.engine.log(LogLevel::Err, &line);
                }
            }
        }
        true
    }

    fn deny(&self, job: JobId, why: &str) {
        self.forget(job);
        if let Err(e) = self
            .engine
            .jobtap()
            .raise(job, self.engine.prologs.identity.prolog, 0, why)
        {
            // The delivery rejects the job in any case.
            let line = format!("{job}: {why}: the exception could not be raised: {e}");
            self.engine.log(LogLevel::Err, &line);
        }
    }
}

/// Returns the error of a submission or update that is rejected.
fn refusal(why: &Denied) -> PluginError {
    // Flux cuts the text at 160 bytes, including the NUL (flux_error_t).
    PluginError(why.within(159))
}
