// SPDX-License-Identifier: MIT OR Apache-2.0

//! `source = "oauth2"`, and verification with the keys of an issuer, against a certified authorization server:
//! oidc-provider, which npm installs into the target directory.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use config::{
    AuthorizationServer, ClientAuthentication, Discovery, Grant, KeyPath, OAuth2, Template, Trust, TrustedKeys, Values,
};
use libtest_mimic::{Arguments, Trial};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use seal::ExposeSecret;
use serde_json::{Value, json};
use source::{Examined, JwksClient, Slot, examine_oauth2, verify::TokenVerifier};
use tempfile::TempDir;
use token::{Algorithm, Claims, SigningKey};

#[path = "../../tests/support/npm.rs"]
mod npm;
#[path = "../../tests/support/server.rs"]
mod server;

use server::Server;

const SECRET: &str = "canary secret:1";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const UID: u32 = 4_000_001;

/// Returns the directory in which oidc-provider is installed, or the reason why it cannot be installed.
fn modules() -> Result<&'static Path, &'static str> {
    static MODULES: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let modules = MODULES.get_or_init(|| {
        let modules = Path::new(env!("CARGO_TARGET_TMPDIR")).join("npm");
        npm::install("oidc-provider", 9, &modules).map(|()| modules)
    });
    modules.as_deref().map_err(String::as_str)
}

