// SPDX-License-Identifier: MIT OR Apache-2.0

//! The server: unusual requests, many connections, certificates, signals.

mod support;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
};

use nix::sys::signal::Signal;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use support::{Response, SECRET, Service, form_request, job_token, until, write_private, write_settings};

#[test]
fn paths_that_could_be_read_in_two_ways_are_refused() {
    let service = Service::start();
    for path in [
        "//livez",
        "/livez/",
        "/./livez",
        "/../livez",
        "/%6civez",
        "/livez%00",
        "/livez;a",
        "/livez\\",
        "/x/../livez",
        "/livez//",
        "/auth/nginx/../envoy",
        "/%2e%2e/livez",
        "/auth%2fnginx",
        "/auth%2Fnginx",
    ] {
        let response = service.get(path);
        assert_eq!(response.status, 400, "{path}: {response:?}");
    }
    // These paths are valid, but do not exist.
    for path in ["/metrics", "/Livez", "/auth", "/auth/nginx/x", "/.well-known/x", "/"] {
        assert_eq!(service.get(path).status, 404, "{path}");
    }
    assert_eq!(service.get("/livez").status, 200);
    // Bytes that paths must not contain.
    for request in [
        &b"GET /livez\xff HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        b"GET /livez\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET livez HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let mut stream = service.connect();
        stream.write_all(request).unwrap();
        assert!(Response::receive(&mut stream).is_none_or(|response| matches!(response.status, 400 | 404)));
    }
}

#[test]
fn headers_that_are_there_twice_or_have_aliases_are_refused() {
    let service = Service::start();
    for headers in [
        &[("Authorization", "Bearer a"), ("authorization", "Bearer a")][..],
        &[("X_Forwarded_User", "root")],
        &[("X.Workflow.Token.Subject", "root")],
        &[("Content-Type", "a/b"), ("Content-Type", "a/b")],
        &[("Host", "b")],
    ] {
        assert_eq!(
            service.get_with("/auth/nginx?aud=a", headers).status,
            400,
            "{headers:?}"
        );
    }
}

#[test]
fn a_request_is_never_read_as_two() {
    let service = Service::start();
    let smuggled = "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n";
    let both = |first: &str, second: &str| {
        format!("POST /introspect HTTP/1.1\r\nHost: a\r\n{first}\r\n{second}\r\n\r\n0\r\n\r\n{smuggled}")
    };
    let length = format!("Content-Length: {}", 5 + smuggled.len());
    for request in [
        both(&length, "Transfer-Encoding: chunked"),
        both("Transfer-Encoding: chunked", &length),
        both("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        both("Transfer-Encoding: identity", &length),
        both("Transfer-Encoding : chunked", &length),
        both(&length, "Content-Length: 5"),
        both("Content-Length: +5", "X: y"),
    ] {
        let mut stream = service.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut all = String::new();
        // The connection ends, with a reset if unread bytes were left.
        let _ = stream.read_to_string(&mut all);
        let answers = all.matches("HTTP/1.1 ").count();
        assert!(answers <= 1 && !all.contains("200 OK"), "{request:?}: {all}");
    }
}

#[test]
fn long_requests_are_refused_and_old_ones_served() {
    let service = Service::start();
    let old = service.send(b"GET /livez HTTP/1.0\r\n\r\n");
    assert_eq!((old.status, old.body.as_str()), (200, "ok\n"));
    let long = "a".repeat(300_000);
    let response = service.get_with("/livez", &[("X-Long", &long)]);
    assert_eq!(response.status, 431);
    let client = format!("copy:{SECRET}");
    let response = service.post_as(Some(&client), "/introspect", &format!("token={long}"), &[]);
    assert_eq!(response.status, 413);
    // A client that announces a body and does not send it delays nobody else.
    let mut slow = service.connect();
    slow.write_all(b"POST /introspect HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")
        .unwrap();
    assert_eq!(service.get("/livez").status, 200);
}

#[test]
fn many_slow_connections_keep_nobody_from_being_served() {
    let service = Service::start();
    let slow: Vec<TcpStream> = (0..400)
        .map(|_| {
            let mut stream = service.connect();
            stream.write_all(b"GET /livez HTTP/1.1\r\nHo").unwrap();
            stream
        })
        .collect();
    let token = job_token(&service.agent, "17", "copy-offload");
    assert_eq!(service.introspect(&token)["active"], true);
    for mut stream in slow {
        stream.write_all(b"st: a\r\n\r\n").unwrap();
        assert_eq!(Response::receive(&mut stream).unwrap().status, 200);
    }
}

#[test]
fn sighup_loads_the_settings_again_and_wrong_ones_change_nothing() {
    let service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    let listener = "address = \"127.0.0.1:0\"";
    let other = "[[client]]\nid = \"other\"\nsecret-file = \"DIR/other\"\naudience = [\"copy-offload\"]\nmay = [\"introspect\"]";
    let secret = "canary-secret-of-another-client-0123456789";
    write_private(&service.dir.path().join("other"), secret);
    let ask = || {
        service
            .post_as(
                Some(&format!("other:{secret}")),
                "/introspect",
                &format!("token={token}"),
                &[],
            )
            .status
    };
    assert_eq!(ask(), 401);
    write_settings(service.dir.path(), listener, other);
    service.signal(Signal::SIGHUP);
    until("the client is known", || ask() == 200);
    for wrong in ["colour = 1", "[[listen]]\naddress = \"127.0.0.1:1\""] {
        let said = service.log().matches("the former settings stay").count();
        write_settings(service.dir.path(), listener, wrong);
        service.signal(Signal::SIGHUP);
        until("the mistake is reported", || {
            service.log().matches("the former settings stay").count() > said
        });
        assert_eq!(ask(), 200);
    }
    assert!(service.log().contains("needs a restart"), "{}", service.log());
}

#[test]
fn sigterm_lets_requests_end() {
    let mut service = Service::start();
    let token = job_token(&service.agent, "17", "copy-offload");
    service.agent.set(|answers| answers.is_silent = true);
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
    // The first request is still in progress when the second one on the same connection arrives.
    assert_eq!(service.get("/livez").status, 200);
    service.signal(Signal::SIGTERM);
    until("nobody is accepted any more", || {
        TcpStream::connect(service.address).is_err()
    });
    // The agent has not replied. It replies on its next connection.
    service.agent.set(|answers| answers.is_silent = false);
    service.agent.kill();
    service.agent.listen();
    let response = Response::receive(&mut stream).unwrap();
    assert!(
        response.status == 200 && response.body.contains("\"active\":true"),
        "{response:?}"
    );
    assert!(service.child.wait().unwrap().success());
}

#[test]
fn sockets_of_systemd_serve_several_clients_at_once() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut service = Service::with_passed(&socket, "address = \"127.0.0.1:1\"");
    assert_eq!(service.address, socket.local_addr().unwrap());
    // Each connection is served while others are open, and needs no further connection to be served.
    let mut open: Vec<TcpStream> = (0..20).map(|_| service.connect()).collect();
    for stream in &mut open {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        assert_eq!(Response::receive(stream).unwrap().status, 200);
    }
    drop(open);
    service.signal(Signal::SIGTERM);
    assert!(service.child.wait().unwrap().success());
}

