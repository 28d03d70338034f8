// SPDX-License-Identifier: MIT OR Apache-2.0

//! Status Lists: what a verifier accepts, and what a cache of them says of tokens.

mod common;

use std::time::{Duration, SystemTime};

use common::{AUDIENCE, ISSUER, claims, key, keys, now, session, verifier};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::{
    Algorithm, Claims, MAX_STATUS_TOKEN, StatusCache, StatusEntry, StatusList, StatusListError, StatusListToIssue,
    TokenStatus, Verifier, VerifyError, mint, sign_status_list,
};

const URI: &str = "https://hpc.example.org/status/7";
const TTL: Duration = Duration::from_secs(60);

/// A list with these tokens as not valid, issued so many seconds after [`now`].
fn list(uri: &str, after: u64, invalid: &[u32]) -> String {
    let mut list = StatusList::new(1000);
    for index in invalid {
        list.set(*index, 1);
    }
    sign_status_list(
        key(Algorithm::EdDsa),
        &StatusListToIssue {
            iss: ISSUER,
            uri,
            iat: at(after),
            lifetime: Duration::from_secs(600),
            ttl: TTL,
            list: &list,
        },
    )
}

fn at(after: u64) -> SystemTime {
    now() + Duration::from_secs(after)
}

/// The claims of a token with an entry.
fn token(uri: &str, index: u32) -> Claims {
    let entry = StatusEntry {
        index,
        uri: uri.to_owned(),
    };
    let mut claims = claims(session());
    claims.status = Some(entry);
    verified(mint(key(Algorithm::EdDsa), &claims).expose_secret()).unwrap()
}

fn verified(token: &str) -> Result<Claims, VerifyError> {
    verifier().verify(token, now())
}

fn cache() -> StatusCache {
    StatusCache::new(verifier(), 3)
}

fn stale(uri: &str) -> TokenStatus {
    TokenStatus::Stale { uri: uri.to_owned() }
}

#[test]
fn a_token_is_valid_as_long_as_its_list_says_so_and_the_list_is_fresh() {
    let (cache, token, ended) = (cache(), token(URI, 5), token(URI, 6));
    assert_eq!(cache.status(&token, now()), stale(URI));
    cache.insert(&list(URI, 0, &[6]), now()).unwrap();
    assert_eq!(cache.status(&token, now()), TokenStatus::Valid);
    assert_eq!(cache.status(&token, at(59)), TokenStatus::Valid);
    assert_eq!(cache.status(&token, at(60)), stale(URI));
    // What has ended does not come back.
    assert_eq!(cache.status(&ended, now()), TokenStatus::Invalid);
    assert_eq!(cache.status(&ended, at(1000)), TokenStatus::Invalid);
    cache.insert(&list(URI, 61, &[5, 6]), at(61)).unwrap();
    assert_eq!(cache.status(&token, at(61)), TokenStatus::Invalid);
}

#[test]
fn a_list_that_somebody_has_kept_is_stale_sooner() {
    let (cache, token) = (cache(), token(URI, 5));
    // The clocks may be a minute apart: after two, it is stale however late it was received.
    cache.insert(&list(URI, 0, &[]), at(90)).unwrap();
    assert_eq!(cache.status(&token, at(119)), TokenStatus::Valid);
    assert_eq!(cache.status(&token, at(120)), stale(URI));
    // Received again, it lasts no longer.
    cache.insert(&list(URI, 0, &[]), at(119)).unwrap();
    assert_eq!(cache.status(&token, at(120)), stale(URI));
    let cache = self::cache();
    cache.insert(&list(URI, 0, &[]), now()).unwrap();
    cache.insert(&list(URI, 0, &[]), at(30)).unwrap();
    assert_eq!(cache.status(&token, at(60)), stale(URI));
    let expired = cache.insert(&list(URI, 0, &[]), at(660));
    assert!(matches!(expired, Err(VerifyError::Expired { .. })), "{expired:?}");
}

