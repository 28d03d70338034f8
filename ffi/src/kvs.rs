//! KVS transactions: flux_kvs_txn_create(3).

use std::io;

use crate::{c_text, last_error, raw};

/// A transaction that is destroyed when dropped.
pub struct Transaction {
    raw: *mut raw::flux_kvs_txn_t,
}

impl Transaction {
    /// An empty transaction.
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

    /// Sets a key to a text.
    ///
    /// # Errors
    /// From flux_kvs_txn_put(3).
    pub fn put(&mut self, key: &str, value: &str) -> io::Result<()> {
        let (key, value) = (c_text(key)?, c_text(value)?);
        // SAFETY: a live transaction and C strings that the call copies.
        if unsafe { raw::flux_kvs_txn_put(self.raw, 0, key.as_ptr(), value.as_ptr()) } < 0 {
            return Err(last_error());
        }
        Ok(())
    }

    /// Removes a key; one that is not there does not matter.
    ///
    /// # Errors
    /// From flux_kvs_txn_unlink(3).
    pub fn unlink(&mut self, key: &str) -> io::Result<()> {
        let key = c_text(key)?;
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
