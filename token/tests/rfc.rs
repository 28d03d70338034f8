// SPDX-License-Identifier: MIT OR Apache-2.0

//! The examples of RFC 7515, 7517, 7519, 7520, 7638, 7797 and 8037: those of our algorithms are accepted, all others are
//! refused for what they are, and so is each that was altered.

use serde::Deserialize;
use serde_json::Value;
use token::{KeyError, KeySet, SigningKey, VerifyingKey};

#[derive(Deserialize)]
struct Examples {
    tokens: Vec<Token>,
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(rename = "where")]
    section: String,
    jws: String,
    key: Value,
    refused: Option<String>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "where")]
    section: String,
    jwk: Value,
    thumbprint: Option<String>,
    refused: Option<String>,
}

fn examples() -> Examples {
    serde_json::from_str(include_str!("../testdata/rfc.json")).unwrap()
}

/// A key as it is given where its kind belongs.
fn verifying_key(jwk: &Value) -> Result<VerifyingKey, KeyError> {
    let text = jwk.to_string();
    if jwk["kty"] == "oct" || jwk.get("d").is_some() {
        SigningKey::from_jwk(text.as_bytes()).map(|key| key.verifying_key())
    } else {
        VerifyingKey::from_jwk(text.as_bytes())
    }
}

/// The key of an example; where that is of a kind that is not used here, some other key.
fn key_set(example: &Token) -> KeySet {
    let key = verifying_key(&example.key).or_else(|_| VerifyingKey::from_secret(b"a secret that is used for nothing"));
    KeySet::from(key.unwrap())
}

#[test]
fn valid_examples_are_accepted_and_the_others_refused_for_what_they_are() {
    let examples = examples().tokens;
    assert_eq!(examples.iter().filter(|example| example.refused.is_none()).count(), 6);
    for example in examples {
        match (key_set(&example).verify_jws(&example.jws), &example.refused) {
            (Ok(payload), None) => {
                let claimed = example.jws.split('.').nth(1).unwrap();
                assert_eq!(encode(&payload), claimed, "{}", example.section);
            }
            (Err(reason), Some(refused)) => {
                assert!(reason.to_string().contains(refused), "{}: {reason}", example.section);
            }
            (outcome, _) => panic!("{}: {outcome:?}", example.section),
        }
    }
}

#[test]
fn an_example_with_any_character_altered_is_refused() {
    for example in examples().tokens.iter().filter(|example| example.refused.is_none()) {
        let keys = key_set(example);
        let (mut altered, mut first) = (0, String::new());
        for (at, c) in example.jws.char_indices() {
            // The next letter of the base64url alphabet, one far away, and what is not of it.
            for other in [
                if c == 'A' { 'B' } else { 'A' },
                if c == '_' { '9' } else { '_' },
                '.',
                '=',
            ] {
                if other == c {
                    continue;
                }
                first.clone_from(&example.jws);
                first.replace_range(at..=at, other.encode_utf8(&mut [0; 4]));
                assert!(
                    keys.verify_jws(&first).is_err(),
                    "{}: byte {at} as {other}",
                    example.section
                );
                altered += 1;
            }
            let without = format!("{}{}", &example.jws[..at], &example.jws[at + 1..]);
            assert!(
                keys.verify_jws(&without).is_err(),
                "{}: without byte {at}",
                example.section
            );
        }
        assert!(altered >= 3 * (example.jws.len() - 2));
    }
}

#[test]
fn valid_keys_are_accepted_and_the_others_refused_for_what_they_are() {
    for example in examples().keys {
        match (verifying_key(&example.jwk), &example.refused) {
            (Ok(key), None) => {
                let kid = example.jwk["kid"]
                    .as_str()
                    .map_or_else(|| key.thumbprint(), str::to_owned);
                assert_eq!(key.kid(), kid, "{}", example.section);
                if let Some(thumbprint) = &example.thumbprint {
                    assert_eq!(&key.thumbprint(), thumbprint, "{}", example.section);
                }
                if let Some(jwk) = key.to_jwk() {
                    for member in ["kty", "crv", "x", "y", "n", "e"] {
                        assert_eq!(jwk.get(member), example.jwk.get(member), "{} {member}", example.section);
                    }
                    assert!(jwk.get("d").is_none());
                }
            }
            (Err(reason), Some(refused)) => {
                assert!(reason.to_string().contains(refused), "{}: {reason}", example.section);
            }
            (outcome, _) => panic!("{}: {outcome:?}", example.section),
        }
    }
}

