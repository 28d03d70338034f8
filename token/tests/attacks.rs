// SPDX-License-Identifier: MIT OR Apache-2.0

//! Attacks on verification (RFC 8725 section 2), each refused with its own reason.

mod common;

use std::collections::HashMap;
use std::mem::discriminant;

use common::{
    AUDIENCE, ISSUER, NOW, decode, encode, header, key, keys, now, payload, refused, sign, sign_hs256, verifier, with,
};
use serde_json::{Value, json};
use token::{Algorithm, MAX_LEN, SigningKey};

#[test]
fn the_token_that_the_attacks_start_from_is_accepted() {
    for algorithm in Algorithm::ALL {
        let key = key(algorithm);
        let token = sign(key, header(key).to_string(), payload().to_string());
        assert_eq!(verifier().verify(&token, now()).unwrap().sub(), Some("alice"));
    }
}

/// The name of an attack, the token, and the start of the reason for which it is refused.
type Attack = (&'static str, String, &'static str);

fn attacks() -> Vec<Attack> {
    let start = Start::new();
    [
        algorithms(&start),
        signatures(&start),
        chosen_keys(&start),
        headers(&start),
        texts(&start),
        duplicates(&start),
        registered_claims(&start),
        workflow_claims(&start),
    ]
    .concat()
}

/// The valid token that attacks start from, and its parts.
struct Start {
    ed: &'static SigningKey,
    good_header: String,
    good: String,
    valid: String,
}

impl Start {
    fn new() -> Self {
        let ed = key(Algorithm::EdDsa);
        let (good_header, good) = (header(ed).to_string(), payload().to_string());
        let valid = sign(ed, &good_header, &good);
        Self {
            ed,
            good_header,
            good,
            valid,
        }
    }

    /// Returns the signed message, and the signature.
    fn parts(&self) -> (&str, &str) {
        self.valid.rsplit_once('.').unwrap()
    }

    fn by_header(&self, changes: Value) -> String {
        sign(self.ed, with(header(self.ed), changes), &self.good)
    }

    fn by_claims(&self, changes: Value) -> String {
        sign(self.ed, &self.good_header, with(payload(), changes))
    }
}

/// Attacks on the algorithm (RFC 8725 sections 2.1 and 2.2).
fn algorithms(start: &Start) -> Vec<Attack> {
    let Start { ed, good, .. } = start;
    let (message, _) = start.parts();
    let by_header = |changes| start.by_header(changes);
    let public_pem = ed.verifying_key().to_pem().unwrap();
    let public_jwk = ed.verifying_key().to_jwk().unwrap();
    vec![
        (
            "alg none",
            format!("{}.{}.", encode(with(header(ed), json!({"alg": "none"}))), encode(good)),
            "the token is unsecured",
        ),
        (
            "alg none in other letters",
            format!("{}.{}.", encode(with(header(ed), json!({"alg": "nOnE"}))), encode(good)),
            "the token is unsecured",
        ),
        (
            "alg none with a signature",
            by_header(json!({"alg": "none"})),
            "the token is unsecured",
        ),
        (
            "no signature",
            format!("{message}."),
            "not a JWT: its signature (third segment) is empty",
        ),
        (
            "no signature and no dot",
            message.to_owned(),
            "not a JWT: it has 2 segments",
        ),
        (
            "HS256 with the public key's PEM",
            sign_hs256(public_pem.as_bytes(), &with(header(ed), json!({"alg": "HS256"})), good),
            "the token says to be signed by HS256 with a public EdDSA key",
        ),
        (
            "HS256 with the public key's bytes",
            sign_hs256(
                &decode(public_jwk["x"].as_str().unwrap()),
                &with(header(ed), json!({"alg": "HS256"})),
                good,
            ),
            "the token says to be signed by HS256 with a public EdDSA key",
        ),
        (
            "the algorithm of another key",
            by_header(json!({"alg": "ES256"})),
            "the token says to be signed by ES256, and its key is for EdDSA only",
        ),
        (
            "an asymmetric algorithm with the secret's kid",
            by_header(json!({"kid": key(Algorithm::Hs256).kid()})),
            "the token says to be signed by EdDSA, and its key is for HS256 only",
        ),
        (
            "an algorithm that is not ours",
            by_header(json!({"alg": "RS512"})),
            "the token is signed by \"RS512\", which is not accepted",
        ),
        (
            "an algorithm in other letters",
            by_header(json!({"alg": "eddsa"})),
            "the token is signed by \"eddsa\", which is not accepted",
        ),
    ]
}

