//! What is asked of the service, and what it is answered.

use std::{ffi::CStr, io, rc::Rc};

use ffi::{FutureError, JobId, LogLevel, Request};
use serde_json::{Value, json};

use super::{Asker, Call, Rabbits, request::Malformed};

impl Rabbits {
    /// Asks, and calls `then` with the answer, unless the job is gone or the plugin removed by then.
    pub(super) fn call(
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
                ffi::inject_fault(call.name());
                then(&me, future);
            });
            drop(done);
        })?;
        self.with(job, |rabbit| rabbit.calls.insert(call, pending));
        Ok(())
    }

    /// Tells the service something to which nothing depends on its answer.
    pub(super) fn tell(&self, job: JobId, topic: &CStr) {
        let payload = json!({ "jobid": job.0 }).to_string();
        if let Err(e) = self.engine.flux().rpc(topic, &payload) {
            let line = format!("Failed to send {} RPC for job {job}: {e}", topic.to_string_lossy());
            self.engine.log(LogLevel::Err, &line);
        }
    }

    pub(super) fn malformed(&self, request: Request<'_>, method: &str, malformed: Option<Malformed>) {
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

    pub(super) fn respond(&self, request: Request<'_>, result: Result<(), String>) {
        self.answer(Asker(Some(request.keep())), result);
    }

    pub(super) fn answer_all(&self, job: JobId, result: &Result<(), String>) {
        for asker in self.with(job, |rabbit| std::mem::take(&mut rabbit.requests)) {
            self.answer(asker, result.clone());
        }
    }

    pub(super) fn answer(&self, mut asker: Asker, result: Result<(), String>) {
        let Some(request) = asker.0.take() else { return };
        // It is there.
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

/// What the service answers: `success`, and perhaps `errstr`.
pub(super) enum Answer {
    Success,
    Failure(Option<String>),
}

/// Why there is no answer.
pub(super) enum Unanswered {
    NoService,
    Other(String),
}

impl Unanswered {
    pub(super) fn text(&self) -> &str {
        match self {
            Unanswered::NoService => "no service answers to it: is flux-coral2-dws running?",
            Unanswered::Other(why) => why,
        }
    }
}

pub(super) fn answer(future: &ffi::Future) -> Result<Answer, Unanswered> {
    let no_service = |e: &FutureError| e.errno() == nix::errno::Errno::ENOSYS as i32;
    let text = future.rpc().map_err(|e| match no_service(&e) {
        true => Unanswered::NoService,
        false => Unanswered::Other(e.to_string()),
    })?;
    let answer: Value = serde_json::from_str(text.as_deref().unwrap_or_default())
        .map_err(|e| Unanswered::Other(format!("its answer is no JSON: {e}")))?;
    match answer["success"].as_bool() {
        Some(true) => Ok(Answer::Success),
        Some(false) => Ok(Answer::Failure(answer["errstr"].as_str().map(str::to_owned))),
        None => Err(Unanswered::Other(
            "its answer does not say whether it succeeded".to_owned(),
        )),
    }
}