#[test]
fn an_altered_private_key_is_refused() {
    let mut private = 0;
    for example in examples().keys.iter().filter(|example| example.refused.is_none()) {
        if example.jwk.get("d").is_none() {
            continue;
        }
        private += 1;
        for member in ["d", "x", "y", "n", "p", "q"] {
            let Some(value) = example.jwk[member].as_str() else {
                continue;
            };
            let (start, end) = value.split_at(value.len() / 2);
            let other = if end.starts_with('A') { "B" } else { "A" };
            let mut jwk = example.jwk.clone();
            jwk[member] = format!("{start}{other}{}", &end[1..]).into();
            let read = SigningKey::from_jwk(jwk.to_string().as_bytes());
            assert!(read.is_err(), "{}: {member} altered", example.section);
        }
    }
    assert_eq!(private, 5);
}

#[test]
fn a_private_key_is_not_taken_for_a_public_one() {
    for example in examples().keys {
        let read = VerifyingKey::from_jwk(example.jwk.to_string().as_bytes());
        let expected = match (&example.refused, example.jwk.get("k"), example.jwk.get("d")) {
            (Some(_), ..) => continue,
            (None, Some(_), _) => Some(KeyError::SecretAsPublic),
            (None, None, Some(_)) => Some(KeyError::PrivateAsPublic),
            (None, None, None) => None,
        };
        assert_eq!(read.err(), expected, "{}", example.section);
    }
}

#[test]
fn a_private_key_signs_what_its_public_part_verifies() {
    for example in examples().keys.iter().filter(|example| example.refused.is_none()) {
        let Ok(key) = SigningKey::from_jwk(example.jwk.to_string().as_bytes()) else {
            continue;
        };
        let signed = key.sign(&[], b"payload");
        let keys = KeySet::from(key.verifying_key());
        let payload = keys.verify_jws(secrecy::ExposeSecret::expose_secret(&signed));
        assert_eq!(payload.as_deref(), Ok(&b"payload"[..]), "{}", example.section);
    }
}

#[test]
fn the_key_sets_of_rfc_7517_are_read() {
    let keys = examples().keys;
    let jwks = |sections: &[&str]| {
        let keys: Vec<_> = keys
            .iter()
            .filter(|key| sections.contains(&key.section.as_str()))
            .collect();
        assert_eq!(keys.len(), sections.len());
        let keys: Vec<_> = keys.iter().map(|key| key.jwk.clone()).collect();
        KeySet::from_jwks(serde_json::json!({ "keys": keys }).to_string().as_bytes()).unwrap()
    };

    let (set, skipped) = jwks(&["RFC 7517 A.1, the first", "RFC 7517 A.1, the second, RFC 7638 3.1"]);
    assert_eq!(set.iter().map(VerifyingKey::kid).collect::<Vec<_>>(), ["2011-04-29"]);
    assert_eq!(
        (skipped[0].kid.as_deref(), &skipped[0].reason),
        (Some("1"), &KeyError::NotForSignatures)
    );

    let (set, skipped) = jwks(&["RFC 7517 A.2, the first", "RFC 7517 A.2, the second"]);
    assert_eq!((set.len(), &skipped[1].reason), (0, &KeyError::PrivateAsPublic));

    let (set, skipped) = jwks(&["RFC 7517 A.3, the first", "RFC 7517 A.3, the second"]);
    assert_eq!(
        (set.len(), skipped[1].index, &skipped[1].reason),
        (0, 1, &KeyError::SecretAsPublic)
    );
}

fn encode(bytes: &[u8]) -> String {
    use base64::Engine;

    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}