/// Wrong signatures.
fn signatures(start: &Start) -> Vec<Attack> {
    let Start {
        ed,
        good_header,
        good,
        valid,
    } = start;
    let (message, signature) = start.parts();
    let other = SigningKey::generate(Algorithm::EdDsa);
    vec![
        (
            "another key's signature",
            sign(&other, good_header, good),
            "the token's signature is wrong",
        ),
        (
            "another token's signature",
            format!("{message}.{}", sign(ed, good_header, "{}").rsplit_once('.').unwrap().1),
            "the token's signature is wrong",
        ),
        (
            "altered claims",
            format!(
                "{}.{}.{signature}",
                encode(good_header),
                encode(with(payload(), json!({"sub": "root"})))
            ),
            "the token's signature is wrong",
        ),
        (
            "a signature that is too long",
            format!("{message}.{signature}{signature}"),
            "the token's signature is wrong",
        ),
        (
            "a signature longer than any",
            format!("{message}.{}", "A".repeat(2000)),
            "the token's signature is wrong",
        ),
        (
            "a signature of zeros",
            format!("{message}.{}", encode([0; 64])),
            "the token's signature is wrong",
        ),
        (
            "another encoding of the same signature",
            format!("{valid}=="),
            "not a JWT: its signature (third segment) is not base64url",
        ),
    ]
}

/// Keys that the token chooses.
fn chosen_keys(start: &Start) -> Vec<Attack> {
    let by_header = |changes| start.by_header(changes);
    let other = SigningKey::generate(Algorithm::EdDsa);
    vec![
        (
            "an embedded key",
            by_header(json!({"jwk": other.verifying_key().to_jwk()})),
            "the token's header brings a key of its own (`jwk`)",
        ),
        (
            "the URL of keys",
            by_header(json!({"jku": "https://evil.example.com/jwks"})),
            "the token's header brings a key of its own (`jku`)",
        ),
        (
            "the URL of a certificate",
            by_header(json!({"x5u": "https://evil.example.com/cert"})),
            "the token's header brings a key of its own (`x5u`)",
        ),
        (
            "an embedded certificate",
            by_header(json!({"x5c": ["MIIB"]})),
            "the token's header brings a key of its own (`x5c`)",
        ),
        (
            "an unknown kid",
            by_header(json!({"kid": "evil"})),
            "the token is signed with the key \"evil\", which is not known",
        ),
        (
            "a kid that is a path",
            by_header(json!({"kid": "../../dev/null\u{1b}[2J"})),
            "the token is signed with the key \"../../dev/null?[2J\", which is not known",
        ),
        (
            "a kid that is a number",
            by_header(json!({"kid": 1})),
            "the `kid` of the token's header is not as it must be",
        ),
        (
            "an empty kid",
            by_header(json!({"kid": ""})),
            "the token is signed with the key \"\", which is not known",
        ),
    ]
}

