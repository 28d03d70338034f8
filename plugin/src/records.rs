//! The records of jobs that have ended are removed when it is quiet: no job waits for them to go, and to the KVS it is as
//! much work to remove a record as to store it, while others may wait for theirs.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use ffi::{Future, JobId, LogLevel};

use crate::{
    delivery::{Done, Message, Stored},
    manager::{Inner, KVS_TIMEOUT},
    work::Sealed,
};

/// It is quiet when for so long no job has ended that had a record, and no delivery is under way.
const QUIET: Duration = Duration::from_secs(1);

/// Records are removed that long after the first of their jobs ended, quiet or not.
const LATEST: Duration = Duration::from_secs(10);

/// How many are removed with one commit. The KVS writes the directory of each job anew, for which others wait, and all
/// above them, for which there should not be many commits.
const COMMIT: usize = 128;

/// Jobs whose records are to be removed.
#[derive(Default)]
pub(crate) struct Ended {
    jobs: VecDeque<JobId>,
    /// When the first and the last of them ended.
    since: Option<(Instant, Instant)>,
}

impl Ended {
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub fn push(&mut self, jobs: impl IntoIterator<Item = JobId>, now: Instant) {
        self.jobs.extend(jobs);
        let first = self.since.map_or(now, |(first, _)| first);
        self.since = Some((first, now)).filter(|_| !self.jobs.is_empty());
    }

    /// These could not be removed. All wait as long as if they had just ended: the KVS is not asked again at once.
    fn put_back(&mut self, jobs: Vec<JobId>, now: Instant) {
        self.since = None;
        self.push(jobs, now);
    }

    /// Whether it is time to remove records.
    fn is_due(&self, now: Instant, is_idle: bool) -> bool {
        self.since.is_some_and(|(first, last)| {
            (is_idle && now.saturating_duration_since(last) >= QUIET) || now.saturating_duration_since(first) >= LATEST
        })
    }

    /// The first of them.
    fn take(&mut self, most: usize) -> Vec<JobId> {
        let count = self.jobs.len().min(most);
        let jobs = self.jobs.drain(..count).collect();
        if self.jobs.is_empty() {
            self.since = None;
            self.jobs.shrink_to(COMMIT);
        }
        jobs
    }
}

impl Inner {
    /// Whether records are to be removed now.
    pub(crate) fn has_gathered(&self) -> bool {
        let is_idle = self.deliveries.borrow().len() == 0;
        self.ended.borrow().is_due(Instant::now(), is_idle)
    }

    /// Removes the records of jobs that have ended, as many as one commit takes: one commit at a time.
    pub(crate) fn unlink(inner: &Rc<Self>) {
        if inner.unlinking.get() {
            return;
        }
        let jobs = inner.ended.borrow_mut().take(COMMIT);
        if jobs.is_empty() {
            return;
        }
        let weak = Rc::downgrade(inner);
        let number = inner.number();
        let again = jobs.clone();
        let removed = inner.remove_records(&jobs).and_then(|commit| {
            commit.then(KVS_TIMEOUT, move |future| {
                let Some(inner) = weak.upgrade() else { return };
                let done = inner.pending.borrow_mut().remove(&number);
                inner.unlinking.set(false);
                ffi::inject_fault("unlinked");
                match future.get() {
                    Ok(()) => {
                        inner.unlink_failed.set(false);
                        inner.stats.borrow_mut().unlinked += again.len() as u64;
                        // There may be more than one commit took.
                        if inner.has_gathered() {
                            Self::unlink(&inner);
                        }
                    }
                    Err(e) => inner.not_removed(again, &e),
                }
                drop(done);
            })
        });
        match removed {
            Ok(pending) => {
                inner.unlinking.set(true);
                inner.pending.borrow_mut().insert(number, pending);
            }
            Err(e) => inner.not_removed(jobs, &e),
        }
    }

