// SPDX-License-Identifier: MIT OR Apache-2.0

//! Revocation of tokens (RFC 7009).

use std::sync::Arc;

use axum::{
    Extension,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use protocol::{Answer, Question, Subject};
use token::Claims;

use crate::{
    audit::Event,
    clients::authenticate,
    clock::now,
    error::OAuthError,
    families,
    introspect::{is_for, read_form},
    keys::Unverified,
    log::Kind,
    peer::Peer,
    service::Service,
};

static FAILED: Kind = Kind::new();

/// How long a revocation is kept after the expiry of its token, in seconds: a tolerance for clock differences.
const LEEWAY: u64 = 600;

/// Revokes a token. A client's own refresh token is revoked with all tokens of its family. A token that is not valid,
/// or not for the client, counts as revoked, without an error (RFC 7009 section 2.2).
pub async fn revoke(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, OAuthError> {
    let settings = service.settings();
    let form = read_form(&headers, &body, &[])?;
    let client = authenticate(&settings, peer, &headers, &form)?;
    let token = form
        .get("token")
        .ok_or(OAuthError::InvalidRequest("the parameter token is missing"))?;
    if let Some(state) = &service.state
        && families::revoke(state, client, token).await?
    {
        return Ok(StatusCode::OK);
    }
    if !client.may_revoke {
        return Err(OAuthError::UnauthorizedClient("the client may not revoke tokens"));
    }
    let claims = match service.keys.verify(token).await {
        Ok(claims) => claims,
        Err(Unverified::Refused(_)) => return Ok(StatusCode::OK),
        Err(Unverified::NoKeys) => return Err(OAuthError::Unavailable),
    };
    let Some(jti) = claims.jti().filter(|_| is_for(client, &claims)) else {
        return Ok(StatusCode::OK);
    };
    let left = (claims.exp().seconds() as u64).saturating_sub(now());
    let revocation = Revocation {
        client: client.id.clone(),
        jti: jti.to_owned(),
        keep_secs: left.saturating_add(LEEWAY),
        claims,
    };
    // A separate task continues if the client disconnects, so that the audit stream contains every revocation.
    let revoked = tokio::spawn(async move { revocation.run(&service).await });
    revoked.await.unwrap_or(Err(OAuthError::Unavailable))
}

/// A revocation.
struct Revocation {
    client: String,
    jti: String,
    keep_secs: u64,
    claims: Claims,
}

impl Revocation {
    async fn run(self, service: &Service) -> Result<StatusCode, OAuthError> {
        let question = || Question::Revoke {
            subjects: vec![Subject::Jti(self.jti.clone())],
            keep_secs: self.keep_secs,
        };
        match service.agent.ask(question).await {
            Ok(Answer::Revoked) => {}
            Ok(Answer::NotStored) => {
                FAILED.log(format_args!(
                    "a revocation of {} was refused: set the key revocations of the agent",
                    self.client
                ));
                return Err(OAuthError::UnsupportedTokenType);
            }
            Ok(_) => return Err(OAuthError::Unavailable),
            Err(e) => {
                FAILED.log(format_args!("a revocation of {} failed: {e}", self.client));
                return Err(OAuthError::Unavailable);
            }
        }
        service.validities.forget(&self.claims);
        service
            .audit
            .write(&Event::new("revoke", Some(&self.client), &self.claims));
        Ok(StatusCode::OK)
    }
}
