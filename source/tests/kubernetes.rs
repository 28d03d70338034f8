// SPDX-License-Identifier: MIT OR Apache-2.0

//! `source = "kubernetes"`, against a simulated API server over real TLS.
//!
//! Every secret in these tests contains the word "canary", and every fetch searches all messages for it.

#[path = "support/api.rs"]
mod api;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc, time::Duration};

use api::{Api, Authority, FAR_AHEAD, Fault, NO_PAUSE, Setup};
use base64::{Engine, engine::general_purpose::STANDARD};
use config::{Template, Values};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use seal::ExposeSecret;
use serde_json::{Value, json};
use source::{Slot, Source};
use tempfile::TempDir;
use tokio::sync::oneshot::{self, error::TryRecvError};

const JOB: u64 = 1234;
const UID: u32 = 1000;
const NAME: &str = "fluxjob-1234";
const BEARER: &str = "canary-bearer-1";
const TOKEN: &str = "canary-workflow-token";
const WORKFLOWS: &str = "/workflows/";
const SECRETS: &str = "/secrets/";

/// A timeout that is long enough for retries, but too short for errors that must not be retried.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory with a kubeconfig file.
struct Site {
    dir: TempDir,
}

impl Site {
    /// Returns a site that uses this server with a bearer token.
    fn new(api: &Api) -> Self {
        let site = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        site.configure(api, json!({"token": BEARER}));
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, mode: u32, content: &str) -> PathBuf {
        // The rename is atomic, so nobody reads a partial file.
        let new = self.path(&format!(".{name}"));
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&new, self.path(name)).unwrap();
        self.path(name)
    }

    fn configure(&self, api: &Api, user: Value) {
        let authority = STANDARD.encode(api.authority.pem());
        self.configure_with(
            json!({"server": api.url(), "certificate-authority-data": authority}),
            user,
        );
    }

    fn configure_with(&self, cluster: Value, user: Value) {
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "rabbits",
            "contexts": [{"name": "rabbits", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
        });
        self.write("kubeconfig", 0o600, &kubeconfig.to_string());
    }

    fn settings(&self) -> config::Kubernetes {
        config::Kubernetes {
            kubeconfig: Some(self.path("kubeconfig")),
            context: None,
            namespace: "default".to_owned(),
            object: Template::parse("fluxjob-{jobid.dec}").unwrap(),
            log_stderr: false,
        }
    }

    fn source(&self, timeout: Duration) -> Box<dyn Source> {
        source::of_kubernetes(&self.settings(), "DW_WORKFLOW_TOKEN", timeout, &[supervisor()])
    }

    async fn fetch(&self) -> Fetched {
        self.fetch_within(PATIENCE).await
    }

    async fn fetch_within(&self, timeout: Duration) -> Fetched {
        fetch(&*self.source(timeout), JOB).await
    }
}

/// Returns the path of this crate's example, which cargo builds with its tests.
fn supervisor() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/supervise");
    assert!(
        program.exists(),
        "build the examples of this crate: {}",
        program.display()
    );
    program
}

/// The result of a fetch, whose messages contain no secret.
struct Fetched {
    result: Result<Vec<(String, String)>, String>,
    summary: String,
    notes: Vec<String>,
}

async fn fetch(source: &dyn Source, jobid: u64) -> Fetched {
    let job = Values {
        f58: "ƒA".to_owned(),
        jobid,
        uid: UID,
        user: Some("alice".to_owned()),
        ..Values::example()
    };
    let fetched = source.fetch(&job, Slot::default()).await;
    let said = format!("{fetched:?} {:?}", fetched.result.as_ref().map_err(ToString::to_string));
    assert!(!said.contains("canary"), "a secret was told: {said}");
    let summary = fetched.result.as_ref().err().map(|e| e.summary().to_owned());
    let result = match &fetched.result {
        Ok(variables) => Ok(variables
            .iter()
            .map(|(name, value)| (name.to_owned(), value.expose_secret().to_owned()))
            .collect()),
        Err(e) => Err(e.to_string()),
    };
    Fetched {
        result,
        summary: summary.unwrap_or_default(),
        notes: fetched.notes,
    }
}

