// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Connect protocol (<https://connectrpc.com/docs/protocol>), for unary calls whose requests have no fields.
//!
//! Since requests have no fields, the service checks only that messages are JSON, and does not decompress them.

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, Request},
    http::{HeaderMap, HeaderName, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use prost::Message;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::form::Form;

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");

/// Base64 of a query, with optional padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A call, by the encoding of its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `application/json`.
    Json,
    /// `application/proto`.
    Proto,
}

/// The reason why a call failed.
#[derive(Debug, PartialEq, Eq)]
pub enum CallError {
    /// The encoding is not supported.
    UnsupportedMediaType,
    /// The request is malformed.
    InvalidArgument(&'static str),
    /// The method or the compression is not supported.
    Unimplemented(&'static str),
    /// No response is available at the moment.
    Unavailable,
}

impl Call {
    /// Returns a successful response.
    pub fn response(self, message: &(impl Message + Serialize)) -> Response {
        match self {
            Self::Json => Json(message).into_response(),
            Self::Proto => ([(header::CONTENT_TYPE, "application/proto")], message.encode_to_vec()).into_response(),
        }
    }

    fn from_codec(name: &str) -> Result<Self, CallError> {
        match name {
            "json" => Ok(Self::Json),
            "proto" => Ok(Self::Proto),
            _ => Err(CallError::UnsupportedMediaType),
        }
    }

    /// Reads a POST request.
    fn post(headers: &HeaderMap, message: &[u8]) -> Result<Self, CallError> {
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let media_type = text(&header::CONTENT_TYPE).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim();
        let codec = media_type.to_ascii_lowercase();
        let call = Self::from_codec(codec.strip_prefix("application/").unwrap_or_default())?;
        if headers.contains_key(PROTOCOL_VERSION) && text(&PROTOCOL_VERSION) != Some("1") {
            return Err(CallError::InvalidArgument("connect-protocol-version must be 1"));
        }
        let encoding = match headers.contains_key(header::CONTENT_ENCODING) {
            true => text(&header::CONTENT_ENCODING),
            false => Some("identity"),
        };
        call.check(encoding.unwrap_or_default(), message)
    }

    /// Reads a GET request, whose message is in the query.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn get(query: &str) -> Result<Self, CallError> {
        let query = Form::parse(query.as_bytes()).map_err(|e| CallError::InvalidArgument(e.text()))?;
        let encoding = query.get("encoding");
        let call = Self::from_codec(encoding.ok_or(CallError::InvalidArgument("the parameter encoding is missing"))?)?;
        if query.get("connect").is_some_and(|version| version != "v1") {
            return Err(CallError::InvalidArgument("the parameter connect must be v1"));
        }
        if !query.names().any(|name| name == "message") {
            return Err(CallError::InvalidArgument("the parameter message is missing"));
        }
        let message = query.get("message").unwrap_or_default();
        let decoded = match query.get("base64") {
            Some("1") => BASE64
                .decode(message)
                .map_err(|_| CallError::InvalidArgument("the message is not base64url"))?,
            _ => message.as_bytes().to_owned(),
        };
        call.check(query.get("compression").unwrap_or("identity"), &decoded)
    }

    fn check(self, compression: &str, message: &[u8]) -> Result<Self, CallError> {
        match (compression, self) {
            ("gzip", _) | ("identity", Self::Proto) => Ok(self),
            ("identity", Self::Json) => serde_json::from_slice::<Map<String, Value>>(message)
                .map(|_| self)
                .map_err(|_| CallError::InvalidArgument("the message is not an object in JSON")),
            _ => Err(CallError::Unimplemented(
                "the supported encodings are gzip and identity",
            )),
        }
    }
}

impl<S: Send + Sync> FromRequest<S> for Call {
    type Rejection = CallError;

    async fn from_request(request: Request, state: &S) -> Result<Self, CallError> {
        if request.method() != Method::POST {
            return Self::get(request.uri().query().unwrap_or_default());
        }
        let headers = request.headers().clone();
        let message = Bytes::from_request(request, state).await;
        let message = message.map_err(|_| CallError::InvalidArgument("the message is too long, or was cut off"))?;
        Self::post(&headers, &message)
    }
}

impl IntoResponse for CallError {
    fn into_response(self) -> Response {
        let (status, code, message) = match self {
            Self::UnsupportedMediaType => {
                let accepted = [("accept-post", "application/json, application/proto")];
                return (StatusCode::UNSUPPORTED_MEDIA_TYPE, accepted).into_response();
            }
            Self::InvalidArgument(what) => (StatusCode::BAD_REQUEST, "invalid_argument", what),
            Self::Unimplemented(what) => (StatusCode::NOT_IMPLEMENTED, "unimplemented", what),
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "the service cannot answer at the moment: retry",
            ),
        };
        (status, Json(json!({"code": code, "message": message}))).into_response()
    }
}
