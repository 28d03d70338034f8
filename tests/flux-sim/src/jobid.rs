// SPDX-License-Identifier: MIT OR Apache-2.0

//! Job ids: FLUIDs and their encodings (RFC 19).
//!
//! Imitates `flux_job_id_encode(3)`, `flux_job_id_parse(3)` and `flux_job_kvs_key(3)`, without the word and emoji
//! forms.

use std::fmt;
use std::time::Instant;

use ffi::raw::flux_jobid_t;
use libc::{c_char, c_int};

use crate::c::{self, fail};

const DIGITS: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
/// Of the 64 bits, 40 are a timestamp in milliseconds, 14 the generator and 10 a sequence number.
const TIMESTAMP_SHIFT: u32 = 24;
const SEQUENCE_MAX: u64 = 1 << 10;

/// A job id. `Display` prints it as F58, the form that users see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if std::env::var_os("FLUX_F58_FORCE_ASCII").is_some() {
            "f"
        } else {
            "ƒ"
        };
        write!(f, "{prefix}{}", self.base58())
    }
}

impl JobId {
    fn base58(self) -> String {
        let mut digits = Vec::new();
        let mut rest = self.0;
        loop {
            digits.push(DIGITS[(rest % 58) as usize]);
            rest /= 58;
            if rest == 0 {
                break;
            }
        }
        digits.iter().rev().map(|&digit| digit as char).collect()
    }

    /// Returns the form used in KVS keys.
    pub fn dothex(self) -> String {
        let id = self.0;
        format!(
            "{:04x}.{:04x}.{:04x}.{:04x}",
            id >> 48,
            (id >> 32) & 0xffff,
            (id >> 16) & 0xffff,
            id & 0xffff
        )
    }

    /// Returns a key in the KVS directory of the job.
    pub fn kvs_key(self, key: &str) -> String {
        format!("job.{}.{key}", self.dothex())
    }

    /// Returns the id in a named encoding, or None if the encoding is unknown.
    pub fn encode(self, kind: &str) -> Option<String> {
        Some(match kind.to_ascii_lowercase().as_str() {
            "dec" => self.0.to_string(),
            "hex" => format!("{:#x}", self.0),
            "kvs" => format!("job.{}", self.dothex()),
            "dothex" => self.dothex(),
            "f58" => self.to_string(),
            "f58plain" => format!("f{}", self.base58()),
            _ => return None,
        })
    }

    /// Parses any of the encodings.
    pub fn parse(text: &str) -> Option<JobId> {
        let text = text.trim_start();
        let text = text.strip_prefix("job.").unwrap_or(text);
        if text.contains('.') {
            return JobId::parse_dothex(text);
        }
        if let Some(digits) = text.strip_prefix('ƒ').or_else(|| text.strip_prefix('f')) {
            return JobId::parse_base58(digits);
        }
        let text = text.trim_end();
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
        .map(JobId)
    }

    fn parse_dothex(text: &str) -> Option<JobId> {
        let words = text
            .split('.')
            .map(|word| {
                (1..=4)
                    .contains(&word.len())
                    .then(|| u16::from_str_radix(word, 16).ok())
                    .flatten()
            })
            .collect::<Option<Vec<u16>>>()?;
        let words: [u16; 4] = words.try_into().ok()?;
        Some(JobId(words.iter().fold(0, |id, &word| id << 16 | u64::from(word))))
    }

    fn parse_base58(digits: &str) -> Option<JobId> {
        if digits.is_empty() || digits.len() > 12 {
            return None;
        }
        let mut id: u64 = 0;
        for c in digits.bytes() {
            let digit = DIGITS.iter().position(|&digit| digit == c)? as u64;
            id = id.checked_mul(58)?.checked_add(digit)?;
        }
        Some(JobId(id))
    }
}

/// Generates ids, each larger than all earlier ones.
pub struct Generator {
    zero: Instant,
    offset: u64,
    timestamp: u64,
    sequence: u64,
}

