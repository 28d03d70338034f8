// SPDX-License-Identifier: MIT OR Apache-2.0

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::Path,
    sync::Mutex,
    thread,
};

use protocol::{BeginLogin, Evidence, IssuerQuestion, Subject};
use token::{Algorithm, Grant, SigningKey};

use super::*;
use crate::issuer::tests::{ISSUER, ask, mint, request, site, token};
use crate::status::{Ends, Status};

/// A provider on this machine.
struct Provider {
    url: String,
    key: SigningKey,
    /// The status and body of the next answers of the token endpoint.
    answer: Arc<Mutex<(u16, String)>>,
    /// The last form that it received.
    form: Arc<Mutex<HashMap<String, String>>>,
}

impl Provider {
    fn start(directory: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(Mutex::new((500, String::new())));
        let form = Arc::<Mutex<HashMap<String, String>>>::default();
        let (answers, forms, issuer) = (Arc::clone(&answer), Arc::clone(&form), url.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let mut line = String::new();
                let (mut path, mut length) = (String::new(), 0);
                while stream.read_line(&mut line).unwrap() > 2 {
                    if path.is_empty() {
                        path = line.split(' ').nth(1).unwrap().to_owned();
                    }
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                let (status, text) = match path.as_str() {
                    "/token" => {
                        let pairs = String::from_utf8(body).unwrap();
                        let pairs = pairs.split('&').filter_map(|pair| pair.split_once('='));
                        *forms.lock().unwrap() =
                            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
                        answers.lock().unwrap().clone()
                    }
                    path if path.starts_with("/.well-known/") => {
                        let metadata = json!({
                            "issuer": issuer,
                            "authorization_endpoint": format!("{issuer}/authorize"),
                            "token_endpoint": format!("{issuer}/token"),
                            "end_session_endpoint": format!("{issuer}/end"),
                        });
                        (200, metadata.to_string())
                    }
                    _ => (404, String::new()),
                };
                let head = format!("HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\n");
                let stream = stream.get_mut();
                write!(stream, "{head}Content-Length: {}\r\n\r\n{text}", text.len()).unwrap();
            }
        });
        let key = SigningKey::generate(Algorithm::Es256);
        let keys = token::KeySet::from(key.verifying_key());
        std::fs::write(directory.join("provider.jwks"), keys.public_jwks()).unwrap();
        std::fs::write(directory.join("secret"), "canary-client-secret").unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(directory.join("secret"), private).unwrap();
        Self { url, key, answer, form }
    }

    /// Makes the token endpoint return an identity token with these changed claims.
    fn gives(&self, changes: Value) {
        let mut claims = json!({
            "iss": self.url, "aud": "us", "sub": "248289761001", "sid": "s1", "nonce": "n1",
            "preferred_username": "root@example.org", "iat": now(), "exp": now() + 60,
        });
        let members = claims.as_object_mut().unwrap();
        members.extend(changes.as_object().unwrap().clone());
        members.retain(|_, value| !value.is_null());
        let id_token = self.key.sign(&[("typ", "JWT")], claims.to_string().as_bytes());
        let answer = json!({
            "access_token": "canary-access-token", "token_type": "Bearer", "id_token": id_token.expose_secret(),
        });
        *self.answer.lock().unwrap() = (200, answer.to_string());
    }
}

/// A site whose users log in at a provider.
struct Site {
    directory: tempfile::TempDir,
    provider: Provider,
    known: (Arc<Issuer>, Arc<Engine>),
}

fn start() -> Site {
    let directory = tempfile::tempdir().unwrap();
    let provider = Provider::start(directory.path());
    let known = site(directory.path(), |table| {
        table["trust"] = json!({"site": {
            "issuer": provider.url, "audience": "us", "keys": directory.path().join("provider.jwks"),
        }});
        table["service"] = json!({
            "user": 0,
            "login": {
                "from": "site", "client-id": "us", "client-secret": directory.path().join("secret"),
                "user-template": "{user}@example.org", "max-session": "1h",
            },
            "grant": [{"from": "site", "audience": "a", "workspaces": ["hydro"], "users": ["root"]}],
        });
    });
    Site {
        directory,
        provider,
        known,
    }
}

