// SPDX-License-Identifier: MIT OR Apache-2.0

//! Requests tokens from the agent, and formats the response (RFC 6749 section 5.1).

use std::time::Duration;

use axum::{
    Json,
    http::header,
    response::{IntoResponse, Response},
};
use protocol::{Answer, Denial, DenialCode, Evidence, IssuerQuestion, MintRequest, Question, SecretText};
use serde_json::{Value, json};
use token::Claims;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::{audit::Event, clock::now, error::OAuthError, log::Kind, service::Service, settings::Settings};

/// The longest wait for a turn.
const WAIT: Duration = Duration::from_secs(2);

static UNMINTED: Kind = Kind::new();

/// A minted token.
pub struct Minted {
    /// The token.
    pub token: SecretText,
    /// Its claims.
    pub claims: Claims,
}

impl Minted {
    /// Returns the remaining lifetime, in seconds.
    pub fn expires_in(&self) -> u64 {
        (self.claims.exp().seconds() as u64).saturating_sub(now())
    }
}

/// Requests a token from the agent. `event` is its name in the audit stream.
///
/// # Errors
/// [`OAuthError`].
pub async fn mint(
    service: &Service,
    settings: &Settings,
    event: &'static str,
    request: MintRequest,
) -> Result<Minted, OAuthError> {
    let client = request.client.clone();
    let is_login = matches!(request.evidence, Evidence::Login(_));
    // A MUNGE credential is valid once, so a request that the agent may have received is not repeated.
    let question = Question::Issuer {
        name: settings.issuer.url().to_owned(),
        question: IssuerQuestion::Mint(request),
    };
    // Requests for tokens do not delay checks of tokens, and strangers delay only each other.
    let is_known = client.is_some() || is_login;
    let turn = timeout(WAIT, service.minting[usize::from(is_known)].acquire()).await;
    let Ok(Ok(_turn)) = turn else {
        return Err(OAuthError::Unavailable);
    };
    let token = match service.agent.ask_once(question).await {
        Ok(Answer::Minted(token)) => token,
        Ok(Answer::Denied(Denial { code, text })) => {
            return Err(match code {
                DenialCode::InvalidGrant => OAuthError::InvalidGrant(text),
                DenialCode::InvalidTarget => OAuthError::InvalidTarget(text),
                DenialCode::InvalidScope => OAuthError::InvalidScope(text),
                DenialCode::UnauthorizedClient => {
                    OAuthError::UnauthorizedClient("no grant allows this client or kind of proof")
                }
            });
        }
        Ok(_) => return Err(OAuthError::Unavailable),
        Err(e) => {
            UNMINTED.log(format_args!("a token could not be minted: {e}"));
            return Err(OAuthError::Unavailable);
        }
    };
    // The key may be newer than the keys that are known here.
    let claims = service.keys.verify(&token.0).await;
    let claims = claims.map_err(|_| OAuthError::Unavailable)?;
    service.audit.write(&Event::new(event, client.as_deref(), &claims));
    Ok(Minted { token, claims })
}

/// Returns the response with a token.
pub fn respond(minted: &Minted, issued_type: Option<&str>, refresh: Option<Zeroizing<String>>) -> Response {
    let mut body = json!({
        "access_token": *minted.token.0,
        "token_type": "Bearer",
        "expires_in": minted.expires_in(),
        "scope": minted.claims.scope().map(|scope| scope.as_str()),
    });
    if let Some(issued) = issued_type {
        body["issued_token_type"] = json!(issued);
    }
    if let Some(refresh) = refresh {
        body["refresh_token"] = json!(*refresh);
    }
    answer(&body)
}

/// Returns a response that caches must not store.
pub fn answer(body: &Value) -> Response {
    let no_store = [(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")];
    (no_store, Json(body)).into_response()
}
