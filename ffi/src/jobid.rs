// SPDX-License-Identifier: MIT OR Apache-2.0

//! Job ids, RFC 19.

use std::{
    ffi::{CStr, CString, c_char},
    fmt, io,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use crate::{c_text, last_error, raw};

/// A job id. `Display` prints it as F58, such as ƒ2uGyXbVf.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub u64);

impl JobId {
    /// Returns the KVS key of an entry in the job's directory: flux_job_kvs_key(3).
    ///
    /// # Errors
    /// The key does not fit in 256 bytes.
    pub fn kvs_key(self, key: &CStr) -> io::Result<CString> {
        let mut buffer = [0 as c_char; 256];
        // SAFETY: the buffer is as long as stated, and the key is a C string.
        let len = unsafe { raw::flux_job_kvs_key(buffer.as_mut_ptr(), 256, self.0, key.as_ptr()) };
        if len < 0 {
            return Err(last_error());
        }
        // SAFETY: on success the buffer holds a NUL-terminated string.
        Ok(unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_owned())
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = [0 as c_char; 64];
        // SAFETY: the buffer is as long as stated, and the type is a C string.
        let rc = unsafe { raw::flux_job_id_encode(self.0, c"f58".as_ptr(), buffer.as_mut_ptr(), buffer.len()) };
        if rc < 0 {
            return write!(f, "{}", self.0);
        }
        // SAFETY: on success the buffer holds a NUL-terminated string.
        let text = unsafe { CStr::from_ptr(buffer.as_ptr()) };
        f.write_str(text.to_str().map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Parses every form that RFC 19 defines: flux_job_id_parse(3).
impl FromStr for JobId {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let (text, mut id) = (c_text(text)?, 0);
        // SAFETY: a C string, and the address of the result.
        match unsafe { raw::flux_job_id_parse(text.as_ptr(), &mut id) } {
            0 => Ok(JobId(id)),
            _ => Err(last_error()),
        }
    }
}