fn main() -> ExitCode {
    let trial = |name: &str, test: fn(&'static Path)| match modules() {
        Ok(modules) => Trial::test(name, move || {
            test(modules);
            Ok(())
        }),
        Err(why) => Trial::test(name, || Ok(())).with_kind(why).with_ignored_flag(true),
    };
    let trials = vec![
        trial(
            "a_real_server_gives_tokens_that_are_verified_with_its_keys",
            a_real_server_gives_tokens_that_are_verified_with_its_keys,
        ),
        trial(
            "an_operator_is_told_that_a_real_server_is_well",
            an_operator_is_told_that_a_real_server_is_well,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// The server, and a directory with its files and those of its client.
struct Provider {
    dir: TempDir,
    modules: &'static Path,
    running: Option<Server>,
    issuer: String,
    keys: Vec<Value>,
}

impl Provider {
    fn start(modules: &'static Path) -> Self {
        let mut provider = Self {
            dir: tempfile::tempdir().unwrap(),
            modules,
            running: None,
            issuer: String::new(),
            keys: Vec::new(),
        };
        let client_key = SigningKey::generate(Algorithm::Es256);
        let client = |id: &str, way: &str, more: Value| {
            let mut client = json!({
                "client_id": id, "token_endpoint_auth_method": way, "redirect_uris": [], "response_types": [],
                "grant_types": ["client_credentials", EXCHANGE], "scope": "data:read data:write",
            });
            client
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            client
        };
        let clients = json!([
            client("basic", "client_secret_basic", json!({"client_secret": SECRET})),
            client("post", "client_secret_post", json!({"client_secret": SECRET})),
            client(
                "key",
                "private_key_jwt",
                json!({"jwks": {"keys": [client_key.verifying_key().to_jwk()]}})
            ),
        ]);
        provider.write("clients.json", &clients.to_string());
        provider.write("subjects.json", &json!({"canary.of.alice": "alice"}).to_string());
        provider.write("secret", SECRET);
        provider.write("wrong", "canary-wrong");
        provider.write("key.pem", client_key.to_pem().unwrap().expose_secret());
        let subject = provider.write(&format!("{UID}.jwt"), "canary.of.alice\n");
        if nix::unistd::geteuid().is_root() {
            chown(&subject, Some(UID), None).unwrap();
        }
        provider.add_key();
        provider.run(0);
        provider
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Adds a key that signs after the next start or [`Provider::again`]. The other keys remain.
    fn add_key(&mut self) {
        let key = SigningKey::generate(Algorithm::Es256);
        self.keys
            .insert(0, serde_json::from_str(key.to_jwk().expose_secret()).unwrap());
        self.write("keys.json", &json!({"keys": self.keys}).to_string());
    }

    fn run(&mut self, port: u16) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../t/oidc-provider.mjs");
        let mut node = Command::new("node");
        node.arg(script)
            .arg(self.modules)
            .arg(self.dir.path())
            .arg(port.to_string());
        let server = self.running.insert(Server::start(&mut node));
        self.issuer = server.line();
        if !self.issuer.starts_with("http://127.0.0.1:") {
            server.fail("printed no issuer");
        }
    }

    /// Makes the server read its files again.
    fn again(&mut self) {
        let server = self.running.as_mut().unwrap();
        kill(Pid::from_raw(server.pid().try_into().unwrap()), Signal::SIGHUP).unwrap();
        assert_eq!(server.line(), "again");
    }

    fn stop(&mut self) {
        self.running = None;
    }

    fn start_again(&mut self) {
        let port = self.issuer.rsplit(':').next().unwrap().parse().unwrap();
        self.run(port);
    }

    fn path(&self, name: &str) -> KeyPath {
        KeyPath::parse(self.dir.path().join(name).to_str().unwrap()).unwrap()
    }

    fn settings(&self, client: &str, authentication: ClientAuthentication) -> OAuth2 {
        OAuth2 {
            server: AuthorizationServer::Issuer(self.issuer.clone()),
            client_id: client.to_owned(),
            authentication,
            grant: Grant::ClientCredentials { share: false },
            scope: Some("data:read".to_owned()),
            audience: vec!["copy-offload".to_owned()],
            resource: vec!["https://copy-offload.example.org".to_owned()],
            network: discovery(),
        }
    }

    fn basic(&self) -> OAuth2 {
        self.settings("basic", ClientAuthentication::SecretBasic(self.path("secret")))
    }

    fn exchange(&self) -> OAuth2 {
        let template = format!("{}/{{uid}}.jwt", self.dir.path().display());
        OAuth2 {
            grant: Grant::TokenExchange {
                subject_token: Template::parse(&template).unwrap(),
                subject_token_type: "urn:ietf:params:oauth:token-type:jwt".to_owned(),
            },
            ..self.basic()
        }
    }

    fn trusted(&self) -> Arc<TokenVerifier> {
        let trust = Trust {
            name: "login".to_owned(),
            issuer: self.issuer.clone(),
            keys: TrustedKeys::Discovered(discovery()),
            audience: vec!["copy-offload".to_owned()],
            types: vec!["at+jwt".to_owned()],
            leeway: Duration::from_secs(60),
        };
        Arc::new(TokenVerifier::new(&trust).unwrap())
    }
}

fn discovery() -> Discovery {
    Discovery {
        proxy: None,
        ca_file: None,
        refresh: Duration::from_secs(3600),
    }
}

async fn fetch(settings: OAuth2, timeout: Duration) -> Result<String, String> {
    let rule = config::Rule {
        name: None,
        renewal: config::Renewal::default(),
        on_shortfall: config::OnShortfall::default(),
        allowed: config::Allowed::default(),
        conditions: config::Conditions::default(),
        variable: "DW_WORKFLOW_TOKEN".to_owned(),
        source: config::Source::OAuth2(Box::new(settings)),
        timeout,
        check: config::Check::Shape,
    };
    let job = Values {
        uid: UID,
        ..Values::example()
    };
    let fetched = source::of_rule(&rule, &[]).unwrap().fetch(&job, Slot::default()).await;
    match fetched.result {
        Ok(variables) => Ok(variables.iter().next().unwrap().1.expose_secret().to_owned()),
        Err(e) => {
            assert!(!e.to_string().contains("canary"), "a secret was told");
            Err(e.to_string())
        }
    }
}

/// Returns the error of a fetch. A token that is returned nevertheless is not printed.
async fn refused(settings: OAuth2, timeout: Duration) -> String {
    fetch(settings, timeout).await.map(drop).unwrap_err()
}

async fn given(settings: OAuth2) -> String {
    fetch(settings, Duration::from_secs(60)).await.unwrap()
}

async fn verify(trusted: &Arc<TokenVerifier>, token: &str) -> Claims {
    let (trusted, token) = (trusted.clone(), token.to_owned());
    let verified = tokio::task::spawn_blocking(move || trusted.verify(&token, SystemTime::now()).0);
    verified.await.unwrap().unwrap()
}

#[tokio::main(flavor = "current_thread")]
async fn a_real_server_gives_tokens_that_are_verified_with_its_keys(modules: &'static Path) {
    let mut provider = Provider::start(modules);
    let trusted = provider.trusted();

    // Client credentials, with each authentication method.
    let first = given(provider.basic()).await;
    let claims = verify(&trusted, &first).await;
    assert_eq!(claims.sub(), Some("basic"));
    assert_eq!(claims.iss(), Some(&*provider.issuer));
    assert_eq!(claims.get("scope"), Some(json!("data:read")));
    let post = ClientAuthentication::SecretPost(provider.path("secret"));
    let post = given(provider.settings("post", post)).await;
    assert_eq!(verify(&trusted, &post).await.sub(), Some("post"));
    let key = ClientAuthentication::PrivateKeyJwt(provider.path("key.pem"));
    let key = given(provider.settings("key", key)).await;
    assert_eq!(verify(&trusted, &key).await.sub(), Some("key"));

    // Token exchange: the token of the job belongs to its user.
    let exchanged = given(provider.exchange()).await;
    assert_eq!(verify(&trusted, &exchanged).await.sub(), Some("alice"));

    // Refusals.
    let minute = Duration::from_secs(60);
    let wrong = provider.settings("basic", ClientAuthentication::SecretBasic(provider.path("wrong")));
    let error = refused(wrong, minute).await;
    assert!(
        error.contains("invalid_client (401)") && error.contains("check that client-id"),
        "{error}"
    );
    let scope = OAuth2 {
        scope: Some("data:admin".to_owned()),
        ..provider.basic()
    };
    let error = refused(scope, minute).await;
    assert!(error.contains("invalid_scope"), "{error}");
    let target = OAuth2 {
        resource: vec!["https://elsewhere.example.org".to_owned()],
        ..provider.basic()
    };
    let error = refused(target, minute).await;
    assert!(error.contains("invalid_target"), "{error}");
    provider.write("subjects.json", "{}");
    provider.again();
    let error = refused(provider.exchange(), minute).await;
    assert!(
        error.contains("invalid_grant") && error.contains("subject token"),
        "{error}"
    );

    // The key of the server is rotated: tokens of the new and of the old key are valid.
    provider.add_key();
    provider.again();
    let second = given(provider.basic()).await;
    assert_ne!(
        first.split('.').next(),
        second.split('.').next(),
        "it is signed with another key"
    );
    verify(&trusted, &second).await;
    verify(&trusted, &first).await;

    // The server is stopped: no job gets a token, but existing tokens are valid.
    provider.stop();
    let error = refused(provider.basic(), Duration::from_millis(500)).await;
    assert!(
        error.contains("refused the connection") || error.contains("not within"),
        "{error}"
    );
    verify(&trusted, &second).await;
    // The server is started again with another key while a fetch waits for a token.
    provider.add_key();
    let waiting = tokio::spawn(given(provider.basic()));
    tokio::task::yield_now().await;
    let provider = tokio::task::spawn_blocking(move || {
        provider.start_again();
        provider
    });
    let provider = provider.await.unwrap();
    verify(&trusted, &waiting.await.unwrap()).await;
    verify(&trusted, &first).await;
    drop(provider);
}

fn an_operator_is_told_that_a_real_server_is_well(modules: &'static Path) {
    let provider = Provider::start(modules);
    let mut found = examine_oauth2(&provider.basic(), Duration::from_secs(60));
    found.extend(examine_oauth2(&provider.exchange(), Duration::from_secs(60)));
    found.push(JwksClient::examine(
        &provider.issuer,
        &discovery(),
        Duration::from_secs(60),
    ));
    assert_eq!(found.len(), 5);
    assert!(
        found.iter().all(|found| matches!(found, Examined::Good(_))),
        "{found:?}"
    );
}
