// SPDX-License-Identifier: MIT OR Apache-2.0

//! The fuzz targets: what is parsed, and the invariants for any input. Each function panics if an invariant does not
//! hold.

// The other parts of the job manager's crate link with Flux, which is missing here.
#[allow(dead_code)]
#[path = "../../plugin/src/eventlog.rs"]
mod eventlog;

#[allow(dead_code)]
#[path = "../../agent/src/revocations/line.rs"]
mod line;

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use secrecy::ExposeSecret;
use serde::{Serialize, de::DeserializeOwned};
use token::{
    HmacKey, KeySet, MAX_STATUS_ENTRIES, ObjectKey, SigningKey, StatusCache, StatusList, Token, Tokens, Verifier,
    VerifyingKey, authorize, check_shape,
};

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

/// A whole token, the claims of a signed token, and the key of an object.
pub fn token(data: &[u8]) {
    static KEY: LazyLock<SigningKey> =
        LazyLock::new(|| SigningKey::from_secret(b"known to everyone, and used for this only").expect("a key"));
    static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
        Verifier::new(KeySet::from(KEY.verifying_key()))
            .issuer("i")
            .audience("a")
    });

    if let Ok(text) = std::str::from_utf8(data) {
        let shape = check_shape(text, now());
        let inspected = Token::inspect(text);
        assert!(
            inspected.is_ok() || shape.is_err(),
            "a well-formed token cannot be shown"
        );
        if let Ok(claims) = VERIFIER.verify(text, now()) {
            assert!(VERIFIER.keys().verify_jws(text).is_ok() && shape.is_ok());
            drop(claims);
        }
        let redacted = token::redact(text);
        assert_eq!(token::redact(&redacted), redacted);
        if let Ok(key) = ObjectKey::parse(text) {
            assert_eq!(ObjectKey::parse(&key.to_string()).as_ref(), Ok(&key));
        }
    }

    let signed = KEY.sign(&[("typ", "JWT")], data);
    if signed.expose_secret().len() <= token::MAX_LEN {
        let payload = VERIFIER.keys().verify_jws(signed.expose_secret());
        assert_eq!(payload.as_deref(), Ok(data));
    }
    let Ok(claims) = VERIFIER.verify(signed.expose_secret(), now()) else {
        return;
    };
    assert_eq!((claims.iss(), claims.as_json().as_bytes()), (Some("i"), data));
    assert!(claims.aud().any(|aud| aud == "a") && claims.exp().seconds() > 1_699_999_940.0);
    // Two readers agree on the claims.
    for (name, read) in [("iss", claims.iss()), ("sub", claims.sub()), ("jti", claims.jti())] {
        let other = claims.get(name);
        assert_eq!(other.as_ref().and_then(|value| value.as_str()), read);
    }
    let object = ObjectKey::parse("hydro/f1/x").expect("a key");
    for tokens in [Tokens::Any, Tokens::SessionOnly] {
        if authorize(&claims, &object, tokens).is_ok() {
            assert!(claims.sub().is_some() && claims.scope().is_some());
            assert!(tokens == Tokens::Any || claims.job().is_some_and(|job| job.id == "f1"));
        }
    }
}

/// A key in any form, and a set of keys.
pub fn key(data: &[u8]) {
    for key in [SigningKey::from_pem(data), SigningKey::from_jwk(data)]
        .into_iter()
        .flatten()
    {
        let again = SigningKey::from_jwk(key.to_jwk().expose_secret().as_bytes()).expect("the output can be read");
        assert_eq!(again.kid(), key.kid());
        if let Some(pem) = key.to_pem() {
            let again = SigningKey::from_pem(pem.expose_secret().as_bytes()).expect("the output can be read");
            assert_eq!(again.verifying_key().thumbprint(), key.verifying_key().thumbprint());
        }
        let signed = key.sign(&[], b"payload");
        let payload = KeySet::from(key.verifying_key()).verify_jws(signed.expose_secret());
        assert_eq!(payload.as_deref(), Ok(&b"payload"[..]));
        // A private key is not accepted as a public one.
        assert!(VerifyingKey::from_pem(data).is_err() && VerifyingKey::from_jwk(data).is_err());
    }
    for key in [VerifyingKey::from_pem(data), VerifyingKey::from_jwk(data)]
        .into_iter()
        .flatten()
    {
        let jwk = key.to_jwk().expect("a public key").to_string();
        let again = VerifyingKey::from_jwk(jwk.as_bytes()).expect("the output can be read");
        assert_eq!((again.kid(), again.thumbprint()), (key.kid(), key.thumbprint()));
        let pem = key.to_pem().expect("a public key");
        let again = VerifyingKey::from_pem(pem.as_bytes()).expect("the output can be read");
        assert_eq!(again.thumbprint(), key.thumbprint());
        // A public key is not accepted as a secret.
        let hex: String = pem.bytes().map(|byte| format!("{byte:02x}")).collect();
        for text in [jwk, pem, hex] {
            assert!(VerifyingKey::from_secret(text.as_bytes()).is_err());
        }
    }
    if let (Ok(key), Ok(other)) = (SigningKey::from_secret(data), VerifyingKey::from_secret(data)) {
        assert_eq!(key.kid(), other.kid());
    }
    if let Ok((set, _)) = KeySet::from_jwks(data) {
        let (again, skipped) = KeySet::from_jwks(set.public_jwks().as_bytes()).expect("the output can be read");
        assert!(skipped.is_empty() && again.len() == set.len());
    }
    if let Ok(key) = HmacKey::from_pem(data) {
        let signed = token::issue(&key, "a", 1);
        assert!(
            KeySet::from(key.verifying_key())
                .verify_jws(signed.expose_secret())
                .is_ok()
        );
    }
}

