//! Revocation of tokens (RFC 7009).

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Extension,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use protocol::{Answer, Question, Subject};

use crate::{
    audit::Event,
    clients::authenticate,
    error::OAuthError,
    introspect::{is_for, read_form},
    keys::Unverified,
    peer::Peer,
    service::Service,
};

/// The time for which a revocation is kept beyond the expiry of its token: the difference of clocks.
const LEEWAY: u64 = 600;

/// Revokes a token. One that is not valid, or not for the client, is none: that is no error (RFC 7009 section 2.2).
pub async fn revoke(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, OAuthError> {
    let settings = service.settings();
    let form = read_form(&headers, &body, &[])?;
    let client = authenticate(&settings, peer, &headers, &form)?;
    if !client.may_revoke {
        return Err(OAuthError::UnauthorizedClient("the client may not revoke tokens"));
    }
    let token = form
        .get("token")
        .ok_or(OAuthError::InvalidRequest("the parameter token is missing"))?;
    let claims = match service.keys.verify(token).await {
        Ok(claims) => claims,
        Err(Unverified::Refused(_)) => return Ok(StatusCode::OK),
        Err(Unverified::NoKeys) => return Err(OAuthError::Unavailable),
    };
    let Some(jti) = claims.jti().filter(|_| is_for(client, &claims)) else {
        return Ok(StatusCode::OK);
    };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    let left = (claims.exp().seconds() - now).max(0.0) as u64;
    let question = || Question::Revoke {
        subjects: vec![Subject::Jti(jti.to_owned())],
        keep_secs: left.saturating_add(LEEWAY),
    };
    match service.agent.ask(question).await {
        Ok(Answer::Revoked) => {}
        Ok(_) => return Err(OAuthError::Unavailable),
        Err(e) => {
            eprintln!("workflow-tokend: a revocation of {} failed: {e}", client.id);
            return Err(OAuthError::Unavailable);
        }
    }
    service.validities.forget(&claims);
    service.audit.write(&Event::new("revoke", Some(&client.id), &claims));
    Ok(StatusCode::OK)
}
