// SPDX-License-Identifier: MIT OR Apache-2.0

//! Deliveries whose source is a Workflow, on the simulator: the plugin runs in a broker, which reaps its children and
//! has a thread that must not block.

#[path = "../../source/tests/support/api.rs"]
mod api;

use crate::support::{
    plugins::{PRINT, Site, decimal, jwt, line_of, matching, me, until},
    search::Search,
    simulator::Instance,
};
use api::{Api, Fault};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

/// Returns a rule for rabbit jobs. A command provides this credential for its kubeconfig file.
fn rule(site: &Site, api: &Api, bearer: &str) -> Value {
    api.accept(bearer);
    let credential = json!({
        "kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": {"token": bearer},
    });
    let credential = site.write("credential", 0o600, credential.to_string());
    let kubeconfig = json!({
        "current-context": "rabbits",
        "contexts": [{"name": "rabbits", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {
            "server": api.url(), "certificate-authority-data": STANDARD.encode(api.authority.pem()),
        }}],
        "users": [{"name": "u", "user": {"exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
            "command": "/bin/cat", "args": [credential],
        }}}],
    });
    let kubeconfig = site.write("kubeconfig", 0o600, kubeconfig.to_string());
    json!({"attribute": "system.dw", "source": "kubernetes", "kubeconfig": kubeconfig})
}

/// Serves the Workflow of a job, in the state in which the job may start.
fn workflow(api: &Api, job: &str, token: &str) {
    let id = decimal(job);
    api.secret(&format!("nnf/token-{id}"), json!({"token": STANDARD.encode(token)}));
    api.workflow(
        &format!("fluxjob-{id}"),
        me(),
        json!({
            "state": "PreRun", "ready": true, "status": "Completed", "env": {"DW_JOB_x": format!("/mnt/{id}")},
            "workflowToken": {"secretName": format!("token-{id}"), "secretNamespace": "nnf"},
        }),
    );
}

/// Searches for tokens in all stored data, in the log, and in arguments.
#[track_caller]
fn tells_nothing(site: &Site, instance: &mut Instance, tokens: &[&str]) {
    let search = Search::tokens(tokens.iter().copied());
    let said = instance.dmesg().join("\n");
    assert!(!search.finds(said.as_bytes()), "{said}");
    assert_eq!(search.files(&site.statedir()), [""; 0].map(std::path::PathBuf::from));
    assert_eq!(search.processes(), [""; 0]);
}

#[needs(munged)]
#[test]
fn a_rabbit_job_gets_the_variables_and_the_token_of_its_workflow() {
    let site = Site::new();
    let (api, bearer) = (Api::start(), jwt(json!({})));
    let mut instance = site.instance(json!({"rule": [rule(&site, &api, &bearer)]}));
    // The output of a job is stored.
    let got = site.path("got");
    let script = format!("umask 077; echo $DW_JOB_x $DW_WORKFLOW_TOKEN >{got}");
    for _ in 0..2 {
        let token = jwt(json!({}));
        let job = instance.submit(&["sh", "-c", &script], matching("dw"));
        // As with flux-coral2, the job exists first, and the plugin waits for the Workflow.
        workflow(&api, &job, &token);
        instance.wait(&job, "clean");
        let mount = format!("/mnt/{}", decimal(&job));
        assert_eq!(line_of(&site.at("got")), format!("{mount} {token}"));
        tells_nothing(&site, &mut instance, &[&token, &bearer]);
    }
    assert_eq!(api.accepted(), 1, "the second job opened its own connection");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_whose_workflow_has_no_token_does_not_start() {
    let site = Site::new();
    let (api, bearer) = (Api::start(), jwt(json!({})));
    let mut instance = site.instance(json!({"rule": [rule(&site, &api, &bearer)]}));

    let job = instance.submit(PRINT, matching("dw"));
    workflow(&api, &job, "canary is no JWT");
    let note = instance.undelivered(&job);
    assert!(note.contains("the token that its source gave was refused"), "{note}");

    api.deny("get secrets");
    let job = instance.submit(PRINT, matching("dw"));
    let token = jwt(json!({}));
    workflow(&api, &job, &token);
    let note = instance.undelivered(&job);
    assert!(note.contains("access to the Kubernetes API server"), "{note}");
    let cause = instance.cause(&job);
    assert!(cause.contains("may not get secrets in the namespace nnf"), "{cause}");
    assert!(cause.contains(&format!("fluxjob-{}", decimal(&job))), "{cause}");
    assert!(
        !instance.dmesg().join("\n").contains("canary"),
        "{:?}",
        instance.dmesg()
    );
    tells_nothing(&site, &mut instance, &[&token, &bearer]);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_that_is_canceled_while_the_api_server_hangs_ends_and_so_does_the_request() {
    let site = Site::new();
    let (api, bearer) = (Api::start(), jwt(json!({})));
    api.fail("/apis/", 1000, Fault::Hang);
    let mut instance = site.instance(json!({"rule": [rule(&site, &api, &bearer)]}));
    let job = instance.submit(PRINT, matching("dw"));
    until("the API server is asked", || !api.asked("").is_empty());
    instance.ok("cancel", json!({"jobid": job}));
    instance.wait(&job, "clean");
    assert!(!instance.events(&job).contains(&"start".to_owned()));
    until("the connection is closed", || api.open() == 0);

    // It does not delay the removal of the plugin, either.
    let before = api.asked("").len();
    instance.submit(PRINT, matching("dw"));
    until("the API server is asked", || api.asked("").len() > before);
    instance.ok("remove", json!({"name": "workflow-token.so"}));
    until("the connection is closed", || api.open() == 0);
    instance.kill();
}
