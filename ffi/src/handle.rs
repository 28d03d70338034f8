// SPDX-License-Identifier: MIT OR Apache-2.0

//! The handle: flux_log(3), flux_aux_set(3), flux_rpc(3), flux_kvs_lookup(3).

use std::{ffi::CStr, io, marker::PhantomData, os::fd::RawFd, ptr, rc::Rc, slice};

use crate::{Future, Transaction, borrowed, c_line, c_text, raw, reactor::Watcher};

/// A handle that belongs to the job manager or to the job shell.
#[derive(Clone, Copy)]
pub struct Flux<'a> {
    raw: *mut raw::flux_t,
    _borrow: PhantomData<&'a ()>,
}

/// The prefix of the names of handover items.
const LEFT: &[u8] = b"workflow-token::";

/// Marks the first word of a handover item. Earlier versions left job ids without it. Their items also start with the
/// count of the words that follow, so no version reads past the end of another's item.
const MAGIC: u64 = u64::from_be_bytes(*b"handover");

/// Severities of the log, syslog(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum LogLevel {
    /// Something failed.
    Err = libc::LOG_ERR,
    /// Misconfigured, or degraded.
    Warning = libc::LOG_WARNING,
    /// Normal but significant.
    Notice = libc::LOG_NOTICE,
    /// Useful to know.
    Info = libc::LOG_INFO,
    /// Details for debugging.
    Debug = libc::LOG_DEBUG,
}

impl<'a> Flux<'a> {
    /// # Safety
    /// `raw` is null or a handle that lives for `'a`.
    pub(crate) unsafe fn borrow(raw: *mut raw::flux_t) -> Option<Self> {
        (!raw.is_null()).then_some(Self {
            raw,
            _borrow: PhantomData,
        })
    }

    /// Writes a line to the log of the instance.
    pub fn log(self, level: LogLevel, line: &str) {
        let line = c_line(line);
        // SAFETY: the format takes one C string.
        unsafe { raw::flux_log(self.raw, level as i32, c"%s".as_ptr(), line.as_ptr()) };
    }

    /// Returns a broker attribute, flux_attr_get(3), if it exists. Each module holds copies of the attributes that
    /// never change, such as `hostname` and `jobid-path`, from the time it was loaded. For other attributes the call
    /// blocks on a request to the broker.
    pub fn attribute(self, name: &CStr) -> Option<String> {
        // SAFETY: a live handle and a C string. The result, if not null, lives until the next call, and is copied.
        unsafe { borrowed(raw::flux_attr_get(self.raw, name.as_ptr())) }.map(|value| value.into_owned())
    }

    /// Calls `f` on the reactor thread whenever the descriptor is readable, until the watcher is dropped.
    ///
    /// # Errors
    /// From flux_fd_watcher_create(3).
    pub fn watch(self, fd: RawFd, f: impl Fn() + 'static) -> io::Result<Watcher> {
        // SAFETY: a live handle. A null reactor is checked.
        let reactor = unsafe { raw::flux_get_reactor(self.raw) };
        Watcher::readable(reactor, fd, Rc::new(f))
    }

    /// Calls `f` on the reactor thread whenever the descriptor is writable, until the watcher is dropped.
    ///
    /// # Errors
    /// From flux_fd_watcher_create(3).
    pub fn watch_writable(self, fd: RawFd, f: Rc<dyn Fn()>) -> io::Result<Watcher> {
        // SAFETY: as above.
        let reactor = unsafe { raw::flux_get_reactor(self.raw) };
        Watcher::writable(reactor, fd, f)
    }

    /// Calls `f` on the reactor thread every `seconds` seconds, until the watcher is dropped.
    ///
    /// # Errors
    /// From flux_timer_watcher_create(3).
    pub fn every(self, seconds: f64, f: impl Fn() + 'static) -> io::Result<Watcher> {
        // SAFETY: as above.
        let reactor = unsafe { raw::flux_get_reactor(self.raw) };
        Watcher::timer(reactor, seconds, seconds, Rc::new(f))
    }

