// SPDX-License-Identifier: MIT OR Apache-2.0

//! OAuth errors (RFC 6749 section 5.2), as responses.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{log::Kind as Line, state::StateError};

/// The reason why a client's request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OAuthError {
    /// A parameter is missing, repeated or malformed.
    InvalidRequest(&'static str),
    /// The client is unknown, or its authentication failed.
    InvalidClient,
    /// The client lacks the permission.
    UnauthorizedClient(&'static str),
    /// Tokens of this type cannot be revoked (RFC 7009 section 2.2.1).
    UnsupportedTokenType,
    /// The grant type is not supported.
    UnsupportedGrantType,
    /// The proof is not valid, or belongs to another client.
    InvalidGrant(String),
    /// The token may not be for this audience or resource (RFC 8693 section 2.2.2).
    InvalidTarget(String),
    /// The scope or project is wider than allowed.
    InvalidScope(String),
    /// The user has not decided yet (RFC 8628 section 3.5).
    AuthorizationPending,
    /// The client asks too often.
    SlowDown,
    /// The user has denied the request.
    AccessDenied,
    /// The device code has expired, or was never issued.
    ExpiredToken,
    /// The agent or the scheduler does not reply. The log contains the cause.
    Unavailable,
}

static UNUSABLE: Line = Line::new();

impl From<StateError> for OAuthError {
    fn from(error: StateError) -> Self {
        UNUSABLE.log(error);
        Self::Unavailable
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let (status, error, description) = match &self {
            Self::InvalidRequest(what) => (StatusCode::BAD_REQUEST, "invalid_request", *what),
            Self::InvalidClient => (
                StatusCode::UNAUTHORIZED,
                "invalid_client",
                "the authentication of the client failed",
            ),
            Self::UnauthorizedClient(what) => (StatusCode::BAD_REQUEST, "unauthorized_client", *what),
            Self::UnsupportedGrantType => (
                StatusCode::BAD_REQUEST,
                "unsupported_grant_type",
                "the metadata of the issuer list the supported grant types",
            ),
            Self::UnsupportedTokenType => (
                StatusCode::BAD_REQUEST,
                "unsupported_token_type",
                "this site does not store revocations of tokens",
            ),
            Self::InvalidGrant(what) => (StatusCode::BAD_REQUEST, "invalid_grant", what.as_str()),
            Self::InvalidTarget(what) => (StatusCode::BAD_REQUEST, "invalid_target", what.as_str()),
            Self::InvalidScope(what) => (StatusCode::BAD_REQUEST, "invalid_scope", what.as_str()),
            Self::AuthorizationPending => (
                StatusCode::BAD_REQUEST,
                "authorization_pending",
                "the user has not decided yet: poll again",
            ),
            Self::SlowDown => (StatusCode::BAD_REQUEST, "slow_down", "poll less often"),
            Self::AccessDenied => (StatusCode::BAD_REQUEST, "access_denied", "the user denied the request"),
            Self::ExpiredToken => (
                StatusCode::BAD_REQUEST,
                "expired_token",
                "the device code is unknown, or has expired: begin again",
            ),
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "temporarily_unavailable",
                "the service cannot answer at the moment: retry",
            ),
        };
        let body = Json(json!({"error": error, "error_description": description}));
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match status {
            StatusCode::UNAUTHORIZED => {
                let basic = HeaderValue::from_static(r#"Basic realm="workflow-tokend", charset="UTF-8""#);
                headers.insert(header::WWW_AUTHENTICATE, basic);
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}
