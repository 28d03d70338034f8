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

/// The entries that are reserved at once: a sync for each of them would delay jobs. A process that ends wastes the rest.
const BLOCK: u32 = 1024;

/// The longest file: that of a full list of owners with long names.
const MAX_FILE: usize = 256 << 20;

/// The time after its expiry for which a token may still be accepted somewhere: the largest leeway.
const LEEWAY: Duration = Duration::from_secs(600);

/// A list.
pub(super) struct List {
    pub number: u32,
    pub created: u64,
    order: Order,
    /// None if nothing can be appended, so that no more entries are given out.
    file: Option<File>,
    /// So many entries may have been given out, and so many were.
    reserved: u32,
    given: u32,
    bits: StatusList,
    /// Tokens that are valid. Those before `checked` were there when the list was last swept.
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

/// A token that was given an entry.
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

/// Returns the name of the file of a list.
fn name_of(number: u32) -> String {
    format!("list-{number}")
}

/// Returns the number of the list in a file of this name.
pub(super) fn number_of(name: &str) -> Option<u32> {
    name.strip_prefix("list-")?.parse().ok()
}

fn failed(e: impl std::fmt::Display) -> io::Error {
    io::Error::other(e.to_string())
}

impl List {
    /// Begins a list.
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

    /// Reads a list. If its file was not written to its end, or a record is malformed, no more entries are given out: more may
    /// have been than it says. An entry that was reserved and of which nothing is known is not valid.
    pub fn open(directory: &Directory, number: u32, instance: &str) -> io::Result<Self> {
        let name = name_of(number);
        let file = directory.open(name.as_ref()).map_err(failed)?;
        let bytes = secure_path::read(file, MAX_FILE)?;
        let (head, mut records) = journal::read(&bytes).ok_or_else(|| failed("it is no file of a status list"))?;
        if head.instance != instance {
            let other = head.instance.escape_debug();
            let what = format!("it is of the instance {other}: give each instance a directory of its own");
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

    /// Takes a record of its file. Returns whether it can be true.
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

    /// Returns whether it has room.
    pub fn has_room(&self) -> bool {
        self.file.is_some() && self.given < MAX_STATUS_ENTRIES
    }

    /// Gives an entry out. Returns its index. Nothing is known of its token before it is recorded.
    pub fn give(&mut self, now: u64) -> io::Result<u32> {
        if self.given == self.reserved {
            self.forget_past(now);
            let reserved = (self.reserved + BLOCK).min(MAX_STATUS_ENTRIES);
            self.write(&[Record::Reserved(reserved)])?;
            let synced = self.file.as_ref().map_or(Ok(()), File::sync_data);
            if synced.is_err() {
                // Nobody knows what is on disk.
                self.file = None;
            }
            synced?;
            self.reserved = reserved;
        }
        let index = self.order.index(self.given);
        self.given += 1;
        Ok(index)
    }

    /// Records the token of an entry that was given out.
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

    /// Forgets tokens that have expired. Nobody may sweep a list.
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

    /// Appends records. If that fails, half of one may be there, so that no others can follow.
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

    /// Marks tokens that are not valid any more, and forgets those that have expired. The closure gets each valid token, its
    /// owner, and whether it was not there before.
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
        // After a restart, it is asked again about jobs whose ends were not written.
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

    /// Returns whether all of its tokens have expired. One that is not full may get others.
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
    /// Gives all entries out.
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
    // It is checked as it is when it is read.
    mem::drop(directory.open(name.as_ref()).map_err(failed)?);
    OpenOptions::new().append(true).open(directory.path().join(name))
}

/// Opens the directory of lists, which belongs to this process's user.
pub(super) fn open_directory(path: &std::path::Path) -> Result<Directory, secure_path::Refusal> {
    secure_path::make_directory(path, 0o700, Owners::process())
}
