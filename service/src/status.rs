// SPDX-License-Identifier: MIT OR Apache-2.0

//! Publishes Status Lists, so that services can check many tokens without asking (draft-ietf-oauth-status-list-20
//! sections 8 and 9).

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use protocol::service::STATUS_LIST_TTL;
use serde_json::json;

use crate::{
    error::OAuthError,
    metadata::{STATUS, is_known},
    service::Service,
};

/// The media type of a list (section 8.2).
const TYPE: HeaderValue = HeaderValue::from_static("application/statuslist+jwt");

/// Returns the URIs of all lists.
pub async fn lists(State(service): State<Arc<Service>>) -> Result<Response, OAuthError> {
    let numbers = service.statuses.numbers().await?;
    let issuer = &service.settings().issuer;
    let uris: Vec<String> = numbers
        .iter()
        .map(|number| format!("{}{STATUS}/{number}", issuer.url()))
        .collect();
    Ok((headers(), Json(json!({"status_lists": uris}))).into_response())
}

/// Returns a list.
pub async fn list(
    State(service): State<Arc<Service>>,
    Path(number): Path<String>,
    request: HeaderMap,
) -> Result<Response, OAuthError> {
    // Reject other spellings of the number: each list has one URI.
    let number: Option<u32> = number.parse().ok().filter(|parsed: &u32| parsed.to_string() == number);
    let list = match number {
        Some(number) => service.statuses.list(number).await?,
        None => None,
    };
    let Some(list) = list else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    let etag = [(header::ETAG, list.etag.clone())];
    if is_known(&request, &list.etag) {
        return Ok((StatusCode::NOT_MODIFIED, headers(), etag).into_response());
    }
    let kind = [(header::CONTENT_TYPE, TYPE)];
    Ok((headers(), etag, kind, list.token.clone()).into_response())
}

/// Returns the headers for caches, and for browsers on pages of other origins (section 8.1).
fn headers() -> [(header::HeaderName, HeaderValue); 2] {
    let max_age = format!("public, max-age={}", STATUS_LIST_TTL.as_secs());
    let max_age = HeaderValue::from_str(&max_age).unwrap_or(HeaderValue::from_static("no-store"));
    [
        (header::CACHE_CONTROL, max_age),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    ]
}
