// SPDX-License-Identifier: MIT OR Apache-2.0

//! Introspection of tokens (RFC 7662), with signed responses (RFC 9701).

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use protocol::{Answer, IssuerQuestion, Question};
use serde_json::{Map, Value, json};
use token::Claims;

use crate::{
    clients::authenticate, error::OAuthError, form::Form, log::Kind, metrics::Decision, peer::Peer, refused::Refused,
    service::Service, settings::Client, verdict::valid,
};

/// The type of a signed response (RFC 9701 section 5).
const SIGNED: &str = "application/token-introspection+jwt";

static UNKNOWN: Kind = Kind::new();
static UNSIGNED: Kind = Kind::new();

/// Reports whether a token is active, and its claims.
pub async fn introspect(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, OAuthError> {
    let settings = service.settings();
    let form = read_form(&headers, &body, &[])?;
    let client = authenticate(&settings, peer, &headers, &form)?;
    if !client.may_introspect {
        return Err(OAuthError::UnauthorizedClient("the client may not introspect tokens"));
    }
    let token = form
        .get("token")
        .ok_or(OAuthError::InvalidRequest("the parameter token is missing"))?;
    let result = valid(&service, token).await;
    service.metrics.decided(Decision::of(&result));
    let response = match result {
        Ok(claims) if is_for(client, &claims) => active(&claims),
        // The client must not learn the claims of such a token (RFC 7662 section 4).
        Ok(_) | Err(Refused::Invalid(_)) => Map::from_iter([("active".to_owned(), Value::Bool(false))]),
        Err(refused) => {
            UNKNOWN.log(format_args!("introspection for {} failed: {refused:?}", client.id));
            return Err(OAuthError::Unavailable);
        }
    };
    let no_store = (header::CACHE_CONTROL, "no-store");
    if !wants_signed(&headers) {
        return Ok(([no_store], Json(response)).into_response());
    }
    let response = Value::Object(response).to_string();
    let question = || Question::Issuer {
        name: settings.issuer.url().to_owned(),
        question: IssuerQuestion::SignIntrospection {
            audience: client.id.clone(),
            response: response.clone(),
        },
    };
    match service.agent.ask(question).await {
        Ok(Answer::Signed(jwt)) => Ok(([no_store, (header::CONTENT_TYPE, SIGNED)], jwt).into_response()),
        Ok(_) => Err(OAuthError::Unavailable),
        Err(e) => {
            UNSIGNED.log(format_args!("a response for {} could not be signed: {e}", client.id));
            Err(OAuthError::Unavailable)
        }
    }
}

/// Reads the parameters of a POST request. Those in `repeatable` may be repeated.
///
/// # Errors
/// [`OAuthError::InvalidRequest`].
pub fn read_form<'a>(headers: &HeaderMap, body: &'a [u8], repeatable: &[&str]) -> Result<Form<'a>, OAuthError> {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(OAuthError::InvalidRequest(
            "the body must be application/x-www-form-urlencoded",
        ));
    }
    Form::parse_with(body, repeatable).map_err(|e| OAuthError::InvalidRequest(e.text()))
}

/// Returns whether a client may introspect a token.
pub fn is_for(client: &Client, claims: &Claims) -> bool {
    claims.aud().any(|aud| client.audience.iter().any(|known| known == aud))
}

/// Returns all claims, and the members that RFC 7662 section 2.2 adds.
fn active(claims: &Claims) -> Map<String, Value> {
    // The claims were parsed before.
    let mut response: Map<String, Value> = serde_json::from_str(claims.as_json()).unwrap_or_default();
    response.insert("active".to_owned(), json!(true));
    response.insert("token_type".to_owned(), json!("Bearer"));
    if let Some(sub) = claims.sub() {
        response.insert("username".to_owned(), json!(sub));
    }
    response
}

fn wants_signed(headers: &HeaderMap) -> bool {
    let accepted = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut kinds = accepted.flat_map(|value| value.split(','));
    kinds.any(|kind| {
        kind.split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .eq_ignore_ascii_case(SIGNED)
    })
}
