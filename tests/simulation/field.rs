// SPDX-License-Identifier: MIT OR Apache-2.0

//! Field reports: names that are numbers, configuration in several files, files that arrive late.

use std::{fs, path::PathBuf};

use crate::support::{
    names::{BOB, Place},
    plugins::{PRINT, Site, jwt, matching, me},
    simulator::Instance,
};
use serde_json::{Value, json};

/// Waits until the log contains a line with this text.
fn logged(instance: &mut Instance, text: &str) {
    instance.ok("wait-log", json!({"text": text}));
}

/// Returns the lines of the log that contain this text.
fn lines(instance: &mut Instance, text: &str) -> Vec<String> {
    let lines = instance.dmesg().into_iter();
    lines.filter(|line| line.contains(text)).collect()
}

/// Returns whether a job of the current user receives the token of a rule with this condition.
fn gets_token(place: &Place, instance: &mut Instance, condition: &str, value: Value) -> bool {
    let token = jwt(json!({}));
    let mut rule = place.site.file_rule("token", &token);
    rule[condition] = value;
    place.reload(instance, json!({"rule": [rule]}));
    let job = instance.run(
        &["sh", "-c", "printenv DW_WORKFLOW_TOKEN || echo none"],
        matching("token"),
    );
    match instance.stdout(&job).trim_end() {
        "none" => false,
        printed => {
            assert_eq!(printed, token);
            true
        }
    }
}