/// A status list. The first byte is the number of bits, the others are `lst`. The whole input is also used as the
/// claims of a signed token.
pub fn status_list(data: &[u8]) {
    static KEY: LazyLock<SigningKey> =
        LazyLock::new(|| SigningKey::from_secret(b"known to everyone, and used for this only").expect("a key"));

    if let Some((bits, lst)) = data.split_first()
        && let Ok(lst) = std::str::from_utf8(lst)
        && let Ok(list) = StatusList::from_lst(*bits & 15, lst)
    {
        assert!(list.entries() <= MAX_STATUS_ENTRIES);
        assert!(list.entries() == 0 || list.get(list.entries() - 1).is_some());
        assert_eq!(list.get(list.entries()), None);
        assert_eq!(StatusList::from_lst(*bits & 15, &list.to_lst()).as_ref(), Ok(&list));
    }
    let verifier = Verifier::new(KeySet::from(KEY.verifying_key())).issuer("i");
    let signed = KEY.sign(&[("typ", "statuslist+jwt")], data);
    let verified = verifier.verify_status_list(signed.expose_secret(), now());
    let cache = StatusCache::new(verifier, 1);
    assert_eq!(cache.insert(signed.expose_secret(), now()).is_ok(), verified.is_ok());
    if let Ok(verified) = verified {
        assert!(verified.list.entries() <= MAX_STATUS_ENTRIES && !verified.uri.is_empty());
        assert_eq!(verified.iss.as_deref(), Some("i"));
    }
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(cache.insert(text, now()).is_err(), "it is not signed");
    }
}

/// A sealed record, as far as it is parsed before munged is contacted.
pub fn record(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(record) = seal::Record::from_json(text) {
        let again = seal::Record::from_json(&record.to_json()).expect("the output can be read");
        assert_eq!(
            (again.jobid(), again.uid(), again.sealer()),
            (record.jobid(), record.uid(), record.sealer())
        );
        assert_eq!(
            (again.variables(), again.credential()),
            (record.variables(), record.credential())
        );
        let _ = record.sealed_at();
    }
}

/// The configuration, from TOML and from Flux's conversion to JSON.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let toml = toml::from_str::<serde_json::Value>(text).ok();
    for conf in toml.into_iter().chain(serde_json::from_str(text)) {
        if let Err(error) = config::Config::from_json(&conf) {
            assert!(!error.to_string().is_empty());
        }
    }
    let _ = config::Template::parse(text);
    let _ = config::parse_duration(text);
}

/// Token requests of users, in JSON, checked against three rules.
pub fn request(data: &[u8]) {
    static RULES: LazyLock<Vec<config::Rule>> = LazyLock::new(|| {
        let table = serde_json::json!({"workflow-token": {
            "issuer": {"keys": "/k", "name": "https://i", "audience": "a"},
            "rule": [
                {"source": "issuer", "workspace": "w", "audiences": ["b", "c"], "max-lifetime": "1h"},
                {"name": "cloud", "variable": "CLOUD", "source": "oauth2", "issuer": "https://i", "client-id": "c",
                 "client-secret": "/s", "scope": "read list", "scopes": ["write"]},
                {"name": "file", "variable": "FILE", "source": "file", "path": "/t"},
            ],
        }});
        config::Config::from_json(&table).expect("a configuration").rules
    });

    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // A user reads the errors on a terminal.
    let is_printable = |error: &str| !error.is_empty() && !error.contains(char::is_control);
    let requests = match config::parse_requests(text) {
        Ok(requests) => requests,
        Err(error) => return assert!(is_printable(&error), "{error:?}"),
    };
    assert!(requests.len() <= 16 && requests.keys().all(|name| !name.is_empty()));
    for (request, rule) in requests
        .values()
        .flat_map(|request| RULES.iter().map(move |rule| (request, rule)))
    {
        if let Err(error) = rule.admit(request) {
            assert!(is_printable(&error), "{error:?}");
            continue;
        }
        let name = rule.token_name();
        let audience = request.audience.as_deref();
        assert!(audience.is_none_or(|audience| name == "default" && ["a", "b", "c"].contains(&audience)));
        let mut words = request.scope.iter().flat_map(|scope| scope.split(' '));
        assert!(words.all(|word| name == "cloud" && ["read", "list", "write"].contains(&word)));
        let lifetime = request.lifetime;
        assert!(lifetime.is_none_or(|lifetime| name == "default" && lifetime <= Duration::from_secs(3600)));
    }
}

