// SPDX-License-Identifier: MIT OR Apache-2.0

//! Verifies tokens against the keys of their issuer, for `check = "verify"` and the command `verify`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use token::{Claims, KeySet, Verifier, VerifyError};

pub use crate::issuer_keys::{IssuerKeys, Lookup};
use crate::{Error, JwksClient, keys::KeyStore};

/// Verifies the signatures and the required claims of tokens of one issuer.
pub struct TokenVerifier {
    keys: Arc<dyn IssuerKeys>,
    issuer: String,
    audience: Vec<String>,
    types: Vec<String>,
    leeway: Duration,
}

/// The reason why a token was rejected.
#[derive(Debug)]
pub enum Unverified {
    /// The token is not valid.
    Refused(VerifyError),
    /// No keys are available.
    NoKeys(Error),
}

impl TokenVerifier {
    /// Returns the verifier of a table `trust.NAME`. It reads nothing and sends nothing before the first token.
    ///
    /// # Errors
    /// The key of the table that is invalid on this machine, and the cause.
    pub fn new(trust: &config::Trust) -> Result<Self, String> {
        let expand = |key: &str, path| {
            crate::expand(path).map_err(|e| format!("workflow-token.trust.{}.{key}: {e}", trust.name))
        };
        let keys: Arc<dyn IssuerKeys> = match &trust.keys {
            config::TrustedKeys::Path(path) => KeyStore::verifying(expand("keys", path)?),
            config::TrustedKeys::Secret(path) => KeyStore::secret(expand("secret", path)?),
            config::TrustedKeys::Discovered(discovery) => JwksClient::of(&trust.issuer, discovery),
        };
        Ok(Self {
            keys,
            issuer: trust.issuer.clone(),
            audience: trust.audience.clone(),
            types: trust.types.clone(),
            leeway: trust.leeway,
        })
    }

    /// Returns a verifier with the same settings that accepts tokens of these types.
    #[must_use]
    pub fn of_types(&self, types: &[&str]) -> Self {
        Self {
            keys: Arc::clone(&self.keys),
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            types: types.iter().map(|&typ| typ.to_owned()).collect(),
            leeway: self.leeway,
        }
    }

    /// Verifies a token. Blocks, see [`IssuerKeys`]. The notes are for the operator's log.
    pub fn verify(&self, token: &str, now: SystemTime) -> (Result<Claims, Unverified>, Vec<String>) {
        let Lookup { result, mut notes } = self.keys.known();
        let keys = match result {
            Ok(keys) => keys,
            Err(e) => return (Err(Unverified::NoKeys(e)), notes),
        };
        let verified = match self.verifier(keys).verify(token, now) {
            Err(VerifyError::UnknownKid(kid)) => {
                let again = self.keys.asked_again(kid.as_str());
                notes.extend(again.notes);
                match again.result {
                    Ok(keys) => self.verifier(keys).verify(token, now),
                    Err(e) => return (Err(Unverified::NoKeys(e)), notes),
                }
            }
            verified => verified,
        };
        (verified.map_err(Unverified::Refused), notes)
    }

    fn verifier(&self, keys: Arc<KeySet>) -> Verifier {
        let verifier = Verifier::new(keys).issuer(&self.issuer).leeway(self.leeway);
        let verifier = self.audience.iter().fold(verifier, Verifier::audience);
        self.types.iter().fold(verifier, Verifier::typ)
    }
}