impl Fetched {
    /// Asserts that the fetch failed, that the error contains all of these parts and names the job, and that the
    /// summary for the user reveals nothing about the site.
    #[track_caller]
    fn failed(&self, says: &[&str]) {
        let error = self.result.as_ref().expect_err("it fails");
        for part in says.iter().chain(&[NAME]) {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
        assert!(
            !self.summary.contains(['/', ':']),
            "the user is told of the site: {}",
            self.summary
        );
    }

    #[track_caller]
    fn ok(&self) -> &[(String, String)] {
        self.result.as_ref().unwrap()
    }

    #[track_caller]
    fn has_token(&self, token: &str) {
        let expected = ("DW_WORKFLOW_TOKEN".to_owned(), token.to_owned());
        assert!(self.ok().contains(&expected), "{:?}", self.ok());
    }
}

/// Returns the status of a Workflow that is ready, with a token in a Secret.
fn ready() -> Value {
    json!({
        "state": "PreRun", "ready": true, "status": "Completed", "message": "",
        "env": {"DW_JOB_x": "/mnt/canary/x"},
        "workflowToken": {"secretName": "token-1234", "secretNamespace": "nnf"},
        "drivers": [], "desiredStateChange": "2025-01-01T00:00:00.000000Z",
    })
}

fn data(token: impl AsRef<[u8]>) -> Value {
    json!({"token": STANDARD.encode(token)})
}

/// Returns a server with the Workflow of a job, and a site that uses it.
fn healthy() -> (Api, Site) {
    let api = Api::start();
    prepare(&api);
    let site = Site::new(&api);
    (api, site)
}

fn prepare(api: &Api) {
    api.accept(BEARER);
    api.workflow(NAME, UID, ready());
    api.secret("nnf/token-1234", data(TOKEN));
}

#[tokio::test]
async fn a_job_gets_the_variables_of_its_workflow_and_its_token() {
    let (api, site) = healthy();
    let fetched = site.fetch().await;
    let expected = [("DW_JOB_x", "/mnt/canary/x"), ("DW_WORKFLOW_TOKEN", TOKEN)];
    let got: Vec<_> = fetched.ok().iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(got, expected);
    assert!(fetched.notes.is_empty(), "{:?}", fetched.notes);
    let asked = api.asked("");
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert_eq!(
        asked[1].path,
        "/apis/dataworkflowservices.github.io/v1alpha7/namespaces/default/workflows/fluxjob-1234"
    );
    assert_eq!(asked[2].path, "/api/v1/namespaces/nnf/secrets/token-1234");

    // The version is not requested again, and the connection is reused.
    let source = site.source(PATIENCE);
    fetch(&*source, JOB).await.has_token(TOKEN);
    fetch(&*source, JOB).await.has_token(TOKEN);
    assert_eq!(api.asked("").len(), 3 + 1 + 2 + 2, "{:?}", api.asked(""));
}

#[tokio::test]
async fn a_workflow_without_a_token_gives_its_variables_only() {
    let (api, site) = healthy();
    let mut status = ready();
    status["workflowToken"] = Value::Null;
    api.workflow(NAME, UID, status.clone());
    assert_eq!(
        site.fetch().await.ok(),
        [("DW_JOB_x".to_owned(), "/mnt/canary/x".to_owned())]
    );
    status["env"] = Value::Null;
    api.workflow(NAME, UID, status);
    assert!(site.fetch().await.ok().is_empty());
    assert!(api.asked(SECRETS).is_empty());
}

#[tokio::test]
async fn rules_with_the_same_settings_share_one_connection() {
    let (api, site) = healthy();
    let (one, other) = (site.source(PATIENCE), site.source(PATIENCE));
    for _ in 0..3 {
        fetch(&*one, JOB).await.has_token(TOKEN);
        fetch(&*other, JOB).await.has_token(TOKEN);
    }
    assert_eq!(api.accepted(), 1);
    assert_eq!(api.asked("").len(), 1 + 6 * 2);
}

#[tokio::test]
async fn a_version_that_is_not_served_any_more_is_exchanged_for_the_one_that_is() {
    let (api, site) = healthy();
    let source = site.source(PATIENCE);
    fetch(&*source, JOB).await.has_token(TOKEN);
    api.versions(&["v1", "v1alpha8"]);
    fetch(&*source, JOB).await.has_token(TOKEN);
    assert_eq!(api.asked("/v1/namespaces/default/workflows/").len(), 1);
}

#[tokio::test]
async fn a_thousand_jobs_at_once_are_served_over_few_connections() {
    const JOBS: u64 = 1000;

    let (api, site) = healthy();
    for job in 0..JOBS {
        api.workflow(&format!("fluxjob-{job}"), UID, ready());
    }
    let source: Arc<dyn Source> = site.source(Duration::from_secs(120)).into();
    let mut all = tokio::task::JoinSet::new();
    for job in 0..JOBS {
        let source = source.clone();
        all.spawn(async move { fetch(&*source, job).await.has_token(TOKEN) });
    }
    all.join_all().await;
    for job in 0..JOBS {
        let name = format!("/fluxjob-{job}");
        let asked = api.asked(&name);
        assert_eq!(
            asked.iter().filter(|asked| asked.path.ends_with(&name)).count(),
            1,
            "{name}"
        );
    }
    assert_eq!(api.asked(SECRETS).len(), 1000);
    assert!(api.most_open() <= 32, "{} connections", api.most_open());
    assert!(
        api.accepted() <= 64,
        "{} connections, one after the other",
        api.accepted()
    );
}

// Transient errors.

#[tokio::test]
async fn what_passes_is_tried_again() {
    let (api, site) = healthy();
    for fault in [
        Fault::Status(500, None),
        Fault::Status(503, Some(0)),
        Fault::Status(409, None),
        Fault::Status(410, None),
        Fault::Status(429, Some(0)),
        Fault::HangUp,
        Fault::CutOff("{\"kind\": \"Workflow\""),
        Fault::Text("{\"kind\": \"Workflow\", \"status".to_owned()),
    ] {
        for part in [WORKFLOWS, SECRETS] {
            api.fail(part, 2, fault.clone());
            site.fetch().await.has_token(TOKEN);
        }
    }
    api.fail(&format!("/apis/{}", api::GROUP), 1, Fault::Status(500, None));
    site.fetch().await.has_token(TOKEN);
}

#[tokio::test]
async fn a_server_that_is_busy_is_given_the_time_that_it_asks_for() {
    let (api, site) = healthy();
    api.fail(WORKFLOWS, 1, Fault::Status(429, Some(1)));
    site.fetch().await.has_token(TOKEN);
    let asked = api.asked(WORKFLOWS);
    assert_eq!(asked.len(), 2);
    // Only the lower bound is checked, because a slow machine may take longer.
    assert!(asked[1].at - asked[0].at >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_server_that_asks_for_more_time_than_there_is_is_not_waited_for() {
    let (api, site) = healthy();
    api.fail(WORKFLOWS, 1, Fault::Status(503, Some(3600)));
    let fetched = site.fetch_within(Duration::from_secs(30)).await;
    fetched.failed(&["503", "requests a pause of 3600 s", "timeout of 30 s"]);
    assert_eq!(api.asked(WORKFLOWS).len(), 1);
}

#[tokio::test]
async fn no_pause_that_a_server_requests_is_too_long_or_too_strange_to_be_told() {
    let (api, site) = healthy();
    for (retry_after, says) in FAR_AHEAD {
        for (part, code) in [(WORKFLOWS, 429), (SECRETS, 503)] {
            api.fail(part, 1, Fault::busy(code, retry_after));
            let before = api.asked(part).len();
            let fetched = site.fetch().await;
            fetched.failed(&[&code.to_string(), says, "no retry", "timeout of 20 s"]);
            assert_eq!(api.asked(part).len(), before + 1, "{retry_after}");
        }
    }
    for retry_after in NO_PAUSE {
        api.fail(WORKFLOWS, 2, Fault::busy(429, retry_after));
        site.fetch().await.has_token(TOKEN);
    }
    api.fail(WORKFLOWS, 1000, Fault::busy(429, "soon"));
    let fetched = site.fetch_within(Duration::from_secs(3)).await;
    fetched.failed(&["429, Retry-After: soon", "not within 3 s"]);
}

#[tokio::test]
async fn a_timeout_beyond_all_clocks_is_no_fault() {
    let (api, site) = healthy();
    api.fail(WORKFLOWS, 1, Fault::Status(503, None));
    site.fetch_within(Duration::MAX).await.has_token(TOKEN);
}

#[tokio::test]
async fn a_request_that_hangs_is_given_up_for_another() {
    let (api, site) = healthy();
    api.fail(WORKFLOWS, 1, Fault::Hang);
    site.fetch_within(Duration::from_secs(5)).await.has_token(TOKEN);
}

#[tokio::test]
async fn when_the_time_is_over_the_last_trouble_is_told() {
    let (api, site) = healthy();
    api.fail(WORKFLOWS, 1000, Fault::Status(500, None));
    let fetched = site.fetch_within(Duration::from_secs(2)).await;
    fetched.failed(&["not within 2 s", "500", "see the API server's log", &api.url()]);
    assert!(api.asked(WORKFLOWS).len() > 1, "it was not tried again");
    api.mend();

    // The connection and the version are known, so only the Workflow is requested.
    let shared = site.source(PATIENCE);
    fetch(&*shared, JOB).await.has_token(TOKEN);
    api.fail(WORKFLOWS, 1000, Fault::Hang);
    let fetched = site.fetch_within(Duration::from_millis(900)).await;
    fetched.failed(&["not within 900 ms", "the Workflow was requested", "longer timeout"]);
    let fetched = site.fetch_within(Duration::from_millis(2500)).await;
    fetched.failed(&["not within 2.5 s", "did not answer within 1 s"]);
}

#[tokio::test]
async fn a_workflow_that_is_not_ready_is_waited_for() {
    let status = |state: &str, ready: bool| {
        let mut status = self::ready();
        status["state"] = json!(state);
        status["ready"] = json!(ready);
        status
    };
    let mut without_secret = ready();
    without_secret["workflowToken"] = json!({"secretName": "", "secretNamespace": ""});
    let mut all = tokio::task::JoinSet::new();
    for (not_yet, says) in [
        (json!({}), "no state yet"),
        (Value::Null, "no status yet"),
        (status("DataIn", true), "in the state DataIn, before PreRun"),
        (status("PreRun", false), "PreRun, which is not complete"),
        (without_secret, "names no Secret yet"),
    ] {
        all.spawn(async move {
            let (api, site) = healthy();
            api.workflow(NAME, UID, not_yet);
            let short = site.fetch_within(Duration::from_secs(2)).await;
            short.failed(&[says, "kubectl describe workflow"]);
            assert_eq!(short.summary, "its Workflow was not ready in time");

            let before = api.asked(WORKFLOWS).len();
            let complete = async {
                api.until(|api| api.asked(WORKFLOWS).len() >= before + 2).await;
                api.workflow(NAME, UID, ready());
            };
            let (fetched, ()) = tokio::join!(site.fetch(), complete);
            fetched.has_token(TOKEN);
        });
    }
    all.join_all().await;
}

#[tokio::test]
async fn a_secret_that_is_not_there_yet_is_waited_for() {
    let (api, site) = healthy();
    let mut status = ready();
    status["workflowToken"]["secretName"] = json!("late");
    api.workflow(NAME, UID, status);
    // The Workflow names the Secret, so it is requested until the deadline.
    let fetched = site.fetch_within(Duration::from_secs(2)).await;
    fetched.failed(&["not within 2 s", "Secret nnf/late does not exist (404)"]);
    let before = api.asked("/secrets/late").len();
    let create = async {
        api.until(|api| api.asked("/secrets/late").len() >= before + 2).await;
        api.secret("nnf/late", data(TOKEN));
    };
    let (fetched, ()) = tokio::join!(site.fetch(), create);
    fetched.has_token(TOKEN);
}

#[tokio::test]
async fn a_workflow_that_is_missing_is_waited_for_a_short_while() {
    let (api, site) = healthy();
    api.no_workflow(NAME);
    let create = async {
        api.until(|api| api.asked(WORKFLOWS).len() >= 2).await;
        api.workflow(NAME, UID, ready());
    };
    let (fetched, ()) = tokio::join!(site.fetch(), create);
    fetched.has_token(TOKEN);

    api.no_workflow(NAME);
    let fetched = site.fetch_within(Duration::from_secs(4)).await;
    fetched.failed(&[
        "Workflow default/fluxjob-1234 does not exist (404)",
        "keys object and namespace",
    ]);
    assert!(
        !fetched.result.unwrap_err().contains("not within"),
        "it was not waited for until the end"
    );
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_and_waited_for() {
    let (api, site) = healthy();
    let port = api.port();
    let authority = Authority::new("the next authority");
    site.configure_with(
        json!({
            "server": api.url(),
            "certificate-authority-data": STANDARD.encode(authority.pem()),
        }),
        json!({"token": BEARER}),
    );
    drop(api);
    let fetched = site.fetch_within(Duration::from_secs(2)).await;
    fetched.failed(&["refused the connection", "check that the server runs"]);

    let source = site.source(PATIENCE);
    let fetched = tokio::spawn(async move { fetch(&*source, JOB).await });
    let setup = Setup {
        port,
        ..Setup::default()
    };
    let api = tokio::task::spawn_blocking(move || Api::of(authority, setup))
        .await
        .unwrap();
    prepare(&api);
    fetched.await.unwrap().has_token(TOKEN);
}

#[tokio::test]
async fn a_name_that_cannot_be_resolved_is_told() {
    let (api, site) = healthy();
    // The resolver rejects a name of this length without a query.
    let name = "a".repeat(70);
    site.configure_with(
        json!({
            "server": format!("https://{name}.invalid:6443"),
            "tls-server-name": "127.0.0.1",
            "certificate-authority-data": STANDARD.encode(api.authority.pem()),
        }),
        json!({"token": BEARER}),
    );
    let fetched = site.fetch_within(Duration::from_secs(2)).await;
    fetched.failed(&["could not be resolved", "DNS"]);
}

#[tokio::test]
async fn who_gives_up_takes_the_request_back() {
    let (api, site) = healthy();
    api.fail(WORKFLOWS, 1, Fault::Hang);
    let source = site.source(PATIENCE);
    let task = tokio::spawn(async move { fetch(&*source, JOB).await.result });
    api.until(|api| !api.asked(WORKFLOWS).is_empty()).await;
    assert_eq!(api.open(), 1);
    task.abort();
    api.until(|api| api.open() == 0).await;
    assert_eq!(api.asked("").len(), 2);
}

#[test]
fn a_runtime_that_ends_takes_nobody_with_it() {
    let (_api, site) = healthy();
    let source = site.source(PATIENCE);
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(fetch(&*source, JOB)).has_token(TOKEN);
        runtime.block_on(fetch(&*source, JOB)).has_token(TOKEN);
    }
}

// Permanent errors.

#[tokio::test]
async fn what_does_not_pass_is_told_at_once() {
    let (api, site) = healthy();
    for (fault, says) in [
        (Fault::Text("<html>canary</html>".to_owned()), "no Workflow in JSON"),
        (Fault::Text("{\"kind\": \"canary\"}".to_owned()), "no Workflow in JSON"),
        (Fault::Text("[]".to_owned()), "no Workflow in JSON"),
        (
            Fault::Text("{\"kind\": \"Workflow\", \"status\": \"canary\"}".to_owned()),
            "no Workflow in JSON",
        ),
        (Fault::Status(400, None), "status 400"),
        (Fault::Status(302, None), "status 302"),
        (Fault::Long(1 << 40), "more than 3145728 bytes"),
        (Fault::Endless, "more than 3145728 bytes"),
    ] {
        api.fail(WORKFLOWS, 1, fault);
        let fetched = site.fetch().await;
        fetched.failed(&[says, "check that the address in the kubeconfig file", &api.url()]);
    }
    let gzip = vec![("content-encoding", "gzip".to_owned())];
    api.fail(SECRETS, 1, Fault::Headers(200, gzip));
    let says = "its answer is compressed (gzip), which was not requested";
    site.fetch().await.failed(&[says, &api.url()]);
    api.fail(
        &format!("/apis/{}", api::GROUP),
        1,
        Fault::Text("{\"preferredVersion\": {\"version\": \"../x\"}}".to_owned()),
    );
    site.fetch().await.failed(&["no APIGroup in JSON"]);
}

#[tokio::test]
async fn what_a_server_says_is_told_without_secrets() {
    let (api, site) = healthy();
    let says = format!("do not send me {BEARER},\nalice\u{1b}[31m {}", "x ".repeat(100_000));
    api.fail(WORKFLOWS, 1, Fault::Says(400, says));
    let fetched = site.fetch().await;
    fetched.failed(&["it says: do not send me [redacted],", "alice"]);
    let error = fetched.result.unwrap_err();
    assert!(!error.contains(['\n', '\u{1b}']) && error.len() < 1000, "{error}");
}

#[tokio::test]
async fn a_workflow_that_cannot_be_used_is_refused() {
    let (api, site) = healthy();
    let with = |key: &str, value: Value| {
        let mut status = ready();
        status[key] = value;
        status
    };
    for (status, says) in [
        (with("env", json!({"1A": "canary"})), "`1A`, which is not a valid name"),
        (
            with("env", json!({"A=B": "canary"})),
            "`A=B`, which is not a valid name",
        ),
        (with("env", json!({"A": "canary\u{0}"})), "a value for A with a NUL"),
        (
            with("env", json!({"A": format!("canary{}", "x".repeat(128 << 10))})),
            "a value for A that is too long",
        ),
        (with("env", json!({"A": 1})), "no Workflow in JSON"),
        (with("state", json!("Teardown")), "being torn down"),
        (
            json!({"state": "DataIn", "ready": false, "status": "Error", "message": "no space left"}),
            "it has failed (it says: no space left)",
        ),
        (
            with(
                "workflowToken",
                json!({"secretName": "../../x", "secretNamespace": "nnf"}),
            ),
            "not the name of a Secret",
        ),
        (
            with("workflowToken", json!({"secretName": "x", "secretNamespace": "a/b"})),
            "not the name of a Secret",
        ),
    ] {
        api.workflow(NAME, UID, status);
        site.fetch().await.failed(&[says, ": check "]);
    }
    api.workflow(NAME, UID + 1, ready());
    site.fetch()
        .await
        .failed(&["it belongs to uid 1001, but the job to uid 1000"]);
    for no_user in [json!({}), json!({"userID": null}), Value::Null] {
        api.workflow(NAME, UID, ready());
        api.workflow_spec(NAME, |spec| *spec = no_user);
        site.fetch().await.failed(&["names no owner (spec.userID)"]);
    }
    assert!(api.asked(SECRETS).is_empty());
}

#[tokio::test]
async fn a_secret_that_cannot_be_used_is_refused() {
    let (api, site) = healthy();
    for (data, says) in [
        (json!({"other": "Y2FuYXJ5"}), "has no key `token`"),
        (Value::Null, "has no key `token`"),
        (json!({"token": "canary!"}), "is not base64"),
        (data(""), "it is empty"),
        (data("\n"), "it is empty"),
        (data("canary\0"), "NUL"),
        (data("canary\ncanary"), "more than one line"),
        (data(b"canary\xff"), "not UTF-8 (at byte 6)"),
        (data("canary".repeat(30_000)), "longer than"),
    ] {
        api.secret("nnf/token-1234", data);
        site.fetch()
            .await
            .failed(&["Secret nnf/token-1234", says, "kubectl describe secret"]);
    }
    // With a trailing newline, as from `echo`.
    api.secret("nnf/token-1234", data(format!("{TOKEN}\n")));
    site.fetch().await.has_token(TOKEN);
}

#[tokio::test]
async fn what_is_not_permitted_is_named() {
    for (what, says) in [
        (
            "get workflows",
            "may not get workflows.dataworkflowservices.github.io in the namespace default (403)",
        ),
        ("get secrets", "may not get secrets in the namespace nnf (403)"),
    ] {
        let (api, site) = healthy();
        api.deny(what);
        site.fetch()
            .await
            .failed(&[says, "system:serviceaccount:flux:tokens", "doc/kubernetes-rbac.yaml"]);
    }
}

#[tokio::test]
async fn a_cluster_without_dws_is_told() {
    let (api, site) = healthy();
    api.versions(&[]);
    let fetched = site.fetch_within(Duration::from_secs(1)).await;
    fetched.failed(&[
        "does not serve the API group dataworkflowservices.github.io",
        "DWS is installed",
    ]);
}

#[tokio::test]
async fn an_object_whose_name_cannot_be_formed_is_told() {
    let (_api, site) = healthy();
    let settings = config::Kubernetes {
        object: Template::parse("fluxjob-1234-{user}").unwrap(),
        ..site.settings()
    };
    let source = source::of_kubernetes(&settings, "T", PATIENCE, &[]);
    assert!(source.needs_user());
    let job = Values {
        jobid: JOB,
        uid: UID,
        user: Some("Alice_X".to_owned()),
        ..Values::example()
    };
    let error = source
        .fetch(&job, Slot::default())
        .await
        .result
        .unwrap_err()
        .to_string();
    assert!(error.contains("the key object, `fluxjob-1234-{user}`"), "{error}");
}

// TLS.

#[tokio::test]
async fn a_server_that_cannot_be_told_to_be_the_right_one_is_refused() {
    let unknown = Authority::new("another authority").pem();
    for (setup, authority, says) in [
        (
            Setup::default(),
            Some(unknown),
            ["UnknownIssuer", "certificate-authority"],
        ),
        (
            Setup {
                expired: true,
                ..Setup::default()
            },
            None,
            ["expired", "renew the server's certificate"],
        ),
        (
            Setup {
                names: vec!["kubernetes.example.com".to_owned()],
                ..Setup::default()
            },
            None,
            ["not valid for name", "tls-server-name"],
        ),
    ] {
        let api = Api::with(setup);
        prepare(&api);
        let site = Site::new(&api);
        let authority = authority.unwrap_or_else(|| api.authority.pem());
        site.configure_with(
            json!({"server": api.url(), "certificate-authority-data": STANDARD.encode(authority)}),
            json!({"token": BEARER}),
        );
        let fetched = site.fetch().await;
        fetched.failed(&["its certificate was not accepted", says[0], says[1], &api.url()]);
        assert!(api.asked("").is_empty(), "the token was sent");
    }
}

#[tokio::test]
async fn a_server_is_called_what_the_kubeconfig_file_says() {
    let api = Api::with(Setup {
        names: vec!["kubernetes.example.com".to_owned()],
        ..Setup::default()
    });
    prepare(&api);
    let site = Site::new(&api);
    site.write("ca.pem", 0o644, &api.authority.pem());
    site.configure_with(
        json!({
            "server": format!("{}/", api.url()),
            "tls-server-name": "kubernetes.example.com",
            "certificate-authority": "ca.pem",
        }),
        json!({"token": BEARER}),
    );
    site.fetch().await.has_token(TOKEN);
}

#[tokio::test]
async fn what_does_not_speak_tls_is_told() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let (api, site) = healthy();
    site.configure_with(
        json!({
            "server": format!("https://{address}"),
            "certificate-authority-data": STANDARD.encode(api.authority.pem()),
        }),
        json!({"token": BEARER}),
    );
    site.fetch().await.failed(&["does not speak TLS", "is for https"]);
}

// Credentials.

#[tokio::test]
async fn a_credential_that_is_refused_is_renewed_once() {
    let (api, site) = healthy();
    let source = site.source(PATIENCE);
    fetch(&*source, JOB).await.has_token(TOKEN);

    // The server rejects the credential only for a moment.
    api.fail(WORKFLOWS, 1, Fault::Status(401, None));
    fetch(&*source, JOB).await.has_token(TOKEN);

    api.accept("canary-another");
    let before = api.asked("").len();
    let fetched = fetch(&*source, JOB).await;
    fetched.failed(&["did not accept the credential (401)", "renew the token"]);
    assert_eq!(
        api.asked("").len() - before,
        2,
        "one try, and one with a fresh credential"
    );

    site.configure(&api, json!({"token": "canary-another"}));
    fetch(&*source, JOB).await.has_token(TOKEN);
}

#[tokio::test]
async fn a_token_file_that_is_rotated_is_read_again() {
    let (api, site) = healthy();
    site.write("token", 0o600, &format!("{BEARER}\n"));
    site.configure(&api, json!({"tokenFile": "token"}));
    let source = site.source(PATIENCE);
    fetch(&*source, JOB).await.has_token(TOKEN);

    api.accept("canary-bearer-2");
    site.write("token", 0o600, "canary-bearer-2");
    fetch(&*source, JOB).await.has_token(TOKEN);
    let all: Vec<_> = api
        .asked(WORKFLOWS)
        .into_iter()
        .filter_map(|asked| asked.authorization)
        .collect();
    assert_eq!(all, [format!("Bearer {BEARER}"), "Bearer canary-bearer-2".to_owned()]);

    // The file may currently be rewritten, so the fetch retries.
    site.write("token", 0o600, "");
    let fetched = site.fetch_within(Duration::from_secs(2)).await;
    fetched.failed(&["not within 2 s", "tokenFile is not a bearer token"]);
    site.write("token", 0o600, "canary-bearer-2");
    fetch(&*source, JOB).await.has_token(TOKEN);
}

#[tokio::test]
async fn a_client_certificate_says_who_we_are() {
    let (api, site) = healthy();
    let client = api.authority.client("flux");
    site.write("client.pem", 0o644, &client.certificate);
    site.write("client-key.pem", 0o600, &client.key);
    let by_file = json!({"client-certificate": "client.pem", "client-key": "client-key.pem"});
    let by_data = json!({
        "client-certificate-data": STANDARD.encode(&client.certificate),
        "client-key-data": STANDARD.encode(&client.key),
    });
    for user in [by_file, by_data] {
        site.configure(&api, user);
        site.fetch().await.has_token(TOKEN);
    }
    let asked = api.asked("");
    assert!(
        asked
            .iter()
            .all(|asked| asked.with_certificate && asked.authorization.is_none()),
        "{asked:?}"
    );

    let other = api.authority.client("other");
    site.write("client-key.pem", 0o600, &other.key);
    site.configure(
        &api,
        json!({"client-certificate": "client.pem", "client-key": "client-key.pem"}),
    );
    site.fetch()
        .await
        .failed(&["client-certificate and client-key cannot be used"]);
}

#[tokio::test]
async fn a_client_certificate_that_is_refused_is_told() {
    let api = Api::with(Setup {
        demands_certificate: true,
        ..Setup::default()
    });
    prepare(&api);
    let site = Site::new(&api);
    site.fetch()
        .await
        .failed(&["refused the client certificate", "renew the client certificate"]);
    let foreign = Authority::new("a foreign authority").client("flux");
    site.configure(
        &api,
        json!({
            "client-certificate-data": STANDARD.encode(foreign.certificate),
            "client-key-data": STANDARD.encode(foreign.key),
        }),
    );
    site.fetch()
        .await
        .failed(&["refused the client certificate", "renew the client certificate"]);
}

/// Writes a script that counts its runs. Returns the user of a kubeconfig file whose `exec` runs it.
fn exec(site: &Site, script: &str) -> Value {
    let script = format!("cd {}\necho run >>runs\n{script}\n", site.path("").display());
    let path = site.write("get-credential", 0o600, &script);
    json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1",
        "interactiveMode": "IfAvailable",
        "command": "/bin/sh",
        "args": [path],
        "env": [{"name": "WHO", "value": "flux"}],
        "provideClusterInfo": true,
    }})
}