fn finish() -> FinishLogin {
    let text = |text: &str| SecretText(Zeroizing::new(text.to_owned()));
    FinishLogin {
        code: text("canary-code"),
        verifier: text("canary-verifier"),
        nonce: "n1".to_owned(),
        redirect_uri: "https://a.example.org/callback".to_owned(),
        iss: None,
        binding: None,
    }
}

async fn log_in(site: &Site, finish: FinishLogin) -> Answer {
    ask(&site.known, IssuerQuestion::Login(LoginQuestion::Finish(finish))).await
}

async fn logged_in(site: &Site) -> LoggedIn {
    site.provider.gives(json!({}));
    match log_in(site, finish()).await {
        Answer::LoggedIn(login) => *login,
        answer => panic!("{answer:?}"),
    }
}

#[tokio::test]
async fn a_browser_is_sent_to_the_provider() {
    let site = start();
    let begin = |is_for_jobs| {
        IssuerQuestion::Login(LoginQuestion::Begin(BeginLogin {
            redirect_uri: "https://a.example.org/callback".to_owned(),
            state: "s 1".to_owned(),
            nonce: "n1".to_owned(),
            challenge: "c1".to_owned(),
            is_for_jobs,
        }))
    };
    let Answer::LoginAt(url) = ask(&site.known, begin(false)).await else {
        panic!("no address");
    };
    assert_eq!(
        url,
        format!(
            "{}/authorize?response_type=code&client_id=us&redirect_uri=https%3A%2F%2Fa.example.org%2Fcallback\
             &scope=openid+profile&state=s+1&nonce=n1&code_challenge=c1&code_challenge_method=S256",
            site.provider.url
        )
    );
    let Answer::LoginAt(url) = ask(&site.known, begin(true)).await else {
        panic!("no address");
    };
    assert!(
        url.contains("offline_access") && url.contains("prompt=consent"),
        "{url}"
    );
}

#[tokio::test]
async fn a_ticket_gets_tokens_and_is_none() {
    let site = start();
    let login = logged_in(&site).await;
    assert_eq!((login.user.as_str(), login.uid), ("root", 0));
    assert_eq!(login.session.sid.as_deref(), Some("s1"));
    assert_eq!(
        login.end_session.unwrap(),
        format!("{}/end?client_id=us", site.provider.url)
    );
    assert!((now() + 3500..=now() + 3600).contains(&login.expires));
    let form = site.provider.form.lock().unwrap().clone();
    assert_eq!(
        (form["code"].as_str(), form["code_verifier"].as_str()),
        ("canary-code", "canary-verifier")
    );
    assert_eq!(form["grant_type"], "authorization_code");
    let with_ticket = || request(Evidence::Login(login.ticket.clone()));
    let claims = mint(&site.known, with_ticket()).await.unwrap();
    assert_eq!(
        (&claims["sub"], &claims["workspace"]),
        (&json!("root"), &json!("hydro"))
    );
    let wider = MintRequest {
        audience: vec!["b".to_owned()],
        ..with_ticket()
    };
    assert_eq!(
        mint(&site.known, wider).await.unwrap_err().code,
        DenialCode::InvalidTarget
    );
    // A ticket is not accepted as a token, nor a token as a ticket.
    let as_token = request(Evidence::Token(login.ticket.clone()));
    assert_eq!(
        mint(&site.known, as_token).await.unwrap_err().code,
        DenialCode::InvalidGrant
    );
    let of_all = SecretText(Zeroizing::new(token(&site.known.0, Grant::Cluster)));
    // A token with the claims of a ticket is not accepted, either.
    let claims = json!({
        "iss": ISSUER, "aud": ISSUER, "sub": "root", "uid": 0, "provider": site.provider.url, "exp": now() + 60,
    });
    let of_other_type = site
        .known
        .0
        .signer
        .sign(|key| key.sign(&[("typ", "JWT")], claims.to_string().as_bytes()));
    let of_other_type = SecretText(Zeroizing::new(of_other_type.unwrap().expose_secret().to_owned()));
    for wrong in [of_all, of_other_type, SecretText(Zeroizing::new("x".to_owned()))] {
        let denial = mint(&site.known, request(Evidence::Login(wrong))).await.unwrap_err();
        assert_eq!(denial.code, DenialCode::InvalidGrant);
    }
}

