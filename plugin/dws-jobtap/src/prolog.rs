//! RUN: the workflow is set up, and the variables that the service sends are sealed and committed.

use std::rc::Rc;

use ffi::{Args, JobId, JobState, LogLevel, PluginError, Request};
use serde::de::IgnoredAny;
use serde_json::json;

use super::{
    Asker, Call, EVENT, PROLOG, Rabbits,
    lifecycle::{Origin, Prolog, PrologEvent},
    request::PrologRemove,
    service::{Answer, Unanswered, answer},
};
use protocol::Failure;

impl Rabbits {
    pub(super) fn run(self: &Rc<Self>, args: &Args<'_>) -> Result<(), PluginError> {
        let Some(job) = self.rabbit_job(args) else {
            return Ok(());
        };
        self.subscribe(job)?;
        // Whatever it was before, it begins here.
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

    /// Sends `dws.setup`, once it is known which resources the job has.
    pub(super) fn set_up(self: &Rc<Self>, job: JobId) {
        let asked = job.kvs_key(c"R").and_then(|key| self.engine.flux().lookup(&key));
        let sent = self.call(job, Call::Resources, asked, move |me, future| {
            if !me.on_prolog(job, PrologEvent::SetupSent) {
                // It was canceled meanwhile, and the service was told to tear its workflow down.
                return;
            }
            let resources = future.value().ok().flatten();
            // It goes on as it is.
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
        let sent = self.call(job, Call::Setup, asked, move |me, future| match answer(&future) {
            Ok(Answer::Success) => {}
            Ok(Answer::Failure(why)) => {
                me.fail_prolog(job, why.as_deref().unwrap_or("dws.setup RPC returned failure"));
            }
            Err(Unanswered::NoService) if me.life(job).origin == Origin::Inherited => {
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

    /// The job must not start. Its prolog is finished by the callback of the exception.
    pub(super) fn fail_prolog(&self, job: JobId, why: &str) {
        if self.life(job).prolog.is_outstanding() {
            let line = format!("Failed to setup DWS workflow object for job {job}");
            self.engine.log(LogLevel::Err, &line);
            self.fail(job, PROLOG, why);
        }
    }

    pub(super) fn prolog_remove(self: &Rc<Self>, request: Request<'_>) {
        ffi::inject_fault("prolog-remove");
        let remove = match request.payload().ok().map(PrologRemove::parse) {
            Some(Ok(remove)) => remove,
            malformed => return self.malformed(request, "prolog-remove", malformed.and_then(Result::err)),
        };
        let asker = Asker(Some(request.keep()));
        self.when_known(remove.job, move |me| me.deliver(remove, asker));
    }

    /// Seals the variables; the prolog is finished when they are where the job shells find them.
    fn deliver(self: &Rc<Self>, PrologRemove { job, variables }: PrologRemove, asker: Asker) {
        match self.life(job).prolog {
            Prolog::SetupDue | Prolog::Waiting | Prolog::Looking => {}
            // The service was restarted, and says again what it said before.
            Prolog::Finished if self.engine.state(job) == Some(JobState::Run) => return self.answer(asker, Ok(())),
            Prolog::Finished | Prolog::None | Prolog::Held => {
                let why = "the job has no prolog dws-setup: it is not a rabbit job in RUN";
                return self.answer(asker, Err(why.to_owned()));
            }
        }
        self.on_prolog(job, PrologEvent::Answered);
        let (first, lookup) = self.with(job, |rabbit| {
            rabbit.requests.push(asker);
            (rabbit.requests.len() == 1, rabbit.calls.remove(&Call::Record))
        });
        drop(lookup);
        if !first {
            return;
        }
        let uid = self.with(job, |rabbit| rabbit.uid);
        let weak = Rc::downgrade(self);
        let end = move |result: Result<Vec<String>, Failure>| {
            let Some(me) = weak.upgrade() else { return };
            match result {
                Ok(names) => me.delivered(job, &names),
                Err(why) => me.undelivered(job, &why),
            }
        };
        self.engine.provide(job, uid, variables, Some(Box::new(end)));
    }

    pub(super) fn delivered(&self, job: JobId, names: &[String]) {
        // It tells what there is; what it is, is in the record only.
        if let Err(e) = self.jobtap().post(job, EVENT, &json!({ "names": names })) {
            let line = format!("{job}: failed to post the event dws_environment: {e}");
            self.engine.log(LogLevel::Err, &line);
        }
        let askers = self.with(job, |rabbit| std::mem::take(&mut rabbit.requests));
        let result = self.finish_prolog(job, 0);
        if result.is_ok() {
            self.counts.set_up.set(self.counts.set_up.get() + 1);
        }
        for asker in askers {
            self.answer(asker, result.clone());
        }
    }

    pub(super) fn undelivered(&self, job: JobId, why: &Failure) {
        // The exception, which comes first, would answer them with less.
        let askers = self.with(job, |rabbit| std::mem::take(&mut rabbit.requests));
        self.fail_prolog(
            job,
            &format!(
                "its environment could not be delivered: {}: if this goes on, ask the operators: the cause is in the log \
                 of Flux",
                why.user
            ),
        );
        for asker in askers {
            self.answer(
                asker,
                Err(format!("its environment could not be delivered: {}", why.user)),
            );
        }
    }

    pub(super) fn finish_prolog(&self, job: JobId, status: i32) -> Result<(), String> {
        if !self.on_prolog(job, PrologEvent::Finished) {
            return Err("the prolog is not outstanding".to_owned());
        }
        self.jobtap().prolog_finish(job, PROLOG, status).map_err(|e| {
            let line = format!("Failed to finish prolog dws-setup for job {job}: {e}");
            self.engine.log(LogLevel::Err, &line);
            "failed to finish prolog".to_owned()
        })
    }
}
