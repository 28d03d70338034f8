// SPDX-License-Identifier: MIT OR Apache-2.0

//! Status Lists: whether each of many tokens is valid, as one compressed array of bits (draft-ietf-oauth-status-list-20).

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use miniz_oxide::deflate::compress_to_vec_zlib;
use miniz_oxide::inflate::{TINFLStatus, decompress_to_vec_zlib_with_limit};
use secrecy::ExposeSecret;

use crate::{SigningKey, json};

/// The most entries of a list. With one bit for each, it has 128 KiB.
pub const MAX_STATUS_ENTRIES: u32 = 1 << 20;

/// The effort to compress, from 0 to 10: the highest ones take ten times as long for the same length.
const LEVEL: u8 = 6;

/// The statuses of many tokens (section 4): 0 for a valid token, 1 for one that is not valid any more (section 7.1).
#[derive(Clone, PartialEq, Eq)]
pub struct StatusList {
    /// The bits of each entry: 1, 2, 4 or 8. They are packed from the least significant one on.
    bits: u8,
    bytes: Vec<u8>,
}

/// The reason why a text is no Status List.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatusListError {
    /// Another number of bits than 1, 2, 4 or 8.
    #[error("the status list has entries of another size than 1, 2, 4 or 8 bits")]
    Bits,
    /// Not base64url without padding.
    #[error("the status list is not base64url without padding")]
    Base64,
    /// Not in the format ZLIB (RFC 1950), or cut short.
    #[error("the status list is not compressed in the format ZLIB, or was cut short")]
    Compression,
    /// More than [`MAX_STATUS_ENTRIES`], or a token of more than [`MAX_STATUS_TOKEN`](crate::MAX_STATUS_TOKEN) bytes.
    #[error("the status list has more than the {MAX_STATUS_ENTRIES} entries that are accepted")]
    TooLong,
    /// The cache has a later one of the same URI.
    #[error("the status list is older than one that was received before")]
    Older,
}

impl StatusList {
    /// Returns a list of valid tokens: of this many, or [`MAX_STATUS_ENTRIES`], rounded up to whole bytes.
    ///
    /// ```
    /// use token::StatusList;
    ///
    /// assert_eq!(StatusList::new(12).entries(), 16);
    /// assert_eq!(StatusList::new(u32::MAX).entries(), token::MAX_STATUS_ENTRIES);
    /// ```
    pub fn new(entries: u32) -> Self {
        let bytes = entries.min(MAX_STATUS_ENTRIES).div_ceil(8) as usize;
        Self {
            bits: 1,
            bytes: vec![0; bytes],
        }
    }

    /// Returns the number of entries.
    ///
    /// ```
    /// assert_eq!(token::StatusList::new(8).entries(), 8);
    /// ```
    pub fn entries(&self) -> u32 {
        // What `new` and `from_lst` make is no longer than MAX_STATUS_ENTRIES.
        u32::try_from(self.bytes.len() * 8 / usize::from(self.bits)).unwrap_or(MAX_STATUS_ENTRIES)
    }

    /// Returns the status of an entry; none if the list is shorter, which says nothing about a token (section 8.3).
    ///
    /// ```
    /// let list = token::StatusList::new(8);
    /// assert_eq!((list.get(7), list.get(8)), (Some(0), None));
    /// ```
    pub fn get(&self, index: u32) -> Option<u8> {
        let (byte, shift) = self.place(index);
        Some((self.bytes.get(byte)? >> shift) & self.mask())
    }

    /// Sets the status of an entry. Returns whether the list has this entry, and the entry has room for the status.
    ///
    /// ```
    /// let mut list = token::StatusList::new(8);
    /// assert!(list.set(3, 1) && !list.set(8, 1) && !list.set(3, 2));
    /// assert_eq!((list.get(2), list.get(3)), (Some(0), Some(1)));
    /// ```
    pub fn set(&mut self, index: u32, status: u8) -> bool {
        let ((byte, shift), mask) = (self.place(index), self.mask());
        match self.bytes.get_mut(byte) {
            Some(byte) if status <= mask => {
                *byte = *byte & !(mask << shift) | status << shift;
                true
            }
            _ => false,
        }
    }

    /// Returns the member `lst`: compressed, in base64url (section 4.2).
    ///
    /// ```
    /// use token::StatusList;
    ///
    /// let mut list = StatusList::new(16);
    /// for index in [0, 3, 4, 5, 7, 8, 9, 13, 15] {
    ///     list.set(index, 1);
    /// }
    /// assert_eq!(StatusList::from_lst(1, &list.to_lst()), Ok(list));
    /// ```
    pub fn to_lst(&self) -> String {
        URL_SAFE_NO_PAD.encode(compress_to_vec_zlib(&self.bytes, LEVEL))
    }

