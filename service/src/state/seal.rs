// SPDX-License-Identifier: MIT OR Apache-2.0

//! Seals values with AES-256-GCM under a key of the key file.
//!
//! A sealed value consists of a random nonce of 12 bytes, the encrypted JSON of the value, and a tag of 16 bytes. The
//! associated data are the kind, the digest of the id, the version and the expiry of the record, so a value does not
//! open in another place or with another expiry.

use std::{fmt, path::Path, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    cipher::AES_256_KEY_LEN,
};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::record::{Kind, MAX_VALUE, StateError};

/// The maximum number of keys, since each is tried.
const MAX_KEYS: usize = 8;

/// The longest key file, in bytes: enough for the maximum number of keys with some comments.
const MAX_FILE: usize = 4096;

/// The length of the tag, in bytes.
const TAG: usize = 16;

/// The keys. The first seals, and all open.
#[derive(Clone)]
pub struct Keyring(Arc<[RandomizedNonceKey]>);

/// The place of a value: the associated data of its seal.
pub struct Place {
    kind: Kind,
    bytes: Vec<u8>,
}

impl Place {
    /// Returns the place of a record.
    pub fn new(kind: Kind, id: &[u8], version: i64, expires: i64) -> Self {
        let numbers = [kind.number(), version, expires].map(i64::to_be_bytes);
        Self {
            kind,
            bytes: [numbers.as_flattened(), id].concat(),
        }
    }
}

impl Keyring {
    /// Loads a key file: one key of 64 hexadecimal digits per line. Empty lines, and those that begin with `#`, are
    /// ignored.
    ///
    /// # Errors
    /// A message for the operator.
    pub fn load(path: &Path) -> Result<Self, String> {
        let failed = |e: &dyn fmt::Display| format!("{}: {e}", path.display());
        let bytes = secure_path::read_private(path, MAX_FILE).map_err(|e| failed(&e))?;
        let lines = bytes.split(|byte| *byte == b'\n').enumerate();
        let lines = lines.map(|(i, line)| (i + 1, line.trim_ascii()));
        let keys = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#"));
        let keys = keys.map(|(number, line)| {
            let what = "must be 64 hexadecimal digits: create a key with `openssl rand -hex 32`";
            let mut key = Zeroizing::new([0; AES_256_KEY_LEN]);
            // The error of `hex` would contain a digit of the key.
            hex::decode_to_slice(line, &mut *key).map_err(|_| failed(&format_args!("line {number} {what}")))?;
            RandomizedNonceKey::new(&AES_256_GCM, &*key).map_err(|_| failed(&"a key cannot be used"))
        });
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        match keys.len() {
            0 => Err(failed(&"contains no key: create one with `openssl rand -hex 32`")),
            1..=MAX_KEYS => Ok(Self(keys.into())),
            _ => Err(failed(&format_args!(
                "contains more than {MAX_KEYS} keys: remove the last"
            ))),
        }
    }

    /// Seals a value.
    ///
    /// # Errors
    /// [`StateError::TooLong`], and [`StateError::Unavailable`] after an internal error.
    pub(super) fn seal<T: Serialize>(&self, place: &Place, value: &T) -> Result<Vec<u8>, StateError> {
        let failed = |what: &str| StateError::Unavailable(what.to_owned());
        // With enough capacity, the vector is never reallocated, which would leave a copy in memory.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_VALUE + TAG));
        bytes.resize(MAX_VALUE, 0);
        let mut rest = &mut bytes[..];
        serde_json::to_writer(&mut rest, value).map_err(|e| match e.is_io() {
            true => StateError::TooLong(place.kind),
            false => failed("a value cannot be written as JSON"),
        })?;
        let length = MAX_VALUE - rest.len();
        bytes.truncate(length);
        let key = self.0.first().ok_or_else(|| failed("there is no key"))?;
        let nonce = key.seal_in_place_append_tag(Aad::from(&place.bytes), &mut *bytes);
        let nonce = nonce.map_err(|_| failed("a value cannot be encrypted"))?;
        Ok([&nonce.as_ref()[..], &bytes].concat())
    }

    /// Opens a sealed value.
    ///
    /// # Errors
    /// The reason, for the operator.
    pub(super) fn open<T: DeserializeOwned>(&self, place: &Place, sealed: &[u8]) -> Result<T, &'static str> {
        let unknown = "no key of the key file opens it, or it was changed";
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(unknown)?;
        self.0
            .iter()
            .find_map(|key| {
                let mut bytes = Zeroizing::new(sealed.to_vec());
                let opened = key.open_in_place(Nonce::from(nonce), Aad::from(&place.bytes), &mut bytes);
                let value = serde_json::from_slice(opened.ok()?);
                Some(value.map_err(|_| "its value belongs to another version of the service"))
            })
            .unwrap_or(Err(unknown))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({})", self.0.len())
    }
}
