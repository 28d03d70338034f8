//! Rabbit jobs that became inactive while no plugin was loaded: nobody had the service tear their workflows down, which keep
//! what was allocated on the rabbits.
//!
//! The plugin that was removed has left them with the handle. Their eventlogs tell whether another plugin had them torn down
//! meanwhile, and whether there may be data to be copied out. They are taken up one by one, in rounds, and each is kept until
//! the service says that its workflow is gone.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Bound,
    rc::Rc,
};

use ffi::{Future, JobId, JobState, LogLevel, PendingFuture, Watcher};
use nix::errno::Errno;
use serde_json::json;

use super::{
    EPILOG, PROLOG, Rabbits,
    resume::{AGAIN, WRITTEN},
    service::{Answer, Unanswered, answer},
};
use crate::resume::{Past, has_started, past};

/// For how many seconds an answer of the service is waited for: one that is restarted meanwhile never gives it.
const PATIENCE: f64 = 60.0;

/// The longest pause between two rounds, in seconds. Each is twice as long as the one before.
const LONGEST_PAUSE: f64 = 600.0;

/// After how many refusals a job is given up: that is about an hour.
const MOST_REFUSALS: u32 = 12;

/// Those that are left, and what is under way for one of them.
#[derive(Default)]
pub(super) struct Gone {
    jobs: RefCell<BTreeMap<JobId, End>>,
    step: RefCell<Option<Step>>,
    /// How far the round is.
    at: Cell<Option<JobId>>,
    /// How long it is until the next round.
    pause: Cell<f64>,
}

/// What the service knows of the end of a job.
#[derive(Debug, Clone, Copy)]
struct End {
    /// It has heard, and will say when the workflow is gone.
    told: bool,
    /// It may have heard: it was asked, and its answer was not.
    asked: bool,
    refusals: u32,
}

