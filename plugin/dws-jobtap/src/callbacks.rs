// SPDX-License-Identifier: MIT OR Apache-2.0

//! The callbacks for all stages of a rabbit job, and the functions that the engine calls.

use std::{ffi::CStr, io, rc::Rc};

use ffi::{Args, JobId, JobState, Jobtap, Plugin, PluginError};
use plugin::{Eventlog, Handover, Hooks};
use protocol::Failure;
use serde_json::json;

use crate::{
    lifecycle::{Epilog, Prolog, PrologEvent},
    rabbit_jobs::{PROLOG, RabbitJob, RabbitJobs},
    request,
};

/// The state of the plugin, which Flux passes to callbacks.
pub struct Dws(pub Rc<RabbitJobs>);

impl Dws {
    pub fn new(jobtap: Jobtap<'static>, plugin: Plugin<'_>) -> io::Result<Self> {
        let jobs = Rc::new(RabbitJobs::new(jobtap, plugin)?);
        let hooks = Rc::downgrade(&jobs);
        jobs.engine.hook(hooks);
        Ok(Self(jobs))
    }

    pub fn configure(&self, args: &Args<'_>) -> Result<(), PluginError> {
        if self.0.engine.configure(args)? {
            self.0.take_over();
        }
        Ok(())
    }

    pub fn inactive(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let Some(job) = args.job() else { return Ok(()) };
        self.0.engine.ended(job);
        let ended = self.0.jobs.borrow_mut().remove(&job);
        drop(ended);
        Ok(())
    }

    pub fn query(&self, args: &Args<'_>) -> Result<(), PluginError> {
        let me = &self.0;
        let mut answer = me.engine.counters();
        let count = |which: fn(&RabbitJob) -> bool| me.jobs.borrow().values().filter(|rabbit| which(rabbit)).count();
        answer["epilog-timeout"] = json!(me.epilog_timeout);
        answer["jobs"] = json!({
            "active": me.jobs.borrow().len(),
            "in-prolog": count(|rabbit| rabbit.life.prolog.is_outstanding()),
            "in-epilog": count(|rabbit| rabbit.life.epilog.is_outstanding()),
            "gone": me.orphans.count(),
        });
        answer["created"] = json!(me.counts.created.get());
        answer["set-up"] = json!(me.counts.set_up.get());
        answer["torn-down"] = json!(me.counts.torn_down.get());
        args.answer(&answer);
        Ok(())
    }
}

impl ffi::State for Dws {
    fn panicked(&self, topic: &CStr, args: &Args<'_>) {
        self.0.panicked(topic, args);
    }

    fn request_panicked(&self, payload: Option<&str>) {
        if let Some(job) = request::job(payload) {
            self.0.fault(job);
        }
    }
}

impl Drop for Dws {
    fn drop(&mut self) {
        self.0.engine.end();
    }
}

impl Hooks for RabbitJobs {
    fn resume(self: Rc<Self>, job: JobId, eventlog: &Eventlog) {
        if self.orphans.contains(job) {
            self.orphan_unless_it_panics(|| self.resume_orphan(job, eventlog));
        } else {
            self.unless_it_panics(job, || {
                ffi::inject_fault("answer-eventlog");
                self.resume_from(job, eventlog);
            });
        }
    }

    fn leave(&self, handover: &mut Handover) {
        handover.own = self.leave_jobs();
    }

    fn failed(&self, job: JobId, why: &Failure) {
        self.engine.prologs.log_failure(job, why);
        self.undelivered(job, why);
    }
}

impl RabbitJobs {
    /// Fails the job of a callback that panicked. The job manager ignores the return value of the callback.
    fn panicked(self: &Rc<Self>, topic: &CStr, args: &Args<'_>) {
        let Some((job, _, state)) = args.job_owner_state() else {
            return;
        };
        if self.rabbit_job(args).is_none() {
            return;
        }
        match topic.to_bytes() {
            // No other callback knows the job yet, and a job in NEW cannot have an exception.
            b"job.new" if state == JobState::New => {}
            // Another exception would call this callback again.
            b"job.event.exception" => drop(self.end_prolog(job)),
            b"job.state.inactive" => drop(self.jobs.borrow_mut().remove(&job)),
            b"job.state.run" => {
                // Flux starts the job as soon as this callback returns, even after an exception, unless a prolog holds
                // it.
                if self.life(job).prolog == Prolog::None && self.jobtap().prolog_start(PROLOG).is_ok() {
                    self.on_prolog(job, PrologEvent::Started);
                }
                self.fault(job);
            }
            b"job.state.cleanup" => {
                // The workflow is still torn down, once the shells have ended.
                self.end_prolog(job);
                if self.life(job).epilog == Epilog::None && !self.has_started(job) {
                    // The error was logged.
                    let _ = self.start_epilog(job);
                }
                self.fault(job);
            }
            b"job.event.finish" | b"job.event.release" => {
                let _ = self.shells_are_over(job, topic == c"job.event.finish");
                self.fault(job);
            }
            _ => self.fault(job),
        }
    }
}
