//! Who may be in which project, when a job is submitted or updated.
//!
//! The callbacks that may refuse a job run on the reactor thread, which cannot wait for the name service. What is known of
//! the job owner decides there and then. Where nothing is known, the job is accepted, and held by a dependency until it is;
//! then it goes on, or fails. What decides in the end is the delivery, which looks again.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet, VecDeque},
    ffi::CStr,
    rc::Rc,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use config::{Asked, Denied, Person, Selection};
use ffi::{Args, JobId, JobState, LogLevel, PluginError};

use crate::{
    delivery::{Current, Message, TURN},
    eventlog::Eventlog,
    facts::{self, JobFacts},
    held::{DueJob, HeldJobs},
    manager::Inner,
    owner::{Owner, REFRESH},
    work::Setup,
    workers::Queue,
};

/// What holds a job of whose owner nothing is known yet.
const DEPENDENCY: &CStr = c"workflow-token-project";

/// How many users are looked up at once, and how many at most where some of them hang.
const PARALLEL: (usize, usize) = (8, 32);

/// After what time a look-up that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// After how many refreshments the members of the projects are looked up in advance again: ten minutes.
const AHEAD: u32 = 20;

/// Jobs that are held, and users that are looked up for them.
#[derive(Default)]
pub(crate) struct Membership {
    held: RefCell<HeldJobs>,
    /// Whether some of them are minded in the next turn of the reactor.
    minding: Cell<bool>,
    /// Who is being asked for, since when and for which configuration: one look-up of a user at a time, as one that hangs is
    /// likely not to be the last.
    asking: RefCell<HashMap<u32, (Instant, Arc<Setup>)>>,
    waiting: RefCell<Waiting>,
}

/// Users that are to be looked up, each once for a configuration, in the order in which they came.
#[derive(Default)]
struct Waiting {
    users: VecDeque<(u32, Arc<Setup>)>,
    /// The same, to be found by.
    known: HashSet<(u32, *const Setup)>,
}

impl Waiting {
    fn push(&mut self, uid: u32, setup: &Arc<Setup>) {
        if self.known.insert((uid, Arc::as_ptr(setup))) {
            self.users.push_back((uid, Arc::clone(setup)));
        }
    }

    /// Takes the first out that may be looked up now.
    fn pop(&mut self, may: impl Fn(u32) -> bool) -> Option<(u32, Arc<Setup>)> {
        let next = self.users.iter().position(|(uid, _)| may(*uid))?;
        let (uid, setup) = self.users.remove(next)?;
        self.known.remove(&(uid, Arc::as_ptr(&setup)));
        Some((uid, setup))
    }
}

/// What is known of a job's right to its project.
enum Standing {
    Fine,
    Denied(Denied),
    Unknown,
}

/// What a look-up came to.
#[derive(Clone)]
pub(crate) struct Known {
    pub(crate) uid: u32,
    pub(crate) setup: Arc<Setup>,
    pub(crate) result: Result<Arc<Owner>, String>,
}

