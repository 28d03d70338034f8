// SPDX-License-Identifier: MIT OR Apache-2.0

//! Deliveries: which token each job receives, and the fate of a job whose token cannot be obtained.

use std::fs;

use crate::support::{
    plugins::{GUEST, PLAIN, PRINT, Scheduler, Site, decimal, is_gone, jwt, line_of, matching, me, until},
    search::{Search, found},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Returns the events of a job that received its token.
fn delivered() -> Vec<&'static str> {
    let mut events = PLAIN.to_vec();
    events.splice(5..5, ["prolog-start", "prolog-finish"]);
    events
}

/// Returns the configuration of queues. The first one is the default.
fn queues(names: &[&str]) -> Value {
    let queues: Value = names.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
    json!({"queues": queues, "policy": {"jobspec": {"defaults": {"system": {"queue": names[0]}}}}})
}

#[scenario]
fn every_task_of_a_job_that_a_rule_matches_has_the_token(mut site: Site) {
    site.nodes = 3;
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", format!("{token}\n"))]}));
    let job = instance.run(
        PRINT,
        json!({"nodes": 3, "attributes": {"system": {"dw": ["#DW jobdw"]}}}),
    );
    assert_eq!(instance.stdout(&job), format!("{token}\n").repeat(3));
    assert_eq!(instance.events(&job), delivered());
    let description = json!({"description": "workflow-token"});
    assert_eq!(instance.contexts(&job, "prolog-start"), [description]);
    let finished = json!({"description": "workflow-token", "status": 0});
    assert_eq!(instance.contexts(&job, "prolog-finish"), [finished]);
    assert_eq!((instance.counter("delivered"), instance.counter("in-flight")), (1, 0));
    instance.shutdown();
}

#[scenario]
fn a_job_that_no_rule_matches_is_not_affected(mut site: Site) {
    site.flux = queues(&["batch", "debug"]);
    let rules = json!([
        site.file_rule("dw", jwt(json!({}))),
        {"queue": "debug", "source": "file", "path": site.path("dw.secret")},
    ]);
    let mut instance = site.instance(json!({"rule": rules}));
    for attributes in [
        json!({}),
        json!({"system": {"dw": null}}),
        json!({"system": {"queue": "batch"}}),
        json!({"user": {"dw": 1}}),
    ] {
        let job = instance.run(
            &["sh", "-c", "echo ${DW_WORKFLOW_TOKEN-unset}"],
            json!({"attributes": attributes}),
        );
        assert_eq!(instance.stdout(&job), "unset\n", "{attributes}");
        assert_eq!(instance.events(&job), PLAIN, "{attributes}");
        assert_eq!(instance.record(&job), None);
    }
    assert_eq!(instance.counter("started"), 0);
    instance.shutdown();
}

#[scenario]
fn an_instance_without_the_table_affects_no_job(site: Site) {
    let mut instance = site.without_jobtap(json!({}), &["--jobtap", &site.jobtap()]);
    let job = instance.run(&["true"], matching("dw"));
    assert_eq!(instance.events(&job), PLAIN);
    instance.shutdown();
}

