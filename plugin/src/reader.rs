//! Reads what the KVS has of jobs from before the plugin was loaded: the eventlogs of those of which nothing is known, and the
//! sealed records of those that run.
//!
//! The KVS is complete after a restart. In a running job manager it may be behind by a batch of events, so it is read only
//! after that batch is written.

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

/// How long a request to the KVS may take, in seconds.
pub(crate) const KVS_TIMEOUT: f64 = 60.0;

/// After how many seconds the job manager has sent its events to the KVS: it does so in batches of 10 ms.
const WRITTEN: f64 = 0.5;

/// A key that does not exist. Its removal commits nothing.
const NO_KEY: &CStr = c"dws-jobtap-was-here";

/// After what time an eventlog that could not be read is read again.
const RETRY: Duration = Duration::from_secs(5);

/// The same if there was no answer at all.
const RETRY_UNANSWERED: Duration = Duration::from_secs(90);

/// How many eventlogs are read at once.
const AT_ONCE: usize = 64;

/// A Flux timer that is started before its reactor has run, as at a restart, expires at once.
const NO_TIMER: f64 = -1.0;

/// A key in the directories of jobs.
pub struct Subject {
    /// The key.
    pub key: &'static CStr,
    /// Its name, for the operator.
    pub name: &'static str,
    /// The consequence of a value that cannot be read, for the operator.
    pub otherwise: &'static str,
    /// Set if an active job need not have it.
    pub is_optional: bool,
}

/// An event that [`Reader`] reports.
pub enum ReadEvent {
    /// The value for a job. It is empty if there is none.
    Read(JobId, String),
    /// A line for the log.
    Log(LogLevel, String),
}

/// Reads the values of one key, and repeats what fails.
pub struct Reader {
    jobtap: Jobtap<'static>,
    subject: &'static Subject,
    report: Box<dyn Fn(ReadEvent)>,
    /// The jobs whose value has not been read, and when it is read again.
    unknown: RefCell<BTreeMap<JobId, Instant>>,
    /// Those whose events may not be in the KVS yet, and the step that waits for them.
    unwritten: RefCell<Vec<JobId>>,
    flush: RefCell<Option<Flush>>,
    /// Those that wait for others to be read, and the requests under way by number.
    waiting: RefCell<VecDeque<JobId>>,
    pending: RefCell<BTreeMap<u64, PendingFuture>>,
    numbers: Cell<u64>,
}

/// Ends when it is dropped.
enum Flush {
    Later(#[expect(dead_code, reason = "it is kept")] Watcher),
    Asked(#[expect(dead_code, reason = "it is kept")] PendingFuture),
}

/// Commits nothing. When that is done, everything is written that was sent before.
///
/// # Errors
/// If the request cannot be sent.
pub(crate) fn commit_nothing(flux: Flux<'_>) -> io::Result<Future> {
    let mut transaction = ffi::Transaction::new()?;
    transaction.unlink(NO_KEY)?;
    flux.commit(transaction)
}

/// Returns the state of a job that is active.
pub(crate) fn active_state(jobtap: Jobtap<'_>, job: JobId) -> Option<JobState> {
    let args = jobtap.lookup(job)?;
    let (_, _, state) = args.job_owner_state()?;
    Some(state).filter(|state| *state != JobState::Inactive)
}

impl Reader {
    /// Returns a reader that has read all. `report` must not drop the reader.
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

    /// Returns whether all has been read.
    pub fn is_idle(&self) -> bool {
        self.unknown.borrow().is_empty()
    }

    /// Returns the jobs whose value has not been read.
    pub fn jobs(&self) -> HashSet<JobId> {
        self.unknown.borrow().keys().copied().collect()
    }

    /// Does not read the value for a job any more. Returns whether it was to be read.
    pub fn forget(&self, job: JobId) -> bool {
        self.unknown.borrow_mut().remove(&job).is_some()
    }

    /// Ends all requests: the plugin is being removed.
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

    /// Reads again what could not be read. To be called every 100 ms while not idle.
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
                // The job is known meanwhile, or gone.
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
                // It may have been asked twice, and this be the later answer.
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
            // A job that was purged has nothing any more.
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

    /// Keeps jobs to be read again.
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