#[test]
fn a_list_says_nothing_about_tokens_of_another_issuer() {
    let cache = cache();
    cache.insert(&list(URI, 0, &[]), now()).unwrap();
    let other = "https://other.example.org";
    let mut claims = claims(session());
    claims.iss = other.to_owned();
    claims.status = Some(StatusEntry {
        index: 5,
        uri: URI.to_owned(),
    });
    let token = mint(key(Algorithm::EdDsa), &claims);
    let verifier = Verifier::new(keys()).issuer(other).audience(AUDIENCE);
    let claims = verifier.verify(token.expose_secret(), now()).unwrap();
    assert_eq!(cache.status(&claims, now()), TokenStatus::Invalid);
}

#[test]
fn an_older_list_does_not_replace_a_later_one() {
    let (cache, token) = (cache(), token(URI, 5));
    cache.insert(&list(URI, 10, &[5]), at(10)).unwrap();
    let older = cache.insert(&list(URI, 9, &[]), at(11));
    assert_eq!(older, Err(VerifyError::StatusList(StatusListError::Older)));
    assert_eq!(cache.status(&token, at(11)), TokenStatus::Invalid);
    // One of the future would make all later ones seem older.
    let early = cache.insert(&list(URI, 1000, &[]), at(11));
    assert!(matches!(early, Err(VerifyError::NotYet { .. })), "{early:?}");
}

#[test]
fn a_token_with_no_entry_of_its_list_is_not_valid() {
    let cache = cache();
    cache.insert(&list(URI, 0, &[]), now()).unwrap();
    for index in [1000, u32::MAX] {
        assert_eq!(cache.status(&token(URI, index), now()), TokenStatus::Invalid);
    }
    let none = mint(key(Algorithm::EdDsa), &claims(session()));
    let none = verified(none.expose_secret()).unwrap();
    assert_eq!(
        (cache.status(&none, now()), none.status()),
        (TokenStatus::Unlisted, None)
    );
}

#[test]
fn no_more_lists_are_held_than_allowed() {
    let cache = cache();
    let uri = |n: u64| format!("{URI}{n}");
    for n in 0..10 {
        cache.insert(&list(&uri(n), n, &[]), at(n)).unwrap();
    }
    let held = (0..10).filter(|n| cache.status(&token(&uri(*n), 0), at(10)) == TokenStatus::Valid);
    assert_eq!(held.collect::<Vec<_>>(), [7, 8, 9]);
}

#[test]
fn only_status_lists_of_the_issuer_are_accepted() {
    let good = json!({
        "iss": ISSUER, "sub": URI, "iat": common::NOW, "exp": common::NOW + 600, "ttl": 60,
        "status_list": {"bits": 1, "lst": "eNrbuRgAAhcBXQ"},
    });
    let sign = |typ: &str, claims: &Value| {
        let signed = key(Algorithm::EdDsa).sign(&[("typ", typ)], claims.to_string().as_bytes());
        signed.expose_secret().to_owned()
    };
    let verify = |token: &str| verifier().verify_status_list(token, now());
    let verified = verify(&sign("statuslist+jwt", &good)).unwrap();
    assert_eq!(
        (verified.uri.as_str(), verified.ttl, verified.list.get(0)),
        (URI, TTL, Some(1))
    );
    assert!(verify(&sign("application/statuslist+jwt", &good)).is_ok());
    for typ in ["JWT", "at+jwt", "statuslist+cwt", ""] {
        let refused = verify(&sign(typ, &good));
        assert!(matches!(refused, Err(VerifyError::WrongType(_))), "{typ} {refused:?}");
    }
    let refused = |name: &str, value: Value| {
        let mut claims = good.clone();
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
        verify(&sign("statuslist+jwt", &claims)).unwrap_err()
    };
    for name in ["iss", "sub", "iat", "exp", "ttl", "status_list"] {
        assert_eq!(refused(name, Value::Null), VerifyError::Missing(name));
    }
    assert!(matches!(
        refused("iss", json!("https://other.example.org")),
        VerifyError::WrongIssuer(_)
    ));
    let lst = "eNrbuRgAAhcBXQ";
    for (name, value) in [
        ("sub", json!("")),
        ("sub", json!([URI])),
        ("ttl", json!(0)),
        ("ttl", json!(-60)),
        ("ttl", json!("60")),
        ("ttl", json!(1e300)),
        ("status_list", json!([])),
        ("status_list", json!({"bits": 1.5, "lst": lst})),
        ("status_list", json!({"bits": 257, "lst": lst})),
        ("status_list", json!({"bits": "1", "lst": lst})),
        ("status_list", json!({"bits": 1})),
        ("status_list", json!({"bits": 1, "lst": [lst]})),
    ] {
        assert_eq!(refused(name, value.clone()), VerifyError::InvalidClaim(name), "{value}");
    }
    let bits = refused("status_list", json!({"bits": 3, "lst": lst}));
    assert_eq!(bits, VerifyError::StatusList(StatusListError::Bits));
    let twice = format!(
        "{}{}",
        &good.to_string()[..good.to_string().len() - 1],
        r#","sub":"https://b"}"#
    );
    let twice = key(Algorithm::EdDsa).sign(&[("typ", "statuslist+jwt")], twice.as_bytes());
    assert!(matches!(verify(twice.expose_secret()), Err(VerifyError::Malformed(_))));
    assert_eq!(
        verify(&"a".repeat(MAX_STATUS_TOKEN + 1)),
        Err(VerifyError::StatusList(StatusListError::TooLong))
    );
    // Another key of the issuer's name.
    let other = token::SigningKey::generate(Algorithm::Es256);
    let forged = other.sign(&[("typ", "statuslist+jwt")], good.to_string().as_bytes());
    assert!(verify(forged.expose_secret()).is_err());
    // It authorizes nobody, whatever types are accepted.
    let as_token = Verifier::new(keys()).any_audience().typ("statuslist+jwt");
    assert!(as_token.verify(&sign("statuslist+jwt", &good), now()).is_err());
}