/// Demands of the header.
fn headers(start: &Start) -> Vec<Attack> {
    let by_header = |changes| start.by_header(changes);
    vec![
        (
            "an unknown extension",
            by_header(json!({"crit": ["exp"], "exp": NOW})),
            "the token's header demands the extension \"exp\"",
        ),
        (
            "no extension",
            by_header(json!({"crit": []})),
            "the `crit` of the token's header is not as it must be",
        ),
        (
            "an extension that is no list",
            by_header(json!({"crit": "exp"})),
            "the `crit` of the token's header is not as it must be",
        ),
        (
            "an unencoded payload",
            by_header(json!({"b64": false, "crit": ["b64"]})),
            "the token's header demands the extension \"b64\"",
        ),
        (
            "an unencoded payload, not critical",
            by_header(json!({"b64": false})),
            "the token's header demands the extension \"b64\"",
        ),
        (
            "another typ",
            by_header(json!({"typ": "at+jwt"})),
            "the token is of type \"at+jwt\"",
        ),
        (
            "a typ that is a list",
            by_header(json!({"typ": ["JWT"]})),
            "the `typ` of the token's header is not as it must be",
        ),
    ]
}

/// Texts that are not a JWT.
fn texts(start: &Start) -> Vec<Attack> {
    let Start {
        ed,
        good_header,
        good,
        valid,
    } = start;
    let (_, signature) = start.parts();
    let by_header = |changes| start.by_header(changes);
    vec![
        (
            "an oversize token",
            sign(ed, good_header, with(payload(), json!({"x": "x".repeat(MAX_LEN)}))),
            "the token is longer than the 65536 bytes",
        ),
        ("an empty token", String::new(), "the token is empty"),
        (
            "white space",
            format!("{valid}\n"),
            "not a JWT: its signature (third segment) is not base64url: white space",
        ),
        (
            "an encrypted token",
            format!("{valid}.{signature}.{signature}"),
            "not a JWT: it has 5 segments",
        ),
        (
            "a JSON serialization",
            json!({"payload": encode(good), "protected": encode(good_header), "signature": signature}).to_string(),
            "not a JWT: it has one segment",
        ),
        (
            "no header",
            sign(ed, "", good),
            "not a JWT: its header (first segment) is empty",
        ),
        (
            "no claims",
            sign(ed, good_header, ""),
            "not a JWT: its claims (second segment) is empty",
        ),
        (
            "a header that is a list",
            sign(ed, "[]", good),
            "not a JWT: its header (first segment) is JSON but not an object",
        ),
        (
            "claims that are a list",
            sign(ed, good_header, "[1]"),
            "not a JWT: its claims (second segment) is JSON but not an object",
        ),
        (
            "claims that are not UTF-8",
            sign(ed, good_header, b"{\"\xff\":1}"),
            "not a JWT: its claims (second segment) decodes to bytes that are not UTF-8",
        ),
        (
            "claims and more",
            sign(ed, good_header, format!("{good} {{}}")),
            "not a JWT: its claims (second segment) decodes to invalid JSON",
        ),
        (
            "claims nested deeply",
            sign(
                ed,
                good_header,
                format!("{{\"x\":{}{}}}", "[".repeat(9000), "]".repeat(9000)),
            ),
            "not a JWT: its claims (second segment) decodes to invalid JSON",
        ),
        (
            "no alg",
            by_header(json!({"alg": null})),
            "not a JWT: its header has no `alg`",
        ),
        (
            "an alg that is a list",
            by_header(json!({"alg": ["EdDSA"]})),
            "not a JWT: the `alg` of its header is not a string",
        ),
    ]
}