#[scenario]
fn the_first_rule_all_of_whose_conditions_hold_wins_and_names_the_variable(mut site: Site) {
    site.flux = queues(&["batch", "q", "Q", "queue"]);
    let owner = nix::unistd::User::from_uid(me().into())
        .unwrap()
        .expect("the current user has a name");
    let group = nix::unistd::Group::from_gid(owner.gid)
        .unwrap()
        .expect("the primary group has a name");
    // Each rule delivers its own name as the secret, in a variable of that name.
    let conditions = [
        ("BOTH", json!({"attribute": "system.a", "queue": "q"})),
        (
            "OTHER_USER",
            json!({"attribute": "system.u", "user": if me() == 0 { GUEST } else { "root" }}),
        ),
        ("OTHER_UID", json!({"attribute": "system.u", "user": me() + 1})),
        ("USER", json!({"attribute": "system.u", "user": owner.name})),
        ("OTHER_GROUP", json!({"attribute": "system.g", "group": "daemon"})),
        ("OTHER_GID", json!({"attribute": "system.g", "group": 3_999_999})),
        ("GROUP", json!({"attribute": "system.g", "group": group.name})),
        ("UID", json!({"attribute": "system.n", "user": me()})),
        ("GID", json!({"attribute": "system.m", "group": owner.gid.as_raw()})),
        ("QUEUE", json!({"queue": "q"})),
        ("BANK", json!({"bank": "b"})),
        ("PROJECT", json!({"project": "p"})),
        ("NESTED", json!({"attribute": "user.deep.er"})),
        ("A", json!({"attribute": "system.a"})),
    ];
    let rules: Vec<Value> = conditions
        .into_iter()
        .map(|(name, mut rule)| {
            let path = site.write(&format!("{name}.secret"), 0o600, name);
            for (key, value) in [
                ("source", "file"),
                ("path", &path),
                ("check", "none"),
                ("variable", name),
            ] {
                rule[key] = json!(value);
            }
            rule
        })
        .collect();
    let mut instance = site.instance(json!({"rule": rules}));
    let print = ["sh", "-c", "env | grep -E '^([A-Z_]+)=\\1$' || true"];
    for (attributes, wins) in [
        (json!({"system": {"a": 0, "queue": "q"}}), "BOTH"),
        (json!({"system": {"a": 0, "queue": "Q"}}), "A"),
        (json!({"system": {"a": 0, "queue": "q", "bank": "b"}}), "BOTH"),
        (json!({"system": {"u": ""}}), "USER"),
        (json!({"system": {"g": false}}), "GROUP"),
        (json!({"system": {"n": {}}}), "UID"),
        (json!({"system": {"m": []}}), "GID"),
        (json!({"system": {"queue": "q", "bank": "b"}}), "QUEUE"),
        (json!({"system": {"bank": "b", "project": "p"}}), "BANK"),
        (json!({"system": {"project": "p"}}), "PROJECT"),
        (json!({"user": {"deep": {"er": 1}}}), "NESTED"),
        (json!({"user": {"deep": 1}, "system": {"queue": "queue"}}), ""),
    ] {
        let job = instance.run(&print, json!({"attributes": attributes}));
        let expected = match wins {
            "" => String::new(),
            name => format!("{name}={name}\n"),
        };
        assert_eq!(instance.stdout(&job), expected, "{attributes}");
        assert_eq!(instance.contexts(&job, "exception"), [json!(null); 0], "{attributes}");
    }
    instance.shutdown();
}

#[scenario]
fn a_rule_for_other_users_holds_a_job_only_until_their_names_are_known(site: Site) {
    let path = site.write("dw.secret", 0o600, jwt(json!({})));
    let rules = json!([{"attribute": "system.dw", "group": "daemon", "source": "file", "path": path}]);
    let mut instance = site.instance(json!({"rule": rules}));
    let print = ["sh", "-c", "echo ${DW_WORKFLOW_TOKEN-unset}"];
    // The agent decides for each job, because groups change.
    for count in 1..=2 {
        let job = instance.run(&print, matching("dw"));
        assert_eq!(instance.stdout(&job), "unset\n");
        assert_eq!(instance.events(&job), delivered());
        assert_eq!(instance.counter("no-rule"), count);
    }
    instance.shutdown();
}

#[scenario]
fn the_name_of_a_file_is_made_of_the_job_and_its_owner(site: Site) {
    // Another prolog holds the jobs until their files exist and the plugin is loaded again.
    let mut instance = site.without_jobtap(json!({}), &["--jobtap", &site.jobtap()]);
    instance.ok("remove", json!({"name": "workflow-token.so"}));
    instance.ok("load", site.hold());
    let names = [
        "{jobid}",
        "{jobid.f58}",
        "{jobid.f58plain}",
        "{jobid.dec}",
        "{{braces}}-{user}-{uid}-{jobid}",
    ];
    let owner = user_name(me());
    let mut jobs = Vec::new();
    let mut rules = Vec::new();
    for (n, template) in names.into_iter().enumerate() {
        let (name, token) = (format!("t{n}"), jwt(json!({})));
        let job = instance.submit(PRINT, matching(&name));
        instance.wait(&job, "prolog-start");
        let file = match n {
            0 | 1 => job.clone(),
            2 => job.replace('ƒ', "f"),
            3 => decimal(&job).to_string(),
            _ => format!("{{braces}}-{owner}-{}-{job}", me()),
        };
        site.write(&format!("{name}.{file}"), 0o600, &token);
        let path = format!(
            "{}/{name}.{template}",
            site.at("").display().to_string().trim_end_matches('/')
        );
        rules.push(json!({"attribute": format!("system.{name}"), "source": "file", "path": path}));
        jobs.push((job, token));
    }
    instance.ok("config-reload", json!({"config": site.config(json!({"rule": rules}))}));
    instance.ok("load", json!({"path": site.jobtap()}));
    instance.go();
    for ((job, token), template) in jobs.into_iter().zip(names) {
        instance.wait(&job, "clean");
        assert_eq!(instance.stdout(&job).trim_end(), token, "{template}");
    }
    instance.shutdown();
}

