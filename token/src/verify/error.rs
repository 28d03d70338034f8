// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt;
use std::time::SystemTime;

use crate::malformed::Malformed;
use crate::{Algorithm, NumericDate, StatusListError, is_plain};

/// The reason why a token is refused. Holds nothing of the token but times, and names that whoever made it chose, made
/// printable.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The text is not a JWS, or its claims are not JSON.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The header says `"alg":"none"` (RFC 8725 section 3.2).
    #[error("the token is unsecured (\"alg\":\"none\"): anyone could have made it; have its issuer sign it")]
    Unsecured,
    /// An algorithm that is not one of [`Algorithm`].
    #[error("the token is signed by {0}, which is not accepted: have its issuer use EdDSA, ES256, RS256 or HS256")]
    UnknownAlgorithm(Shown),
    /// The header names HS256, and the key is a public one, which everyone has (RFC 8725 section 2.1).
    #[error(
        "the token says to be signed by HS256 with a public {key} key as the secret: \
         that is an attack, or its issuer names the wrong key"
    )]
    PublicKeyAsSecret {
        /// The algorithm of the key.
        key: Algorithm,
    },
    /// The header names another algorithm than that of its key (RFC 8725 section 3.1).
    #[error(
        "the token says to be signed by {token}, and its key is for {key} only: see which key its issuer signs with"
    )]
    OtherAlgorithm {
        /// The algorithm of the key.
        key: Algorithm,
        /// The algorithm in the header.
        token: Algorithm,
    },
    /// The header carries a key, or says where to get one (RFC 8725 section 3.10).
    #[error(
        "the token's header brings a key of its own (`{0}`), which is not accepted: have its issuer use `kid` only"
    )]
    EmbeddedKey(&'static str),
    /// The header says that an extension must be understood, and none is (RFC 7515 section 4.1.11).
    #[error("the token's header demands the extension {0}, which is not supported: have its issuer leave it out")]
    Critical(Shown),
    /// A member of the header of the wrong type, or a `crit` with no name in it.
    #[error("the `{0}` of the token's header is not as it must be: have its issuer correct it")]
    HeaderMember(&'static str),
    /// The header's `typ` is not one that is accepted, or it has none where one is demanded (RFC 8725 section 3.11).
    #[error("the token is of type {0}, which is not accepted here: use a token that was issued for this purpose")]
    WrongType(Shown),
    /// No key at all.
    #[error("there are no keys to verify tokens with: configure some, or see why none could be read")]
    NoKeys,
    /// The header has no `kid`, and there are several keys, of which no one is the only one for the algorithm.
    #[error(
        "the token's header has no `kid`, and there are several keys, of which not exactly one is for its algorithm: \
         have its issuer name the key"
    )]
    NoKid,
    /// The header's `kid` is not that of any key. A key set that is kept up to date may have it when it was read again.
    #[error(
        "the token is signed with the key {0}, which is not known: see whether its issuer's keys are up to date here"
    )]
    UnknownKid(Shown),
    /// The signature is not one of this token by its key.
    #[error("the token's signature is wrong: it was altered, or signed with another key of the same name")]
    BadSignature,
    /// A claim is missing that must be there.
    #[error("the token has no claim `{0}`: have its issuer add it")]
    Missing(&'static str),
    /// A claim is not of the type, or in the form, that it must have.
    #[error("the claim `{0}` is not as it must be: have its issuer correct it")]
    InvalidClaim(&'static str),
    /// `exp` has passed.
    #[error("the token expired {}, at {at}: get a fresh one, and compare the clocks", .at.relative_to(*.now))]
    Expired {
        /// The token's `exp`.
        at: NumericDate,
        /// The time when it was checked.
        now: SystemTime,
    },
    /// `nbf` has not come.
    #[error("the token is not valid before {at}, {}: compare this clock with that of its issuer", .at.relative_to(*.now))]
    NotYet {
        /// The token's `nbf`.
        at: NumericDate,
        /// The time when it was checked.
        now: SystemTime,
    },
    /// `iss` is another one (RFC 8725 section 3.8).
    #[error("the token is of the issuer {0}, which is not the one that is accepted here")]
    WrongIssuer(Shown),
    /// `aud` has none of those that are accepted (RFC 8725 section 3.9).
    #[error("the token is for {0}, and not for this service: ask its issuer for one with this service as its audience")]
    WrongAudience(Shown),
    /// The job that it is of runs in another Flux instance.
    #[error("the token is of a job of the Flux instance {0}, and not of the one that is accepted here")]
    WrongInstance(Shown),
    /// A Status List Token whose list cannot be read.
    #[error(transparent)]
    StatusList(#[from] StatusListError),
}

/// A name that whoever made a token chose, as it may be shown: quoted, of a limited length, without characters that
/// are not [plain](is_plain).
#[derive(Clone, PartialEq, Eq)]
pub struct Shown(Box<str>);

impl Shown {
    const MAX_CHARS: usize = 64;

    pub(crate) fn new(name: &str) -> Self {
        let mut shown: String = name
            .chars()
            .take(Self::MAX_CHARS)
            .map(|c| if is_plain(c) && c != '"' { c } else { '?' })
            .collect();
        if shown.len() < name.len() && name.chars().nth(Self::MAX_CHARS).is_some() {
            shown.push('…');
        }
        Self(shown.into())
    }

    /// The name, cut where it is long.
    ///
    /// ```
    #[doc = include_str!("../doc_example.txt")]
    /// match Verifier::new(keys).audience("files").verify(token, now) {
    ///     Err(VerifyError::WrongAudience(audience)) => assert_eq!(audience.as_str(), "copy-offload"),
    ///     result => panic!("{result:?}"),
    /// }
    /// ```
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