/// Duplicate names.
fn duplicates(start: &Start) -> Vec<Attack> {
    let Start {
        ed, good_header, good, ..
    } = start;
    vec![
        (
            "alg twice",
            sign(ed, good_header.replacen('{', r#"{"alg":"none","#, 1), good),
            "not a JWT: its header (first segment) has a name twice",
        ),
        (
            "an unknown member of the header twice",
            sign(ed, good_header.replacen('{', r#"{"x":1,"x":1,"#, 1), good),
            "not a JWT: its header (first segment) has a name twice",
        ),
        (
            "sub twice",
            sign(ed, good_header, good.replacen('{', r#"{"sub":"root","#, 1)),
            "not a JWT: its claims (second segment) has a name twice",
        ),
        (
            "sub twice, once with an escape",
            sign(ed, good_header, good.replacen('{', r#"{"s\u0075b":"root","#, 1)),
            "not a JWT: its claims (second segment) has a name twice",
        ),
        (
            "an unknown claim twice",
            sign(ed, good_header, good.replacen('{', r#"{"x":1,"x":2,"#, 1)),
            "not a JWT: its claims (second segment) has a name twice",
        ),
        (
            "a claim twice, far apart",
            sign(
                ed,
                good_header,
                format!(
                    "{{\"x\":1,{},\"x\":1}}",
                    (0..100).map(|i| format!("\"y{i}\":1")).collect::<Vec<_>>().join(",")
                ),
            ),
            "not a JWT: its claims (second segment) has a name twice",
        ),
        (
            "a claim twice, after many others",
            sign(
                ed,
                good_header,
                format!(
                    "{{{},\"x\":1,\"x\":1}}",
                    (0..100).map(|i| format!("\"y{i}\":1")).collect::<Vec<_>>().join(",")
                ),
            ),
            "not a JWT: its claims (second segment) has a name twice",
        ),
        (
            "a name twice within a claim",
            sign(
                ed,
                good_header,
                good.replacen("\"uid\":1000", "\"uid\":0,\"uid\":1000", 1),
            ),
            "not a JWT: its claims (second segment) has a name twice",
        ),
        (
            "a name twice within an unknown claim",
            sign(ed, good_header, good.replacen('{', r#"{"x":[{"y":1,"y":1}],"#, 1)),
            "not a JWT: its claims (second segment) has a name twice",
        ),
    ]
}

/// Claims of RFC 7519: times, audience and issuer.
fn registered_claims(start: &Start) -> Vec<Attack> {
    let by_claims = |changes| start.by_claims(changes);
    vec![
        (
            "no exp",
            by_claims(json!({"exp": null})),
            "the token has no claim `exp`",
        ),
        (
            "an exp that is text",
            by_claims(json!({"exp": "1900000000"})),
            "the claim `exp` is not a number",
        ),
        (
            "an exp that has passed",
            by_claims(json!({"exp": NOW - 60})),
            "the token expired 1m 0s ago",
        ),
        ("a negative exp", by_claims(json!({"exp": -1})), "the token expired"),
        (
            "an nbf to come",
            by_claims(json!({"nbf": NOW + 61})),
            "the token is not valid before",
        ),
        (
            "an nbf that is text",
            by_claims(json!({"nbf": "0"})),
            "the claim `nbf` is not a number",
        ),
        (
            "an iat that is text",
            by_claims(json!({"iat": "0"})),
            "the claim `iat` is not a number",
        ),
        (
            "no aud",
            by_claims(json!({"aud": null})),
            "the token has no claim `aud`",
        ),
        (
            "another aud",
            by_claims(json!({"aud": "copy-offload2"})),
            "the token is for \"copy-offload2\"",
        ),
        (
            "other auds",
            by_claims(json!({"aud": ["a", "b"]})),
            "the token is for \"a\"",
        ),
        (
            "an aud in other letters",
            by_claims(json!({"aud": "Copy-Offload"})),
            "the token is for \"Copy-Offload\"",
        ),
        (
            "an empty aud",
            by_claims(json!({"aud": []})),
            "the claim `aud` is not as it must be",
        ),
        (
            "an aud with something else",
            by_claims(json!({"aud": [AUDIENCE, 1]})),
            "the claim `aud` is not as it must be",
        ),
        (
            "no iss",
            by_claims(json!({"iss": null})),
            "the token has no claim `iss`",
        ),
        (
            "another iss",
            by_claims(json!({"iss": "https://hpc.example.org/"})),
            "the token is of the issuer \"https://hpc.example.org/\"",
        ),
        (
            "a list of iss",
            by_claims(json!({"iss": [ISSUER]})),
            "the claim `iss` is not as it must be",
        ),
    ]
}

/// Claims of the subject, and of workflow tokens.
fn workflow_claims(start: &Start) -> Vec<Attack> {
    let by_claims = |changes| start.by_claims(changes);
    vec![
        (
            "an empty sub",
            by_claims(json!({"sub": ""})),
            "the claim `sub` is not as it must be",
        ),
        (
            "no sub",
            by_claims(json!({"sub": null})),
            "the token has no claim `sub`",
        ),
        (
            "a jti that is a number",
            by_claims(json!({"jti": 1})),
            "the claim `jti` is not as it must be",
        ),
        (
            "two scopes",
            by_claims(json!({"scope": "session cluster"})),
            "the claim `scope` is not as it must be",
        ),
        (
            "no workspace",
            by_claims(json!({"workspace": null})),
            "the token has no claim `workspace`",
        ),
        (
            "two workspaces for a session",
            by_claims(json!({"workspace": ["hydro", "fusion"]})),
            "the claim `workspace` is not as it must be",
        ),
        (
            "a workspace that is a path",
            by_claims(json!({"workspace": "hydro/f4dVSvb"})),
            "the claim `workspace` is not as it must be",
        ),
        (
            "no job for a session",
            by_claims(json!({"flux": null})),
            "the token has no claim `flux`",
        ),
        (
            "a job without id",
            by_claims(json!({"flux": {"uid": 1000, "instance": "x"}})),
            "the claim `flux` is not as it must be",
        ),
        (
            "a uid that is negative",
            by_claims(json!({"flux": {"jobid": "f1", "uid": -1, "instance": "x"}})),
            "the claim `flux` is not as it must be",
        ),
        (
            "a uid with a fraction",
            by_claims(json!({"flux": {"jobid": "f1", "uid": 0.5, "instance": "x"}})),
            "the claim `flux` is not as it must be",
        ),
        (
            "a job for a user token",
            by_claims(json!({"scope": "cluster"})),
            "the claim `flux` is not as it must be",
        ),
    ]
}

#[test]
fn each_is_refused_with_its_own_reason() {
    for (attack, token, reason) in attacks() {
        let said = refused(&token).to_string();
        assert!(said.starts_with(reason), "{attack}: {said}");
    }
}

#[test]
fn different_reasons_read_differently() {
    let mut texts = HashMap::new();
    for (attack, token, _) in attacks() {
        let reason = refused(&token);
        let other = texts.insert(reason.to_string(), discriminant(&reason));
        assert!(
            other.is_none_or(|other| other == discriminant(&reason)),
            "{attack}: {reason}"
        );
    }
}

#[test]
fn no_reason_shows_any_of_the_signature_or_payload() {
    for (attack, token, _) in attacks() {
        let reason = refused(&token);
        let said = format!("{reason} {reason:?}");
        for part in token.split('.').skip(1).filter(|part| part.len() >= 12) {
            for piece in part.as_bytes().windows(12) {
                assert!(!said.contains(std::str::from_utf8(piece).unwrap()), "{attack}: {said}");
            }
        }
    }
}

#[test]
fn a_jws_is_refused_for_what_its_header_says() {
    let claims_only = [
        "the token has no claim",
        "the claim",
        "the token expired",
        "the token is not valid before",
        "the token is for",
        "the token is of",
        "not a JWT: its claims",
    ];
    let (mut here, mut elsewhere) = (0, 0);
    for (attack, token, reason) in attacks() {
        let outcome = keys().verify_jws(&token);
        if claims_only.iter().any(|start| reason.starts_with(start)) {
            assert!(outcome.is_ok(), "{attack}: {outcome:?}");
            elsewhere += 1;
        } else {
            assert!(
                outcome.is_err_and(|said| said.to_string().starts_with(reason)),
                "{attack}"
            );
            here += 1;
        }
    }
    assert!(here > 30 && elsewhere > 30);
}
