// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table of deliveries. The cost of an operation does not grow with the number of deliveries.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ffi::JobId;
use protocol::Failure;
use seal::Due;

/// Called at the end of a delivery, unless it was canceled.
pub type End = Box<dyn FnOnce(Result<Delivered, Failure>)>;

/// The contents of a committed record.
#[derive(Debug, Default)]
pub struct Delivered {
    /// The names of its variables.
    pub names: Vec<String>,
    /// The next renewal; none if there is none.
    pub due: Option<Due>,
    /// Lines for the user of the job.
    pub warnings: Vec<String>,
}

/// The purpose of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The first record of a job, whose prolog waits for it.
    Start,
    /// A renewal of the record of a running job, with the number of its records so far.
    Renewal(u32),
}

/// A delivery under way.
pub(crate) struct Delivery {
    pub(crate) number: u64,
    pub(crate) stage: Stage,
    /// The deadline, and the timeout for the message.
    pub(crate) deadline: Instant,
    pub(crate) timeout: Duration,
    /// The processor time spent on the reactor thread.
    pub(crate) cpu: Duration,
    pub(crate) purpose: Purpose,
    /// The contents of the record, once sealed.
    pub(crate) delivered: Delivered,
    /// Called at the end. If none, the prolog is finished.
    pub(crate) end: Option<End>,
}

/// The stage of a delivery in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The agent has been asked.
    Asked,
    /// Its record waits for a commit.
    Sealed,
    /// Its record is being committed.
    Committing,
}

/// The deliveries under way.
#[derive(Default)]
pub(crate) struct Table {
    /// A tree, because a hash table moves all of its entries at once when it grows, which would block the reactor
    /// thread.
    jobs: BTreeMap<JobId, Box<Delivery>>,
    /// By deadline.
    deadlines: BTreeMap<(Instant, u64), JobId>,
    /// The number of the last delivery.
    last: u64,
}

impl Table {
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    pub fn contains(&self, job: JobId) -> bool {
        self.jobs.contains_key(&job)
    }

    /// Returns the jobs whose prologs wait for a delivery.
    pub fn starting(&self) -> impl Iterator<Item = JobId> {
        let starting = self
            .jobs
            .iter()
            .filter(|(_, delivery)| delivery.purpose == Purpose::Start);
        starting.map(|(job, _)| *job)
    }

    /// Adds the delivery of a job, and returns its number.
    pub fn insert(
        &mut self,
        job: JobId,
        purpose: Purpose,
        (deadline, timeout): (Instant, Duration),
        end: Option<End>,
    ) -> u64 {
        self.last += 1;
        let number = self.last;
        let delivery = Delivery {
            number,
            stage: Stage::Asked,
            deadline,
            timeout,
            cpu: Duration::ZERO,
            purpose,
            delivered: Delivered::default(),
            end,
        };
        self.deadlines.insert((deadline, number), job);
        self.jobs.insert(job, Box::new(delivery));
        number
    }

    /// Returns the delivery of a job.
    pub fn of(&mut self, job: JobId) -> Option<&mut Delivery> {
        self.jobs.get_mut(&job).map(Box::as_mut)
    }

    /// Returns the delivery of a job if it has this number, and is not a later one.
    pub fn numbered(&mut self, job: JobId, number: u64) -> Option<&mut Delivery> {
        self.of(job).filter(|delivery| delivery.number == number)
    }

    /// Removes and returns the delivery of a job.
    pub fn remove(&mut self, job: JobId) -> Option<Delivery> {
        let delivery = *self.jobs.remove(&job)?;
        self.deadlines.remove(&(delivery.deadline, delivery.number));
        Some(delivery)
    }

    /// Returns the deliveries whose deadline has passed, in the order of their deadlines.
    pub fn overdue(&self, now: Instant) -> impl Iterator<Item = (JobId, &Delivery)> {
        let overdue = self
            .deadlines
            .iter()
            .take_while(move |((deadline, _), _)| *deadline <= now);
        overdue.filter_map(|(_, job)| Some((*job, self.jobs.get(job)?.as_ref())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_never_waits_for_all_others_to_be_moved() {
        const MANY: u64 = 1 << 16;
        // Concurrent tests also allocate memory, but less than this.
        const AT_ONCE: usize = 1 << 20;

        let mut table = Table::default();
        for number in 0..MANY {
            let before = crate::MEMORY.bytes();
            table.insert(JobId(number), Purpose::Start, (Instant::now(), Duration::ZERO), None);
            let more = crate::MEMORY.bytes().saturating_sub(before);
            assert!(more < AT_ONCE, "{more} bytes more with number {number}");
        }
        for number in 0..MANY {
            assert!(table.remove(JobId(number)).is_some());
        }
        assert!(table.len() == 0 && table.overdue(Instant::now()).next().is_none());
    }
}
