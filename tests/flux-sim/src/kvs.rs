// SPDX-License-Identifier: MIT OR Apache-2.0

//! The key-value store, and its content on disk.
//!
//! Imitates `flux_kvs_txn_create(3)`, commits and lookups, with dots in keys as directories. Every value ever
//! committed is appended unchanged to the file `content`, as a content store also keeps values that were unlinked or
//! replaced. The file `kvs` lists the operations, and refers to the content. Commits of plugins can be rejected or
//! held, to test how plugins react.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;

use ffi::raw::flux_kvs_txn_t;
use libc::{c_char, c_int};
use serde_json::{Value, json};

use crate::c::{self, fail};
use crate::future::{Done, Failure, Outcome};
use crate::reactor::Reactor;

const FLUX_KVS_APPEND: c_int = 32;

#[derive(Clone)]
enum Op {
    Put { key: String, value: Vec<u8> },
    Append { key: String, value: Vec<u8> },
    Unlink { key: String },
}

/// A transaction: operations that are committed together.
#[derive(Clone, Default)]
pub struct Txn(Vec<Op>);

impl Txn {
    /// Sets a key. The key must be in normal form.
    pub fn put(mut self, key: String, value: impl Into<Vec<u8>>) -> Txn {
        self.0.push(Op::Put {
            key,
            value: value.into(),
        });
        self
    }

    /// Appends to the value of a key.
    pub fn append(&mut self, key: String, value: impl Into<Vec<u8>>) {
        self.0.push(Op::Append {
            key,
            value: value.into(),
        });
    }

    /// Removes a key, or a directory with its content.
    pub fn unlink(mut self, key: String) -> Txn {
        self.0.push(Op::Unlink { key });
        self
    }
}

/// Returns a key in normal form: without empty parts. Returns None if nothing is left.
pub fn normalize(key: &str) -> Option<String> {
    let parts: Vec<&str> = key.split('.').filter(|part| !part.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join("."))
}

/// A pending commit, completed by `Kvs::apply`.
type Commit = (Txn, Done);

/// A pending lookup.
type Lookup = Box<dyn FnOnce(&Kvs)>;

/// The store.
pub struct Kvs {
    reactor: Rc<Reactor>,
    values: RefCell<BTreeMap<String, Vec<u8>>>,
    content: RefCell<File>,
    content_len: Cell<u64>,
    journal: RefCell<File>,
    held: RefCell<VecDeque<Commit>>,
    holding: Cell<bool>,
    lookups: RefCell<Vec<Lookup>>,
    holding_lookups: Cell<bool>,
    /// The number of plugin commits to reject (negative for all), and the error number.
    refuse: Cell<(i64, c_int)>,
}

impl Kvs {
    /// Opens the store in a directory, and restores earlier commits.
    pub fn open(dir: &Path, reactor: Rc<Reactor>) -> io::Result<Rc<Kvs>> {
        let open = |name| {
            OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .open(dir.join(name))
        };
        let (mut content, mut journal) = (open("content")?, open("kvs")?);
        let (mut bytes, mut lines) = (Vec::new(), String::new());
        content.read_to_end(&mut bytes)?;
        journal.read_to_string(&mut lines)?;
        let kvs = Kvs {
            reactor,
            values: RefCell::default(),
            content_len: Cell::new(bytes.len() as u64),
            content: RefCell::new(content),
            journal: RefCell::new(journal),
            held: RefCell::default(),
            holding: Cell::new(false),
            lookups: RefCell::default(),
            holding_lookups: Cell::new(false),
            refuse: Cell::new((0, 0)),
        };
        for line in lines.lines() {
            match parse_op(line, &bytes) {
                Some(op) => kvs.change(&op),
                // The last line of a process that was killed: the operation was never acknowledged.
                None => break,
            }
        }
        Ok(Rc::new(kvs))
    }

    /// Commits a transaction of the simulator itself, which faults do not affect.
    pub fn commit(self: &Rc<Self>, txn: Txn, done: impl FnOnce(Outcome) + 'static) {
        let kvs = Rc::clone(self);
        self.reactor.defer_service(move || kvs.apply(&txn, Box::new(done)));
    }

    /// Commits a transaction of a plugin.
    pub fn commit_faulty(self: &Rc<Self>, txn: Txn, done: Done) {
        let (count, errnum) = self.refuse.get();
        if count != 0 {
            self.refuse.set((if count > 0 { count - 1 } else { count }, errnum));
            self.reactor.defer_service(move || done(Err(Failure::errno(errnum))));
        } else if self.holding.get() {
            self.held.borrow_mut().push_back((txn, done));
        } else {
            self.commit(txn, done);
        }
    }

