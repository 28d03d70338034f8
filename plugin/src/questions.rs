// SPDX-License-Identifier: MIT OR Apache-2.0

//! Answers questions of the agent about jobs: whether they are active, and when they ended.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use ffi::{JobId, Jobtap, PendingFuture};
use protocol::JobEnd;

use crate::{eventlog::Eventlog, reader::active_state};

/// The timeout of a KVS look-up, in seconds. The agent waits longer.
const TIMEOUT: f64 = 2.0;

/// The most eventlogs that are read concurrently. Answers to further questions contain no time.
const AT_ONCE: usize = 64;

/// The pending questions.
pub(crate) struct Questions {
    jobtap: Jobtap<'static>,
    answer: Box<dyn Fn(u64, Option<JobEnd>)>,
    pending: RefCell<BTreeMap<u64, PendingFuture>>,
}

impl Questions {
    /// Returns an empty set. `answer` receives the number of each question, and the end of its job; none if the job is
    /// active.
    pub fn new(jobtap: Jobtap<'static>, answer: impl Fn(u64, Option<JobEnd>) + 'static) -> Rc<Self> {
        Rc::new(Self {
            jobtap,
            answer: Box::new(answer),
            pending: RefCell::default(),
        })
    }

    /// Answers a question. The job manager knows the active jobs; the KVS contains the time at which others ended.
    pub fn ask(self: &Rc<Self>, number: u64, job: JobId) {
        if active_state(self.jobtap, job).is_some() {
            return (self.answer)(number, None);
        }
        if self.pending.borrow().len() >= AT_ONCE {
            return (self.answer)(number, Some(JobEnd::default()));
        }
        let weak = Rc::downgrade(self);
        let asked = job.kvs_key(c"eventlog").and_then(|key| {
            self.jobtap.flux().lookup(&key)?.then(TIMEOUT, move |future| {
                let Some(questions) = weak.upgrade() else { return };
                let done = questions.pending.borrow_mut().remove(&number);
                // A purged job has no eventlog.
                let text = future.value().ok().flatten().unwrap_or_default();
                let at = ffi::guard(None, || Eventlog::parse(&text, &[]).ended_at());
                (questions.answer)(number, Some(JobEnd { at }));
                drop(done);
            })
        });
        match asked {
            Ok(pending) => drop(self.pending.borrow_mut().insert(number, pending)),
            Err(_) => (self.answer)(number, Some(JobEnd::default())),
        }
    }

    /// Cancels all look-ups when the plugin is removed.
    pub fn end(&self) {
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        drop(pending);
    }
}
