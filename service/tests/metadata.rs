// SPDX-License-Identifier: MIT OR Apache-2.0

//! The service publishes the metadata of another server instead of its own.

#[path = "support/stub.rs"]
mod stub;
mod support;

use std::fs;

use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use stub::{Reply, Stub};
use support::{ISSUER, Response, Service, until, write_settings};

const OAUTH: &str = "/.well-known/oauth-authorization-server";
const OPENID: &str = "/.well-known/openid-configuration";
const LISTENER: &str = "address = \"127.0.0.1:0\"";

/// The metadata of a server, named as in the standards.
fn metadata(issuer: &str) -> Value {
    json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "device_authorization_endpoint": format!("{issuer}/device"),
        "jwks_uri": format!("{issuer}/keys"),
        "grant_types_supported": ["authorization_code"],
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "response_types_supported": ["code"],
        "code_challenge_methods_supported": ["S256"],
        "mtls_endpoint_aliases": {"token_endpoint": format!("{issuer}/mtls")},
        "x-vendor": true,
    })
}

fn external(issuer: &str, more: &str) -> String {
    format!("[external]\nissuer = \"{issuer}\"\n{more}\n")
}

fn body(response: &Response) -> Value {
    assert_eq!(response.status, 200, "{response:?}");
    serde_json::from_str(&response.body).unwrap()
}

/// Waits until the service publishes metadata.
fn served(service: &Service) -> Value {
    until("metadata are served", || service.get(OAUTH).status == 200);
    body(&service.get(OAUTH))
}

/// Waits until the log contains a text, and checks that no metadata are published.
fn refused(service: &Service, says: &str) {
    until(says, || service.log().contains(says));
    let response = service.get(OAUTH);
    assert_eq!((response.status, response.header("retry-after")), (503, Some("1")));
    // The response reveals nothing about the site.
    assert!(!response.body.contains("127.0.0.1"), "{response:?}");
}

#[test]
fn metadata_of_another_server_are_served_in_place_of_our_own() {
    let server = Stub::start();
    server.set_json(OAUTH, &metadata(&server.url()));
    let service = Service::with(&external(&server.url(), ""));
    assert_eq!(served(&service), metadata(&server.url()));
    assert_eq!(body(&service.get(OPENID)), metadata(&server.url()));
    assert_eq!(server.asked(OPENID), 0);
    // The URL of our keys stays the same.
    assert_eq!(body(&service.get("/jwks"))["keys"].as_array().unwrap().len(), 1);
}

#[test]
fn metadata_in_the_place_of_openid_and_in_camel_case_are_found() {
    let server = Stub::start();
    let issuer = format!("{}/realms/hpc", server.url());
    let camel =
        json!({"issuer": issuer, "tokenEndpoint": "https://t", "grantTypesSupported": ["x"], "jwks_uri": "https://k"});
    server.set_json("/realms/hpc/.well-known/openid-configuration", &camel);
    let service = Service::with(&external(&issuer, ""));
    assert_eq!(
        served(&service),
        json!({"issuer": issuer, "token_endpoint": "https://t", "grant_types_supported": ["x"], "jwks_uri": "https://k"})
    );
    assert!(server.asked("/.well-known/oauth-authorization-server/realms/hpc") > 0);
}

#[test]
fn metadata_are_where_the_file_says() {
    let server = Stub::start();
    server.set_json("/odd", &metadata("https://login.example.org"));
    let more = format!("metadata = \"{}/odd\"", server.url());
    let service = Service::with(&external("https://login.example.org", &more));
    assert_eq!(served(&service)["issuer"], "https://login.example.org");
    assert_eq!(server.asked(OAUTH), 0);
}

#[test]
fn the_token_endpoint_is_ours_or_another_if_the_file_says_so() {
    let server = Stub::start();
    server.set_json(OAUTH, &metadata(&server.url()));
    let service = Service::with(&external(&server.url(), "token-endpoint = \"ours\""));
    let found = served(&service);
    assert_eq!(found["token_endpoint"], format!("{ISSUER}/token"));
    let grants = found["grant_types_supported"].as_array().unwrap();
    assert!(
        grants.contains(&json!("urn:ietf:params:oauth:grant-type:token-exchange")),
        "{grants:?}"
    );
    let methods = found["token_endpoint_auth_methods_supported"].as_array().unwrap();
    assert!(methods.contains(&json!("client_secret_basic")), "{methods:?}");
    // A client that uses TLS certificates cannot bypass the endpoint.
    assert_eq!(found["mtls_endpoint_aliases"], Value::Null);
    assert_eq!(found["jwks_uri"], format!("{}/keys", server.url()));

    let more = external(&server.url(), "token-endpoint = \"https://t.example.org/token\"");
    write_settings(service.dir.path(), LISTENER, &more);
    service.signal(Signal::SIGHUP);
    until("the other endpoint is served", || {
        served(&service)["token_endpoint"] == "https://t.example.org/token"
    });
    assert_eq!(served(&service)["grant_types_supported"], json!(["authorization_code"]));
}

#[test]
fn a_server_that_comes_up_is_found_and_one_that_goes_down_is_remembered() {
    let server = Stub::start();
    server.set(OAUTH, Reply::Nothing);
    server.set(OPENID, Reply::Status(502, String::new()));
    let service = Service::with(&external(&server.url(), ""));
    refused(&service, "status 502");
    // The service retries.
    let asked = server.asked(OAUTH);
    until("it is asked again", || server.asked(OAUTH) > asked + 1);
    server.set_json(OAUTH, &metadata(&server.url()));
    assert_eq!(served(&service), metadata(&server.url()));

    server.set(OAUTH, Reply::Status(500, String::new()));
    service.signal(Signal::SIGHUP);
    until("the trouble is reported", || service.log().contains("status 500"));
    assert_eq!(served(&service), metadata(&server.url()));
    let mut other = metadata(&server.url());
    other["token_endpoint"] = json!("https://t");
    server.set_json(OAUTH, &other);
    until("it is back", || served(&service) == other);
}