/// A line of the revocations file.
pub fn revocation(data: &[u8]) {
    let Some(line) = line::Line::parse(data) else {
        return;
    };
    let written = line.to_bytes().expect("the value can be written");
    assert!(
        !written[..written.len() - 1].contains(&b'\n'),
        "the output has several lines"
    );
    let again = line::Line::parse(&written).expect("the output can be read");
    assert_eq!(again.subject, line.subject);
    let is_same = |one: f64, other: f64| one.is_finite() && (one - other).abs() <= one.abs() * 1e-12;
    assert!(is_same(again.times.at, line.times.at) && is_same(again.times.until, line.times.until));
}

/// The eventlog of a job.
pub fn eventlog(data: &[u8]) {
    use eventlog::{Eventlog, Past, Perilog};

    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let once = Eventlog::parse(text, &["memo"]);
    let twice = Eventlog::parse(&format!("{text}\n{text}"), &["memo"]);
    assert_eq!(once.is_empty(), twice.is_empty());
    for which in [Perilog::Prolog, Perilog::Epilog] {
        let (started, finished) = once.counts(which, "dws-setup");
        assert_eq!(twice.counts(which, "dws-setup"), (2 * started, 2 * finished));
        let is_none = once.past(which, "dws-setup") == Past::None;
        assert_eq!(is_none, (started, finished) == (0, 0));
        assert_eq!(once.past(which, "dws-setup"), twice.past(which, "dws-setup"));
    }
    assert_eq!(2 * once.contexts("memo").count(), twice.contexts("memo").count());
    assert_eq!(once.has_started(), twice.has_started());
    assert_eq!(once.ended_at(), twice.ended_at());
    assert!(
        once.contexts("memo")
            .all(|context| context.to_string().len() <= 8 * text.len() + 8)
    );
}

/// Both readers of the protocol. The first four bytes are the sizes of the pieces in which the others arrive.
pub fn protocol(data: &[u8]) {
    let Some((sizes, received)) = data.split_first_chunk::<4>() else {
        return;
    };
    message::<protocol::Request>(received);
    message::<protocol::Reply>(received);
    message::<protocol::slurm::ControllerRequest>(received);
    message::<protocol::slurm::ControllerReply>(received);
    message::<protocol::slurm::NodeRequest>(received);
    message::<protocol::slurm::NodeReply>(received);
    message::<protocol::service::ServiceAsk>(received);
    message::<protocol::service::ServiceAnswer>(received);
    frames::<protocol::Request>(sizes, received);
    frames::<protocol::Reply>(sizes, received);
}

/// Input of the token service from unauthenticated clients: parameters, an `Authorization` header and the header of old
/// clients, one per line.
pub fn http(data: &[u8]) {
    let mut lines = data.splitn(3, |byte| *byte == b'\n');
    let parameters = lines.next().unwrap_or_default();
    if let Ok(form) = service::form::Form::parse(parameters) {
        for name in form.names() {
            assert!(
                form.get(name)
                    .is_none_or(|value| !value.is_empty() && !value.contains('\u{fffd}'))
            );
        }
    }
    if let Ok(demand) = std::str::from_utf8(parameters)
        .map_err(drop)
        .and_then(|query| service::demand::Demand::parse(query).map_err(drop))
    {
        assert!(
            !demand.audience.is_empty() && demand.audience.iter().chain(&demand.scope).all(|word| !word.is_empty())
        );
    }
    let legacy = http::HeaderName::from_static("x-session");
    let mut headers = http::HeaderMap::new();
    for (name, line) in [http::header::AUTHORIZATION, legacy.clone()].into_iter().zip(lines) {
        if let Ok(value) = http::HeaderValue::from_bytes(line) {
            headers.insert(name, value);
        }
    }
    if let Ok(Some(found)) = service::bearer::bearer(&headers, Some(&legacy)) {
        assert!(!found.token.is_empty() && found.token.bytes().all(|byte| byte.is_ascii_graphic()));
    }
}