fn user_name(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(uid.into()).unwrap();
    user.expect("the current user has a name").name
}

#[scenario]
fn a_command_is_told_the_job_and_its_owner_and_prints_the_token(site: Site) {
    let token = jwt(json!({}));
    site.write("token", 0o600, &token);
    let script = r#"for word; do printf '%s|' "$word" >>said; done
        printf '%s|' "$FLUX_JOB_ID" "$FLUX_JOB_USERID" "$PWD" >>said; echo >>said; cat token"#;
    let rule = site.command_rule(
        "dw",
        script,
        &["{jobid}", "{jobid.dec}", "{user}", "{uid}", "a b", "$HOME;{{}}"],
    );
    let mut instance = site.instance(json!({"rule": [rule]}));
    let job = instance.run(PRINT, matching("dw"));
    assert_eq!(instance.stdout(&job).trim_end(), token);
    let (id, owner, uid) = (decimal(&job), user_name(me()), me());
    let said = line_of(&site.at("said"));
    assert!(
        said.starts_with(&format!("{job}|{id}|{owner}|{uid}|a b|$HOME;{{}}|{job}|{uid}|")),
        "{said}"
    );
    instance.shutdown();
}

/// A source without a usable token: its name, its rule, the text for the user, and a part of the text for the
/// operator.
type Unusable = (&'static str, Value, &'static str, String);