#[test]
fn a_list_of_a_million_jobs_is_verified_and_cached() {
    let mut list = StatusList::new(token::MAX_STATUS_ENTRIES);
    let mut random = 1_u64;
    for index in 0..list.entries() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        list.set(index, (random & 1) as u8);
    }
    let issue = StatusListToIssue {
        iss: ISSUER,
        uri: URI,
        iat: now(),
        lifetime: Duration::from_secs(600),
        ttl: TTL,
        list: &list,
    };
    let signed = sign_status_list(key(Algorithm::EdDsa), &issue);
    assert!(
        signed.len() > token::MAX_LEN && signed.len() < 240_000,
        "{}",
        signed.len()
    );
    assert_eq!(verifier().verify_status_list(&signed, now()).unwrap().list, list);
    // With the compression of HTTP, as most clients fetch it: gzip adds 18 bytes (RFC 1952).
    let compressed = miniz_oxide::deflate::compress_to_vec(signed.as_bytes(), 6).len() + 18;
    assert!(compressed <= 200_000, "{compressed}");
}

#[test]
fn a_claim_in_another_form_is_refused_in_tokens_of_ours_and_ignored_in_others() {
    let of = |status: Value, scope: &str| {
        let claims = json!({"iss": ISSUER, "sub": "alice", "aud": AUDIENCE, "exp": common::NOW + 600, "scope": scope, "status": status});
        let signed = key(Algorithm::EdDsa).sign(&[("typ", "JWT")], claims.to_string().as_bytes());
        verified(signed.expose_secret())
            .map(|claims| claims.status().map(|status| (status.index, status.uri.to_owned())))
    };
    let entry = |idx: Value, uri: Value| json!({"status_list": {"idx": idx, "uri": uri, "more": 1}, "other": {}});
    assert_eq!(
        of(entry(json!(0), json!(URI)), "cluster"),
        Ok(Some((0, URI.to_owned())))
    );
    assert_eq!(
        of(entry(json!(u32::MAX), json!("a\u{e9}\"")), "cluster"),
        Ok(Some((u32::MAX, "a\u{e9}\"".to_owned())))
    );
    assert_eq!(of(json!({"other": 1}), "cluster"), Ok(None));
    for bad in [
        json!(1),
        json!("active"),
        json!({"status_list": 1}),
        json!({"status_list": {}}),
        entry(json!(-1), json!(URI)),
        entry(json!(1.5), json!(URI)),
        entry(json!(4_294_967_296_u64), json!(URI)),
        entry(json!("1"), json!(URI)),
        entry(json!(1), json!("")),
        entry(json!(1), json!([URI])),
    ] {
        assert_eq!(
            of(bad.clone(), "cluster"),
            Err(VerifyError::InvalidClaim("status")),
            "{bad}"
        );
        assert_eq!(of(bad.clone(), "read write"), Ok(None), "{bad}");
    }
}
