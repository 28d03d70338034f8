// SPDX-License-Identifier: MIT OR Apache-2.0

//! Verification keys from an issuer's URL, against a simulated issuer.

#[path = "support/login.rs"]
mod login;
#[path = "support/tunnel.rs"]
mod tunnel;

use std::{
    fs,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use config::{Discovery, Trust, TrustedKeys};
use login::{Authority, FAR_AHEAD, Fault, JWKS, Login, METADATA, OIDC, Setup, key};
use seal::ExposeSecret;
use serde_json::json;
use source::{
    Examined, JwksClient,
    verify::{TokenVerifier, Unverified},
};
use tempfile::TempDir;
use token::{SigningKey, VerifyError};
use tunnel::Tunnel;

/// The burst of requests to an issuer because of unknown keys.
const ASKS: usize = 3;

/// A verifier.
#[derive(Clone)]
struct Site {
    dir: Arc<TempDir>,
    issuer: String,
    discovery: Discovery,
    notes: Arc<Mutex<Vec<String>>>,
}

impl Site {
    fn new(login: &Login) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        fs::write(&ca_file, login.authority.pem()).unwrap();
        Self {
            dir: Arc::new(dir),
            issuer: login.url(),
            discovery: Discovery {
                proxy: None,
                ca_file: Some(ca_file),
                refresh: Duration::from_secs(3600),
            },
            notes: Arc::default(),
        }
    }

    fn trusted(&self) -> Arc<TokenVerifier> {
        let trust = Trust {
            name: "login".to_owned(),
            issuer: self.issuer.clone(),
            keys: TrustedKeys::Discovered(self.discovery.clone()),
            audience: vec!["copy-offload".to_owned()],
            types: vec!["at+jwt".to_owned()],
            leeway: Duration::from_secs(60),
        };
        Arc::new(TokenVerifier::new(&trust).unwrap())
    }

    /// Returns a token that this key signs.
    fn token(&self, key: &SigningKey) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({"iss": self.issuer, "aud": "copy-offload", "sub": "alice", "exp": now + 600});
        let token = key.sign(&[("typ", "at+jwt")], claims.to_string().as_bytes());
        token.expose_secret().to_owned()
    }

    /// Verifies a token on a worker thread.
    async fn verify(&self, trusted: &Arc<TokenVerifier>, key: &SigningKey) -> Result<(), Unverified> {
        let (trusted, token, notes) = (trusted.clone(), self.token(key), self.notes.clone());
        tokio::task::spawn_blocking(move || {
            let (result, said) = trusted.verify(&token, SystemTime::now());
            notes.lock().unwrap().extend(said);
            result.map(drop)
        })
        .await
        .unwrap()
    }

    fn notes(&self) -> String {
        self.notes.lock().unwrap().join("\n")
    }
}

