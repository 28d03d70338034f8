// SPDX-License-Identifier: MIT OR Apache-2.0

//! One list, in memory and in its file.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    mem,
    time::Duration,
};

use secure_path::{Directory, Owners};
use token::{MAX_STATUS_ENTRIES, StatusList};

use super::{
    journal::{self, Entry, Head, Record},
    order::Order,
};

/// The number of entries that are reserved at once, because a sync for each entry would delay jobs. The rest of a block
/// is lost when the process ends.
const BLOCK: u32 = 1024;

/// The longest file: that of a full list whose owners have long names.
const MAX_FILE: usize = 256 << 20;

/// The time after its expiry that a token may still be accepted: the largest leeway.
const LEEWAY: Duration = Duration::from_secs(600);

/// A list.
pub(super) struct List {
    pub number: u32,
    pub created: u64,
    order: Order,
    /// None if nothing can be appended, so that no more entries are assigned.
    file: Option<File>,
    /// The number of reserved entries, and the number of assigned ones.
    reserved: u32,
    given: u32,
    bits: StatusList,
    /// The valid tokens. Those before `checked` were present in the last sweep.
    live: Vec<Entry>,
    checked: usize,
    owners: JobOwners,
    /// The latest expiry of its tokens.
    expires: u32,
}

/// A job owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JobOwner {
    /// The uid.
    pub uid: u32,
    /// The claim `sub` of the tokens.
    pub sub: String,
}

/// A token with an entry.
#[derive(Debug, Clone, Copy)]
pub struct TokenToList<'a> {
    /// Its job.
    pub jobid: u64,
    /// The uid of the job owner.
    pub uid: u32,
    /// `sub`.
    pub sub: &'a str,
    /// `jti`.
    pub jti: &'a str,
    /// `iat`, in seconds since 1970-01-01T00:00:00Z.
    pub iat: u32,
    /// `exp`, in seconds since 1970-01-01T00:00:00Z.
    pub exp: u32,
}

#[derive(Default)]
struct JobOwners {
    all: Vec<JobOwner>,
    numbers: HashMap<JobOwner, u32>,
}

impl JobOwners {
    fn add(&mut self, owner: JobOwner) -> u32 {
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(owner.clone());
        self.numbers.insert(owner, number);
        number
    }
}

/// Returns the file name of a list.
fn name_of(number: u32) -> String {
    format!("list-{number}")
}

/// Returns the number of the list with this file name.
pub(super) fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix("list-")?.parse().ok()
}

fn failed(e: impl std::fmt::Display) -> io::Error {
    io::Error::other(e.to_string())
}

impl List {
    /// Creates a list and its file.
    pub fn begin(directory: &Directory, number: u32, head: &Head) -> io::Result<Self> {
        let name = name_of(number);
        let bytes = journal::begin(head).map_err(failed)?;
        directory.write(name.as_ref(), 0o600, &bytes, false).map_err(failed)?;
        Ok(Self {
            file: Some(append(directory, &name)?),
            ..Self::empty(number, head)
        })
    }

    fn empty(number: u32, head: &Head) -> Self {
        Self {
            number,
            created: head.created,
            order: Order::new(&head.key),
            file: None,
            reserved: 0,
            given: 0,
            bits: StatusList::new(MAX_STATUS_ENTRIES),
            live: Vec::new(),
            checked: 0,
            owners: JobOwners::default(),
            expires: 0,
        }
    }

    /// Reads a list. If its file is truncated or contains a malformed record, no more entries are assigned, because
    /// more may have been assigned than were read. A reserved entry without a known token is invalid.
    pub fn open(directory: &Directory, number: u32, instance: &str) -> io::Result<Self> {
        let name = name_of(number);
        let file = directory.open(name.as_ref()).map_err(failed)?;
        let bytes = secure_path::read(file, MAX_FILE)?;
        let (head, mut records) = journal::read(&bytes).ok_or_else(|| failed("it is not the file of a status list"))?;
        if head.instance != instance {
            let other = head.instance.escape_debug();
            let what = format!("it belongs to the instance {other}: give each instance its own directory");
            return Err(failed(what));
        }
        let mut list = Self::empty(number, &head);
        let mut known = StatusList::new(MAX_STATUS_ENTRIES);
        let is_sound = records.by_ref().all(|record| list.replay(record, &mut known));
        let is_whole = is_sound && records.is_whole;
        let bits = &list.bits;
        list.live.retain(|entry| bits.get(entry.index) == Some(0));
        for position in 0..list.reserved {
            let index = list.order.index(position);
            if known.get(index) == Some(0) {
                list.bits.set(index, 1);
            }
        }
        list.given = list.reserved;
        if is_whole {
            list.file = Some(append(directory, &name)?);
        }
        Ok(list)
    }

    /// Applies a record of the file. Returns whether the record is plausible.
    fn replay(&mut self, record: Record, known: &mut StatusList) -> bool {
        match record {
            Record::Reserved(reserved) => {
                let is_more = (self.reserved + 1..=MAX_STATUS_ENTRIES).contains(&reserved);
                self.reserved = self.reserved.max(reserved.min(MAX_STATUS_ENTRIES));
                is_more
            }
            Record::Owner { uid, sub } => {
                self.owners.add(JobOwner { uid, sub });
                true
            }
            Record::Given(entry) => {
                let is_known = self.owners.all.len() > entry.owner as usize && known.set(entry.index, 1);
                if is_known {
                    self.expires = self.expires.max(entry.exp);
                    self.live.push(entry);
                }
                is_known
            }
            Record::Over(index) => self.bits.set(index, 1),
        }
    }

