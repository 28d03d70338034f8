//! When the records of running jobs are renewed, and what becomes of jobs whose tokens expire.
//!
//! ```text
//! committed ─► waiting ── renew-at ──► renewing ─► committed
//!                 ▲                       │
//!                 └──── pause, doubled ───┘ failed
//! ```
//!
//! A job keeps its record until the next one is committed. After a restart the record itself has all that is needed here.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use ffi::{Flux, JobId, Jobtap, LogLevel, Watcher};
use plugin::{Delivered, ReadEvent, Reader, Subject, TURN};
use protocol::Failure;
use seal::{Due, OnExpiry, Record};

/// The pauses after a failure: the first and the longest. While the token is valid, a pause is at most a quarter of its
/// remaining lifetime.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// The shortest pause.
const SHORTEST: Duration = Duration::from_millis(250);

/// The longest time that a timer is set to.
const LONGEST: Duration = Duration::from_secs(86_400);

/// The time after which records that could not be read are looked for.
const READ: Duration = Duration::from_secs(5);

/// The sealed records of running jobs. A job that no rule was for has none.
static RECORD: Subject = Subject {
    key: c"workflow-token",
    name: "sealed record",
    otherwise: "its token is not renewed",
    is_optional: true,
};

/// An event that [`Renewals`] report.
pub(crate) enum RenewalEvent {
    /// The next record of a job is due: it had so many.
    Due(JobId, u32),
    /// The token of a job has expired.
    Expired(JobId, OnExpiry),
    /// A line for the log.
    Log(LogLevel, String),
}

/// The records of running jobs that are to be renewed.
pub(crate) struct Renewals {
    flux: Flux<'static>,
    report: Box<dyn Fn(RenewalEvent)>,
    reader: Rc<Reader>,
    jobs: RefCell<BTreeMap<JobId, Next>>,
    schedule: RefCell<BTreeSet<(Instant, JobId)>>,
    /// The timer of the first of the schedule, and when it expires.
    timer: RefCell<Option<(Instant, Watcher)>>,
    is_in_turn: Cell<bool>,
}

/// The next record of a job.
#[derive(Debug, Clone)]
struct Next {
    /// When the schedule has it.
    at: Instant,
    state: State,
    /// The number of records that the job has had.
    records: u32,
    expires: Option<Instant>,
    on_expiry: OnExpiry,
    /// The pause after the last failure in a row.
    pause: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Until the record is due.
    Waiting,
    /// A delivery is under way. The schedule has the expiry of the token.
    Renewing,
}

impl Renewals {
    /// Returns a schedule without jobs. `report` must not drop it.
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

    /// Returns how many jobs have a record that is to be renewed.
    pub fn len(&self) -> usize {
        self.jobs.borrow().len()
    }

    /// Schedules the renewal of a record that was committed.
    pub fn committed(self: &Rc<Self>, job: JobId, delivered: &Delivered) {
        self.follow(job, delivered.due);
    }

    /// Reads the record of a job that ran when the plugin was loaded.
    pub fn resume(self: &Rc<Self>, job: JobId) {
        self.reader.read(job);
        self.wake();
    }

    /// Forgets a job: it is not to run any more.
    pub fn forget(&self, job: JobId) {
        self.reader.forget(job);
        if let Some(next) = self.jobs.borrow_mut().remove(&job) {
            self.schedule.borrow_mut().remove(&(next.at, job));
        }
    }

    /// Retries the renewal of a job after a pause.
    pub fn failed(self: &Rc<Self>, job: JobId, why: &Failure) {
        let now = Instant::now();
        let Some((is_first, left)) = self.change(job, |next| {
            let is_first = next.pause.is_none();
            next.fail(now);
            (is_first, next.left(now))
        }) else {
            return;
        };
        // One line for each job, however often it is tried.
        if is_first {
            let validity = match left {
                Some(Duration::ZERO) => "has expired".to_owned(),
                Some(left) => format!("expires in {} s", left.as_secs()),
                None => "does not expire".to_owned(),
            };
            let line = format!(
                "{job}: its workflow token, which {validity}, could not be renewed: {}: trying again [{}]",
                why.operator, why.code
            );
            (self.report)(RenewalEvent::Log(LogLevel::Err, line));
        }
        self.wake();
    }

