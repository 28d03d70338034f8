// SPDX-License-Identifier: MIT OR Apache-2.0

//! Services fetch Status Lists, and check tokens without further requests.

mod support;

use std::time::SystemTime;

use secrecy::ExposeSecret;
use serde_json::{Value, json};
use support::{ISSUER, Service, until};
use token::{Claims, ClaimsToIssue, Grant, KeySet, StatusCache, StatusEntry, TokenStatus, Verifier};

/// Returns the path of a URI of the issuer.
fn path(uri: &Value) -> &str {
    uri.as_str().and_then(|uri| uri.strip_prefix(ISSUER)).unwrap()
}

/// Returns the paths of all lists, from the metadata of the issuer.
fn lists(service: &Service) -> Value {
    let metadata: Value = serde_json::from_str(&service.get("/.well-known/oauth-authorization-server").body).unwrap();
    let response = service.get(path(&metadata["status_list_aggregation_endpoint"]));
    assert_eq!(
        (response.status, response.header("content-type")),
        (200, Some("application/json"))
    );
    serde_json::from_str::<Value>(&response.body).unwrap()["status_lists"].clone()
}

fn verifier(service: &Service) -> Verifier {
    let (keys, _) = KeySet::from_jwks(service.get("/jwks").body.as_bytes()).unwrap();
    Verifier::new(keys).issuer(ISSUER).audience("copy-offload")
}

/// Returns the claims of a token with an entry in list 7.
fn token(service: &Service, index: u32) -> Claims {
    let claims = ClaimsToIssue {
        iss: ISSUER.to_owned(),
        sub: "alice".to_owned(),
        aud: vec!["copy-offload".to_owned()],
        iat: SystemTime::now(),
        lifetime: std::time::Duration::from_secs(3600),
        grant: Grant::Cluster,
        status: Some(StatusEntry {
            index,
            uri: format!("{ISSUER}/status/7"),
        }),
    };
    let token = service.agent.get(|answers| token::mint(&answers.keys[0], &claims));
    verifier(service)
        .verify(token.expose_secret(), SystemTime::now())
        .unwrap()
}

#[test]
fn a_service_learns_from_lists_which_tokens_are_over() {
    let service = Service::start();
    service.agent.set(|answers| answers.lists = [(7, vec![3])].into());
    assert_eq!(lists(&service), json!([format!("{ISSUER}/status/7")]));
    let cache = StatusCache::new(verifier(&service), 16);
    let (valid, over) = (token(&service, 2), token(&service, 3));
    let uri = format!("{ISSUER}/status/7");
    assert_eq!(
        cache.status(&valid, SystemTime::now()),
        TokenStatus::Stale { uri: uri.clone() }
    );
    let response = service.get("/status/7");
    assert_eq!(
        (
            response.status,
            response.header("content-type"),
            response.header("cache-control")
        ),
        (200, Some("application/statuslist+jwt"), Some("public, max-age=60"))
    );
    assert_eq!(response.header("access-control-allow-origin"), Some("*"));
    cache.insert(&response.body, SystemTime::now()).unwrap();
    assert_eq!(cache.status(&valid, SystemTime::now()), TokenStatus::Valid);
    assert_eq!(cache.status(&over, SystemTime::now()), TokenStatus::Invalid);
    service.agent.set(|answers| answers.lists = [(7, vec![2, 3])].into());
    until("the next list", || {
        let response = service.get("/status/7");
        // The cache rejects a list that was issued in the same second as the cached one.
        let inserted = cache.insert(&response.body, SystemTime::now());
        inserted.is_ok() && cache.status(&valid, SystemTime::now()) == TokenStatus::Invalid
    });
}

#[test]
fn a_client_that_has_a_list_gets_it_not_again() {
    let service = Service::start();
    service.agent.set(|answers| {
        answers.lists = [(7, vec![3])].into();
        answers.fixed_time = Some(1_700_000_000);
    });
    let first = service.get("/status/7");
    let etag = first.header("etag").unwrap();
    for known in [etag, &format!("\"x\", W/{etag}"), "*"] {
        let again = service.get_with("/status/7", &[("If-None-Match", known)]);
        assert_eq!(
            (again.status, again.header("etag"), again.body.as_str()),
            (304, Some(etag), ""),
            "{known}"
        );
        assert_eq!(again.header("cache-control"), Some("public, max-age=60"));
    }
    let other = service.get_with("/status/7", &[("If-None-Match", "\"x\"")]);
    assert_eq!((other.status, other.body), (200, first.body));
}

#[test]
fn what_is_no_list_is_not_found_and_the_agent_is_not_asked_for_it() {
    let service = Service::start();
    assert_eq!(lists(&service), json!([]));
    service.agent.set(|answers| answers.lists = [(7, Vec::new())].into());
    until("the list exists", || service.get("/status/7").status == 200);
    let signed = service.agent.get(|answers| answers.signed_lists);
    for path in [
        "/status/8",
        "/status/07",
        "/status/x",
        "/status/4294967303",
        "/status/-7",
        "/status/7/1",
    ] {
        assert_eq!(service.get(path).status, 404, "{path}");
    }
    assert_eq!(service.agent.get(|answers| answers.signed_lists), signed);
    assert_eq!(service.post("/status/7", "a=b").status, 405);
    for _ in 0..100 {
        assert_eq!(service.get("/status/7").status, 200);
    }
    assert!(service.agent.get(|answers| answers.signed_lists) < signed + 100);
}

#[test]
fn a_list_that_the_agent_cannot_sign_is_unavailable() {
    let service = Service::start();
    service.agent.set(|answers| {
        answers.lists = [(7, Vec::new())].into();
        answers.is_unknown = true;
    });
    let response = service.get("/status/7");
    assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
    assert!(!response.body.contains("canary"), "{}", response.body);
    until("the operator reads why", || {
        service.log().contains("canary-cause-for-the-operator")
    });
}

#[test]
fn a_list_is_compressed_for_whoever_can_read_that() {
    let service = Service::start();
    service
        .agent
        .set(|answers| answers.lists = [(7, (0..1000).collect())].into());
    let plain = service.get("/status/7");
    assert_eq!((plain.status, plain.header("content-encoding")), (200, None));
    let list = service.get_with("/status/7", &[("Accept-Encoding", "gzip")]);
    assert_eq!((list.status, list.header("content-encoding")), (200, Some("gzip")));
    assert_eq!(list.header("content-type"), Some("application/statuslist+jwt"));
    assert!(list.header("vary").is_some_and(|vary| vary.contains("accept-encoding")));
    let etag = plain.header("etag").unwrap();
    let known = service.get_with("/status/7", &[("Accept-Encoding", "gzip"), ("If-None-Match", etag)]);
    assert_eq!(known.status, 304);
}