#[test]
fn metadata_are_refreshed() {
    let server = Stub::start();
    server.set_json(OAUTH, &metadata(&server.url()));
    let service = Service::with(&external(&server.url(), "refresh = \"1s\""));
    served(&service);
    let mut other = metadata(&server.url());
    other["token_endpoint"] = json!("https://t");
    server.set_json(OAUTH, &other);
    until("they are fetched again", || served(&service) == other);
}

#[test]
fn a_server_that_is_silent_keeps_nobody_waiting() {
    let server = Stub::start();
    server.set(OAUTH, Reply::Silence);
    let service = Service::with(&external(&server.url(), ""));
    until("it is asked", || server.asked(OAUTH) > 0);
    assert_eq!(service.get(OAUTH).status, 503);
    assert_eq!((service.get("/readyz").status, service.get("/jwks").status), (200, 200));
    server.set_json(OPENID, &metadata(&server.url()));
    // After the refresh interval, the service tries the other URL.
    assert_eq!(served(&service), metadata(&server.url()));
}

#[test]
fn endless_metadata_are_not_read_to_their_end() {
    let server = Stub::start();
    server.set(OAUTH, Reply::Endless);
    let ten_megabytes = format!("{{\"issuer\":\"{}\",\"x\":\"{}\"}}", server.url(), "x".repeat(10 << 20));
    server.set(OPENID, Reply::Body(ten_megabytes));
    let service = Service::with(&external(&server.url(), ""));
    refused(&service, "openid-configuration: more than 1048576 bytes");
    assert!(
        service
            .log()
            .contains("oauth-authorization-server: more than 1048576 bytes")
    );
}

#[test]
fn metadata_of_another_issuer_are_refused() {
    let server = Stub::start();
    server.set_json(OAUTH, &metadata("https://evil.example.org"));
    server.set(OPENID, Reply::Body("<html>canary</html>".to_owned()));
    let service = Service::with(&external(&server.url(), ""));
    refused(&service, "metadata of another issuer, `https://evil.example.org`");
    assert!(service.log().contains("openid-configuration: no metadata in JSON"));
}

#[test]
fn redirects_are_not_followed() {
    let server = Stub::start();
    server.set(OAUTH, Reply::Status(302, "Location: /elsewhere\r\n".to_owned()));
    server.set_json("/elsewhere", &metadata(&server.url()));
    let service = Service::with(&external(&server.url(), ""));
    refused(&service, "a redirect to `/elsewhere`, which is not followed");
    assert_eq!(server.asked("/elsewhere"), 0);
}

#[test]
fn a_server_behind_a_proxy_is_reached_and_its_certificate_checked() {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["login.example.org".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    let server = Stub::with_tls(&certificate, &key.serialize_pem());
    // Only the proxy resolves the name.
    let issuer = "https://login.example.org";
    server.set_json(OAUTH, &metadata(issuer));
    let (proxy, asked) = stub::proxy(server.address);
    let more = format!("proxy = \"http://{proxy}\"\nca-file = \"DIR/ca.pem\"");
    let service = Service::with_files(LISTENER, &external(issuer, &more), |dir| {
        fs::write(dir.join("ca.pem"), &certificate).unwrap();
    });
    assert_eq!(served(&service), metadata(issuer));
    assert_eq!(asked.lock().unwrap()[0], "CONNECT login.example.org:443 HTTP/1.1");

    let stranger = Service::with(&external(issuer, &format!("proxy = \"http://{proxy}\"")));
    refused(&stranger, "invalid peer certificate");
}

#[test]
fn other_settings_serve_no_metadata_of_the_former_server() {
    let (first, second) = (Stub::start(), Stub::start());
    first.set_json(OAUTH, &metadata(&first.url()));
    second.set(OAUTH, Reply::Nothing);
    let service = Service::with(&external(&first.url(), ""));
    served(&service);
    write_settings(service.dir.path(), LISTENER, &external(&second.url(), ""));
    service.signal(Signal::SIGHUP);
    until("the former are not served", || service.get(OAUTH).status == 503);
    second.set_json(OAUTH, &metadata(&second.url()));
    assert_eq!(served(&service), metadata(&second.url()));
    // Without the table, the service publishes its own metadata.
    write_settings(service.dir.path(), LISTENER, "");
    service.signal(Signal::SIGHUP);
    until("our own are served", || served(&service)["issuer"] == ISSUER);
}

#[test]
fn flyte_finds_the_metadata_of_another_server() {
    let server = Stub::start();
    server.set(OAUTH, Reply::Nothing);
    let service = Service::with(&external(&server.url(), "token-endpoint = \"ours\""));
    let call = "/flyteidl2.auth.AuthMetadataService/GetOAuth2Metadata?encoding=json&message=%7B%7D";
    let response = service.get(call);
    assert_eq!(response.status, 503, "{response:?}");
    assert!(response.body.contains("\"unavailable\""), "{response:?}");
    server.set_json(OAUTH, &metadata(&server.url()));
    served(&service);
    let found = body(&service.get(call));
    assert_eq!(found["issuer"], json!(server.url()));
    assert_eq!(found["deviceAuthorizationEndpoint"], format!("{}/device", server.url()));
    assert_eq!(found["codeChallengeMethodsSupported"], json!(["S256"]));
    assert_eq!(found["tokenEndpoint"], format!("{ISSUER}/token"));
}