    /// They are tried again, with those that have ended by then. It is said once, until it works again.
    fn not_removed(&self, jobs: Vec<JobId>, e: &dyn std::fmt::Display) {
        if !self.unlink_failed.replace(true) {
            let line = format!("{} sealed records could not be removed: {e}: trying again", jobs.len());
            self.log(LogLevel::Err, &line);
        }
        self.ended.borrow_mut().put_back(jobs, Instant::now());
    }

    /// The same when the plugin is about to go: the requests are on their way when this returns, and nobody sees the answers.
    pub(crate) fn unlink_unseen(&self) {
        loop {
            let jobs = self.ended.borrow_mut().take(COMMIT);
            if jobs.is_empty() {
                return;
            }
            if let Err(e) = self.remove_records(&jobs) {
                let line = format!("{} sealed records could not be removed: {e}", jobs.len());
                self.log(LogLevel::Err, &line);
            }
        }
    }

    /// Commits what was sealed for deliveries that were under way when the plugin was removed, by those who had not been heard
    /// yet too. The request is on its way when this returns, and nobody sees the answer.
    pub(crate) fn commit_unseen(&self, under_way: &HashMap<u64, JobId>, mut sealed: BTreeMap<u64, Stored>) {
        for message in self.queue.take(usize::MAX) {
            if let Message::Done(Done { job, number, outcome }) = message
                && let Ok(Sealed::Record(record, _)) = outcome.result
            {
                sealed.insert(number, Stored { job, record });
            }
        }
        sealed.retain(|number, _| under_way.contains_key(number));
        if sealed.is_empty() {
            return;
        }
        if let Err(e) = self.put_all(sealed.values()) {
            let line = format!("{} sealed records could not be committed: {e}", sealed.len());
            self.log(LogLevel::Err, &line);
        }
    }

    /// Asks for one commit of all these records.
    pub(crate) fn put_all<'a>(&self, records: impl Iterator<Item = &'a Stored>) -> io::Result<Future> {
        let mut transaction = ffi::Transaction::new()?;
        for stored in records {
            transaction.put(&stored.job.kvs_key(self.kind.key)?, &stored.record)?;
        }
        self.flux().commit(transaction)
    }

    fn remove_records(&self, jobs: &[JobId]) -> io::Result<Future> {
        let mut transaction = ffi::Transaction::new()?;
        for job in jobs {
            transaction.unlink(&job.kvs_key(self.kind.key)?)?;
        }
        self.flux().commit(transaction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_removed_when_it_is_quiet_and_after_a_while_whatever_goes_on() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut ended = Ended::default();
        assert!(!ended.is_due(after(60_000), true));
        ended.push([JobId(1)], start);
        ended.push([JobId(2)], after(800));
        assert!(!ended.is_due(after(1_500), true));
        assert!(ended.is_due(after(1_800), true));
        assert!(!ended.is_due(after(9_900), false));
        ended.push([JobId(3)], after(9_900));
        assert!(ended.is_due(after(10_000), false));
        let take = |ended: &mut Ended| ended.take(2).iter().map(|job| job.0).collect::<Vec<_>>();
        assert_eq!(take(&mut ended), [1, 2]);
        assert!(ended.is_due(after(10_000), false));
        assert_eq!(take(&mut ended), [3]);
        assert!(ended.is_empty() && !ended.is_due(after(60_000), true));
        ended.push([], start);
        assert!(!ended.is_due(after(60_000), true));
    }

    #[test]
    fn what_could_not_be_removed_is_not_tried_again_at_once_though_others_wait() {
        let start = Instant::now();
        let mut ended = Ended::default();
        ended.push([JobId(1), JobId(2)], start);
        let jobs = ended.take(1);
        let failed = start + LATEST;
        ended.put_back(jobs, failed);
        assert!(!ended.is_due(failed, true) && !ended.is_due(failed + QUIET, false));
        assert!(ended.is_due(failed + QUIET, true) && ended.is_due(failed + LATEST, false));
        assert!(ended.take(2).len() == 2);
    }
}
