//! The table of deliveries, and the lanes in which they wait. Whatever is done for one delivery takes as long with a hundred
//! thousand others as with none.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use ffi::JobId;

use crate::{
    delivery::End,
    work::{Progress, Setup, Task},
};

/// For how many entries a table keeps memory when it is nearly empty.
const ROOM: usize = 64;

/// The deliveries of one rule: how many are under way, and which wait.
#[derive(Clone, Default)]
pub(crate) struct Lane(pub(crate) Rc<RefCell<Waiting>>);

/// Users take turns, so that one who submits many jobs does not keep those of others waiting.
#[derive(Default)]
pub(crate) struct Waiting {
    pub(crate) running: usize,
    /// Whose turn it is; each user in `jobs` is here once.
    turns: VecDeque<u32>,
    /// By number, which is the order in which they came. A user whose jobs have all gone stays until their turn.
    jobs: HashMap<u32, BTreeMap<u64, JobId>>,
}

impl Waiting {
    pub fn push(&mut self, uid: u32, job: JobId, number: u64) {
        let jobs = self.jobs.entry(uid).or_insert_with(|| {
            self.turns.push_back(uid);
            BTreeMap::new()
        });
        jobs.insert(number, job);
    }

    /// The one whose turn it is.
    pub fn first(&mut self) -> Option<(JobId, u64)> {
        loop {
            let uid = self.turns.front()?;
            if let Some((number, job)) = self.jobs.get(uid).and_then(BTreeMap::first_key_value) {
                return Some((*job, *number));
            }
            self.jobs.remove(uid);
            self.turns.pop_front();
        }
    }

    /// Takes the first out, and gives the turn to the next user.
    pub fn pop(&mut self) {
        let Some(uid) = self.turns.pop_front() else { return };
        let Some(jobs) = self.jobs.get_mut(&uid) else { return };
        jobs.pop_first();
        if jobs.is_empty() {
            self.jobs.remove(&uid);
        } else {
            self.turns.push_back(uid);
        }
    }

    /// One that was given up while it waited.
    fn remove(&mut self, uid: u32, number: u64) {
        if let Some(jobs) = self.jobs.get_mut(&uid) {
            jobs.remove(&number);
        }
    }
}

/// A delivery on its way. Dropping it gives up what is under way for it.
pub(crate) struct Delivery {
    pub(crate) number: u64,
    /// When its time is over.
    pub(crate) deadline: Instant,
    pub(crate) setup: Arc<Setup>,
    /// Processor time spent on the reactor thread.
    pub(crate) cpu: Duration,
    pub(crate) progress: Arc<Progress>,
    /// What is to be done, until it is handed to a thread.
    pub(crate) task: Option<Task>,
    /// Where it waits until then.
    pub(crate) lane: Lane,
    pub(crate) uid: u32,
    /// Whether its record is being committed.
    pub(crate) committing: bool,
    /// The names of its variables, once they are sealed.
    pub(crate) names: Vec<String>,
    /// What is to be told of its end. Where there is nothing, its end is that of the prolog.
    pub(crate) end: Option<End>,
}

impl Delivery {
    /// Whether it is known who the job owner is, as far as that is needed. What was found out long ago does not count.
    pub fn knows_owner(&mut self) -> bool {
        let Some(task) = &mut self.task else { return true };
        if !self.setup.needs_owner(&task.what) || task.owner.as_ref().is_some_and(|owner| owner.is_fresh()) {
            return true;
        }
        if let Some(owner) = self.setup.owners.known(self.uid) {
            task.owner = Some(owner);
            return true;
        }
        false
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.progress.give_up();
    }
}

/// All that are on their way.
#[derive(Default)]
pub(crate) struct Deliveries {
    /// A tree: a hash table that grows moves all of its entries at once, for which the reactor thread would wait.
    jobs: BTreeMap<JobId, Box<Delivery>>,
    /// By when their time is over.
    deadlines: BTreeMap<(Instant, u64), JobId>,
    /// Those that wait until it is known who their job owner is, by the uid and the configuration that asks.
    asking: BTreeMap<(u32, *const Setup), BTreeMap<u64, JobId>>,
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

