// SPDX-License-Identifier: MIT OR Apache-2.0

//! Command-line tools find the authorization server and their client id.

mod support;

use serde_json::{Value, json};
use support::{ISSUER, Response, Service};

const PUBLIC_CLIENT: &str = "[public-client]\nclient-id = \"flyte\"\nscopes = [\"all\", \"offline\"]\naudience = \"a\"\n\
    redirect-uris = [\"http://localhost:53593/callback\", \"http://127.0.0.1/callback\"]\n\
    authorization-metadata-key = \"Flyte-Authorization\"\n";
const FLYTE: &str = "/flyteidl.service.AuthMetadataService";
const FLYTE_2: &str = "/flyteidl2.auth.AuthMetadataService";

/// Posts a message with the Connect protocol.
fn call(service: &Service, path: &str, headers: &[(&str, &str)], message: &str) -> Response {
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n",
        message.len()
    );
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    service.send(format!("{request}\r\n{message}").as_bytes())
}

const JSON: (&str, &str) = ("Content-Type", "application/json");
const VERSION: (&str, &str) = ("Connect-Protocol-Version", "1");

#[test]
fn command_line_tools_find_their_settings() {
    let service = Service::with(PUBLIC_CLIENT);
    let client = service.get("/.well-known/workflow-token-client");
    assert_eq!(client.header("content-type"), Some("application/json"));
    assert_eq!(
        body(&client),
        json!({
            "client_id": "flyte",
            "redirect_uris": ["http://localhost:53593/callback", "http://127.0.0.1/callback"],
            "scope": "all offline",
            "audience": "a",
            "token_endpoint_auth_method": "none",
            "authorization_metadata_key": "flyte-authorization",
        })
    );
    let gateway = body(&service.get("/config/v1/flyte_client"));
    assert_eq!(
        gateway,
        json!({
            "client_id": "flyte",
            "redirect_uri": "http://localhost:53593/callback",
            "scopes": ["all", "offline"],
            "audience": "a",
            "authorization_metadata_key": "flyte-authorization",
        })
    );
    // Without a public client, nobody can log in.
    let service = Service::start();
    for path in ["/.well-known/workflow-token-client", "/config/v1/flyte_client"] {
        assert_eq!(service.get(path).status, 404, "{path}");
    }
    let response = call(&service, &format!("{FLYTE_2}/GetPublicClientConfig"), &[JSON], "{}");
    assert_eq!(response.status, 501, "{response:?}");
    let error: Value = serde_json::from_str(&response.body).unwrap();
    assert_eq!(error["code"], "unimplemented");
}

#[test]
fn flyte_finds_metadata_and_client_by_the_connect_protocol() {
    let service = Service::with(PUBLIC_CLIENT);
    let client = json!({
        "clientId": "flyte",
        "redirectUri": "http://localhost:53593/callback",
        "scopes": ["all", "offline"],
        "audience": "a",
        "authorizationMetadataKey": "flyte-authorization",
    });
    for flyte in [FLYTE, FLYTE_2] {
        for headers in [
            &[JSON, VERSION][..],
            &[("Content-Type", "application/json; charset=utf-8")],
        ] {
            let response = call(&service, &format!("{flyte}/GetPublicClientConfig"), headers, "{}");
            assert_eq!(response.header("content-type"), Some("application/json"));
            assert_eq!(body(&response), client, "{flyte}");
        }
        let found = body(&call(
            &service,
            &format!("{flyte}/GetOAuth2Metadata"),
            &[JSON, VERSION],
            "{}",
        ));
        assert_eq!(
            (&found["issuer"], &found["tokenEndpoint"], &found["jwksUri"]),
            (
                &json!(ISSUER),
                &json!(format!("{ISSUER}/token")),
                &json!(format!("{ISSUER}/jwks"))
            )
        );
        assert!(
            found["grantTypesSupported"]
                .as_array()
                .unwrap()
                .contains(&json!("client_credentials"))
        );
    }
    // The methods of Flyte 2 have no side effects.
    for query in [
        "connect=v1&encoding=json&message=%7B%7D",
        "message=e30&base64=1&encoding=json&other=x",
        "message=e30%3D&base64=1&encoding=json",
        "encoding=json&compression=gzip&base64=1&message=",
    ] {
        let response = service.get(&format!("{FLYTE_2}/GetPublicClientConfig?{query}"));
        assert_eq!(body(&response), client, "{query}");
    }
    let response = service.get(&format!("{FLYTE}/GetPublicClientConfig?encoding=json&message=%7B%7D"));
    assert_eq!((response.status, response.header("allow")), (405, Some("POST")));
}

