// SPDX-License-Identifier: MIT OR Apache-2.0

//! Keys in files. Reads check owners and modes, each use checks for changes, and the command writes the files.
//!
//! A running instance uses [`KeyStore`]. A change takes effect with the next token, without a restart. If the changed
//! files cannot be read, the instance keeps the former keys and warns the operator once.

mod directory;
mod write;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use token::KeySet;

use crate::{
    Error,
    issuer_keys::{IssuerKeys, Lookup},
};

use directory::{HS256, SIGNING, is_file_name};
pub use directory::{Keys, KeysError, MAX_KEY_FILE, Want, read, read_secret};
pub use write::{add, create, promote, retire};

/// The time after a change in which a second change may not alter the timestamps, whose resolution is up to seconds on
/// some file systems.
const SETTLED: Duration = Duration::from_secs(3);

/// The maximum number of attempts to read files that change during the read.
const TRIES: usize = 5;

/// The current keys in a directory or file. Its calls read files, so they block.
pub struct KeyStore {
    path: PathBuf,
    what: KeyUse,
    state: Mutex<StoreState>,
}

/// The contents of the path of a [`KeyStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyUse {
    Keys(Want),
    Secret,
}

#[derive(Default)]
struct StoreState {
    /// The last keys that were read successfully.
    good: Option<Arc<Keys>>,
    /// The error of the last attempt, if it failed.
    failure: Option<KeysError>,
    /// The fingerprint of the files at the last attempt; none if they could not be examined or had just changed.
    print: Option<Print>,
    /// The start of the last attempt.
    began: Option<Instant>,
}

/// The stores in use. Stores of the same path share their state, so a reload of the configuration keeps the last good
/// keys.
static STORES: Mutex<Vec<Weak<KeyStore>>> = Mutex::new(Vec::new());

/// The last note to the operator about each unreadable path. Several stores may have the same path.
static TOLD: Mutex<BTreeMap<PathBuf, String>> = Mutex::new(BTreeMap::new());

impl KeyStore {
    /// Returns the store of a key directory whose active key signs. Reads nothing yet.
    pub fn signing(path: PathBuf) -> Arc<Self> {
        Self::shared(path, KeyUse::Keys(Want::Signing))
    }

    /// Returns the store of a key directory or a file of public keys. Reads nothing yet.
    pub fn verifying(path: PathBuf) -> Arc<Self> {
        Self::shared(path, KeyUse::Keys(Want::Verifying))
    }

    /// Returns the store of a file with a secret for HS256. Reads nothing yet.
    pub fn secret(path: PathBuf) -> Arc<Self> {
        Self::shared(path, KeyUse::Secret)
    }

    fn shared(path: PathBuf, what: KeyUse) -> Arc<Self> {
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|store| store.strong_count() > 0);
        let same = |store: &Arc<Self>| store.path == path && store.what == what;
        if let Some(store) = stores.iter().filter_map(Weak::upgrade).find(same) {
            return store;
        }
        let store = Arc::new(Self {
            path,
            what,
            state: Mutex::default(),
        });
        stores.push(Arc::downgrade(&store));
        store
    }

    /// Returns the path of the keys.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the modification time of the file of a private key; none if it is not known. Blocks.
    pub fn made(&self, kid: &str) -> Option<SystemTime> {
        let files = [format!("{SIGNING}/{kid}.pem"), format!("{HS256}/{kid}.jwk")];
        let mut files = files.iter().filter(|_| is_file_name(kid));
        files.find_map(|file| fs::metadata(self.path.join(file)).ok()?.modified().ok())
    }

    /// Returns the current keys, or the last good ones if they cannot be read, and lines for the operator's log.
    ///
    /// # Errors
    /// [`KeysError`] if the keys were never read successfully.
    pub fn keys(&self) -> (Result<Arc<Keys>, KeysError>, Vec<String>) {
        // The lock is never held during file system calls, which may hang.
        let began = Instant::now();
        let mut print = self.print();
        if let Some(known) = print.as_ref().and_then(|print| self.unchanged(print)) {
            return (known, Vec::new());
        }
        let mut read = self.read();
        for _ in 1..TRIES {
            let after = self.print();
            if after == print {
                return self.keep(began, print, read);
            }
            print = after;
            read = self.read();
        }
        self.keep(began, None, read)
    }

    /// Returns the known keys if the files have not changed.
    fn unchanged(&self, print: &Print) -> Option<Result<Arc<Keys>, KeysError>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.print.as_ref() == Some(print)).then(|| state.answer()).flatten()
    }

    fn read(&self) -> Result<Keys, KeysError> {
        match self.what {
            KeyUse::Keys(want) => read(&self.path, want),
            KeyUse::Secret => read_secret(&self.path),
        }
    }

    /// Stores the result of an attempt, unless a later attempt has already ended.
    fn keep(
        &self,
        began: Instant,
        print: Option<Print>,
        read: Result<Keys, KeysError>,
    ) -> (Result<Arc<Keys>, KeysError>, Vec<String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut notes = Vec::new();
        let is_late = state.began.is_some_and(|other| other > began);
        if !(is_late && state.answer().is_some()) {
            state.began = Some(began);
            state.print = print.filter(Print::is_settled);
            notes = state.take(&self.path, read);
        }
        // At least one attempt has ended, so there is an answer.
        let answer = state.answer();
        let none = || Err(KeysError::new(&self.path, "it was not read"));
        (answer.unwrap_or_else(none), notes)
    }

    /// Returns the fingerprint of the files; none if they cannot be examined.
    fn print(&self) -> Option<Print> {
        Print::of(&self.path, self.what).ok()
    }
}

