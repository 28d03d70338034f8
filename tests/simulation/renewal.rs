// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tokens that are renewed while their job runs, and jobs with several tokens.

use std::{fs, process::Command};

use crate::support::{
    plugins::{Site, jwt, matching, until},
    search::Search,
    simulator::built,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// Prints its tokens, and later the new tokens from its files.
const FOLLOW: &[&str] = &[
    "sh",
    "-c",
    r#"echo "$DW_WORKFLOW_TOKEN"
    while [ "$(cat "$DW_WORKFLOW_TOKEN_FILE")" = "$DW_WORKFLOW_TOKEN" ]; do sleep 0.05; done
    cat "$DW_WORKFLOW_TOKEN_FILE""#,
];

/// Returns a token that must be renewed within about a second, and one that
/// must not.
fn tokens() -> (String, String) {
    let soon = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        + 8;
    (jwt(json!({"exp": soon})), jwt(json!({})))
}

/// Returns a rule with a file whose token is renewed as early as possible.
fn renewed(site: &Site, token: &str) -> Value {
    let mut rule = site.file_rule("dw", token);
    rule["renew"] = json!(0.1);
    rule
}

#[needs(munged)]
#[test]
fn a_job_reads_the_next_token_from_its_file() {
    let site = Site::new();
    let (first, next) = tokens();
    let mut instance = site.instance(json!({"rule": [renewed(&site, &first)]}));
    let job = instance.submit(FOLLOW, matching("dw"));
    instance.wait(&job, "start");
    site.write("dw.secret", 0o600, &next);
    instance.wait(&job, "clean");
    assert_eq!(instance.stdout(&job), format!("{first}\n{next}"));
    assert_eq!((instance.counter("delivered"), instance.counter("started")), (1, 1));
    assert!(instance.counter("renewed") >= 1 && instance.counter("renewing") == 0);
    let search = Search::tokens([first.as_str(), next.as_str()]);
    assert!(!search.finds(instance.dmesg().join("\n").as_bytes()));
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_is_renewed_whose_plugin_is_loaded_again_and_whose_agent_is_killed() {
    let site = Site::new();
    let (first, next) = tokens();
    let mut instance = site.instance(json!({"rule": [renewed(&site, &first)]}));
    let job = instance.submit(FOLLOW, matching("dw"));
    instance.wait(&job, "start");
    nix::sys::signal::kill(site.agent(), nix::sys::signal::Signal::SIGKILL).unwrap();
    site.reload(&mut instance);
    site.write("dw.secret", 0o600, &next);
    instance.wait(&job, "clean");
    assert_eq!(instance.stdout(&job), format!("{first}\n{next}"));
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_renewal_that_fails_is_reported_once_and_the_job_goes_on() {
    let site = Site::new();
    let (first, next) = tokens();
    let mut instance = site.instance(json!({"rule": [renewed(&site, &first)]}));
    let job = instance.submit(FOLLOW, matching("dw"));
    instance.wait(&job, "start");
    fs::remove_file(site.at("dw.secret")).unwrap();
    until("two renewals have failed", || instance.counter("renewal-failures") >= 2);
    site.write("dw.secret", 0o600, &next);
    instance.wait(&job, "clean");
    assert_eq!(instance.stdout(&job), format!("{first}\n{next}"));
    assert_eq!(instance.counter("failed"), 0);
    let lines = instance.dmesg();
    let count = |text: &str| {
        lines
            .iter()
            .filter(|line| line.contains(&job) && line.contains(text))
            .count()
    };
    assert_eq!(count("could not be renewed"), 1, "{lines:?}");
    assert_eq!(count("its workflow token was renewed"), 1, "{lines:?}");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_gets_one_token_for_each_name() {
    let site = Site::new();
    let (one, two) = (jwt(json!({"n": 1})), jwt(json!({"n": 2})));
    let unused = site.file_rule("other", jwt(json!({"n": 3})));
    let (mut main, mut storage) = (site.file_rule("dw", &one), site.file_rule("storage", &two));
    main["attribute"] = json!("system.dw");
    storage["attribute"] = json!("system.dw");
    storage["name"] = json!("storage");
    storage["variable"] = json!("STORAGE_TOKEN");
    let mut late = unused.clone();
    late["name"] = json!("storage");
    late["variable"] = json!("STORAGE_TOKEN");
    let mut instance = site.instance(json!({"rule": [storage, late, main, unused]}));
    let print = &[
        "sh",
        "-c",
        r#"echo "$DW_WORKFLOW_TOKEN $STORAGE_TOKEN"; cat "$STORAGE_TOKEN_FILE""#,
    ];
    let job = instance.run(print, matching("dw"));
    assert_eq!(instance.stdout(&job), format!("{one} {two}\n{two}"));
    let job = instance.run(&["sh", "-c", "echo ${DW_WORKFLOW_TOKEN-none}"], matching("nothing"));
    assert_eq!(instance.stdout(&job), "none\n");
    // If one of the tokens cannot be obtained, the job does not start.
    fs::remove_file(site.at("storage.secret")).unwrap();
    let job = instance.submit(&["true"], matching("dw"));
    instance.undelivered(&job);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_user_requests_a_token_within_what_its_rule_allows() {
    let site = Site::new();
    let keys = site.path("keys");
    let made = Command::new(built("flux-workflow-token"))
        .args(["keygen", &keys])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut instance = site.instance(json!({
        "issuer": {"keys": keys, "name": "https://hpc", "audience": "main"},
        "rule": [{"source": "issuer", "workspace": "w", "audiences": ["archive"], "max-lifetime": "1h"}],
    }));
    let mut claims = |request: Value| {
        let more = json!({"attributes": {"system": {"token": {"default": request}}}});
        let job = instance.run(&["sh", "-c", "printf %s \"$DW_WORKFLOW_TOKEN\""], more);
        let token = instance.stdout(&job);
        let claims = token.split('.').nth(1).expect("a JWT");
        let claims = URL_SAFE_NO_PAD.decode(claims).unwrap();
        serde_json::from_slice::<Value>(&claims).unwrap()
    };
    let lifetime = |claims: &Value| claims["exp"].as_f64().unwrap() - claims["iat"].as_f64().unwrap();
    let default = claims(json!({}));
    assert_eq!((&default["aud"], lifetime(&default)), (&json!("main"), 3600.0));
    let other = claims(json!({"audience": "archive", "lifetime": "10m"}));
    assert_eq!((&other["aud"], lifetime(&other)), (&json!("archive"), 600.0));
    for (request, says) in [
        (
            json!({"default": {"audience": "bank"}}),
            "`bank` is not allowed: choose from main, archive",
        ),
        (json!({"default": {"lifetime": "2h"}}), "must be at most 3600 s"),
        (json!({"default": {"scope": "all"}}), "token.default.scope"),
        (
            json!({"other": {}}),
            "token.other: this job gets no such token, only default",
        ),
        (json!({"default": {"audiance": "main"}}), "audiance"),
    ] {
        let error = instance.error(
            "submit",
            json!({"command": ["true"], "attributes": {"system": {"token": request}}}),
        );
        assert!(error.contains(says), "{error}");
    }
    instance.shutdown();
}
