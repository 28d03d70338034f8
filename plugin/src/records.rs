//! The records of jobs that have ended are removed a second later, many at a time: a commit costs about the same for many.

use std::{
    collections::{BTreeMap, HashMap},
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

/// For how long the records of jobs that have ended are gathered before they are removed with one commit.
pub(crate) const GATHER: Duration = Duration::from_secs(1);

/// How many are removed with one commit, which the reactor thread makes up in one go.
const COMMIT: usize = 256;

impl Inner {
    /// Whether records are to be removed now.
    pub(crate) fn has_gathered(&self) -> bool {
        self.ended_since.get().is_some_and(|since| since.elapsed() >= GATHER)
    }

    /// Removes the records of jobs that have ended, as many as one commit takes: one commit at a time.
    pub(crate) fn unlink(inner: &Rc<Self>) {
        if inner.unlinking.get() {
            return;
        }
        let jobs = inner.take_ended();
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
                ffi::stumble("unlinked");
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
        self.ended.borrow_mut().extend(jobs);
        self.ended_since.set(Some(Instant::now()));
    }

    /// The same when the plugin is about to go: the requests are on their way when this returns, and nobody sees the answers.
    pub(crate) fn unlink_unseen(&self) {
        loop {
            let jobs = self.take_ended();
            if jobs.is_empty() {
                return;
            }
            if let Err(e) = self.remove_records(&jobs) {
                let line = format!("{} sealed records could not be removed: {e}", jobs.len());
                self.log(LogLevel::Err, &line);
            }
        }
    }

    /// The first of those that have ended. The others have gathered as long.
    fn take_ended(&self) -> Vec<JobId> {
        let mut ended = self.ended.borrow_mut();
        let count = ended.len().min(COMMIT);
        let jobs = ended.drain(..count).collect();
        if ended.is_empty() {
            self.ended_since.set(None);
            ended.shrink_to(COMMIT);
        }
        jobs
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
