// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a verifier accepts, and what it makes of it.

mod common;

use std::time::Duration;

use common::{AUDIENCE, claims, header, key, keys, now, payload, refused, session, sign, verifier, with};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::{Algorithm, Grant, Job, KeySet, MAX_LEN, Malformed, Segment, SigningKey, Verifier, VerifyError, mint};

#[test]
fn without_kid_the_only_key_is_used() {
    for algorithm in Algorithm::ALL {
        let key = key(algorithm);
        let token = sign(key, with(header(key), json!({"kid": null})), payload().to_string());
        let verifier = verifier().with_keys(KeySet::from(key.verifying_key()));
        assert!(verifier.verify(&token, now()).is_ok());
        let other = verifier.with_keys(KeySet::from(SigningKey::generate(Algorithm::EdDsa).verifying_key()));
        assert!(other.verify(&token, now()).is_err());
        assert_eq!(
            verifier.with_keys(KeySet::new()).verify(&token, now()).err(),
            Some(VerifyError::NoKeys)
        );
    }
}

/// RFC 7515 section 4.1.4 leaves `kid` to issuers; each key is for one algorithm.
#[test]
fn without_kid_the_only_key_of_the_algorithm_is_used() {
    let token = |key: &SigningKey| sign(key, with(header(key), json!({"kid": null})), payload().to_string());
    for algorithm in Algorithm::ALL {
        assert!(verifier().verify(&token(key(algorithm)), now()).is_ok(), "{algorithm}");
        let mut two = keys();
        two.insert(SigningKey::generate(algorithm).verifying_key());
        let refused = verifier().with_keys(two).verify(&token(key(algorithm)), now());
        assert_eq!(refused.err(), Some(VerifyError::NoKid), "{algorithm}");
        let others: KeySet = keys()
            .iter()
            .filter(|key| key.algorithm() != algorithm)
            .cloned()
            .collect();
        let refused = verifier().with_keys(others).verify(&token(key(algorithm)), now());
        assert_eq!(refused.err(), Some(VerifyError::NoKid), "{algorithm}");
    }
}

