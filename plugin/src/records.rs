//! The records of jobs that have ended are removed, a second's worth at a time: a commit costs about the same for many.

use std::{
    collections::HashMap,
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

impl Inner {
    /// Removes the records of jobs that have ended: one commit at a time, for all that have gathered.
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
                match future.get() {
                    Ok(()) => {
                        inner.unlink_failed.set(false);
                        inner.stats.borrow_mut().unlinked += again.len() as u64;
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

    /// The same when the plugin is about to go: the request is on its way when this returns, and nobody sees the answer.
    pub(crate) fn unlink_unseen(&self) {
        let jobs = self.take_ended();
        if !jobs.is_empty()
            && let Err(e) = self.remove_records(&jobs)
        {
            self.log(
                LogLevel::Err,
                &format!("{} sealed records could not be removed: {e}", jobs.len()),
            );
        }
    }

    /// Commits what was sealed for deliveries that were under way when the plugin was removed, by those who had not been heard
    /// yet too. The request is on its way when this returns, and nobody sees the answer.
    pub(crate) fn commit_unseen(&self, under_way: &HashMap<JobId, u64>, mut sealed: Vec<Stored>) {
        for message in self.queue.take(usize::MAX) {
            if let Message::Done(Done { job, number, outcome }) = message
                && let Ok(Sealed::Record(record, _)) = outcome.result
            {
                sealed.push(Stored { job, number, record });
            }
        }
        sealed.retain(|stored| under_way.get(&stored.job) == Some(&stored.number));
        if sealed.is_empty() {
            return;
        }
        if let Err(e) = self.put_all(&sealed) {
            let line = format!("{} sealed records could not be committed: {e}", sealed.len());
            self.log(LogLevel::Err, &line);
        }
    }

    /// Asks for one commit of all these records.
    pub(crate) fn put_all(&self, records: &[Stored]) -> io::Result<Future> {
        let mut transaction = ffi::Transaction::new()?;
        for stored in records {
            transaction.put(&stored.job.kvs_key(self.kind.key)?, &stored.record)?;
        }
        self.flux().commit(transaction)
    }

    pub(crate) fn take_ended(&self) -> Vec<JobId> {
        self.ended_since.set(None);
        std::mem::take(&mut *self.ended.borrow_mut())
    }

    pub(crate) fn remove_records(&self, jobs: &[JobId]) -> io::Result<Future> {
        let mut transaction = ffi::Transaction::new()?;
        for job in jobs {
            transaction.unlink(&job.kvs_key(self.kind.key)?)?;
        }
        self.flux().commit(transaction)
    }
}
