// SPDX-License-Identifier: MIT OR Apache-2.0

//! A cache of recent values, by the digest of a text.

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

/// A cache that keeps each value for less than two lifetimes, in two generations. It drops the older one as a whole.
#[derive(Debug)]
pub struct Recent<V> {
    lifetime: Duration,
    most: usize,
    kept: Mutex<Generations<V>>,
}

#[derive(Debug)]
struct Generations<V> {
    /// The beginning of the young generation.
    since: Instant,
    young: HashMap<Key, V>,
    old: HashMap<Key, V>,
}

impl<V> Generations<V> {
    /// Drops the values that are too old at `now`, however long nobody has looked.
    fn age(&mut self, lifetime: Duration, now: Instant) {
        let age = now.duration_since(self.since);
        if age < lifetime {
            return;
        }
        self.old = mem::take(&mut self.young);
        self.since += lifetime;
        if age >= 2 * lifetime {
            self.old.clear();
            self.since = now;
        }
    }
}

impl<V: Clone> Recent<V> {
    /// Returns an empty cache of at most `most` values in each generation. It does not keep further ones.
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

    /// Keeps a value, and replaces a former one.
    pub fn insert(&self, key: Key, value: V) {
        self.get_or_make(key, |_| false, |_| value);
    }

    /// Returns the value if it is good. Otherwise, `make` makes its replacement.
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

    /// Drops a value.
    pub fn remove(&self, key: &Key) {
        let mut kept = self.lock();
        kept.young.remove(key);
        kept.old.remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, Generations<V>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.age(self.lifetime, Instant::now());
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
        // A full cache still replaces a value.
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
    fn values_are_dropped_before_two_lifetimes_however_seldom_they_are_read() {
        let lifetime = Duration::from_secs(10);
        let begin = Instant::now();
        let of = |reads: &[u64]| {
            let mut kept = Generations {
                since: begin,
                young: HashMap::from([(key("one"), 1)]),
                old: HashMap::new(),
            };
            for second in reads {
                kept.age(lifetime, begin + Duration::from_secs(*second));
            }
            kept.young.len() + kept.old.len()
        };
        for reads in [&[9][..], &[10], &[19], &[5, 15, 19]] {
            assert_eq!(of(reads), 1, "{reads:?}");
        }
        for reads in [&[20][..], &[1000], &[19, 20], &[15, 20], &[19, 1000]] {
            assert_eq!(of(reads), 0, "{reads:?}");
        }
    }
}
