// SPDX-License-Identifier: MIT OR Apache-2.0

//! CLEANUP: the service tears down the workflow when no shell is running any more.

use std::rc::Rc;

use ffi::{Args, JobId, JobState, LogLevel, PluginError, Request};
use serde_json::json;

use crate::{
    lifecycle::{Epilog, EpilogEvent, Knowledge, ShellsEvent},
    rabbit_jobs::{Call, EPILOG, EPILOG_TIMEOUT, RabbitJobs, Unanswered},
    request::EpilogRemove,
    service::{NoReply, Reply, reply},
};

impl RabbitJobs {
    pub fn cleanup(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some(job) = self.rabbit_job(args) else {
            return Ok(());
        };
        self.subscribe(job)?;
        self.end_prolog(job);
        let life = self.life(job);
        if life.epilog != Epilog::None {
            return Ok(());
        }
        if life.knowledge == Knowledge::Reading {
            if args.previous_state() == Some(JobState::Run) {
                return self.start_epilog(job);
            }
            // It has not started, even if its eventlog is not read yet.
            let waiting = self.now_known(job);
            let started = self.start_epilog(job);
            for f in waiting {
                f(self);
            }
            return started;
        }
        // If the job has started, its epilog begins after its shells have finished.
        if self.has_started(job) {
            return Ok(());
        }
        self.start_epilog(job)
    }

    /// `job.event.finish`: the shells of a job have finished.
    pub fn finish(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        match self.rabbit_job(args) {
            Some(job) => self.shells_are_over(job, true),
            None => Ok(()),
        }
    }

    /// `job.event.release`: the resources of a job are not in use any more. If its shells were lost, there was no
    /// `finish`.
    pub fn release(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let is_final = args.json(&["entry", "context", "final"]).as_deref() == Some("true");
        match self.rabbit_job(args).filter(|_| is_final) {
            Some(job) => self.shells_are_over(job, false),
            None => Ok(()),
        }
    }

    pub fn shells_are_over(self: &Rc<Self>, job: JobId, finished: bool) -> Result<(), PluginError> {
        let event = if finished {
            ShellsEvent::Finished
        } else {
            ShellsEvent::Silent
        };
        self.on_shells(job, event);
        if self.life(job).epilog == Epilog::None && self.engine.state(job) == Some(JobState::Cleanup) {
            return self.start_epilog(job);
        }
        self.send_post_run(job);
        Ok(())
    }

    /// Starts the epilog, within a callback about the job.
    pub fn start_epilog(self: &Rc<Self>, job: JobId) -> Result<(), PluginError> {
        self.start_epilog_as(job, EpilogEvent::Started)
    }

    /// Starts the epilog. `event` is `Held` if the job may already have had one.
    pub fn start_epilog_as(self: &Rc<Self>, job: JobId, event: EpilogEvent) -> Result<(), PluginError> {
        if let Err(e) = self.jobtap().epilog_start(EPILOG) {
            let line = format!("Failed to start jobtap epilog for {job}: {e}");
            self.engine.log(LogLevel::Err, &line);
            return Err(self.raise_current(job, "Failed to start jobtap epilog"));
        }
        self.on_epilog(job, event);
        self.send_post_run(job);
        Ok(())
    }

