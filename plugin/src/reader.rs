// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads the KVS for jobs from before the plugin was loaded: the eventlogs of jobs in an unknown state, and the sealed
//! records of running jobs.
//!
//! After a restart, the KVS is complete. In a running job manager, it may lack the last batch of events, so the reader
//! waits until that batch is written.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashSet, VecDeque},
    ffi::CStr,
    fmt, io,
    rc::Rc,
    time::{Duration, Instant},
};

use ffi::{Flux, Future, JobId, JobState, Jobtap, LogLevel, PendingFuture, Watcher};
use nix::errno::Errno;

/// The timeout of a request to the KVS, in seconds.
pub(crate) const KVS_TIMEOUT: f64 = 60.0;

/// The time after which the job manager has sent its events to the KVS, in seconds: it writes batches of 10 ms.
const WRITTEN: f64 = 0.5;

/// A key that does not exist. Its removal changes nothing.
const NO_KEY: &CStr = c"dws-jobtap-was-here";

/// The pause before a failed read is retried.
const RETRY: Duration = Duration::from_secs(5);

/// The pause before a read without any reply is retried.
const RETRY_UNANSWERED: Duration = Duration::from_secs(90);

/// The most concurrent reads.
const AT_ONCE: usize = 64;

/// No timeout: a Flux timer that is started before its reactor has run, as at a restart, expires at once.
const NO_TIMER: f64 = -1.0;

/// A key in the KVS directories of jobs.
pub struct Subject {
    /// The key.
    pub key: &'static CStr,
    /// Its name, for the operator.
    pub name: &'static str,
    /// The consequence of an unreadable value, for the operator.
    pub otherwise: &'static str,
    /// Set if an active job may lack it.
    pub is_optional: bool,
}

/// An event that [`Reader`] reports.
pub enum ReadEvent {
    /// The value for a job; empty if there is none.
    Read(JobId, String),
    /// A line for the log.
    Log(LogLevel, String),
}

/// Reads the values of one key, and retries failed reads.
pub struct Reader {
    jobtap: Jobtap<'static>,
    subject: &'static Subject,
    report: Box<dyn Fn(ReadEvent)>,
    /// The jobs with an unread value, and the time of the next attempt.
    unknown: RefCell<BTreeMap<JobId, Instant>>,
    /// The jobs whose events may not be in the KVS yet, and the step that waits for them.
    unwritten: RefCell<Vec<JobId>>,
    flush: RefCell<Option<Flush>>,
    /// The jobs that wait for a free read, and the running reads by number.
    waiting: RefCell<VecDeque<JobId>>,
    pending: RefCell<BTreeMap<u64, PendingFuture>>,
    numbers: Cell<u64>,
}