    /// Rejects the next `count` commits of plugins, or all if negative.
    pub fn refuse(&self, count: i64, errnum: c_int) {
        self.refuse.set((count, errnum));
    }

    /// Leaves commits of plugins outstanding from now on.
    pub fn hold(&self) {
        self.holding.set(true);
    }

    /// Completes the held commits.
    pub fn release(self: &Rc<Self>) {
        self.holding.set(false);
        for (txn, done) in self.held.take() {
            self.commit(txn, done);
        }
    }

    /// Performs a lookup of a plugin, now or once lookups are no longer held.
    pub fn look_up(&self, lookup: Lookup) {
        if self.holding_lookups.get() {
            self.lookups.borrow_mut().push(lookup);
        } else {
            lookup(self);
        }
    }

    /// Leaves lookups of plugins outstanding from now on.
    pub fn hold_lookups(&self) {
        self.holding_lookups.set(true);
    }

    /// Performs the held lookups.
    pub fn release_lookups(&self) {
        self.holding_lookups.set(false);
        for lookup in self.lookups.take() {
            lookup(self);
        }
    }

    /// Returns the number of held commits.
    pub fn held(&self) -> usize {
        self.held.borrow().len()
    }

    /// Returns the number of operations in the held commits.
    pub fn held_operations(&self) -> usize {
        self.held.borrow().iter().map(|(txn, _)| txn.0.len()).sum()
    }

    fn apply(&self, txn: &Txn, done: Done) {
        let written = self.write(&txn.0);
        if written.is_ok() {
            txn.0.iter().for_each(|op| self.change(op));
        }
        done(
            written
                .map(|()| None)
                .map_err(|e| Failure::new(e.raw_os_error().unwrap_or(libc::EIO), e.to_string())),
        );
    }

    fn change(&self, op: &Op) {
        let mut values = self.values.borrow_mut();
        match op {
            Op::Put { key, value } => {
                unlink(&mut values, key);
                make_parents(&mut values, key);
                values.insert(key.clone(), value.clone());
            }
            Op::Append { key, value } => {
                make_parents(&mut values, key);
                values.entry(key.clone()).or_default().extend_from_slice(value);
            }
            Op::Unlink { key } => unlink(&mut values, key),
        }
    }

    /// Appends the values of all operations to the content, and then the operations to the journal.
    fn write(&self, ops: &[Op]) -> io::Result<()> {
        let (mut values, mut lines) = (Vec::new(), String::new());
        let before = self.content_len.get();
        for op in ops {
            let at = before + values.len() as u64;
            let line = match op {
                Op::Put { key, value } => {
                    values.extend_from_slice(value);
                    json!({"put": key, "at": at, "len": value.len()})
                }
                Op::Append { key, value } => {
                    values.extend_from_slice(value);
                    json!({"append": key, "at": at, "len": value.len()})
                }
                Op::Unlink { key } => json!({"unlink": key}),
            };
            lines += &format!("{line}\n");
        }
        self.content.borrow_mut().write_all(&values)?;
        self.content_len.set(before + values.len() as u64);
        self.journal.borrow_mut().write_all(lines.as_bytes())
    }

    /// Reads a value.
    pub fn get(&self, key: &str) -> Result<Vec<u8>, Failure> {
        let key = normalize(key).ok_or_else(|| Failure::errno(libc::EINVAL))?;
        let values = self.values.borrow();
        match values.get(&key) {
            Some(value) => Ok(value.clone()),
            None if is_dir(&values, &key) => Err(Failure::errno(libc::EISDIR)),
            None => Err(Failure::errno(libc::ENOENT)),
        }
    }

    /// Returns all keys that have a value.
    pub fn keys(&self) -> Vec<String> {
        self.values.borrow().keys().cloned().collect()
    }
}

fn parse_op(line: &str, content: &[u8]) -> Option<Op> {
    let line: Value = serde_json::from_str(line).ok()?;
    let key = |name: &str| line.get(name).and_then(Value::as_str).map(str::to_owned);
    if let Some(key) = key("unlink") {
        return Some(Op::Unlink { key });
    }
    let at = usize::try_from(line.get("at")?.as_u64()?).ok()?;
    let len = usize::try_from(line.get("len")?.as_u64()?).ok()?;
    let value = content.get(at..at.checked_add(len)?)?.to_vec();
    key("put")
        .map(|key| Op::Put {
            key,
            value: value.clone(),
        })
        .or_else(|| {
            key("append").map(|key| Op::Append {
                key,
                value: value.clone(),
            })
        })
}

