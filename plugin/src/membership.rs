//! Who may be in which project, when a job is submitted or updated.
//!
//! The callbacks that may refuse a job run on the reactor thread, which cannot wait for the name service. What is known of
//! the job owner decides there and then. Where nothing is known, the job is accepted, and held by a dependency until it is;
//! then it goes on, or fails. What decides in the end is the delivery, which looks again.

use std::{
    cell::RefCell,
    ffi::CStr,
    rc::Rc,
    time::{Duration, Instant},
};

use config::{Asked, Denied, Person, Selection};
use ffi::{Args, JobId, JobState, LogLevel, PluginError, Watcher};

use crate::{
    delivery::TURN,
    eventlog::Eventlog,
    facts::{self, JobFacts},
    held::{DueJob, HeldJobs},
    manager::{Current, Inner},
    owners::Owner,
};

/// What holds a job of whose owner nothing is known yet.
const DEPENDENCY: &CStr = c"workflow-token-project";

/// After what time a look-up that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Jobs that are held until it is known in which projects their owners are.
#[derive(Default)]
pub(crate) struct Membership {
    held: RefCell<HeldJobs>,
    /// The next turn of those that are due.
    turn: RefCell<Option<Watcher>>,
}

/// What is known of a job's right to its project.
enum Standing {
    Fine,
    Denied(Denied),
    Unknown,
}

impl Membership {
    /// Whether there is nothing to mind.
    pub(crate) fn is_idle(&self) -> bool {
        self.held.borrow().len() == 0
    }

    /// The jobs that are held.
    pub(crate) fn held(&self) -> Vec<JobId> {
        self.held.borrow().jobs().collect()
    }

    /// A job is not held any more: it is being cleaned up.
    pub(crate) fn forget(&self, job: JobId) {
        self.held.borrow_mut().remove(job);
    }
}

impl Inner {
    /// `job.validate`: refuses a job whose owner is not in its project. It is called for a job that is being submitted, and
    /// for one that is being updated, with the jobspec as it would be then.
    pub(crate) fn validate(inner: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some((current, job, uid, state)) = inner.with_projects(args) else {
            return Ok(());
        };
        let asked = facts::asked(args);
        match state {
            JobState::New => match inner.standing(&current, args, &asked, uid) {
                Standing::Denied(why) => Err(refusal(&why)),
                Standing::Fine => Ok(()),
                Standing::Unknown => {
                    inner.agent.look_up(current.generation, uid);
                    Ok(())
                }
            },
            _ => {
                let former = inner.jobtap.lookup(job).map(|args| facts::asked(&args));
                let is_new = former.as_ref() != Some(&asked);
                Self::check_update(inner, &current, args, &asked, is_new)
            }
        }
    }

    /// `job.update.attributes.system.project`: the same, for a project that a job is to be in from now on. Where the other
    /// plugins find nothing to be validated, `job.validate` is not called.
    pub(crate) fn update_project(inner: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        match inner.with_projects(args) {
            Some((current, ..)) => Self::check_update(inner, &current, args, &facts::asked_anew(args), true),
            None => Ok(()),
        }
    }

    fn check_update(
        inner: &Rc<Self>,
        current: &Current,
        args: &Args<'_>,
        asked: &Asked,
        is_new: bool,
    ) -> Result<(), PluginError> {
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
        match inner.standing(current, args, asked, uid) {
            Standing::Fine => Ok(()),
            Standing::Denied(why) => Err(refusal(&why)),
            Standing::Unknown => {
                inner.agent.look_up(current.generation, uid);
                let why = format!("it is not known yet in which projects uid {uid} is: try again in a moment");
                if is_new { Err(PluginError(why)) } else { Ok(()) }
            }
        }
    }

