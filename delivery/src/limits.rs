// SPDX-License-Identifier: MIT OR Apache-2.0

//! Limits the concurrent deliveries of one rule, and chooses the next one.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::oneshot;

/// The lanes of all rules. They outlive a configuration: a hung source keeps its slots over a reload.
#[derive(Default)]
pub(crate) struct Limits(Mutex<HashMap<String, Weak<Lane>>>);

/// The running and waiting deliveries of one rule. Users take turns, and no user gets all slots. So the many jobs of
/// one user, or hung ones, do not delay those of others.
pub(crate) struct Lane(Mutex<LaneState>);

/// The right of a user's delivery to run. Dropping it frees the slot.
pub(crate) struct Slot(Arc<Lane>, u32);

#[derive(Default)]
struct LaneState {
    limit: usize,
    running: usize,
    /// The number of running deliveries by user.
    running_by_user: HashMap<u32, usize>,
    waiting: Waiting,
}

impl LaneState {
    /// Takes a slot for a user, if one is free and the user holds less than three quarters of all slots.
    fn take(&mut self, uid: u32) -> bool {
        let share = self.limit - self.limit.div_ceil(4).min(self.limit.saturating_sub(1));
        let of_user = self.running_by_user.get(&uid).copied().unwrap_or(0);
        let is_free = self.running < self.limit && of_user < share;
        if is_free {
            self.running += 1;
            self.running_by_user.insert(uid, of_user + 1);
        }
        is_free
    }

    fn give_back(&mut self, uid: u32) {
        self.running -= 1;
        if let Some(of_user) = self.running_by_user.get_mut(&uid) {
            *of_user -= 1;
            if *of_user == 0 {
                self.running_by_user.remove(&uid);
            }
        }
    }

    /// Removes and returns the next delivery that can have a slot. Skips users who have used up their share.
    fn next(&mut self) -> Option<(u32, oneshot::Sender<Slot>)> {
        for _ in 0..self.waiting.turns.len() {
            if self.running >= self.limit {
                return None;
            }
            let uid = self.waiting.turns.pop_front()?;
            if !self.take(uid) {
                self.waiting.turns.push_back(uid);
                continue;
            }
            match self.waiting.pop(uid) {
                Some(next) => return Some((uid, next)),
                None => self.give_back(uid),
            }
        }
        None
    }
}

/// Waiting deliveries. An abandoned one is dropped when its turn comes.
#[derive(Default)]
struct Waiting {
    /// The order of turns; each user of `queues` is in it once.
    turns: VecDeque<u32>,
    queues: HashMap<u32, VecDeque<oneshot::Sender<Slot>>>,
    count: usize,
    /// The count at which abandoned deliveries are removed.
    prune_at: usize,
}

impl Limits {
    /// Returns the lane with this name, and sets its limit.
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
    /// Waits for a slot for a delivery of this user.
    pub async fn enter(self: &Arc<Self>, uid: u32) -> Slot {
        let turn = {
            let mut state = lock(&self.0);
            if state.waiting.count == 0 && state.take(uid) {
                return Slot(Arc::clone(self), uid);
            }
            state.waiting.push(uid)
        };
        // Slots may have become free meanwhile, or the limit may have been raised.
        self.wake();
        match turn.await {
            Ok(slot) => slot,
            // A sender is dropped only after its receiver.
            Err(_) => std::future::pending().await,
        }
    }

    fn wake(self: &Arc<Self>) {
        loop {
            let Some((uid, next)) = lock(&self.0).next() else {
                return;
            };
            // If the receiver is gone, the slot is dropped here, which wakes the next delivery.
            let _ = next.send(Slot(Arc::clone(self), uid));
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.0.0).give_back(self.1);
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

    /// Removes and returns the next delivery of a user whose turn it is, without abandoned ones.
    fn pop(&mut self, uid: u32) -> Option<oneshot::Sender<Slot>> {
        let queue = self.queues.get_mut(&uid)?;
        let mut next = None;
        while next.is_none()
            && let Some(first) = queue.pop_front()
        {
            self.count -= 1;
            next = Some(first).filter(|first| !first.is_closed());
        }
        if queue.is_empty() {
            self.queues.remove(&uid);
        } else {
            self.turns.push_back(uid);
        }
        next
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

/// Below this count, abandoned deliveries are removed only when their turn comes.
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

    /// Hung deliveries of one user leave slots for others, even if the user waits before them.
    #[test]
    fn share() {
        for (limit, share) in [(1, 1), (2, 1), (3, 2), (4, 3), (8, 6)] {
            let lane = Limits::default().lane("rule", limit);
            let mut slots = Vec::new();
            let mut waiting: Vec<Turn> = (0..20).map(|_| enter(&lane, 7)).collect();
            waiting.retain_mut(|turn| poll(turn).map(|slot| slots.push(slot)).is_none());
            assert_eq!(slots.len(), share, "{limit}");
            let others = [poll(&mut enter(&lane, 8)), poll(&mut enter(&lane, 9))];
            let free = (limit - share).min(2);
            assert_eq!(others.iter().flatten().count(), free, "{limit}");
            drop(slots);
            let next: Vec<_> = waiting.iter_mut().filter_map(poll).collect();
            assert_eq!(next.len(), share.min(limit - free), "{limit}");
        }
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
        let slots = [poll(&mut enter(&before, 0)), poll(&mut enter(&before, 1))];
        drop(before);
        let after = limits.lane("rule", 2);
        let mut turn = enter(&after, 0);
        assert!(poll(&mut turn).is_none());
        assert!(poll(&mut enter(&limits.lane("other", 1), 0)).is_some());
        drop(slots);
        assert!(poll(&mut turn).is_some());
    }
}
