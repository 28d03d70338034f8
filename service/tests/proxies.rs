// SPDX-License-Identifier: MIT OR Apache-2.0

//! Proxies ask about each request to the services behind them.

mod support;

use support::{Service, job_token, mint, until};
use token::Grant;

const RESOURCE: &str =
    "[[resource]]\nname = \"copy-offload\"\nurl = \"https://copy.example.org/api\"\nscopes = [\"session\"]\n";

/// The identity headers.
const IDENTITY: [&str; 8] = ["subject", "scope", "project", "job", "uid", "instance", "id", "expires"];

fn bearer(token: &str) -> (&'static str, String) {
    ("Authorization", format!("Bearer {token}"))
}

#[test]
fn a_grant_sets_every_identity_header() {
    let service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    let (name, value) = bearer(&token);
    // The request contains identity headers of the client. A proxy overwrites them with ours.
    let forged = [
        (name, value.as_str()),
        ("X-Workflow-Token-Subject", "root"),
        ("X-Workflow-Token-Uid", "0"),
    ];
    for (path, status) in [
        ("/auth/nginx?aud=copy-offload", 204),
        ("/auth/traefik?aud=other+copy-offload&scope=session", 204),
        ("/auth/caddy?aud=copy-offload&project=hydro", 204),
    ] {
        let response = service.get_with(path, &forged);
        assert_eq!(response.status, status, "{path}");
        let headers = IDENTITY.map(|name| response.header(&format!("x-workflow-token-{name}")));
        let [subject, scope, project, job, uid, instance, id, expires] = headers;
        assert_eq!(
            (subject, scope, project),
            (Some("alice"), Some("session"), Some("hydro"))
        );
        assert_eq!((job, uid, instance), (Some("17"), Some("1000"), Some("hpc")));
        assert!(id.is_some_and(|id| id.len() == 22) && expires.unwrap().parse::<u64>().is_ok());
    }
    // Headers for absent claims are empty, not missing.
    let token = mint(&service.agent, "copy-offload", Grant::Cluster);
    let (name, value) = bearer(&token);
    let response = service.get_with("/auth/caddy?aud=copy-offload", &[(name, &value)]);
    assert_eq!(response.status, 204);
    for name in ["project", "job", "uid", "instance"] {
        assert_eq!(response.header(&format!("x-workflow-token-{name}")), Some(""), "{name}");
    }
}

#[test]
fn a_refusal_says_what_is_missing() {
    let service = Service::with(RESOURCE);
    let ask = |path: &str, token: &str| {
        let (name, value) = bearer(token);
        let response = service.get_with(path, &[(name, &value)]);
        let is_silent = IDENTITY
            .iter()
            .all(|name| response.header(&format!("x-workflow-token-{name}")).is_none());
        assert_eq!(is_silent, response.status != 204);
        (
            response.status,
            response.header("www-authenticate").unwrap_or_default().to_owned(),
        )
    };
    let token = job_token(&service.agent, "17", "copy-offload");
    let metadata = "resource_metadata=\"https://copy.example.org/.well-known/oauth-protected-resource/api\"";
    let (status, challenge) = ask("/auth/nginx?aud=copy-offload", "x");
    assert!(
        status == 401 && challenge.contains("error=\"invalid_token\"") && challenge.contains(metadata),
        "{challenge}"
    );
    let none = service.get("/auth/nginx?aud=copy-offload");
    let challenge = none.header("www-authenticate").unwrap();
    assert!(
        none.status == 401 && !challenge.contains("error=") && challenge.contains(metadata),
        "{challenge}"
    );
    let (status, challenge) = ask("/auth/nginx?aud=other", &token);
    assert!(
        status == 401 && challenge.contains("it is for another service"),
        "{challenge}"
    );
    let (status, challenge) = ask("/auth/nginx?aud=copy-offload&scope=cluster", &token);
    assert!(
        status == 403 && challenge.contains("insufficient_scope") && challenge.contains("scope=\"cluster\""),
        "{challenge}"
    );
    let (status, challenge) = ask("/auth/nginx?aud=copy-offload&project=other", &token);
    assert!(status == 403 && challenge.contains("another project"), "{challenge}");
    // A scope of the proxy cannot break out of the header.
    let (status, challenge) = ask(
        "/auth/nginx?aud=copy-offload&scope=%22%2C+x%3D%22%0d%0aSet-Cookie:a",
        &token,
    );
    assert!(status == 403 && !challenge.contains("Set-Cookie"), "{challenge}");
    service.agent.set(|answers| answers.ended.extend([17]));
    until("the token is refused", || {
        let (status, challenge) = ask("/auth/caddy?aud=copy-offload", &token);
        status == 401 && challenge.contains("its job has ended")
    });
    let metadata = service.get("/.well-known/oauth-protected-resource/copy-offload");
    assert!(
        metadata.body.contains("\"resource\":\"https://copy.example.org/api\""),
        "{}",
        metadata.body
    );
    assert_eq!(service.get("/.well-known/oauth-protected-resource/other").status, 404);
}