    /// `job.state.depend`: holds a job of whose owner nothing is known yet.
    pub(crate) fn depend(inner: &Rc<Self>, args: &Args<'_>) {
        // When the plugin is loaded, it is called for jobs that have had their dependencies already.
        if args.previous_state() != Some(JobState::New) {
            return;
        }
        let Some((current, job, uid, _)) = inner.with_projects(args) else {
            return;
        };
        match inner.standing(&current, args, &facts::asked(args), uid) {
            Standing::Fine => {}
            // It was not known when the job was submitted.
            Standing::Denied(why) => inner.deny(job, &why.to_string()),
            Standing::Unknown => {
                if let Err(e) = inner.jobtap.dependency_add(job, DEPENDENCY) {
                    // Its delivery looks again.
                    let line = format!("{job}: it could not be held until its owner is known: {e}");
                    return inner.log(LogLevel::Warning, &line);
                }
                inner.hold(job, uid);
                inner.agent.look_up(current.generation, uid);
            }
        }
    }

    /// `job.new` of a job that was in DEPEND before the plugin was loaded: it may be held by the one before.
    pub(crate) fn depended(inner: &Rc<Self>, job: JobId, uid: u32) {
        let left = inner.left.borrow();
        match left.as_ref().filter(|left| !left.unknown.contains(&job)) {
            Some(left) => {
                if left.held.contains(&job) {
                    inner.hold_again(job, uid);
                }
            }
            None => {
                drop(left);
                Self::read_eventlog(inner, job);
            }
        }
    }

    /// The same, once its eventlog was read.
    pub(crate) fn depended_on(&self, job: JobId, uid: u32, eventlog: &Eventlog) {
        let dependency = DEPENDENCY.to_string_lossy();
        if eventlog.was_added(&dependency) && !eventlog.was_removed(&dependency) {
            self.hold_again(job, uid);
        }
    }

    fn hold(&self, job: JobId, uid: u32) {
        self.membership.held.borrow_mut().insert(job, uid, Instant::now());
        self.tick();
    }

    /// Holds a job that was held by the plugin before, which looked its owner up.
    fn hold_again(&self, job: JobId, uid: u32) {
        self.hold(job, uid);
        self.membership.held.borrow_mut().look_up_at(uid, Instant::now());
    }

    fn with_projects(&self, args: &Args<'_>) -> Option<(Current, JobId, u32, JobState)> {
        let current = self.current()?;
        if current.config.projects.is_empty() {
            return None;
        }
        let (job, uid, state) = args.job_owner_state()?;
        Some((current, job, uid, state))
    }

    /// Whether a job may be in the project that it asks for, or in none, by what is known now.
    fn standing(&self, current: &Current, args: &Args<'_>, asked: &Asked, uid: u32) -> Standing {
        let config = &current.config;
        if config.projects.is_empty() {
            return Standing::Fine;
        }
        // It is plain already if there is no such project.
        if let Err(why) = config.projects.asked(asked) {
            return Standing::Denied(why);
        }
        let owners = current.owners.borrow();
        let job = JobFacts {
            args,
            uid,
            projects: &config.projects,
            asked,
            owner: owners.known(uid),
        };
        let needs_project = |rule: &usize| config.rules[*rule].source.needs_project();
        let Some(owner) = job.owner else {
            // A job that asks for none, and needs none, is not held.
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
            Ok(None) => match config.select(&job) {
                Selection::Rule(rule) if needs_project(&rule) => Standing::Denied(config.projects.needed(owner)),
                _ => Standing::Fine,
            },
        }
    }

    /// The agent has told of a user: those of his jobs that wait for that go on, or fail.
    pub(crate) fn known(inner: &Rc<Self>, generation: u32, uid: u32, told: Result<protocol::Owner, String>) {
        let Some(current) = inner.current() else { return };
        let mut held = inner.membership.held.borrow_mut();
        match told {
            Ok(owner) if current.generation == generation => {
                current.owners.borrow_mut().insert(uid, owner);
                held.decide(uid, true);
            }
            // It was for a configuration that is not in force any more.
            Ok(_) => held.look_up_at(uid, Instant::now()),
            Err(e) => {
                held.look_up_at(uid, Instant::now() + AGAIN);
                drop(held);
                let line = format!("the owner of a job, uid {uid}, could not be looked up: {e}: trying again");
                return inner.log(LogLevel::Err, &line);
            }
        }
        drop(held);
        Self::mind_held(inner);
    }