/// Input of the token service from browsers, one per line: a path, a return address, a redirect address, a code that a
/// user types, a call of the Connect protocol, and cookie headers.
pub fn browser(data: &[u8]) {
    use service::settings::{Client, Proof};

    static CLIENT: LazyLock<Client> = LazyLock::new(|| Client {
        id: "tool".to_owned(),
        proof: Proof::Public,
        audience: Vec::new(),
        may_introspect: false,
        may_revoke: false,
        redirect_uris: ["http://127.0.0.1/callback", "https://tool.example.org/callback"]
            .map(str::to_owned)
            .into(),
    });

    let lines: Vec<&[u8]> = data.splitn(6, |byte| *byte == b'\n').collect();
    let text = |i: usize| {
        lines
            .get(i)
            .and_then(|line| std::str::from_utf8(line).ok())
            .unwrap_or_default()
    };
    let path = text(0);
    if service::strict::is_plain_path(path) {
        assert!(!path.contains("//") && !path.contains("/./") && !path.contains("/../") && !path.ends_with("/.."));
        assert!(!path.contains(['%', '\\', ';', '?', '#', '\0']));
    }
    if service::is_page(text(1)) {
        let is_local = text(1).starts_with('/') && !text(1).starts_with("//") && !text(1).starts_with("/\\");
        assert!(is_local && !text(1).contains(char::is_control));
    }
    if CLIENT.redirects_to(text(2)) {
        let uri = text(2).parse::<http::Uri>().expect("a known address is a URI");
        assert!(matches!(uri.host(), Some("127.0.0.1" | "tool.example.org")), "{uri}");
        assert!(uri.path() == "/callback" && uri.query().is_none());
    }
    if let Some(code) = service::random::typed(text(3)) {
        assert_eq!(service::random::typed(&service::random::shown(&code)), Some(code));
    }
    let _ = service::connect::Call::get(text(4));
    let mut headers = http::HeaderMap::new();
    for line in lines
        .get(5)
        .into_iter()
        .flat_map(|rest| rest.split(|byte| *byte == b'\n'))
    {
        if let Ok(value) = http::HeaderValue::from_bytes(line) {
            headers.append(http::header::COOKIE, value);
        }
    }
    if let Some(value) = service::cookies::get(&headers, service::cookies::SESSION) {
        assert!(value.len() <= 4096 && !value.contains(';'));
    }
}

/// Decodes the body of a frame. Returns the frame that encodes the message. It may differ, because a number may have
/// been encoded with more bytes than necessary.
fn message<T: Serialize + DeserializeOwned>(body: &[u8]) -> Option<Vec<u8>> {
    let message = protocol::decode::<T>(body).ok()?;
    let frame = protocol::encode(&message).expect("the message can be written");
    assert!(frame.len() <= protocol::HEADER + body.len(), "a message grows");
    let again = protocol::decode::<T>(&frame[protocol::HEADER..]).expect("the output can be read");
    assert_eq!(protocol::encode(&again), Ok(frame.clone()));
    Some(frame.to_vec())
}

/// A reader that receives pieces, like the plugin's, finds the same messages and the same end as one that waits for
/// whole messages, like the agent's.
fn frames<T: Serialize + DeserializeOwned>(sizes: &[u8; 4], received: &[u8]) {
    let mut expected = Vec::new();
    let mut rest = received;
    let is_broken = loop {
        let Some((header, behind)) = rest.split_first_chunk::<{ protocol::HEADER }>() else {
            break false;
        };
        let Ok(length) = protocol::body_length(*header) else {
            break true;
        };
        let Some((body, behind)) = behind.split_at_checked(length) else {
            break false;
        };
        let Some(frame) = message::<T>(body) else {
            break true;
        };
        expected.push(frame);
        rest = behind;
    };

    let mut incoming = protocol::Incoming::default();
    let mut found = Vec::new();
    let mut rest = received;
    for size in sizes.iter().cycle() {
        let (piece, behind) = rest.split_at(usize::from(*size).max(1).min(rest.len()));
        incoming.add(piece);
        rest = behind;
        loop {
            match incoming.take::<T>() {
                Ok(Some(message)) => {
                    found.push(protocol::encode(&message).expect("the message can be written").to_vec())
                }
                Ok(None) if rest.is_empty() => {
                    assert!(!is_broken, "the reader waits for more of a malformed message");
                    return assert_eq!(found, expected);
                }
                Ok(None) => break,
                Err(_) => {
                    assert!(is_broken, "the reader rejected a valid message");
                    return assert_eq!(found, expected);
                }
            }
        }
    }
}