#[test]
fn a_proxy_that_demands_nothing_is_refused() {
    let service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    let (name, value) = bearer(&token);
    for query in [
        "",
        "?",
        "?aud=",
        "?audience=copy-offload",
        "?aud=copy-offload&aud=copy-offload",
        "?aud=copy-offload&role=x",
        "?aud=%ff",
    ] {
        let response = service.get_with(&format!("/auth/caddy{query}"), &[(name, &value)]);
        assert_eq!(response.status, 403, "{query}");
    }
    until("the operator reads it", || {
        service.log().contains("the parameter aud is missing")
    });
}

#[test]
fn nginx_understands_401_and_403_only() {
    let service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    let (name, value) = bearer(&token);
    for headers in [
        &[(name, "Bearer a b")][..],
        &[(name, "Bearer")],
        &[(name, &value), ("X-Session", "x")],
    ] {
        let nginx = service.get_with("/auth/nginx?aud=copy-offload", headers).status;
        assert!(matches!(nginx, 204 | 401 | 403), "{nginx}");
    }
    assert_eq!(
        service
            .get_with("/auth/caddy?aud=copy-offload", &[(name, "Bearer a b")])
            .status,
        400
    );
}

#[test]
fn the_client_of_envoy_cannot_weaken_the_demand() {
    let service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    let (name, value) = bearer(&token);
    // Envoy sends the method, path and query of the client.
    let ask = |path: &str, demand: &[&str]| {
        let mut headers = vec![(name, value.as_str()), ("x-envoy-internal", "true")];
        headers.extend(demand.iter().map(|demand| ("x-workflow-token-demand", *demand)));
        service.get_with(path, &headers)
    };
    for path in [
        "/auth/envoy",
        "/auth/envoy/",
        "/auth/envoy/a//b/%2e%2e/c;d?aud=x&scope=y",
        "/auth/envoy/../../livez",
    ] {
        let granted = ask(path, &["aud=copy-offload"]);
        assert_eq!(
            (granted.status, granted.header("x-workflow-token-subject")),
            (200, Some("alice")),
            "{path}"
        );
        assert_eq!(ask(path, &["aud=other"]).status, 401, "{path}");
    }
    for demand in [&[][..], &["aud=copy-offload", "aud=copy-offload"], &[""]] {
        assert_eq!(ask("/auth/envoy/?aud=copy-offload", demand).status, 403, "{demand:?}");
    }
}

#[test]
fn neither_a_path_nor_a_forwarded_header_grants_anything() {
    let service = Service::start();
    for (path, headers) in [
        ("/auth/nginx?aud=copy-offload", ("X-Original-URI", "/healthz")),
        (
            "/auth/traefik?aud=copy-offload",
            ("X-Forwarded-Uri", "/.well-known/oauth-authorization-server"),
        ),
        ("/auth/traefik?aud=copy-offload", ("X-Forwarded-For", "127.0.0.1")),
        ("/auth/caddy?aud=copy-offload", ("X-Forwarded-Method", "OPTIONS")),
        ("/auth/caddy?aud=copy-offload", ("User-Agent", "kube-probe/1.30")),
        ("/auth/caddy?aud=copy-offload", ("X-Forwarded-User", "root")),
        ("/auth/caddy?aud=copy-offload", ("X-Workflow-Token-Demand", "aud=x")),
    ] {
        assert_eq!(service.get_with(path, &[headers]).status, 401, "{path} {headers:?}");
    }
}

#[test]
fn old_and_new_clients_are_served_while_they_are_migrated() {
    let service = Service::with(
        "[legacy]\nheader = \"X-Session\"\ndeprecated = \"2026-01-01\"\nsunset = \"2027-06-30\"\n\n[metrics]\naddress = \"127.0.0.1:0\"",
    );
    let token = job_token(&service.agent, "17", "copy-offload");
    let (name, value) = bearer(&token);
    let path = "/auth/caddy?aud=copy-offload";
    let old = service.get_with(path, &[("X-Session", &token)]);
    assert_eq!(
        (old.status, old.header("x-workflow-token-subject")),
        (204, Some("alice"))
    );
    assert_eq!(
        (old.header("deprecation"), old.header("sunset")),
        (Some("@1767225600"), Some("Wed, 30 Jun 2027 00:00:00 GMT"))
    );
    let new = service.get_with(path, &[(name, &value)]);
    assert_eq!((new.status, new.header("deprecation")), (204, None));
    let both = service.get_with(path, &[(name, &value), ("X-Session", &token)]);
    assert_eq!((both.status, both.header("deprecation")), (204, None));
    let other = job_token(&service.agent, "18", "copy-offload");
    assert_eq!(
        service.get_with(path, &[(name, &value), ("X-Session", &other)]).status,
        400
    );
    // An invalid token is invalid in both headers.
    let bad = service.get_with(path, &[("X-Session", "x")]);
    assert_eq!((bad.status, bad.header("deprecation")), (401, Some("@1767225600")));
    let metrics = service.metrics();
    assert!(
        metrics.contains("workflow_tokend_legacy_requests_total 2\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("workflow_tokend_decisions_total{result=\"granted\"} 3\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("workflow_tokend_requests_total{route=\"/auth/caddy\",code=\"204\"} 3\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("workflow_tokend_agent_connected 1\n") && metrics.ends_with("# EOF\n"),
        "{metrics}"
    );
}

#[test]
fn the_header_of_old_clients_is_nothing_by_default() {
    let service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    assert_eq!(
        service
            .get_with("/auth/caddy?aud=copy-offload", &[("X-Session", &token)])
            .status,
        401
    );
}
