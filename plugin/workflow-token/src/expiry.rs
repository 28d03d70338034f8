// SPDX-License-Identifier: MIT OR Apache-2.0

//! Handles tokens that expire because they could not be renewed.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use ffi::{JobId, LogLevel, PendingFuture};
use plugin::Engine;
use seal::OnExpiry;
use serde_json::json;

/// The timeout for signaling the tasks of a job, in seconds.
const KILL_TIMEOUT: f64 = 60.0;

/// The severity of an exception that ends a job, and that of one that only informs its user (RFC 21).
const FATAL: i32 = 0;
pub(crate) const NOTICE: i32 = 4;

/// SIGTERM, signal(7).
const SIGTERM: i32 = 15;

/// Informs users and operators, and ends jobs if their rules say so.
pub(crate) struct Expiry {
    engine: Rc<Engine>,
    /// The pending requests to signal the tasks of jobs.
    signals: Rc<RefCell<BTreeMap<JobId, PendingFuture>>>,
}

impl Expiry {
    pub fn new(engine: Rc<Engine>) -> Self {
        Self {
            engine,
            signals: Rc::default(),
        }
    }

    /// Applies the rule's `on-expiry` to a job.
    pub fn expired(&self, job: JobId, on_expiry: OnExpiry) {
        self.engine
            .log(LogLevel::Err, &format!("{job}: its workflow token has expired"));
        let prologs = &self.engine.prologs;
        let severity = match on_expiry {
            OnExpiry::Exception => FATAL,
            OnExpiry::Warn | OnExpiry::Signal => NOTICE,
        };
        let text = "the workflow token of this job has expired, since it could not be renewed: ask the operators";
        if let Err(e) = prologs.jobtap.raise(job, prologs.identity.prolog, severity, text) {
            let line = format!("{job}: the exception could not be raised: {e}");
            self.engine.log(LogLevel::Err, &line);
        }
        if on_expiry == OnExpiry::Signal {
            self.signal(job);
        }
    }

    /// Sends SIGTERM to the tasks of a job, like `flux job kill` (flux-job(1)).
    fn signal(&self, job: JobId) {
        let request = json!({ "id": job.0, "signum": SIGTERM }).to_string();
        let (signals, engine) = (Rc::downgrade(&self.signals), Rc::downgrade(&self.engine));
        let sent = self.engine.flux().rpc(c"job-manager.kill", &request).and_then(|rpc| {
            rpc.then(KILL_TIMEOUT, move |answer| {
                let done = signals.upgrade().and_then(|signals| signals.borrow_mut().remove(&job));
                if let (Err(e), Some(engine)) = (answer.get(), engine.upgrade()) {
                    engine.log(LogLevel::Err, &not_sent(job, &e));
                }
                drop(done);
            })
        });
        match sent {
            Ok(pending) => drop(self.signals.borrow_mut().insert(job, pending)),
            Err(e) => self.engine.log(LogLevel::Err, &not_sent(job, &e)),
        }
    }

    /// Cancels all requests when the plugin is removed.
    pub fn end(&self) {
        let pending = self.signals.take();
        drop(pending);
    }
}

fn not_sent(job: JobId, e: &dyn std::fmt::Display) -> String {
    format!("{job}: its tasks could not be signaled: {e}")
}