fn runs(site: &Site) -> usize {
    fs::read_to_string(site.path("runs"))
        .unwrap_or_default()
        .lines()
        .count()
}

fn credential(version: &str, status: &Value) -> String {
    json!({"kind": "ExecCredential", "apiVersion": format!("client.authentication.k8s.io/{version}"), "status": status})
        .to_string()
}

#[tokio::test]
async fn a_command_gives_a_token_which_is_kept() {
    let (api, site) = healthy();
    site.write("credential", 0o600, &credential("v1", &json!({"token": BEARER})));
    let user = exec(
        &site,
        "echo \"$KUBERNETES_EXEC_INFO\" >info; echo \"$WHO\" >who; cat credential; echo \"I am $(cat credential)\" >&2",
    );
    site.configure(&api, user);
    let source = site.source(PATIENCE);
    let fetched = fetch(&*source, JOB).await;
    fetched.has_token(TOKEN);
    assert!(fetched.notes.is_empty(), "{:?}", fetched.notes);
    fetch(&*source, JOB).await.has_token(TOKEN);
    assert_eq!(runs(&site), 1);
    assert_eq!(fs::read_to_string(site.path("who")).unwrap(), "flux\n");
    let info: Value = serde_json::from_str(&fs::read_to_string(site.path("info")).unwrap()).unwrap();
    assert_eq!(info["kind"], "ExecCredential");
    assert_eq!(info["apiVersion"], "client.authentication.k8s.io/v1");
    assert_eq!(info["spec"]["interactive"], false);
    assert_eq!(info["spec"]["cluster"]["server"], api.url());
    let authority = info["spec"]["cluster"]["certificate-authority-data"].as_str().unwrap();
    assert_eq!(STANDARD.decode(authority).unwrap(), api.authority.pem().as_bytes());

    // The server rejects the credential, so a new one is requested.
    api.accept("canary-bearer-2");
    site.write(
        "credential",
        0o600,
        &credential("v1", &json!({"token": "canary-bearer-2"})),
    );
    fetch(&*source, JOB).await.has_token(TOKEN);
    assert_eq!(runs(&site), 2);
}