/// Text that readers disagree on, in a claim or member that nobody reads, has the same result in all readers.
#[test]
fn what_nobody_reads_is_refused_by_all_readers_or_by_none() {
    let key = key(Algorithm::EdDsa);
    let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    for (value, expected) in [
        (r#""\ud83d\ude00""#, None),
        (r#""\ud83d""#, Some("half a character")),
        (r#""\ude00""#, Some("half a character")),
        (r#""\ud83d\ud83d\ude00""#, Some("half a character")),
        (r#""\ud83d and more""#, Some("half a character")),
        (r#""\ud83d\n""#, Some("half a character")),
        (r#"["a", {"b": "\udfff"}]"#, Some("half a character")),
        (r#"{"\ud800": 1}"#, Some("half a character")),
        (r#""\x""#, Some("invalid JSON")),
        (&deep(100), None),
        (&deep(10_000), Some("invalid JSON")),
        (r#"{"a": [{"b": 1, "b": 1}]}"#, Some("a name twice")),
    ] {
        let add = |object: String| format!(r#"{},"name":{value}}}"#, object.strip_suffix('}').unwrap());
        for (header, payload) in [
            (header(key).to_string(), add(payload().to_string())),
            (add(header(key).to_string()), payload().to_string()),
        ] {
            let token = sign(key, header, payload);
            let verified = verifier().verify(&token, now()).map(drop).map_err(|e| e.to_string());
            let shaped = token::check_shape(&token, now()).map(drop).map_err(|e| e.to_string());
            for result in [&verified, &shaped] {
                match (expected, result) {
                    (None, Ok(())) => (),
                    (Some(says), Err(error)) => assert!(error.contains(says), "{value:.40}: {error}"),
                    _ => panic!("{value:.40}: {verified:?}, {shaped:?}"),
                }
            }
        }
    }
}

#[test]
fn a_name_that_is_shown_does_not_steer_a_terminal() {
    let key = key(Algorithm::EdDsa);
    let kid = "\u{202e}é\u{2066}\"\u{2028}\u{e0001}\u{1b}[2J\u{9b}\u{200b}'\\";
    let token = sign(key, with(header(key), json!({"kid": kid})), payload().to_string());
    let error = refused(&token);
    assert_eq!(
        error.to_string().split(", which").next().unwrap(),
        "the token is signed with the key \"?é?????[2J??'\\\""
    );
    assert!(!format!("{error:?}").contains('\u{202e}'), "{error:?}");
}

#[test]
fn the_leeway_holds_at_both_ends() {
    let key = key(Algorithm::EdDsa);
    let token = mint(key, &claims(session()));
    for (leeway, before, after) in [(0, 0, 599), (60, 60, 659), (300, 300, 899)] {
        let verifier = verifier().leeway(Duration::from_secs(leeway));
        let at = |offset: i64| {
            verifier.verify(
                token.expose_secret(),
                now().checked_add(Duration::from_secs(5000)).unwrap() - Duration::from_secs((5000 - offset) as u64),
            )
        };
        assert!(at(-before).is_ok() && at(after).is_ok());
        assert!(matches!(at(-before - 1), Err(VerifyError::NotYet { .. })));
        assert!(matches!(at(after + 1), Err(VerifyError::Expired { .. })));
    }
}

#[test]
fn a_typ_is_compared_as_a_media_type() {
    let key = key(Algorithm::EdDsa);
    let of_typ = |typ: Value| sign(key, with(header(key), json!({"typ": typ})), payload().to_string());
    for typ in ["JWT", "jwt", "application/jwt", "APPLICATION/JWT"] {
        assert!(verifier().verify(&of_typ(typ.into()), now()).is_ok(), "{typ}");
    }
    assert!(verifier().verify(&of_typ(Value::Null), now()).is_ok());
    for typ in ["", "application/", "ÄÄÄÄÄÄ/jwt", "x/jwt", "secevent+jwt"] {
        assert!(
            matches!(refused(&of_typ(typ.into())), VerifyError::WrongType(_)),
            "{typ}"
        );
    }
    let access_tokens = verifier().typ("at+jwt");
    assert!(
        access_tokens
            .verify(&of_typ("application/at+jwt".into()), now())
            .is_ok()
    );
    assert!(access_tokens.verify(&of_typ("JWT".into()), now()).is_err());
    assert!(access_tokens.verify(&of_typ(Value::Null), now()).is_err());
}

#[test]
fn where_an_instance_is_demanded_a_job_of_another_one_is_refused() {
    let job = |instance: &str| {
        let Grant::Session { workspace, job } = session() else {
            unreachable!("it is of a session")
        };
        let instance = instance.to_owned();
        let job = Job { instance, ..job };
        mint(key(Algorithm::EdDsa), &claims(Grant::Session { workspace, job }))
    };
    let verifier = verifier();
    let of_fluke = verifier.clone().instance("fluke");
    for (token, accepted) in [(job("fluke"), true), (job("fluke2"), false), (job(""), false)] {
        assert!(verifier.verify(token.expose_secret(), now()).is_ok());
        let verified = of_fluke.verify(token.expose_secret(), now());
        match accepted {
            true => assert!(verified.is_ok()),
            false => assert!(matches!(verified, Err(VerifyError::WrongInstance(_))), "{verified:?}"),
        }
    }
    // Users are of no instance.
    let token = mint(key(Algorithm::EdDsa), &claims(Grant::Cluster));
    assert!(of_fluke.verify(token.expose_secret(), now()).is_ok());
}

#[test]
fn without_an_audience_nothing_is_accepted() {
    let token = mint(key(Algorithm::EdDsa), &claims(Grant::Cluster));
    let verifier = Verifier::new(keys());
    assert!(matches!(
        verifier.verify(token.expose_secret(), now()),
        Err(VerifyError::WrongAudience(_))
    ));
    assert!(
        verifier
            .clone()
            .any_audience()
            .verify(token.expose_secret(), now())
            .is_ok()
    );
    assert!(
        verifier
            .audience("other")
            .audience(AUDIENCE)
            .verify(token.expose_secret(), now())
            .is_ok()
    );
}

#[test]
fn tokens_of_other_issuers_have_no_scope() {
    let key = key(Algorithm::EdDsa);
    for scope in [json!("openid profile"), json!(["cluster"]), json!(null), json!("")] {
        let changes = json!({"scope": scope, "workspace": 7, "flux": "x", "groups": ["hydro-team"], "sub": null});
        let token = sign(key, header(key).to_string(), with(payload(), changes));
        let claims = verifier().verify(&token, now()).unwrap();
        assert_eq!(
            (claims.scope(), claims.kind(), claims.job(), claims.sub()),
            (None, None, None, None)
        );
        assert_eq!(claims.workspaces().count(), 0);
        assert_eq!(claims.get("groups"), Some(json!(["hydro-team"])));
        assert_eq!(claims.get("nothing"), None);
    }
}

#[test]
fn strings_with_escapes_are_what_they_mean() {
    let key = key(Algorithm::EdDsa);
    let payload = payload()
        .to_string()
        .replace("alice", r"\u0061lic\u0065")
        .replace("f4dVSvb", r"f4dVSv\u0062");
    let token = sign(
        key,
        header(key).to_string(),
        payload.replace("copy-offload", r"copy\u002doffload"),
    );
    let claims = verifier().verify(&token, now()).unwrap();
    assert_eq!((claims.sub(), claims.job().unwrap().id), (Some("alice"), "f4dVSvb"));
}

#[test]
fn thousands_of_names_take_no_longer_than_their_length() {
    let key = key(Algorithm::EdDsa);
    let names: Vec<_> = (0..4000).map(|i| format!("\"{i:x}\":1")).collect();
    let token = sign(key, header(key).to_string(), format!("{{{}}}", names.join(",")));
    assert!(token.len() < MAX_LEN);
    assert_eq!(refused(&token), VerifyError::Missing("exp"));
}

#[test]
fn reasons_have_values_to_act_on() {
    let token = sign(
        key(Algorithm::EdDsa),
        json!({"alg": "EdDSA", "kid": "2024"}).to_string(),
        "{}",
    );
    match refused(&token) {
        VerifyError::UnknownKid(kid) => assert_eq!(kid.as_str(), "2024"),
        other => panic!("{other}"),
    }
    assert_eq!(refused("a.b"), VerifyError::Malformed(Malformed::Segments(2)));
    assert_eq!(
        refused(".b.c"),
        VerifyError::Malformed(Malformed::EmptySegment(Segment::Header))
    );
}