/// Ends when it is dropped.
enum Step {
    Later(#[expect(dead_code, reason = "it is kept")] Watcher),
    Asked(#[expect(dead_code, reason = "it is kept")] PendingFuture),
}

/// What the next plugin is to mind.
pub(super) struct Left {
    /// Jobs that may have a workflow which nobody has torn down yet, active or not.
    pub with_workflows: BTreeSet<JobId>,
    /// Those of whose end the service has heard, and may have heard.
    pub told: BTreeSet<JobId>,
    pub asked: BTreeSet<JobId>,
}

impl Gone {
    pub(super) fn leave(&self) -> Left {
        drop(self.step.take());
        let jobs = self.jobs.take();
        let those = |f: fn(&End) -> bool| jobs.iter().filter(|(_, end)| f(end)).map(|(job, _)| *job).collect();
        Left {
            with_workflows: those(|_| true),
            told: those(|end| end.told),
            asked: those(|end| end.asked),
        }
    }

    /// Whether a job is one of them, as it is not any more.
    pub(super) fn forget(&self, job: JobId) -> bool {
        self.jobs.borrow_mut().remove(&job).is_some()
    }

    pub(super) fn count(&self) -> usize {
        self.jobs.borrow().len()
    }

    fn with<T>(&self, job: JobId, f: impl FnOnce(&mut End) -> T) -> Option<T> {
        self.jobs.borrow_mut().get_mut(&job).map(f)
    }

    /// The next one of the round that the service is to hear of.
    fn next(&self) -> Option<JobId> {
        let jobs = self.jobs.borrow();
        let after = self.at.get().map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = jobs.range((after, Bound::Unbounded));
        rest.find(|(_, end)| !end.told).map(|(job, _)| *job)
    }
}

impl Rabbits {
    /// Takes up those of the jobs that the plugin before this one left which are not active any more.
    pub(super) fn take_up_gone(self: &Rc<Self>, left: &Left) {
        let is_gone = |job: &&JobId| matches!(self.state(**job), None | Some(JobState::Inactive));
        let gone: BTreeMap<JobId, End> = left
            .with_workflows
            .iter()
            .filter(is_gone)
            .map(|job| {
                let (told, asked) = (left.told.contains(job), left.asked.contains(job));
                let refusals = 0;
                (*job, End { told, asked, refusals })
            })
            .collect();
        let to_tell = gone.values().filter(|end| !end.told).count();
        *self.gone.jobs.borrow_mut() = gone;
        if to_tell == 0 {
            return;
        }
        let line = format!(
            "{to_tell} rabbit jobs have ended while the plugin dws-jobtap was not loaded: having their workflows torn down"
        );
        self.inner.log(LogLevel::Warning, &line);
        self.gone.pause.set(AGAIN);
        self.gone_later(WRITTEN);
    }

    fn gone_later(self: &Rc<Self>, seconds: f64) {
        let weak = Rc::downgrade(self);
        let later = self.inner.flux().after(seconds, move || {
            let Some(me) = weak.upgrade() else { return };
            me.gone_unless_it_panics(|| {
                me.gone.at.set(None);
                ffi::inject_fault("gone");
                // What there is in their eventlogs is in the KVS then.
                me.ask_for_gone(me.commit_nothing(), |me, _| me.mind_gone());
            });
        });
        match later {
            Ok(later) => drop(self.gone.step.replace(Some(Step::Later(later)))),
            Err(e) => self
                .inner
                .log(LogLevel::Err, &format!("no timer: {e}: load the plugin again")),
        }
    }

    /// The next one of the round, or the next round.
    fn mind_gone(self: &Rc<Self>) {
        let Some(job) = self.gone.next() else {
            drop(self.gone.step.take());
            if self.gone.jobs.borrow().values().any(|end| !end.told) {
                let pause = self.gone.pause.get();
                self.gone.pause.set((2.0 * pause).min(LONGEST_PAUSE));
                self.gone_later(pause);
            }
            return;
        };
        self.gone.at.set(Some(job));
        let asked = job.kvs_key("eventlog").and_then(|key| self.inner.flux().lookup(&key));
        self.ask_for_gone(asked, move |me, future| match future.value() {
            Ok(eventlog) => me.tear_gone_down(job, &eventlog.unwrap_or_default()),
            // Whether it had run, and has data to be copied out, nobody knows any more.
            Err(e) if e.errno() == Errno::ENOENT as i32 => me.give_gone_up(job, "it has been purged"),
            Err(e) => me.refused_gone(job, &format!("its eventlog could not be read: {e}")),
        });
    }

    fn tear_gone_down(self: &Rc<Self>, job: JobId, eventlog: &str) {
        let of = |which: &str, description: &std::ffi::CStr| past(eventlog, which, &description.to_string_lossy());
        if of("epilog", EPILOG) == Past::Finished(0) {
            // Another plugin saw to it.
            self.gone.forget(job);
        }
        // It may be gone by now because the service said so, too.
        if self.gone.with(job, |end| end.asked).is_none() {
            return self.mind_gone();
        }
        // Otherwise there is nothing to be copied out.
        let run_started = has_started(eventlog) && of("prolog", PROLOG) == Past::Finished(0);
        let payload = json!({ "jobid": job.0, "run_started": run_started }).to_string();
        let asked = self.inner.flux().rpc(c"dws.post_run", &payload);
        let before = self.gone.with(job, |end| std::mem::replace(&mut end.asked, true));
        let heard = move |me: &Rc<Self>| {
            let _ = me.gone.with(job, |end| end.told = true);
        };
        self.ask_for_gone(asked, move |me, future| match answer(&future) {
            Ok(Answer::Success) => {
                heard(me);
                me.mind_gone();
            }
            Err(Unanswered::NoService) => {
                me.gone.with(job, |end| end.asked = before == Some(true));
                if !me.no_service.replace(true) {
                    let line = format!("{job}: dws.post_run: {}: asking again", Unanswered::NoService.text());
                    me.inner.log(LogLevel::Err, &line);
                }
                me.gone_later(AGAIN);
            }
            Ok(Answer::Failure(why)) if before == Some(true) => {
                // It is on its way already, or gone.
                let line = format!(
                    "{job}: dws.post_run, which may have been sent before: {}: waiting for the service to say that its \
                     workflow is gone",
                    why.unwrap_or_default()
                );
                me.inner.log(LogLevel::Warning, &line);
                heard(me);
                me.mind_gone();
            }
            Ok(Answer::Failure(why)) => {
                me.gone.with(job, |end| end.asked = false);
                me.refused_gone(job, why.as_deref().unwrap_or("no error string provided"));
            }
            Err(Unanswered::Other(why)) => me.refused_gone(job, &why),
        });
    }

    /// It is asked again in the next round, unless that was often enough.
    fn refused_gone(self: &Rc<Self>, job: JobId, why: &str) {
        let refusals = self.gone.with(job, |end| {
            end.refusals += 1;
            end.refusals
        });
        match refusals {
            Some(MOST_REFUSALS..) => return self.give_gone_up(job, why),
            Some(1) => {
                let line = format!("{job}: dws.post_run, after the job had ended: {why}: asking again");
                self.inner.log(LogLevel::Err, &line);
            }
            Some(_) | None => {}
        }
        self.mind_gone();
    }

    fn give_gone_up(self: &Rc<Self>, job: JobId, why: &str) {
        if self.gone.forget(job) {
            let line = format!(
                "{job}: dws.post_run, after the job had ended: {why}: its Workflow fluxjob-{} may be left: see to it",
                job.0
            );
            self.inner.log(LogLevel::Err, &line);
        }
        self.mind_gone();
    }

    /// The one at hand is given up where it comes upon a fault of this plugin; the others are not.
    fn gone_unless_it_panics(self: &Rc<Self>, f: impl FnOnce()) {
        let done = ffi::guard(false, || {
            f();
            true
        });
        if !done {
            let why = "an internal error: its place is in the broker's output";
            ffi::guard((), || match self.gone.at.get().or_else(|| self.gone.next()) {
                Some(job) => self.give_gone_up(job, why),
                None => self.mind_gone(),
            });
        }
    }

    /// Asks, and calls `then` with the answer, unless the plugin is removed by then.
    fn ask_for_gone(self: &Rc<Self>, asked: io::Result<Future>, then: impl FnOnce(&Rc<Self>, Future) + 'static) {
        let weak = Rc::downgrade(self);
        let pending = asked.and_then(|future| {
            future.then(PATIENCE, move |future| {
                let Some(me) = weak.upgrade() else { return };
                // It may be what is called here.
                let done = me.gone.step.take();
                me.gone_unless_it_panics(|| {
                    ffi::inject_fault("answer-gone");
                    then(&me, future);
                });
                drop(done);
            })
        });
        match pending {
            Ok(pending) => drop(self.gone.step.replace(Some(Step::Asked(pending)))),
            Err(e) => {
                self.inner
                    .log(LogLevel::Err, &format!("jobs that have ended: {e}: trying again"));
                self.gone_later(AGAIN);
            }
        }
    }
}
