// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls to the service for Data Workflow Services, and replies to its requests.

use std::{ffi::CStr, io, rc::Rc};

use ffi::{FutureError, JobId, LogLevel, Request};
use serde_json::{Value, json};

use crate::{
    rabbit_jobs::{AGAIN, Call, RabbitJobs, Unanswered},
    request::Malformed,
};

impl RabbitJobs {
    /// Calls `then` with the reply, unless the job ends or the plugin is removed before.
    pub fn call(
        self: &Rc<Self>,
        job: JobId,
        call: Call,
        asked: io::Result<ffi::Future>,
        then: impl FnOnce(&Rc<Self>, ffi::Future) + 'static,
    ) -> io::Result<()> {
        let weak = Rc::downgrade(self);
        let pending = asked?.then(-1.0, move |future| {
            let Some(me) = weak.upgrade() else { return };
            let done = me.with(job, |rabbit| rabbit.calls.remove(&call));
            me.unless_it_panics(job, || {
                ffi::inject_fault(call.fault());
                then(&me, future);
            });
            drop(done);
        })?;
        self.with(job, |rabbit| rabbit.calls.insert(call, pending));
        Ok(())
    }

    /// Calls `ask` again later: after a restart, the service may start later than the job manager.
    pub fn again(self: &Rc<Self>, job: JobId, topic: &str, ask: impl Fn(&Rc<Self>, JobId) + 'static) {
        self.log_absent_service(job, topic);
        let weak = Rc::downgrade(self);
        let later = self.engine.flux().after(AGAIN, move || {
            if let Some(me) = weak.upgrade() {
                me.unless_it_panics(job, || ask(&me, job));
            }
        });
        match later {
            Ok(later) => self.with(job, |rabbit| rabbit.later = Some(later)),
            Err(e) => self.engine.log(LogLevel::Err, &format!("{job}: no timer: {e}")),
        }
    }

    /// Logs the absence of the service once, until it answers again.
    pub fn log_absent_service(&self, job: JobId, topic: &str) {
        if !self.no_service.replace(true) {
            let line = format!("{job}: {topic}: {}: asking again", NoReply::NoService.text());
            self.engine.log(LogLevel::Err, &line);
        }
    }

    /// Sends a one-way notification to the service. The reply is ignored.
    pub fn notify(&self, job: JobId, topic: &CStr) {
        let payload = json!({ "jobid": job.0 }).to_string();
        if let Err(e) = self.engine.flux().rpc(topic, &payload) {
            let line = format!("Failed to send {} RPC for job {job}: {e}", topic.to_string_lossy());
            self.engine.log(LogLevel::Err, &line);
        }
    }

    pub fn malformed(&self, request: Request<'_>, method: &str, malformed: Option<Malformed>) {
        let why = malformed
            .as_ref()
            .map_or("it has no payload", |malformed| &malformed.why);
        let line = format!("received malformed dws.{method} RPC");
        if let Some(job) = malformed.as_ref().and_then(|malformed| malformed.job) {
            self.fail(job, c"exception", &format!("{line}: {why}"));
        }
        self.engine.log(
            LogLevel::Err,
            &format!(
                "{line}: {why}: the flux-coral2-dws service and the plugin dws-jobtap may be out of sync: see which \
                 versions they are"
            ),
        );
        self.respond(request, Err(line));
    }

    pub fn respond(&self, request: Request<'_>, result: Result<(), String>) {
        self.answer(Unanswered(Some(request.keep())), result);
    }

    pub fn answer_all(&self, job: JobId, result: &Result<(), String>) {
        for request in self.with(job, |rabbit| std::mem::take(&mut rabbit.requests)) {
            self.answer(request, result.clone());
        }
    }

    pub fn answer(&self, mut request: Unanswered, result: Result<(), String>) {
        let Some(request) = request.0.take() else { return };
        // The request shows that the service is running.
        self.no_service.set(false);
        let sent = match result {
            Ok(()) => request.respond(None),
            Err(why) => request.refuse(nix::errno::Errno::EINVAL as i32, &why),
        };
        if let Err(e) = sent {
            let line = format!("an answer to flux-coral2-dws could not be sent: {e}");
            self.engine.log(LogLevel::Err, &line);
        }
    }
}

/// The reply of the service: `success`, and perhaps `errstr`.
pub enum Reply {
    Success,
    Failure(Option<String>),
}

/// The cause of a missing or malformed reply.
pub enum NoReply {
    NoService,
    Other(String),
}

impl NoReply {
    pub fn text(&self) -> &str {
        match self {
            NoReply::NoService => "no service answers to it: is flux-coral2-dws running?",
            NoReply::Other(why) => why,
        }
    }
}

pub fn reply(future: &ffi::Future) -> Result<Reply, NoReply> {
    let no_service = |e: &FutureError| e.errno() == nix::errno::Errno::ENOSYS as i32;
    let text = future.rpc().map_err(|e| match no_service(&e) {
        true => NoReply::NoService,
        false => NoReply::Other(e.to_string()),
    })?;
    let answer: Value = serde_json::from_str(text.as_deref().unwrap_or_default())
        .map_err(|e| NoReply::Other(format!("its answer is not JSON: {e}")))?;
    match answer["success"].as_bool() {
        Some(true) => Ok(Reply::Success),
        Some(false) => Ok(Reply::Failure(answer["errstr"].as_str().map(str::to_owned))),
        None => Err(NoReply::Other(
            "its answer does not say whether it succeeded".to_owned(),
        )),
    }
}
