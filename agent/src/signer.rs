// SPDX-License-Identifier: MIT OR Apache-2.0

//! Signs with the keys of an issuer.

use std::{sync::Arc, time::SystemTime};

use source::keys::{KeyStore, Keys, KeysError};
use token::SigningKey;

/// An issuer and its keys.
pub struct Signer {
    name: String,
    keys: Arc<KeyStore>,
}

impl Signer {
    /// Returns the signer of an issuer. Reads nothing.
    ///
    /// # Errors
    /// For the operator: the path of the keys cannot be used.
    pub fn of(issuer: &config::Issuer) -> Result<Self, String> {
        let keys = source::expand(&issuer.keys).map_err(|e| format!("workflow-token.issuer.keys: {e}"))?;
        Ok(Self {
            name: issuer.name.clone(),
            keys: KeyStore::signing(keys),
        })
    }

    /// Returns the claim `iss` of its tokens.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the current keys, and logs problems with their files. Blocks.
    ///
    /// # Errors
    /// The keys have never been readable.
    pub fn keys(&self) -> Result<Arc<Keys>, KeysError> {
        let (keys, warnings) = self.keys.keys();
        for warning in warnings {
            eprintln!("workflow-token-agent: {warning}");
        }
        keys
    }

    /// Returns the creation time of a key, if known. Blocks.
    pub fn made(&self, kid: &str) -> Option<SystemTime> {
        self.keys.made(kid)
    }

    /// Signs with the active key. Blocks.
    ///
    /// # Errors
    /// For the operator: the keys cannot be read, or no key is active.
    pub fn sign<T>(&self, sign: impl FnOnce(&SigningKey) -> T) -> Result<T, String> {
        let keys = self.keys().map_err(|e| e.to_string())?;
        let key = keys.signing();
        let key = key.ok_or("no key is the active one: promote one with `[flux] workflow-token rotate promote`")?;
        Ok(sign(key))
    }
}