    /// Ends all: the plugin is being removed.
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
        let former = self.jobs.borrow().get(&job).and_then(|next| next.pause);
        self.forget(job);
        if let Some(next) = due.and_then(|due| Next::of(due, SystemTime::now(), Instant::now())) {
            self.schedule.borrow_mut().insert((next.at, job));
            self.jobs.borrow_mut().insert(job, next);
            self.wake();
        }
        if former.is_some() {
            let line = format!("{job}: its workflow token was renewed");
            (self.report)(RenewalEvent::Log(LogLevel::Info, line));
        }
    }

    /// Changes a job, and its place in the schedule.
    fn change<T>(&self, job: JobId, change: impl FnOnce(&mut Next) -> T) -> Option<T> {
        let mut jobs = self.jobs.borrow_mut();
        let next = jobs.get_mut(&job)?;
        let mut schedule = self.schedule.borrow_mut();
        schedule.remove(&(next.at, job));
        let result = change(next);
        schedule.insert((next.at, job));
        Some(result)
    }

    /// Sets the timer to the first of the schedule.
    fn wake(self: &Rc<Self>) {
        let first = self.schedule.borrow().first().map(|(at, _)| *at);
        // Records that could not be read are read again.
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

    /// Renews some of the jobs that are due, and the others in the next turns.
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

impl Next {
    /// Returns the schedule of a record; none if it is due after the end of time.
    fn of(due: Due, clock: SystemTime, now: Instant) -> Option<Self> {
        let clock = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let instant = |seconds: f64| {
            // What is over, or no time at all, is now; and `max` takes a number before NaN.
            let ahead = (seconds - clock.as_secs_f64()).max(0.0);
            now.checked_add(Duration::try_from_secs_f64(ahead).ok()?)
        };
        Some(Self {
            // What is beyond the end of time is not due.
            at: instant(due.renew_at)?,
            state: State::Waiting,
            records: due.records,
            expires: due.expires_at.and_then(instant),
            on_expiry: due.on_expiry,
            pause: None,
        })
    }

    /// Returns the time for which the token is valid; none if it does not expire.
    fn left(&self, now: Instant) -> Option<Duration> {
        self.expires.map(|expires| expires.saturating_duration_since(now))
    }

    /// Takes note of a failure.
    fn fail(&mut self, now: Instant) {
        self.state = State::Waiting;
        let doubled = self.pause.map_or(PAUSES.0, |pause| (pause * 2).min(PAUSES.1));
        self.pause = Some(doubled);
        let left = self.left(now).filter(|left| !left.is_zero());
        let pause = left.map_or(doubled, |left| doubled.min((left / 4).max(SHORTEST)));
        // Its expiry is not missed.
        self.at = earlier(now + pause, self.expires.filter(|expires| *expires > now));
    }

    /// Returns the consequence of the token's expiry, if it has just expired, and the number of records that the job has had,
    /// if the next is to be fetched.
    fn is_due(&mut self, now: Instant) -> (Option<OnExpiry>, Option<u32>) {
        let expired = self.expires.take_if(|expires| *expires <= now).map(|_| self.on_expiry);
        let renew = (self.state == State::Waiting).then_some(self.records);
        self.state = State::Renewing;
        // The delivery reports its end.
        self.at = earlier(now + LONGEST, self.expires);
        (expired, renew)
    }
}

fn earlier(one: Instant, other: Option<Instant>) -> Instant {
    other.map_or(one, |other| one.min(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: SystemTime = SystemTime::UNIX_EPOCH;

    fn due(renew_at: f64, expires_at: Option<f64>) -> Due {
        Due {
            records: 1,
            renew_at,
            expires_at,
            on_expiry: OnExpiry::Exception,
        }
    }

    #[test]
    fn a_record_is_due_at_its_time_and_one_that_was_due_is_now() {
        let now = Instant::now();
        assert!(Next::of(due(f64::MAX, None), CLOCK, now).is_none_or(|next| next.at > now + LONGEST));
        // It was due while no plugin was loaded, or is damaged.
        for renew_at in [0.0, -1.0, f64::NAN] {
            assert_eq!(Next::of(due(renew_at, None), CLOCK, now).unwrap().at, now);
        }
    }

    #[test]
    fn a_renewal_that_fails_is_tried_again_until_long_after_its_expiry_which_is_reported_once() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut next = Next::of(due(40.0, Some(60.0)), CLOCK, start).unwrap();
        assert_eq!(next.at, at(40.0));
        let (mut tries, mut expiries, mut now) = (0, Vec::new(), next.at);
        while now < at(3600.0) {
            let (expired, renew) = next.is_due(now);
            expiries.extend(expired.map(|_| now));
            assert_eq!(renew, Some(1));
            tries += 1;
            next.fail(now);
            assert!(next.at > now);
            now = next.at;
        }
        assert_eq!(expiries, [at(60.0)]);
        assert!((10..40).contains(&tries), "{tries}");
    }

    #[test]
    fn a_token_that_expires_while_it_is_renewed_is_reported() {
        let start = Instant::now();
        let mut next = Next::of(due(1.0, Some(2.0)), CLOCK, start).unwrap();
        assert_eq!(next.is_due(next.at), (None, Some(1)));
        assert_eq!(next.is_due(next.at), (Some(OnExpiry::Exception), None));
        assert!(next.at > start + LONGEST);
    }
}