    /// Their numbers, and whose they are.
    pub fn numbers(&self) -> impl Iterator<Item = (u64, JobId)> {
        self.jobs.iter().map(|(job, delivery)| (delivery.number, *job))
    }

    pub fn insert(&mut self, job: JobId, delivery: Delivery) {
        self.deadlines.insert((delivery.deadline, delivery.number), job);
        self.jobs.insert(job, Box::new(delivery));
    }

    /// The delivery of a job.
    pub fn of(&mut self, job: JobId) -> Option<&mut Delivery> {
        self.jobs.get_mut(&job).map(Box::as_mut)
    }

    /// The same, if it is that of this number, and not one that came after it.
    pub fn numbered(&mut self, job: JobId, number: u64) -> Option<&mut Delivery> {
        self.of(job).filter(|delivery| delivery.number == number)
    }

    /// Takes one out, of the lane in which it may be waiting too.
    pub fn remove(&mut self, job: JobId) -> Option<Delivery> {
        let delivery = *self.jobs.remove(&job)?;
        self.deadlines.remove(&(delivery.deadline, delivery.number));
        if delivery.task.is_some() {
            delivery.lane.0.borrow_mut().remove(delivery.uid, delivery.number);
            self.forget(&delivery);
        }
        Some(delivery)
    }

    /// One waits until it is known who its job owner is.
    pub fn ask(&mut self, job: JobId, uid: u32, number: u64, setup: &Arc<Setup>) {
        let asking = self.asking.entry((uid, Arc::as_ptr(setup))).or_default();
        asking.insert(number, job);
    }

    /// Takes the first out of those that wait for this one to be known. The second is whether there are more.
    pub fn asked(&mut self, uid: u32, setup: &Arc<Setup>, most: usize) -> (Vec<(u64, JobId)>, bool) {
        let of = (uid, Arc::as_ptr(setup));
        let Some(asking) = self.asking.get_mut(&of) else {
            return (Vec::new(), false);
        };
        let taken = std::iter::from_fn(|| asking.pop_first()).take(most).collect();
        let more = !asking.is_empty();
        if !more {
            self.asking.remove(&of);
        }
        (taken, more)
    }

    fn forget(&mut self, delivery: &Delivery) {
        let of = (delivery.uid, Arc::as_ptr(&delivery.setup));
        if let Some(asking) = self.asking.get_mut(&of) {
            asking.remove(&delivery.number);
            if asking.is_empty() {
                self.asking.remove(&of);
            }
        }
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
    use std::path::PathBuf;

    use config::Config;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_delivery_never_waits_for_all_others_to_be_moved() {
        const MANY: u64 = 1 << 16;
        // Tests beside this one have memory as well, but not so much.
        const AT_ONCE: usize = 1 << 20;

        let config = Config::with_overrides(&json!({}), &json!({})).expect("no table is a configuration");
        let setup = Setup::new(config, &[] as &[PathBuf], String::new()).expect("nothing has to be there");
        let setup = Arc::new(setup);
        let delivery = |number| Delivery {
            number,
            deadline: Instant::now(),
            setup: Arc::clone(&setup),
            cpu: Duration::ZERO,
            progress: Arc::default(),
            task: None,
            lane: Lane::default(),
            uid: 0,
            committing: false,
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

    #[test]
    fn users_take_turns_and_what_is_given_up_leaves_nothing_behind() {
        let mut waiting = Waiting::default();
        for number in 0..6 {
            waiting.push(if number < 4 { 1 } else { 2 }, JobId(number), number);
        }
        waiting.remove(1, 1);
        let mut order = Vec::new();
        while let Some((job, _)) = waiting.first() {
            order.push(job.0);
            waiting.pop();
        }
        assert_eq!(order, [0, 4, 2, 5, 3]);
        for number in 0..1000 {
            waiting.push(number as u32, JobId(number), number);
            waiting.remove(number as u32, number);
        }
        assert!(waiting.first().is_none());
        assert!(waiting.jobs.is_empty() && waiting.turns.is_empty());
    }
}