    /// For the operator: why an identity token counts for nothing.
    fn log_refused(&self, owner: &Owner) {
        if let Some(why) = owner.refused() {
            let line = format!("the identity token of {} is not used: {}", owner.name(), why.operator);
            self.log(LogLevel::Info, &line);
        }
    }

    /// Decides jobs that are due, unless a turn for them comes anyway.
    pub(crate) fn mind_held(inner: &Rc<Self>) {
        if inner.membership.turn.borrow().is_none() {
            Self::mind_due(inner);
        }
    }

    /// Decides some of the jobs that are due; the others after others had their turn.
    fn mind_due(inner: &Rc<Self>) {
        let Some(current) = inner.current() else { return };
        let held = &inner.membership.held;
        let (due, more) = held.borrow_mut().due(Instant::now(), current.config.timeout, TURN);
        if more {
            let weak = Rc::downgrade(inner);
            let turn = inner.flux().after(0.0, move || {
                let Some(inner) = weak.upgrade() else { return };
                let done = inner.membership.turn.borrow_mut().take();
                ffi::guard((), || Self::mind_due(&inner));
                drop(done);
            });
            // Without a timer, the next tick does it.
            *inner.membership.turn.borrow_mut() = turn.ok();
        }
        for due in due {
            inner.unless_it_panics(due.job, || inner.decide_due(&current, &due));
        }
    }

    fn decide_due(&self, current: &Current, due: &DueJob) {
        let DueJob { job, uid, .. } = *due;
        if due.is_late {
            let seconds = current.config.timeout.as_secs_f64();
            let line = format!(
                "{job}: uid {uid} could not be looked up within {seconds} s (timeout): is the name service up?"
            );
            self.log(LogLevel::Err, &line);
            let why = "it could not be found out in time whether its owner is in its project: submit it again, and if this \
                       goes on, ask the operators";
            self.deny(job, why);
        } else if !self.decide(job) {
            self.agent.look_up(current.generation, uid);
        }
    }

    /// Lets a job go on that is held, or ends it, as far as that is known now. Returns whether it was.
    fn decide(&self, job: JobId) -> bool {
        let Some(args) = self.jobtap.lookup(job) else {
            self.membership.forget(job);
            return true;
        };
        let current = self.current();
        let standing = match (args.job_owner_state(), current) {
            (Some((_, uid, JobState::Depend)), Some(current)) => {
                self.standing(&current, &args, &facts::asked(&args), uid)
            }
            _ => {
                self.membership.forget(job);
                return true;
            }
        };
        drop(args);
        match standing {
            Standing::Unknown => return false,
            Standing::Denied(why) => self.deny(job, &why.to_string()),
            Standing::Fine => {
                self.membership.forget(job);
                if let Err(e) = self.jobtap.dependency_remove(job, DEPENDENCY) {
                    let line = format!("{job}: it cannot be let go on: {e}: cancel it");
                    self.log(LogLevel::Err, &line);
                }
            }
        }
        true
    }

    fn deny(&self, job: JobId, why: &str) {
        self.membership.forget(job);
        if let Err(e) = self.jobtap.raise(job, self.kind.prolog, 0, why) {
            // It gets no token either way.
            let line = format!("{job}: {why}: the exception could not be raised: {e}");
            self.log(LogLevel::Err, &line);
        }
    }

    /// There is a new configuration: what is held is decided anew.
    pub(crate) fn decide_anew(&self) {
        self.membership.held.borrow_mut().look_all_up(Instant::now());
    }
}

/// Why a job is refused, as the error of its submission or update.
fn refusal(why: &Denied) -> PluginError {
    // Flux has room for 160 bytes with the NUL (flux_error_t).
    PluginError(why.within(159))
}