    /// Reads the members `bits` and `lst`. No more memory is used than [`MAX_STATUS_ENTRIES`] take, whatever is compressed.
    ///
    /// ```
    /// use token::{StatusList, StatusListError};
    ///
    /// // The example of section 4.2.
    /// let list = StatusList::from_lst(2, "eNo76fITAAPfAgc")?;
    /// assert_eq!([0, 1, 2, 3].map(|index| list.get(index)), [Some(1), Some(2), Some(0), Some(3)]);
    /// assert_eq!(StatusList::from_lst(3, "eNo76fITAAPfAgc"), Err(StatusListError::Bits));
    /// # Ok::<(), StatusListError>(())
    /// ```
    ///
    /// # Errors
    /// [`StatusListError`].
    pub fn from_lst(bits: u8, lst: &str) -> Result<Self, StatusListError> {
        if ![1, 2, 4, 8].contains(&bits) {
            return Err(StatusListError::Bits);
        }
        let most = MAX_STATUS_ENTRIES as usize * usize::from(bits) / 8;
        // What does not compress grows by five bytes for each block, and by two thirds of what base64 adds.
        if lst.len() > most * 3 / 2 + 64 {
            return Err(StatusListError::TooLong);
        }
        let compressed = URL_SAFE_NO_PAD.decode(lst).map_err(|_| StatusListError::Base64)?;
        let bytes = decompress_to_vec_zlib_with_limit(&compressed, most).map_err(|e| match e.status {
            TINFLStatus::HasMoreOutput => StatusListError::TooLong,
            _ => StatusListError::Compression,
        })?;
        Ok(Self { bits, bytes })
    }

    fn mask(&self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// Returns the byte of an entry, and its lowest bit.
    fn place(&self, index: u32) -> (usize, u32) {
        let of_byte = u32::from(8 / self.bits);
        ((index / of_byte) as usize, index % of_byte * u32::from(self.bits))
    }
}

impl fmt::Debug for StatusList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StatusList({} entries of {} bits)", self.entries(), self.bits)
    }
}

/// A Status List Token to be issued (section 5.1).
#[derive(Clone, Debug)]
pub struct StatusListToIssue<'a> {
    /// `iss`: who issues it, and the tokens that have entries.
    pub iss: &'a str,
    /// `sub`: the URI of the list.
    pub uri: &'a str,
    /// `iat`: when it is issued. Fractions of a second are cut off.
    pub iat: SystemTime,
    /// `exp` less `iat`: for how long it may be used when no later one can be fetched.
    pub lifetime: Duration,
    /// `ttl`: after how long a later one should be fetched.
    pub ttl: Duration,
    /// The list.
    pub list: &'a StatusList,
}

/// Issues a Status List Token: a JWT of the type `statuslist+jwt`. It is for everybody, and no secret.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use token::{Algorithm, KeySet, SigningKey, StatusList, StatusListToIssue, Verifier, sign_status_list};
///
/// # fn main() -> Result<(), token::VerifyError> {
/// let key = SigningKey::generate(Algorithm::EdDsa);
/// let mut list = StatusList::new(1000);
/// list.set(17, 1);
/// let now = SystemTime::now();
/// let signed = sign_status_list(&key, &StatusListToIssue {
///     iss: "https://hpc.example.org",
///     uri: "https://hpc.example.org/status/7",
///     iat: now,
///     lifetime: Duration::from_secs(600),
///     ttl: Duration::from_secs(60),
///     list: &list,
/// });
/// let verifier = Verifier::new(KeySet::from(key.verifying_key())).issuer("https://hpc.example.org");
/// assert_eq!(verifier.verify_status_list(&signed, now)?.list, list);
/// # Ok(())
/// # }
/// ```
pub fn sign_status_list(key: &SigningKey, issue: &StatusListToIssue) -> String {
    let iat = issue.iat.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let exp = iat.saturating_add(issue.lifetime.as_secs());
    let claims = format!(
        r#"{{"iss":{},"sub":{},"iat":{iat},"exp":{exp},"ttl":{},"status_list":{{"bits":{},"lst":"{}"}}}}"#,
        json::quoted(issue.iss),
        json::quoted(issue.uri),
        issue.ttl.as_secs(),
        issue.list.bits,
        issue.list.to_lst()
    );
    let signed = key.sign(&[("typ", TYPE)], claims.as_bytes());
    signed.expose_secret().to_owned()
}

/// The type of a Status List Token (section 5.1).
pub(crate) const TYPE: &str = "statuslist+jwt";

#[cfg(test)]
mod tests;