#[test]
fn a_peer_that_takes_nothing_keeps_nobody_from_being_served() {
    let service = Service::start();
    let mut greedy = service.connect();
    greedy
        .set_write_timeout(Some(std::time::Duration::from_millis(200)))
        .unwrap();
    let request = "GET /jwks HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    // Writes until the service accepts no more bytes.
    while greedy.write_all(request.as_bytes()).is_ok() {}
    assert_eq!(service.get("/livez").status, 200);
}

/// Writes a certificate for localhost. Returns it.
fn certificate(dir: &std::path::Path) -> String {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    fs::write(dir.join("cert.pem"), &pem).unwrap();
    write_private(&dir.join("key.pem"), &key.serialize_pem());
    pem
}

/// Requests the liveness of the service over TLS, with one trusted certificate.
fn lives(service: &Service, pem: &str) -> Option<u16> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut stream = StreamOwned::new(client, service.connect());
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").ok()?;
    Response::receive(&mut stream).map(|response| response.status)
}

#[test]
fn a_certificate_is_replaced_while_connections_are_open() {
    let listener = "address = \"127.0.0.1:0\"\ncertificate = \"DIR/cert.pem\"\nkey = \"DIR/key.pem\"";
    let mut first = String::new();
    let service = Service::with_files(listener, "", |dir| first = certificate(dir));
    assert_eq!(lives(&service, &first), Some(200));
    let second = certificate(service.dir.path());
    assert_eq!(lives(&service, &second), None);
    service.signal(Signal::SIGHUP);
    until("the new certificate is served", || {
        lives(&service, &second) == Some(200)
    });
    assert_eq!(lives(&service, &first), None);
    // A key that does not match the certificate changes nothing.
    write_private(
        &service.dir.path().join("key.pem"),
        &KeyPair::generate().unwrap().serialize_pem(),
    );
    service.signal(Signal::SIGHUP);
    until("the mistake is reported", || {
        service.log().contains("cannot be used with")
    });
    assert_eq!(lives(&service, &second), Some(200));
    // A client without TLS is not served.
    let mut stream = service.connect();
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(Response::receive(&mut stream).is_none());
}
