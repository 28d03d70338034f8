//! Jobs that were past SCHED when the plugin was loaded: from a plugin that was removed, or from an earlier job manager.
//!
//! What the plugin before this one left tells where each job is ([`crate::handover`]). Of all other jobs, the eventlog does.
//! It is complete in the KVS after a restart; in a job manager that runs it may be behind by a batch, so it is read only
//! after that batch is written.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
    time::{Duration, Instant},
};

use ffi::{Args, Future, JobId, JobState, LogLevel, PendingFuture, Watcher};
use nix::errno::Errno;

use protocol::{Code, Failure};

use crate::{
    eventlog::{Eventlog, Past, Perilog},
    manager::Inner,
    records::KVS_TIMEOUT,
    stats::Stay,
};

/// After how many seconds the job manager has sent what it knew to the KVS: it does so in batches of 10 ms.
const WRITTEN: f64 = 0.5;

/// There is no such key. It is removed to learn when all is written that was to be written before.
const NO_KEY: &str = "dws-jobtap-was-here";

/// After what time an eventlog that could not be read is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The same where there was no answer at all.
const ASK_AGAIN_UNANSWERED: Duration = Duration::from_secs(90);

/// How many eventlogs are asked for at once.
const AT_ONCE: usize = 64;

/// A timer of Flux that is started before its reactor has run, as at a restart, is over at once.
const NO_TIMER: f64 = -1.0;

/// Reads the eventlogs of jobs of which nothing is known.
#[derive(Default)]
pub(crate) struct Reader {
    /// Those jobs, and when each is asked for again.
    unknown: RefCell<HashMap<JobId, Instant>>,
    /// Those whose events may not be in the KVS yet, and what is under way to learn when they are.
    unwritten: RefCell<Vec<JobId>>,
    flush: RefCell<Option<Flush>>,
    /// Those that wait for others to be read, and how many are being read.
    waiting: RefCell<VecDeque<JobId>>,
    asking: Cell<usize>,
}

