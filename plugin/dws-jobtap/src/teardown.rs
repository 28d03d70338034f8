// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tears down orphaned workflows.
//!
//! The removed plugin left the jobs in its handover. Their eventlogs show whether another plugin tore down the workflow
//! meanwhile, and whether data must be copied out. The service is called for one job at a time, in rounds. A job is
//! kept until the service reports that its workflow is deleted.

use std::{ffi::CStr, io, rc::Rc};

use ffi::{Future, JobId, LogLevel};
use plugin::{Engine, Eventlog, Past, Perilog};
use serde_json::json;

use crate::{
    lifecycle::{Epilog, EpilogEvent},
    orphans::{End, OrphanState, Step},
    rabbit_jobs::{AGAIN, EPILOG, PROLOG, RabbitJobs},
    service::{NoReply, Reply, reply},
};

/// The timeout of a call, in seconds. A restarted service never answers earlier calls.
const TIMEOUT: f64 = 60.0;

/// The longest pause between two rounds, in seconds. Each pause is twice as long as the former one.
const LONGEST_PAUSE: f64 = 600.0;

/// The number of refusals after which a job is abandoned: about an hour.
const MOST_REFUSALS: u32 = 12;

impl RabbitJobs {
    /// Takes over the jobs of the handover that are not active any more.
    pub fn take_up_orphans(self: &Rc<Self>, inherited: impl IntoIterator<Item = OrphanState>) {
        let inherited = inherited.into_iter();
        let due = self.orphans.take_over(
            inherited
                .filter(|OrphanState(job, epilog)| *epilog != Epilog::Finished && self.engine.state(*job).is_none()),
        );
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
            Engine::read_eventlog(&self.engine, job);
        }
    }

    /// Handles the eventlog of an orphan, which is empty if the job was purged.
    pub fn resume_orphan(self: &Rc<Self>, job: JobId, eventlog: &Eventlog) {
        let past = |which, description: &CStr| eventlog.past(which, &description.to_string_lossy());
        let end = if eventlog.is_empty() {
            End::Purged
        } else if past(Perilog::Epilog, EPILOG) == Past::Finished(0) {
            // Another plugin had it torn down.
            self.orphans.forget(job);
            return;
        } else {
            // If the job did not run, there is no data to be copied out.
            End::HasRun(eventlog.has_started() && past(Perilog::Prolog, PROLOG) == Past::Finished(0))
        };
        self.orphans.has_ended(job, end);
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

    /// Handles the next orphan of the round, or waits for the next round.
    fn next_orphan(self: &Rc<Self>) {
        while let Some((job, end)) = self.orphans.next() {
            self.orphans.at.set(Some(job));
            match end {
                // The job may have run, and may have data to copy out.
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
        self.ask_for_orphan(asked, move |me, future| match reply(&future) {
            Ok(Reply::Success) => me.next_orphan(),
            Err(NoReply::NoService) => {
                me.orphans.on(job, EpilogEvent::Unheard);
                me.log_absent_service(job, "dws.post_run");
                me.round_later(AGAIN);
            }
            Ok(Reply::Failure(why)) if me.orphans.is_repeated(job) => {
                // The service is already tearing it down, or has deleted it.
                let line = format!(
                    "{job}: dws.post_run, which may have been sent before: {}: waiting for the service to say that its \
                     workflow is gone",
                    why.unwrap_or_default()
                );
                me.engine.log(LogLevel::Warning, &line);
                me.next_orphan();
            }
            Ok(Reply::Failure(why)) => {
                me.orphans.on(job, EpilogEvent::Unheard);
                me.orphan_refused(job, why.as_deref().unwrap_or("no error string provided"));
            }
            Err(NoReply::Other(why)) => {
                me.orphans.on(job, EpilogEvent::Unanswered);
                me.orphan_refused(job, &why);
            }
        });
    }

    /// Calls the service again in the next round, up to `MOST_REFUSALS` times.
    fn orphan_refused(self: &Rc<Self>, job: JobId, why: &str) {
        match self.orphans.refused(job) {
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

    /// Calls `f`. If it panics, abandons only the current orphan.
    pub fn orphan_unless_it_panics(self: &Rc<Self>, f: impl FnOnce()) {
        let done = ffi::guard(false, || {
            f();
            true
        });
        if !done {
            let why = "an internal error: see its location in the broker's output";
            let at_hand = self.orphans.at.get().or_else(|| Some(self.orphans.next()?.0));
            ffi::guard((), || {
                if let Some(job) = at_hand {
                    self.forget_orphan(job, why);
                }
                self.next_orphan();
            });
        }
    }

    /// Calls `then` with the reply, unless the plugin is removed before.
    fn ask_for_orphan(self: &Rc<Self>, asked: io::Result<Future>, then: impl FnOnce(&Rc<Self>, Future) + 'static) {
        let weak = Rc::downgrade(self);
        let pending = asked.and_then(|future| {
            future.then(TIMEOUT, move |future| {
                let Some(me) = weak.upgrade() else { return };
                // The step may own this closure, so drop it last.
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
