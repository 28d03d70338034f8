// SPDX-License-Identifier: MIT OR Apache-2.0

//! Logins, for the token service: issues tickets, and decides on requests with a ticket.
//!
//! A ticket is a JWT of a type of its own, which no service accepts as a token. The token service keeps it for the user
//! and presents it with each request. So the agent decides each time and stores nothing.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use delivery::{Engine, Granted, Refusal, denied};
use protocol::{
    Answer, Bound, DenialCode, FinishLogin, Held, JobLogin, LoggedIn, LoginQuestion, MintRequest, SecretText, Subject,
    TokenFacts, UserRequest, Validity,
};
use seal::ExposeSecret;
use serde_json::{Value, json};
use source::LoginStore;
use token::{Claims, NumericDate, Verifier};
use tokio::{task::spawn_blocking, time::timeout};
use zeroize::Zeroizing;

use super::{Checks, Issuer, TIMEOUT, failed, seconds};

/// The type of a ticket.
const TICKET: &str = "workflow-token-login+jwt";

/// The type of the proof of a user who will log in for jobs.
const BINDING: &str = "workflow-token-binding+jwt";

/// The time within which the user must log in for jobs.
const BINDING_LIFETIME: Duration = Duration::from_secs(900);

/// The time for which the revocation of tokens with unknown expiry is kept, in seconds: 30 days.
const UNKNOWN: u64 = 30 * 86_400;

/// The time for which a revocation is kept beyond the expiry of the tokens, in seconds, to allow for clock skew.
const CLOCKS: u64 = 600;

/// Answers a question about logins.
pub(super) async fn answer(
    issuer: &Arc<Issuer>,
    engine: &Engine,
    checks: &impl Checks,
    question: LoginQuestion,
) -> Answer {
    let answered = match question {
        LoginQuestion::Begin(begin) => engine.login_address(&begin).await.map(Answer::LoginAt),
        LoginQuestion::Finish(finish) => log_in(issuer, engine, &finish).await,
        LoginQuestion::LogoutToken(token) => engine.logged_out(&token).await.map(Answer::LoggedOut),
        LoginQuestion::Bind(credential) => bind(issuer, engine, &credential).await,
        LoginQuestion::JobLogin { request, credential } => job_login(issuer, engine, request, &credential).await,
        LoginQuestion::User { ticket, request } => user(issuer, engine, checks, &ticket, request).await,
    };
    answered.unwrap_or_else(|refusal| match refusal {
        Refusal::Denied(denial) => Answer::Denied(denial),
        Refusal::Unknown(why) => failed(why),
    })
}

async fn log_in(issuer: &Arc<Issuer>, engine: &Engine, finish: &FinishLogin) -> Result<Answer, Refusal> {
    let bound = match &finish.binding {
        Some(proof) => Some(uid(&verified(issuer, BINDING, proof).await?)?),
        None => None,
    };
    let login = engine.log_in(finish).await?;
    let uid = login.owner.uid();
    if let Some(bound) = bound {
        if bound != uid {
            let why = "you logged in as another user than the one whose jobs the login is for";
            return Err(denied(DenialCode::InvalidGrant, why).into());
        }
        let why = "the provider gave no refresh token, which the jobs need";
        let token = login
            .refresh_token
            .ok_or_else(|| denied(DenialCode::InvalidGrant, why))?;
        let store = store(engine)?;
        let id_token = login.id_token;
        in_time(move || store.store(uid, &token, &id_token))
            .await?
            .map_err(|e| Refusal::Unknown(e.to_string()))?;
    }
    let now = now();
    let expires = now.saturating_add(login.max_session.as_secs());
    let claims = json!({
        "iss": issuer.name(),
        "aud": issuer.name(),
        "sub": login.name,
        "uid": uid,
        "provider": login.provider,
        "iat": now,
        "exp": expires,
        "jti": random_id(),
    });
    Ok(Answer::LoggedIn(Box::new(LoggedIn {
        ticket: sign(issuer, TICKET, claims).await?,
        user: login.name,
        uid,
        projects: login.projects,
        expires,
        session: login.session,
        end_session: login.end_session,
    })))
}

async fn bind(issuer: &Arc<Issuer>, engine: &Engine, credential: &SecretText) -> Result<Answer, Refusal> {
    // Fail before the user logs in if logins do not serve jobs.
    store(engine)?;
    let (owner, user) = engine.bound(issuer.name(), JobLogin::Begin, credential).await?;
    let now = now();
    let claims = json!({
        "iss": issuer.name(),
        "aud": issuer.name(),
        "uid": owner.uid(),
        "iat": now,
        "exp": now + BINDING_LIFETIME.as_secs(),
    });
    let proof = sign(issuer, BINDING, claims).await?;
    Ok(Answer::Bound(Bound { user, proof }))
}

async fn job_login(
    issuer: &Arc<Issuer>,
    engine: &Engine,
    request: JobLogin,
    credential: &SecretText,
) -> Result<Answer, Refusal> {
    let store = store(engine)?;
    let (owner, _) = engine.bound(issuer.name(), request, credential).await?;
    let uid = owner.uid();
    match request {
        JobLogin::End => end(store, uid).await,
        JobLogin::Begin | JobLogin::Status => since(store, uid).await,
    }
}

async fn end(store: LoginStore, uid: u32) -> Result<Answer, Refusal> {
    let ended = in_time(move || store.remove(uid)).await?;
    ended.map_err(|e| Refusal::Unknown(e.to_string()))?;
    Ok(Answer::JobLogin(None))
}