/// Returns rules with unusable files. `unsecured`, `expired` and `early` are tokens.
fn unusable_files(site: &Site, canary: &str, [unsecured, expired, early]: [&str; 3]) -> Vec<Unusable> {
    let file = |name: &str, content: &[u8]| site.file_rule(name, content);
    let after = |end: &[u8]| [canary.as_bytes(), end].concat();
    let missing = json!({"attribute": "system.missing", "source": "file", "path": site.path("missing")});
    let readable = file("readable", canary.as_bytes());
    site.write("readable.secret", 0o644, canary);
    let fifo = json!({"attribute": "system.fifo", "source": "file", "path": site.path("fifo")});
    nix::unistd::mkfifo(&site.at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let huge = file("huge", &after(&[]));
    fs::OpenOptions::new()
        .write(true)
        .open(site.at("huge.secret"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    vec![
        ("missing", missing, "its file does not exist", site.path("missing")),
        ("readable", readable, "its file was refused", "mode 0644".to_owned()),
        ("fifo", fifo, "its file was refused", "not a regular file".to_owned()),
        ("huge", huge, "no usable value", "longer than".to_owned()),
        ("nul", file("nul", &after(b"\0x")), "no usable value", "NUL".to_owned()),
        (
            "lines",
            file("lines", &after(b"\n\n")),
            "no usable value",
            "more than one line".to_owned(),
        ),
        (
            "latin",
            file("latin", &after(b"\xff")),
            "no usable value",
            "not UTF-8".to_owned(),
        ),
        (
            "empty",
            file("empty", b"\n"),
            "no usable value",
            "it is empty".to_owned(),
        ),
        (
            "opaque",
            file("opaque", &canary.as_bytes()[30..]),
            "was refused",
            "check = \"none\"".to_owned(),
        ),
        (
            "expired",
            file("expired", expired.as_bytes()),
            "the token expired",
            "2001-09-09".to_owned(),
        ),
        (
            "early",
            file("early", early.as_bytes()),
            "not valid before",
            "rule 10".to_owned(),
        ),
        (
            "unsecured",
            file("unsecured", unsecured.as_bytes()),
            "was refused",
            "rule 11".to_owned(),
        ),
    ]
}

/// Returns rules with commands that print no usable token. `canary` is the content of the file of that name.
fn unusable_commands(site: &Site) -> Vec<Unusable> {
    let command = |name: &str, script: &str| site.command_rule(name, script, &[]);
    let mut slow = command("slow", "cat canary; sleep 1000 & echo $! >grandchild; wait");
    slow["timeout"] = json!("500ms");
    let absent = json!({"attribute": "system.absent", "source": "command", "command": [site.path("absent")]});
    vec![
        (
            "failing",
            command("failing", "cat canary; exit 3"),
            "exit code 3",
            "/bin/sh".to_owned(),
        ),
        (
            "killed",
            command("killed", "cat canary; kill -TERM $$"),
            "signal 15",
            "/bin/sh".to_owned(),
        ),
        (
            "slow",
            slow,
            "took longer than 500 ms",
            "killed with all processes that it had started".to_owned(),
        ),
        (
            "flood",
            command("flood", "cat canary; exec cat /dev/zero"),
            "no usable value",
            "more than".to_owned(),
        ),
        (
            "silent",
            command("silent", ""),
            "no usable value",
            "it is empty".to_owned(),
        ),
        (
            "nul2",
            command("nul2", "cat canary; printf '\\0'"),
            "no usable value",
            "NUL".to_owned(),
        ),
        ("absent", absent, "could not be started", "absent".to_owned()),
    ]
}

#[scenario]
fn a_source_without_a_usable_token_fails_the_job_with_one_exception_and_logs_the_cause(site: Site) {
    let canary = jwt(json!({}));
    site.write("canary", 0o600, &canary);
    let unsecured = format!("eyJhbGciOiJub25lIn0.{}.", canary.split('.').nth(1).unwrap());
    let expired = jwt(json!({"exp": 1_000_000_000}));
    let early = jwt(json!({"nbf": 9_000_000_000_u64}));
    let mut cases = unusable_files(&site, &canary, [&unsecured, &expired, &early]);
    cases.extend(unusable_commands(&site));
    let rules: Vec<&Value> = cases.iter().map(|(_, rule, ..)| rule).collect();
    let mut instance = site.instance(json!({"rule": rules}));
    let jobs: Vec<String> = cases
        .iter()
        .map(|(name, ..)| instance.submit(&["touch", &site.path("started")], matching(name)))
        .collect();
    for ((name, _, says, cause), job) in cases.iter().zip(&jobs) {
        instance.assert_fails(name, job, says, cause, &canary);
    }
    assert!(!site.at("started").exists());
    let grandchild = line_of(&site.at("grandchild"));
    until("the child of the slow command has ended", || is_gone(&grandchild));
    assert_eq!(
        (instance.counter("failed"), instance.counter("in-flight")),
        (cases.len() as u64, 0)
    );
    let search = Search::tokens([&canary, &expired, &early].map(String::as_str));
    assert_eq!(found(&site, &mut instance, &jobs, &search), [""; 0]);
    instance.shutdown();
}

#[scenario]
fn a_secret_that_is_not_a_jwt_is_accepted_if_the_rule_permits_it(site: Site) {
    let mut rule = site.file_rule("dw", "an opaque: sécret\r\n");
    rule["check"] = json!("none");
    let mut instance = site.instance(json!({"rule": [rule]}));
    assert_eq!(instance.token("dw"), "an opaque: sécret");
    instance.shutdown();
}

#[scenario]
fn standard_error_of_a_command_is_logged_without_its_secrets(site: Site) {
    let (token, other, opaque) = (jwt(json!({})), jwt(json!({})), "hunter two");
    site.write("token", 0o600, &token);
    site.write("other", 0o600, &other);
    let script = |end: &str| format!("cat token; echo \"$1 has $(cat other), gave $(cat token), ends\" >&2; {end}");
    let opaque_script = format!("echo {opaque}; echo the word is {opaque}, ends >&2");
    let mut plain = site.command_rule("opaque", &opaque_script, &[]);
    plain["check"] = json!("none");
    let mut plain_failing = site.command_rule("opaque-failing", &format!("{opaque_script}; exit 1"), &[]);
    plain_failing["check"] = json!("none");
    let mut rules = json!([
        site.command_rule("good", &script("exit 0"), &["good"]),
        site.command_rule("bad", &script("exit 1"), &["bad"]),
        plain,
        plain_failing,
    ]);
    for rule in rules.as_array_mut().unwrap() {
        rule["log-stderr"] = json!(true);
    }
    let mut instance = site.instance(json!({"rule": rules}));
    assert_eq!(instance.token("good"), token);
    assert_eq!(instance.token("opaque"), opaque);
    for name in ["bad", "opaque-failing"] {
        let job = instance.submit(&["true"], matching(name));
        assert!(instance.undelivered(&job).contains("exit code 1"));
    }
    let log = instance.dmesg().join("\n");
    for line in [
        "good has [redacted], gave [redacted], ends",
        "bad has [redacted], gave [redacted], ends",
    ] {
        assert!(log.contains(line), "{log}");
    }
    assert_eq!(log.matches("the word is [redacted], ends").count(), 2, "{log}");
    for secret in [&token, &other]
        .into_iter()
        .flat_map(|token| token.split('.').skip(1))
        .chain([opaque])
    {
        assert!(!log.contains(secret), "{log}");
    }
    instance.shutdown();
}

#[scenario]
fn a_delivery_waits_for_munged_to_start(mut site: Site) {
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    let mut job = String::new();
    site.restart_munged_late(|| job = instance.submit(PRINT, matching("dw")));
    instance.wait(&job, "clean");
    assert_eq!(instance.stdout(&job).trim_end(), token);
    instance.shutdown();
}

#[scenario]
fn a_delivery_survives_a_kill_of_munged(mut site: Site) {
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    site.munged.signal(Signal::SIGSTOP);
    let job = instance.submit(PRINT, matching("dw"));
    until("munged is asked", || site.waiting_for_munged() > 0);
    site.munged.restart();
    instance.wait(&job, "clean");
    assert_eq!(instance.stdout(&job).trim_end(), token);
    instance.shutdown();
}

#[scenario]
fn an_absent_munged_fails_only_its_job(mut site: Site) {
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"timeout": "1s", "rule": [site.file_rule("dw", &token)]}));
    site.kill_munged();
    let job = instance.submit(&["true"], matching("dw"));
    instance.assert_fails(
        "absent",
        &job,
        "it took longer than 1 s",
        "munged was asked to seal",
        &token,
    );
    site.munged.restart();
    assert_eq!(instance.token("dw"), token);
    instance.shutdown();
}

