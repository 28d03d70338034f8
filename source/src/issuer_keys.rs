//! The keys of an issuer, from any source.

use std::sync::Arc;

use token::KeySet;

use crate::Error;

/// The keys of one issuer. Calls may block: they are for worker threads of the tokio runtime.
pub trait IssuerKeys: Send + Sync {
    /// Returns the known keys. They are read again if that costs little.
    fn known(&self) -> Lookup<KeySet>;

    /// Returns the keys after a token named a key that was not among them. An issuer that was asked just now is not
    /// asked again; the result is then that of [`IssuerKeys::known`].
    fn asked_again(&self, kid: &str) -> Lookup<KeySet>;
}

/// A look-up of keys.
#[derive(Debug)]
pub struct Lookup<T> {
    /// The keys, or why none are available.
    pub result: Result<Arc<T>, Error>,
    /// Lines for the operator's log, free of secrets: for example, that the former keys remain in use.
    pub notes: Vec<String>,
}