async fn since(store: LoginStore, uid: u32) -> Result<Answer, Refusal> {
    let since = in_time(move || store.since(uid)).await?;
    let since = since.map_err(|e| Refusal::Unknown(e.to_string()))?;
    Ok(Answer::JobLogin(since.map(seconds)))
}

/// Answers a request of a user with a ticket.
async fn user(
    issuer: &Arc<Issuer>,
    engine: &Engine,
    checks: &impl Checks,
    ticket: &SecretText,
    request: UserRequest,
) -> Result<Answer, Refusal> {
    let uid = uid(&active(issuer, checks, ticket).await?)?;
    match (request, engine.login_store()) {
        (UserRequest::JobLogin | UserRequest::EndJobLogin, None) => Ok(Answer::JobLogin(None)),
        (UserRequest::JobLogin, Some(store)) => since(store, uid).await,
        (UserRequest::EndJobLogin, Some(store)) => end(store, uid).await,
        (UserRequest::Revoke { instance, jobid }, _) => {
            let Answer::Held(held) = checks.held(uid).await else {
                return Err(Refusal::Unknown("the jobs of the user are not known".to_owned()));
            };
            let is_this = |held: &&Held| held.job.jobid == jobid && held.job.instance == instance;
            let none = || denied(DenialCode::InvalidGrant, "you have no such job that holds tokens");
            let held = held.iter().find(is_this).ok_or_else(none)?;
            // After that, the tokens have expired, or the job has ended.
            let keep = held.expires_at.map_or(UNKNOWN, |at| at.saturating_sub(now()) + CLOCKS);
            let instance = Some(instance);
            Ok(checks.revoke(Subject::Job { instance, jobid }, keep).await)
        }
    }
}

/// Decides on the request of a user with a ticket.
pub(super) async fn grant(
    issuer: &Arc<Issuer>,
    engine: &Engine,
    checks: &impl Checks,
    request: &MintRequest,
    ticket: &SecretText,
) -> Result<Granted, Refusal> {
    let claims = active(issuer, checks, ticket).await?;
    let provider = claims.get("provider");
    let provider = provider.as_ref().and_then(Value::as_str).unwrap_or_default();
    let left = claims.exp().seconds() - NumericDate::from(SystemTime::now()).seconds();
    let left = Duration::try_from_secs_f64(left).unwrap_or_default();
    engine.grant_to_login(request, provider, uid(&claims)?, left).await
}

/// Returns the claims of a valid ticket.
async fn active(issuer: &Arc<Issuer>, checks: &impl Checks, ticket: &SecretText) -> Result<Claims, Refusal> {
    let claims = verified(issuer, TICKET, ticket).await?;
    match checks.check(TokenFacts::of(&claims).unwrap_or_default()).await {
        Validity::Active => Ok(claims),
        Validity::Unknown(why) => Err(Refusal::Unknown(why)),
        Validity::Revoked | Validity::Ended(_) => Err(denied(DenialCode::InvalidGrant, "the login was revoked").into()),
    }
}

fn store(engine: &Engine) -> Result<LoginStore, Refusal> {
    let none = || denied(DenialCode::UnauthorizedClient, "logins do not serve jobs here");
    Ok(engine.login_store().ok_or_else(none)?)
}

fn uid(claims: &Claims) -> Result<u32, Refusal> {
    let uid = claims.get("uid").and_then(|uid| uid.as_u64()?.try_into().ok());
    uid.ok_or_else(|| denied(DenialCode::InvalidGrant, "the login names no user").into())
}

/// Signs claims with the active key.
async fn sign(issuer: &Arc<Issuer>, typ: &'static str, claims: Value) -> Result<SecretText, Refusal> {
    let issuer = Arc::clone(issuer);
    let signed = in_time(move || {
        issuer.signer.sign(|key| {
            let jwt = key.sign(&[("typ", typ)], claims.to_string().as_bytes());
            SecretText(Zeroizing::new(jwt.expose_secret().to_owned()))
        })
    });
    signed.await?.map_err(Refusal::Unknown)
}

/// Verifies a JWT that [`sign`] signed.
async fn verified(issuer: &Arc<Issuer>, typ: &'static str, jwt: &SecretText) -> Result<Claims, Refusal> {
    let (issuer, jwt) = (Arc::clone(issuer), jwt.clone());
    let verified = in_time(move || {
        let keys = issuer.signer.keys().map_err(|e| Refusal::Unknown(e.to_string()))?;
        let verifier = Verifier::new(Arc::clone(keys.verifying()))
            .issuer(issuer.name())
            .audience(issuer.name())
            .typ(typ);
        let refused = |_| denied(DenialCode::InvalidGrant, "the login has expired or is not valid");
        Ok(verifier.verify(&jwt.0, SystemTime::now()).map_err(refused)?)
    });
    verified.await?
}

/// Runs blocking work with a timeout.
async fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    match timeout(TIMEOUT, spawn_blocking(work)).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) => Err(Refusal::Unknown("an internal error".to_owned())),
        Err(_) => Err(Refusal::Unknown("the file system or munged does not answer".to_owned())),
    }
}

fn now() -> u64 {
    seconds(SystemTime::now())
}

/// Returns a random id, which distinguishes two logins in the same second. It is not a secret.
fn random_id() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

#[cfg(test)]
mod tests;