fn unlink(values: &mut BTreeMap<String, Vec<u8>>, key: &str) {
    values.remove(key);
    let dir = format!("{key}.");
    // Do not walk over all keys: each job adds some.
    let within = values.range(dir.clone()..).map(|(name, _)| name);
    let within: Vec<String> = within.take_while(|name| name.starts_with(&dir)).cloned().collect();
    for name in within {
        values.remove(&name);
    }
}

fn is_dir(values: &BTreeMap<String, Vec<u8>>, key: &str) -> bool {
    let dir = format!("{key}.");
    values
        .range(dir.clone()..)
        .next()
        .is_some_and(|(name, _)| name.starts_with(&dir))
}

/// Replaces values in the path of a new key by directories.
fn make_parents(values: &mut BTreeMap<String, Vec<u8>>, key: &str) {
    for (end, _) in key.match_indices('.') {
        values.remove(&key[..end]);
    }
}

/// flux_kvs_txn_create(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_kvs_txn_create() -> *mut flux_kvs_txn_t {
    Box::into_raw(Box::<Txn>::default()).cast()
}

/// flux_kvs_txn_destroy(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_kvs_txn_destroy(txn: *mut flux_kvs_txn_t) {
    if !txn.is_null() {
        // SAFETY: the caller releases the transaction that flux_kvs_txn_create returned.
        drop(unsafe { Box::from_raw(txn.cast::<Txn>()) });
    }
}

/// flux_kvs_txn_put_raw(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_kvs_txn_put_raw(
    txn: *mut flux_kvs_txn_t,
    flags: c_int,
    key: *const c_char,
    data: *const c_void,
    len: usize,
) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers, to that number of bytes. A flux_kvs_txn_t is only ever a Txn.
    unsafe {
        let key = c::string(key).and_then(|key| normalize(&key));
        let (Some(txn), Some(key)) = (txn.cast::<Txn>().as_mut(), key) else {
            return fail(libc::EINVAL);
        };
        let value = if data.is_null() {
            Vec::new()
        } else {
            std::slice::from_raw_parts(data.cast::<u8>(), len).to_vec()
        };
        txn.0.push(match flags {
            0 => Op::Put { key, value },
            FLUX_KVS_APPEND => Op::Append { key, value },
            _ => return fail(libc::EINVAL),
        });
    }
    0
}

/// flux_kvs_txn_unlink(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_kvs_txn_unlink(txn: *mut flux_kvs_txn_t, flags: c_int, key: *const c_char) -> c_int {
    // SAFETY: the caller passes NULL or valid pointers; a flux_kvs_txn_t is only ever a Txn.
    unsafe {
        let key = c::string(key).and_then(|key| normalize(&key));
        let (Some(txn), Some(key), 0) = (txn.cast::<Txn>().as_mut(), key, flags) else {
            return fail(libc::EINVAL);
        };
        txn.0.push(Op::Unlink { key });
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> (Rc<Kvs>, Rc<Reactor>) {
        let reactor = Rc::new(Reactor::default());
        (Kvs::open(dir, reactor.clone()).unwrap(), reactor)
    }

    #[test]
    fn commits_survive_a_restart_and_stay_in_the_content_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (kvs, reactor) = open(dir.path());
        kvs.commit(Txn::default().put("a.b".into(), "first"), |outcome| {
            assert!(outcome.is_ok())
        });
        kvs.commit(
            Txn::default().put("a.b".into(), "second").put("c.d.e".into(), "x"),
            |_| (),
        );
        let mut more = Txn::default().unlink("c".into());
        more.append("a.b".into(), " half");
        kvs.commit(more, |_| ());
        assert_eq!(
            kvs.get("a.b").unwrap_err().errnum,
            libc::ENOENT,
            "not before a later turn"
        );
        reactor.run_services();
        drop(kvs);

        let (kvs, _) = open(dir.path());
        assert_eq!(kvs.get("a..b").unwrap(), b"second half");
        assert_eq!(kvs.get("a").unwrap_err().errnum, libc::EISDIR);
        assert_eq!(kvs.keys(), ["a.b"]);
        assert_eq!(std::fs::read(dir.path().join("content")).unwrap(), b"firstsecondx half");
    }

    #[test]
    fn a_cut_journal_ends_where_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let (kvs, reactor) = open(dir.path());
        kvs.commit(Txn::default().put("a".into(), "1").put("b".into(), "2"), |_| ());
        reactor.run_services();
        drop(kvs);
        let journal = dir.path().join("kvs");
        let text = std::fs::read_to_string(&journal).unwrap();
        std::fs::write(&journal, &text[..text.len() - 5]).unwrap();
        assert_eq!(open(dir.path()).0.keys(), ["a"]);
    }
}
