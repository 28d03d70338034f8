// SPDX-License-Identifier: MIT OR Apache-2.0

//! The record store, second half: removes the records of jobs that have ended.
//!
//! Records are removed during quiet periods: no job waits for a removal, and it costs the KVS as much as storing a
//! record.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashSet, VecDeque},
    ffi::CString,
    fmt, io,
    rc::Rc,
    time::{Duration, Instant},
};

use ffi::{Flux, Future, JobId, LogLevel, PendingFuture};

use crate::reader::KVS_TIMEOUT;

/// The quiet period: the time without a delivery, and without the end of a job with a record, after which records are
/// removed.
const QUIET: Duration = Duration::from_secs(1);

/// The time after the first job's end when records are removed even without a quiet period.
const LATEST: Duration = Duration::from_secs(10);

/// The most records that one commit removes. The KVS rewrites the directory of each job, and all directories above.
const REMOVAL: usize = 128;

/// An event that [`Removals`] report.
pub(crate) enum RemovalEvent {
    /// This number of records was removed.
    Removed(usize),
    /// A line for the log.
    Log(LogLevel, String),
}

/// The records of one plugin that exist, or may exist, in the KVS.
pub(crate) struct Removals {
    flux: Flux<'static>,
    /// The key of the records, in the KVS directory of the job.
    key: CString,
    report: Box<dyn Fn(RemovalEvent)>,
    /// Set if the configuration lets the plugin remove records.
    is_enabled: Cell<bool>,
    /// The jobs that may have a record. A tree, because a hash table moves all of its entries at once when it grows.
    jobs: RefCell<BTreeSet<JobId>>,
    /// The jobs that had a record when the predecessor was removed, until they are found to be active.
    inherited: RefCell<HashSet<JobId>>,
    ended: RefCell<Ended>,
    removal: RefCell<Option<PendingFuture>>,
    /// Set if no delivery was under way at the last tick.
    is_idle: Cell<bool>,
    /// Set if the last removal failed.
    is_failing: Cell<bool>,
}

impl Removals {
    /// Returns a store without records.
    pub fn new(flux: Flux<'static>, key: CString, report: impl Fn(RemovalEvent) + 'static) -> Rc<Self> {
        Rc::new(Self {
            flux,
            key,
            report: Box::new(report),
            is_enabled: Cell::default(),
            jobs: RefCell::default(),
            inherited: RefCell::default(),
            ended: RefCell::default(),
            removal: RefCell::default(),
            is_idle: Cell::default(),
            is_failing: Cell::default(),
        })
    }

    /// Sets whether records are removed after the end of their jobs.
    pub fn enable(&self, is_enabled: bool) {
        self.is_enabled.set(is_enabled);
    }

    /// Takes over the jobs with records from the predecessor. Those for which [`Removals::is_active`] is not called
    /// before the next tick have ended meanwhile.
    pub fn inherit(&self, jobs: HashSet<JobId>) {
        *self.inherited.borrow_mut() = jobs;
    }

    /// Keeps the record of a job, if it has one: the job is still active.
    pub fn is_active(&self, job: JobId) {
        self.inherited.borrow_mut().remove(&job);
    }

    /// Adds a job that may have a record.
    pub fn may_exist(&self, job: JobId) {
        self.jobs.borrow_mut().insert(job);
    }

    /// Returns the jobs that may have a record.
    pub fn jobs(&self) -> HashSet<JobId> {
        self.jobs.borrow().iter().copied().collect()
    }

    /// Schedules the removal of an ended job's record, if it may have one. Returns whether a removal is pending.
    pub fn ended(&self, job: JobId, may_exist: bool) -> bool {
        let is_due = (self.jobs.borrow_mut().remove(&job) || may_exist) && self.is_enabled.get();
        if is_due {
            self.ended.borrow_mut().push([job], Instant::now());
        }
        is_due
    }

    /// Returns whether no removal is pending.
    pub fn is_idle(&self) -> bool {
        self.ended.borrow().is_empty() && self.inherited.borrow().is_empty()
    }