    /// Returns whether it can assign another entry.
    pub fn has_room(&self) -> bool {
        self.file.is_some() && self.given < MAX_STATUS_ENTRIES
    }

    /// Assigns an entry. Returns its index. [`List::record`] records its token.
    pub fn give(&mut self, now: u64) -> io::Result<u32> {
        if self.given == self.reserved {
            self.forget_past(now);
            let reserved = (self.reserved + BLOCK).min(MAX_STATUS_ENTRIES);
            self.write(&[Record::Reserved(reserved)])?;
            let synced = self.file.as_ref().map_or(Ok(()), File::sync_data);
            if synced.is_err() {
                // The contents on disk are unknown.
                self.file = None;
            }
            synced?;
            self.reserved = reserved;
        }
        let index = self.order.index(self.given);
        self.given += 1;
        Ok(index)
    }

    /// Records the token of an assigned entry.
    pub fn record(&mut self, index: u32, token: &TokenToList) -> io::Result<()> {
        let owner = JobOwner {
            uid: token.uid,
            sub: token.sub.to_owned(),
        };
        let known = self.owners.numbers.get(&owner).copied();
        let number = known.unwrap_or_else(|| u32::try_from(self.owners.all.len()).unwrap_or(u32::MAX));
        let entry = Entry {
            jobid: token.jobid,
            jti: journal::hash_of(token.jti),
            iat: token.iat,
            exp: token.exp,
            owner: number,
            index,
        };
        let mut records = Vec::new();
        if known.is_none() {
            let JobOwner { uid, sub } = owner.clone();
            records.push(Record::Owner { uid, sub });
        }
        records.push(Record::Given(entry));
        self.write(&records)?;
        if known.is_none() {
            self.owners.add(owner);
        }
        self.expires = self.expires.max(entry.exp);
        self.live.push(entry);
        Ok(())
    }

    /// Drops expired tokens, because a list may never be swept.
    fn forget_past(&mut self, now: u64) {
        let (mut position, mut left) = (0, self.checked);
        self.live.retain(|entry| {
            let is_kept = !is_past(entry.exp, now);
            left -= usize::from(!is_kept && position < self.checked);
            position += 1;
            is_kept
        });
        self.checked = left;
    }

    /// Appends records. If that fails, the file may end with a partial record, so nothing more is appended.
    fn write(&mut self, records: &[Record]) -> io::Result<()> {
        let bytes = journal::encode(records).map_err(failed)?;
        let file = self
            .file
            .as_mut()
            .ok_or_else(|| failed("it could not be written before"))?;
        let written = file.write_all(&bytes);
        if written.is_err() {
            self.file = None;
        }
        written
    }

    /// Invalidates the tokens for which the closure returns true, and drops expired ones. The closure receives each
    /// valid token, its owner, and whether the token is new since the last sweep.
    pub fn sweep(&mut self, now: u64, mut is_over: impl FnMut(&Entry, &JobOwner, bool) -> bool) {
        let (bits, owners, checked) = (&mut self.bits, &self.owners.all, self.checked);
        let (mut position, mut over) = (0, Vec::new());
        self.live.retain(|entry| {
            let is_new = position >= checked;
            position += 1;
            if is_past(entry.exp, now) {
                return false;
            }
            // A list that is read contains the owner of each entry.
            let is_over = owners
                .get(entry.owner as usize)
                .is_none_or(|owner| is_over(entry, owner, is_new));
            if is_over {
                bits.set(entry.index, 1);
                over.push(Record::Over(entry.index));
            }
            !is_over
        });
        self.checked = self.live.len();
        if self.live.capacity() > 4 * self.live.len() {
            self.live.shrink_to(2 * self.live.len());
        }
        // If the write fails, the closure is called for these tokens again after a restart.
        if !over.is_empty() && self.file.is_some() {
            let _ = self.write(&over);
        }
    }

    /// Returns the jobs of tokens that are valid and were issued before a time.
    pub fn jobs(&self, before: u64) -> impl Iterator<Item = u64> {
        let entries = self.live.iter().filter(move |entry| u64::from(entry.iat) < before);
        entries.map(|entry| entry.jobid)
    }

    /// Returns the statuses.
    pub fn bits(&self) -> &StatusList {
        &self.bits
    }

    /// Returns whether it can assign no more entries and all of its tokens have expired.
    pub fn is_past(&self, now: u64) -> bool {
        !self.has_room() && is_past(self.expires, now)
    }

    /// Removes its file.
    pub fn remove(&self, directory: &Directory) -> io::Result<()> {
        directory
            .remove(name_of(self.number).as_ref())
            .map(drop)
            .map_err(failed)
    }
}

#[cfg(test)]
impl List {
    /// Assigns all entries.
    pub fn fill(&mut self) -> io::Result<()> {
        self.write(&[Record::Reserved(MAX_STATUS_ENTRIES)])?;
        (self.reserved, self.given) = (MAX_STATUS_ENTRIES, MAX_STATUS_ENTRIES);
        Ok(())
    }
}

fn is_past(exp: u32, now: u64) -> bool {
    u64::from(exp) + LEEWAY.as_secs() <= now
}

fn append(directory: &Directory, name: &str) -> io::Result<File> {
    // `directory.open` checks the owner and mode of the file.
    mem::drop(directory.open(name.as_ref()).map_err(failed)?);
    OpenOptions::new().append(true).open(directory.path().join(name))
}

/// Opens the directory of lists, which belongs to this process's user.
pub(super) fn open_directory(path: &std::path::Path) -> Result<Directory, secure_path::Refusal> {
    secure_path::make_directory(path, 0o700, Owners::process())
}
