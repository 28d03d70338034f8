// SPDX-License-Identifier: MIT OR Apache-2.0

//! Pending owners: users who are being looked up, and their held jobs. One turn of the reactor handles a limited number
//! of jobs, however many are held.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    time::{Duration, Instant},
};

use ffi::JobId;

/// All held jobs. The collections are trees, like those of the deliveries.
#[derive(Default)]
pub(crate) struct PendingOwners {
    /// The owner of each job, and the time since when it is held.
    jobs: BTreeMap<JobId, (u32, Instant)>,
    /// The same jobs, the oldest first.
    by_age: BTreeSet<(Instant, JobId)>,
    users: BTreeMap<u32, User>,
    /// The times at which users must be looked up again.
    again: BTreeSet<(Instant, u32)>,
    /// The users whose jobs are being decided, each once: they take turns.
    turns: VecDeque<u32>,
}

/// A user with held jobs.
#[derive(Default)]
struct User {
    jobs: BTreeSet<JobId>,
    again: Option<Instant>,
    deciding: Option<Deciding>,
}

/// Cursor over one user's pending jobs.
struct Deciding {
    /// Set if the user is known.
    is_known: bool,
    after: Option<JobId>,
}

/// A job that must be decided now.
pub(crate) struct DueJob {
    pub job: JobId,
    pub uid: u32,
    /// Set if the job has been held for the timeout, and its owner is still unknown.
    pub is_late: bool,
}

