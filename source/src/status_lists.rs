// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Status Lists of an issuer (draft-ietf-oauth-status-list-20): the entries of job tokens and their validity.
//!
//! A list has 2^20 entries, each of which is assigned once. When all are assigned, the next list begins. A list is
//! removed when all of its tokens have expired. Numbers of lists are random, so they do not repeat even if the
//! directory is emptied.

mod journal;
mod list;
mod order;

use std::{
    collections::HashSet,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::rand;
use secure_path::Directory;
use token::StatusList;

use journal::Head;
use list::List;

pub use journal::{Entry, hash_of};
pub use list::{JobOwner, TokenToList};

/// The maximum number of lists. While all lists are full and contain unexpired tokens, new tokens have no entry.
pub const MAX_LISTS: usize = 16;

/// The time that a process waits for its predecessor to end, and the interval of checks.
const PREDECESSOR: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(20));

/// The time after which opening a directory is retried, so that not every job waits for it.
const RETRY: Duration = Duration::from_secs(5);

/// The interval at which the same error is reported.
const REPORT: Duration = Duration::from_secs(600);

/// The lists in a directory. Its calls access files, so they block.
pub struct StatusLists {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    opened: Option<Opened>,
    /// The time and cause of the last failure to open it.
    failed: Option<(Instant, String)>,
    reported: Option<(Instant, String)>,
}

/// The lists of a directory that this process has locked.
struct Opened {
    directory: Directory,
    _lock: OwnedFd,
    instance: String,
    /// The lists in the order of their creation.
    lists: Vec<List>,
}

/// An entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The number of the list.
    pub list: u32,
    /// The index.
    pub index: u32,
}

/// Returns the URI of a list of an issuer.
pub fn uri_of(issuer: &str, number: u32) -> String {
    format!("{issuer}/status/{number}")
}

/// The directories in use, which the minting of tokens and the signing of lists share.
static DIRECTORIES: Mutex<Vec<Weak<StatusLists>>> = Mutex::new(Vec::new());

impl StatusLists {
    /// Returns the lists in a directory. Reads nothing yet.
    pub fn of(path: &Path) -> Arc<Self> {
        let mut all = DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|lists| lists.strong_count() > 0);
        if let Some(lists) = all.iter().filter_map(Weak::upgrade).find(|lists| lists.path == path) {
            return lists;
        }
        let lists = Arc::new(Self {
            path: path.to_owned(),
            state: Mutex::default(),
        });
        all.push(Arc::downgrade(&lists));
        lists
    }

    /// Assigns an entry to a token of a job of this instance. No other token gets the same entry, even if the process
    /// crashes.
    ///
    /// # Errors
    /// For the operator: no entry is available.
    pub fn give(&self, instance: &str, now: SystemTime) -> Result<Place, String> {
        self.with(instance, |opened| {
            let now = seconds(now);
            if !opened.lists.last().is_some_and(List::has_room) {
                opened.begin(now)?;
            }
            let list = opened.lists.last_mut().ok_or("no list could be begun")?;
            let index = list.give(now).map_err(|e| e.to_string())?;
            Ok(Place {
                list: list.number,
                index,
            })
        })
    }

    /// Records the token of an entry.
    ///
    /// # Errors
    /// For the operator: the token was not recorded, so it will be invalid after a restart.
    pub fn record(&self, instance: &str, place: Place, token: &TokenToList) -> Result<(), String> {
        self.with(instance, |opened| {
            let list = opened.lists.iter_mut().find(|list| list.number == place.list);
            let list = list.ok_or("its list was removed")?;
            list.record(place.index, token).map_err(|e| e.to_string())
        })
    }

    /// Returns the numbers of all lists.
    ///
    /// # Errors
    /// For the operator: the directory cannot be used.
    pub fn numbers(&self, instance: &str) -> Result<Vec<u32>, String> {
        self.with(instance, |opened| {
            Ok(opened.lists.iter().map(|list| list.number).collect())
        })
    }

    /// Returns the list of a number, if it exists.
    ///
    /// # Errors
    /// For the operator: the directory cannot be used.
    pub fn list(&self, instance: &str, number: u32) -> Result<Option<StatusList>, String> {
        self.with(instance, |opened| {
            let list = opened.lists.iter().find(|list| list.number == number);
            Ok(list.map(|list| list.bits().clone()))
        })
    }

    /// Returns the jobs of all tokens that are valid and were issued before a time.
    ///
    /// # Errors
    /// For the operator: the directory cannot be used.
    pub fn jobs(&self, instance: &str, before: SystemTime) -> Result<HashSet<u64>, String> {
        self.with(instance, |opened| {
            let before = seconds(before);
            Ok(opened.lists.iter().flat_map(|list| list.jobs(before)).collect())
        })
    }

    /// Invalidates the tokens for which the closure returns true, and drops expired ones. The closure receives each
    /// valid token, its owner, and whether the token is new since the last sweep.
    ///
    /// # Errors
    /// For the operator: the directory cannot be used.
    pub fn sweep(
        &self,
        instance: &str,
        now: SystemTime,
        mut is_over: impl FnMut(&Entry, &JobOwner, bool) -> bool,
    ) -> Result<(), String> {
        self.with(instance, |opened| {
            for list in &mut opened.lists {
                list.sweep(seconds(now), &mut is_over);
            }
            opened.remove_past(seconds(now))
        })
    }

    /// Returns an error for the operator's log, unless it was reported in the last minutes.
    pub fn report(&self, error: &str) -> Option<String> {
        let mut state = self.lock();
        let is_known = |(at, known): &(Instant, String)| known == error && at.elapsed() < REPORT;
        if state.reported.as_ref().is_some_and(is_known) {
            return None;
        }
        state.reported = Some((Instant::now(), error.to_owned()));
        Some(format!("tokens are issued without an entry in a status list: {error}"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a closure with the open directory. The first call opens it.
    fn with<T>(&self, instance: &str, f: impl FnOnce(&mut Opened) -> Result<T, String>) -> Result<T, String> {
        let mut state = self.lock();
        let done = self.opened(&mut state, instance).and_then(f);
        done.map_err(|e| format!("{}, the key status-list: {e}", self.path.display()))
    }

    fn opened<'a>(&self, state: &'a mut State, instance: &str) -> Result<&'a mut Opened, String> {
        let opened = match state.opened.take() {
            Some(opened) => opened,
            None => self.open(state, instance)?,
        };
        let opened = state.opened.insert(opened);
        match opened.instance == instance {
            true => Ok(opened),
            false => Err(format!(
                "it belongs to the instance {}: give each instance its own directory",
                opened.instance.escape_debug()
            )),
        }
    }

    fn open(&self, state: &mut State, instance: &str) -> Result<Opened, String> {
        if let Some((_, e)) = state.failed.as_ref().filter(|(at, _)| at.elapsed() < RETRY) {
            return Err(e.clone());
        }
        let opened = Opened::open(&self.path, instance);
        state.failed = opened.as_ref().err().map(|e| (Instant::now(), e.clone()));
        opened
    }
}

