//! The handle: flux_log(3), flux_aux_set(3), flux_rpc(3), flux_kvs_lookup(3).

use std::{ffi::CStr, io, marker::PhantomData, os::fd::RawFd, ptr, rc::Rc};

use crate::{Future, JobId, Transaction, borrowed, c_line, c_text, raw, reactor::Watcher};

/// A handle that belongs to the job manager or to the job shell.
#[derive(Clone, Copy)]
pub struct Flux<'a> {
    raw: *mut raw::flux_t,
    _borrow: PhantomData<&'a ()>,
}

/// What the names start with under which job ids are left.
const LEFT: &[u8] = b"workflow-token::";

/// Severities of the log, syslog(3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum LogLevel {
    /// Something failed.
    Err = libc::LOG_ERR,
    /// Something is not as it should be.
    Warning = libc::LOG_WARNING,
    /// As it should be, and still to be seen.
    Notice = libc::LOG_NOTICE,
    /// Worth to know.
    Info = libc::LOG_INFO,
    /// For those who look for a fault.
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

    /// A broker attribute, flux_attr_get(3), where there is one. Of those that never change, such as `hostname` and
    /// `jobid-path`, each module has a copy from when it was loaded; for others the broker is asked, and waited for.
    pub fn attribute(self, name: &CStr) -> Option<String> {
        // SAFETY: a live handle and a C string; the result, where there is one, lives until the next call, and is copied.
        unsafe { borrowed(raw::flux_attr_get(self.raw, name.as_ptr())) }.map(|value| value.into_owned())
    }

    /// Calls `f` on the reactor thread whenever the descriptor is readable, until the watcher is dropped.
    ///
    /// # Errors
    /// From flux_fd_watcher_create(3).
    pub fn watch(self, fd: RawFd, f: impl Fn() + 'static) -> io::Result<Watcher> {
        // SAFETY: a live handle has a reactor, or the call gives null, which is checked.
        let reactor = unsafe { raw::flux_get_reactor(self.raw) };
        Watcher::readable(reactor, fd, Rc::new(f))
    }

    /// Calls `f` on the reactor thread once, after so many seconds, unless the watcher is dropped before.
    ///
    /// # Errors
    /// From flux_timer_watcher_create(3).
    pub fn after(self, seconds: f64, f: impl Fn() + 'static) -> io::Result<Watcher> {
        // SAFETY: as above.
        let reactor = unsafe { raw::flux_get_reactor(self.raw) };
        Watcher::after(reactor, seconds, Rc::new(f))
    }

    /// Sends a request to the nearest broker that serves the topic.
    ///
    /// # Errors
    /// Where it cannot be sent; what becomes of it is in the future.
    pub fn rpc(self, topic: &CStr, payload: &str) -> io::Result<Future> {
        let payload = c_text(payload)?;
        // SAFETY: C strings that the call copies; the result is a new future, or null.
        unsafe {
            let f = raw::flux_rpc(self.raw, topic.as_ptr(), payload.as_ptr(), raw::FLUX_NODEID_ANY, 0);
            Future::own(f)
        }
    }

    /// Looks a key of the primary namespace up.
    ///
    /// # Errors
    /// Where the request cannot be sent; what becomes of it is in the future.
    pub fn lookup(self, key: &str) -> io::Result<Future> {
        let key = c_text(key)?;
        // SAFETY: a C string that the call copies; a null namespace is the default; the result is new, or null.
        unsafe { Future::own(raw::flux_kvs_lookup(self.raw, ptr::null(), 0, key.as_ptr())) }
    }

    /// Commits a transaction to the primary namespace.
    ///
    /// # Errors
    /// Where the request cannot be sent; what becomes of it is in the future.
    pub fn commit(self, transaction: Transaction) -> io::Result<Future> {
        // SAFETY: a live transaction, of which the call makes its own copy; the result is new, or null.
        unsafe { Future::own(raw::flux_kvs_commit(self.raw, ptr::null(), 0, transaction.raw())) }
    }

    /// Job ids that were left with [`Flux::leave_jobs`] by a plugin that has since been removed; nothing where none was.
    /// Names start with `workflow-token::`: nobody else keeps anything there.
    pub fn left_jobs(self, name: &CStr) -> Option<Vec<JobId>> {
        if !name.to_bytes().starts_with(LEFT) {
            return None;
        }
        // SAFETY: what is kept under a name of ours was put there by `leave_jobs`: a count, and so many ids.
        unsafe {
            let block = raw::flux_aux_get(self.raw, name.as_ptr()).cast::<u64>();
            if block.is_null() {
                return None;
            }
            let count = usize::try_from(*block).unwrap_or(0);
            Some((1..=count).map(|n| JobId(*block.add(n))).collect())
        }
    }

    /// Leaves job ids with the handle, where they outlive the plugin: the memory is plain, and freed by C.
    pub fn leave_jobs(self, name: &CStr, jobs: &[JobId]) {
        if !name.to_bytes().starts_with(LEFT) {
            return;
        }
        // SAFETY: the block has room for a count and the ids, and is handed over to be freed with free(3).
        unsafe {
            let block = libc::calloc(jobs.len() + 1, size_of::<u64>()).cast::<u64>();
            if block.is_null() {
                return;
            }
            *block = jobs.len() as u64;
            for (n, job) in jobs.iter().enumerate() {
                *block.add(n + 1) = job.0;
            }
            if raw::flux_aux_set(self.raw, name.as_ptr(), block.cast(), Some(libc::free)) < 0 {
                libc::free(block.cast());
            }
        }
    }
}