#[scenario]
fn while_munged_is_stopped_only_jobs_that_need_it_wait(mut site: Site) {
    site.nodes = 2;
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"timeout": "5s", "rule": [site.file_rule("dw", &token)]}));
    site.munged.signal(Signal::SIGSTOP);
    let jobs: Vec<String> = (0..20).map(|_| instance.submit(&["true"], matching("dw"))).collect();
    let canceled = instance.submit(&["true"], matching("dw"));
    until("munged is asked", || site.waiting_for_munged() > 0);

    let other = instance.run(&["echo", "done"], json!({"nodes": 2}));
    assert_eq!(instance.stdout(&other), "done\ndone\n");
    assert_eq!(instance.events(&other), PLAIN);
    for command in ["list", "dmesg", "kvs-list"] {
        instance.ok(command, json!({}));
    }
    let config = site.config(json!({"timeout": "5s", "rule": [site.file_rule("dw", &token)]}));
    instance.ok("config-reload", json!({"config": config}));
    instance.ok("cancel", json!({"jobid": canceled}));
    instance.wait(&canceled, "clean");
    assert_eq!(instance.contexts(&canceled, "exception")[0]["type"], "cancel");

    for job in &jobs {
        instance.assert_fails("stopped", job, "it took longer than 5 s", "while", &token);
    }
    site.munged.signal(Signal::SIGCONT);
    assert_eq!(instance.token("dw"), token);
    assert_eq!((instance.counter("failed"), instance.counter("canceled")), (20, 1));
    instance.shutdown();
}

#[scenario]
fn munged_that_is_stopped_and_continued_in_time_costs_no_job_its_token(site: Site) {
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    site.munged.signal(Signal::SIGSTOP);
    let jobs: Vec<String> = (0..20).map(|_| instance.submit(PRINT, matching("dw"))).collect();
    until("munged is asked", || site.waiting_for_munged() > 0);
    site.munged.signal(Signal::SIGCONT);
    for job in &jobs {
        instance.wait(job, "clean");
        assert_eq!(instance.stdout(job).trim_end(), token);
    }
    instance.shutdown();
}

