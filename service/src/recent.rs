// SPDX-License-Identifier: MIT OR Apache-2.0

//! Values of the last moments, by the digest of a text.

use std::{
    collections::HashMap,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};

/// The SHA-256 digest of a text.
pub type Key = [u8; 32];

/// Returns the key of a text.
pub fn key(text: &str) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    key
}

/// Values that are kept for at least one lifetime and less than two, in two generations: the older one is dropped as a whole.
#[derive(Debug)]
pub struct Recent<V> {
    lifetime: Duration,
    most: usize,
    kept: Mutex<Generations<V>>,
}

#[derive(Debug)]
struct Generations<V> {
    since: Instant,
    young: HashMap<Key, V>,
    old: HashMap<Key, V>,
}

impl<V: Clone> Recent<V> {
    /// Keeps at most `most` values of each generation. Further ones are not kept.
    pub fn new(lifetime: Duration, most: usize) -> Self {
        Self {
            lifetime,
            most,
            kept: Mutex::new(Generations {
                since: Instant::now(),
                young: HashMap::new(),
                old: HashMap::new(),
            }),
        }
    }

    /// Returns a value.
    pub fn get(&self, key: &Key) -> Option<V> {
        let kept = self.lock();
        kept.young.get(key).or_else(|| kept.old.get(key)).cloned()
    }

    /// Keeps a value in place of a former one.
    pub fn insert(&self, key: Key, value: V) {
        self.get_or_make(key, |_| false, |_| value);
    }

    /// Returns the value if it is good, or else replaces it by what `make` makes of it.
    pub fn get_or_make(&self, key: Key, is_good: impl Fn(&V) -> bool, make: impl FnOnce(Option<&V>) -> V) -> V {
        let mut kept = self.lock();
        let known = kept.young.get(&key).or_else(|| kept.old.get(&key));
        if let Some(value) = known.filter(|value| is_good(value)) {
            return value.clone();
        }
        let value = make(known);
        if kept.young.len() < self.most || kept.young.contains_key(&key) {
            kept.young.insert(key, value.clone());
        }
        value
    }

    /// Forgets a value.
    pub fn remove(&self, key: &Key) {
        let mut kept = self.lock();
        kept.young.remove(key);
        kept.old.remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, Generations<V>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(kept.since) >= self.lifetime {
            kept.since = now;
            kept.old = mem::take(&mut kept.young);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_for_a_while_and_are_not_too_many() {
        let recent = Recent::new(Duration::from_secs(3600), 2);
        let [one, two, three] = ["one", "two", "three"].map(key);
        recent.insert(one, 1);
        recent.insert(two, 2);
        recent.insert(three, 3);
        assert_eq!([one, two, three].map(|key| recent.get(&key)), [Some(1), Some(2), None]);
        // A value is replaced even if there is no room for another.
        recent.insert(two, 4);
        assert_eq!(recent.get(&two), Some(4));
        recent.remove(&one);
        assert_eq!(recent.get(&one), None);
        assert_eq!(recent.get_or_make(two, |value| *value == 4, |_| 5), 4);
        assert_eq!(
            recent.get_or_make(two, |_| false, |known| known.map_or(0, |known| known + 1)),
            5
        );
    }

    #[test]
    fn values_are_dropped_after_two_lifetimes() {
        let recent = Recent::new(Duration::ZERO, 2);
        let one = key("one");
        recent.insert(one, 1);
        assert_eq!(recent.get(&one), Some(1), "it is of the older generation");
        assert_eq!(recent.get(&one), None);
    }
}
