// SPDX-License-Identifier: MIT OR Apache-2.0

//! The keys of an issuer, from any source.

use std::sync::Arc;

use token::KeySet;

use crate::Error;

/// The keys of one issuer. Calls may block, so make them on blocking threads of the tokio runtime.
pub trait IssuerKeys: Send + Sync {
    /// Returns the known keys. Cheap sources read them again.
    fn known(&self) -> Lookup<KeySet>;

    /// Returns the keys after a token named an unknown key, and fetches them again for that. Fetches are rate-limited;
    /// if the limit is reached, this returns the result of [`IssuerKeys::known`].
    fn asked_again(&self, kid: &str) -> Lookup<KeySet>;
}

/// A look-up of keys.
#[derive(Debug)]
pub struct Lookup<T> {
    /// The keys, or the reason why none are available.
    pub result: Result<Arc<T>, Error>,
    /// Lines for the operator's log, without secrets: for example, that the former keys remain in use.
    pub notes: Vec<String>,
}