#[tokio::test]
async fn a_command_is_asked_again_before_its_credential_expires() {
    let (api, site) = healthy();
    let expires = |seconds: i64| {
        let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        credential(
            "v1beta1",
            &json!({"token": BEARER, "expirationTimestamp": time.to_string()}),
        )
    };
    site.write("credential", 0o600, &expires(3600));
    let mut user = exec(&site, "cat credential");
    user["exec"]["apiVersion"] = json!("client.authentication.k8s.io/v1beta1");
    site.configure(&api, user.clone());
    let source = site.source(PATIENCE);
    fetch(&*source, JOB).await.has_token(TOKEN);
    fetch(&*source, JOB).await.has_token(TOKEN);
    assert_eq!(runs(&site), 1);

    // It is renewed a quarter of its lifetime before its expiry, which is now.
    site.configure(&api, user);
    let almost = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(400);
    let almost = credential(
        "v1beta1",
        &json!({"token": BEARER, "expirationTimestamp": almost.to_string()}),
    );
    site.write("credential", 0o600, &almost);
    fetch(&*source, JOB).await.result.ok();
    let before = runs(&site);
    site.write("credential", 0o600, &expires(3600));
    api.fail(WORKFLOWS, 3, Fault::Status(503, None));
    fetch(&*source, JOB).await.has_token(TOKEN);
    assert!(runs(&site) > before, "it was used until it had expired");

    site.write("credential", 0o600, &expires(-10));
    let mut user = exec(&site, "cat credential");
    user["exec"]["apiVersion"] = json!("client.authentication.k8s.io/v1beta1");
    site.configure(&api, user);
    let other = Site::new(&api);
    fs::copy(site.path("kubeconfig"), other.path("kubeconfig")).unwrap();
    other.fetch().await.failed(&["has already expired", "clock"]);
}