#[scenario]
fn a_job_canceled_during_its_fetch_ends_and_so_does_the_command(site: Site) {
    let rule = site.command_rule("dw", "sleep 1000 & echo $! >grandchild; wait", &[]);
    let mut instance = site.instance(json!({"rule": [rule]}));
    let job = instance.submit(&["true"], matching("dw"));
    let grandchild = line_of(&site.at("grandchild"));
    assert!(!is_gone(&grandchild));
    instance.assert_canceled(&job);
    until("the child of the command has ended", || is_gone(&grandchild));
    assert_eq!((instance.counter("canceled"), instance.counter("in-flight")), (1, 0));
    instance.shutdown();
}

#[scenario]
fn a_job_canceled_in_a_queue_of_deliveries_ends_and_the_others_receive_their_tokens(site: Site) {
    let token = jwt(json!({}));
    site.write("token", 0o600, &token);
    let script = "echo $1 >>asked; until [ -e go ]; do sleep 0.02; done; cat token";
    let rule = site.command_rule("dw", script, &["{jobid}"]);
    let mut instance = site.instance(json!({"max-parallel": 1, "rule": [rule]}));
    let jobs: Vec<String> = (0..3).map(|_| instance.submit(PRINT, matching("dw"))).collect();
    for job in &jobs {
        instance.wait(job, "prolog-start");
    }
    assert_eq!(line_of(&site.at("asked")), jobs[0]);
    instance.assert_canceled(&jobs[1]);
    site.write("go", 0o600, "");
    for job in [&jobs[0], &jobs[2]] {
        instance.wait(job, "clean");
        assert_eq!(instance.stdout(job).trim_end(), token);
    }
    let asked = fs::read_to_string(site.at("asked")).unwrap();
    assert_eq!(
        asked.lines().collect::<Vec<_>>(),
        [&jobs[0], &jobs[2]],
        "the source ran for a canceled job"
    );
    instance.shutdown();
}

#[scenario]
fn the_record_names_the_variables_and_is_removed_when_the_job_has_ended(site: Site) {
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    let before = now();
    let go = site.path("go");
    let job = instance.submit(
        &["sh", "-c", &format!("until [ -e {go} ]; do sleep 0.02; done")],
        matching("dw"),
    );
    instance.wait(&job, "start");
    let record = instance.record(&job).expect("a job that runs has a record");
    let members: Vec<&String> = record.as_object().unwrap().keys().collect();
    assert_eq!(
        members,
        [
            "credential",
            "jobid",
            "renewal",
            "sealed-at",
            "sealer",
            "uid",
            "variables",
            "version"
        ]
    );
    let known = json!([1, decimal(&job), me(), me(), ["DW_WORKFLOW_TOKEN"]]);
    let said = ["version", "jobid", "uid", "sealer", "variables"].map(|member| record[member].clone());
    assert_eq!(json!(said), known);
    let sealed_at = record["sealed-at"].as_f64().unwrap();
    assert!((before..=now()).contains(&sealed_at), "{before} {sealed_at} {}", now());
    assert!(record["credential"].as_str().unwrap().starts_with("MUNGE:"));

    fs::write(&go, "").unwrap();
    instance.wait(&job, "clean");
    until("the record is removed", || instance.record(&job).is_none());
    until("the removal is counted", || instance.counter("unlinked") == 1);
    instance.shutdown();
}

/// Returns the time by the clock that stamps records, with their precision of milliseconds.
fn now() -> f64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    since.as_millis() as f64 / 1e3
}

#[scenario]
fn the_record_is_kept_where_the_configuration_says_so(site: Site) {
    let token = jwt(json!({}));
    let rules = json!([site.file_rule("dw", &token)]);
    let mut instance = site.instance(json!({"unlink": false, "rule": rules}));
    let kept = instance.run(PRINT, matching("dw"));
    // The later removal of another record proves that enough time has passed.
    instance.ok("config-reload", json!({"config": site.config(json!({"rule": rules}))}));
    let removed = instance.run(PRINT, matching("dw"));
    until("a later record is removed", || instance.record(&removed).is_none());
    assert!(instance.record(&kept).is_some());
    instance.shutdown();
}

#[scenario]
fn no_signal_is_blocked_in_a_command(site: Site) {
    // Not a shell: some shells first clear their signal mask.
    let command = ["/bin/sed", "-n", "s/^SigBlk:.//p", "/proc/self/status"];
    let rule = json!({"attribute": "system.dw", "source": "command", "command": command, "check": "none"});
    let mut instance = site.instance(json!({"rule": [rule]}));
    assert_eq!(instance.token("dw"), "0000000000000000");
    instance.shutdown();
}