    /// Calls `f` on the reactor thread once, after `seconds` seconds, unless the watcher is dropped earlier.
    ///
    /// # Errors
    /// From flux_timer_watcher_create(3).
    pub fn after(self, seconds: f64, f: impl Fn() + 'static) -> io::Result<Watcher> {
        // SAFETY: as above.
        let reactor = unsafe { raw::flux_get_reactor(self.raw) };
        Watcher::timer(reactor, seconds, 0.0, Rc::new(f))
    }

    /// Sends a request to the nearest broker that serves the topic.
    ///
    /// # Errors
    /// The request cannot be sent. Later errors are in the future.
    pub fn rpc(self, topic: &CStr, payload: &str) -> io::Result<Future> {
        let payload = c_text(payload)?;
        // SAFETY: C strings that the call copies. The result is a new future, or null.
        unsafe {
            let f = raw::flux_rpc(self.raw, topic.as_ptr(), payload.as_ptr(), raw::FLUX_NODEID_ANY, 0);
            Future::own(f)
        }
    }

    /// Looks up a key of the primary namespace.
    ///
    /// # Errors
    /// The request cannot be sent. Later errors are in the future.
    pub fn lookup(self, key: &CStr) -> io::Result<Future> {
        // SAFETY: a C string that the call copies. A null namespace is the default one. The result is a new future, or
        // null.
        unsafe { Future::own(raw::flux_kvs_lookup(self.raw, ptr::null(), 0, key.as_ptr())) }
    }

    /// Commits a transaction to the primary namespace.
    ///
    /// # Errors
    /// The request cannot be sent. Later errors are in the future.
    pub fn commit(self, transaction: Transaction) -> io::Result<Future> {
        // SAFETY: a live transaction, which the call copies. The result is a new future, or null.
        unsafe { Future::own(raw::flux_kvs_commit(self.raw, ptr::null(), 0, transaction.raw())) }
    }

    /// Returns the bytes that a plugin, since removed, left under this name with [`Flux::leave`]. Returns None if the
    /// item is missing or in another format. Names start with `workflow-token::`, a prefix reserved for these items.
    pub fn left(self, name: &CStr) -> Option<Vec<u8>> {
        let [MAGIC, len, words @ ..] = self.left_words(name) else {
            return None;
        };
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let len = usize::try_from(*len).ok().filter(|len| *len <= bytes.len())?;
        bytes.truncate(len);
        Some(bytes)
    }

    /// Returns whether an item exists under this name, in any format.
    pub fn is_left(self, name: &CStr) -> bool {
        !self.left_words(name).is_empty()
    }

    /// Leaves bytes with the handle, where they outlive the plugin: plain memory, which C frees. They replace an
    /// earlier item of this name.
    ///
    /// # Errors
    /// InvalidInput: the name lacks our prefix. ENOMEM.
    pub fn leave(self, name: &CStr, bytes: &[u8]) -> io::Result<()> {
        if !name.to_bytes().starts_with(LEFT) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let content = bytes.chunks(size_of::<u64>()).map(|chunk| {
            let mut word = [0; size_of::<u64>()];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        let header = if bytes.is_empty() {
            &[][..]
        } else {
            &[MAGIC, bytes.len() as u64]
        };
        let count = header.len() + content.len();
        // SAFETY: the block has room for the count and `count` words. The handle frees it with free(3).
        unsafe {
            let block = libc::calloc(1 + count, size_of::<u64>()).cast::<u64>();
            if block.is_null() {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            let words = [count as u64].into_iter().chain(header.iter().copied()).chain(content);
            words.enumerate().for_each(|(n, word)| block.add(n).write(word));
            if raw::flux_aux_set(self.raw, name.as_ptr(), block.cast(), Some(libc::free)) < 0 {
                let error = io::Error::last_os_error();
                libc::free(block.cast());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Returns the words of an item. They live until the item is replaced.
    fn left_words(&self, name: &CStr) -> &[u64] {
        if !name.to_bytes().starts_with(LEFT) {
            return &[];
        }
        // SAFETY: since the first release, every item under our prefix starts with the count of the words that follow.
        unsafe {
            let block = raw::flux_aux_get(self.raw, name.as_ptr()).cast::<u64>();
            match block.is_null() {
                true => &[],
                false => slice::from_raw_parts(block.add(1), usize::try_from(*block).unwrap_or(0)),
            }
        }
    }
}