#[tokio::test]
async fn a_command_gives_a_client_certificate() {
    let (api, site) = healthy();
    let client = api.authority.client("flux");
    let status = json!({"clientCertificateData": client.certificate, "clientKeyData": client.key});
    site.write("credential", 0o600, &credential("v1", &status));
    site.configure(&api, exec(&site, "cat credential"));
    site.fetch().await.has_token(TOKEN);
    assert!(api.asked("").iter().all(|asked| asked.with_certificate));
}

#[tokio::test]
async fn a_thousand_jobs_run_a_command_once() {
    let (api, site) = healthy();
    site.write("credential", 0o600, &credential("v1", &json!({"token": BEARER})));
    site.configure(&api, exec(&site, "cat credential"));
    let source: Arc<dyn Source> = site.source(PATIENCE).into();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let source = source.clone();
        all.spawn(async move { fetch(&*source, JOB).await.has_token(TOKEN) });
    }
    all.join_all().await;
    assert_eq!(runs(&site), 1);
}

#[tokio::test]
async fn a_command_that_fails_is_not_run_for_each_of_a_hundred_jobs() {
    let (api, site) = healthy();
    site.configure(&api, exec(&site, "exit 1"));
    let source: Arc<dyn Source> = site.source(Duration::from_secs(2)).into();
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let source = source.clone();
        all.spawn(async move { fetch(&*source, JOB).await.failed(&["failed (exit code 1)"]) });
    }
    all.join_all().await;
    assert!(runs(&site) <= 10, "it was run {} times in 2 s", runs(&site));
}

