// SPDX-License-Identifier: MIT OR Apache-2.0

//! KVS transactions: flux_kvs_txn_create(3).

use std::{ffi::CStr, io};

use crate::{last_error, raw};

/// A transaction that is destroyed when dropped.
pub struct Transaction {
    raw: *mut raw::flux_kvs_txn_t,
}

impl Transaction {
    /// Creates an empty transaction.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no arguments; a null result is checked.
        let raw = unsafe { raw::flux_kvs_txn_create() };
        if raw.is_null() {
            Err(last_error())
        } else {
            Ok(Self { raw })
        }
    }

    /// Sets a key to a text value.
    ///
    /// # Errors
    /// From flux_kvs_txn_put_raw(3).
    pub fn put(&mut self, key: &CStr, value: &str) -> io::Result<()> {
        // SAFETY: a live transaction, a C string, and `value.len()` bytes. The call copies
        // both.
        let rc = unsafe { raw::flux_kvs_txn_put_raw(self.raw, 0, key.as_ptr(), value.as_ptr().cast(), value.len()) };
        if rc < 0 {
            return Err(last_error());
        }
        Ok(())
    }

    /// Removes a key. A missing key is not an error.
    ///
    /// # Errors
    /// From flux_kvs_txn_unlink(3).
    pub fn unlink(&mut self, key: &CStr) -> io::Result<()> {
        // SAFETY: a live transaction and a C string that the call copies.
        if unsafe { raw::flux_kvs_txn_unlink(self.raw, 0, key.as_ptr()) } < 0 {
            return Err(last_error());
        }
        Ok(())
    }

    pub(crate) fn raw(&self) -> *mut raw::flux_kvs_txn_t {
        self.raw
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        // SAFETY: owned, and destroyed once.
        unsafe { raw::flux_kvs_txn_destroy(self.raw) }
    }
}
