// SPDX-License-Identifier: MIT OR Apache-2.0

//! `source = "oauth2"`, against a simulated authorization server.
//!
//! Every secret in these tests contains the word "canary", and every fetch searches all messages for it.

#[path = "support/login.rs"]
mod login;
#[path = "support/tunnel.rs"]
mod tunnel;

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use config::{AuthorizationServer, ClientAuthentication, Discovery, Grant, KeyPath, OAuth2, Template, Values};
use login::{Authority, FAR_AHEAD, Fault, Login, METADATA, NO_PAUSE, OIDC, Setup, TOKEN, key};
use seal::ExposeSecret;
use serde_json::json;
use source::{Examined, Slot, Source, examine_oauth2};
use tempfile::TempDir;
use token::KeySet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tunnel::Tunnel;

const SECRET: &str = "canary secret:1";
const UID: u32 = 4_000_001;

/// A timeout that is long enough for retries, but too short for errors that must not be retried.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory with the client's secret, and a rule.
struct Site {
    dir: TempDir,
    settings: OAuth2,
}

impl Site {
    fn new(login: &Login) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        fs::write(&ca_file, login.authority.pem()).unwrap();
        let secret = dir.path().join("secret");
        let site = Self {
            settings: OAuth2 {
                server: AuthorizationServer::Issuer(login.url()),
                client_id: "flux".to_owned(),
                authentication: ClientAuthentication::SecretBasic(path(&secret)),
                grant: Grant::ClientCredentials { share: false },
                scope: Some("data:read data:write".to_owned()),
                audience: vec!["copy-offload".to_owned()],
                resource: vec!["https://a.example.org".to_owned(), "urn:b".to_owned()],
                network: Discovery {
                    proxy: None,
                    ca_file: Some(ca_file),
                    refresh: Duration::from_secs(3600),
                },
            },
            dir,
        };
        site.write("secret", 0o600, SECRET);
        site
    }

    fn write(&self, name: &str, mode: u32, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn exchange(&mut self) {
        let template = format!("{}/{{uid}}.jwt", self.dir.path().display());
        self.settings.grant = Grant::TokenExchange {
            subject_token: Template::parse(&template).unwrap(),
            subject_token_type: "urn:ietf:params:oauth:token-type:jwt".to_owned(),
        };
    }

    /// Configures the grant `refresh-token`. Returns the path of the file with the refresh token.
    fn refresh(&mut self) -> PathBuf {
        let path = self.write("refresh", 0o600, "canary-refresh-0\n");
        self.settings.grant = Grant::RefreshToken {
            refresh_token: Template::parse(path.to_str().unwrap()).unwrap(),
        };
        path
    }

    fn source(&self, timeout: Duration) -> Box<dyn Source> {
        let rule = config::Rule {
            name: None,
            renewal: config::Renewal::default(),
            on_shortfall: config::OnShortfall::default(),
            allowed: config::Allowed::default(),
            conditions: config::Conditions::default(),
            variable: "DW_WORKFLOW_TOKEN".to_owned(),
            source: config::Source::OAuth2(Box::new(self.settings.clone())),
            timeout,
            check: config::Check::Shape,
        };
        source::of_rule(&rule, &[]).unwrap()
    }

    async fn fetch(&self) -> Result<String, String> {
        self.fetch_within(PATIENCE).await
    }

    async fn fetch_within(&self, timeout: Duration) -> Result<String, String> {
        fetch(&*self.source(timeout)).await
    }

    fn examine(&self) -> String {
        let found = examine_oauth2(&self.settings, Duration::from_secs(20));
        let said = format!("{found:?}");
        assert!(!said.contains("canary"), "a secret was told: {said}");
        said
    }
}

fn path(path: &std::path::Path) -> KeyPath {
    KeyPath::parse(path.to_str().unwrap()).unwrap()
}

/// The token, or the error.
async fn fetch(source: &dyn Source) -> Result<String, String> {
    let job = Values {
        uid: UID,
        ..Values::example()
    };
    let fetched = source.fetch(&job, Slot::default()).await;
    let said = format!("{fetched:?} {:?}", fetched.result.as_ref().map_err(ToString::to_string));
    assert!(!said.contains("canary"), "a secret was told: {said}");
    match fetched.result {
        Ok(variables) => {
            let all: Vec<_> = variables.iter().collect();
            assert_eq!(all.len(), 1);
            assert_eq!(all[0].0, "DW_WORKFLOW_TOKEN");
            Ok(all[0].1.expose_secret().to_owned())
        }
        Err(e) => {
            assert!(
                !e.summary().contains(['/', ':']),
                "the user is told of the site: {}",
                e.summary()
            );
            Err(e.to_string())
        }
    }
}

