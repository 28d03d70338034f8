//! Rabbit jobs that became inactive while no plugin was loaded: nobody had the service tear their workflows down, which keep
//! what was allocated on the rabbits.
//!
//! The plugin that was removed has left them with the handle. Their eventlogs tell whether another plugin had them torn down
//! meanwhile, and whether there may be data to be copied out. They are taken up one by one.

use std::{cell::RefCell, collections::BTreeSet, io, rc::Rc};

use ffi::{Future, JobId, JobState, LogLevel, PendingFuture, Watcher};
use serde_json::json;

use super::{
    EPILOG, PROLOG, Rabbits,
    resume::{AGAIN, WRITTEN},
    service::{Answer, Unanswered, answer},
};
use crate::resume::{Past, has_started, past};

/// Those that are left, and what is under way for the first of them.
#[derive(Default)]
pub(super) struct Gone {
    jobs: RefCell<BTreeSet<JobId>>,
    step: RefCell<Option<Step>>,
}

/// Ends when it is dropped.
enum Step {
    Later(#[expect(dead_code, reason = "it is kept")] Watcher),
    Asked(#[expect(dead_code, reason = "it is kept")] PendingFuture),
}

impl Gone {
    /// Those whose workflows the next plugin is to mind.
    pub(super) fn left(&self) -> Vec<JobId> {
        drop(self.step.take());
        self.jobs.take().into_iter().collect()
    }

    /// Whether a job is one of them, as it is not any more.
    pub(super) fn forget(&self, job: JobId) -> bool {
        self.jobs.borrow_mut().remove(&job)
    }

    pub(super) fn count(&self) -> usize {
        self.jobs.borrow().len()
    }
}

impl Rabbits {
    /// Takes up those of the jobs that the plugin before this one left which are not active any more.
    pub(super) fn take_up_gone(self: &Rc<Self>, left: &BTreeSet<JobId>) {
        let is_gone = |job: &JobId| matches!(self.state(*job), None | Some(JobState::Inactive));
        let gone: BTreeSet<JobId> = left.iter().copied().filter(is_gone).collect();
        if gone.is_empty() {
            return;
        }
        let line = format!(
            "{} rabbit jobs have ended while the plugin dws-jobtap was not loaded: having their workflows torn down",
            gone.len()
        );
        self.inner.log(LogLevel::Warning, &line);
        *self.gone.jobs.borrow_mut() = gone;
        self.mind_gone_later(WRITTEN);
    }

    fn mind_gone_later(self: &Rc<Self>, seconds: f64) {
        let weak = Rc::downgrade(self);
        let later = self.inner.flux().after(seconds, move || {
            if let Some(me) = weak.upgrade() {
                me.gone_unless_it_panics(|| {
                    ffi::stumble("gone");
                    me.mind_gone();
                });
            }
        });
        match later {
            Ok(later) => drop(self.gone.step.replace(Some(Step::Later(later)))),
            Err(e) => self
                .inner
                .log(LogLevel::Err, &format!("no timer: {e}: load the plugin again")),
        }
    }

    /// The first of them.
    fn mind_gone(self: &Rc<Self>) {
        let first = self.gone.jobs.borrow().first().copied();
        let Some(job) = first else {
            drop(self.gone.step.take());
            return;
        };
        let asked = job.kvs_key("eventlog").and_then(|key| self.inner.flux().lookup(&key));
        self.ask_for_gone(job, asked, move |me, future| match future.value() {
            Ok(eventlog) => me.tear_gone_down(job, &eventlog.unwrap_or_default()),
            Err(e) => {
                let line = format!("{job}: its eventlog could not be read: {e}: trying again");
                me.inner.log(LogLevel::Err, &line);
                me.mind_gone_later(AGAIN);
            }
        });
    }

    fn tear_gone_down(self: &Rc<Self>, job: JobId, eventlog: &str) {
        let of = |which: &str, description: &std::ffi::CStr| past(eventlog, which, &description.to_string_lossy());
        if matches!(of("epilog", EPILOG), Past::Finished(_)) {
            // Another plugin saw to it.
            return self.next_gone(job);
        }
        // Otherwise there is nothing to be copied out.
        let run_started = has_started(eventlog) && matches!(of("prolog", PROLOG), Past::Finished(0));
        let payload = json!({ "jobid": job.0, "run_started": run_started }).to_string();
        let asked = self.inner.flux().rpc(c"dws.post_run", &payload);
        self.ask_for_gone(job, asked, move |me, future| match answer(&future) {
            Ok(Answer::Success) => me.next_gone(job),
            Err(Unanswered::NoService) => {
                if !me.no_service.replace(true) {
                    let line = format!("{job}: dws.post_run: {}: asking again", Unanswered::NoService.text());
                    me.inner.log(LogLevel::Err, &line);
                }
                me.mind_gone_later(AGAIN);
            }
            Ok(Answer::Failure(why)) => me.give_gone_up(job, why.as_deref().unwrap_or("no error string provided")),
            Err(Unanswered::Other(why)) => me.give_gone_up(job, &why),
        });
    }

    fn give_gone_up(self: &Rc<Self>, job: JobId, why: &str) {
        let line = format!(
            "{job}: dws.post_run, after the job had ended: {why}: see whether there is a Workflow fluxjob-{}, and delete it",
            job.0
        );
        self.inner.log(LogLevel::Err, &line);
        self.next_gone(job);
    }

    /// The first of them is given up where it comes upon a fault of this plugin; the others are not.
    fn gone_unless_it_panics(self: &Rc<Self>, f: impl FnOnce()) {
        let done = ffi::guard(false, || {
            f();
            true
        });
        if !done {
            let first = self.gone.jobs.borrow().first().copied();
            let why = "an internal error: its place is in the broker's output";
            ffi::guard((), || first.into_iter().for_each(|job| self.give_gone_up(job, why)));
        }
    }

    fn next_gone(self: &Rc<Self>, job: JobId) {
        self.gone.forget(job);
        self.mind_gone();
    }

    /// Asks, and calls `then` with the answer, unless the plugin is removed by then.
    fn ask_for_gone(
        self: &Rc<Self>,
        job: JobId,
        asked: io::Result<Future>,
        then: impl FnOnce(&Rc<Self>, Future) + 'static,
    ) {
        let weak = Rc::downgrade(self);
        let pending = asked.and_then(|future| {
            future.then(-1.0, move |future| {
                let Some(me) = weak.upgrade() else { return };
                // It may be what is called here.
                let done = me.gone.step.take();
                me.gone_unless_it_panics(|| {
                    ffi::stumble("answer-gone");
                    then(&me, future);
                });
                drop(done);
            })
        });
        match pending {
            Ok(pending) => drop(self.gone.step.replace(Some(Step::Asked(pending)))),
            Err(e) => {
                self.inner.log(LogLevel::Err, &format!("{job}: {e}: trying again"));
                self.mind_gone_later(AGAIN);
            }
        }
    }
}