#[tokio::test]
async fn a_login_that_was_revoked_gets_no_tokens() {
    struct Revoked;
    impl Ends for Revoked {
        async fn find_ended(&self, _: &Status) -> Result<(), String> {
            Ok(())
        }

        fn revocations_of(&self, _: &str) -> crate::revocations::Store {
            None
        }
    }
    impl Checks for Revoked {
        async fn check(&self, token: TokenFacts) -> Validity {
            assert_eq!(token.sub.as_deref(), Some("root"));
            assert!(token.jti.is_some() && token.iat.is_some());
            Validity::Revoked
        }

        async fn held(&self, _: u32) -> Answer {
            Answer::Held(Vec::new())
        }

        async fn revoke(&self, _: Subject, _: u64) -> Answer {
            Answer::Revoked
        }
    }
    let site = start();
    let login = logged_in(&site).await;
    let question = IssuerQuestion::Mint(request(Evidence::Login(login.ticket)));
    let answer = crate::issuer::answer(Some(site.known.clone()), &Revoked, ISSUER, question).await;
    assert!(matches!(answer, Answer::Denied(denial) if denial.text.contains("revoked")));
}

#[tokio::test]
async fn a_user_revokes_the_tokens_of_own_jobs_only() {
    let site = start();
    let login = logged_in(&site).await;
    let revoke = async |ticket: &SecretText, instance: &str, jobid| {
        let (ticket, instance) = (ticket.clone(), instance.to_owned());
        let request = UserRequest::Revoke { instance, jobid };
        ask(
            &site.known,
            IssuerQuestion::Login(LoginQuestion::User { ticket, request }),
        )
        .await
    };
    assert_eq!(revoke(&login.ticket, "hpc", 7).await, Answer::Revoked);
    for (instance, jobid) in [("hpc", 8), ("other", 7)] {
        assert!(matches!(
            revoke(&login.ticket, instance, jobid).await,
            Answer::Denied(_)
        ));
    }
    let other = SecretText(Zeroizing::new(token(&site.known.0, Grant::Cluster)));
    assert!(matches!(revoke(&other, "hpc", 7).await, Answer::Denied(_)));
    let ticket = login.ticket;
    for request in [UserRequest::JobLogin, UserRequest::EndJobLogin] {
        let ticket = ticket.clone();
        let answer = ask(
            &site.known,
            IssuerQuestion::Login(LoginQuestion::User { ticket, request }),
        )
        .await;
        assert_eq!(answer, Answer::JobLogin(None), "the site keeps none");
    }
}

#[tokio::test]
async fn an_identity_token_of_another_login_client_or_user_is_refused() {
    let site = start();
    for (changes, says) in [
        (json!({"nonce": "n2"}), "another login"),
        (json!({"nonce": null}), "another login"),
        (json!({"aud": ["us", "them"]}), "another client"),
        (json!({"azp": "them"}), "another client"),
        (json!({"aud": "them"}), "token of the provider"),
        (json!({"iss": "https://b.example.org"}), "token of the provider"),
        (json!({"exp": 1}), "token of the provider"),
        (json!({"preferred_username": "root"}), "no user"),
        (json!({"preferred_username": "root@evil.example.org"}), "no user"),
        (json!({"preferred_username": "no-such-user@example.org"}), "no user"),
        (json!({"preferred_username": ["root@example.org"]}), "no user"),
        (json!({"preferred_username": null}), "no user"),
    ] {
        site.provider.gives(changes.clone());
        match log_in(&site, finish()).await {
            Answer::Denied(denial) => assert!(denial.text.contains(says), "{changes}: {denial:?}"),
            answer => panic!("{changes}: {answer:?}"),
        }
    }
    site.provider.gives(json!({}));
    let mixed_up = FinishLogin {
        iss: Some("https://b.example.org".to_owned()),
        ..finish()
    };
    assert!(matches!(log_in(&site, mixed_up).await, Answer::Denied(_)));
    let right = FinishLogin {
        iss: Some(site.provider.url.clone()),
        ..finish()
    };
    assert!(matches!(log_in(&site, right).await, Answer::LoggedIn(_)));
    site.provider.gives(json!({"aud": ["us", "them"], "azp": "us"}));
    assert!(matches!(log_in(&site, finish()).await, Answer::LoggedIn(_)));
    // Signed with another key.
    let other = SigningKey::generate(Algorithm::Es256);
    let keys = token::KeySet::from(other.verifying_key());
    std::fs::write(site.directory.path().join("provider.jwks"), keys.public_jwks()).unwrap();
    assert!(!matches!(log_in(&site, finish()).await, Answer::LoggedIn(_)));
}

