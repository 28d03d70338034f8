// SPDX-License-Identifier: MIT OR Apache-2.0

//! RUN: the service sets up the workflow, and the variables that it sends are sealed and committed.

use std::rc::Rc;

use ffi::{Args, JobId, JobState, LogLevel, PluginError, Request};
use plugin::Delivered;
use protocol::Failure;
use serde::de::IgnoredAny;
use serde_json::json;

use crate::{
    lifecycle::{Origin, Prolog, PrologEvent},
    rabbit_jobs::{Call, EVENT, PROLOG, RabbitJobs, Unanswered},
    request::PrologRemove,
    service::{NoReply, Reply, reply},
};

impl RabbitJobs {
    pub fn run(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some(job) = self.rabbit_job(args) else {
            return Ok(());
        };
        self.subscribe(job)?;
        // From here on, the state of the job is known.
        let waiting = self.now_known(job);
        if let Err(e) = self.jobtap().prolog_start(PROLOG) {
            let line = format!("Failed to start dws jobtap prolog for {job}: {e}");
            self.engine.log(LogLevel::Err, &line);
            return Err(self.raise_current(job, "Failed to start dws jobtap prolog"));
        }
        self.on_prolog(job, PrologEvent::Started);
        self.set_up(job);
        for f in waiting {
            f(self);
        }
        Ok(())
    }

