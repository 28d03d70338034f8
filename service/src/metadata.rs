// SPDX-License-Identifier: MIT OR Apache-2.0

//! Published metadata: those of the issuer (RFC 8414, OpenID Connect Discovery), its keys, and those of protected
//! services (RFC 9728).

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use crate::{
    error::OAuthError,
    keys::PublicKeys,
    service::Service,
    settings::{Resource, Settings},
};

/// The path of the keys, relative to that of the issuer.
pub const JWKS: &str = "/jwks";

/// The path of introspection.
pub const INTROSPECTION: &str = "/introspect";

/// The path of revocation.
pub const REVOCATION: &str = "/revoke";

/// The path of tokens for users and clients.
pub const TOKEN: &str = "/token";

/// The grant type of client credentials (RFC 6749 section 4.4).
pub const CLIENT_CREDENTIALS: &str = "client_credentials";

/// The grant type of token exchange (RFC 8693).
pub const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// The grant type of authorization codes (RFC 6749 section 4.1.3).
pub const AUTHORIZATION_CODE: &str = "authorization_code";

/// The grant type of refresh tokens (RFC 6749 section 6).
pub const REFRESH_TOKEN: &str = "refresh_token";

/// The grant type of device codes (RFC 8628 section 3.4).
pub const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// The path of logins of devices.
pub const DEVICE_AUTHORIZATION: &str = "/device_authorization";

/// The path of requests about the login for the jobs of a user.
pub const JOB_LOGIN: &str = "/job-login";

/// The type of a MUNGE credential in a token exchange. No standard defines one.
pub const MUNGE: &str = "urn:x-workflow-token:munge";

/// The path of logins of programs with a browser.
pub const AUTHORIZATION: &str = "/authorize";

/// The path of all Status Lists. The path of one list is this path and its number.
pub const STATUS: &str = "/status";

/// The path of the metadata of protected services, followed by the name of a service.
pub const RESOURCE: &str = "/.well-known/oauth-protected-resource";

/// The path of the settings of the public client.
pub const PUBLIC_CLIENT: &str = "/.well-known/workflow-token-client";

/// How long clients may cache metadata and keys: shorter than the time between the publication of a key and its first
/// signature.
const MAX_AGE: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// The supported methods of client authentication.
const AUTHENTICATION: [&str; 2] = ["client_secret_basic", "client_secret_post"];

/// Returns the metadata of the issuer.
pub async fn issuer(State(service): State<Arc<Service>>) -> Result<Response, OAuthError> {
    let metadata = document(&service).ok_or(OAuthError::Unavailable)?;
    Ok(([(header::CACHE_CONTROL, MAX_AGE)], Json(metadata)).into_response())
}

/// Returns the published metadata: those of this service, or of the server that the settings name. None if they are not
/// known yet.
pub fn document(service: &Service) -> Option<Map<String, Value>> {
    let settings = service.settings();
    let ours = || {
        let keys = service.keys.known()?;
        match metadata(&settings, &keys, service.agent.uid(), service.state.is_some()) {
            Value::Object(members) => Some(members),
            _ => None,
        }
    };
    match &settings.external {
        Some(server) => service.external.document(server, ours),
        None => ours(),
    }
}

