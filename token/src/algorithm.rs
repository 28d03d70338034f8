// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt;
use std::str::FromStr;

/// A signature algorithm. Each key signs and verifies by only one (RFC 8725 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// Ed25519 (RFC 8032, RFC 8037 section 3.1), the default.
    EdDsa,
    /// ECDSA on the curve P-256, with SHA-256 (RFC 7518 section 3.4).
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518 section 3.3).
    Rs256,
    /// HMAC with SHA-256 (RFC 7518 section 3.2): who can verify can also sign.
    Hs256,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 4] = [Self::EdDsa, Self::Es256, Self::Rs256, Self::Hs256];

    /// The name in the header's `alg`.
    ///
    /// ```
    /// assert_eq!(token::Algorithm::EdDsa.as_str(), "EdDSA");
    /// ```
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
            Self::Hs256 => "HS256",
        }
    }

    /// Returns whether the key that verifies is public; it is the secret itself otherwise.
    ///
    /// ```
    /// use token::Algorithm;
    ///
    /// assert!(Algorithm::Es256.is_asymmetric());
    /// assert!(!Algorithm::Hs256.is_asymmetric());
    /// ```
    pub fn is_asymmetric(self) -> bool {
        self != Self::Hs256
    }

    /// The algorithm of that name in a header or key. `Ed25519` is what RFC 9864 section 2.2 calls EdDSA with that
    /// curve.
    pub(crate) fn from_jose(name: &str) -> Option<Self> {
        match name {
            "EdDSA" | "Ed25519" => Some(Self::EdDsa),
            "ES256" => Some(Self::Es256),
            "RS256" => Some(Self::Rs256),
            "HS256" => Some(Self::Hs256),
            _ => None,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not the name of an [`Algorithm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an algorithm: use EdDSA, ES256, RS256 or HS256")]
pub struct UnknownAlgorithm;

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    /// Takes the names as a person types them, without regard to case; in tokens and keys, case counts.
    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str().eq_ignore_ascii_case(name))
            .ok_or(UnknownAlgorithm)
    }
}
