// SPDX-License-Identifier: MIT OR Apache-2.0

//! Services check tokens, and revoke them.

mod support;

use std::{fs, io::Write, os::unix::net::UnixStream};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use support::{ISSUER, Response, SECRET, Service, form_request, job_token, mint, until};
use token::{Algorithm, Grant, KeySet, SigningKey};

#[test]
fn clients_find_everything_by_metadata() {
    let service = Service::start();
    let metadata = service.get("/.well-known/oauth-authorization-server");
    assert_eq!(metadata.header("content-type"), Some("application/json"));
    let openid = service.get("/.well-known/openid-configuration");
    assert_eq!((metadata.status, &metadata.body), (200, &openid.body));
    let metadata: Value = serde_json::from_str(&metadata.body).unwrap();
    assert_eq!(
        (&metadata["issuer"], &metadata["jwks_uri"]),
        (&json!(ISSUER), &json!(format!("{ISSUER}/jwks")))
    );
    for endpoint in ["introspection_endpoint", "revocation_endpoint"] {
        let path = metadata[endpoint].as_str().unwrap().strip_prefix(ISSUER).unwrap();
        assert_eq!(service.get(path).status, 405, "{path}");
        assert_eq!(service.post(path, "token=x").status, 200, "{path}");
    }
    assert_eq!(metadata["id_token_signing_alg_values_supported"], json!(["EdDSA"]));

    let keys = service.get("/jwks");
    let (set, skipped) = KeySet::from_jwks(keys.body.as_bytes()).unwrap();
    assert_eq!((keys.status, set.len(), skipped.len()), (200, 1, 0));
    assert!(keys.header("cache-control").unwrap().contains("max-age="));
    let etag = keys.header("etag").unwrap();
    for known in [etag, &format!("\"x\", {etag}"), &format!("W/{etag}"), "*"] {
        let again = service.get_with("/jwks", &[("If-None-Match", known)]);
        assert_eq!(
            (again.status, again.header("etag"), again.body.as_str()),
            (304, Some(etag), ""),
            "{known}"
        );
    }
    assert_eq!(service.get_with("/jwks", &[("If-None-Match", "\"x\"")]).status, 200);
}

#[test]
fn a_token_is_active_exactly_as_long_as_its_job() {
    let service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    let active = service.introspect(&token);
    assert_eq!(
        (&active["active"], &active["sub"], &active["username"]),
        (&json!(true), &json!("alice"), &json!("alice"))
    );
    assert_eq!(
        (&active["token_type"], &active["scope"]),
        (&json!("Bearer"), &json!("session"))
    );
    assert_eq!(
        (&active["slurm"]["jobid"], &active["iss"]),
        (&json!("17"), &json!(ISSUER))
    );
    service.agent.set(|answers| answers.ended.extend([17]));
    until("the token is inactive", || {
        service.introspect(&token) == json!({"active": false})
    });
    // The token of another job is still valid.
    let other = job_token(&service.agent, "18", "copy-offload");
    assert_eq!(service.introspect(&other)["active"], true);
}

#[test]
fn what_is_not_known_is_neither_active_nor_inactive() {
    let service = Service::start();
    service.agent.set(|answers| answers.is_unknown = true);
    let token = job_token(&service.agent, "17", "copy-offload");
    let response = service.post("/introspect", &format!("token={token}"));
    assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
    // The response reveals nothing about the site.
    assert!(!response.body.contains("canary-cause"), "{}", response.body);
    until("the operator learns the cause", || {
        service.log().contains("canary-cause-for-the-operator")
    });
    let forward = service.get_with(
        "/auth/caddy?aud=copy-offload",
        &[("Authorization", &format!("Bearer {token}"))],
    );
    assert_eq!(forward.status, 503);
}