#[test]
fn flyte_finds_metadata_and_client_in_protocol_buffers() {
    let service = Service::with(PUBLIC_CLIENT);
    let client = "\x0a\x05flyte\x12\x1fhttp://localhost:53593/callback\x1a\x03all\x1a\x07offline\
        \x22\x13flyte-authorization\x32\x01a";
    let path = format!("{FLYTE_2}/GetPublicClientConfig");
    // The Python client compresses even its empty message.
    let gzip = "\x1f\x08\0";
    let proto = ("Content-Type", "application/proto");
    for (headers, message) in [
        (&[proto, VERSION][..], ""),
        (
            &[
                proto,
                VERSION,
                ("Content-Encoding", "gzip"),
                ("Accept-Encoding", "gzip"),
            ],
            gzip,
        ),
        (&[proto, ("Content-Encoding", "identity")], "\x08\x01"),
    ] {
        let response = call(&service, &path, headers, message);
        assert_eq!(
            (response.status, response.header("content-type"), response.body.as_str()),
            (200, Some("application/proto"), client),
            "{headers:?}"
        );
    }
    let got = service.get(&format!(
        "{path}?connect=v1&base64=1&compression=gzip&encoding=proto&message=H4sI"
    ));
    assert_eq!((got.status, got.body.as_str()), (200, client));
    let found = call(&service, &format!("{FLYTE_2}/GetOAuth2Metadata"), &[proto], "");
    assert!(found.body.starts_with(&format!("\x0a\x1a{ISSUER}")), "{found:?}");
}

#[test]
fn calls_that_are_wrong_get_errors_of_the_connect_protocol() {
    let service = Service::with(PUBLIC_CLIENT);
    let path = format!("{FLYTE_2}/GetPublicClientConfig");
    let long = format!("{{\"a\":\"{}\"}}", "a".repeat(40_000));
    for (headers, message, status, code) in [
        (&[JSON][..], "", 400, "invalid_argument"),
        (&[JSON], "[]", 400, "invalid_argument"),
        (&[JSON], "{", 400, "invalid_argument"),
        (
            &[JSON, ("Connect-Protocol-Version", "2")],
            "{}",
            400,
            "invalid_argument",
        ),
        (&[JSON], &long, 400, "invalid_argument"),
        (&[JSON, ("Content-Encoding", "br")], "{}", 501, "unimplemented"),
    ] {
        let response = call(&service, &path, headers, message);
        assert_eq!(
            (response.status, response.header("content-type")),
            (status, Some("application/json")),
            "{headers:?} {message:.20}"
        );
        let error: Value = serde_json::from_str(&response.body).unwrap();
        assert_eq!(error["code"], code, "{headers:?} {message:.20}");
    }
    for query in [
        "encoding=json",
        "message=%7B%7D",
        "encoding=json&message=%7B",
        "encoding=json&message=%7B%7D&base64=1",
        "encoding=json&message=%7B%7D&connect=v2",
        "encoding=json&message=%7B%7D&message=%7B%7D",
        "encoding=json&message=%ff",
    ] {
        let response = service.get(&format!("{path}?{query}"));
        assert_eq!(response.status, 400, "{query}");
        assert!(response.body.contains("invalid_argument"), "{query}: {response:?}");
    }
    for headers in [
        &[][..],
        &[("Content-Type", "application/grpc")],
        &[("Content-Type", "json")],
    ] {
        let response = call(&service, &path, headers, "{}");
        assert_eq!(response.status, 415, "{headers:?}");
        assert_eq!(
            response.header("accept-post"),
            Some("application/json, application/proto")
        );
    }
    assert_eq!(service.get(&format!("{path}?encoding=xml&message=")).status, 415);
    assert_eq!(call(&service, &format!("{FLYTE_2}/Other"), &[JSON], "{}").status, 404);
}

/// Returns the JSON of a successful response.
fn body(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{response:?}");
    serde_json::from_str(&response.body).unwrap()
}