/// Ends when it is dropped.
enum Flush {
    Later(#[expect(dead_code, reason = "it is kept")] Watcher),
    Asked(#[expect(dead_code, reason = "it is kept")] PendingFuture),
}

impl Reader {
    /// Returns whether something is known of every job.
    pub(crate) fn is_idle(&self) -> bool {
        self.unknown.borrow().is_empty()
    }

    /// Returns the jobs of which nothing is known.
    pub(crate) fn jobs(&self) -> Vec<JobId> {
        self.unknown.borrow().keys().copied().collect()
    }

    /// Nothing needs to be known of this job any more. Returns whether it was to be read.
    pub(crate) fn forget(&self, job: JobId) -> bool {
        self.unknown.borrow_mut().remove(&job).is_some()
    }

    /// The plugin is being removed.
    pub(crate) fn end(&self) {
        drop(self.flush.take());
    }
}

impl Inner {
    /// Takes up a job that was past SCHED when the plugin was loaded.
    pub(crate) fn resume(inner: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, state: JobState) {
        let stay = Stay::begin();
        // It is active: its record, if it has one, is not to be removed yet.
        inner.ended_meanwhile.borrow_mut().remove(&job);
        match inner.past_left(job) {
            // The same job manager: what was left is exact, and the eventlog in the KVS may be behind.
            Some(Past::None) if state == JobState::Run => Self::late(inner, args, job, uid, &stay),
            Some(past) => Self::go_on(inner, args, job, uid, state, past, &stay),
            None => Self::read_eventlog(inner, job),
        }
    }

    /// Returns how far the delivery of a job had come, by what the plugin before this one left: nothing if there was none in
    /// this job manager, or if it did not know.
    pub fn past_left(&self, job: JobId) -> Option<Past> {
        self.left.borrow().as_ref()?.past(job)
    }

    /// The job entered RUN while no plugin was loaded. If another prolog still holds it, there is time; if it has
    /// started, prolog-start is refused and the job is left alone.
    pub(crate) fn late(inner: &Rc<Self>, args: &Args<'_>, job: JobId, uid: u32, stay: &Stay) {
        let Some(matching) = inner.matching(args, uid) else {
            return;
        };
        if inner.jobtap.prolog_start(inner.kind.prolog).is_ok() {
            inner.unless_it_panics(job, || inner.begin(matching, job, uid, stay));
        }
    }

    pub(crate) fn go_on(
        inner: &Rc<Self>,
        args: &Args<'_>,
        job: JobId,
        uid: u32,
        state: JobState,
        past: Past,
        stay: &Stay,
    ) {
        match (past, state) {
            (Past::None, _) => {}
            (Past::Finished(_), _) => {
                inner.delivered.borrow_mut().insert(job);
            }
            (Past::Outstanding, JobState::Run) => {
                inner.stats.borrow_mut().resumed += 1;
                match inner.matching(args, uid) {
                    Some(matching) => inner.begin(matching, job, uid, stay),
                    None => {
                        let why = "no rule matches it any more: the configuration was changed during its delivery";
                        inner.fail(
                            job,
                            &Failure::new(Code::RulesChanged, "the rules were changed: submit it again", why),
                        );
                    }
                }
            }
            (Past::Outstanding, _) => {
                inner.stats.borrow_mut().canceled += 1;
                inner.finish_prolog(job, 1);
            }
        }
    }

    /// Reads the eventlog of a job, and takes the job up with it.
    pub fn read_eventlog(inner: &Rc<Self>, job: JobId) {
        let reader = &inner.reader;
        let again = Instant::now() + ASK_AGAIN_UNANSWERED;
        reader.unknown.borrow_mut().insert(job, again);
        reader.unwritten.borrow_mut().push(job);
        inner.tick();
        Self::flush_later(inner);
    }

    fn flush_later(inner: &Rc<Self>) {
        if inner.reader.flush.borrow().is_some() {
            return;
        }
        let weak = Rc::downgrade(inner);
        let later = inner.flux().after(WRITTEN, move || {
            let Some(inner) = weak.upgrade() else { return };
            let done = inner.reader.flush.take();
            ffi::guard((), || Self::flush(&inner));
            drop(done);
        });
        match later {
            Ok(later) => *inner.reader.flush.borrow_mut() = Some(Flush::Later(later)),
            Err(e) => inner.unwritten(inner.reader.unwritten.take(), &e),
        }
    }

    /// When a commit of nothing is done, all is written that was to be written before.
    fn flush(inner: &Rc<Self>) {
        let jobs = inner.reader.unwritten.take();
        let again = jobs.clone();
        let weak = Rc::downgrade(inner);
        let flushed = inner.commit_nothing().and_then(|commit| {
            commit.then(KVS_TIMEOUT, move |future| {
                let Some(inner) = weak.upgrade() else { return };
                let done = inner.reader.flush.take();
                ffi::guard((), || match future.get() {
                    Ok(()) => {
                        inner.reader.waiting.borrow_mut().extend(jobs);
                        Self::ask(&inner);
                    }
                    Err(e) => inner.unwritten(jobs, &e),
                });
                if !inner.reader.unwritten.borrow().is_empty() {
                    Self::flush_later(&inner);
                }
                drop(done);
            })
        });
        match flushed {
            Ok(pending) => *inner.reader.flush.borrow_mut() = Some(Flush::Asked(pending)),
            Err(e) => inner.unwritten(again, &e),
        }
    }

    /// Commits nothing. When that is done, all is written that was to be written before.
    ///
    /// # Errors
    /// If the request cannot be sent.
    pub fn commit_nothing(&self) -> std::io::Result<Future> {
        let mut transaction = ffi::Transaction::new()?;
        transaction.unlink(NO_KEY)?;
        self.flux().commit(transaction)
    }

    /// Nothing needs to be known of this job any more.
    pub fn forget_eventlog(&self, job: JobId) {
        self.reader.forget(job);
    }

    /// Returns whether something is known of every job.
    pub fn knows_all(&self) -> bool {
        self.reader.is_idle()
    }

    fn unwritten(&self, jobs: Vec<JobId>, e: &dyn std::fmt::Display) {
        for job in jobs {
            self.unread(job, e);
        }
    }

    fn ask(inner: &Rc<Self>) {
        while inner.reader.asking.get() < AT_ONCE {
            let Some(job) = inner.reader.waiting.borrow_mut().pop_front() else {
                return;
            };
            match inner.reader.unknown.borrow_mut().get_mut(&job) {
                Some(at) => *at = Instant::now() + ASK_AGAIN_UNANSWERED,
                // It is known meanwhile, or gone.
                None => continue,
            }
            Self::ask_for_eventlog(inner, job);
        }
    }

    fn ask_for_eventlog(inner: &Rc<Self>, job: JobId) {
        let number = inner.number();
        let weak = Rc::downgrade(inner);
        let asked = job.kvs_key("eventlog").and_then(|key| {
            inner.flux().lookup(&key)?.then(NO_TIMER, move |future| {
                let Some(inner) = weak.upgrade() else { return };
                let done = inner.pending.borrow_mut().remove(&number);
                inner.reader.asking.set(inner.reader.asking.get() - 1);
                // It may have been asked twice, and this be the later answer.
                if inner.reader.forget(job) {
                    inner.unless_it_panics(job, || Self::was_read(&inner, job, &future));
                }
                drop(done);
                Self::ask(&inner);
            })
        });
        match asked {
            Ok(pending) => {
                inner.reader.asking.set(inner.reader.asking.get() + 1);
                inner.pending.borrow_mut().insert(number, pending);
            }
            Err(e) => inner.unread(job, &e),
        }
    }

    fn was_read(inner: &Rc<Self>, job: JobId, future: &Future) {
        let text = match future.value() {
            Ok(text) => text.unwrap_or_default(),
            // A job that was purged has no eventlog any more.
            Err(e) if e.errno() == Errno::ENOENT as i32 && inner.state(job).is_none() => String::new(),
            Err(e) => return inner.unread(job, &e),
        };
        let eventlog = Eventlog::parse(&text, inner.kind.events);
        match inner.hooks() {
            Some(hooks) => hooks.resume(job, &eventlog),
            None => {
                ffi::inject_fault("eventlog");
                Self::resume_from(inner, job, &eventlog);
            }
        }
    }

    /// Returns the state of a job that is active.
    pub fn state(&self, job: JobId) -> Option<JobState> {
        let args = self.jobtap.lookup(job)?;
        let (_, _, state) = args.job_owner_state()?;
        Some(state).filter(|state| *state != JobState::Inactive)
    }

    /// Asks for the eventlogs that could not be read before.
    pub(crate) fn ask_again(inner: &Rc<Self>) {
        let now = Instant::now();
        let due: Vec<JobId> = {
            let unknown = inner.reader.unknown.borrow();
            let due = unknown.iter().filter(|(_, at)| **at <= now);
            due.map(|(job, _)| *job).collect()
        };
        for job in due {
            Self::read_eventlog(inner, job);
        }
    }

    fn resume_from(inner: &Rc<Self>, job: JobId, eventlog: &Eventlog) {
        let stay = Stay::begin();
        let past = eventlog.past(Perilog::Prolog, &inner.kind.prolog.to_string_lossy());
        // The job may have changed since.
        let Some(args) = inner.jobtap.lookup(job) else { return };
        let Some((_, uid, state)) = args.job_owner_state() else {
            return;
        };
        if state == JobState::Inactive || inner.deliveries.borrow().contains(job) {
            return;
        }
        if state == JobState::Depend {
            return inner.depended_on(job, uid, eventlog);
        }
        if past == Past::None && state == JobState::Run && !eventlog.has_started() {
            inner.too_late(&args, job, uid);
            return;
        }
        Self::go_on(inner, &args, job, uid, state, past, &stay);
    }

    /// The job entered RUN before there was a plugin in this job manager, and something else still holds it. A prolog can
    /// be started from within its callbacks only, of which none may come before it starts.
    fn too_late(&self, args: &Args<'_>, job: JobId, uid: u32) {
        if self.matching(args, uid).is_some() {
            let why =
                "it was in RUN, and not started, when the plugin was loaded into this job manager for the first time";
            self.stats.borrow_mut().failed += 1;
            self.raise(
                job,
                &Failure::new(
                    Code::TooLate,
                    "it was allocated before tokens were delivered here: submit it again",
                    why,
                ),
            );
        }
    }

    /// The job may be held, and only the eventlog tells: it is asked for until it can be read.
    fn unread(&self, job: JobId, e: &dyn std::fmt::Display) {
        let again = Instant::now() + ASK_AGAIN;
        self.reader.unknown.borrow_mut().insert(job, again);
        let line =
            format!("{job}: its eventlog could not be read: {e}: until it can be, the job may wait: trying again");
        self.log(LogLevel::Err, &line);
    }
}
