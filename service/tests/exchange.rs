// SPDX-License-Identifier: MIT OR Apache-2.0

//! Users and clients get tokens.

mod support;

use std::fs;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use protocol::DenialCode;
use serde_json::{Value, json};
use support::{Response, SECRET, Service, job_token, mint};
use token::Grant;

const EXCHANGE: &str = "grant_type=urn:ietf:params:oauth:grant-type:token-exchange";
const MUNGE: &str = "subject_token_type=urn:x-workflow-token:munge&subject_token=MUNGE:canary-secret-credential:";

/// Returns the response, and the claims of the token in it.
fn issued(response: &Response) -> (Value, Value) {
    assert_eq!(response.status, 200, "{}", response.body);
    assert_eq!(
        (response.header("cache-control"), response.header("pragma")),
        (Some("no-store"), Some("no-cache"))
    );
    let answer: Value = serde_json::from_str(&response.body).unwrap();
    let payload = answer["access_token"].as_str().unwrap().split('.').nth(1).unwrap();
    let claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    (answer, claims)
}

fn error(response: &Response) -> String {
    let body: Value = serde_json::from_str(&response.body).unwrap();
    body["error"].as_str().unwrap().to_owned()
}

#[test]
fn a_munge_credential_needs_no_client() {
    let service = Service::with("[[resource]]\nname = \"b\"\nurl = \"https://b.example.org\"");
    let form =
        format!("{EXCHANGE}&{MUNGE}&audience=a&resource=https://b.example.org&project=x+y&scope=workspace&lifetime=60");
    let (answer, claims) = issued(&service.post_as(None, "/token", &form, &[]));
    assert_eq!(
        (&claims["proof"], &claims["aud"]),
        (&json!("munge:MUNGE:canary-secret-credential:"), &json!(["a", "b"]))
    );
    assert_eq!(
        (&claims["workspace"], &claims["wanted"], &claims["lifetime"]),
        (&json!(["x", "y"]), &json!("workspace"), &json!(60))
    );
    assert_eq!(
        (&answer["token_type"], &answer["scope"]),
        (&json!("Bearer"), &json!("workspace"))
    );
    assert_eq!(
        answer["issued_token_type"],
        "urn:ietf:params:oauth:token-type:access_token"
    );
    assert!(answer["expires_in"].as_u64().unwrap() > 0);
    // The token is valid.
    let audit = fs::read_to_string(service.dir.path().join("audit")).unwrap();
    let line: Value = serde_json::from_str(&audit).unwrap();
    assert_eq!(
        (&line["event"], &line["jti"], &line["sub"]),
        (&json!("exchange"), &json!("of-the-minted"), &json!("alice"))
    );
    assert!(!audit.contains("canary-secret") && !audit.contains("eyJ"));
    let metadata: Value = serde_json::from_str(&service.get("/.well-known/oauth-authorization-server").body).unwrap();
    assert_eq!(metadata["munge_uid"], nix::unistd::geteuid().as_raw());
    assert!(metadata["token_endpoint"].as_str().unwrap().ends_with("/token"));
}

#[test]
fn a_client_gets_tokens_of_its_own() {
    let service = Service::start();
    let (answer, claims) = issued(&service.post("/token", "grant_type=client_credentials"));
    assert_eq!((&claims["proof"], &claims["sub"]), (&json!("client"), &json!("copy")));
    assert_eq!(answer["issued_token_type"], Value::Null);
    for client in [None, Some("copy:wrong"), Some("other:x")] {
        let response = service.post_as(client, "/token", "grant_type=client_credentials", &[]);
        assert_eq!(
            (response.status, error(&response).as_str()),
            (401, "invalid_client"),
            "{client:?}"
        );
        // A wrong secret is an error, and does not count as a request without a client.
        if client.is_some() {
            let response = service.post_as(client, "/token", &format!("{EXCHANGE}&{MUNGE}"), &[]);
            assert_eq!(error(&response), "invalid_client");
        }
    }
    assert_eq!(service.agent.get(|answers| answers.minted), 1);
}