impl Generator {
    /// Continues after `last`, the largest id of an earlier run.
    pub fn after(last: Option<JobId>) -> Generator {
        let offset = last.map_or(1, |id| (id.0 >> TIMESTAMP_SHIFT) + 1);
        Generator {
            zero: Instant::now(),
            offset,
            timestamp: offset,
            sequence: 0,
        }
    }

    /// Returns the next id.
    pub fn next(&mut self) -> JobId {
        let now = self.offset + self.zero.elapsed().as_millis() as u64;
        if now > self.timestamp {
            (self.timestamp, self.sequence) = (now, 0);
        } else if self.sequence == SEQUENCE_MAX {
            // After 1024 jobs in a millisecond, borrow from the next millisecond rather than wait for it.
            (self.timestamp, self.sequence) = (self.timestamp + 1, 0);
        }
        let id = self.timestamp << TIMESTAMP_SHIFT | self.sequence;
        self.sequence += 1;
        JobId(id)
    }
}

/// Copies a string and its NUL into a C buffer.
///
/// # Safety
/// `buf` has room for `size` bytes.
unsafe fn copy(text: &str, buf: *mut c_char, size: usize) -> c_int {
    if text.len() >= size {
        return fail(libc::EOVERFLOW);
    }
    // SAFETY: the text and its NUL fit.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buf, text.len());
        *buf.add(text.len()) = 0;
    }
    text.len() as c_int
}

/// flux_job_kvs_key(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_job_kvs_key(
    buf: *mut c_char,
    bufsz: c_int,
    id: flux_jobid_t,
    key: *const c_char,
) -> c_int {
    if buf.is_null() || bufsz <= 0 {
        return fail(libc::EINVAL);
    }
    // SAFETY: the caller passes NULL or a C string, and a buffer of the given size.
    unsafe {
        let path = match c::string(key) {
            Some(key) => JobId(id).kvs_key(&key),
            None => format!("job.{}", JobId(id).dothex()),
        };
        copy(&path, buf, bufsz as usize)
    }
}

/// flux_job_id_encode(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_job_id_encode(
    id: flux_jobid_t,
    kind: *const c_char,
    buf: *mut c_char,
    bufsz: usize,
) -> c_int {
    if buf.is_null() {
        return fail(libc::EINVAL);
    }
    // SAFETY: the caller passes NULL or a C string, and a buffer of the given size.
    unsafe {
        let kind = c::string(kind).unwrap_or_else(|| "dec".into());
        let Some(text) = JobId(id).encode(&kind) else {
            return fail(libc::EPROTO);
        };
        if copy(&text, buf, bufsz) < 0 { -1 } else { 0 }
    }
}

/// flux_job_id_parse(3)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn flux_job_id_parse(s: *const c_char, id: *mut flux_jobid_t) -> c_int {
    // SAFETY: the caller passes NULL or a C string.
    let parsed = unsafe { c::string(s) }.and_then(|text| JobId::parse(&text));
    match parsed {
        Some(parsed) if !id.is_null() => {
            // SAFETY: the caller passes a valid address for the result.
            unsafe { *id = parsed.0 }
            0
        }
        _ => fail(libc::EINVAL),
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_of_a_known_job_id() {
        // From `flux job id --to=…` of Flux 0.88
        let id = JobId::parse("ƒi5T6s9").unwrap();
        assert_eq!(id.dothex(), "0000.0006.4700.0000");
        for kind in ["dec", "hex", "kvs", "dothex", "f58", "f58plain"] {
            assert_eq!(JobId::parse(&id.encode(kind).unwrap()), Some(id), "{kind}");
        }
    }

    #[test]
    fn nonsense_is_no_job_id() {
        for text in [
            "",
            "x",
            "f0",
            "ƒ",
            "1.2.3",
            "fzzzzzzzzzzzz",
            "0xz",
            "-1",
            "1 2",
            "12345.1.1.1",
        ] {
            assert_eq!(JobId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn ids_only_grow() {
        let mut generator = Generator::after(None);
        let first: Vec<JobId> = (0..3000).map(|_| generator.next()).collect();
        assert!(first.is_sorted_by(|a, b| a < b));
        assert!(Generator::after(first.last().copied()).next() > *first.last().unwrap());
    }
}
