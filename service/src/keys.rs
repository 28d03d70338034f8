//! The public keys of the issuer, which the agent knows.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use protocol::{Answer, IssuerQuestion, Question};
use token::{Claims, KeySet, Verifier, VerifyError};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use crate::{agent::AgentClient, log::Kind};

/// The interval at which the keys are asked for.
const REFRESH: Duration = Duration::from_secs(60);

/// The shortest interval between two questions that tokens can cause.
const SOONEST: Duration = Duration::from_secs(1);

static UNFETCHED: Kind = Kind::new();

/// The keys of the issuer.
pub struct Keys {
    issuer: String,
    agent: AgentClient,
    known: RwLock<Option<Arc<PublicKeys>>>,
    /// When they were asked for.
    asked: Mutex<Option<Instant>>,
}

/// The keys as they are published.
pub struct PublicKeys {
    /// The JWK Set (RFC 7517 section 5).
    pub jwks: String,
    /// Its entity tag (RFC 9110 section 8.8.3).
    pub etag: String,
    /// The algorithms of the keys, each once.
    pub algorithms: Vec<String>,
    verifier: Verifier,
}

/// The reason why a token was not verified.
pub enum Unverified {
    /// It is not valid.
    Refused(VerifyError),
    /// No keys are known.
    NoKeys,
}

impl Keys {
    /// Starts to fetch the keys of this issuer, as long as the service runs.
    pub fn start(issuer: &str, agent: AgentClient) -> Arc<Self> {
        let keys = Arc::new(Self {
            issuer: issuer.to_owned(),
            agent,
            known: RwLock::default(),
            asked: Mutex::default(),
        });
        tokio::spawn(keep_known(Arc::clone(&keys)));
        keys
    }

    /// Returns the keys, if they are known.
    pub fn known(&self) -> Option<Arc<PublicKeys>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Verifies a token of the issuer, for any audience. The keys are asked for again if it names one that is not known.
    ///
    /// # Errors
    /// [`Unverified`].
    pub async fn verify(&self, token: &str) -> Result<Claims, Unverified> {
        let verify = |keys: Option<Arc<PublicKeys>>| {
            let keys = keys.ok_or(Unverified::NoKeys)?;
            keys.verifier
                .verify(token, SystemTime::now())
                .map_err(Unverified::Refused)
        };
        match verify(self.known()) {
            Err(Unverified::NoKeys | Unverified::Refused(VerifyError::UnknownKid(_))) => {
                self.ask_soon().await;
                verify(self.known())
            }
            verified => verified,
        }
    }

    /// Asks for the keys, unless somebody has done so in the last second.
    async fn ask_soon(&self) {
        let mut asked = self.asked.lock().await;
        if asked.is_none_or(|asked| asked.elapsed() >= SOONEST) {
            if let Err(e) = self.ask().await {
                UNFETCHED.log(format_args!(
                    "the keys of the issuer could not be fetched from the agent: {e}"
                ));
            }
            *asked = Some(Instant::now());
        }
    }

    async fn ask(&self) -> Result<(), String> {
        let question = || Question::Issuer {
            name: self.issuer.clone(),
            question: IssuerQuestion::PublicKeys,
        };
        let Answer::PublicKeys(jwks) = self.agent.ask(question).await? else {
            return Err("the agent answered another question".to_owned());
        };
        let keys = self.public_keys(jwks)?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
        Ok(())
    }

    fn public_keys(&self, jwks: String) -> Result<PublicKeys, String> {
        let (keys, skipped) = KeySet::from_jwks(jwks.as_bytes()).map_err(|e| e.to_string())?;
        if !skipped.is_empty() {
            return Err(format!("{} of the keys of the agent cannot be used", skipped.len()));
        }
        if keys.is_empty() {
            let what =
                "the issuer has no public keys, since HS256 has none: add one with `flux workflow-token rotate add`";
            return Err(what.to_owned());
        }
        let mut algorithms: Vec<String> = keys.iter().map(|key| key.algorithm().to_string()).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        Ok(PublicKeys {
            etag: format!("\"{}\"", URL_SAFE_NO_PAD.encode(digest(&SHA256, jwks.as_bytes()))),
            algorithms,
            jwks,
            verifier: Verifier::new(keys).issuer(&self.issuer).any_audience(),
        })
    }
}

async fn keep_known(keys: Arc<Keys>) {
    loop {
        keys.ask_soon().await;
        let pause = if keys.known().is_some() { REFRESH } else { SOONEST };
        sleep(pause).await;
    }
}
