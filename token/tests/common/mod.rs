// SPDX-License-Identifier: MIT OR Apache-2.0

//! Keys and tokens for tests, signed by another implementation where they are ones that this one would never make.

#![allow(dead_code, reason = "each test program uses some of them")]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::{Algorithm, ClaimsToIssue, Grant, Job, JobScheduler, KeySet, SigningKey, Verifier, VerifyError};

pub const ISSUER: &str = "https://hpc.example.org";
pub const AUDIENCE: &str = "copy-offload";
/// When the tokens of these tests are verified.
pub const NOW: u64 = 1_700_000_000;

pub fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// One key of each algorithm.
pub fn key(algorithm: Algorithm) -> &'static SigningKey {
    static KEYS: LazyLock<[SigningKey; 4]> = LazyLock::new(|| Algorithm::ALL.map(SigningKey::generate));
    KEYS.iter().find(|key| key.algorithm() == algorithm).unwrap()
}

/// The public and the secret keys of [`key`].
pub fn keys() -> KeySet {
    Algorithm::ALL
        .into_iter()
        .map(|algorithm| key(algorithm).verifying_key())
        .collect()
}

pub fn verifier() -> Verifier {
    Verifier::new(keys()).issuer(ISSUER).audience(AUDIENCE)
}

pub fn claims(grant: Grant) -> ClaimsToIssue {
    ClaimsToIssue {
        iss: ISSUER.into(),
        sub: "alice".into(),
        aud: vec![AUDIENCE.into()],
        iat: now(),
        lifetime: Duration::from_secs(600),
        grant,
        status: None,
    }
}

pub fn session() -> Grant {
    Grant::Session {
        workspace: "hydro".parse().unwrap(),
        job: Job {
            id: "f4dVSvb".parse().unwrap(),
            uid: 1000,
            instance: "ƒ2u".into(),
            scheduler: JobScheduler::default(),
        },
    }
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn decode(text: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text).unwrap()
}

/// The secret of an HS256 key.
pub fn secret(key: &SigningKey) -> Vec<u8> {
    let jwk: serde_json::Value = serde_json::from_str(key.to_jwk().expose_secret()).unwrap();
    decode(jwk["k"].as_str().unwrap())
}

/// Signs any header and payload with `key`, whatever they say.
pub fn sign(key: &SigningKey, header: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> String {
    let (algorithm, key) = encoding_key(key);
    signed(format!("{}.{}", encode(header), encode(payload)), &key, algorithm)
}

/// The same key for jsonwebtoken.
pub fn encoding_key(key: &SigningKey) -> (jsonwebtoken::Algorithm, EncodingKey) {
    use jsonwebtoken::Algorithm as Other;

    let pem = key.to_pem();
    let pem = pem
        .as_ref()
        .map(|pem| pem.expose_secret().as_bytes())
        .unwrap_or_default();
    let (algorithm, key) = match key.algorithm() {
        Algorithm::EdDsa => (Other::EdDSA, EncodingKey::from_ed_pem(pem)),
        Algorithm::Es256 => (Other::ES256, EncodingKey::from_ec_pem(pem)),
        Algorithm::Rs256 => (Other::RS256, EncodingKey::from_rsa_pem(pem)),
        Algorithm::Hs256 => (Other::HS256, Ok(EncodingKey::from_secret(&secret(key)))),
    };
    (algorithm, key.unwrap())
}

/// Signs with HMAC SHA-256 and any secret.
pub fn sign_hs256(secret: &[u8], header: &str, payload: &str) -> String {
    let message = format!("{}.{}", encode(header), encode(payload));
    signed(
        message,
        &EncodingKey::from_secret(secret),
        jsonwebtoken::Algorithm::HS256,
    )
}

fn signed(message: String, key: &EncodingKey, algorithm: jsonwebtoken::Algorithm) -> String {
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// The header that a token of `key` has.
pub fn header(key: &SigningKey) -> Value {
    json!({"alg": key.algorithm().as_str(), "kid": key.kid(), "typ": "JWT"})
}

/// The claims of the token of a job.
pub fn payload() -> Value {
    json!({"iss": ISSUER, "sub": "alice", "aud": AUDIENCE, "exp": NOW + 600, "nbf": NOW, "iat": NOW, "jti": "1",
        "scope": "session", "workspace": "hydro",
        "flux": {"jobid": "f4dVSvb", "uid": 1000, "instance": "ƒ2u"}})
}

/// `value` with some members replaced, or left out where they are null.
pub fn with(mut value: Value, changes: Value) -> String {
    for (name, change) in changes.as_object().unwrap() {
        match change {
            Value::Null => drop(value.as_object_mut().unwrap().remove(name)),
            change => value[name] = change.clone(),
        }
    }
    value.to_string()
}

/// Why a token is refused.
pub fn refused(token: &str) -> VerifyError {
    let refused = verifier().verify(token, now()).err();
    refused.unwrap_or_else(|| {
        panic!(
            "accepted: {}",
            String::from_utf8_lossy(&decode(token.split('.').next().unwrap()))
        )
    })
}
