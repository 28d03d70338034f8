//! CLEANUP: the workflow is torn down when no shell is running any more.

use std::rc::Rc;

use ffi::{Args, JobId, JobState, LogLevel, PluginError, Request};
use serde_json::json;

use super::{
    Asker, Call, EPILOG, EPILOG_TIMEOUT, Rabbits,
    lifecycle::{Epilog, EpilogEvent, Knowledge, ShellsEvent},
    request::EpilogRemove,
    service::{Answer, Unanswered, answer},
};

impl Rabbits {
    pub(super) fn cleanup(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
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
            // It has not started, whatever its eventlog says.
            let waiting = self.now_known(job);
            let started = self.start_epilog(job);
            for f in waiting {
                f(self);
            }
            return started;
        }
        // The epilog of a job that has started begins when its shells have finished.
        if self.has_started(job) {
            return Ok(());
        }
        self.start_epilog(job)
    }

    /// The shells of a job have finished.
    pub(super) fn finish(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        match self.rabbit_job(args) {
            Some(job) => self.shells_are_over(job, true),
            None => Ok(()),
        }
    }

    /// Nothing of a job uses its resources any more. Where its shells were lost, there is no `finish` before.
    pub(super) fn release(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let is_final = args.json(&["entry", "context", "final"]).as_deref() == Some("true");
        match self.rabbit_job(args).filter(|_| is_final) {
            Some(job) => self.shells_are_over(job, false),
            None => Ok(()),
        }
    }

    pub(super) fn shells_are_over(self: &Rc<Self>, job: JobId, finished: bool) -> Result<(), PluginError> {
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

    pub(super) fn on_shells(&self, job: JobId, event: ShellsEvent) -> bool {
        self.on(job, |life| &mut life.shells, event)
    }

    pub(super) fn on_epilog(&self, job: JobId, event: EpilogEvent) -> bool {
        self.on(job, |life| &mut life.epilog, event)
    }

    pub(super) fn has_started(&self, job: JobId) -> bool {
        self.life(job).shells.have_started() || self.jobtap().was_posted(job, c"start")
    }

    /// Starts the epilog, from within a callback that is about the job.
    pub(super) fn start_epilog(self: &Rc<Self>, job: JobId) -> Result<(), PluginError> {
        self.start_epilog_as(job, EpilogEvent::Started)
    }

    /// The same, to hold a job of which it is not known whether it has had one.
    pub(super) fn start_epilog_as(self: &Rc<Self>, job: JobId, event: EpilogEvent) -> Result<(), PluginError> {
        if let Err(e) = self.jobtap().epilog_start(EPILOG) {
            let line = format!("Failed to start jobtap epilog for {job}: {e}");
            self.engine.log(LogLevel::Err, &line);
            return Err(self.raise_current(job, "Failed to start jobtap epilog"));
        }
        self.on_epilog(job, event);
        self.send_post_run(job);
        Ok(())
    }

    /// Has the service tear the workflow down, once it is known that no shell is running.
    pub(super) fn send_post_run(self: &Rc<Self>, job: JobId) {
        let has_run = self.has_started(job);
        let life = self.life(job);
        let is_quiet = life.shells.are_over() || !has_run;
        if life.knowledge == Knowledge::Reading || !is_quiet || !self.on_epilog(job, EpilogEvent::Sent) {
            return;
        }
        self.mind_epilog(job);
        let payload = json!({ "jobid": job.0, "run_started": has_run }).to_string();
        let asked = self.engine.flux().rpc(c"dws.post_run", &payload);
        let sent = self.call(job, Call::PostRun, asked, move |me, future| match answer(&future) {
            Ok(Answer::Success) => {}
            // A Workflow must not be forgotten: not in a shutdown either, which may end the service first.
            Err(Unanswered::NoService) if me.life(job).workflow.may_exist() => {
                me.on_epilog(job, EpilogEvent::Unheard);
                me.again(job, "dws.post_run", |me, job| me.send_post_run(job));
            }
            Ok(Answer::Failure(why)) if me.life(job).epilog.is_repeated() => {
                // It is on its way already, or gone.
                let why = why.unwrap_or_default();
                let line = format!(
                    "{job}: dws.post_run, which may have been sent before: {why}: waiting for the service to end its epilog"
                );
                me.engine.log(LogLevel::Warning, &line);
            }
            Ok(Answer::Failure(why)) => {
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

    /// Raises the exception that ends the epilog, when its time is over.
    pub(super) fn mind_epilog(self: &Rc<Self>, job: JobId) {
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
        // The exception has the workflow torn down, if the epilog is outstanding still.
        self.fail(job, EPILOG, why);
        // Who is told has heard already.
        let _ = self.finish_epilog(job, 1);
    }

    pub(super) fn in_epilog(&self, job: JobId) -> bool {
        self.life(job).epilog.is_outstanding()
    }

    pub(super) fn finish_epilog(&self, job: JobId, status: i32) -> Result<(), String> {
        if !self.on_epilog(job, EpilogEvent::Finished) {
            return Err("could not finish epilog: it is not outstanding".to_owned());
        }
        self.jobtap().epilog_finish(job, EPILOG, status).map_err(|e| {
            let line = format!("Failed to finish epilog dws-epilog for job {job}: {e}");
            self.engine.log(LogLevel::Err, &line);
            "could not finish epilog".to_owned()
        })
    }

    pub(super) fn epilog_remove(self: &Rc<Self>, request: Request<'_>) {
        ffi::inject_fault("epilog-remove");
        let EpilogRemove { job } = match request.payload().ok().map(EpilogRemove::parse) {
            Some(Ok(remove)) => remove,
            malformed => return self.malformed(request, "epilog-remove", malformed.and_then(Result::err)),
        };
        let asker = Asker(Some(request.keep()));
        self.when_known(job, move |me| {
            if me.orphans.forget(job) {
                me.counts.torn_down.set(me.counts.torn_down.get() + 1);
                return me.answer(asker, Ok(()));
            }
            if me.engine.state(job) != Some(JobState::Cleanup) {
                return me.answer(asker, Err("job not found in CLEANUP state".to_owned()));
            }
            let result = me.finish_epilog(job, 0);
            if result.is_ok() {
                me.counts.torn_down.set(me.counts.torn_down.get() + 1);
            }
            me.answer(asker, result);
        });
    }
}