#[tokio::test]
async fn a_command_that_gives_no_credential_is_told() {
    let (api, site) = healthy();
    for (script, says) in [
        ("echo canary", "no ExecCredential in JSON"),
        ("echo '{}'", "no ExecCredential in JSON"),
        (
            "echo '{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1beta1\",\"status\":{\"token\":\"canary\"}}'",
            "of the requested version",
        ),
        (
            "echo '{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{}}'",
            "without a token",
        ),
        (
            "echo '{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{\"token\":\"canary canary\"}}'",
            "not a bearer token",
        ),
        (
            "echo '{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{\"token\":\"canary\",\"expirationTimestamp\":\"soon\"}}'",
            "RFC 3339",
        ),
    ] {
        site.configure(&api, exec(&site, script));
        site.fetch()
            .await
            .failed(&["exec command /bin/sh printed", says, "check that it supports"]);
    }
    site.configure(&api, exec(&site, "echo 'Authorization: Bearer canary' >&2; exit 3"));
    let fetched = site.fetch_within(Duration::from_secs(4)).await;
    fetched.failed(&["failed (exit code 3)", "standard error", "not within 4 s"]);
    assert!(runs(&site) >= 8, "it was not tried again");

    let mut user = exec(&site, "");
    user["exec"]["command"] = json!("./no-such-program");
    site.configure(&api, user);
    site.fetch()
        .await
        .failed(&["no-such-program could not be started", "install it"]);
    assert!(api.asked("").is_empty());
}

#[tokio::test]
async fn a_command_that_others_can_change_is_not_run() {
    let (api, site) = healthy();
    site.write("credential", 0o600, &credential("v1", &json!({"token": BEARER})));
    let mut user = exec(&site, "cat credential");
    let script = format!(
        "#!/bin/sh\necho run >>{0}/runs\ncat {0}/credential\n",
        site.path("").display()
    );
    user["exec"]["command"] = json!("./program");
    let mode = |name: &str, mode: u32| fs::set_permissions(site.path(name), fs::Permissions::from_mode(mode)).unwrap();
    for bad in [0o777, 0o757, 0o775] {
        site.write("program", bad, &script);
        site.configure(&api, user.clone());
        let says = format!("mode {bad:04o} lets others write to it");
        site.fetch().await.failed(&["program was refused", &says]);
    }
    assert_eq!(runs(&site), 0);
    // The program is checked again at each use.
    mode("program", 0o755);
    let source = site.source(PATIENCE);
    fetch(&*source, JOB).await.has_token(TOKEN);
    assert_eq!(runs(&site), 1);
    mode("program", 0o777);
    api.accept("canary-bearer-2");
    fetch(&*source, JOB).await.failed(&["lets others write to it"]);
    // Its failure is cached for one second.
    drop(source);
    // A directory of the path.
    fs::create_dir(site.path("open")).unwrap();
    site.write("program", 0o755, &script);
    fs::rename(site.path("program"), site.path("open/program")).unwrap();
    mode("open", 0o777);
    user["exec"]["command"] = json!("./open/program");
    site.configure(&api, user);
    site.fetch().await.failed(&["others can write to the directory"]);
    assert_eq!(runs(&site), 1);
}

#[tokio::test]
async fn standard_error_is_logged_only_if_requested() {
    let (api, site) = healthy();
    site.write("credential", 0o600, &credential("v1", &json!({"token": BEARER})));
    site.configure(
        &api,
        exec(
            &site,
            "cat credential; echo \"I am $(cat credential)\" >&2; exit $(cat code)",
        ),
    );
    let logging = config::Kubernetes {
        log_stderr: true,
        ..site.settings()
    };
    let logs = |notes: &[String]| {
        notes
            .iter()
            .any(|note| note.contains("exec command") && note.contains("I am"))
    };
    for (code, log_stderr) in [(0, false), (0, true), (3, false), (3, true)] {
        site.write("code", 0o600, &code.to_string());
        let settings = if log_stderr { &logging } else { &site.settings() };
        let source = source::of_kubernetes(settings, "DW_WORKFLOW_TOKEN", Duration::from_secs(4), &[supervisor()]);
        let fetched = fetch(&*source, JOB).await;
        assert_eq!(logs(&fetched.notes), log_stderr, "{:?}", fetched.notes);
        match (code, log_stderr) {
            (0, _) => fetched.has_token(TOKEN),
            (_, true) => fetched.failed(&["failed (exit code 3)", "see its standard error above"]),
            (_, false) => fetched.failed(&["failed (exit code 3)", "set log-stderr = true"]),
        }
    }
}