fn metadata(settings: &Settings, keys: &PublicKeys, munge_uid: Option<u32>, has_logins: bool) -> Value {
    let at = |path: &str| format!("{}{path}", settings.issuer.url());
    let mut metadata = json!({
        "issuer": settings.issuer.url(),
        "jwks_uri": at(JWKS),
        "introspection_endpoint": at(INTROSPECTION),
        "introspection_endpoint_auth_methods_supported": AUTHENTICATION,
        "introspection_signing_alg_values_supported": keys.algorithms,
        "revocation_endpoint": at(REVOCATION),
        "revocation_endpoint_auth_methods_supported": AUTHENTICATION,
        "status_list_aggregation_endpoint": at(STATUS),
        "token_endpoint": at(TOKEN),
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
        "grant_types_supported": [CLIENT_CREDENTIALS, TOKEN_EXCHANGE],
        // A program that exchanges a MUNGE credential for a token restricts the credential to this uid.
        "munge_uid": munge_uid,
        // Required, even without an authorization endpoint.
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": keys.algorithms,
        "scopes_supported": token::Scope::ALL.map(|scope| scope.as_str()),
        "protected_resources": settings.resources.iter().map(|resource| &resource.url).collect::<Vec<_>>(),
    });
    if has_logins {
        metadata["authorization_endpoint"] = json!(at(AUTHORIZATION));
        metadata["device_authorization_endpoint"] = json!(at(DEVICE_AUTHORIZATION));
        metadata["job_login_endpoint"] = json!(at(JOB_LOGIN));
        metadata["response_types_supported"] = json!(["code"]);
        metadata["response_modes_supported"] = json!(["query"]);
        metadata["code_challenge_methods_supported"] = json!(["S256"]);
        metadata["authorization_response_iss_parameter_supported"] = json!(true);
        metadata["grant_types_supported"] = json!([
            CLIENT_CREDENTIALS,
            TOKEN_EXCHANGE,
            AUTHORIZATION_CODE,
            REFRESH_TOKEN,
            DEVICE_CODE
        ]);
    }
    metadata
}

/// Returns the settings that a command-line tool needs for a login, named as in client metadata (RFC 7591 section 2).
pub async fn public_client(State(service): State<Arc<Service>>) -> Response {
    let settings = service.settings();
    let Some(client) = &settings.public_client else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let body = json!({
        "client_id": client.id,
        "redirect_uris": client.redirect_uris,
        "scope": client.scopes.join(" "),
        "audience": client.audience,
        "token_endpoint_auth_method": "none",
        "authorization_metadata_key": client.authorization_metadata_key.as_str(),
    });
    ([(header::CACHE_CONTROL, MAX_AGE)], Json(body)).into_response()
}

/// Returns the keys of the issuer.
pub async fn jwks(State(service): State<Arc<Service>>, headers: HeaderMap) -> Result<Response, OAuthError> {
    let keys = service.keys.known().ok_or(OAuthError::Unavailable)?;
    // A digest in base64url is visible ASCII.
    let etag = HeaderValue::from_str(&keys.etag).unwrap_or(HeaderValue::from_static("\"\""));
    let is_known = is_known(&headers, &etag);
    let headers = [(header::CACHE_CONTROL, MAX_AGE), (header::ETAG, etag)];
    if is_known {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    let kind = [(header::CONTENT_TYPE, "application/jwk-set+json")];
    Ok((headers, kind, keys.jwks.clone()).into_response())
}

/// Returns whether a client has cached the response with this entity tag (RFC 9110 section 13.1.2).
pub fn is_known(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    let known = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut known = known
        .flat_map(|value| value.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"));
    known.any(|tag| tag == etag || tag == "*")
}

/// Returns the metadata of a protected service.
pub async fn resource(State(service): State<Arc<Service>>, Path(name): Path<String>) -> Response {
    let settings = service.settings();
    let Some(resource) = settings.resources.iter().find(|resource| resource.name == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let metadata = json!({
        "resource": resource.url,
        "authorization_servers": [settings.issuer.url()],
        "scopes_supported": resource.scopes,
        "bearer_methods_supported": ["header"],
    });
    ([(header::CACHE_CONTROL, MAX_AGE)], Json(metadata)).into_response()
}

/// Returns the URL of the metadata of a protected service. It is at the service itself, whose proxy passes the path on
/// to workflow-tokend (RFC 9728 section 3.1).
pub fn resource_url(settings: &Settings, resource: &Resource) -> String {
    debug_assert!(settings.resources.contains(resource));
    let after_scheme = resource.url.find("://").map_or(0, |at| at + 3);
    let origin = resource.url[after_scheme..]
        .find('/')
        .map_or(resource.url.len(), |at| after_scheme + at);
    let (origin, path) = resource.url.split_at(origin);
    format!("{origin}{RESOURCE}{}", path.trim_end_matches('/'))
}
