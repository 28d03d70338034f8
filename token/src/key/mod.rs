// SPDX-License-Identifier: MIT OR Apache-2.0

//! Keys to sign and to verify with, each bound to one algorithm.

mod der;
mod ed25519;
mod error;
pub(crate) mod hmac;
mod jwk;
mod pem;
mod rsa;
mod secret;
mod set;
mod signing;
mod verifying;

pub use error::KeyError;
pub use hmac::HmacKey;
pub use set::{KeySet, SkippedKey};
pub use signing::SigningKey;
pub use verifying::VerifyingKey;

/// The shortest secret that is accepted, in bytes: HS256 needs a key at least as long as its hash (RFC 7518 section
/// 3.2).
pub const MIN_KEY_LEN: usize = 32;

/// The fewest bits of an RSA key that is accepted (RFC 7518 section 3.3).
pub const MIN_RSA_BITS: usize = 2048;

/// The most bits of an RSA key that is accepted: each further one costs every verification time.
pub const MAX_RSA_BITS: usize = 4096;

/// The longest `kid` that is accepted, in bytes.
pub const MAX_KID_LEN: usize = 256;

/// The most keys that are taken from one JWKS. To look for the factors of an RSA key takes tens of milliseconds, and
/// an issuer may have any number of them.
pub const MAX_KEYS: usize = 64;