#[track_caller]
fn no_keys(result: Result<(), Unverified>, says: &[&str]) {
    match result {
        Err(Unverified::NoKeys(e)) => {
            let error = e.to_string();
            for part in says {
                assert!(error.contains(part), "{error:?} does not say {part:?}");
            }
            assert!(
                !e.summary().contains(['/', ':']),
                "the user is told of the site: {}",
                e.summary()
            );
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn unknown(result: Result<(), Unverified>) {
    assert!(
        matches!(result, Err(Unverified::Refused(VerifyError::UnknownKid(_)))),
        "{result:?}"
    );
}

#[track_caller]
fn none_left(result: Result<(), Unverified>) {
    assert!(
        matches!(result, Err(Unverified::Refused(VerifyError::NoKeys))),
        "{result:?}"
    );
}

/// Returns an issuer with a key, and a verifier.
fn healthy() -> (Login, SigningKey, Site) {
    let (login, key) = (Login::start(), key());
    login.publish(&[&key]);
    let site = Site::new(&login);
    (login, key, site)
}

#[tokio::test]
async fn a_token_is_verified_with_the_keys_of_its_issuer_which_are_kept() {
    let (login, key, site) = healthy();
    let trusted = site.trusted();
    for _ in 0..100 {
        site.verify(&trusted, &key).await.unwrap();
    }
    // Verifiers of the same issuer share the keys.
    site.verify(&site.trusted(), &key).await.unwrap();
    assert_eq!((login.asked(METADATA).len(), login.asked(JWKS).len()), (1, 1));
}

#[test]
fn a_thread_without_a_runtime_can_verify() {
    let (login, key, site) = healthy();
    let trusted = site.trusted();
    for _ in 0..3 {
        trusted.verify(&site.token(&key), SystemTime::now()).0.unwrap();
    }
    let new = login::key();
    login.publish(&[&key, &new]);
    trusted.verify(&site.token(&new), SystemTime::now()).0.unwrap();
}

#[tokio::test]
async fn a_new_key_is_fetched_when_a_token_names_it_and_one_that_is_retired_goes() {
    let (login, old, site) = healthy();
    let trusted = site.trusted();
    site.verify(&trusted, &old).await.unwrap();
    let new = key();
    login.publish(&[&old, &new]);
    site.verify(&trusted, &new).await.unwrap();
    site.verify(&trusted, &old).await.unwrap();
    assert_eq!(login.asked(METADATA).len(), 1, "where the keys are is known");
    let newest = key();
    login.publish(&[&newest]);
    site.verify(&trusted, &newest).await.unwrap();
    unknown(site.verify(&trusted, &old).await);
}

#[tokio::test]
async fn tokens_of_unknown_keys_do_not_have_the_issuer_asked_without_end() {
    let (login, good, site) = healthy();
    let trusted = site.trusted();
    site.verify(&trusted, &good).await.unwrap();
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let (site, trusted) = (site.clone(), trusted.clone());
            tokio::spawn(async move { site.verify(&trusted, &key()).await })
        })
        .collect();
    for task in tasks {
        unknown(task.await.unwrap());
    }
    // Simultaneous verifications wait for one answer. Sequential ones cannot share an answer.
    for _ in 0..50 {
        unknown(site.verify(&trusted, &key()).await);
    }
    let asked = login.asked(JWKS).len() - 1;
    // If the test is slow, the rate limit allows more requests.
    let more = login.asked(JWKS).last().unwrap().at - login.asked(JWKS)[0].at;
    let most = ASKS + (more.as_secs() / 10) as usize;
    assert!(
        (1..=most).contains(&asked),
        "it was asked {asked} times, within {more:?}"
    );
    site.verify(&trusted, &good).await.unwrap();
}

#[tokio::test]
async fn an_issuer_that_cannot_be_reached_does_not_stop_known_keys_from_working() {
    let (login, good, site) = healthy();
    let trusted = site.trusted();
    site.verify(&trusted, &good).await.unwrap();
    login.fail("", 1000, Fault::HangUp);
    unknown(site.verify(&trusted, &key()).await);
    site.verify(&trusted, &good).await.unwrap();
    let notes = site.notes();
    assert!(notes.contains("the known keys remain in use"), "{notes}");
    assert_eq!(notes.matches("the known keys").count(), 1, "it is said once: {notes}");
    let port = login.port();
    drop(login);
    unknown(site.verify(&trusted, &key()).await);
    site.verify(&trusted, &good).await.unwrap();

    // The issuer returns with another key, which the background task fetches without a verification.
    let new = key();
    let authority = Authority::new("the next authority");
    fs::write(site.dir.path().join("ca.pem"), authority.pem()).unwrap();
    let setup = Setup {
        port,
        ..Setup::default()
    };
    let login = tokio::task::spawn_blocking(move || Login::of(authority, setup))
        .await
        .unwrap();
    login.publish(&[&good, &new]);
    login.until(|login| !login.asked(JWKS).is_empty()).await;
    site.verify(&trusted, &new).await.unwrap();
}

#[tokio::test]
async fn keys_are_fetched_again_in_the_background() {
    let (login, good, mut site) = healthy();
    site.discovery.refresh = Duration::from_millis(100);
    let trusted = site.trusted();
    site.verify(&trusted, &good).await.unwrap();
    login.until(|login| login.asked(JWKS).len() >= 4).await;
    assert!(login.asked(METADATA).len() >= 3, "where they are may change, too");
    // A removed key is rejected, even if no token named an unknown key.
    login.publish(&[]);
    let seen = login.asked(JWKS).len();
    login.until(|login| login.asked(JWKS).len() >= seen + 2).await;
    none_left(site.verify(&trusted, &good).await);
    // When no verifier uses the issuer, its connections are closed.
    drop(trusted);
    login.until(|login| login.open() == 0).await;
}

#[tokio::test]
async fn a_first_try_that_fails_is_followed_by_others_while_somebody_waits() {
    let (login, good, site) = healthy();
    login.fail(METADATA, 1, Fault::Status(503, None));
    login.fail(JWKS, 1, Fault::CutOff("{\"keys\": ["));
    site.verify(&site.trusted(), &good).await.unwrap();
}

#[tokio::test]
async fn an_issuer_that_requests_an_endless_pause_is_asked_again_when_its_keys_are_due() {
    let (login, good, mut site) = healthy();
    site.discovery.refresh = Duration::from_millis(100);
    for (retry_after, _) in FAR_AHEAD {
        let trusted = site.trusted();
        login.fail(METADATA, 1, Fault::busy(503, retry_after));
        site.verify(&trusted, &good).await.unwrap();
        // The next runtime starts a new task.
        drop(trusted);
        login.until(|login| login.open() == 0).await;
    }
}

#[tokio::test]
async fn keys_are_taken_in_the_type_that_a_server_produces() {
    let (login, good, site) = healthy();
    for jwks_type in ["application/jwk-set+json", "application/json", "*/*"] {
        login.world(|world| world.jwks_type = Some(jwks_type));
        let trusted = site.trusted();
        site.verify(&trusted, &good).await.unwrap();
        drop(trusted);
        login.until(|login| login.open() == 0).await;
    }
}

#[tokio::test]
async fn a_jwks_that_is_elsewhere_is_told() {
    let (login, good, site) = healthy();
    let url = login.url();
    for code in [301, 302, 303, 307, 308] {
        let location = ("location", "https://elsewhere.example.org/keys".to_owned());
        login.fail(JWKS, 1, Fault::Headers(code, vec![location]));
        let says = [
            &format!("{url}{JWKS}: it answered with the status {code}"),
            "`https://elsewhere.example.org/keys`",
            "redirects are not followed",
        ];
        let trusted = site.trusted();
        no_keys(site.verify(&trusted, &good).await, &says);
        drop(trusted);
        login.until(|login| login.open() == 0).await;
    }
}

#[tokio::test]
async fn without_keys_it_is_told_why() {
    let good = key();
    let login = Login::start();
    let (url, not_json) = (login.url(), Fault::Text("<html>".to_owned()));
    for (path, fault, says) in [
        (
            METADATA,
            Fault::Text(json!({"issuer": "https://evil.example.org"}).to_string()),
            "another issuer",
        ),
        (METADATA, Fault::Endless, "more than"),
        (
            METADATA,
            Fault::Text(json!({"issuer": url}).to_string()),
            "names no jwks_uri",
        ),
        (JWKS, not_json, "is not a JWKS"),
        (JWKS, Fault::Endless, "more than"),
        (JWKS, Fault::Long(1 << 40), "more than"),
        (JWKS, Fault::Status(403, None), "status 403"),
    ] {
        let site = Site::new(&login);
        login.fail(path, 1, fault);
        no_keys(
            site.verify(&site.trusted(), &good).await,
            &["no usable answer", says, &url],
        );
        login.mend();
    }
    let site = Site::new(&login);
    drop(login);
    no_keys(
        site.verify(&site.trusted(), &good).await,
        &["could not be reached", "refused the connection", &url],
    );
}

#[tokio::test]
async fn keys_that_cannot_be_used_are_skipped_and_told() {
    let (login, good, site) = healthy();
    let jwk = good.verifying_key().to_jwk().unwrap();
    login.document(
        JWKS,
        json!({"keys": [
            {"kty": "oct", "kid": "secret", "k": "AAAA"},
            {"kty": "RSA", "kid": "small\nkey", "n": "AQAB", "e": "AQAB"},
            {"kty": "quantum"}, 1, null, [], {}, "",
            jwk,
        ]}),
    );
    let trusted = site.trusted();
    site.verify(&trusted, &good).await.unwrap();
    let notes = site.notes();
    assert!(notes.contains("`secret`") && notes.contains("and 4 more"), "{notes}");
    assert_eq!(notes.lines().count(), 1, "{notes}");

    login.document(JWKS, json!({"keys": [{"kty": "quantum"}]}));
    none_left(site.verify(&trusted, &key()).await);
    assert!(site.notes().contains("no usable key"), "{}", site.notes());
    login.publish(&[&good]);
    site.verify(&trusted, &good).await.unwrap();
}

/// JWKS of real issuers, which also contain unusable keys.
#[tokio::test]
async fn keys_are_taken_from_sets_as_issuers_publish_them() {
    let (login, good, site) = healthy();
    let jwk = good.verifying_key().to_jwk().unwrap();
    let with = |more: serde_json::Value| {
        let mut jwk = jwk.clone();
        jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        jwk
    };
    let mut bare = jwk.clone();
    for member in ["alg", "use"] {
        bare.as_object_mut().unwrap().remove(member);
    }
    let keycloak = json!({"kid": "enc", "kty": "RSA", "alg": "RSA-OAEP", "use": "enc", "n": "AQAB", "e": "AQAB"});
    let many = (0..40).map(|n| json!({"kty": "EC", "crv": "P-521", "kid": n.to_string(), "x": "AA", "y": "AA"}));
    for set in [
        // Without alg and use, as at Entra.
        json!({"keys": [bare]}),
        json!({"keys": [keycloak, with(json!({"x5c": ["AAAA"], "x5t": "x", "x5t#S256": "x", "exp": 1, "nbf": 1.5}))]}),
        // The same kid with different algorithms.
        json!({"keys": [with(json!({"alg": "RS384"})), jwk, with(json!({"alg": "RS512"}))]}),
        json!({"keys": [with(json!({"kty": "EC", "crv": "P-256", "alg": "ES256"})), jwk]}),
        json!({"keys": [with(json!({"kid": 1})), with(json!({"key_ops": ["verify"], "ext": true}))], "expires": null}),
        json!({"keys": many.chain([jwk.clone()]).collect::<Vec<_>>()}),
    ] {
        login.document(JWKS, set.clone());
        let trusted = site.trusted();
        let verified = site.verify(&trusted, &good).await;
        assert!(verified.is_ok(), "{set}: {verified:?}");
        drop(trusted);
        login.until(|login| login.open() == 0).await;
    }
    let text = json!({"keys": [jwk]}).to_string();
    login.fail(JWKS, 1, Fault::Text(format!("\u{feff}{text}")));
    site.verify(&site.trusted(), &good).await.unwrap();
}

/// RFC 8414 section 2 does not require `jwks_uri`.
#[tokio::test]
async fn keys_that_one_place_does_not_name_are_looked_for_in_the_next() {
    let (login, good, site) = healthy();
    let url = login.url();
    login.document(
        METADATA,
        json!({"issuer": url, "token_endpoint": format!("{url}/token")}),
    );
    login.metadata(OIDC, &url);
    site.verify(&site.trusted(), &good).await.unwrap();
}

#[tokio::test]
async fn keys_come_through_a_proxy() {
    let (login, good, mut site) = healthy();
    let tunnel = Tunnel::start().await;
    site.discovery.proxy = Some(tunnel.url());
    site.verify(&site.trusted(), &good).await.unwrap();
    let address = login.url().replace("https://", "");
    assert_eq!(tunnel.asked(), [format!("CONNECT {address} HTTP/1.1")]);
}

#[test]
fn a_runtime_that_ends_takes_nobody_with_it() {
    let (login, good, site) = healthy();
    let trusted = site.trusted();
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    first.block_on(site.verify(&trusted, &good)).unwrap();
    // The plugin is removed while a thread waits for an answer.
    login.fail("", 1000, Fault::Hang);
    let other = key();
    first.spawn({
        let (site, trusted, other) = (site.clone(), trusted.clone(), site.token(&other));
        async move {
            let _ = tokio::task::spawn_blocking(move || trusted.verify(&other, SystemTime::now())).await;
            drop(site);
        }
    });
    first.block_on(login.until(|login| login.asked(JWKS).len() == 2));
    first.shutdown_timeout(Duration::from_secs(60));
    login.mend();
    // The plugin is loaded again.
    let second = runtime();
    login.publish(&[&good, &other]);
    second.block_on(site.verify(&trusted, &other)).unwrap();
    second.block_on(site.verify(&trusted, &good)).unwrap();
}

#[test]
fn the_operator_is_told_what_is_good_and_what_is_not() {
    let (login, _, site) = healthy();
    let look = || JwksClient::examine(&site.issuer, &site.discovery, Duration::from_secs(20));
    let said = format!("{:?}", look());
    assert!(said.contains("Good") && said.contains("1 usable key(s)"), "{said}");
    login.publish(&[]);
    assert!(matches!(look(), Examined::Bad { what, .. } if what.contains("no usable key")));
    login.metadata(METADATA, "https://evil.example.org");
    assert!(matches!(look(), Examined::Bad { what, .. } if what.contains("another issuer")));
    drop(login);
    assert!(matches!(look(), Examined::Bad { what, .. } if what.contains("refused the connection")));
}