impl Opened {
    fn open(path: &Path, instance: &str) -> Result<Self, String> {
        let directory = list::open_directory(path).map_err(|e| e.to_string())?;
        let end = Instant::now() + PREDECESSOR.0;
        let lock = loop {
            match directory.lock().map_err(|e| e.to_string())? {
                Some(lock) => break lock,
                None if Instant::now() < end => thread::sleep(PREDECESSOR.1),
                None => return Err("another agent uses it: give each agent its own directory".to_owned()),
            }
        };
        let names = directory.names(4 * MAX_LISTS).map_err(|e| e.to_string())?;
        let numbers = names.iter().filter_map(|name| list::number_of(name.to_str()?));
        let lists = numbers.map(|number| {
            let opened = List::open(&directory, number, instance);
            opened.map_err(|e| format!("list-{number}: {e}"))
        });
        let mut lists = lists.collect::<Result<Vec<_>, _>>()?;
        lists.sort_by_key(|list| list.created);
        Ok(Self {
            directory,
            _lock: lock,
            instance: instance.to_owned(),
            lists,
        })
    }

    /// Begins the next list.
    fn begin(&mut self, now: u64) -> Result<(), String> {
        self.remove_past(now)?;
        if self.lists.len() >= MAX_LISTS {
            return Err(format!(
                "all {MAX_LISTS} lists are full and contain unexpired tokens: shorten max-lifetime"
            ));
        }
        let (mut number, mut key) = ([0; 4], [0; 16]);
        // aws-lc aborts the process if no randomness is available.
        rand::fill(&mut number)
            .and_then(|()| rand::fill(&mut key))
            .map_err(|_| "no randomness is available")?;
        let head = Head {
            instance: self.instance.clone(),
            // Each list is later than its predecessor, even if the clock was set back.
            created: now.max(self.lists.last().map_or(0, |list| list.created + 1)),
            key,
        };
        // `begin` fails if a list of this number exists.
        let list = List::begin(&self.directory, u32::from_le_bytes(number), &head).map_err(|e| e.to_string())?;
        self.lists.push(list);
        Ok(())
    }

    /// Removes the lists whose tokens have all expired.
    fn remove_past(&mut self, now: u64) -> Result<(), String> {
        let mut removed = Ok(());
        self.lists.retain(|list| {
            if !list.is_past(now) {
                return true;
            }
            let done = list.remove(&self.directory);
            let is_removed = done.is_ok();
            removed = removed.clone().and(done.map_err(|e| e.to_string()));
            !is_removed
        });
        removed
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