    /// Sends `dws.post_run`, if the epilog is due and no shell is running. The service then tears down the workflow.
    pub fn send_post_run(self: &Rc<Self>, job: JobId) {
        let has_run = self.has_started(job);
        let life = self.life(job);
        let is_quiet = life.shells.are_over() || !has_run;
        if life.knowledge == Knowledge::Reading || !is_quiet || !self.on_epilog(job, EpilogEvent::Sent) {
            return;
        }
        self.start_epilog_timer(job);
        let payload = json!({ "jobid": job.0, "run_started": has_run }).to_string();
        let asked = self.engine.flux().rpc(c"dws.post_run", &payload);
        let sent = self.call(job, Call::PostRun, asked, move |me, future| match reply(&future) {
            Ok(Reply::Success) => {}
            // The Workflow must not be left behind. In a shutdown, the service may end first.
            Err(NoReply::NoService) if me.life(job).workflow.may_exist() => {
                me.on_epilog(job, EpilogEvent::Unheard);
                me.again(job, "dws.post_run", |me, job| me.send_post_run(job));
            }
            Ok(Reply::Failure(why)) if me.life(job).epilog.is_repeated() => {
                // The service is already tearing it down, or has deleted it.
                let why = why.unwrap_or_default();
                let line = format!(
                    "{job}: dws.post_run, which may have been sent before: {why}: waiting for the service to end its epilog"
                );
                me.engine.log(LogLevel::Warning, &line);
            }
            Ok(Reply::Failure(why)) => {
                me.fail_epilog(job, why.as_deref().unwrap_or("<no error string provided>"));
            }
            Err(e) => {
                me.engine
                    .log(LogLevel::Err, &format!("{job}: dws.post_run: {}", e.text()));
                me.fail_epilog(job, "Failed to send dws.post_run RPC");
            }
        });
        if let Err(e) = sent {
            self.engine.log(
                LogLevel::Err,
                &format!("Failed to send dws.post_run RPC for {job}: {e}"),
            );
            self.fail_epilog(job, "Failed to send dws.post_run RPC");
        }
    }

    /// Starts the timer that raises the exception `dws-epilog-timeout`.
    pub fn start_epilog_timer(self: &Rc<Self>, job: JobId) {
        if self.epilog_timeout <= 0.0 || self.with(job, |rabbit| rabbit.timer.is_some()) {
            return;
        }
        let weak = Rc::downgrade(self);
        let timer = self.engine.flux().after(self.epilog_timeout, move || {
            let Some(me) = weak.upgrade() else { return };
            me.unless_it_panics(job, || {
                ffi::inject_fault("epilog-timeout");
                if me.in_epilog(job) {
                    me.raise(job, EPILOG_TIMEOUT, "DWS epilog timed out");
                }
            });
        });
        match timer {
            Ok(timer) => self.with(job, |rabbit| rabbit.timer = Some(timer)),
            Err(e) => {
                let line = format!("Failed to init dws-epilog timeout for {job}: {e}");
                self.engine.log(LogLevel::Err, &line);
                self.fail_epilog(job, "Failed to init dws-epilog timeout");
            }
        }
    }

    fn fail_epilog(&self, job: JobId, why: &str) {
        if !self.in_epilog(job) {
            return;
        }
        let line = format!("Failed to clean up DWS workflow object for job {job}");
        self.engine.log(LogLevel::Err, &line);
        // If the epilog is still outstanding, the exception makes the service tear down the workflow.
        self.fail(job, EPILOG, why);
        // The exception was raised already.
        let _ = self.finish_epilog(job, 1);
    }

    pub fn in_epilog(&self, job: JobId) -> bool {
        self.life(job).epilog.is_outstanding()
    }

    pub fn finish_epilog(&self, job: JobId, status: i32) -> Result<(), String> {
        if !self.on_epilog(job, EpilogEvent::Finished) {
            return Err("could not finish epilog: it is not outstanding".to_owned());
        }
        self.jobtap().epilog_finish(job, EPILOG, status).map_err(|e| {
            let line = format!("Failed to finish epilog dws-epilog for job {job}: {e}");
            self.engine.log(LogLevel::Err, &line);
            "could not finish epilog".to_owned()
        })
    }

    pub fn epilog_remove(self: &Rc<Self>, request: Request<'_>) {
        ffi::inject_fault("epilog-remove");
        let EpilogRemove { job } = match request.payload().ok().map(EpilogRemove::parse) {
            Some(Ok(remove)) => remove,
            malformed => return self.malformed(request, "epilog-remove", malformed.and_then(Result::err)),
        };
        let unanswered = Unanswered(Some(request.keep()));
        self.when_known(job, move |me| {
            if me.orphans.forget(job) {
                me.counts.torn_down.set(me.counts.torn_down.get() + 1);
                return me.answer(unanswered, Ok(()));
            }
            if me.engine.state(job) != Some(JobState::Cleanup) {
                return me.answer(unanswered, Err("job not found in CLEANUP state".to_owned()));
            }
            let result = me.finish_epilog(job, 0);
            if result.is_ok() {
                me.counts.torn_down.set(me.counts.torn_down.get() + 1);
            }
            me.answer(unanswered, result);
        });
    }
}