#[test]
fn tokens_that_are_not_valid_are_inactive() {
    let service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    let claims = |exp: &str, iss: &str| {
        service.agent.sign(&format!(
            r#"{{"iss":"{iss}","sub":"a","aud":"copy-offload","exp":{exp}}}"#
        ))
    };
    let stranger = SigningKey::generate(Algorithm::EdDsa);
    let payload = format!(r#"{{"iss":"{ISSUER}","sub":"a","aud":"copy-offload","exp":9e9}}"#);
    let forged = secrecy::ExposeSecret::expose_secret(&stranger.sign(&[("typ", "JWT")], payload.as_bytes())).to_owned();
    for bad in [
        "x".to_owned(),
        token[..token.len() - 1].to_owned(),
        token.split('.').take(2).collect::<Vec<_>>().join("."),
        claims("1", ISSUER),
        claims("9e9", "https://other.example.org"),
        forged,
        // A client learns nothing about tokens for others.
        mint(&service.agent, "other-service", Grant::Cluster),
    ] {
        assert_eq!(service.introspect(&bad), json!({"active": false}), "{bad}");
    }
    assert_eq!(service.introspect(&claims("9e9", ISSUER))["active"], true);
}

#[test]
fn a_client_that_does_not_prove_its_identity_learns_nothing() {
    let service = Service::with(
        "[[client]]\nid = \"weak\"\nuser = 4000000000\naudience = [\"copy-offload\"]\nmay = [\"revoke\"]",
    );
    let token = job_token(&service.agent, "17", "copy-offload");
    let form = format!("token={token}");
    for client in [None, Some("copy:wrong"), Some("copy"), Some("weak:"), Some("nobody:x")] {
        for path in ["/introspect", "/revoke"] {
            let response = service.post_as(client, path, &form, &[]);
            assert_eq!(response.status, 401, "{client:?} {path}");
            assert!(response.header("www-authenticate").unwrap().starts_with("Basic "));
            assert!(response.body.contains("invalid_client"), "{}", response.body);
        }
    }
    assert_eq!(
        service.agent.get(|answers| (answers.checked, answers.revoked.len())),
        (0, 0)
    );
    // A repeated parameter is rejected, whatever its value.
    for form in [
        format!("{form}&{form}"),
        format!("{form}&x=1&x=1"),
        "token_type_hint=x".to_owned(),
        "token=%ff".to_owned(),
    ] {
        assert_eq!(service.post("/introspect", &form).status, 400, "{form}");
    }
    let text = format!(
        "POST /introspect HTTP/1.1\r\nHost: a\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    assert_eq!(service.send(text.as_bytes()).status, 400);
}

#[test]
fn a_local_client_is_known_by_its_uid_on_a_unix_socket() {
    let me = nix::unistd::geteuid().as_raw();
    let service = Service::with_listener(
        "socket = \"DIR/http\"",
        &format!("[[client]]\nid = \"local\"\nuser = {me}\naudience = [\"copy-offload\"]\nmay = [\"introspect\"]"),
    );
    let token = job_token(&service.agent, "17", "copy-offload");
    let ask = |path: &str, form: &str| {
        let mut stream = UnixStream::connect(service.dir.path().join("http")).unwrap();
        stream.write_all(&form_request(None, path, form, &[])).unwrap();
        Response::receive(&mut stream).unwrap()
    };
    until("the keys are known", || {
        ask("/introspect", &format!("token={token}"))
            .body
            .contains("\"active\":true")
    });
    // The client has no further permissions, and cannot claim to be another one.
    assert!(
        ask("/revoke", &format!("token={token}"))
            .body
            .contains("unauthorized_client")
    );
    assert_eq!(ask("/introspect", &format!("client_id=copy&token={token}")).status, 401);
}

#[test]
fn a_response_is_signed_for_the_client() {
    let service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    let kind = "application/token-introspection+jwt";
    let client = format!("copy:{SECRET}");
    let accept = [("Accept", "text/html, application/token-introspection+jwt;q=0.9")];
    let response = service.post_as(Some(&client), "/introspect", &format!("token={token}"), &accept);
    assert_eq!((response.status, response.header("content-type")), (200, Some(kind)));
    let part = |n| {
        URL_SAFE_NO_PAD
            .decode(response.body.split('.').nth(n).unwrap())
            .unwrap()
    };
    let claims: Value = serde_json::from_slice(&part(1)).unwrap();
    assert_eq!(
        (&claims["aud"], &claims["token_introspection"]["active"]),
        (&json!("copy"), &json!(true))
    );
    assert_eq!(claims["token_introspection"]["sub"], "alice");
    // The signed response cannot be used as a token.
    assert_eq!(service.introspect(&response.body), json!({"active": false}));
}

#[test]
fn a_revoked_token_is_inactive_at_once() {
    let service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    let jti = service.introspect(&token)["jti"].as_str().unwrap().to_owned();
    // A token for others is not revoked.
    let other = mint(&service.agent, "other-service", Grant::Cluster);
    assert_eq!(service.post("/revoke", &format!("token={other}")).status, 200);
    assert!(service.agent.get(|answers| answers.revoked.is_empty()));
    // A failed revocation is reported as an error.
    service.agent.set(|answers| answers.is_read_only = true);
    assert_eq!(service.post("/revoke", &format!("token={token}")).status, 503);
    assert_eq!(service.introspect(&token)["active"], true);
    service.agent.set(|answers| answers.is_read_only = false);
    // A client need not retry if the site stores no revocations.
    service.agent.set(|answers| answers.has_no_revocations = true);
    let response = service.post("/revoke", &format!("token={token}"));
    assert_eq!(response.status, 400);
    assert!(
        response.body.contains(r#""error":"unsupported_token_type""#),
        "{}",
        response.body
    );
    service.agent.set(|answers| answers.has_no_revocations = false);
    let response = service.post("/revoke", &format!("token={token}&token_type_hint=refresh_token"));
    assert_eq!((response.status, response.body.as_str()), (200, ""));
    assert_eq!(service.introspect(&token), json!({"active": false}));
    assert!(service.agent.get(|answers| answers.revoked.contains(&jti)));
    let audit = fs::read_to_string(service.dir.path().join("audit")).unwrap();
    let line: Value = serde_json::from_str(&audit).unwrap();
    assert_eq!(
        (&line["event"], &line["jti"], &line["client"]),
        (&json!("revoke"), &json!(jti), &json!("copy"))
    );
    assert_eq!((&line["uid"], &line["job"]), (&json!(1000), &json!("17")));
    assert!(!audit.contains("eyJ"), "{audit}");
    // An expired or malformed token is not an error (RFC 7009 section 2.2).
    assert_eq!(service.post("/revoke", "token=x").status, 200);
}

#[test]
fn keys_that_rotate_are_learned_and_strangers_cannot_have_them_asked_for_without_end() {
    let service = Service::start();
    let old = job_token(&service.agent, "17", "copy-offload");
    service
        .agent
        .set(|answers| answers.keys.insert(0, SigningKey::generate(Algorithm::Es256)));
    let new = job_token(&service.agent, "18", "copy-offload");
    // The reply of the agent may be cached for a moment.
    until("the new key is known", || service.introspect(&new)["active"] == true);
    assert_eq!(service.introspect(&old)["active"], true);
    let before = service.agent.get(|answers| answers.asked_for_keys);
    for _ in 0..50 {
        let stranger = SigningKey::generate(Algorithm::EdDsa);
        let payload = format!(r#"{{"iss":"{ISSUER}","sub":"a","aud":"copy-offload","exp":9e9}}"#);
        let forged = stranger.sign(&[("typ", "JWT")], payload.as_bytes());
        let forged = secrecy::ExposeSecret::expose_secret(&forged).to_owned();
        assert_eq!(service.introspect(&forged), json!({"active": false}));
    }
    let asked = service.agent.get(|answers| answers.asked_for_keys) - before;
    assert!(asked < 50, "{asked} questions for 50 tokens");
}

#[test]
fn the_agent_is_not_asked_for_each_of_many_requests() {
    let service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    for _ in 0..200 {
        assert_eq!(service.introspect(&token)["active"], true);
    }
    let checked = service.agent.get(|answers| answers.checked);
    assert!((1..200).contains(&checked), "{checked} questions");
}

#[test]
fn a_killed_agent_delays_answers_and_changes_none() {
    let mut service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    for _ in 0..5 {
        service.agent.kill();
        until("the service is not ready", || service.get("/readyz").status == 503);
        assert_eq!(service.get("/livez").status, 200);
        let mut stream = service.connect();
        let client = format!("copy:{SECRET}");
        stream
            .write_all(&form_request(
                Some(&client),
                "/introspect",
                &format!("token={token}"),
                &[],
            ))
            .unwrap();
        service.agent.listen();
        let response = Response::receive(&mut stream).unwrap();
        assert!(
            response.status == 200 && response.body.contains("\"active\":true"),
            "{response:?}"
        );
        service.until_ready();
    }
    until("the operator reads that it is back", || {
        service.log().contains("is back")
    });
}