#[tokio::test]
async fn a_provider_that_refuses_is_told_from_one_that_is_unwell() {
    let site = start();
    *site.provider.answer.lock().unwrap() = (400, r#"{"error":"invalid_grant"}"#.to_owned());
    assert!(matches!(log_in(&site, finish()).await, Answer::Denied(_)));
    *site.provider.answer.lock().unwrap() = (200, r#"{"access_token":"canary","token_type":"Bearer"}"#.to_owned());
    let Answer::Failed(why) = log_in(&site, finish()).await else {
        panic!("without an identity token");
    };
    assert!(why.contains("identity token") && !why.contains("canary"), "{why}");
}

#[tokio::test]
async fn a_logout_token_names_the_session() {
    let site = start();
    let events = json!({"http://schemas.openid.net/event/backchannel-logout": {}});
    let good = json!({
        "iss": site.provider.url, "aud": "us", "sub": "1", "sid": "s1", "iat": now(), "exp": now() + 60, "jti": "x",
        "events": events,
    });
    let tell = async |typ: &str, changes: Value| {
        let mut claims = good.clone();
        let members = claims.as_object_mut().unwrap();
        members.extend(changes.as_object().unwrap().clone());
        members.retain(|_, value| !value.is_null());
        let jwt = site.provider.key.sign(&[("typ", typ)], claims.to_string().as_bytes());
        let jwt = SecretText(Zeroizing::new(jwt.expose_secret().to_owned()));
        ask(&site.known, IssuerQuestion::Login(LoginQuestion::LogoutToken(jwt))).await
    };
    for typ in ["logout+jwt", "JWT"] {
        match tell(typ, json!({})).await {
            Answer::LoggedOut(session) => {
                assert_eq!(
                    (session.sub.as_deref(), session.sid.as_deref()),
                    (Some("1"), Some("s1"))
                );
            }
            answer => panic!("{answer:?}"),
        }
    }
    for (typ, changes) in [
        ("logout+jwt", json!({"events": null})),
        ("logout+jwt", json!({"events": {"x": {}}})),
        ("logout+jwt", json!({"nonce": "n"})),
        ("logout+jwt", json!({"sub": null, "sid": null})),
        ("logout+jwt", json!({"aud": "them"})),
        ("logout+jwt", json!({"iat": 1})),
        ("at+jwt", json!({})),
    ] {
        let answer = tell(typ, changes.clone()).await;
        assert!(matches!(answer, Answer::Denied(_)), "{typ} {changes}: {answer:?}");
    }
}

#[tokio::test]
async fn a_site_without_a_provider_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let known = site(directory.path(), |_| {});
    let answer = ask(&known, IssuerQuestion::Login(LoginQuestion::Finish(finish()))).await;
    assert!(matches!(answer, Answer::Denied(denial) if denial.text.contains("cannot log in")));
    let bind = LoginQuestion::Bind(SecretText(Zeroizing::new("MUNGE:x:".to_owned())));
    assert!(matches!(
        ask(&known, IssuerQuestion::Login(bind)).await,
        Answer::Denied(_)
    ));
}
