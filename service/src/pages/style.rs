// SPDX-License-Identifier: MIT OR Apache-2.0

//! The style sheet.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// The path of the style sheet, relative to that of the issuer.
pub const STYLE: &str = "/assets/style.css";

/// The style sheet.
const SHEET: &str = include_str!("../../assets/style.css");

/// How long browsers cache the style sheet: its URL changes with the content.
const MAX_AGE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// The first part of the digest of the content.
static VERSION: LazyLock<String> =
    LazyLock::new(|| URL_SAFE_NO_PAD.encode(&digest(&SHA256, SHEET.as_bytes()).as_ref()[..12]));

/// Returns the style sheet.
pub async fn style() -> Response {
    let kind = HeaderValue::from_static("text/css; charset=utf-8");
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, MAX_AGE)];
    (headers, SHEET).into_response()
}

/// Returns the URL of the style sheet, below the path of the issuer.
pub(super) fn url(base: &str) -> String {
    format!("{base}{STYLE}?v={}", *VERSION)
}