/// Sends what a look-up came to when it ends, whichever way.
struct Report {
    queue: Arc<Queue<Message>>,
    known: Option<Known>,
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(known) = self.known.take() {
            self.queue.send(Message::Known(known));
        }
    }
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
            JobState::New => match inner.standing(&current, args, &asked, uid, None) {
                Standing::Denied(why) => Err(refusal(&why)),
                Standing::Fine => Ok(()),
                Standing::Unknown => {
                    inner.look_up(uid, &current.setup);
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
        match inner.standing(current, args, asked, uid, None) {
            Standing::Fine => Ok(()),
            Standing::Denied(why) => Err(refusal(&why)),
            Standing::Unknown => {
                inner.look_up(uid, &current.setup);
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
        match inner.standing(&current, args, &facts::asked(args), uid, None) {
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
                inner.look_up(uid, &current.setup);
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
        let current = self.setup.borrow().clone()?;
        if current.setup.config.projects.is_empty() {
            return None;
        }
        let (job, uid, state) = args.job_owner_state()?;
        Some((current, job, uid, state))
    }

    /// Whether a job may be in the project that it asks for, or in none, by what is known now.
    fn standing(&self, current: &Current, args: &Args<'_>, asked: &Asked, uid: u32, owner: Option<&Owner>) -> Standing {
        let config = &current.setup.config;
        if config.projects.is_empty() {
            return Standing::Fine;
        }
        // It is plain already where there is no such project.
        if let Err(why) = config.projects.asked(asked) {
            return Standing::Denied(why);
        }
        let known = match owner {
            Some(_) => None,
            None => current.setup.owners.known(uid),
        };
        let known = owner.or(known.as_deref());
        let job = JobFacts {
            args,
            uid,
            projects: &config.projects,
            asked,
            owner: known,
        };
        let needs_project = |rule: &usize| config.rules[*rule].source.needs_project();
        let Some(owner) = known else {
            // Who asks for none, and needs none, is not held.
            return match asked {
                Asked::Nothing => match current.setup.candidates(&job) {
                    Some(candidates) if candidates.rules.iter().any(needs_project) => Standing::Unknown,
                    _ => Standing::Fine,
                },
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

    /// Has a user looked up beside the reactor thread, unless that is under way.
    pub(crate) fn look_up(&self, uid: u32, setup: &Arc<Setup>) {
        let membership = &self.membership;
        let is_under_way = |(_, other): &(Instant, Arc<Setup>)| Arc::ptr_eq(other, setup);
        if !membership.asking.borrow().get(&uid).is_some_and(is_under_way) {
            membership.waiting.borrow_mut().push(uid, setup);
            self.look_up_next();
        }
    }

    fn look_up_next(&self) {
        let membership = &self.membership;
        loop {
            let (all, young) = {
                let asking = membership.asking.borrow();
                let young = asking
                    .values()
                    .filter(|(since, setup)| since.elapsed() < setup.config.timeout);
                (asking.len(), young.count())
            };
            if young >= PARALLEL.0 || all >= PARALLEL.1 {
                return;
            }
            let mut asking = membership.asking.borrow_mut();
            let next = membership.waiting.borrow_mut().pop(|uid| !asking.contains_key(&uid));
            let Some((uid, setup)) = next else { return };
            asking.insert(uid, (Instant::now(), Arc::clone(&setup)));
            drop(asking);
            let result = Err("its look-up ended early: its place is in the broker's output".to_owned());
            let mut report = Report {
                queue: Arc::clone(&self.queue),
                known: Some(Known { uid, setup, result }),
            };
            let looked_up = self.workers.borrow_mut().block(move || {
                if let Some(known) = &mut report.known {
                    known.result = known.setup.owners.look_up(uid);
                }
            });
            if let Err(e) = looked_up {
                self.log(LogLevel::Err, &format!("no thread can be started: {e}"));
                return;
            }
        }
    }

    /// A user was looked up: those of his jobs that wait for that go on, or fail.
    pub(crate) fn known(inner: &Rc<Self>, known: Known) {
        let membership = &inner.membership;
        let asked = membership.asking.borrow_mut().remove(&known.uid);
        drop(asked);
        inner.look_up_next();
        inner.owner_known(known.clone());
        let current = inner.setup.borrow().clone();
        let is_current = current.is_some_and(|current| Arc::ptr_eq(&current.setup, &known.setup));
        let mut held = membership.held.borrow_mut();
        match known.result {
            Ok(owner) if is_current => held.decide(known.uid, Some(owner)),
            // It was for a configuration that is not in force any more.
            Ok(_) => held.look_up_at(known.uid, Instant::now()),
            Err(e) => {
                held.look_up_at(known.uid, Instant::now() + AGAIN);
                drop(held);
                let uid = known.uid;
                let line = format!("the owner of a job, uid {uid}, could not be looked up: {e}: trying again");
                return inner.log(LogLevel::Err, &line);
            }
        }
        drop(held);
        if !membership.minding.get() {
            Self::mind_due(inner);
        }
    }

    /// For the operator: why an identity token counts for nothing.
    fn log_refused(&self, owner: &Owner) {
        if let Some(why) = &owner.refused {
            let line = format!("the identity token of {} is not used: {}", owner.name(), why.operator);
            self.log(LogLevel::Info, &line);
        }
    }

    /// Time has passed: looks users up again, and gives jobs up whose owner is not known in time.
    pub(crate) fn mind_held(inner: &Rc<Self>) {
        if inner.setup.borrow().is_none() {
            return;
        }
        if !inner.membership.minding.get() {
            Self::mind_due(inner);
        }
        // Some of those under way may hang by now.
        inner.look_up_next();
    }

    /// Decides some of the jobs that are due; the others after others had their turn.
    pub(crate) fn mind_due(inner: &Rc<Self>) {
        let Some(Current { setup, .. }) = inner.setup.borrow().clone() else {
            return;
        };
        let held = &inner.membership.held;
        let (due, more) = held.borrow_mut().due(Instant::now(), setup.config.timeout, TURN);
        inner.membership.minding.set(more);
        if more {
            inner.queue.send(Message::Due);
        }
        for due in due {
            inner.unless_it_panics(due.job, || inner.decide_due(&setup, &due));
        }
    }

    fn decide_due(&self, setup: &Arc<Setup>, due: &DueJob) {
        let DueJob { job, uid, .. } = *due;
        if due.is_late {
            let seconds = setup.config.timeout.as_secs_f64();
            let line = format!(
                "{job}: uid {uid} could not be looked up within {seconds} s (timeout): is the name service up?"
            );
            self.log(LogLevel::Err, &line);
            let why = "it could not be found out in time whether its owner is in its project: submit it again, and if this \
                       goes on, ask the operators";
            self.deny(job, why);
        } else if !self.decide(job, due.owner.as_deref()) {
            self.look_up(uid, setup);
        }
    }

    /// Lets a job go on that is held, or ends it, as far as that is known now. Returns whether it was.
    fn decide(&self, job: JobId, owner: Option<&Owner>) -> bool {
        let Some(args) = self.jobtap.lookup(job) else {
            self.membership.forget(job);
            return true;
        };
        let current = self.setup.borrow().clone();
        let standing = match (args.job_owner_state(), current) {
            (Some((_, uid, JobState::Depend)), Some(current)) => {
                self.standing(&current, &args, &facts::asked(&args), uid, owner)
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

    /// There is a new configuration: what is held is decided anew, and who is in its projects is looked up in advance.
    pub(crate) fn prepare(&self, setup: &Arc<Setup>) {
        self.membership.held.borrow_mut().look_all_up(Instant::now());
        if setup.config.projects.is_empty() {
            return;
        }
        let setup = Arc::downgrade(setup);
        let prepared = self.workers.borrow_mut().spawn(keep_fresh(setup));
        if let Err(e) = prepared {
            self.log(LogLevel::Err, &format!("no thread can be started: {e}"));
        }
    }
}

/// Keeps what is known of users fresh for as long as the configuration is in force.
async fn keep_fresh(setup: Weak<Setup>) {
    for round in 0.. {
        let setup = setup.clone();
        let done = tokio::task::spawn_blocking(move || {
            let Some(setup) = setup.upgrade() else { return false };
            // This is one; another is in force, or with who has not finished yet.
            let go_on = || Arc::strong_count(&setup) > 1;
            if round % AHEAD == 0 {
                setup.owners.look_ahead(&setup.config, go_on);
            }
            setup.owners.refresh(go_on);
            go_on()
        });
        if !done.await.unwrap_or(false) {
            return;
        }
        tokio::time::sleep(REFRESH).await;
    }
}

/// Why a job is refused, as the error of its submission or update.
fn refusal(why: &Denied) -> PluginError {
    // Flux has room for 160 bytes with the NUL (flux_error_t).
    PluginError(why.within(159))
}
