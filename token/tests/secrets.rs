// SPDX-License-Identifier: MIT OR Apache-2.0

//! Nothing of a key or token is in what is printed of it.

mod common;

use std::fmt::Debug;

use common::{claims, key, keys, now, secret, session, verifier};
use secrecy::ExposeSecret;
use token::{Algorithm, KeySet, SigningKey, VerifyingKey, mint};

/// Checks that no piece of `secret` is in `text`.
fn assert_hidden(secret: &str, text: &str) {
    assert!(secret.len() >= 20, "a secret that is too short to search for");
    for piece in secret.as_bytes().windows(10) {
        let piece = std::str::from_utf8(piece).unwrap();
        assert!(!text.contains(piece), "{piece} is in {text}");
    }
}

fn printed(what: &impl Debug) -> String {
    format!("{what:?} {what:#?}")
}

/// The private members of a key as text, and as numbers, hexadecimal and decimal.
fn private_parts(key: &SigningKey) -> Vec<String> {
    let jwk: serde_json::Value = serde_json::from_str(key.to_jwk().expose_secret()).unwrap();
    let mut parts = Vec::new();
    for member in ["d", "k", "p", "q", "dp", "dq", "qi"] {
        let Some(text) = jwk[member].as_str() else { continue };
        let bytes = common::decode(text);
        parts.push(text.to_owned());
        parts.push(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        parts.push(bytes.iter().map(|byte| format!("{byte}, ")).collect());
    }
    assert!(!parts.is_empty());
    parts
}

#[test]
fn keys_do_not_print_themselves() {
    for algorithm in Algorithm::ALL {
        let key = key(algorithm);
        let public = key.verifying_key();
        let set = KeySet::from(public.clone());
        let text = [
            printed(key),
            printed(&public),
            printed(&set),
            printed(&verifier().with_keys(set.clone())),
            printed(&key.to_jwk()),
            printed(&key.to_pem()),
        ]
        .join("\n");
        assert!(text.contains(algorithm.as_str()) && text.contains(key.kid()));
        for part in private_parts(key) {
            assert_hidden(&part, &text);
        }
    }
}

#[test]
fn errors_of_keys_show_nothing_of_them() {
    let mut errors = 0;
    for algorithm in Algorithm::ALL {
        let key = key(algorithm);
        let mut texts = vec![key.to_jwk().expose_secret().to_owned()];
        texts.extend(key.to_pem().map(|pem| pem.expose_secret().to_owned()));
        let parts = private_parts(key);
        for text in texts {
            // Cut, and damaged in many places in turn.
            for at in (0..text.len()).step_by(text.len() / 60) {
                for bad in [
                    text[..at].to_owned(),
                    format!("{}!{}", &text[..at], &text[at + 1..]),
                    format!("{}\"{}", &text[..at], &text[at..]),
                ] {
                    let outcomes = [
                        SigningKey::from_jwk(bad.as_bytes()).err(),
                        SigningKey::from_pem(bad.as_bytes()).err(),
                        VerifyingKey::from_jwk(bad.as_bytes()).err(),
                        VerifyingKey::from_pem(bad.as_bytes()).err(),
                        KeySet::from_jwks(format!("{{\"keys\":[{bad}]}}").as_bytes()).err(),
                        token::HmacKey::from_pem(bad.as_bytes()).err(),
                    ];
                    for error in outcomes.into_iter().flatten() {
                        errors += 1;
                        for part in &parts {
                            let text = format!("{error} {error:?}");
                            for piece in part.as_bytes().windows(12).step_by(3) {
                                assert!(!text.contains(std::str::from_utf8(piece).unwrap()), "{text}");
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(errors > 3000);
}

#[test]
fn keys_that_are_skipped_show_nothing_of_themselves() {
    let private: Vec<_> = Algorithm::ALL
        .map(|algorithm| key(algorithm).to_jwk().expose_secret().to_owned())
        .into();
    let (_, skipped) = KeySet::from_jwks(format!("{{\"keys\":[{}]}}", private.join(",")).as_bytes()).unwrap();
    assert_eq!(skipped.len(), 4);
    for algorithm in Algorithm::ALL {
        for part in private_parts(key(algorithm)) {
            assert_hidden(&part, &printed(&skipped));
        }
    }
}

#[test]
fn tokens_do_not_print_themselves_and_claims_lack_the_signature() {
    for algorithm in Algorithm::ALL {
        let token = mint(key(algorithm), &claims(session()));
        let read = verifier().verify(token.expose_secret(), now()).unwrap();
        let text = format!("{}\n{}", printed(&token), printed(&read));
        assert!(text.contains("alice"));
        for part in token.expose_secret().split('.') {
            assert_hidden(part, &text);
        }
    }
}

#[test]
fn the_public_set_holds_no_private_part() {
    let text = keys().public_jwks();
    for algorithm in Algorithm::ALL {
        for part in private_parts(key(algorithm)) {
            assert_hidden(&part, &text);
        }
    }
    assert!(!secret(key(Algorithm::Hs256)).is_empty());
}
