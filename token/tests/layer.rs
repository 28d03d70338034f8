// SPDX-License-Identifier: MIT OR Apache-2.0

//! The layer for services of tower lets only requests with a valid token through, and with a cache only those whose token is
//! still valid.

mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::routing::get;
use common::{ISSUER, claims, key, session, verifier};
use secrecy::ExposeSecret;
use token::{Algorithm, RequireToken, StatusCache, StatusEntry, StatusList, StatusListToIssue, mint, sign_status_list};
use tower::ServiceExt;

const URI: &str = "https://hpc.example.org/status/7";

/// A token, with an entry in a list if it has an index.
fn token(index: Option<u32>) -> String {
    let mut claims = claims(session());
    claims.iat = SystemTime::now();
    claims.status = index.map(|index| StatusEntry {
        index,
        uri: URI.to_owned(),
    });
    mint(key(Algorithm::EdDsa), &claims).expose_secret().to_owned()
}

async fn send(router: &Router, token: &str) -> (StatusCode, HeaderMap) {
    let request = Request::get("/").header(header::AUTHORIZATION, format!("Bearer {token}"));
    let response = router
        .clone()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    (response.status(), response.headers().clone())
}

#[tokio::test]
async fn with_a_cache_only_tokens_that_are_still_valid_get_through() {
    let statuses = Arc::new(StatusCache::new(verifier(), 16));
    let layer = RequireToken::new(verifier())
        .status_cache(Arc::clone(&statuses))
        .resource_metadata("https://copy.example.org/m");
    let router = Router::new().route("/", get(|| async { "hello" })).layer(layer);
    let (unknown, headers) = send(&router, &token(Some(1))).await;
    assert_eq!(
        (unknown, &headers[header::RETRY_AFTER]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
    );
    let mut list = StatusList::new(8);
    list.set(2, 1);
    let issue = StatusListToIssue {
        iss: ISSUER,
        uri: URI,
        iat: SystemTime::now(),
        lifetime: Duration::from_secs(600),
        ttl: Duration::from_secs(60),
        list: &list,
    };
    let signed = sign_status_list(key(Algorithm::EdDsa), &issue);
    statuses.insert(&signed, SystemTime::now()).unwrap();
    assert_eq!(send(&router, &token(Some(1))).await.0, StatusCode::OK);
    for refused in [Some(2), Some(8), None] {
        let (status, headers) = send(&router, &token(refused)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{refused:?}");
        let challenge = headers[header::WWW_AUTHENTICATE].to_str().unwrap();
        assert_eq!(
            challenge,
            "Bearer error=\"invalid_token\", resource_metadata=\"https://copy.example.org/m\""
        );
    }
    // Without a cache, all of them are accepted.
    let layer = RequireToken::new(verifier());
    let router = Router::new().route("/", get(|| async { "hello" })).layer(layer);
    for accepted in [Some(1), Some(2), None] {
        assert_eq!(send(&router, &token(accepted)).await.0, StatusCode::OK);
    }
}