impl IssuerKeys for KeyStore {
    fn known(&self) -> Lookup<KeySet> {
        let (result, notes) = self.keys();
        Lookup {
            result: result
                .map(|keys| Arc::clone(keys.verifying()))
                .map_err(|e| Error::new("there are no keys to verify its token with", e)),
            notes,
        }
    }

    fn asked_again(&self, _kid: &str) -> Lookup<KeySet> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).print = None;
        self.known()
    }
}

impl fmt::Debug for KeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyStore({}, {:?})", self.path.display(), self.what)
    }
}

impl StoreState {
    fn answer(&self) -> Option<Result<Arc<Keys>, KeysError>> {
        match (&self.good, &self.failure) {
            (Some(good), _) => Some(Ok(Arc::clone(good))),
            (None, Some(failure)) => Some(Err(failure.clone())),
            (None, None) => None,
        }
    }

    /// Stores the result of a read. Returns lines for the operator's log.
    fn take(&mut self, path: &Path, read: Result<Keys, KeysError>) -> Vec<String> {
        match read {
            Ok(keys) => {
                let is_news = self.good.as_ref().is_none_or(|former| former.notes() != keys.notes());
                let mut notes = if is_news { keys.notes().to_vec() } else { Vec::new() };
                self.failure = None;
                if self.good.is_some() && told().remove(path).is_some() {
                    notes.push(format!("the keys in {} are valid again and in use", path.display()));
                }
                self.good = Some(Arc::new(keys));
                notes
            }
            Err(e) => {
                let note = format!("the keys can no longer be read, and the last good keys remain in use: {e}");
                self.failure = Some(e);
                let is_news =
                    self.good.is_some() && told().insert(path.to_owned(), note.clone()).as_ref() != Some(&note);
                if is_news { vec![note] } else { Vec::new() }
            }
        }
    }
}

fn told() -> MutexGuard<'static, BTreeMap<PathBuf, String>> {
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The fingerprint of files, which changes if one of them changes.
#[derive(Debug)]
struct Print {
    files: Vec<(OsString, Looks)>,
    taken: SystemTime,
}

impl PartialEq for Print {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files
    }
}

/// The fingerprint of one file: device and inode, mode and owner, length, and the times of its last changes in seconds
/// and nanoseconds.
#[derive(Debug, PartialEq, Eq)]
struct Looks {
    place: (u64, u64),
    access: (u32, u32),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Print {
    fn of(path: &Path, what: KeyUse) -> io::Result<Self> {
        let mut print = Self {
            files: Vec::new(),
            taken: SystemTime::now(),
        };
        let whole = fs::metadata(path)?;
        if whole.is_dir() {
            print.directory(path)?;
            let private = (what == KeyUse::Keys(Want::Signing)).then_some(directory::SIGNING);
            for name in private.into_iter().chain([directory::HS256]) {
                match print.directory(&path.join(name)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
        print.files.push((OsString::new(), Looks::of(&whole)));
        Ok(print)
    }

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        let start = self.files.len();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            match entry.metadata() {
                Ok(meta) => self.files.push((entry.file_name(), Looks::of(&meta))),
                // It was just removed, which changes the time of the directory.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        self.files[start..].sort_by(|a, b| a.0.cmp(&b.0));
        Ok(())
    }

    /// Returns whether all changes are old enough that another one would alter the timestamps.
    fn is_settled(&self) -> bool {
        let now = self.taken.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let settled = now - SETTLED.as_secs() as i64;
        self.files
            .iter()
            .all(|(_, looks)| looks.modified.0 < settled && looks.changed.0 < settled)
    }
}

impl Looks {
    fn of(meta: &fs::Metadata) -> Self {
        Self {
            place: (meta.dev(), meta.ino()),
            access: (meta.mode(), meta.uid()),
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_just_now_is_none_to_rely_on() {
        let taken = SystemTime::now();
        let now = taken.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let settled = |modified: i64, changed: i64| {
            let looks = Looks {
                place: (1, 1),
                access: (0o100_600, 0),
                length: 1,
                modified: (modified, 0),
                changed: (changed, 0),
            };
            let files = vec![("a".into(), looks)];
            Print { files, taken }.is_settled()
        };
        assert!(settled(now - 60, now - 60));
        // Programs can set the mtime of a file but not its ctime; the clock of a file server may be ahead.
        for (modified, changed) in [
            (now, now),
            (now - 60, now - 1),
            (now - 1, now - 60),
            (now + 60, now - 60),
        ] {
            assert!(!settled(modified, changed), "{modified} {changed}");
        }
    }
}