    /// Looks up the resources of a job, and sends `dws.setup`.
    pub fn set_up(self: &Rc<Self>, job: JobId) {
        let asked = job.kvs_key(c"R").and_then(|key| self.engine.flux().lookup(&key));
        let sent = self.call(job, Call::Resources, asked, move |me, future| {
            if !me.on_prolog(job, PrologEvent::SetupSent) {
                // The job was canceled meanwhile, and the service was asked to tear down its workflow.
                return;
            }
            let resources = future.value().ok().flatten();
            // Passed on unchanged.
            match resources.filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok()) {
                Some(resources) => me.send_setup(job, &resources),
                None => me.fail_prolog(job, "Failed to unpack R"),
            }
        });
        if let Err(e) = sent {
            self.engine
                .log(LogLevel::Err, &format!("{job}: R could not be looked up: {e}"));
            self.fail_prolog(job, "Failed to look up R");
        }
    }

    fn send_setup(self: &Rc<Self>, job: JobId, resources: &str) {
        let payload = format!(r#"{{"jobid":{},"R":{resources}}}"#, job.0);
        let asked = self.engine.flux().rpc(c"dws.setup", &payload);
        let sent = self.call(job, Call::Setup, asked, move |me, future| match reply(&future) {
            Ok(Reply::Success) => {}
            Ok(Reply::Failure(why)) => {
                me.fail_prolog(job, why.as_deref().unwrap_or("dws.setup RPC returned failure"));
            }
            Err(NoReply::NoService) if me.life(job).origin == Origin::Inherited => {
                me.on_prolog(job, PrologEvent::SetupUnheard);
                me.again(job, "dws.setup", |me, job| {
                    if me.life(job).prolog == Prolog::SetupDue {
                        me.set_up(job);
                    }
                });
            }
            Err(e) => {
                me.engine.log(LogLevel::Err, &format!("{job}: dws.setup: {}", e.text()));
                me.fail_prolog(job, "Failed to unpack dws.setup RPC");
            }
        });
        if let Err(e) = sent {
            self.engine
                .log(LogLevel::Err, &format!("{job}: dws.setup could not be sent: {e}"));
            self.fail_prolog(job, "Failed to send dws.setup RPC");
        }
    }

    /// Raises the exception of a job that must not start. The callback of the exception finishes the prolog.
    pub fn fail_prolog(&self, job: JobId, why: &str) {
        if self.life(job).prolog.is_outstanding() {
            let line = format!("Failed to setup DWS workflow object for job {job}");
            self.engine.log(LogLevel::Err, &line);
            self.fail(job, PROLOG, why);
        }
    }

    pub fn prolog_remove(self: &Rc<Self>, request: Request<'_>) {
        ffi::inject_fault("prolog-remove");
        let remove = match request.payload().ok().map(PrologRemove::parse) {
            Some(Ok(remove)) => remove,
            malformed => return self.malformed(request, "prolog-remove", malformed.and_then(Result::err)),
        };
        let request = Unanswered(Some(request.keep()));
        self.when_known(remove.job, move |me| me.deliver(remove, request));
    }

    /// Begins the delivery of the variables. The prolog is finished after they are committed.
    fn deliver(self: &Rc<Self>, PrologRemove { job, variables }: PrologRemove, request: Unanswered) {
        match self.life(job).prolog {
            Prolog::SetupDue | Prolog::Waiting | Prolog::Looking => {}
            // The service was restarted, and repeats its request.
            Prolog::Finished if self.engine.state(job) == Some(JobState::Run) => return self.answer(request, Ok(())),
            Prolog::Finished | Prolog::None | Prolog::Held => {
                let why = "the job has no prolog dws-setup: it is not a rabbit job in RUN";
                return self.answer(request, Err(why.to_owned()));
            }
        }
        self.on_prolog(job, PrologEvent::Answered);
        let (first, lookup) = self.with(job, |rabbit| {
            rabbit.requests.push(request);
            (rabbit.requests.len() == 1, rabbit.calls.remove(&Call::Record))
        });
        drop(lookup);
        if !first {
            return;
        }
        let uid = self.with(job, |rabbit| rabbit.uid);
        let weak = Rc::downgrade(self);
        let end = move |result: Result<Delivered, Failure>| {
            let Some(me) = weak.upgrade() else { return };
            match result {
                Ok(delivered) => me.delivered(job, &delivered.names),
                Err(why) => me.undelivered(job, &why),
            }
        };
        self.engine.provide(job, uid, variables, Some(Box::new(end)));
    }

    pub fn delivered(&self, job: JobId, names: &[String]) {
        // The event contains only the names. Only the record contains the values.
        if let Err(e) = self.jobtap().post(job, EVENT, &json!({ "names": names })) {
            let line = format!("{job}: failed to post the event dws_environment: {e}");
            self.engine.log(LogLevel::Err, &line);
        }
        let requests = self.with(job, |rabbit| std::mem::take(&mut rabbit.requests));
        let result = self.finish_prolog(job, 0);
        if result.is_ok() {
            self.counts.set_up.set(self.counts.set_up.get() + 1);
        }
        for request in requests {
            self.answer(request, result.clone());
        }
    }

    pub fn undelivered(&self, job: JobId, why: &Failure) {
        // Take the requests first: the callback of the exception would answer them, with less detail.
        let requests = self.with(job, |rabbit| std::mem::take(&mut rabbit.requests));
        self.fail_prolog(
            job,
            &format!(
                "its environment could not be delivered: {}: if this goes on, ask the operators: the cause is in the log \
                 of Flux",
                why.user
            ),
        );
        for request in requests {
            self.answer(
                request,
                Err(format!("its environment could not be delivered: {}", why.user)),
            );
        }
    }

    pub fn finish_prolog(&self, job: JobId, status: i32) -> Result<(), String> {
        if !self.on_prolog(job, PrologEvent::Finished) {
            return Err("the prolog is not outstanding".to_owned());
        }
        self.jobtap().prolog_finish(job, PROLOG, status).map_err(|e| {
            let line = format!("Failed to finish prolog dws-setup for job {job}: {e}");
            self.engine.log(LogLevel::Err, &line);
            "failed to finish prolog".to_owned()
        })
    }

    /// Finishes the prolog of a job that must not start, if it is outstanding.
    pub fn end_prolog(&self, job: JobId) -> bool {
        if !self.life(job).prolog.is_outstanding() {
            return false;
        }
        self.engine.deliveries.give_up(job);
        // The error was logged.
        let _ = self.finish_prolog(job, 1);
        self.answer_all(job, &Err("the job has got an exception".to_owned()));
        true
    }
}
