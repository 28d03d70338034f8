// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tokens that cannot last as long as their jobs: users are warned or their jobs rejected, at submission if this is
//! known then.

use std::process::Command;

use crate::support::{
    names::{Asking, BOB},
    plugins::{PRINT, Site, jwt, matching, me},
    simulator::{Instance, built},
};
use serde_json::{Value, json};

/// The severity of an exception that does not end its job.
const NOTICE: i64 = 4;

/// Returns a table with a rule of the source `issuer` whose tokens last an hour and are not renewed.
fn once(site: &Site, on_shortfall: Option<&str>) -> Value {
    let keys = site.path("keys");
    if !site.at("keys").exists() {
        let made = Command::new(built("flux-workflow-token"))
            .args(["keygen", &keys])
            .output();
        assert!(made.unwrap().status.success());
    }
    let mut rule = json!({
        "attribute": "system.mint", "source": "issuer", "workspace": "w", "max-lifetime": "1h", "renew": false,
    });
    if let Some(choice) = on_shortfall {
        rule["on-shortfall"] = json!(choice);
    }
    json!({"issuer": {"keys": keys, "name": "https://hpc.example.org", "audience": "service"}, "rule": [rule]})
}

fn minting(system: Value) -> Value {
    let mut all = matching("mint");
    let members = system.as_object().unwrap().clone();
    all["attributes"]["system"].as_object_mut().unwrap().extend(members);
    all
}

fn reconfigure(site: &Site, instance: &mut Instance, table: Value) {
    instance.ok("config-reload", json!({"config": site.config(table)}));
}

/// Returns the lines shown to the user of a job that ran.
#[track_caller]
fn notices(instance: &mut Instance, job: &str) -> Vec<String> {
    let exceptions = instance.contexts(job, "exception");
    let of_one = |exception: Value| {
        assert_eq!(
            (&exception["type"], &exception["severity"]),
            (&json!("workflow-token"), &json!(NOTICE))
        );
        exception["note"].as_str().unwrap().to_owned()
    };
    exceptions.into_iter().map(of_one).collect()
}

#[needs(munged)]
#[test]
fn a_job_that_may_outlast_its_token_is_rejected_at_submission_if_its_rule_says_so() {
    let site = Site::new();
    let mut instance = site.instance(once(&site, Some("reject")));
    for (duration, says) in [
        (json!(7200), "may run 2h"),
        (json!(3601), "may run 3601s"),
        (json!(0), "has no time limit"),
    ] {
        let mut submission = minting(json!({"duration": duration}));
        submission["command"] = json!(["true"]);
        let error = instance.error("submit", submission);
        let expected = format!(
            "token.default: it lasts 1h and is not renewed, but this job {says}: set a time limit of at most 1h"
        );
        assert_eq!(error, expected);
    }
    let job = instance.run(PRINT, minting(json!({"duration": 3600})));
    assert!(!instance.stdout(&job).is_empty());
    assert_eq!(notices(&mut instance, &job), [""; 0]);
    let other = instance.run(&["true"], matching("other"));
    assert_eq!(notices(&mut instance, &other), [""; 0]);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn an_update_of_the_time_limit_is_rejected_as_well() {
    let site = Site::new();
    let mut instance = site.instance(once(&site, Some("reject")));
    let mut submission = minting(json!({"duration": 600}));
    submission["userid"] = json!(BOB);
    submission["urgency"] = json!(0);
    let job = instance.submit(&["true"], submission);
    let to = |seconds: f64| json!({"attributes.system.duration": seconds});
    let error = instance.update(&job, BOB, to(7200.0)).unwrap_err();
    assert!(error.contains("this job may run 2h"), "{error}");
    assert_eq!(instance.update(&job, BOB, to(1800.0)), Ok(()));
    // The instance owner is not restricted, and other updates are not blocked.
    assert_eq!(instance.update(&job, me(), to(7200.0)), Ok(()));
    let queue = json!({"attributes.system.queue": "q"});
    assert_eq!(instance.update(&job, me(), queue), Ok(()));
    instance.cancel(&job);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn by_default_the_user_is_warned_once_and_the_job_runs() {
    let site = Site::new();
    let mut instance = site.instance(once(&site, None));
    let job = instance.run(PRINT, minting(json!({"duration": 7200})));
    assert!(!instance.stdout(&job).is_empty());
    let expected =
        "token.default: it lasts 1h and is not renewed, but this job may run 2h: set a time limit of at most 1h";
    assert_eq!(notices(&mut instance, &job), [expected]);
    // Before any other event.
    let events = instance.events(&job);
    let at = |name: &str| events.iter().position(|event| event == name);
    assert!(at("exception") < at("alloc"), "{events:?}");

    let request = json!({"duration": 1800, "token": {"default": {"lifetime": "10m"}}});
    let job = instance.run(PRINT, minting(request));
    let lines = notices(&mut instance, &job);
    assert!(lines.len() == 1 && lines[0].contains("it lasts 10m and"), "{lines:?}");
    assert!(
        lines[0].ends_with("of at most 10m, or request a longer lifetime"),
        "{lines:?}"
    );

    reconfigure(&site, &mut instance, once(&site, Some("ignore")));
    let job = instance.run(PRINT, minting(json!({"duration": 7200})));
    assert_eq!(notices(&mut instance, &job), [""; 0]);
    instance.shutdown();
}

/// Returns the rule of a file whose token lasts ten minutes.
fn ten_minutes(site: &Site, more: Value) -> Value {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let mut rule = site.file_rule("dw", jwt(json!({"exp": now.as_secs() + 630})));
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"rule": [rule]})
}

#[needs(munged)]
#[test]
fn a_token_with_a_lifetime_from_its_source_is_compared_when_the_job_starts() {
    let site = Site::new();
    let job_of = |seconds: u32| json!({"attributes": {"system": {"dw": 1, "duration": seconds}}});
    let mut instance = site.instance(ten_minutes(&site, json!({"renew": false})));
    let job = instance.run(PRINT, job_of(1800));
    let expected =
        "token.default: it lasts 10m and is not renewed, but this job may run 30m: set a time limit of at most 10m";
    assert_eq!(notices(&mut instance, &job), [expected]);
    let job = instance.run(PRINT, job_of(300));
    assert_eq!(notices(&mut instance, &job), [""; 0]);

    reconfigure(&site, &mut instance, ten_minutes(&site, json!({})));
    let job = instance.run(PRINT, job_of(1800));
    assert_eq!(notices(&mut instance, &job), [""; 0]);

    reconfigure(
        &site,
        &mut instance,
        ten_minutes(&site, json!({"renew": false, "on-shortfall": "reject"})),
    );
    let job = instance.run(PRINT, job_of(300));
    assert_eq!(notices(&mut instance, &job), [""; 0]);
    let job = instance.submit(PRINT, job_of(1800));
    let note = instance.undelivered(&job);
    assert!(note.contains(expected) && note.contains("[token-shortfall]"), "{note}");
    instance.shutdown();
}
