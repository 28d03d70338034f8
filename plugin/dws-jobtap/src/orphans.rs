//! Orphaned workflows: those of rabbit jobs that became inactive while no plugin was loaded. Nobody had the service tear
//! them down, and they keep what was allocated on the rabbits.
//!
//! The plugin that was removed has left the jobs. Their eventlogs tell whether another plugin saw to them meanwhile, and
//! whether there may be data to be copied out. The service is asked for one at a time, in rounds, and each is kept until
//! the service says that its workflow is gone.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    io,
    ops::Bound,
    rc::Rc,
};

use ffi::{Future, JobId, LogLevel, PendingFuture, Watcher};
use plugin::{Eventlog, Past, Perilog};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    AGAIN, EPILOG, PROLOG, Rabbits,
    lifecycle::{Epilog, EpilogEvent, Machine},
    service::{Answer, Unanswered, answer},
};

/// For how many seconds an answer of the service is waited for: one that is restarted meanwhile never gives it.
const TIMEOUT: f64 = 60.0;

/// The longest pause between two rounds, in seconds. Each is twice as long as the one before.
const LONGEST_PAUSE: f64 = 600.0;

/// After how many refusals a job is given up: that is about an hour.
const MOST_REFUSALS: u32 = 12;

/// The jobs, and what is under way for one of them.
#[derive(Default)]
pub(super) struct Orphans {
    jobs: RefCell<BTreeMap<JobId, Orphan>>,
    step: RefCell<Option<Step>>,
    /// How far the round is.
    at: Cell<Option<JobId>>,
    /// How long it is until the next round.
    pause: Cell<f64>,
}

#[derive(Clone, Copy)]
struct Orphan {
    /// What the service knows of the end of the job, which has no epilog any more.
    epilog: Epilog,
    /// Known when its eventlog was read.
    end: Option<End>,
    refusals: u32,
}

/// How a job has ended.
#[derive(Clone, Copy)]
enum End {
    Purged,
    HasRun(bool),
}

