//! The table of deliveries. Whatever is done for one delivery takes as long with a hundred thousand others as with none.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use ffi::JobId;

use crate::delivery::End;

/// For how many entries a table keeps memory when it is nearly empty.
const ROOM: usize = 64;

/// A delivery under way.
pub(crate) struct Delivery {
    pub(crate) number: u64,
    pub(crate) stage: Stage,
    /// When its time is over, and how long that was in all.
    pub(crate) deadline: Instant,
    pub(crate) timeout: Duration,
    /// Processor time spent on the reactor thread.
    pub(crate) cpu: Duration,
    /// The names of its variables, once they are sealed.
    pub(crate) names: Vec<String>,
    /// Called at its end. Without it, the prolog is finished.
    pub(crate) end: Option<End>,
}

/// How far a delivery has come on this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The agent has been asked.
    Asked,
    /// Its record waits for a commit.
    Sealed,
    /// Its record is being committed.
    Committing,
}

/// All that are on their way.
#[derive(Default)]
pub(crate) struct Deliveries {
    /// A tree: a hash table that grows moves all of its entries at once, for which the reactor thread would wait.
    jobs: BTreeMap<JobId, Box<Delivery>>,
    by_number: BTreeMap<u64, JobId>,
    /// By when their time is over.
    deadlines: BTreeMap<(Instant, u64), JobId>,
}

impl Deliveries {
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    pub fn contains(&self, job: JobId) -> bool {
        self.jobs.contains_key(&job)
    }

    pub fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.jobs.keys().copied()
    }

    /// Adds the delivery of a job.
    pub fn insert(&mut self, job: JobId, delivery: Delivery) {
        self.deadlines.insert((delivery.deadline, delivery.number), job);
        self.by_number.insert(delivery.number, job);
        self.jobs.insert(job, Box::new(delivery));
    }

    /// Returns the job of a delivery.
    pub fn job_of(&self, number: u64) -> Option<JobId> {
        self.by_number.get(&number).copied()
    }

    /// The delivery of a job.
    pub fn of(&mut self, job: JobId) -> Option<&mut Delivery> {
        self.jobs.get_mut(&job).map(Box::as_mut)
    }

    /// The same, if it is that of this number, and not one that came after it.
    pub fn numbered(&mut self, job: JobId, number: u64) -> Option<&mut Delivery> {
        self.of(job).filter(|delivery| delivery.number == number)
    }

    /// Takes one out.
    pub fn remove(&mut self, job: JobId) -> Option<Delivery> {
        let delivery = *self.jobs.remove(&job)?;
        self.deadlines.remove(&(delivery.deadline, delivery.number));
        self.by_number.remove(&delivery.number);
        Some(delivery)
    }

    /// Those whose time is over, the first ones first.
    pub fn late(&self, now: Instant) -> impl Iterator<Item = (JobId, &Delivery)> {
        let late = self
            .deadlines
            .iter()
            .take_while(move |((deadline, _), _)| *deadline <= now);
        late.filter_map(|(_, job)| Some((*job, self.jobs.get(job)?.as_ref())))
    }
}

/// Gives memory back that a map has for many more entries than it has.
pub(crate) fn shrink<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > ROOM.max(map.len() * 4) {
        map.shrink_to(ROOM);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_never_waits_for_all_others_to_be_moved() {
        const MANY: u64 = 1 << 16;
        // Tests beside this one have memory as well, but not so much.
        const AT_ONCE: usize = 1 << 20;

        let delivery = |number| Delivery {
            number,
            stage: Stage::Asked,
            deadline: Instant::now(),
            timeout: Duration::ZERO,
            cpu: Duration::ZERO,
            names: Vec::new(),
            end: None,
        };
        let mut deliveries = Deliveries::default();
        for number in 0..MANY {
            let before = crate::MEMORY.bytes();
            deliveries.insert(JobId(number), delivery(number));
            let more = crate::MEMORY.bytes().saturating_sub(before);
            assert!(more < AT_ONCE, "{more} bytes more with number {number}");
        }
        for number in 0..MANY {
            assert!(deliveries.remove(JobId(number)).is_some());
        }
        assert!(deliveries.len() == 0 && deliveries.late(Instant::now()).next().is_none());
    }
}
