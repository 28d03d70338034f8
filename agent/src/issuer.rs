// SPDX-License-Identifier: MIT OR Apache-2.0

//! The issuer of an instance's tokens, for the token service: returns its public keys, mints tokens for users and
//! clients, and signs responses.
//!
//! The service chooses neither the type nor the structure of what is signed. A response to an introspection has the
//! type `token-introspection+jwt` and no `exp`, so no verifier accepts it as a token.

use std::{
    fmt::Display,
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use delivery::{Engine, Refusal, denied};
use protocol::{
    Answer, DenialCode, Evidence, IssuerQuestion, KeyFigures, MintRequest, SecretText, Subject, TokenFacts, Validity,
};
use seal::ExposeSecret;
use serde_json::{Map, Value, json};
use token::{Claims, ClaimsToIssue, Grant, SigningKey, Token, Verifier};
use tokio::{task::spawn_blocking, time::timeout};
use zeroize::Zeroizing;

mod login;

use crate::{
    narrow::{check_scope, narrow},
    signer::Signer,
    status::{self, Ends, Status},
};

/// The timeout of the file system of the keys.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The type of a response to an introspection (RFC 9701 section 5).
const INTROSPECTION: &str = "token-introspection+jwt";

/// An issuer.
pub struct Issuer {
    signer: Arc<Signer>,
    status: Option<Arc<Status>>,
}

impl Issuer {
    /// Returns the issuer of a configuration, if it has one. Reads nothing.
    ///
    /// # Errors
    /// For the operator: the path of the keys cannot be used.
    pub fn of(engine: &Engine) -> Result<Option<Arc<Self>>, String> {
        let Some(issuer) = &engine.config().issuer else {
            return Ok(None);
        };
        let signer = Arc::new(Signer::of(issuer)?);
        let lists = issuer.status_list.as_deref();
        let status = lists.map(|directory| Arc::new(Status::of(directory, engine.instance(), Arc::clone(&signer))));
        Ok(Some(Arc::new(Self { signer, status })))
    }

    /// Returns the claim `iss` of its tokens.
    pub fn name(&self) -> &str {
        self.signer.name()
    }

    /// Checks that it can sign. Blocks.
    ///
    /// # Errors
    /// For the operator: the keys cannot be read, or no key is active.
    pub fn check(&self) -> Result<(), String> {
        self.signer.sign(|_| ())
    }

    /// Returns its status lists, if any.
    pub fn status(&self) -> Option<&Arc<Status>> {
        self.status.as_ref()
    }

    /// Returns the keys that sign or can be promoted; none if the keys cannot be read. Blocks.
    fn figures(&self) -> Vec<KeyFigures> {
        let Ok(keys) = self.signer.keys() else {
            return Vec::new();
        };
        let keys_of = keys.private().iter().map(|kid| KeyFigures {
            issuer: self.name().to_owned(),
            kid: kid.clone(),
            is_active: keys.signing().is_some_and(|key| key.kid() == kid),
            since: self.signer.made(kid).map(seconds),
        });
        keys_of.collect()
    }

    fn public_keys(&self) -> Answer {
        match self.signer.keys() {
            Ok(keys) => Answer::PublicKeys(keys.verifying().public_jwks()),
            Err(e) => failed(e),
        }
    }

    fn sign(&self, sign: impl FnOnce(&SigningKey) -> Answer) -> Answer {
        self.signer.sign(sign).unwrap_or_else(Answer::Failed)
    }

    fn sign_introspection(&self, audience: &str, response: &str) -> Answer {
        let Ok(response) = serde_json::from_str::<Map<String, Value>>(response) else {
            return failed("the response to an introspection is not a JSON object");
        };
        let iat = seconds(SystemTime::now());
        let claims = json!({
            "iss": self.name(),
            "aud": audience,
            "iat": iat,
            "token_introspection": response,
        });
        self.sign(|key| {
            let signed = key.sign(&[("typ", INTROSPECTION)], claims.to_string().as_bytes());
            Answer::Signed(signed.expose_secret().to_owned())
        })
    }

    fn mint(&self, claims: &ClaimsToIssue) -> Answer {
        self.sign(|key| {
            let token = token::mint(key, claims);
            Answer::Minted(SecretText(Zeroizing::new(token.expose_secret().to_owned())))
        })
    }

    /// Returns whether the claim `iss` of a token, which is not verified here, names this issuer.
    fn is_named_by(&self, token: &str) -> bool {
        Token::inspect(token).is_ok_and(|token| token.claims().as_map().get("iss") == Some(&json!(self.name())))
    }

    /// Verifies a token of this issuer, for any audience. Blocks.
    fn verify(&self, token: &str) -> Result<Claims, Refusal> {
        let keys = self.signer.keys().map_err(|e| Refusal::Unknown(e.to_string()))?;
        let verifier = Verifier::new(Arc::clone(keys.verifying()))
            .issuer(self.name())
            .any_audience();
        let refused = |_| denied(DenialCode::InvalidGrant, "the token is not valid");
        Ok(verifier.verify(token, SystemTime::now()).map_err(refused)?)
    }
}

/// Returns the signing keys of issuers; none if their file system hangs.
pub async fn figures(issuers: Vec<Arc<Issuer>>) -> Vec<KeyFigures> {
    let all = move || {
        let mut keys: Vec<_> = issuers.iter().flat_map(|issuer| issuer.figures()).collect();
        keys.sort_unstable_by(|a, b| (&a.issuer, &a.kid).cmp(&(&b.issuer, &b.kid)));
        // Several instances may have the same issuer.
        keys.dedup();
        keys
    };
    match timeout(TIMEOUT, spawn_blocking(all)).await {
        Ok(Ok(keys)) => keys,
        _ => Vec::new(),
    }
}

/// Returns a time, in seconds since 1970-01-01T00:00:00Z.
fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Answers questions about the validity of tokens and about their jobs, and revokes tokens.
pub trait Checks: Ends {
    /// Returns whether a token is still valid.
    fn check(&self, token: TokenFacts) -> impl Future<Output = Validity> + Send;

    /// Returns the jobs of a user that hold tokens.
    fn held(&self, uid: u32) -> impl Future<Output = Answer> + Send;

    /// Revokes tokens, and keeps the revocation for `keep_secs` seconds.
    fn revoke(&self, subject: Subject, keep_secs: u64) -> impl Future<Output = Answer> + Send;
}

/// Answers a question to the issuer with this name, using the engine of its configuration. Several instances may name
/// the same issuer: only their status lists differ.
pub async fn answer(
    known: impl IntoIterator<Item = (Arc<Issuer>, Arc<Engine>)>,
    checks: &impl Checks,
    name: &str,
    question: IssuerQuestion,
) -> Answer {
    let known: Vec<_> = known.into_iter().collect();
    let statuses = known
        .iter()
        .filter_map(|(issuer, _)| issuer.status().cloned())
        .collect();
    let Some((issuer, engine)) = known.into_iter().next() else {
        let name = name.escape_debug();
        return failed(format!(
            "no configuration of the agent has the issuer {name}: set the key name of [workflow-token.issuer], or correct the \
             key issuer of the service"
        ));
    };
    match question {
        IssuerQuestion::PublicKeys => blocking(move || issuer.public_keys()).await,
        IssuerQuestion::SignIntrospection { audience, response } => {
            blocking(move || issuer.sign_introspection(&audience, &response)).await
        }
        IssuerQuestion::Mint(request) => match claims(&issuer, &engine, checks, &request).await {
            Ok(claims) => blocking(move || issuer.mint(&claims)).await,
            Err(Refusal::Denied(denial)) => Answer::Denied(denial),
            Err(Refusal::Unknown(why)) => failed(why),
        },
        IssuerQuestion::Login(question) => login::answer(&issuer, &engine, checks, question).await,
        IssuerQuestion::StatusLists => status::numbers(statuses).await,
        IssuerQuestion::StatusList { number } => status::signed(statuses, checks, number).await,
    }
}

/// Returns the claims of the requested token.
async fn claims(
    issuer: &Arc<Issuer>,
    engine: &Engine,
    checks: &impl Checks,
    request: &MintRequest,
) -> Result<ClaimsToIssue, Refusal> {
    if let Evidence::Token(token) = &request.evidence
        && issuer.is_named_by(&token.0)
    {
        let (verifier, token) = (Arc::clone(issuer), token.clone());
        let verified = timeout(TIMEOUT, spawn_blocking(move || verifier.verify(&token.0))).await;
        let claims = match verified {
            Ok(Ok(verified)) => verified?,
            _ => {
                return Err(Refusal::Unknown(
                    "the file system of the keys does not answer".to_owned(),
                ));
            }
        };
        // The time is taken before the check: a revocation that is stored meanwhile also applies to the new token.
        let now = SystemTime::now();
        let facts = TokenFacts::of(&claims);
        let facts = facts.ok_or_else(|| denied(DenialCode::InvalidGrant, "the job id in the token is malformed"))?;
        match checks.check(facts).await {
            Validity::Active => return Ok(narrow(issuer.name(), &claims, request, now)?),
            Validity::Unknown(why) => return Err(Refusal::Unknown(why)),
            Validity::Ended(_) => return Err(denied(DenialCode::InvalidGrant, "the job of the token has ended").into()),
            Validity::Revoked => return Err(denied(DenialCode::InvalidGrant, "the token was revoked").into()),
        }
    }
    let granted = match &request.evidence {
        Evidence::Login(ticket) => login::grant(issuer, engine, checks, request, ticket).await?,
        _ => engine.grant(issuer.name(), request).await?,
    };
    let workspaces = granted.workspaces.iter().map(|workspace| workspace.parse());
    let workspaces = workspaces
        .collect::<Result<_, token::NameError>>()
        .map_err(|e| Refusal::Unknown(e.to_string()))?;
    let grant = if granted.is_client {
        Grant::System(workspaces)
    } else {
        Grant::Workspaces(workspaces)
    };
    check_scope(request, &grant)?;
    Ok(ClaimsToIssue {
        iss: issuer.name().to_owned(),
        sub: granted.sub,
        aud: granted.audience,
        iat: SystemTime::now(),
        lifetime: granted.lifetime,
        grant,
        status: None,
    })
}

async fn blocking(answer: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    match timeout(TIMEOUT, spawn_blocking(answer)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => failed("an internal error"),
        Err(_) => failed("the file system of the keys does not answer"),
    }
}

fn failed(why: impl Display) -> Answer {
    Answer::Failed(why.to_string())
}

#[cfg(test)]
mod tests;
