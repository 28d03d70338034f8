// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tokens for users and clients: client credentials (RFC 6749 section 4.4), token exchange (RFC 8693), and grants of
//! users. The agent verifies the proof and decides.

use std::sync::Arc;

use axum::{
    Extension,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header},
    response::Response,
};
use protocol::{Evidence, SecretText};
use zeroize::Zeroizing;

use crate::{
    clients::authenticate,
    error::OAuthError,
    form::Form,
    introspect::{is_for, read_form},
    metadata::{AUTHORIZATION_CODE, CLIENT_CREDENTIALS, DEVICE_CODE, MUNGE, REFRESH_TOKEN, TOKEN_EXCHANGE},
    mint::{mint, respond},
    peer::Peer,
    redeem::Redemption,
    service::Service,
    settings::{Client, Settings},
    wanted::{REPEATABLE, Wanted},
};

/// The longest MUNGE credential, in bytes. Ours contain one line.
const MAX_MUNGE: usize = 8 << 10;

/// The types of tokens that can be exchanged (RFC 8693 section 3).
const TOKEN_TYPES: [&str; 3] = [
    "urn:ietf:params:oauth:token-type:access_token",
    "urn:ietf:params:oauth:token-type:jwt",
    "urn:ietf:params:oauth:token-type:id_token",
];

/// The types of tokens that can be requested. All are the same JWT.
const REQUESTED: [&str; 2] = [TOKEN_TYPES[0], TOKEN_TYPES[1]];

/// Handles a token request.
pub async fn token(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, OAuthError> {
    let settings = service.settings();
    let form = read_form(&headers, &body, &REPEATABLE)?;
    let client = client(&settings, peer, &headers, &form)?;
    let wanted = Wanted::read(&settings, &form)?;
    let id = client.map(|client| client.id.clone());
    let redemption = Redemption {
        service: &service,
        settings: &settings,
        form: &form,
    };
    let known = || client.ok_or(OAuthError::InvalidClient);
    match form.get("grant_type").unwrap_or_default() {
        CLIENT_CREDENTIALS => {
            if known()?.is_public() {
                return Err(OAuthError::InvalidClient);
            }
            let minted = mint(&service, &settings, "issue", wanted.request(Evidence::Client, id)).await?;
            Ok(respond(&minted, None, None))
        }
        TOKEN_EXCHANGE => {
            let (evidence, issued) = exchanged(&service, client, &form).await?;
            let minted = mint(&service, &settings, "exchange", wanted.request(evidence, id)).await?;
            Ok(respond(&minted, Some(issued), None))
        }
        DEVICE_CODE => redemption.device(client).await,
        AUTHORIZATION_CODE => redemption.code(known()?).await,
        REFRESH_TOKEN => redemption.refresh(known()?, wanted).await,
        "" => Err(OAuthError::InvalidRequest("the parameter grant_type is missing")),
        _ => Err(OAuthError::UnsupportedGrantType),
    }
}

/// Returns the client, if the request names one. A token exchange requires none.
fn client<'a>(
    settings: &'a Settings,
    peer: Peer,
    headers: &HeaderMap,
    form: &Form,
) -> Result<Option<&'a Client>, OAuthError> {
    let names_one = headers.contains_key(header::AUTHORIZATION) || form.get("client_secret").is_some();
    match authenticate(settings, peer, headers, form) {
        Ok(client) => Ok(Some(client)),
        Err(OAuthError::InvalidClient) if !names_one => Ok(None),
        Err(e) => Err(e),
    }
}

/// Returns the proof of a token exchange, and the type of the issued token.
async fn exchanged(
    service: &Service,
    client: Option<&Client>,
    form: &Form<'_>,
) -> Result<(Evidence, &'static str), OAuthError> {
    let missing = "the parameters subject_token and subject_token_type are required";
    let (Some(subject), Some(kind)) = (form.get("subject_token"), form.get("subject_token_type")) else {
        return Err(OAuthError::InvalidRequest(missing));
    };
    if form.get("actor_token").is_some() {
        return Err(OAuthError::InvalidRequest("actor tokens are not supported"));
    }
    let requested = form.get("requested_token_type").unwrap_or(REQUESTED[0]);
    let issued = REQUESTED.into_iter().find(|known| *known == requested);
    let issued = issued.ok_or(OAuthError::InvalidRequest("this requested_token_type is not supported"))?;
    let secret = SecretText(Zeroizing::new(subject.to_owned()));
    let evidence = match kind {
        MUNGE if !subject.starts_with("MUNGE:") || subject.len() > MAX_MUNGE => {
            return Err(OAuthError::InvalidRequest(
                "the subject_token is not a MUNGE credential",
            ));
        }
        MUNGE => Evidence::Munge(secret),
        kind if TOKEN_TYPES.contains(&kind) => {
            // A client may exchange only tokens that are for it, not those that another client received.
            if let Some(client) = client
                && let Ok(claims) = service.keys.verify(subject).await
                && !is_for(client, &claims)
            {
                return Err(OAuthError::InvalidGrant("the token is not for this client".to_owned()));
            }
            Evidence::Token(secret)
        }
        _ => return Err(OAuthError::InvalidRequest("this subject_token_type is not supported")),
    };
    Ok((evidence, issued))
}