    /// Removes records when they are due. `is_idle` is set if no delivery is under way.
    pub fn tick(self: &Rc<Self>, is_idle: bool) {
        self.is_idle.set(is_idle);
        // Before the first tick, Flux has called `job.new` for each active job.
        let inherited = std::mem::take(&mut *self.inherited.borrow_mut());
        if !inherited.is_empty() && self.is_enabled.get() {
            self.ended.borrow_mut().push(inherited, Instant::now());
        }
        if self.ended.borrow().is_due(Instant::now(), is_idle) {
            self.remove_next();
        }
    }

    /// Removes all pending records when the plugin is removed. It sends the requests without waiting for the results.
    pub fn leave(&self) {
        let removal = self.removal.borrow_mut().take();
        drop(removal);
        loop {
            let jobs = self.ended.borrow_mut().take(REMOVAL);
            if jobs.is_empty() {
                return;
            }
            if let Err(e) = self.unlink_all(&jobs) {
                self.log(format!("{} sealed records could not be removed: {e}", jobs.len()));
            }
        }
    }

    /// Removes as many records as one commit may. Only one commit runs at a time.
    fn remove_next(self: &Rc<Self>) {
        if self.removal.borrow().is_some() {
            return;
        }
        let jobs = self.ended.borrow_mut().take(REMOVAL);
        if jobs.is_empty() {
            return;
        }
        let (weak, again) = (Rc::downgrade(self), jobs.clone());
        let removed = self.unlink_all(&jobs).and_then(|commit| {
            commit.then(KVS_TIMEOUT, move |future| {
                let Some(store) = weak.upgrade() else { return };
                let done = store.removal.borrow_mut().take();
                ffi::inject_fault("unlinked");
                match future.get() {
                    Ok(()) => store.removed(again.len()),
                    Err(e) => store.not_removed(again, &e),
                }
                drop(done);
            })
        });
        match removed {
            Ok(pending) => *self.removal.borrow_mut() = Some(pending),
            Err(e) => self.not_removed(jobs, &e),
        }
    }

    fn removed(self: &Rc<Self>, count: usize) {
        self.is_failing.set(false);
        (self.report)(RemovalEvent::Removed(count));
        // The commit may not have removed all.
        if self.ended.borrow().is_due(Instant::now(), self.is_idle.get()) {
            self.remove_next();
        }
    }

    /// Schedules the removal again. Logs only the first of successive failures.
    fn not_removed(&self, jobs: Vec<JobId>, e: &dyn fmt::Display) {
        if !self.is_failing.replace(true) {
            self.log(format!(
                "{} sealed records could not be removed: {e}: trying again",
                jobs.len()
            ));
        }
        self.ended.borrow_mut().put_back(jobs, Instant::now());
    }

    fn unlink_all(&self, jobs: &[JobId]) -> io::Result<Future> {
        let mut transaction = ffi::Transaction::new()?;
        for job in jobs {
            transaction.unlink(&job.kvs_key(&self.key)?)?;
        }
        self.flux.commit(transaction)
    }

    fn log(&self, line: String) {
        (self.report)(RemovalEvent::Log(LogLevel::Err, line));
    }
}

/// Ended jobs whose records must be removed.
#[derive(Default)]
struct Ended {
    jobs: VecDeque<JobId>,
    /// The times when the first and the last of them ended.
    since: Option<(Instant, Instant)>,
}

impl Ended {
    fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    fn push(&mut self, jobs: impl IntoIterator<Item = JobId>, now: Instant) {
        self.jobs.extend(jobs);
        let first = self.since.map_or(now, |(first, _)| first);
        self.since = Some((first, now)).filter(|_| !self.jobs.is_empty());
    }

    /// Adds jobs whose removal failed. All wait as long as if they had just ended, so that the KVS gets a pause.
    fn put_back(&mut self, jobs: Vec<JobId>, now: Instant) {
        self.since = None;
        self.push(jobs, now);
    }

    /// Returns whether records are due for removal.
    fn is_due(&self, now: Instant, is_idle: bool) -> bool {
        self.since.is_some_and(|(first, last)| {
            (is_idle && now.saturating_duration_since(last) >= QUIET) || now.saturating_duration_since(first) >= LATEST
        })
    }

    /// Removes and returns the first jobs.
    fn take(&mut self, most: usize) -> Vec<JobId> {
        let count = self.jobs.len().min(most);
        let jobs = self.jobs.drain(..count).collect();
        if self.jobs.is_empty() {
            self.since = None;
            self.jobs.shrink_to(REMOVAL);
        }
        jobs
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
