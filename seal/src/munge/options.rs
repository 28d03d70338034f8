// SPDX-License-Identifier: MIT OR Apache-2.0

//! The options of a credential, munge_ctx(3).

use std::{ffi::c_int, str::FromStr};

use munge_sys as sys;

/// Symmetric ciphers. Encryption cannot be disabled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cipher {
    /// AES CBC with a 128-bit key.
    Aes128,
    /// AES CBC with a 256-bit key.
    #[default]
    Aes256,
}

/// Message authentication codes. Broken ones are not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mac {
    /// SHA-256.
    #[default]
    Sha256,
    /// SHA-512.
    Sha512,
}

/// Time to live of a credential. A job that starts later can still open it, see
/// [`crate::Staleness`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ttl {
    /// The default of munged, 300 s unless configured otherwise.
    #[default]
    Default,
    /// The maximum of munged, 3600 s unless configured otherwise.
    Maximum,
    /// Seconds.
    Seconds(u32),
}

impl Cipher {
    pub(super) fn code(self) -> c_int {
        (match self {
            Cipher::Aes128 => sys::munge_cipher_MUNGE_CIPHER_AES128,
            Cipher::Aes256 => sys::munge_cipher_MUNGE_CIPHER_AES256,
        }) as c_int
    }
}

impl Mac {
    pub(super) fn code(self) -> c_int {
        (match self {
            Mac::Sha256 => sys::munge_mac_MUNGE_MAC_SHA256,
            Mac::Sha512 => sys::munge_mac_MUNGE_MAC_SHA512,
        }) as c_int
    }
}

impl Ttl {
    pub(super) fn code(self) -> c_int {
        match self {
            Ttl::Default => sys::munge_ttl_MUNGE_TTL_DEFAULT as c_int,
            Ttl::Maximum => sys::munge_ttl_MUNGE_TTL_MAXIMUM as c_int,
            Ttl::Seconds(seconds) => c_int::try_from(seconds).unwrap_or(c_int::MAX),
        }
    }
}

/// Parses the names of munge(1).
impl FromStr for Cipher {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "aes128" => Ok(Cipher::Aes128),
            "aes256" => Ok(Cipher::Aes256),
            _ => Err("use aes128 or aes256".to_owned()),
        }
    }
}

/// Parses the names of munge(1).
impl FromStr for Mac {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "sha256" => Ok(Mac::Sha256),
            "sha512" => Ok(Mac::Sha512),
            _ => Err("use sha256 or sha512".to_owned()),
        }
    }
}