#[tokio::test]
async fn an_abandoned_command_holds_its_slot() {
    let (api, site) = healthy();
    site.configure(&api, exec(&site, "cat credential"));
    let pid = site.path("pid");
    let script = format!(
        "#!/bin/sh\necho $$ >{0}.new\nmv {0}.new {0}\nexec sleep 1000\n",
        pid.display()
    );
    let hung = site.write("hung", 0o755, &script);
    let source = source::of_kubernetes(&site.settings(), "T", Duration::from_millis(400), &[hung]);
    let (slot, mut released) = slot();
    let fetched = source
        .fetch(
            &Values {
                jobid: JOB,
                ..Values::example()
            },
            slot,
        )
        .await;
    fetched.result.unwrap_err();
    let pid = loop {
        match fs::read_to_string(&pid) {
            Ok(pid) => break pid.trim().parse().unwrap(),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!(released.try_recv(), Err(TryRecvError::Empty));
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert!(released.await.is_err());
}

/// Returns a slot, and a receiver that fails when nothing holds the slot.
fn slot() -> (Slot, oneshot::Receiver<()>) {
    struct Guard(#[expect(dead_code, reason = "its end closes the channel")] oneshot::Sender<()>);
    let (sender, receiver) = oneshot::channel();
    (Slot::new(Guard(sender)), receiver)
}

#[tokio::test]
async fn who_gives_up_has_the_command_killed() {
    let (api, site) = healthy();
    nix::unistd::mkfifo(&site.path("started"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    nix::unistd::mkfifo(&site.path("alive"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    // The command holds this FIFO open until it ends.
    site.configure(&api, exec(&site, "exec 9>alive; echo >started; exec sleep 1000"));
    let source = site.source(PATIENCE);
    let task = tokio::spawn(async move { fetch(&*source, JOB).await.result });
    let (started, alive) = (site.path("started"), site.path("alive"));
    let alive = tokio::task::spawn_blocking(move || {
        let alive = fs::File::open(alive).unwrap();
        fs::read(started).unwrap();
        alive
    })
    .await
    .unwrap();
    task.abort();
    let end = tokio::task::spawn_blocking(move || std::io::Read::read(&mut { alive }, &mut [0]).unwrap());
    // The timeout only ends a test that would hang.
    let end = tokio::time::timeout(Duration::from_secs(60), end).await;
    assert_eq!(end.expect("the command was killed").unwrap(), 0);
}

// The kubeconfig file.

#[tokio::test]
async fn a_kubeconfig_file_that_is_not_safe_or_not_supported_is_refused() {
    let (api, site) = healthy();
    let authority = STANDARD.encode(api.authority.pem());
    let cluster = |key: &str, value: Value| {
        let mut cluster = json!({"server": api.url(), "certificate-authority-data": authority});
        cluster[key] = value;
        cluster
    };
    let token = json!({"token": BEARER});
    for (cluster, says) in [
        (
            cluster("insecure-skip-tls-verify", json!(true)),
            ["insecure-skip-tls-verify", "set certificate-authority"],
        ),
        (
            cluster("server", json!("http://127.0.0.1:1")),
            ["not https", "https://kubernetes"],
        ),
        (cluster("server", json!("")), ["has no server", "https://kubernetes"]),
        (
            cluster("server", json!("https:///")),
            ["address of its server is not valid", "https://kubernetes"],
        ),
        (
            cluster("server", json!("https://u:canary@127.0.0.1")),
            ["contains a user name", "https://kubernetes"],
        ),
        (
            cluster("proxy-url", json!("http://u:canary@proxy")),
            ["proxy-url", "without a proxy"],
        ),
        (
            cluster("certificate-authority-data", json!("canary!")),
            ["certificate-authority-data is not base64", "in one line"],
        ),
        (
            cluster("certificate-authority-data", json!("Y2FuYXJ5")),
            [
                "certificate-authority in the kubeconfig file contains no certificate",
                "PEM",
            ],
        ),
        (
            cluster("tls-server-name", json!("a b")),
            ["tls-server-name", "certificate is for"],
        ),
    ] {
        site.configure_with(cluster, token.clone());
        site.fetch().await.failed(&says);
    }
    for (user, says) in [
        (json!({}), ["no credential", "tokenFile"]),
        (
            json!({"token": "can ary"}),
            ["token is not a bearer token", "write only the token"],
        ),
        (
            json!({"auth-provider": {"name": "gcp", "config": {"access-token": "canary"}}}),
            ["auth-provider gcp", "use exec"],
        ),
        (
            json!({"username": "u", "password": "canary"}),
            ["username and password", "use exec"],
        ),
        (
            json!({"token": BEARER, "as": "root"}),
            ["impersonates another", "service account"],
        ),
        (
            json!({"client-certificate-data": authority}),
            ["client-key is missing", "needs it"],
        ),
        (
            json!({"client-key-data": authority}),
            ["client-certificate is missing", "needs it"],
        ),
        (
            json!({"client-certificate-data": authority, "client-key-data": authority}),
            ["no private key", "passphrase"],
        ),
        (json!({"tokenFile": "nowhere"}), ["tokenFile", "could not be read"]),
        (
            json!({"exec": {"command": "x", "apiVersion": "client.authentication.k8s.io/v1alpha1"}}),
            ["exec has the apiVersion", "v1beta1"],
        ),
        (
            json!({"exec": {"command": "x", "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Always"}}),
            ["interactiveMode Always", "no interaction"],
        ),
        (
            json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1"}}),
            ["no command", "name the program"],
        ),
    ] {
        site.configure(&api, user);
        site.fetch().await.failed(&says);
    }
    assert!(api.asked("").is_empty(), "{:?}", api.asked(""));
}

#[tokio::test]
async fn the_context_that_is_named_is_the_one_that_is_used() {
    let (api, site) = healthy();
    let authority = STANDARD.encode(api.authority.pem());
    let kubeconfig = json!({
        "current-context": "elsewhere",
        "contexts": [
            {"name": "elsewhere", "context": {"cluster": "other", "user": "nobody"}},
            {"name": "rabbits", "context": {"cluster": "c", "user": "u"}},
        ],
        "clusters": [
            {"name": "other", "cluster": {"server": "https://127.0.0.1:1"}},
            {"name": "c", "cluster": {"server": api.url(), "certificate-authority-data": authority}},
        ],
        "users": [{"name": "nobody", "user": {"token": "canary-nobody"}}, {"name": "u", "user": {"token": BEARER}}],
    });
    site.write("kubeconfig", 0o600, &kubeconfig.to_string());
    let settings = config::Kubernetes {
        context: Some("rabbits".to_owned()),
        ..site.settings()
    };
    let source = source::of_kubernetes(&settings, "DW_WORKFLOW_TOKEN", PATIENCE, &[]);
    fetch(&*source, JOB).await.has_token(TOKEN);
    assert!(
        api.asked("")
            .iter()
            .all(|asked| asked.authorization.as_deref() == Some("Bearer canary-bearer-1"))
    );
}

/// Files that kubectl accepts, but other clients are reported to reject.
#[tokio::test]
async fn a_kubeconfig_file_is_read_as_kubectl_reads_it() {
    let (api, site) = healthy();
    let pem = api.authority.pem();
    let (url, authority) = (api.url(), STANDARD.encode(&pem));
    let wrapped = |indent: &str| {
        let lines: Vec<_> = authority
            .as_bytes()
            .chunks(76)
            .map(|line| String::from_utf8_lossy(line))
            .collect();
        lines.join(&format!("\n{indent}"))
    };
    let document = |cluster: &str, user: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Config\npreferences: {{}}\ncurrent-context: dev/admin@example.com\n\
             contexts:\n- context: {{cluster: c, user: u}}\n  name: dev/admin@example.com\n\
             clusters:\n- cluster:\n    server: {url}\n{cluster}  name: c\n\
             users:\n- name: u\n  user:\n{user}{more}"
        )
    };
    let (data, token) = (
        format!("    certificate-authority-data: {authority}\n"),
        format!("    token: {BEARER}\n"),
    );
    site.write("ca.pem", 0o644, pem.trim_end());
    site.write("token", 0o600, &format!("{BEARER}\n\n"));
    for (what, content) in [
        ("plain", document(&data, &token, "")),
        (
            "with a mark before it",
            format!("\u{feff}{}", document(&data, &token, "")),
        ),
        (
            "with ends of lines of Windows",
            document(&data, &token, "").replace('\n', "\r\n"),
        ),
        ("a document of its own", format!("---\n{}", document(&data, &token, ""))),
        (
            "data on several lines",
            document(
                &format!("    certificate-authority-data: |\n      {}\n", wrapped("      ")),
                &token,
                "",
            ),
        ),
        (
            "a certificate without an end of line",
            document("    certificate-authority: ca.pem\n", &token, ""),
        ),
        (
            "data wins over a file",
            document(&format!("    certificate-authority: /nonexistent\n{data}"), &token, ""),
        ),
        (
            "a token file with lines after it",
            document(&data, "    tokenFile: token\n", ""),
        ),
        (
            "keys without a value",
            document(
                &format!(
                    "    proxy-url: \"\"\n    tls-server-name: \"\"\n    insecure-skip-tls-verify: false\n    extensions: null\n{data}"
                ),
                &format!("    as: \"\"\n    username: \"\"\n    exec: null\n    auth-provider: null\n{token}"),
                "",
            ),
        ),
        (
            "extensions of minikube",
            document(
                &format!(
                    "    extensions:\n    - extension: {{provider: minikube.sigs.k8s.io, version: v1.30}}\n      name: cluster_info\n{data}"
                ),
                &token,
                "",
            ),
        ),
        (
            "users that others have no use for",
            document(
                &data,
                &token,
                "- name: empty\n  user: {}\n- name: none\n- name: nothing\n  user: null\n- name: exec\n  user:\n    exec:\n      \
                 apiVersion: client.authentication.k8s.io/v1alpha1\n      command: aws\n      args: null\n      env: null\n      \
                 installHint: x\n      provideClusterInfo: false\n",
            ),
        ),
    ] {
        site.write("kubeconfig", 0o600, &content);
        let fetched = site.fetch().await;
        assert!(fetched.result.is_ok(), "{what}: {:?}", fetched.result);
        fetched.has_token(TOKEN);
    }
    // Rancher serves its clusters below a path.
    let below = document(&data, &token, "").replace(&url, &format!("{url}/k8s/clusters/c-m-1/"));
    site.write("kubeconfig", 0o600, &below);
    let _ = site.fetch_within(Duration::from_secs(1)).await;
    assert!(
        !api.asked("/k8s/clusters/c-m-1/apis/").is_empty(),
        "{:?}",
        api.asked("/")
    );
    // Files that kubectl rejects, too, are reported.
    for (version, says) in [
        (
            "client.authentication.k8s.io/v1alpha1",
            "exec has the apiVersion client.authentication.k8s.io/v1alpha1",
        ),
        ("\"\"", "exec has no apiVersion"),
    ] {
        let user = format!("    exec:\n      apiVersion: {version}\n      command: aws\n");
        site.write("kubeconfig", 0o600, &document(&data, &user, ""));
        site.fetch()
            .await
            .failed(&[says, "client.authentication.k8s.io/v1beta1"]);
    }
}

/// kubectl creates contexts without a user, and then uses no credential.
#[tokio::test]
async fn a_context_without_a_user_is_named() {
    let (api, site) = healthy();
    for context in ["cluster: c", "cluster: c, user: \"\"", "cluster: c, user: null"] {
        let content = format!(
            "current-context: x\ncontexts: [{{name: x, context: {{{context}}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"{}\"}}}}]\nusers: null\n",
            api.url()
        );
        site.write("kubeconfig", 0o600, &content);
        site.fetch()
            .await
            .failed(&["the user of its context `x` does not exist"]);
    }
}

#[tokio::test]
async fn what_is_no_kubeconfig_file_is_told_without_quoting_it() {
    let (_api, site) = healthy();
    for (content, says) in [
        (
            "users:\n- name: u\n  user:\n    token: {canary: canary}\n",
            "not a kubeconfig",
        ),
        ("{canary", "not a kubeconfig"),
        ("", "no current-context"),
        ("current-context: canary-x\n", "no context `canary-x`"),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n",
            "the cluster of its context `x` does not exist",
        ),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n\
             clusters: [{name: c, cluster: {server: \"https://x\"}}]\n",
            "the user of its context `x` does not exist",
        ),
    ] {
        site.write("kubeconfig", 0o600, &content.replace("canary-x", "x"));
        site.fetch()
            .await
            .failed(&[&says.replace("canary-x", "x"), "kubeconfig"]);
    }
    let settings = config::Kubernetes {
        context: Some("elsewhere".to_owned()),
        ..site.settings()
    };
    let source = source::of_kubernetes(&settings, "T", PATIENCE, &[]);
    fetch(&*source, JOB)
        .await
        .failed(&["no context `elsewhere`", "set the key context"]);
}

#[tokio::test]
async fn a_kubeconfig_file_that_can_never_work_fails_at_once_and_is_named() {
    let (api, site) = healthy();
    let context = "contexts: [{name: x, context: {cluster: c, user: u}}]\n";
    let server = format!("clusters: [{{name: c, cluster: {{server: \"{}\"}}}}]\n", api.url());
    for content in [
        None,
        Some(String::new()),
        Some("kind: Config\n".to_owned()),
        Some(format!("{context}{server}")),
        Some(format!("current-context: \"\"\n{context}{server}")),
        Some(format!("current-context: y\n{context}{server}")),
        Some(format!("current-context: x\n{context}{server}")),
        Some("{".to_owned()),
        Some("[]".to_owned()),
    ] {
        let path = site.path("kubeconfig");
        match &content {
            Some(content) => drop(site.write("kubeconfig", 0o600, content)),
            None => fs::remove_file(&path).unwrap(),
        }
        // One day: waiting for it would hang the test.
        let fetch = site.fetch_within(Duration::from_secs(86400));
        let fetched = tokio::time::timeout(Duration::from_secs(60), fetch).await;
        let fetched = fetched.unwrap_or_else(|_| panic!("it is retried: {content:?}"));
        fetched.failed(&[path.to_str().unwrap()]);
        assert_eq!(
            fetched.summary,
            "the site's access to the Kubernetes API server that has its Workflow is not set up correctly"
        );
    }
    assert!(api.asked("").is_empty());
}

#[tokio::test]
async fn files_that_others_can_change_or_read_secrets_in_are_refused() {
    let (api, site) = healthy();
    let mode = |name: &str, mode: u32| fs::set_permissions(site.path(name), fs::Permissions::from_mode(mode)).unwrap();
    for bad in [0o644, 0o640, 0o620, 0o602] {
        mode("kubeconfig", bad);
        site.fetch().await.failed(&["kubeconfig", "was refused", "chmod 0600"]);
    }
    // Others may read, but not change, a file without a secret.
    site.write("token", 0o600, BEARER);
    site.configure(&api, json!({"tokenFile": "token"}));
    mode("kubeconfig", 0o644);
    site.fetch().await.has_token(TOKEN);
    mode("kubeconfig", 0o646);
    site.fetch().await.failed(&["kubeconfig", "was refused"]);
    mode("kubeconfig", 0o644);
    mode("token", 0o644);
    site.fetch().await.failed(&["tokenFile", "was refused", "chmod 0600"]);
    mode("token", 0o600);
    mode("", 0o777);
    site.fetch()
        .await
        .failed(&["others can write to the directory", "chmod go-w"]);
    mode("", 0o700);

    site.write("ca.pem", 0o666, &api.authority.pem());
    site.configure_with(
        json!({"server": api.url(), "certificate-authority": "ca.pem"}),
        json!({"token": BEARER}),
    );
    site.fetch().await.failed(&["certificate-authority", "was refused"]);

    fs::remove_file(site.path("kubeconfig")).unwrap();
    site.fetch()
        .await
        .failed(&["kubeconfig", "could not be read", "create it or correct its path"]);
    nix::unistd::mkfifo(&site.path("kubeconfig"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    site.fetch().await.failed(&["not a regular file"]);
}