/// Names that `useradd --badname` and corporate directories allow.
#[needs(munged)]
#[test]
fn a_string_of_digits_is_a_name() {
    let place = Place::new();
    let mut instance = place.instance(json!({}));
    let uid = me();
    for (user, group, condition, value, expected) in [
        // The user with that name, not the user with that uid.
        ("12345", "staff", "user", json!("12345"), true),
        ("alice", "staff", "user", json!(uid.to_string()), false),
        ("alice", "staff", "user", json!(uid), true),
        ("alice", "777", "group", json!("777"), true),
        ("alice", "staff", "group", json!("5000"), false),
        ("alice", "staff", "group", json!(5000), true),
        // Other unusual names.
        ("alice@EXAMPLE.ORG", "staff", "user", json!("alice@EXAMPLE.ORG"), true),
        ("EXAMPLE\\alice", "staff", "user", json!("EXAMPLE\\alice"), true),
        ("Alice", "staff", "user", json!("alice"), false),
    ] {
        // Another user has the number as a name, or the name as a number.
        place.are(format!(
            "user {user} {uid} 100\nuser {uid} {BOB} 100\nuser bob 12345 100\n\
             group users 100\ngroup {group} 5000 {user}\ngroup 5000 6000 bob\n"
        ));
        let gets = gets_token(&place, &mut instance, condition, value.clone());
        assert_eq!(gets, expected, "{user} in {group}: {condition} = {value}");
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_name_of_digits_that_nobody_has_is_logged_once() {
    let place = Place::new();
    let uid = me().to_string();
    place.are(format!("user {uid} {BOB} 100\ngroup 5000 6000 bob\ngroup users 100\n"));
    let rule = |condition: &str, value: Value| json!({"attribute": "system.token", condition: value, "source": "file", "path": "/nonexistent"});
    let rules = [
        rule("user", json!("777")),
        rule("group", json!("778")),
        rule("user", json!(uid)),
        rule("user", json!(779)),
    ];
    let project = json!([{"name": "hydro", "users": ["bob", "780"], "groups": ["5000"]}]);
    let mut instance = place.instance(json!({"rule": rules, "project": project}));
    let expected = [
        ("workflow-token.project[0].users[1]", "user", "780"),
        ("workflow-token.rule[0].user", "user", "777"),
        ("workflow-token.rule[1].group", "group", "778"),
    ];
    for (key, kind, name) in expected {
        let text = format!("{key}: no {kind} has the name \"{name}\". Write {name} without quotes");
        logged(&mut instance, &text);
    }
    assert_eq!(lines(&mut instance, "has the name").len(), expected.len());
    // The first line about a configuration without such names proves that no more lines follow.
    place.reload(&mut instance, json!({"rule": [rule("user", json!("781"))]}));
    logged(&mut instance, "no user has the name \"781\"");
    assert_eq!(lines(&mut instance, "has the name").len(), expected.len() + 1);
    instance.shutdown();
}

/// Creates a directory of configuration files.
fn directory(site: &Site) -> PathBuf {
    let directory = site.at("conf.d");
    fs::create_dir(&directory).unwrap();
    directory
}

fn write(directory: &std::path::Path, name: &str, config: &Value) {
    fs::write(directory.join(name), toml::to_string(config).unwrap()).unwrap();
}

#[needs(munged)]
#[test]
fn rules_in_two_files_are_reported_since_flux_takes_those_of_the_last_one() {
    let site = Site::new();
    let directory = directory(&site);
    let (one, other) = (jwt(json!({})), jwt(json!({"iat": 1})));
    let mut first = site.config(json!({"rule": [site.file_rule("one", &one)]}));
    first["job-manager"] = json!({"plugins": [{"load": site.jobtap()}]});
    write(&directory, "10-site.toml", &first);
    let second = json!({"workflow-token": {"rule": [site.file_rule("other", &other)]}});
    write(&directory, "20-other.toml", &second);
    let (shell, conf) = (
        site.path("shell/workflow-token.so"),
        json!({"munge-socket": site.munged.socket()}),
    );
    let mut instance = Instance::start(
        &site.statedir(),
        &[
            "--config",
            directory.to_str().unwrap(),
            "--shell-plugin",
            &shell,
            "--shell-conf",
            &conf.to_string(),
        ],
    );
    let at = |name: &str| directory.join(name).display().to_string();
    let text = format!(
        "workflow-token.rule: the array in {} replaces the one in {}, because Flux merges tables but not arrays. Write all",
        at("20-other.toml"),
        at("10-site.toml")
    );
    logged(&mut instance, &text);
    let job = instance.run(PRINT, matching("other"));
    assert_eq!(instance.stdout(&job).trim_end(), other);

    // In one file, all rules are in force and nothing is reported. The warning of a later configuration would follow
    // such a report.
    let mut all = first.clone();
    all["workflow-token"]["rule"] = json!([
        site.file_rule("one", &one),
        site.file_rule("other", &other),
        {"attribute": "system.never", "user": "782", "source": "file", "path": "/nonexistent"},
    ]);
    write(&directory, "10-site.toml", &all);
    write(
        &directory,
        "20-other.toml",
        &json!({"workflow-token": {"timeout": "50s"}}),
    );
    instance.ok("config-reload", json!({"path": directory}));
    logged(&mut instance, "no user has the name \"782\"");
    for (name, token) in [("one", &one), ("other", &other)] {
        let job = instance.run(PRINT, matching(name));
        assert_eq!(instance.stdout(&job).trim_end(), token);
    }
    assert_eq!(lines(&mut instance, "the array in").len(), 1);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_file_that_is_written_after_the_job_has_started_is_waited_for() {
    let site = Site::new();
    let token = jwt(json!({}));
    let rule = |wait: Option<&str>| {
        let mut rule = json!({"attribute": "system.late", "source": "file", "path": site.path("{jobid.f58plain}.jwt")});
        if let Some(wait) = wait {
            rule["wait"] = json!(wait);
        }
        json!({"rule": [rule]})
    };
    let mut instance = site.instance(rule(Some("30s")));
    for _ in 0..3 {
        let job = instance.submit(PRINT, matching("late"));
        // The site's prolog begins together with the plugin's.
        instance.wait(&job, "prolog-start");
        let new = site.write("new", 0o600, &token);
        fs::rename(new, site.at(&format!("{}.jwt", job.replace('ƒ', "f")))).unwrap();
        assert_eq!(instance.wait(&job, "finish")["context"]["status"], 0);
        instance.wait(&job, "clean");
        assert_eq!(instance.stdout(&job).trim_end(), token);
    }
    // A file that does not arrive fails the job at the end of the wait, or at once.
    for (wait, says) in [
        (Some("30ms"), "30 ms after the job requested it"),
        (None, "set the key wait if it is created later"),
    ] {
        let path = site.configure(rule(wait));
        instance.ok("config-reload", json!({"path": path}));
        let job = instance.submit(PRINT, matching("late"));
        assert!(instance.undelivered(&job).contains("its file does not exist"));
        let cause = instance.cause(&job);
        assert!(cause.contains(".jwt: ") && cause.contains(says), "{cause}");
    }
    instance.shutdown();
}
