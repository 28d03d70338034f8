// SPDX-License-Identifier: MIT OR Apache-2.0

//! The public keys of the issuer, which the service gets from the agent.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use protocol::{Answer, IssuerQuestion, Question};
use token::{Claims, KeySet, NumericDate, Verifier, VerifyError};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep},
};

use crate::{
    agent::AgentClient,
    log::Kind,
    recent::{Recent, key},
};

/// The interval between refreshes of the keys.
const REFRESH: Duration = Duration::from_secs(60);

/// The shortest interval between refreshes that tokens with unknown keys cause.
const SOONEST: Duration = Duration::from_secs(1);

/// How long a verified token is not verified again.
const VERIFIED: Duration = Duration::from_secs(10);

/// The maximum number of verified tokens in a generation of the cache, and the maximum length of one in bytes. The cache takes about 15 MB.
const MOST: (usize, usize) = (2_000, 4096);

static UNFETCHED: Kind = Kind::new();

/// The keys of the issuer.
pub struct Keys {
    issuer: String,
    agent: AgentClient,
    known: RwLock<Option<Arc<PublicKeys>>>,
    /// The time of the last refresh.
    asked: Mutex<Option<Instant>>,
}

/// The published keys.
pub struct PublicKeys {
    /// The JWK Set (RFC 7517 section 5).
    pub jwks: String,
    /// Its entity tag (RFC 9110 section 8.8.3).
    pub etag: String,
    /// The algorithms of the keys, without duplicates.
    pub algorithms: Vec<String>,
    verifier: Verifier,
    verified: Recent<Arc<Verified>>,
}

/// A token that these keys have verified.
struct Verified {
    claims: Claims,
    at: SystemTime,
}

impl Verified {
    /// Returns whether the verification still holds. It does not if the token has expired, or if somebody set the clock back.
    fn is_good(&self, now: SystemTime) -> bool {
        let age = now.duration_since(self.at);
        age.is_ok_and(|age| age < VERIFIED) && NumericDate::from(now) < self.claims.exp()
    }
}

impl PublicKeys {
    fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, VerifyError> {
        let key = key(token);
        if let Some(verified) = self.verified.get(&key).filter(|verified| verified.is_good(now)) {
            return Ok(verified.claims.clone());
        }
        let claims = self.verifier.verify(token, now)?;
        if token.len() <= MOST.1 {
            let verified = Verified {
                claims: claims.clone(),
                at: now,
            };
            self.verified.insert(key, Arc::new(verified));
        }
        Ok(claims)
    }
}

/// The reason why a token could not be verified.
pub enum Unverified {
    /// The token is not valid.
    Refused(VerifyError),
    /// No keys are known yet.
    NoKeys,
}

impl Keys {
    /// Starts to fetch the keys of an issuer, for the lifetime of the service.
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

    /// Returns the keys, or `None` before the first successful fetch.
    pub fn known(&self) -> Option<Arc<PublicKeys>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Verifies a token of the issuer, for any audience. If the token names an unknown key, the keys are fetched again.
    ///
    /// # Errors
    /// [`Unverified`].
    pub async fn verify(&self, token: &str) -> Result<Claims, Unverified> {
        let verify = |keys: Option<Arc<PublicKeys>>| {
            let keys = keys.ok_or(Unverified::NoKeys)?;
            keys.verify(token, SystemTime::now()).map_err(Unverified::Refused)
        };
        match verify(self.known()) {
            Err(Unverified::NoKeys | Unverified::Refused(VerifyError::UnknownKid(_))) => {
                self.ask_soon().await;
                verify(self.known())
            }
            verified => verified,
        }
    }

    /// Fetches the keys, unless they were fetched in the last second.
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
            return Err("the agent sent an unexpected reply".to_owned());
        };
        let keys = self.public_keys(jwks)?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
        Ok(())
    }

    fn public_keys(&self, jwks: String) -> Result<PublicKeys, String> {
        let (keys, skipped) = KeySet::from_jwks(jwks.as_bytes()).map_err(|e| e.to_string())?;
        if !skipped.is_empty() {
            return Err(format!("{} of the agent's keys cannot be used", skipped.len()));
        }
        if keys.is_empty() {
            let what =
                "the issuer has no public keys, since HS256 has none: add one with `[flux] workflow-token rotate add`";
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
            verified: Recent::new(VERIFIED, MOST.0),
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

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use token::{Algorithm, ClaimsToIssue, Grant, SigningKey, mint};

    use super::*;

    #[test]
    fn a_token_that_was_verified_is_refused_once_it_has_expired() {
        let key = SigningKey::generate(Algorithm::EdDsa);
        let keys = PublicKeys {
            jwks: String::new(),
            etag: String::new(),
            algorithms: Vec::new(),
            verifier: Verifier::new(KeySet::from(key.verifying_key()))
                .issuer("i")
                .any_audience(),
            verified: Recent::new(VERIFIED, MOST.0),
        };
        let now = SystemTime::now();
        let claims = ClaimsToIssue {
            iss: "i".to_owned(),
            sub: "alice".to_owned(),
            aud: vec!["a".to_owned()],
            iat: now,
            lifetime: Duration::from_secs(60),
            grant: Grant::Cluster,
            status: None,
        };
        let token = mint(&key, &claims);
        let token = token.expose_secret();
        let verify = |token: &str, seconds| keys.verify(token, now + Duration::from_secs(seconds));
        for _ in 0..2 {
            assert_eq!(
                verify(token, 1).map(|claims| claims.sub().map(str::to_owned)),
                Ok(Some("alice".to_owned()))
            );
        }
        assert!(verify(token, 119).is_ok(), "the clocks may be a minute apart");
        assert!(matches!(verify(token, 200), Err(VerifyError::Expired { .. })));
        // The clock was set back.
        assert!(matches!(
            keys.verify(token, now - Duration::from_secs(3600)),
            Err(VerifyError::NotYet { .. })
        ));
        let mut other = token.to_owned();
        other.pop();
        assert!(verify(&other, 1).is_err());
    }
}