/// Ends when it is dropped.
enum Step {
    Later(#[expect(dead_code, reason = "it is kept")] Watcher),
    Asked(#[expect(dead_code, reason = "it is kept")] PendingFuture),
}

/// What is left of one for the next plugin.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct LeftOrphan(pub JobId, pub Epilog);

impl Orphans {
    pub(super) fn leave(&self) -> Vec<LeftOrphan> {
        let is_asked = matches!(self.step.take(), Some(Step::Asked(_)));
        let jobs = self.jobs.take();
        let left = jobs.into_iter().map(|(job, mut orphan)| {
            if is_asked && self.at.get() == Some(job) {
                orphan.epilog.on(EpilogEvent::Unanswered);
            }
            LeftOrphan(job, orphan.epilog)
        });
        left.collect()
    }

    /// Removes a job. Returns whether it was there.
    pub(super) fn forget(&self, job: JobId) -> bool {
        self.jobs.borrow_mut().remove(&job).is_some()
    }

    pub(super) fn contains(&self, job: JobId) -> bool {
        self.jobs.borrow().contains_key(&job)
    }

    pub(super) fn count(&self) -> usize {
        self.jobs.borrow().len()
    }

    fn on(&self, job: JobId, event: EpilogEvent) {
        if let Some(orphan) = self.jobs.borrow_mut().get_mut(&job) {
            orphan.epilog.on(event);
        }
    }

    fn is_repeated(&self, job: JobId) -> bool {
        let jobs = self.jobs.borrow();
        jobs.get(&job).is_some_and(|orphan| orphan.epilog.is_repeated())
    }

    /// The next one of the round that the service is to hear of.
    fn next(&self) -> Option<(JobId, End)> {
        let jobs = self.jobs.borrow();
        let after = self.at.get().map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = jobs.range((after, Bound::Unbounded));
        rest.find_map(|(job, orphan)| Some((*job, orphan.end.filter(|_| orphan.epilog.is_due())?)))
    }
}

impl Rabbits {
    /// Takes up the jobs that the plugin before this one left and that are not active any more.
    pub(super) fn take_up_orphans(self: &Rc<Self>, left: impl IntoIterator<Item = LeftOrphan>) {
        let left = left.into_iter();
        let orphans =
            left.filter(|LeftOrphan(job, epilog)| *epilog != Epilog::Finished && self.engine.state(*job).is_none());
        let orphans = orphans.map(|LeftOrphan(job, epilog)| {
            let (end, refusals) = (None, 0);
            (job, Orphan { epilog, end, refusals })
        });
        let orphans: BTreeMap<JobId, Orphan> = orphans.collect();
        let due = orphans.iter().filter(|(_, orphan)| orphan.epilog.is_due());
        let due: Vec<JobId> = due.map(|(job, _)| *job).collect();
        *self.orphans.jobs.borrow_mut() = orphans;
        if due.is_empty() {
            return;
        }
        let line = format!(
            "{} rabbit jobs have ended while the plugin dws-jobtap was not loaded: having their workflows torn down",
            due.len()
        );
        self.engine.log(LogLevel::Warning, &line);
        self.orphans.pause.set(AGAIN);
        for job in due {
            self.engine.read_eventlog(job);
        }
    }

    /// The eventlog of one was read, or there is none any more.
    pub(super) fn resume_orphan(self: &Rc<Self>, job: JobId, eventlog: &Eventlog) {
        let past = |which, description: &std::ffi::CStr| eventlog.past(which, &description.to_string_lossy());
        let end = if eventlog.is_empty() {
            End::Purged
        } else if past(Perilog::Epilog, EPILOG) == Past::Finished(0) {
            // Another plugin saw to it.
            self.orphans.forget(job);
            return;
        } else {
            // Otherwise there is nothing to be copied out.
            End::HasRun(eventlog.has_started() && past(Perilog::Prolog, PROLOG) == Past::Finished(0))
        };
        if let Some(orphan) = self.orphans.jobs.borrow_mut().get_mut(&job) {
            orphan.end = Some(end);
        }
        if self.orphans.step.borrow().is_none() {
            self.begin_round();
        }
    }

    fn begin_round(self: &Rc<Self>) {
        self.orphans.at.set(None);
        self.orphan_unless_it_panics(|| {
            ffi::inject_fault("gone");
            self.next_orphan();
        });
    }

    fn round_later(self: &Rc<Self>, seconds: f64) {
        let weak = Rc::downgrade(self);
        let later = self.engine.flux().after(seconds, move || {
            if let Some(me) = weak.upgrade() {
                let done = me.orphans.step.take();
                me.begin_round();
                drop(done);
            }
        });
        match later {
            Ok(later) => drop(self.orphans.step.replace(Some(Step::Later(later)))),
            Err(e) => self
                .engine
                .log(LogLevel::Err, &format!("no timer: {e}: load the plugin again")),
        }
    }

    /// The next one of the round, or the next round.
    fn next_orphan(self: &Rc<Self>) {
        while let Some((job, end)) = self.orphans.next() {
            self.orphans.at.set(Some(job));
            match end {
                // Whether it had run, and has data to be copied out, nobody knows any more.
                End::Purged => self.forget_orphan(job, "it has been purged"),
                End::HasRun(has_run) => return self.tear_orphan_down(job, has_run),
            }
        }
        self.orphans.at.set(None);
        drop(self.orphans.step.take());
        if self.orphans.next().is_some() {
            let pause = self.orphans.pause.get();
            self.orphans.pause.set((2.0 * pause).min(LONGEST_PAUSE));
            self.round_later(pause);
        }
    }

    fn tear_orphan_down(self: &Rc<Self>, job: JobId, has_run: bool) {
        let payload = json!({ "jobid": job.0, "run_started": has_run }).to_string();
        let asked = self.engine.flux().rpc(c"dws.post_run", &payload);
        self.orphans.on(job, EpilogEvent::Sent);
        self.ask_for_orphan(asked, move |me, future| match answer(&future) {
            Ok(Answer::Success) => me.next_orphan(),
            Err(Unanswered::NoService) => {
                me.orphans.on(job, EpilogEvent::Unheard);
                me.say_that_there_is_no_service(job, "dws.post_run");
                me.round_later(AGAIN);
            }
            Ok(Answer::Failure(why)) if me.orphans.is_repeated(job) => {
                // It is on its way already, or gone.
                let line = format!(
                    "{job}: dws.post_run, which may have been sent before: {}: waiting for the service to say that its \
                     workflow is gone",
                    why.unwrap_or_default()
                );
                me.engine.log(LogLevel::Warning, &line);
                me.next_orphan();
            }
            Ok(Answer::Failure(why)) => {
                me.orphans.on(job, EpilogEvent::Unheard);
                me.orphan_refused(job, why.as_deref().unwrap_or("no error string provided"));
            }
            Err(Unanswered::Other(why)) => {
                me.orphans.on(job, EpilogEvent::Unanswered);
                me.orphan_refused(job, &why);
            }
        });
    }

    /// The service is asked again in the next round, unless that was often enough.
    fn orphan_refused(self: &Rc<Self>, job: JobId, why: &str) {
        let refusals = self.orphans.jobs.borrow_mut().get_mut(&job).map(|orphan| {
            orphan.refusals += 1;
            orphan.refusals
        });
        match refusals {
            Some(MOST_REFUSALS..) => self.forget_orphan(job, why),
            Some(1) => {
                let line = format!("{job}: dws.post_run, after the job had ended: {why}: asking again");
                self.engine.log(LogLevel::Err, &line);
            }
            Some(_) | None => {}
        }
        self.next_orphan();
    }

    fn forget_orphan(&self, job: JobId, why: &str) {
        if self.orphans.forget(job) {
            let line = format!(
                "{job}: dws.post_run, after the job had ended: {why}: its Workflow fluxjob-{} may be left: see to it",
                job.0
            );
            self.engine.log(LogLevel::Err, &line);
        }
    }

    /// The one at hand is given up where it comes upon a fault of this plugin; the others are not.
    pub(super) fn orphan_unless_it_panics(self: &Rc<Self>, f: impl FnOnce()) {
        let done = ffi::guard(false, || {
            f();
            true
        });
        if !done {
            let why = "an internal error: its place is in the broker's output";
            let at_hand = self.orphans.at.get().or_else(|| Some(self.orphans.next()?.0));
            ffi::guard((), || {
                if let Some(job) = at_hand {
                    self.forget_orphan(job, why);
                }
                self.next_orphan();
            });
        }
    }

    /// Asks, and calls `then` with the answer, unless the plugin is removed by then.
    fn ask_for_orphan(self: &Rc<Self>, asked: io::Result<Future>, then: impl FnOnce(&Rc<Self>, Future) + 'static) {
        let weak = Rc::downgrade(self);
        let pending = asked.and_then(|future| {
            future.then(TIMEOUT, move |future| {
                let Some(me) = weak.upgrade() else { return };
                // It may be what is called here.
                let done = me.orphans.step.take();
                me.orphan_unless_it_panics(|| {
                    ffi::inject_fault("answer-gone");
                    then(&me, future);
                });
                drop(done);
            })
        });
        match pending {
            Ok(pending) => drop(self.orphans.step.replace(Some(Step::Asked(pending)))),
            Err(e) => {
                if let Some(job) = self.orphans.at.get() {
                    self.orphans.on(job, EpilogEvent::Unheard);
                }
                self.engine
                    .log(LogLevel::Err, &format!("jobs that have ended: {e}: trying again"));
                self.round_later(AGAIN);
            }
        }
    }
}
