//! Verifying tokens of others, and our own, against the keys of their issuer: `check = "verify"`, and the command
//! `verify`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use token::{Claims, KeySet, Verifier, VerifyError};

use crate::{Error, JwksClient, keys::KeyStore};

/// The keys of one issuer, wherever they come from. Its calls may block: they are for worker threads, of the tokio runtime,
/// where what is to be awaited is.
pub trait IssuerKeys: Send + Sync {
    /// The keys, as far as they are known. Where looking again costs little, it is looked again.
    fn known(&self) -> Looked<KeySet>;

    /// The same, after a token named a key that was not among them. An issuer that was asked just now is not asked again,
    /// and the answer is that of [`IssuerKeys::known`].
    fn asked_again(&self, kid: &str) -> Looked<KeySet>;
}

/// What there is of keys.
#[derive(Debug)]
pub struct Looked<T> {
    /// Them, or why there are none.
    pub result: Result<Arc<T>, Error>,
    /// Lines for the operator's log, free of secrets: such as that it goes on with those that were there before.
    pub notes: Vec<String>,
}

/// Verifies tokens of one issuer: its keys, and what the tokens must say.
pub struct TokenVerifier {
    keys: Arc<dyn IssuerKeys>,
    issuer: String,
    audience: Vec<String>,
    types: Vec<String>,
    leeway: Duration,
}

/// The name that the plugin still uses.
pub type Trusted = TokenVerifier;

/// Why a token was not found good.
#[derive(Debug)]
pub enum Unverified {
    /// It is not.
    Refused(VerifyError),
    /// There are no keys to tell by.
    NoKeys(Error),
}

impl TokenVerifier {
    /// The issuer of a table `trust.NAME`. Nothing is read, and nobody is asked, before the first token.
    ///
    /// # Errors
    /// The key of the table that is wrong where this runs, and what is wrong with it.
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

    /// Verifies a token. Blocks, as [`IssuerKeys`] says. The notes are for the operator's log.
    pub fn verify(&self, token: &str, now: SystemTime) -> (Result<Claims, Unverified>, Vec<String>) {
        let Looked { result, mut notes } = self.keys.known();
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
