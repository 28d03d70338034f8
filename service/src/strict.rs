// SPDX-License-Identifier: MIT OR Apache-2.0

//! Rejects requests that the service and a proxy in front of it could interpret differently.
//!
//! The service normalizes nothing: it rejects ambiguous requests with 400.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

/// The path whose remainder is the path of a request to another service, which is not checked. The path of the issuer
/// precedes it.
pub const FOREIGN: &str = "/auth/envoy/";

/// The headers that must not be repeated.
const SINGLE: [HeaderName; 5] = [
    header::AUTHORIZATION,
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::TRANSFER_ENCODING,
];

/// Rejects ambiguous requests. `foreign` is the complete path of [`FOREIGN`].
pub async fn refuse_ambiguous(State(foreign): State<Arc<str>>, request: Request, next: Next) -> Response {
    match ambiguity(&foreign, request.uri().path(), request.headers()) {
        Some(what) => (StatusCode::BAD_REQUEST, format!("{what}\n")).into_response(),
        None => next.run(request).await,
    }
}

fn ambiguity(foreign: &str, path: &str, headers: &HeaderMap) -> Option<&'static str> {
    if !path.starts_with(foreign) && !is_plain_path(path) {
        return Some("the path has an empty segment, `.`, `..` or a forbidden character");
    }
    if SINGLE.iter().any(|name| headers.get_all(name).iter().nth(1).is_some()) {
        return Some("a header is repeated that must occur once");
    }
    match headers.keys().all(is_unambiguous) {
        true => None,
        false => Some("the name of a header contains an underscore or a period"),
    }
}

/// Returns whether a path is unambiguous: segments of unreserved characters (RFC 3986 section 2.3), of which none is
/// empty, `.` or `..`. The empty path is allowed.
pub fn is_plain_path(path: &str) -> bool {
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let is_plain = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(is_unreserved);
    match path.strip_prefix('/') {
        Some("") | None => path.is_empty() || path == "/",
        Some(rest) => rest.split('/').all(is_plain),
    }
}

/// Returns whether the name of a header is unambiguous: programs that pass headers in variables replace `-` and `.` by
/// `_`.
pub fn is_unambiguous(name: &HeaderName) -> bool {
    !name.as_str().bytes().any(|byte| matches!(byte, b'_' | b'.'))
}

/// Returns whether a byte may be part of a scope (RFC 6749 section 3.3).
pub fn is_scope_byte(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_proxies_read_differently_are_not_plain() {
        for path in [
            "",
            "/",
            "/introspect",
            "/.well-known/openid-configuration",
            "/a/b-c_d.e~f",
        ] {
            assert!(is_plain_path(path), "{path}");
        }
        for path in [
            "/introspect/",
            "//introspect",
            "/a//b",
            "/a/../b",
            "/a/./b",
            "/..",
            "/%2e%2e/a",
            "/a%2Fb",
            "/a%2fb",
            "/a;b",
            "/a\\b",
            "/a%00",
            "/é",
            "a",
            "*",
            "/a b",
            "/a?b",
            "/a#b",
            "/a:b",
            "/a@b",
        ] {
            assert!(!is_plain_path(path), "{path}");
        }
    }

    #[test]
    fn aliases_and_duplicates_of_headers() {
        let headers = |names: &[&str]| {
            let mut headers = HeaderMap::new();
            for name in names {
                headers.append(name.parse::<HeaderName>().unwrap(), "x".parse().unwrap());
            }
            ambiguity(FOREIGN, "/introspect", &headers)
        };
        assert_eq!(headers(&["authorization", "accept", "accept", "x-forwarded-for"]), None);
        for names in [
            &["authorization", "Authorization"][..],
            &["host", "host"],
            &["content-type", "content-type"],
            &["x_forwarded_for"],
            &["x.original.uri"],
        ] {
            assert!(headers(names).is_some(), "{names:?}");
        }
    }

    #[test]
    fn the_path_behind_that_of_envoy_is_of_another_service() {
        assert_eq!(ambiguity(FOREIGN, "/auth/envoy/a//b/%2e%2e;c", &HeaderMap::new()), None);
        assert!(ambiguity(FOREIGN, "/auth/envoy;/a", &HeaderMap::new()).is_some());
        assert!(ambiguity(FOREIGN, "/x/../auth/envoy/", &HeaderMap::new()).is_some());
        assert!(ambiguity(FOREIGN, "/auth/nginx/a//b", &HeaderMap::new()).is_some());
    }
}
