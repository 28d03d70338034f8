// SPDX-License-Identifier: MIT OR Apache-2.0

//! Schedules the fetch of a job's next record: when it is due, and with backoff after failures.

use std::time::{Duration, Instant, SystemTime};

use crate::renewal::{Due, OnExpiry};

/// The first and the longest pause after a failure. While the token is valid, a pause is at most a quarter of its
/// remaining lifetime.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// The shortest pause.
const SHORTEST: Duration = Duration::from_millis(250);

/// The longest wait for a delivery in progress. The delivery reports its end earlier.
const LONGEST: Duration = Duration::from_secs(86_400);

/// The attempts to fetch the next record of a job.
#[derive(Debug, Clone)]
pub struct Attempts {
    /// The time of the next event.
    at: Instant,
    state: State,
    /// The number of records that the job has received.
    records: u32,
    expires: Option<Instant>,
    /// Set once the expiry was reported.
    is_reported: bool,
    on_expiry: OnExpiry,
    /// The pause after the latest failure, if no success followed.
    pause: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Waiting until the record is due.
    Waiting,
    /// A delivery is in progress. The next event is the expiry of the token.
    Renewing,
}

impl Attempts {
    /// Returns the attempts for a record, or None if its time is out of range. `clock` and `now` denote the same
    /// moment.
    pub fn of(due: Due, clock: SystemTime, now: Instant) -> Option<Self> {
        let clock = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let instant = |seconds: f64| {
            // A time in the past, or NaN, counts as now: `max` prefers a number to NaN.
            let ahead = (seconds - clock.as_secs_f64()).max(0.0);
            now.checked_add(Duration::try_from_secs_f64(ahead).ok()?)
        };
        Some(Self {
            // A record whose time is out of range is never due.
            at: instant(due.renew_at)?,
            state: State::Waiting,
            records: due.records,
            expires: due.expires_at.and_then(instant),
            is_reported: false,
            on_expiry: due.on_expiry,
            pause: None,
        })
    }

    /// Returns the time at which to call [`Attempts::is_due`].
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Returns whether the latest attempt failed.
    pub fn has_failed(&self) -> bool {
        self.pause.is_some()
    }

    /// Returns the remaining lifetime of the token, or None if it does not expire.
    fn left(&self, now: Instant) -> Option<Duration> {
        self.expires.map(|expires| expires.saturating_duration_since(now))
    }

    /// Returns the expiry, unless it was reported.
    fn unreported(&self) -> Option<Instant> {
        self.expires.filter(|_| !self.is_reported)
    }

    /// Records a failure. If it is the first after a success, returns a text about the token's validity, for the log.
    pub fn fail(&mut self, now: Instant) -> Option<String> {
        let is_first = !self.has_failed();
        self.state = State::Waiting;
        let doubled = self.pause.map_or(PAUSES.0, |pause| (pause * 2).min(PAUSES.1));
        self.pause = Some(doubled);
        let left = self.left(now).filter(|left| !left.is_zero());
        let pause = left.map_or(doubled, |left| doubled.min((left / 4).max(SHORTEST)));
        // An expiry during the attempt is reported, too.
        self.at = earlier(now + pause, self.unreported());
        is_first.then(|| match self.left(now) {
            Some(Duration::ZERO) => "has expired".to_owned(),
            Some(left) => format!("expires in {} s", left.as_secs()),
            None => "does not expire".to_owned(),
        })
    }

    /// Returns the consequence of the token's expiry, if it has just expired, and the number of records that the job
    /// has received, if the next one must be fetched.
    pub fn is_due(&mut self, now: Instant) -> (Option<OnExpiry>, Option<u32>) {
        let expired = self
            .unreported()
            .filter(|expires| *expires <= now)
            .map(|_| self.on_expiry);
        self.is_reported |= expired.is_some();
        let renew = (self.state == State::Waiting).then_some(self.records);
        self.state = State::Renewing;
        // The delivery reports its end earlier.
        self.at = earlier(now + LONGEST, self.unreported());
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
    fn a_record_is_due_at_its_time_and_an_overdue_one_is_due_now() {
        let now = Instant::now();
        assert!(Attempts::of(due(f64::MAX, None), CLOCK, now).is_none_or(|next| next.at > now + LONGEST));
        // The time passed while no plugin was loaded, or the value is damaged.
        for renew_at in [0.0, -1.0, f64::NAN] {
            assert_eq!(Attempts::of(due(renew_at, None), CLOCK, now).unwrap().at, now);
        }
    }

    #[test]
    fn a_failed_renewal_is_retried_beyond_the_expiry_which_is_reported_once() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut next = Attempts::of(due(40.0, Some(60.0)), CLOCK, start).unwrap();
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
    fn an_expiry_during_an_attempt_that_fails_is_reported_at_once() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut next = Attempts::of(due(1.0, Some(10.0)), CLOCK, start).unwrap();
        for now in [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0] {
            assert_eq!(next.is_due(at(now)), (None, Some(1)));
            next.fail(at(now + 0.1));
        }
        assert_eq!(next.is_due(at(9.9)), (None, Some(1)));
        next.fail(at(10.1));
        assert!(next.at() <= at(10.1));
        assert_eq!(next.is_due(at(10.1)), (Some(OnExpiry::Exception), Some(1)));
        next.fail(at(10.2));
        assert!(next.at() > at(11.0));
        let mut late = Attempts::of(due(10.0, Some(10.0)), CLOCK, start).unwrap();
        assert_eq!(late.is_due(at(10.0)), (Some(OnExpiry::Exception), Some(1)));
        assert_eq!(late.fail(at(10.1)).as_deref(), Some("has expired"));
    }

    #[test]
    fn a_token_that_expires_while_it_is_renewed_is_reported() {
        let start = Instant::now();
        let mut next = Attempts::of(due(1.0, Some(2.0)), CLOCK, start).unwrap();
        assert_eq!(next.is_due(next.at), (None, Some(1)));
        assert_eq!(next.is_due(next.at), (Some(OnExpiry::Exception), None));
        assert!(next.at > start + LONGEST);
    }
}
