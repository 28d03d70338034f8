//! Limits the deliveries of one rule that are under way at once, and chooses the next one.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::oneshot;

/// The lanes of all rules. They outlive a configuration: a source that hangs keeps its slots when the configuration is
/// loaded again.
#[derive(Default)]
pub(crate) struct Limits(Mutex<HashMap<String, Weak<Lane>>>);

/// The deliveries of one rule: some are under way, others wait for their turn. Users take turns, so that the many jobs
/// of one do not delay those of others.
pub(crate) struct Lane(Mutex<LaneState>);

/// The right of one delivery to be under way, until dropped.
pub(crate) struct Slot(Arc<Lane>);

#[derive(Default)]
struct LaneState {
    limit: usize,
    running: usize,
    waiting: Waiting,
}

/// Deliveries that wait. One that nobody waits for any more is left out when its turn comes.
#[derive(Default)]
struct Waiting {
    /// Whose turn it is; each user of `queues` is here once.
    turns: VecDeque<u32>,
    queues: HashMap<u32, VecDeque<oneshot::Sender<Slot>>>,
    count: usize,
    /// The count at which those that were given up are removed.
    prune_at: usize,
}

impl Limits {
    /// Returns the lane of this name, with this limit from now on.
    pub fn lane(&self, name: &str, limit: usize) -> Arc<Lane> {
        let mut lanes = lock(&self.0);
        lanes.retain(|_, lane| lane.strong_count() > 0);
        let lane = lanes.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let lane = Arc::new(Lane(Mutex::default()));
            lanes.insert(name.to_owned(), Arc::downgrade(&lane));
            lane
        });
        lock(&lane.0).limit = limit;
        lane
    }
}

impl Lane {
    /// Waits for the turn of a delivery for this user.
    pub async fn enter(self: &Arc<Self>, uid: u32) -> Slot {
        let turn = {
            let mut state = lock(&self.0);
            if state.running < state.limit && state.waiting.count == 0 {
                state.running += 1;
                return Slot(Arc::clone(self));
            }
            state.waiting.push(uid)
        };
        // Slots may have become free since, or the limit higher.
        self.wake();
        match turn.await {
            Ok(slot) => slot,
            // A sender is dropped only after its receiver.
            Err(_) => std::future::pending().await,
        }
    }

    fn wake(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = lock(&self.0);
                if state.running >= state.limit {
                    return;
                }
                let Some(next) = state.waiting.pop() else { return };
                state.running += 1;
                next
            };
            // If nobody waits for it any more, it is dropped here, which wakes the next one.
            let _ = next.send(Slot(Arc::clone(self)));
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.0.0).running -= 1;
        self.0.wake();
    }
}

impl Waiting {
    fn push(&mut self, uid: u32) -> oneshot::Receiver<Slot> {
        let (sender, receiver) = oneshot::channel();
        if self.count >= self.prune_at.max(PRUNE) {
            self.prune();
        }
        let queue = self.queues.entry(uid).or_insert_with(|| {
            self.turns.push_back(uid);
            VecDeque::new()
        });
        queue.push_back(sender);
        self.count += 1;
        receiver
    }

    fn pop(&mut self) -> Option<oneshot::Sender<Slot>> {
        loop {
            let uid = self.turns.pop_front()?;
            let Some(queue) = self.queues.get_mut(&uid) else {
                continue;
            };
            let next = queue.pop_front();
            self.count -= usize::from(next.is_some());
            if queue.is_empty() {
                self.queues.remove(&uid);
            } else {
                self.turns.push_back(uid);
            }
            if let Some(next) = next.filter(|next| !next.is_closed()) {
                return Some(next);
            }
        }
    }

    fn prune(&mut self) {
        self.queues.retain(|_, queue| {
            queue.retain(|sender| !sender.is_closed());
            !queue.is_empty()
        });
        self.turns.retain(|uid| self.queues.contains_key(uid));
        self.count = self.queues.values().map(VecDeque::len).sum();
        self.prune_at = self.count * 2;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Below this count, deliveries that were given up are not removed before their turn.
const PRUNE: usize = 64;

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::Pin, task::Context};

    use super::*;

    type Turn = Pin<Box<dyn Future<Output = Slot>>>;

    fn enter(lane: &Arc<Lane>, uid: u32) -> Turn {
        let lane = Arc::clone(lane);
        Box::pin(async move { lane.enter(uid).await })
    }

    fn poll(turn: &mut Turn) -> Option<Slot> {
        match turn.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(slot) => Some(slot),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn users_take_turns() {
        let lane = Limits::default().lane("rule", 1);
        let mut slot = poll(&mut enter(&lane, 0));
        assert!(slot.is_some());
        let mut turns: Vec<(u32, Turn)> = [1, 1, 1, 2, 2].map(|uid| (uid, enter(&lane, uid))).into();
        assert!(turns.iter_mut().all(|(_, turn)| poll(turn).is_none()));
        let mut order = Vec::new();
        while !turns.is_empty() {
            drop(slot.take());
            let next = turns.iter_mut().position(|(_, turn)| {
                slot = poll(turn);
                slot.is_some()
            });
            order.push(turns.remove(next.expect("somebody is next")).0);
        }
        assert_eq!(order, [1, 2, 1, 2, 1]);
    }

    #[test]
    fn a_delivery_that_was_given_up_takes_no_turn_and_no_memory() {
        let lane = Limits::default().lane("rule", 1);
        let slot = poll(&mut enter(&lane, 0));
        let mut last = enter(&lane, 1);
        assert!(poll(&mut last).is_none());
        for uid in 0..10_000 {
            assert!(poll(&mut enter(&lane, uid)).is_none());
        }
        assert!(lock(&lane.0).waiting.count <= 2 * PRUNE);
        drop(slot);
        assert!(poll(&mut last).is_some());
    }

    #[test]
    fn a_lane_keeps_its_slots_when_the_configuration_is_loaded_again() {
        let limits = Limits::default();
        let before = limits.lane("rule", 2);
        let slots = [poll(&mut enter(&before, 0)), poll(&mut enter(&before, 0))];
        drop(before);
        let after = limits.lane("rule", 2);
        let mut turn = enter(&after, 0);
        assert!(poll(&mut turn).is_none());
        assert!(poll(&mut enter(&limits.lane("other", 1), 0)).is_some());
        drop(slots);
        assert!(poll(&mut turn).is_some());
    }
}