#[track_caller]
fn failed(result: Result<String, String>, says: &[&str]) {
    let error = result.expect_err("it fails");
    for part in says {
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    assert!(!error.contains('\n'), "{error}");
}

/// Returns the form that was sent, and the header.
fn sent(login: &Login) -> (Vec<(String, String)>, Option<String>) {
    let asked = login.asked(TOKEN).pop().unwrap();
    assert_eq!(asked.content_type.as_deref(), Some("application/x-www-form-urlencoded"));
    (
        form_urlencoded::parse(&asked.body).into_owned().collect(),
        asked.authorization,
    )
}

fn pairs(form: &[(String, String)]) -> Vec<(&str, &str)> {
    form.iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

// Requests.

#[tokio::test]
async fn each_job_gets_a_token_of_its_own() {
    let login = Login::start();
    let site = Site::new(&login);
    let source = site.source(PATIENCE);
    assert_eq!(fetch(&*source).await.unwrap(), "canary-1");
    assert_eq!(fetch(&*source).await.unwrap(), "canary-2");
    let (form, authorization) = sent(&login);
    assert_eq!(
        pairs(&form),
        [
            ("grant_type", "client_credentials"),
            ("scope", "data:read data:write"),
            ("audience", "copy-offload"),
            ("resource", "https://a.example.org"),
            ("resource", "urn:b"),
        ]
    );
    let header = authorization.unwrap();
    let encoded = STANDARD.decode(header.strip_prefix("Basic ").unwrap()).unwrap();
    assert_eq!(String::from_utf8(encoded).unwrap(), "flux:canary+secret%3A1");
    assert_eq!(login.asked(METADATA).len(), 1, "the metadata are kept");
    assert_eq!(login.accepted(), 1, "the connection is kept");
}

#[tokio::test]
async fn the_secret_can_be_sent_in_the_form() {
    let login = Login::start();
    let mut site = Site::new(&login);
    site.settings.authentication = ClientAuthentication::SecretPost(path(&site.dir.path().join("secret")));
    site.fetch().await.unwrap();
    let (form, authorization) = sent(&login);
    assert_eq!(authorization, None);
    assert!(
        pairs(&form).ends_with(&[("client_id", "flux"), ("client_secret", SECRET)]),
        "{form:?}"
    );
}

#[tokio::test]
async fn a_key_can_be_used_in_place_of_a_secret() {
    let login = Login::start();
    let mut site = Site::new(&login);
    let key = key();
    let file = site.write("key.pem", 0o600, key.to_pem().unwrap().expose_secret());
    site.settings.authentication = ClientAuthentication::PrivateKeyJwt(path(&file));
    site.fetch().await.unwrap();
    let (form, authorization) = sent(&login);
    assert_eq!(authorization, None);
    let form: HashMap<_, _> = form.into_iter().collect();
    assert_eq!(
        form["client_assertion_type"],
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    );
    let claims = KeySet::from(key.verifying_key())
        .verify_jws(&form["client_assertion"])
        .unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!((&claims["iss"], &claims["sub"]), (&json!("flux"), &json!("flux")));
    assert_eq!(claims["aud"], login.url());
}

#[tokio::test]
async fn the_token_of_a_user_is_exchanged() {
    let login = Login::start();
    let mut site = Site::new(&login);
    site.exchange();
    let file = site.write(&format!("{UID}.jwt"), 0o600, "canary.of.user\n");
    if nix::unistd::geteuid().is_root() {
        // The file may belong to the user.
        chown(&file, Some(UID), None).unwrap();
    }
    login.gives(
        200,
        json!({
            "access_token": "canary-{n}", "token_type": "N_A",
            "issued_token_type": "urn:ietf:params:oauth:token-type:jwt",
        }),
    );
    assert_eq!(site.fetch().await.unwrap(), "canary-1");
    let (form, _) = sent(&login);
    assert_eq!(
        pairs(&form)[..3],
        [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("subject_token", "canary.of.user"),
            ("subject_token_type", "urn:ietf:params:oauth:token-type:jwt"),
        ]
    );
}

#[tokio::test]
async fn a_token_to_be_exchanged_that_is_not_there_or_not_safe_is_told() {
    let login = Login::start();
    let mut site = Site::new(&login);
    site.exchange();
    let name = format!("{UID}.jwt");
    failed(site.fetch().await, &["does not exist", &name]);
    let file = site.write(&name, 0o644, "canary");
    failed(site.fetch().await, &["was refused", "chmod 0600"]);
    site.write(&name, 0o600, "canary of user");
    failed(site.fetch().await, &["is not valid", "spaces"]);
    fs::remove_file(&file).unwrap();
    let other = site.write("other", 0o600, "canary");
    std::os::unix::fs::symlink(&other, &file).unwrap();
    failed(site.fetch().await, &["symbolic link"]);
    fs::remove_file(&file).unwrap();
    fs::hard_link(&other, &file).unwrap();
    failed(site.fetch().await, &["several names"]);
    assert!(login.asked(TOKEN).is_empty());
}

/// Returns the answers of a server that replaces the refresh token at each use.
fn rotating(count: usize) -> Vec<(u16, serde_json::Value)> {
    let answer = |n| {
        json!({
            "access_token": format!("canary-{n}"), "token_type": "Bearer", "expires_in": 60,
            "refresh_token": format!("canary-refresh-{n}"),
        })
    };
    (1..=count).map(|n| (200, answer(n))).collect()
}

/// Returns the refresh tokens that were sent.
fn refreshed(login: &Login) -> Vec<String> {
    let asked = login.asked(TOKEN).into_iter();
    let forms = asked.map(|asked| form_urlencoded::parse(&asked.body).into_owned().collect());
    let token = |form: HashMap<String, String>| {
        assert_eq!(form["grant_type"], "refresh_token");
        form["refresh_token"].clone()
    };
    forms.map(token).collect()
}

#[tokio::test]
async fn a_refresh_token_that_is_replaced_is_used_once_however_many_jobs_start() {
    let login = Login::start();
    let mut site = Site::new(&login);
    let file = site.refresh();
    login.gives_in_turn(rotating(4));
    // Two agents.
    let sources: [Arc<dyn Source>; 2] = [site.source(PATIENCE).into(), site.source(PATIENCE).into()];
    let jobs = sources.iter().cycle().take(4).map(|source| {
        let source = Arc::clone(source);
        tokio::spawn(async move { fetch(&*source).await })
    });
    for job in jobs.collect::<Vec<_>>() {
        assert!(job.await.unwrap().unwrap().starts_with("canary-"));
    }
    let expected = (0..4).map(|n| format!("canary-refresh-{n}"));
    assert_eq!(refreshed(&login), expected.collect::<Vec<_>>());
    assert_eq!(fs::read_to_string(&file).unwrap(), "canary-refresh-4\n");
    // A server that does not replace the refresh token.
    login.gives(200, json!({"access_token": "canary-5", "token_type": "Bearer"}));
    assert_eq!(site.fetch().await.unwrap(), "canary-5");
    assert_eq!(fs::read_to_string(&file).unwrap(), "canary-refresh-4\n");
}

#[tokio::test]
async fn a_refresh_token_is_stored_even_if_its_job_has_gone() {
    let login = Login::start();
    let mut site = Site::new(&login);
    let file = site.refresh();
    login.gives_in_turn(rotating(1));
    let source = site.source(PATIENCE);
    let job = tokio::spawn(async move { fetch(&*source).await });
    while login.asked(TOKEN).is_empty() {
        tokio::task::yield_now().await;
    }
    job.abort();
    // The agent waits for this before it ends.
    let ended = tokio::time::timeout(PATIENCE, source::rotations_ended()).await;
    assert_eq!(fs::read_to_string(&file).unwrap(), "canary-refresh-1\n");
    drop(ended.expect("the request ends"));
}

#[tokio::test]
async fn a_refresh_token_that_could_not_be_replaced_is_not_used() {
    let login = Login::start();
    let mut site = Site::new(&login);
    let file = site.refresh();
    fs::create_dir(site.dir.path().join("refresh.new")).unwrap();
    failed(site.fetch().await, &["refresh-token: ", "this user cannot replace it"]);
    fs::remove_dir(site.dir.path().join("refresh.new")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    failed(site.fetch().await, &["was refused", "chmod 0600"]);
    fs::remove_file(&file).unwrap();
    failed(site.fetch().await, &["does not exist"]);
    assert!(login.asked(TOKEN).is_empty());
    site.write("refresh", 0o600, "canary-refresh-0");
    login.gives(
        400,
        json!({"error": "invalid_grant", "error_description": "canary-refresh-0 is over"}),
    );
    failed(
        site.fetch().await,
        &[
            "invalid_grant",
            "check that the subject token or refresh token is valid",
        ],
    );
}

#[tokio::test]
async fn jobs_share_a_token_where_the_configuration_says_so() {
    let login = Login::start();
    let mut site = Site::new(&login);
    site.settings.grant = Grant::ClientCredentials { share: true };
    let source: Arc<dyn Source> = site.source(PATIENCE).into();
    let jobs = (0..20).map(|_| {
        let source = source.clone();
        tokio::spawn(async move { fetch(&*source).await })
    });
    let jobs: Vec<_> = jobs.collect();
    let mut tokens = Vec::new();
    for job in jobs {
        tokens.push(job.await.unwrap().unwrap());
    }
    assert!(tokens.iter().all(|token| token == "canary-1"), "{}", tokens.len());
    assert_eq!(login.asked(TOKEN).len(), 1);

    // A token without a lifetime is not shared, and neither is an expired one.
    for lifetime in [json!(null), json!(0), json!("0"), json!("soon"), json!(-1)] {
        let source = site.source(PATIENCE);
        login.gives(
            200,
            json!({"access_token": "canary-{n}", "token_type": "bearer", "expires_in": lifetime}),
        );
        let (one, other) = (fetch(&*source).await.unwrap(), fetch(&*source).await.unwrap());
        assert_ne!(one, other, "{lifetime}");
    }
}

#[tokio::test]
async fn the_lifetime_that_the_server_states_is_that_of_the_token() {
    const DAY: u64 = 86_400;

    let login = Login::start();
    let mut site = Site::new(&login);
    for share in [false, true] {
        site.settings.grant = Grant::ClientCredentials { share };
        for (stated, seconds) in [
            (json!(600), Some(600)),
            (json!("600"), Some(600)),
            (json!(1e12), Some(365 * DAY)),
            (json!(null), None),
            (json!(0), None),
            (json!(0.5), None),
            (json!(-1), None),
            (json!(1e300), None),
            (json!("soon"), None),
        ] {
            let answer = json!({"access_token": "canary", "token_type": "bearer", "expires_in": stated});
            login.gives(200, answer);
            let source = site.source(PATIENCE);
            // Both jobs may share one token.
            for _ in 0..2 {
                let before = SystemTime::now();
                let fetched = source.fetch(&Values::example(), Slot::default()).await;
                assert!(fetched.result.is_ok());
                let left = fetched.expires.map(|at| at.duration_since(before).unwrap().as_secs());
                match (left, seconds) {
                    (Some(left), Some(seconds)) => assert!((seconds - 60..=seconds + 60).contains(&left), "{stated}"),
                    (left, seconds) => assert_eq!(left, seconds, "{stated}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn a_token_with_less_than_was_asked_for_is_noted() {
    let login = Login::start();
    let site = Site::new(&login);
    for (scope, noted) in [("data:write data:read more", false), ("data:read", true), ("", true)] {
        login.gives(
            200,
            json!({"access_token": "canary-{n}", "token_type": "Bearer", "scope": scope}),
        );
        let fetched = site.source(PATIENCE).fetch(&Values::example(), Slot::default()).await;
        fetched.result.unwrap();
        let notes = fetched.warnings.join("\n");
        assert_eq!(
            notes.contains(&format!("has the scope `{scope}`")),
            noted,
            "{scope}: {notes}"
        );
    }
}

#[tokio::test]
async fn a_secret_that_is_changed_is_used() {
    let login = Login::start();
    let site = Site::new(&login);
    let source = site.source(PATIENCE);
    fetch(&*source).await.unwrap();
    site.write("secret", 0o600, "canary2\r\n");
    fetch(&*source).await.unwrap();
    let header = sent(&login).1.unwrap();
    let encoded = STANDARD.decode(header.strip_prefix("Basic ").unwrap()).unwrap();
    assert_eq!(encoded, b"flux:canary2");
}

#[tokio::test]
async fn a_secret_that_others_can_read_or_that_is_none_is_refused() {
    let login = Login::start();
    let mut site = Site::new(&login);
    for mode in [0o640, 0o604, 0o620] {
        site.write("secret", mode, SECRET);
        failed(site.fetch().await, &["is not set up", "client-secret", "chmod 0600"]);
    }
    for bad in ["", "\n", "canary\ncanary", "can\0ary", "canaryü"] {
        site.write("secret", 0o600, bad);
        failed(site.fetch().await, &["client-secret", "is not a client secret"]);
    }
    site.write("secret", 0o600, &"canary".repeat(20_000));
    failed(site.fetch().await, &["client-secret", "longer than"]);
    fs::remove_file(site.dir.path().join("secret")).unwrap();
    failed(site.fetch().await, &["client-secret", "could not be read"]);
    let file = site.write("key", 0o600, "canary");
    site.settings.authentication = ClientAuthentication::PrivateKeyJwt(path(&file));
    failed(site.fetch().await, &["client-key", "contains no private key"]);
    assert!(login.asked(TOKEN).is_empty());
}

// Answers.

#[tokio::test]
async fn what_the_server_refuses_is_told_in_one_line_and_not_tried_again() {
    let login = Login::start();
    let site = Site::new(&login);
    for (status, error, says) in [
        (401, "invalid_client", ["is not set up", "check that client-id"]),
        (400, "invalid_client", ["is not set up", "check that client-id"]),
        (
            400,
            "unauthorized_client",
            ["is not set up", "allow this client to use the grant"],
        ),
        (400, "unsupported_grant_type", ["is not set up", "set grant"]),
        (400, "invalid_scope", ["refused it", "set scope"]),
        (400, "invalid_target", ["refused it", "set audience or resource"]),
        (400, "invalid_grant", ["refused it", "subject token"]),
        (400, "invalid_request", ["refused it", "server's log"]),
        (403, "own_error", ["refused it", "server's log"]),
    ] {
        let before = login.asked(TOKEN).len();
        let description = format!("no\nfor {SECRET} {}", STANDARD.encode("flux:canary+secret%3A1"));
        login.gives(status, json!({"error": error, "error_description": description}));
        let result = site.fetch().await;
        let status = format!("{error} ({status})");
        failed(
            result,
            &[says[0], says[1], &status, "it says: no", &login.url(), "client flux"],
        );
        assert_eq!(login.asked(TOKEN).len(), before + 1, "{error}");
    }
    login.gives(401, json!("Unauthorized"));
    failed(site.fetch().await, &["status 401"]);
    login.gives(302, json!({}));
    failed(site.fetch().await, &["status 302", "not followed"]);
}

/// Refusals that do not follow RFC 6749 section 5.2: those of GitHub, Casdoor, Okta, Google, Keycloak and Entra.
#[tokio::test]
async fn a_refusal_in_a_form_of_its_own_is_told() {
    let login = Login::start();
    let site = Site::new(&login);
    let google = json!({"error": {"code": 403, "message": "Client blocked", "status": "PERMISSION_DENIED"}});
    let entra = json!({
        "error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret.\r\nTrace ID: 255d",
        "error_codes": [7_000_215], "error_uri": "https://login.example.org/error?code=7000215",
    });
    for (status, answer, says) in [
        (
            200,
            json!({"error": "incorrect_client_credentials", "error_description": "The client_id is incorrect."}),
            [
                "incorrect_client_credentials (200) (it says: The client_id is incorrect.)",
                "server's log",
            ],
        ),
        (
            200,
            json!({"error": "invalid_scope", "access_token": "", "token_type": ""}),
            ["invalid_scope (200)", "set scope"],
        ),
        (
            401,
            json!({"errorCode": "invalid_client", "errorSummary": "Invalid value for client_id", "errorLink": "x"}),
            [
                "invalid_client (401) (it says: Invalid value for client_id)",
                "client-id",
            ],
        ),
        (
            403,
            google,
            ["PERMISSION_DENIED (403) (it says: Client blocked)", "server's log"],
        ),
        (
            400,
            json!({"error": "invalid_token", "error_description": "Invalid token"}),
            ["invalid_token (400)", "subject token or refresh token is valid"],
        ),
        (
            403,
            json!({"error": "access_denied", "error_description": "Client is not the holder of the token"}),
            ["access_denied (403)", "that this client may use it"],
        ),
        (
            401,
            entra,
            ["secret. Trace ID: 255d)", "client-id, the client's secret"],
        ),
        (
            400,
            json!({"error": "invalid_request", "error_description": ["a", 1]}),
            ["invalid_request (400):", "server's log"],
        ),
        (400, json!({"error": null}), ["status 400", "server's log"]),
        (400, json!(["invalid_grant"]), ["status 400", "server's log"]),
    ] {
        login.gives(status, answer);
        let before = login.asked(TOKEN).len();
        failed(site.fetch().await, &[&login.url(), says[0], says[1]]);
        assert_eq!(login.asked(TOKEN).len(), before + 1, "{says:?}");
    }
    // A server may send these errors with any status.
    for status in [200, 400] {
        login.gives_in_turn(vec![
            (status, json!({"error": "temporarily_unavailable"})),
            (200, json!({"access_token": "canary", "token_type": "Bearer"})),
        ]);
        site.fetch().await.unwrap();
    }
}

/// Answers that deviate from the standards, but are accepted.
#[tokio::test]
async fn a_token_is_taken_from_answers_that_are_not_to_the_letter() {
    let login = Login::start();
    let mut site = Site::new(&login);
    site.settings.scope = None;
    let answers = [
        json!({"scope": ["data:read", "data:write"]}),
        json!({"scope": null, "expires_in": null, "refresh_token": null}),
        json!({"scope": {}, "expires_in": "3600"}),
        json!({"expires_in": 3599.5, "ext_expires_in": 3599, "not-before-policy": 0}),
        json!({"expires_in": -1}),
        json!({"expires_in": "soon"}),
        json!({"expires_in": 1e300}),
        json!({"token_type": "bearer"}),
        json!({"token_type": "BEARER", "error": null, "error_description": null}),
    ];
    for more in answers {
        let mut answer = json!({"access_token": "canary", "token_type": "Bearer"});
        let members = more.as_object().unwrap().clone();
        answer.as_object_mut().unwrap().extend(members);
        login.gives(200, answer);
        assert_eq!(site.fetch().await.as_deref(), Ok("canary"), "{more}");
    }
    // With a byte order mark.
    let text = json!({"access_token": "canary", "token_type": "Bearer"}).to_string();
    login.fail(TOKEN, 1, Fault::Text(format!("\u{feff}{text}")));
    assert_eq!(site.fetch().await.as_deref(), Ok("canary"));
    // A scope that is an array is compared with the requested scope, too.
    site.settings.scope = Some("data:read data:write".to_owned());
    login.gives(
        200,
        json!({"access_token": "canary", "token_type": "Bearer", "scope": ["data:write", "data:read"]}),
    );
    let job = Values::example();
    let fetched = site.source(PATIENCE).fetch(&job, Slot::default()).await;
    assert!(fetched.result.is_ok() && fetched.warnings.is_empty(), "{fetched:?}");
}

#[tokio::test]
async fn no_secret_is_told_in_any_form_in_which_it_was_sent() {
    let login = Login::start();
    let mut site = Site::new(&login);
    site.exchange();
    let file = site.write(&format!("{UID}.jwt"), 0o600, "canary/of+user=");
    if nix::unistd::geteuid().is_root() {
        chown(&file, Some(UID), None).unwrap();
    }
    let secret = path(&site.dir.path().join("secret"));
    for authentication in [
        ClientAuthentication::SecretBasic(secret.clone()),
        ClientAuthentication::SecretPost(secret),
    ] {
        site.settings.authentication = authentication;
        let said = format!(
            "of {SECRET}, canary+secret%3A1, {}, canary/of+user=, canary%2Fof%2Buser%3D.",
            STANDARD.encode("flux:canary+secret%3A1")
        );
        let shown = "of [redacted], [redacted], [redacted], [redacted], [redacted].";
        login.gives(400, json!({"error": "invalid_grant", "error_description": said}));
        failed(site.fetch().await, &[&format!("(it says: {shown})")]);
        login.gives(200, json!({"access_token": "token", "token_type": said}));
        failed(site.fetch().await, &[&format!("of the type `{shown}`")]);
    }
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let login = Login::start();
    let site = Site::new(&login);
    for fault in [
        Fault::Status(500, None),
        Fault::Status(503, Some(0)),
        Fault::Status(429, Some(1)),
        Fault::CutOff("{\"access_token\": "),
        Fault::HangUp,
    ] {
        login.fail(TOKEN, 2, fault);
        let before = login.asked(TOKEN).len();
        site.fetch().await.unwrap();
        assert_eq!(login.asked(TOKEN).len(), before + 3);
    }
    login.gives_in_turn(vec![
        (503, json!({"error": "temporarily_unavailable"})),
        (200, json!({"access_token": "canary", "token_type": "Bearer"})),
    ]);
    site.fetch().await.unwrap();
    login.fail(METADATA, 1, Fault::Status(502, None));
    site.fetch().await.unwrap();
}

#[tokio::test]
async fn the_server_says_when_to_ask_again_and_is_not_asked_sooner() {
    let login = Login::start();
    let site = Site::new(&login);
    login.fail(TOKEN, 1, Fault::Status(429, Some(2)));
    site.fetch().await.unwrap();
    let asked = login.asked(TOKEN);
    assert!(asked[1].at - asked[0].at >= Duration::from_secs(2));
    // A pause beyond the deadline ends the fetch at once.
    login.fail(TOKEN, 1, Fault::Status(429, Some(3600)));
    failed(site.fetch().await, &["status 429", "no retry", "3600 s"]);
}

#[tokio::test]
async fn no_pause_that_a_server_requests_is_too_long_or_too_strange_to_be_told() {
    let login = Login::start();
    let site = Site::new(&login);
    for (retry_after, says) in FAR_AHEAD {
        for code in [429, 503] {
            login.fail(TOKEN, 1, Fault::busy(code, retry_after));
            let before = login.asked(TOKEN).len();
            failed(
                site.fetch().await,
                &[&code.to_string(), says, "no retry", "timeout of 20 s"],
            );
            assert_eq!(login.asked(TOKEN).len(), before + 1, "{retry_after}");
        }
    }
    for retry_after in NO_PAUSE {
        login.fail(TOKEN, 2, Fault::busy(429, retry_after));
        site.fetch().await.unwrap();
    }
    login.fail(TOKEN, 1000, Fault::busy(429, "soon"));
    failed(
        site.fetch_within(Duration::from_secs(3)).await,
        &["429, Retry-After: soon", "not within 3 s"],
    );
}

#[tokio::test]
async fn a_timeout_beyond_all_clocks_is_no_fault() {
    let login = Login::start();
    let site = Site::new(&login);
    login.fail(TOKEN, 1, Fault::Status(503, None));
    site.fetch_within(Duration::MAX).await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up_in_time() {
    let login = Login::start();
    let site = Site::new(&login);
    login.fail(TOKEN, 100, Fault::Hang);
    failed(
        site.fetch_within(Duration::from_secs(2)).await,
        &["could not be reached", "not within 2 s", "did not answer within 1 s"],
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_waited_for_until_the_timeout() {
    let login = Login::start();
    let (site, port) = (Site::new(&login), login.port());
    drop(login);
    failed(
        site.fetch_within(Duration::from_millis(500)).await,
        &["could not be reached", "refused the connection", "not within 500 ms"],
    );
    let source = site.source(PATIENCE);
    let authority = Authority::new("the next authority");
    fs::write(site.dir.path().join("ca.pem"), authority.pem()).unwrap();
    let back = async move {
        let setup = Setup {
            port,
            ..Setup::default()
        };
        tokio::task::spawn_blocking(move || Login::of(authority, setup))
            .await
            .unwrap()
    };
    let (token, login) = tokio::join!(fetch(&*source), back);
    assert_eq!(token.unwrap(), "canary-1");
    drop(login);
}

#[tokio::test]
async fn what_is_no_token_is_not_delivered() {
    let login = Login::start();
    let site = Site::new(&login);
    for (answer, says) in [
        (json!("canary"), "not a token in JSON"),
        (json!({}), "has no access_token"),
        (json!({"access_token": 1}), "not a token in JSON"),
        (
            json!({"access_token": "", "token_type": "Bearer"}),
            "has no access_token",
        ),
        (json!({"access_token": "canary"}), "has no token_type"),
        (
            json!({"access_token": "canary", "token_type": "DPoP"}),
            "of the type `DPoP`",
        ),
        (json!({"access_token": "canary", "token_type": "canary"}), "of the type"),
        (
            json!({"access_token": "canary", "token_type": "N_A"}),
            "of the type `N_A`",
        ),
        (
            json!({"access_token": "canary canary", "token_type": "Bearer"}),
            "spaces",
        ),
        (
            json!({"access_token": "canary\ncanary", "token_type": "Bearer"}),
            "spaces",
        ),
        (
            json!({"access_token": "canaryü", "token_type": "Bearer"}),
            "other invalid characters",
        ),
        (
            json!({"access_token": "canary".repeat(22_000), "token_type": "Bearer"}),
            "longer than",
        ),
    ] {
        login.gives(200, answer);
        failed(site.fetch().await, &["no usable answer", says]);
    }
    login.fail(TOKEN, 1, Fault::Text("<html>canary</html>".to_owned()));
    failed(site.fetch().await, &["not a token in JSON"]);
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_read_to_its_end() {
    let login = Login::start();
    let site = Site::new(&login);
    for fault in [Fault::Endless, Fault::Long(1 << 40)] {
        login.fail(TOKEN, 1, fault);
        failed(site.fetch().await, &["no usable answer", "answered with more than"]);
    }
    login.fail(METADATA, 1, Fault::Endless);
    failed(site.fetch().await, &["no usable answer", "answered with more than"]);
}

// Discovery.

#[tokio::test]
async fn the_metadata_are_found_in_each_place_that_is_in_use() {
    let login = Login::start();
    let mut site = Site::new(&login);
    login.no_document(METADATA);
    for (issuer, place) in [
        (login.url(), OIDC.to_owned()),
        (format!("{}/", login.url()), OIDC.to_owned()),
        (format!("{}/realms/hpc", login.url()), format!("{METADATA}/realms/hpc")),
        (format!("{}/realms/hpc", login.url()), format!("/realms/hpc{OIDC}")),
        (format!("{}/realms/hpc", login.url()), format!("{OIDC}/realms/hpc")),
    ] {
        site.settings.server = AuthorizationServer::Issuer(issuer.clone());
        failed(site.fetch().await, &["has no metadata", "status 404"]);
        login.metadata(&place, &issuer);
        site.fetch().await.unwrap();
        login.no_document(&place);
    }
    site.settings.server = AuthorizationServer::TokenEndpoint(format!("{}{TOKEN}", login.url()));
    site.fetch().await.unwrap();
}

#[tokio::test]
async fn metadata_are_looked_for_in_each_place_whatever_the_others_answer() {
    let login = Login::start();
    let mut site = Site::new(&login);
    let issuer = format!("{}/realms/hpc", login.url());
    site.settings.server = AuthorizationServer::Issuer(issuer.clone());
    let places = [
        format!("{METADATA}/realms/hpc"),
        format!("/realms/hpc{OIDC}"),
        format!("{OIDC}/realms/hpc"),
    ];
    let moved = || Fault::Headers(302, vec![("location", "https://sso.example.org/login".to_owned())]);
    let faults = || {
        [
            Fault::Status(500, None),
            Fault::Status(502, None),
            Fault::busy(429, "18446744073709551615"),
            Fault::Status(401, None),
            Fault::Status(403, None),
            Fault::Status(406, None),
            moved(),
            Fault::HangUp,
            Fault::CutOff("{\"issuer\": "),
            Fault::Endless,
            Fault::Text("<html>canary</html>".to_owned()),
            Fault::Text(json!({"issuer": "https://evil.example.org"}).to_string()),
        ]
    };
    login.metadata(&places[2], &issuer);
    for fault in faults() {
        for place in &places[..2] {
            login.fail(place, 1, fault.clone());
        }
        let before = login.asked(&places[0]).len();
        site.fetch().await.unwrap();
        assert_eq!(
            login.asked(&places[0]).len(),
            before + 1,
            "it was found at the first attempt"
        );
    }
    // No URL has the metadata: the error names each URL with its answer.
    login.no_document(&places[2]);
    let url = login.url();
    let [first, second, third] = places.map(|place| format!("{url}{place}: "));
    login.fail(METADATA, 1, moved());
    failed(
        site.fetch().await,
        &[
            &format!("{first}it answered with the status 302, which redirects to `https://sso.example.org/login`"),
            &format!(
                "{}, {third}it has no metadata there (status 404)",
                second.trim_end_matches(": ")
            ),
            "redirects are not followed",
        ],
    );
    login.fail(METADATA, 1000, Fault::Status(500, None));
    login.fail("/realms/hpc/", 1000, Fault::Status(403, None));
    failed(
        site.fetch_within(Duration::from_secs(3)).await,
        &[
            "not within 3 s",
            &format!("{first}it answered with the status 500"),
            &format!("{second}it answered with the status 403"),
            &format!("{third}it has no metadata there"),
        ],
    );
}

/// RFC 8414 requires neither `token_endpoint` nor `jwks_uri`, so one URL may return a member that another lacks.
#[tokio::test]
async fn metadata_without_what_is_needed_are_looked_for_elsewhere() {
    let login = Login::start();
    let (site, url) = (Site::new(&login), login.url());
    for without in [json!({"issuer": url}), json!({"issuer": url, "token_endpoint": null})] {
        login.document(METADATA, without);
        login.no_document(OIDC);
        failed(
            site.fetch().await,
            &[
                &format!("{url}{METADATA}: its metadata names no token_endpoint"),
                &format!("{url}{OIDC}: it has no metadata there"),
                "set the key token-endpoint",
            ],
        );
        login.metadata(OIDC, &url);
        site.fetch().await.unwrap();
    }
    // Unneeded members may have any value.
    login.document(
        METADATA,
        json!({"issuer": url, "token_endpoint": format!("{url}{TOKEN}"), "jwks_uri": "http://elsewhere/jwks"}),
    );
    login.no_document(OIDC);
    site.fetch().await.unwrap();
}

/// The metadata of `common` at Microsoft Entra.
#[tokio::test]
async fn metadata_that_stand_for_many_issuers_are_explained() {
    let login = Login::start();
    let site = Site::new(&login);
    login.metadata(METADATA, "https://login.example.org/{tenantid}/v2.0");
    failed(
        site.fetch().await,
        &[
            "another issuer (`https://login.example.org/{tenantid}/v2.0`)",
            "the URL of the right tenant",
        ],
    );
    // Some servers send a byte order mark before the metadata.
    let text = json!({"issuer": login.url(), "token_endpoint": format!("{}{TOKEN}", login.url())}).to_string();
    login.fail(METADATA, 1, Fault::Text(format!("\u{feff}{text}")));
    site.fetch().await.unwrap();
}

#[tokio::test]
async fn metadata_of_another_issuer_are_not_used() {
    let login = Login::start();
    let site = Site::new(&login);
    for other in ["https://evil.example.org", &format!("{}/", login.url())] {
        login.metadata(METADATA, other);
        failed(site.fetch().await, &["another issuer", other, "exactly this value"]);
    }
    // Valid metadata at another URL are used.
    login.metadata(OIDC, &login.url());
    site.fetch().await.unwrap();
}

#[tokio::test]
async fn a_token_endpoint_that_has_moved_is_found() {
    let login = Login::start();
    let site = Site::new(&login);
    let source = site.source(PATIENCE);
    login.document(
        METADATA,
        json!({"issuer": login.url(), "token_endpoint": format!("{}/old", login.url())}),
    );
    failed(fetch(&*source).await, &["status 404", "/old"]);
    login.metadata(METADATA, &login.url());
    fetch(&*source).await.unwrap();
    // The answer of Keycloak after an upgrade has moved it from `/auth/realms` to `/realms`.
    let before = login.asked(METADATA).len();
    login.gives_in_turn(vec![
        (
            404,
            json!({"error": "RESTEASY003210: Could not find resource for full path"}),
        ),
        (200, json!({"access_token": "canary", "token_type": "Bearer"})),
    ]);
    fetch(&*source).await.unwrap();
    assert_eq!(login.asked(METADATA).len(), before + 1);
}

// Connections.

#[tokio::test]
async fn the_certificate_is_verified() {
    let login = Login::start();
    let site = Site::new(&login);
    fs::write(site.dir.path().join("ca.pem"), Authority::new("another").pem()).unwrap();
    failed(site.fetch().await, &["certificate was not accepted", "ca-file"]);
    fs::write(site.dir.path().join("ca.pem"), "canary").unwrap();
    failed(site.fetch().await, &["ca-file", "no certificate"]);
    fs::set_permissions(site.dir.path().join("ca.pem"), fs::Permissions::from_mode(0o666)).unwrap();
    failed(site.fetch().await, &["ca-file", "lets others write"]);
    assert!(login.asked("").is_empty());
}

#[tokio::test]
async fn a_certificate_that_is_its_own_authority_is_accepted_or_explained() {
    let own = Login::of(Authority::of_server(false), Setup::default());
    Site::new(&own).fetch().await.unwrap();
    let authority = Login::of(Authority::of_server(true), Setup::default());
    failed(
        Site::new(&authority).fetch().await,
        &[
            "its certificate was not accepted (it is the server's own, but is marked as that of an authority, CA:TRUE",
            "openssl req -x509",
            "basicConstraints=critical,CA:FALSE",
            "ca-file",
        ],
    );
    assert!(authority.asked("").is_empty());
}

/// Starts a server that sends the same answer to each request, and then closes the connection or keeps it open.
async fn raw(answer: &'static str, closes: bool) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
            if !closes {
                open.push(stream);
            }
        }
    });
    url
}

#[tokio::test]
async fn answers_of_old_or_broken_servers_are_taken_or_explained() {
    let login = Login::start();
    let mut site = Site::new(&login);
    let gzip = |code, encoding: &str| Fault::Headers(code, vec![("content-encoding", encoding.to_owned())]);
    for encoding in ["gzip", "br", "x-own"] {
        login.fail(TOKEN, 1, gzip(200, encoding));
        failed(
            site.fetch().await,
            &["its answer is compressed", "not requested", "Content-Encoding"],
        );
    }
    login.fail(TOKEN, 1, gzip(403, "gzip"));
    failed(site.fetch().await, &["status 403"]);
    login.fail(TOKEN, 1, gzip(503, "gzip"));
    site.fetch().await.unwrap();

    // In HTTP/1.0, the end of the connection ends the body.
    let token = "{\"access_token\": \"canary-1\", \"token_type\": \"Bearer\"}";
    let old = format!("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{token}");
    site.settings.server = AuthorizationServer::TokenEndpoint(raw(old.leak(), true).await);
    assert_eq!(site.fetch().await.unwrap(), "canary-1");
    let length = format!("Content-Length: {}\r\n", token.len());
    for old in [
        // Content codings are case-insensitive (RFC 9110 section 8.4.1).
        format!("HTTP/1.1 200 OK\r\nContent-Encoding: Identity\r\n{length}\r\n{token}"),
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{token}"),
        format!("HTTP/1.1 200\r\n{length}\r\n{token}"),
        format!("HTTP/1.1 200 OK\nContent-Length: {}\n\n{token}", token.len()),
        format!("HTTP/1.1 200 OK\r\n{length}{length}\r\n{token}"),
        format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n{length}\r\n{token}"),
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: x\r\n\r\n{:x};ext=1\r\n{token}\r\n0\r\nx: y\r\n\r\n",
            token.len()
        ),
    ] {
        let server = raw(old.clone().leak(), true).await;
        site.settings.server = AuthorizationServer::TokenEndpoint(server);
        assert_eq!(site.fetch().await.as_deref(), Ok("canary-1"), "{old}");
    }
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"acc\r\n";
    for (answer, closes, says) in [
        (CHUNKED, true, "the connection ended before the answer was complete"),
        (CHUNKED, false, "did not answer within 1 s"),
        ("HTTP/1.0 200 OK\r\n\r\n{\"acc", false, "did not answer within 1 s"),
        ("HTTP/1.0 200 OK\r\n\r\n{\"acc", true, "not a token in JSON"),
        ("SSH-2.0-OpenSSH_9.9\r\n", true, "it does not speak HTTP"),
    ] {
        site.settings.server = AuthorizationServer::TokenEndpoint(raw(answer, closes).await);
        failed(site.fetch_within(Duration::from_millis(2500)).await, &[says]);
    }
}

#[tokio::test]
async fn without_tls_a_server_on_this_node_is_asked() {
    let login = Login::with(Setup {
        plain: true,
        ..Setup::default()
    });
    assert_eq!(Site::new(&login).fetch().await.unwrap(), "canary-1");
}

#[tokio::test]
async fn a_proxy_is_gone_through() {
    let login = Login::start();
    let mut site = Site::new(&login);
    let tunnel = Tunnel::start().await;
    site.settings.network.proxy = Some(tunnel.url());
    site.fetch().await.unwrap();
    let address = login.url().replace("https://", "");
    assert_eq!(tunnel.asked(), [format!("CONNECT {address} HTTP/1.1")]);

    tunnel.refuse("403 Forbidden");
    failed(
        site.fetch_within(Duration::from_secs(3)).await,
        &[
            "could not be reached",
            "the proxy opened no tunnel",
            "check that the key proxy",
        ],
    );
    tunnel.refuse("407 Proxy Authentication Required");
    failed(
        site.fetch_within(Duration::from_secs(3)).await,
        &["proxy authorization required"],
    );
    site.settings.network.proxy = Some("http://127.0.0.1:1".to_owned());
    failed(
        site.fetch_within(Duration::from_secs(3)).await,
        &["the proxy opened no tunnel", "refused"],
    );
}

// Examination for the operator.

#[test]
fn the_operator_is_told_what_is_good_and_what_is_not() {
    let login = Login::start();
    let mut site = Site::new(&login);
    let said = site.examine();
    assert!(
        said.contains("closed to others") && said.contains("metadata is valid"),
        "{said}"
    );
    assert!(!said.contains("Bad") && !said.contains("Unwise"), "{said}");
    assert!(login.asked(TOKEN).is_empty(), "no token is asked for");

    login.document(
        METADATA,
        json!({
            "issuer": login.url(), "token_endpoint": format!("{}{TOKEN}", login.url()),
            "tokenEndpointAuthMethodsSupported": ["client_secret_post"],
            "grantTypesSupported": ["authorization_code"],
        }),
    );
    let said = site.examine();
    assert!(said.contains("client authentication client_secret_basic"), "{said}");
    assert!(said.contains("the grant client_credentials"), "{said}");

    site.write("secret", 0o644, SECRET);
    login.metadata(METADATA, "https://evil.example.org");
    let found = examine_oauth2(&site.settings, PATIENCE);
    let is_bad = |found: &Examined| matches!(found, Examined::Bad { .. });
    assert!(found.len() == 2 && found.iter().all(is_bad), "{found:?}");

    site.settings.server = AuthorizationServer::TokenEndpoint(format!("{}{TOKEN}", login.url()));
    assert!(site.examine().contains("answers"));
    let url = login.url();
    drop(login);
    let said = site.examine();
    assert!(said.contains(&url) && said.contains("refused the connection"), "{said}");
}
