// SPDX-License-Identifier: MIT OR Apache-2.0

//! Schedules the renewals of running jobs' records, and reports expired tokens.
//!
//! ```text
//! committed ─► waiting ── renew-at ──► renewing ─► committed
//!                 ▲                       │
//!                 └──── pause, doubled ───┘ failed
//! ```
//!
//! A job keeps its record until the next one is committed. After a restart, the record contains everything that the
//! schedule needs.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use ffi::{Flux, JobId, Jobtap, LogLevel, Watcher};
use plugin::{Delivered, ReadEvent, Reader, Subject, TURN};
use protocol::Failure;
use seal::{Attempts, Due, OnExpiry, Record};

/// The longest time of a timer.
const LONGEST: Duration = Duration::from_secs(86_400);

/// The interval at which failed reads of records are retried.
const READ: Duration = Duration::from_secs(5);

/// The sealed records of running jobs. A job that no rule matched has none.
static RECORD: Subject = Subject {
    key: c"workflow-token",
    name: "sealed record",
    otherwise: "its token is not renewed",
    is_optional: true,
};

/// An event that [`Renewals`] report.
pub(crate) enum RenewalEvent {
    /// The renewal of a job is due. The number is that of its records so far.
    Due(JobId, u32),
    /// The token of a job has expired.
    Expired(JobId, OnExpiry),
    /// A line for the log.
    Log(LogLevel, String),
}

/// The schedule of renewals.
pub(crate) struct Renewals {
    flux: Flux<'static>,
    report: Box<dyn Fn(RenewalEvent)>,
    reader: Rc<Reader>,
    jobs: RefCell<BTreeMap<JobId, Attempts>>,
    schedule: RefCell<BTreeSet<(Instant, JobId)>>,
    /// The timer for the first renewal, and the time when it expires.
    timer: RefCell<Option<(Instant, Watcher)>>,
    is_in_turn: Cell<bool>,
}

impl Renewals {
    /// Returns a schedule without jobs. `report` must not drop the schedule.
    pub fn new(jobtap: Jobtap<'static>, report: impl Fn(RenewalEvent) + 'static) -> Rc<Self> {
        Rc::new_cyclic(|this: &std::rc::Weak<Self>| Self {
            flux: jobtap.flux(),
            report: Box::new(report),
            reader: Reader::new(jobtap, &RECORD, {
                let this = this.clone();
                move |event| {
                    let Some(renewals) = this.upgrade() else { return };
                    match event {
                        ReadEvent::Read(job, text) => renewals.read(job, &text),
                        ReadEvent::Log(level, line) => (renewals.report)(RenewalEvent::Log(level, line)),
                    }
                }
            }),
            jobs: RefCell::default(),
            schedule: RefCell::default(),
            timer: RefCell::default(),
            is_in_turn: Cell::default(),
        })
    }

    /// Returns the number of jobs with a scheduled renewal.
    pub fn len(&self) -> usize {
        self.jobs.borrow().len()
    }

    /// Schedules the renewal of a committed record.
    pub fn committed(self: &Rc<Self>, job: JobId, delivered: &Delivered) {
        self.follow(job, delivered.due);
    }

    /// Reads the record of a job that was running when the plugin was loaded.
    pub fn resume(self: &Rc<Self>, job: JobId) {
        self.reader.read(job);
        self.wake();
    }

    /// Removes a job that ends.
    pub fn forget(&self, job: JobId) {
        self.reader.forget(job);
        if let Some(next) = self.jobs.borrow_mut().remove(&job) {
            self.schedule.borrow_mut().remove(&(next.at(), job));
        }
    }

    /// Retries the renewal of a job after a pause.
    pub fn failed(self: &Rc<Self>, job: JobId, why: &Failure) {
        // Logs one line for each job, however often the renewal is retried.
        if let Some(Some(validity)) = self.change(job, |next| next.fail(Instant::now())) {
            let line = format!(
                "{job}: its workflow token, which {validity}, could not be renewed: {}: trying again [{}]",
                why.operator, why.code
            );
            (self.report)(RenewalEvent::Log(LogLevel::Err, line));
        }
        self.wake();
    }