/// The step that waits for the KVS. Dropping it cancels it.
enum Flush {
    Later(#[expect(dead_code, reason = "it is kept")] Watcher),
    Asked(#[expect(dead_code, reason = "it is kept")] PendingFuture),
}

/// Sends an empty commit. When it completes, all earlier commits are in the KVS.
///
/// # Errors
/// The request cannot be sent.
pub(crate) fn commit_nothing(flux: Flux<'_>) -> io::Result<Future> {
    let mut transaction = ffi::Transaction::new()?;
    transaction.unlink(NO_KEY)?;
    flux.commit(transaction)
}

/// Returns the state of an active job.
pub(crate) fn active_state(jobtap: Jobtap<'_>, job: JobId) -> Option<JobState> {
    let args = jobtap.lookup(job)?;
    let (_, _, state) = args.job_owner_state()?;
    Some(state).filter(|state| *state != JobState::Inactive)
}

impl Reader {
    /// Returns a reader without jobs. `report` must not drop the reader.
    pub fn new(jobtap: Jobtap<'static>, subject: &'static Subject, report: impl Fn(ReadEvent) + 'static) -> Rc<Self> {
        Rc::new(Self {
            jobtap,
            subject,
            report: Box::new(report),
            unknown: RefCell::default(),
            unwritten: RefCell::default(),
            flush: RefCell::default(),
            waiting: RefCell::default(),
            pending: RefCell::default(),
            numbers: Cell::default(),
        })
    }

    /// Returns whether all values have been read.
    pub fn is_idle(&self) -> bool {
        self.unknown.borrow().is_empty()
    }

    /// Returns the jobs with an unread value.
    pub fn jobs(&self) -> HashSet<JobId> {
        self.unknown.borrow().keys().copied().collect()
    }

    /// Stops reading the value for a job. Returns whether it was unread.
    pub fn forget(&self, job: JobId) -> bool {
        self.unknown.borrow_mut().remove(&job).is_some()
    }

    /// Cancels all requests when the plugin is removed.
    pub fn end(&self) {
        drop(self.flush.take());
        let pending = std::mem::take(&mut *self.pending.borrow_mut());
        drop(pending);
    }

    /// Reads the value for a job.
    pub fn read(self: &Rc<Self>, job: JobId) {
        let again = Instant::now() + RETRY_UNANSWERED;
        self.unknown.borrow_mut().insert(job, again);
        self.unwritten.borrow_mut().push(job);
        self.flush_later();
    }

    /// Retries failed reads. Must be called every 100 ms while not idle.
    pub fn tick(self: &Rc<Self>) {
        let now = Instant::now();
        let due: Vec<JobId> = {
            let unknown = self.unknown.borrow();
            let due = unknown.iter().filter(|(_, at)| **at <= now);
            due.map(|(job, _)| *job).collect()
        };
        for job in due {
            self.read(job);
        }
    }

    fn flux(&self) -> Flux<'static> {
        self.jobtap.flux()
    }

    fn flush_later(self: &Rc<Self>) {
        if self.flush.borrow().is_some() {
            return;
        }
        let weak = Rc::downgrade(self);
        let later = self.flux().after(WRITTEN, move || {
            let Some(reader) = weak.upgrade() else { return };
            let done = reader.flush.take();
            ffi::guard((), || reader.flush());
            drop(done);
        });
        match later {
            Ok(later) => *self.flush.borrow_mut() = Some(Flush::Later(later)),
            Err(e) => self.unread(self.unwritten.take(), &e),
        }
    }

    fn flush(self: &Rc<Self>) {
        let jobs = self.unwritten.take();
        let again = jobs.clone();
        let weak = Rc::downgrade(self);
        let flushed = commit_nothing(self.flux()).and_then(|commit| {
            commit.then(KVS_TIMEOUT, move |future| {
                let Some(reader) = weak.upgrade() else { return };
                let done = reader.flush.take();
                ffi::guard((), || match future.get() {
                    Ok(()) => {
                        reader.waiting.borrow_mut().extend(jobs);
                        reader.ask();
                    }
                    Err(e) => reader.unread(jobs, &e),
                });
                if !reader.unwritten.borrow().is_empty() {
                    reader.flush_later();
                }
                drop(done);
            })
        });
        match flushed {
            Ok(pending) => *self.flush.borrow_mut() = Some(Flush::Asked(pending)),
            Err(e) => self.unread(again, &e),
        }
    }

    fn ask(self: &Rc<Self>) {
        while self.pending.borrow().len() < AT_ONCE {
            let Some(job) = self.waiting.borrow_mut().pop_front() else {
                return;
            };
            match self.unknown.borrow_mut().get_mut(&job) {
                Some(at) => *at = Instant::now() + RETRY_UNANSWERED,
                // The state of the job is known meanwhile, or the job has ended.
                None => continue,
            }
            self.ask_for(job);
        }
    }

    fn ask_for(self: &Rc<Self>, job: JobId) {
        let number = self.numbers.get() + 1;
        self.numbers.set(number);
        let weak = Rc::downgrade(self);
        let asked = job.kvs_key(self.subject.key).and_then(|key| {
            self.flux().lookup(&key)?.then(NO_TIMER, move |future| {
                let Some(reader) = weak.upgrade() else { return };
                let done = reader.pending.borrow_mut().remove(&number);
                // If the value was requested twice, ignore the later answer.
                if reader.forget(job) {
                    reader.answered(job, &future);
                }
                drop(done);
                reader.ask();
            })
        });
        match asked {
            Ok(pending) => drop(self.pending.borrow_mut().insert(number, pending)),
            Err(e) => self.unread(vec![job], &e),
        }
    }

    fn answered(&self, job: JobId, future: &Future) {
        let text = match future.value() {
            Ok(text) => text.unwrap_or_default(),
            // A purged job has no keys.
            Err(e)
                if e.errno() == Errno::ENOENT as i32
                    && (self.subject.is_optional || active_state(self.jobtap, job).is_none()) =>
            {
                String::new()
            }
            Err(e) => return self.unread(vec![job], &e),
        };
        (self.report)(ReadEvent::Read(job, text));
    }

    /// Schedules another attempt to read the values of jobs.
    fn unread(&self, jobs: Vec<JobId>, e: &dyn fmt::Display) {
        for job in jobs {
            let again = Instant::now() + RETRY;
            self.unknown.borrow_mut().insert(job, again);
            let Subject { name, otherwise, .. } = self.subject;
            let line = format!("{job}: its {name} could not be read: {e}: until it can be, {otherwise}: trying again");
            (self.report)(ReadEvent::Log(LogLevel::Err, line));
        }
    }
}