impl PendingOwners {
    /// Returns the number of held jobs.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Returns the held jobs.
    pub fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.jobs.keys().copied()
    }

    /// Adds a held job.
    pub fn insert(&mut self, job: JobId, uid: u32, since: Instant) {
        self.remove(job);
        self.jobs.insert(job, (uid, since));
        self.by_age.insert((since, job));
        self.users.entry(uid).or_default().jobs.insert(job);
    }

    /// Removes a job that is no longer held.
    pub fn remove(&mut self, job: JobId) {
        let Some((uid, since)) = self.jobs.remove(&job) else {
            return;
        };
        self.by_age.remove(&(since, job));
        let Some(user) = self.users.get_mut(&uid) else { return };
        user.jobs.remove(&job);
        if user.jobs.is_empty() {
            if let Some(at) = user.again {
                self.again.remove(&(at, uid));
            }
            // `turns` may still contain the user: that turn does nothing.
            self.users.remove(&uid);
        }
    }

    /// Schedules another look-up of a user, for the case that the user still has held jobs then.
    pub fn look_up_at(&mut self, uid: u32, at: Instant) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        if let Some(before) = user.again.replace(at) {
            self.again.remove(&(before, uid));
        }
        self.again.insert((at, uid));
    }

    /// Discards what is known of all users, and looks them up again.
    pub fn look_all_up(&mut self, now: Instant) {
        self.turns.clear();
        self.again.clear();
        for (uid, user) in &mut self.users {
            user.deciding = None;
            user.again = Some(now);
            self.again.insert((now, *uid));
        }
    }

    /// Schedules decisions on all jobs of a user. `is_known` is set if the user was looked up.
    pub fn decide(&mut self, uid: u32, is_known: bool) {
        let Some(user) = self.users.get_mut(&uid) else { return };
        if is_known && let Some(at) = user.again.take() {
            self.again.remove(&(at, uid));
        }
        let deciding = Deciding { is_known, after: None };
        if user.deciding.replace(deciding).is_none() {
            self.turns.push_back(uid);
        }
    }

    /// Returns the first jobs that must be decided, for one turn of the reactor, and whether there are more. Jobs that
    /// have been held for the timeout come first, until they are removed.
    pub fn due(&mut self, now: Instant, limit: Duration, most: usize) -> (Vec<DueJob>, bool) {
        let late = |since: &Instant| now.saturating_duration_since(*since) >= limit;
        let held_long = self.by_age.iter().take_while(|(since, _)| late(since));
        let mut due: Vec<DueJob> = held_long
            .take(most)
            .filter_map(|(_, job)| {
                let (uid, _) = self.jobs.get(job)?;
                let deciding = self.users.get(uid)?.deciding.as_ref();
                // If the user is known by now, the job is not late: only its turn has not come.
                Some(DueJob {
                    job: *job,
                    uid: *uid,
                    is_late: !deciding.is_some_and(|deciding| deciding.is_known),
                })
            })
            .collect();
        let mut looked_at = due.len();
        let oldest = due.len();
        while looked_at < most {
            let Some(uid) = self.next_user(now) else {
                return (due, false);
            };
            looked_at += 1;
            let Some(user) = self.users.get_mut(&uid) else { continue };
            let Some(deciding) = user.deciding.take() else { continue };
            let from = deciding.after.map_or(Bound::Unbounded, Bound::Excluded);
            let before = due.len();
            let jobs = user.jobs.range((from, Bound::Unbounded)).take(most - before);
            due.extend(jobs.map(|job| DueJob {
                job: *job,
                uid,
                is_late: false,
            }));
            looked_at += due.len() - before;
            let Some(last) = due[before..].last().map(|due| due.job) else {
                continue;
            };
            if user.jobs.last().is_some_and(|of_all| *of_all > last) {
                user.deciding = Some(Deciding {
                    after: Some(last),
                    ..deciding
                });
                self.turns.push_back(uid);
            }
        }
        let next_is_late = self.by_age.iter().nth(oldest);
        let is_more = !self.turns.is_empty()
            || self.again.first().is_some_and(|(at, _)| *at <= now)
            || next_is_late.is_some_and(|(since, _)| late(since));
        (due, is_more)
    }

    /// Returns the next user whose jobs must be decided or who must be looked up again.
    fn next_user(&mut self, now: Instant) -> Option<u32> {
        if let Some((at, uid)) = self.again.first().copied().filter(|(at, _)| *at <= now) {
            self.again.remove(&(at, uid));
            if let Some(user) = self.users.get_mut(&uid) {
                user.again = None;
            }
            self.decide(uid, false);
        }
        self.turns.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn ids(due: &[DueJob]) -> Vec<u64> {
        due.iter().map(|due| due.job.0).collect()
    }

    /// Returns jobs 0 to 9: the even ones of user 0, the odd ones of user 1.
    fn ten(now: Instant) -> PendingOwners {
        let mut held = PendingOwners::default();
        for job in 0..10 {
            held.insert(JobId(job), (job % 2) as u32, now);
        }
        held
    }

    #[test]
    fn the_jobs_of_a_user_are_decided_some_in_each_turn_and_each_once() {
        let now = Instant::now();
        let mut held = ten(now);
        assert!(held.due(now, LIMIT, 2).0.is_empty());
        held.decide(1, false);
        let mut seen = Vec::new();
        for _ in 0..10 {
            let (due, more) = held.due(now, LIMIT, 3);
            assert!(due.len() <= 3 && due.iter().all(|due| due.uid == 1 && !due.is_late));
            seen.extend(ids(&due));
            if !more {
                break;
            }
        }
        assert_eq!(seen, [1, 3, 5, 7, 9]);
        assert!(held.due(now, LIMIT, 3).0.is_empty());
    }

    #[test]
    fn users_take_turns_and_what_is_known_last_counts_for_all_jobs() {
        let now = Instant::now();
        let mut held = ten(now);
        held.decide(0, false);
        held.decide(1, false);
        assert_eq!(ids(&held.due(now, LIMIT, 3).0), [0, 2, 4]);
        assert_eq!(ids(&held.due(now, LIMIT, 3).0), [1, 3, 5]);
        held.decide(0, false);
        let rest = std::iter::from_fn(|| Some(held.due(now, LIMIT, 3)).filter(|(due, more)| *more || !due.is_empty()));
        let mut rest: Vec<_> = rest.flat_map(|(due, _)| ids(&due)).collect();
        rest.sort_unstable();
        assert_eq!(rest, [0, 2, 4, 6, 7, 8, 9]);
    }

    #[test]
    fn those_held_too_long_come_first_and_until_they_are_taken_out() {
        let now = Instant::now();
        let mut held = ten(now);
        held.insert(JobId(10), 2, now + LIMIT);
        held.decide(2, false);
        let (due, more) = held.due(now + LIMIT, LIMIT, 4);
        assert!(more && due.iter().all(|due| due.is_late));
        assert_eq!(ids(&due), [0, 1, 2, 3]);
        assert_eq!(ids(&held.due(now + LIMIT, LIMIT, 4).0), [0, 1, 2, 3]);
        for job in 0..8 {
            held.remove(JobId(job));
        }
        let (due, more) = held.due(now + LIMIT, LIMIT, 4);
        assert_eq!(
            due.iter().map(|due| due.is_late).collect::<Vec<_>>(),
            [true, true, false]
        );
        assert!(!more);
    }

    #[test]
    fn where_the_owner_is_known_a_job_is_not_late_though_its_turn_comes_late() {
        let now = Instant::now();
        let mut held = ten(now);
        held.look_up_at(0, now + LIMIT);
        held.decide(0, true);
        let (due, _) = held.due(now + LIMIT, LIMIT, 4);
        assert_eq!(ids(&due), [0, 1, 2, 3]);
        for due in &due {
            assert_eq!(due.is_late, due.uid == 1);
        }
    }

    #[test]
    fn users_are_looked_up_again_when_it_is_time_and_all_with_a_new_configuration() {
        let now = Instant::now();
        let mut held = ten(now);
        held.look_up_at(0, now + Duration::from_secs(5));
        held.look_up_at(0, now + Duration::from_secs(7));
        assert!(held.due(now + Duration::from_secs(6), LIMIT, 20).0.is_empty());
        let (due, more) = held.due(now + Duration::from_secs(7), LIMIT, 20);
        assert_eq!((ids(&due), more), (vec![0, 2, 4, 6, 8], false));
        held.decide(0, false);
        held.look_all_up(now);
        let (due, more) = held.due(now, LIMIT, 20);
        assert_eq!((due.len(), more), (10, false));
    }

    #[test]
    fn nothing_is_left_of_jobs_that_are_held_no_more() {
        let now = Instant::now();
        let mut held = ten(now);
        held.decide(0, false);
        held.look_up_at(1, now);
        for job in 0..10 {
            held.remove(JobId(job));
            held.remove(JobId(job));
        }
        let (due, more) = held.due(now + LIMIT, LIMIT, 20);
        assert!(due.is_empty() && !more);
        assert!(held.jobs.is_empty() && held.by_age.is_empty() && held.users.is_empty());
        assert!(held.again.is_empty() && held.turns.is_empty());
        held.decide(0, false);
        held.look_up_at(1, now);
        assert!(held.turns.is_empty() && held.again.is_empty());
    }
}