    /// Stops everything when the plugin is removed.
    pub fn end(&self) {
        self.reader.end();
        drop(self.timer.take());
        self.schedule.borrow_mut().clear();
        self.jobs.borrow_mut().clear();
    }

    fn read(self: &Rc<Self>, job: JobId, text: &str) {
        if text.is_empty() {
            return;
        }
        match Record::from_json(text) {
            Ok(record) => self.follow(job, record.renewal().due()),
            Err(e) => {
                let line = format!("{job}: its token is not renewed: its sealed record cannot be used: {e}");
                (self.report)(RenewalEvent::Log(LogLevel::Err, line));
            }
        }
    }

    fn follow(self: &Rc<Self>, job: JobId, due: Option<Due>) {
        let had_failed = self.jobs.borrow().get(&job).is_some_and(Attempts::has_failed);
        self.forget(job);
        if let Some(next) = due.and_then(|due| Attempts::of(due, SystemTime::now(), Instant::now())) {
            self.schedule.borrow_mut().insert((next.at(), job));
            self.jobs.borrow_mut().insert(job, next);
            self.wake();
        }
        if had_failed {
            let line = format!("{job}: its workflow token was renewed");
            (self.report)(RenewalEvent::Log(LogLevel::Info, line));
        }
    }

    /// Changes a job and its place in the schedule.
    fn change<T>(&self, job: JobId, change: impl FnOnce(&mut Attempts) -> T) -> Option<T> {
        let mut jobs = self.jobs.borrow_mut();
        let next = jobs.get_mut(&job)?;
        let mut schedule = self.schedule.borrow_mut();
        schedule.remove(&(next.at(), job));
        let result = change(next);
        schedule.insert((next.at(), job));
        Some(result)
    }

    /// Sets the timer to the first renewal.
    fn wake(self: &Rc<Self>) {
        let first = self.schedule.borrow().first().map(|(at, _)| *at);
        // Failed reads of records are retried, too.
        let read = (!self.reader.is_idle()).then(|| Instant::now() + READ);
        let Some(at) = first.into_iter().chain(read).min() else {
            return;
        };
        let is_set = self.timer.borrow().as_ref().is_some_and(|(set, _)| *set <= at);
        if is_set || self.is_in_turn.get() {
            return;
        }
        self.set_timer(at);
    }

    fn set_timer(self: &Rc<Self>, at: Instant) {
        let weak = Rc::downgrade(self);
        let after = at.saturating_duration_since(Instant::now()).min(LONGEST);
        let timer = self.flux.after(after.as_secs_f64(), move || {
            let Some(renewals) = weak.upgrade() else { return };
            let done = renewals.timer.take();
            renewals.turn();
            drop(done);
        });
        match timer {
            Ok(timer) => drop(self.timer.replace(Some((at, timer)))),
            Err(e) => {
                let line = format!("no timer can be started, so tokens are not renewed: {e}");
                (self.report)(RenewalEvent::Log(LogLevel::Err, line));
            }
        }
    }

    /// Renews some of the due jobs. The rest follows in the next turns.
    fn turn(self: &Rc<Self>) {
        self.is_in_turn.set(true);
        self.reader.tick();
        let now = Instant::now();
        let due: Vec<JobId> = {
            let schedule = self.schedule.borrow();
            let due = schedule.iter().take_while(|(at, _)| *at <= now);
            due.map(|(_, job)| *job).take(TURN).collect()
        };
        for job in due {
            ffi::guard((), || self.is_due(job, now));
        }
        self.is_in_turn.set(false);
        self.wake();
    }

    fn is_due(&self, job: JobId, now: Instant) {
        let Some((expired, renew)) = self.change(job, |next| next.is_due(now)) else {
            return;
        };
        if let Some(on_expiry) = expired {
            (self.report)(RenewalEvent::Expired(job, on_expiry));
        }
        if let Some(records) = renew {
            (self.report)(RenewalEvent::Due(job, records));
        }
    }
}