#[test]
fn a_client_exchanges_the_tokens_that_are_for_it() {
    let service = Service::start();
    let exchange = |token: &str, client: Option<&str>| {
        let kind = "subject_token_type=urn:ietf:params:oauth:token-type:access_token";
        service.post_as(
            client,
            "/token",
            &format!("{EXCHANGE}&{kind}&subject_token={token}"),
            &[],
        )
    };
    let copy = format!("copy:{SECRET}");
    let own = job_token(&service.agent, "17", "copy-offload");
    let (_, claims) = issued(&exchange(&own, Some(&copy)));
    assert_eq!(claims["proof"], format!("token:{own}"));
    let other = mint(&service.agent, "other-service", Grant::Cluster);
    assert_eq!(error(&exchange(&other, Some(&copy))), "invalid_grant");
    assert_eq!(service.agent.get(|answers| answers.minted), 1);
    // The holder of the token may exchange it without being a client.
    issued(&exchange(&other, None));
}

#[test]
fn requests_that_cannot_be_met_say_why() {
    let service = Service::start();
    for (form, expected) in [
        ("", "invalid_request"),
        ("grant_type=password&username=a&password=b", "unsupported_grant_type"),
        (EXCHANGE, "invalid_request"),
        (&format!("{EXCHANGE}&{MUNGE}&actor_token=x"), "invalid_request"),
        (
            &format!("{EXCHANGE}&{MUNGE}&requested_token_type=urn:ietf:params:oauth:token-type:saml2"),
            "invalid_request",
        ),
        (
            &format!("{EXCHANGE}&subject_token=x&subject_token_type=urn:x"),
            "invalid_request",
        ),
        (&format!("{EXCHANGE}&{MUNGE}&scope=a&scope=b"), "invalid_request"),
        (&format!("{EXCHANGE}&{MUNGE}&lifetime=-1"), "invalid_request"),
        (
            &format!("{EXCHANGE}&subject_token_type=urn:x-workflow-token:munge&subject_token=x"),
            "invalid_request",
        ),
        (
            &format!("{EXCHANGE}&{MUNGE}&project={}", "a+".repeat(65)),
            "invalid_request",
        ),
        (&format!("{EXCHANGE}&{MUNGE}&resource=https://x"), "invalid_target"),
    ] {
        let response = service.post_as(None, "/token", form, &[]);
        assert_eq!((response.status, error(&response).as_str()), (400, expected), "{form}");
    }
    assert_eq!(service.agent.get(|answers| answers.minted), 0);
    for (code, expected) in [
        (DenialCode::InvalidGrant, "invalid_grant"),
        (DenialCode::InvalidTarget, "invalid_target"),
        (DenialCode::InvalidScope, "invalid_scope"),
        (DenialCode::UnauthorizedClient, "unauthorized_client"),
    ] {
        service.agent.set(|answers| answers.denied = Some(code));
        let response = service.post_as(None, "/token", &format!("{EXCHANGE}&{MUNGE}"), &[]);
        assert_eq!((response.status, error(&response).as_str()), (400, expected));
    }
}

#[test]
fn a_credential_is_never_sent_twice() {
    let mut service = Service::start();
    service.agent.set(|answers| answers.is_silent = true);
    let mut stream = service.connect();
    let request = support::form_request(None, "/token", &format!("{EXCHANGE}&{MUNGE}"), &[]);
    std::io::Write::write_all(&mut stream, &request).unwrap();
    support::until("the agent has received it", || {
        service.agent.get(|answers| answers.received > 0)
    });
    service.agent.set(|answers| answers.is_silent = false);
    service.agent.kill();
    service.agent.listen();
    let response = Response::receive(&mut stream).unwrap();
    assert_eq!(
        (response.status, error(&response).as_str()),
        (503, "temporarily_unavailable")
    );
    assert_eq!(service.agent.get(|answers| answers.minted), 0);
}
