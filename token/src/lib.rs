// SPDX-License-Identifier: MIT OR Apache-2.0

//! Workflow tokens: reading claims, checking the shape of a token without its key, issuing, and keeping tokens
//! out of logs.
//!
//! Everything here is pure: no Flux, no network, no files, no clock of its own. A function that depends on the time
//! takes it as an argument.
//!
//! | to do this | use |
//! |---|---|
//! | decide whether a text is a token that a service could accept | [`check_shape`] |
//! | show a person what a token says | [`Token::inspect`] |
//! | mint a token as the rabbit software does | [`HmacKey::from_pem`] and [`issue`] |
//! | log the output of a program that handles tokens | [`redact_lines`], [`redact`], [`redact_known`] |
//! | show a text that somebody else chose | [`plain`](plain()) |
//! | protect a service of axum | `RequireToken`, with the feature `axum` |
//! | know without a question for each token whether it is still valid | [`StatusCache`] |
//!
//! No error of this crate holds any part of a token or key, and no type that holds a secret implements `Debug` in a way
//! that shows it.

#![forbid(unsafe_code)]

mod algorithm;
mod claims;
mod date;
mod issue;
mod json;
mod jws;
mod key;
#[cfg(feature = "axum")]
mod layer;
mod malformed;
mod mint;
mod name;
mod object;
mod plain;
mod redact;
mod scope;
mod shape;
mod status_cache;
mod status_claim;
mod status_list;
mod times;
mod verify;

pub use algorithm::{Algorithm, UnknownAlgorithm};
pub use claims::{Claims, JobClaim};
pub use date::NumericDate;
pub use issue::issue;
pub use jws::{Token, UnverifiedClaims};
pub use key::{
    HmacKey, KeyError, KeySet, MAX_KEYS, MAX_KID_LEN, MAX_RSA_BITS, MIN_KEY_LEN, MIN_RSA_BITS, SigningKey, SkippedKey,
    VerifyingKey,
};
#[cfg(feature = "axum")]
pub use layer::{RequireToken, Required};
pub use malformed::{Base64Fault, MAX_LEN, Malformed, Segment};
pub use mint::{ClaimsToIssue, Grant, Job, JobScheduler, mint, workflow_lifetime};
pub use name::{Name, NameError, Session, SessionError};
pub use object::{Denied, ObjectKey, ObjectKeyError, Tokens, authorize};
pub use plain::{is_plain, plain};
pub use redact::{
    MAX_LINE_CHARS, MAX_LINES, MAX_OUTPUT, MAX_SECRETS, REDACTED, holds_token, redact, redact_known, redact_lines,
};
pub use scope::{Scope, TokenKind, UnknownScope};
pub use shape::{LEEWAY, Shape, ShapeError, check_shape};
pub use status_cache::{StatusCache, TokenStatus};
pub use status_claim::{StatusClaim, StatusEntry};
pub use status_list::{MAX_STATUS_ENTRIES, StatusList, StatusListError, StatusListToIssue, sign_status_list};
pub use verify::{MAX_STATUS_TOKEN, Shown, VerifiedStatusList, Verifier, VerifyError};

/// Tests the example in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
