//! Deliveries on the simulator, with the plugins and a real munged: who gets which token, and what becomes of a job that
//! cannot have the one that it is to get.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::support::{
    plugins::{GUEST, PLAIN, PRINT, Site, decimal, is_gone, jwt, line_of, matching, me, until, user, with_options},
    search::Search,
    simulator::Instance,
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use nix::sys::signal::Signal;
use seal::{Error, Expected, Owner, Record};
use serde_json::{Value, json};

/// The events of a job that has got its token.
fn delivered() -> Vec<&'static str> {
    let mut events = PLAIN.to_vec();
    events.splice(5..5, ["prolog-start", "prolog-finish"]);
    events
}

// Which job gets which token

#[needs(munged)]
#[test]
fn every_task_of_a_job_that_a_rule_matches_has_the_token() {
    let site = Site::new();
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

#[needs(munged, root)]
#[test]
fn the_record_opens_for_the_job_owner_and_not_for_root_or_the_instance_owner() {
    let site = Site::new();
    let (token, guest) = (jwt(json!({})), user(GUEST).uid.as_raw());
    let mut instance = site.instance(json!({"unlink": false, "rule": [site.file_rule("dw", &token)]}));
    let mut submission = matching("dw");
    submission["userid"] = json!(guest);
    let job = instance.run(&["sh", "-c", "id -u; echo $DW_WORKFLOW_TOKEN"], submission);
    assert_eq!(instance.stdout(&job), format!("{guest}\n{token}\n"));

    let lookup = |userid: u32| json!({"jobid": job, "key": "workflow-token", "userid": userid});
    let text = instance.ok("lookup", lookup(guest))["value"]
        .as_str()
        .unwrap()
        .to_owned();
    let denied = instance.error("lookup", lookup(guest - 1));
    assert_eq!(denied, "access is restricted to job/instance owner");
    let expected = Expected {
        owner: Owner {
            jobid: decimal(&job),
            uid: guest,
        },
        instance_owner: 0,
    };
    match Record::from_json(&text).unwrap().open(&site.munged.client(), &expected) {
        Err(Error::Munge(e)) if e.is_unauthorized() => {}
        other => panic!("the instance owner was not refused: {other:?}"),
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_that_no_rule_matches_is_left_alone() {
    let site = Site::new();
    let rules = json!([
        site.file_rule("dw", jwt(json!({}))),
        {"queue": "debug", "source": "file", "path": site.path("dw.secret")},
    ]);
    let mut instance = site.instance(json!({"rule": rules}));
    for attributes in [
        json!({}),
        json!({"system": {"dw": null}}),
        json!({"system": {"queue": "batch"}}),
        json!({"dw": 1}),
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

#[needs(munged)]
#[test]
fn an_instance_without_the_table_leaves_all_jobs_alone() {
    let site = Site::new();
    let mut instance = site.without_jobtap(json!({}), &["--jobtap", &site.jobtap()]);
    let job = instance.run(&["true"], matching("dw"));
    assert_eq!(instance.events(&job), PLAIN);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn the_first_rule_all_of_whose_conditions_hold_wins_and_names_the_variable() {
    let site = Site::new();
    let owner = nix::unistd::User::from_uid(me().into())
        .unwrap()
        .expect("whoever runs this has a name");
    let group = nix::unistd::Group::from_gid(owner.gid)
        .unwrap()
        .expect("their group has a name");
    // Each rule hands out its own name as a secret, and under that name.
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

#[needs(munged)]
#[test]
fn a_rule_for_other_people_holds_a_job_until_their_names_are_known_and_no_longer() {
    let site = Site::new();
    let path = site.write("dw.secret", 0o600, jwt(json!({})));
    let rules = json!([{"attribute": "system.dw", "group": "daemon", "source": "file", "path": path}]);
    let mut instance = site.instance(json!({"rule": rules}));
    let print = ["sh", "-c", "echo ${DW_WORKFLOW_TOKEN-unset}"];
    // The agent decides for each job: groups change.
    for count in 1..=2 {
        let job = instance.run(&print, matching("dw"));
        assert_eq!(instance.stdout(&job), "unset\n");
        assert_eq!(instance.events(&job), delivered());
        assert_eq!(instance.counter("no-rule"), count);
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn the_name_of_a_file_is_made_of_the_job_and_its_owner() {
    let site = Site::new();
    // The jobs are held by another prolog until their files are there, and the plugin is loaded again.
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
    user.expect("whoever runs this has a name").name
}

#[needs(munged)]
#[test]
fn a_command_is_told_the_job_and_its_owner_and_prints_the_token() {
    let site = Site::new();
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

// What a source may not give

/// One exception, and a log line for the operator. None of them shows the secret.
#[track_caller]
fn assert_fails(instance: &mut Instance, name: &str, job: &str, says: &str, cause: &str, secret: &str) {
    let note = instance.undelivered(job);
    assert!(note.contains(says), "{name}: {note}");
    let operator = instance.cause(job);
    assert!(operator.contains(cause), "{name}: {operator}");
    for text in [note, operator] {
        assert!(
            !secret.split('.').skip(1).any(|part| text.contains(part)),
            "{name}: {text}"
        );
    }
}

/// A source without a usable token: its name, its rule, the text for the user, and a part of that for the operator.
type Unusable = (&'static str, Value, &'static str, String);

/// Files that cannot be used. `unsecured`, `expired` and `early` are tokens.
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

/// Commands that print no usable token. `canary` is in the file of that name.
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
            "killed with its process group".to_owned(),
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

#[needs(munged)]
#[test]
fn a_source_without_a_usable_token_fails_the_job_with_one_exception_and_tells_the_operator_why() {
    let site = Site::new();
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
        assert_fails(&mut instance, name, job, says, cause, &canary);
    }
    assert!(!site.at("started").exists());
    let grandchild = line_of(&site.at("grandchild"));
    until("what the slow command started is gone", || is_gone(&grandchild));
    assert_eq!(
        (instance.counter("failed"), instance.counter("in-flight")),
        (cases.len() as u64, 0)
    );
    let log = instance.dmesg().join("\n");
    for token in [&canary, &expired, &early] {
        assert!(!token.split('.').skip(1).any(|part| log.contains(part)), "{log}");
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_secret_that_is_no_jwt_passes_where_the_rule_says_so() {
    let site = Site::new();
    let mut rule = site.file_rule("dw", "an opaque: sécret\r\n");
    rule["check"] = json!("none");
    let mut instance = site.instance(json!({"rule": [rule]}));
    assert_eq!(instance.token("dw"), "an opaque: sécret");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn what_a_command_says_on_standard_error_is_logged_without_its_secrets() {
    let site = Site::new();
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

// Munged

#[needs(munged)]
#[test]
fn a_delivery_waits_for_munged_that_is_absent_and_comes() {
    let mut site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    let mut job = String::new();
    site.restart_munged_late(|| job = instance.submit(PRINT, matching("dw")));
    instance.wait(&job, "clean");
    assert_eq!(instance.stdout(&job).trim_end(), token);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_delivery_outlives_munged_that_is_killed_midway() {
    let mut site = Site::new();
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

#[needs(munged)]
#[test]
fn munged_that_stays_away_fails_the_job_and_not_the_next_one() {
    let mut site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"timeout": "1s", "rule": [site.file_rule("dw", &token)]}));
    site.kill_munged();
    let job = instance.submit(&["true"], matching("dw"));
    assert_fails(
        &mut instance,
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

#[needs(munged)]
#[test]
fn while_munged_is_stopped_only_the_jobs_that_need_it_wait_and_everything_else_goes_on() {
    let site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"timeout": "5s", "rule": [site.file_rule("dw", &token)]}));
    site.munged.signal(Signal::SIGSTOP);
    let jobs: Vec<String> = (0..20).map(|_| instance.submit(&["true"], matching("dw"))).collect();
    let canceled = instance.submit(&["true"], matching("dw"));
    until("munged is asked", || site.waiting_for_munged() > 0);

    let other = instance.run(&["echo", "done"], json!({"nodes": 2}));
    assert_eq!(instance.stdout(&other), "done\ndone\n");
    assert_eq!(instance.events(&other), PLAIN);
    for command in ["stats", "list", "dmesg", "kvs-list"] {
        instance.ok(command, json!({}));
    }
    let config = site.config(json!({"timeout": "5s", "rule": [site.file_rule("dw", &token)]}));
    instance.ok("config-reload", json!({"config": config}));
    instance.ok("cancel", json!({"jobid": canceled}));
    instance.wait(&canceled, "clean");
    assert_eq!(instance.contexts(&canceled, "exception")[0]["type"], "cancel");

    for job in &jobs {
        assert_fails(
            &mut instance,
            "stopped",
            job,
            "it took longer than 5 s",
            "while",
            &token,
        );
    }
    site.munged.signal(Signal::SIGCONT);
    assert_eq!(instance.token("dw"), token);
    assert_eq!((instance.counter("failed"), instance.counter("canceled")), (20, 1));
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn munged_that_is_stopped_and_continued_in_time_costs_no_job_its_token() {
    let site = Site::new();
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

// The commit

#[needs(munged)]
#[test]
fn a_commit_that_is_refused_fails_the_job_and_not_the_next_one() {
    let site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    instance.ok("fault", json!({"what": "commit", "errnum": libc::ENOSPC}));
    let job = instance.submit(&["true"], matching("dw"));
    assert_fails(
        &mut instance,
        "refused",
        &job,
        "it could not be stored",
        "No space left on device",
        &token,
    );
    assert_eq!(instance.token("dw"), token);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_commit_that_does_not_end_in_time_fails_the_job_and_its_record_is_removed() {
    let site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"timeout": "1s", "rule": [site.file_rule("dw", &token)]}));
    instance.ok("fault", json!({"what": "hold-commits"}));
    let job = instance.submit(&["true"], matching("dw"));
    instance.ok("wait-held", json!({"count": 1}));
    assert_fails(
        &mut instance,
        "held",
        &job,
        "it took longer than 1 s",
        "while the KVS was asked to store it",
        &token,
    );
    instance.ok("fault", json!({"what": "release-commits"}));
    until("the record is removed", || {
        instance.record(&job).is_none() && instance.counter("unlinked") == 1
    });
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn records_that_wait_for_a_commit_go_together_and_for_a_slow_one_they_do_not_wait() {
    let site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    instance.ok("fault", json!({"what": "hold-commits"}));
    let mut jobs = vec![instance.submit(&["true"], matching("dw"))];
    instance.ok("wait-held", json!({"count": 1}));
    jobs.extend((0..20).map(|_| instance.submit(&["true"], matching("dw"))));
    instance.ok("wait-held", json!({"count": 2}));
    let held = instance.ok("stats", json!({}))["held_commits"].as_u64().unwrap();
    assert!(held < 10, "{held} commits for {} jobs", jobs.len());
    instance.ok("fault", json!({"what": "release-commits"}));
    for job in &jobs {
        instance.wait(job, "clean");
    }
    assert_eq!(instance.counter("delivered"), 21);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn many_jobs_whose_records_are_committed_at_once_start_some_at_a_time() {
    const JOBS: u64 = 400;
    /// In one turn of the reactor.
    const AT_ONCE: u64 = 4;
    let site = Site::new();
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", jwt(json!({})))]}));
    instance.ok("fault", json!({"what": "hold-allocs"}));
    instance.ok("fault", json!({"what": "hold-commits"}));
    for _ in 0..JOBS {
        instance.submit(&["true"], matching("dw"));
    }
    instance.ok("fault", json!({"what": "release-allocs"}));
    until("all records are sealed", || {
        instance.ok("stats", json!({}))["held_operations"] == JOBS
    });
    instance.ok("stats", json!({"reset": true}));
    instance.ok("fault", json!({"what": "release-commits"}));
    until("all go on", || instance.counter("delivered") == JOBS);
    let stats = instance.ok("stats", json!({}));
    // Each commit is followed by some of its jobs at once.
    let turns = stats["topics"]["timer"]["count"].as_u64().unwrap();
    assert!(turns >= JOBS / AT_ONCE / 2, "{JOBS} jobs went on in {turns} turns");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_that_is_canceled_during_the_commit_ends_and_its_record_is_removed() {
    let site = Site::new();
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", jwt(json!({})))]}));
    instance.ok("fault", json!({"what": "hold-commits"}));
    let job = instance.submit(&["true"], matching("dw"));
    instance.ok("wait-held", json!({"count": 1}));
    assert_canceled(&mut instance, &job);
    instance.ok("fault", json!({"what": "release-commits"}));
    until("the record is removed", || {
        instance.record(&job).is_none() && instance.counter("unlinked") == 1
    });
    assert_eq!(instance.counter("canceled"), 1);
    instance.shutdown();
}

/// Cancels a job in its prolog, which ends then, and has no other exception.
#[track_caller]
fn assert_canceled(instance: &mut Instance, job: &str) {
    instance.ok("cancel", json!({"jobid": job}));
    instance.wait(job, "clean");
    let exceptions = instance.contexts(job, "exception");
    assert_eq!(exceptions.len(), 1, "{exceptions:?}");
    assert_eq!(exceptions[0]["type"], "cancel");
    assert_eq!(instance.contexts(job, "prolog-finish").len(), 1);
    assert!(!instance.events(job).contains(&"start".to_owned()));
}

#[needs(munged)]
#[test]
fn a_job_that_is_canceled_while_its_source_is_asked_ends_and_so_does_the_command() {
    let site = Site::new();
    let rule = site.command_rule("dw", "sleep 1000 & echo $! >grandchild; wait", &[]);
    let mut instance = site.instance(json!({"rule": [rule]}));
    let job = instance.submit(&["true"], matching("dw"));
    let grandchild = line_of(&site.at("grandchild"));
    assert!(!is_gone(&grandchild));
    assert_canceled(&mut instance, &job);
    until("what the command started is gone", || is_gone(&grandchild));
    assert_eq!((instance.counter("canceled"), instance.counter("in-flight")), (1, 0));
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_that_is_canceled_while_others_are_before_it_ends_and_they_get_their_tokens() {
    let site = Site::new();
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
    assert_canceled(&mut instance, &jobs[1]);
    site.write("go", 0o600, "");
    for job in [&jobs[0], &jobs[2]] {
        instance.wait(job, "clean");
        assert_eq!(instance.stdout(job).trim_end(), token);
    }
    let asked = fs::read_to_string(site.at("asked")).unwrap();
    assert_eq!(
        asked.lines().collect::<Vec<_>>(),
        [&jobs[0], &jobs[2]],
        "the source was asked for a canceled job"
    );
    instance.shutdown();
}

// The record

#[needs(munged)]
#[test]
fn the_record_names_the_variables_and_is_removed_when_the_job_has_ended() {
    let site = Site::new();
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
    until("that was counted", || instance.counter("unlinked") == 1);
    instance.shutdown();
}

/// By the clock that stamps records, in the milliseconds that they keep.
fn now() -> f64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    since.as_millis() as f64 / 1e3
}

#[needs(munged)]
#[test]
fn the_record_is_kept_where_the_configuration_says_so() {
    let site = Site::new();
    let token = jwt(json!({}));
    let rules = json!([site.file_rule("dw", &token)]);
    let mut instance = site.instance(json!({"unlink": false, "rule": rules}));
    let kept = instance.run(PRINT, matching("dw"));
    // One whose record is removed later tells that there was time enough.
    instance.ok("config-reload", json!({"config": site.config(json!({"rule": rules}))}));
    let removed = instance.run(PRINT, matching("dw"));
    until("a later record is removed", || instance.record(&removed).is_none());
    assert!(instance.record(&kept).is_some());
    instance.shutdown();
}

// Canaries

/// All that the instance tells, and keeps where it can be asked for, each with a name.
fn told(instance: &mut Instance, jobs: &[String]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for command in ["dmesg", "stats", "list", "kvs-list"] {
        all.push((command.to_owned(), instance.ok(command, json!({})).to_string()));
    }
    let query = instance.ok("query", json!({"name": "workflow-token.so"}));
    all.push(("query".to_owned(), query.to_string()));
    for key in instance.ok("kvs-list", json!({}))["keys"].as_array().unwrap() {
        // The record of a job that has ended may be removed between the two.
        let request = instance.send("kvs-get", json!({"key": key}));
        if let Some(value) = instance.response(request)["value"].as_str() {
            all.push((format!("key {key}"), value.to_owned()));
        }
    }
    for job in jobs {
        for command in ["eventlog", "state"] {
            all.push((
                format!("{command} of {job}"),
                instance.ok(command, json!({"jobid": job})).to_string(),
            ));
        }
        all.push((format!("standard error of {job}"), instance.stderr(job)));
    }
    all
}

/// Where the secrets are found: in what the instance tells, in its files and munged's, and in processes.
fn found(site: &Site, instance: &mut Instance, jobs: &[String], search: &Search) -> Vec<String> {
    let mut found = search.processes();
    let told = told(instance, jobs);
    found.extend(
        told.into_iter()
            .filter(|(_, text)| search.finds(text.as_bytes()))
            .map(|(name, _)| name),
    );
    for dir in [site.statedir(), site.munged.socket().parent().unwrap().to_owned()] {
        found.extend(search.files(&dir).into_iter().map(|path| path.display().to_string()));
    }
    found
}

#[needs(munged)]
#[test]
fn a_token_is_found_nowhere_but_in_the_environment_of_its_job() {
    let site = Site::new();
    let canaries: Vec<String> = (0..12).map(|_| jwt(json!({}))).collect();
    let expired = jwt(json!({"exp": 1_000_000_000}));
    let mut names = Vec::new();
    let mut rules = Vec::new();
    let mut file = |name: &'static str, content: String, mode: u32| {
        rules.push(site.file_rule(name, content));
        site.write(
            &format!("{name}.secret"),
            mode,
            fs::read(site.at(&format!("{name}.secret"))).unwrap(),
        );
        names.push(name);
    };
    file("file", canaries[0].clone(), 0o600);
    file("readable", canaries[1].clone(), 0o644);
    file("lines", format!("{}\n\n", canaries[2]), 0o600);
    file("nul", format!("{}\0", canaries[3]), 0o600);
    file("expired", expired.clone(), 0o600);
    file("huge", canaries[4].repeat(2000), 0o600);
    file("cut", canaries[5][..canaries[5].len() - 50].to_owned(), 0o600);
    let print = |n: usize| {
        site.write(&format!("canary{n}"), 0o600, &canaries[n]);
        format!("cat canary{n}; cat canary{n} >&2")
    };
    let mut command = |name: &'static str, n: usize, rest: &str| {
        let mut rule = site.command_rule(name, &format!("{}; {rest}", print(n)), &["{jobid}"]);
        if name == "slow" {
            rule["timeout"] = json!("500ms");
        }
        rules.push(rule);
        names.push(name);
    };
    let wait = |name: &str| format!("touch printed-{name}; until [ -e go ]; do sleep 0.02; done");
    command("command", 6, &wait("command"));
    command("failing", 7, "exit 3");
    command("slow", 8, "sleep 1000");
    command("canceled", 9, &wait("canceled"));
    command("late", 10, &wait("late"));
    let mut instance = site.instance(json!({"timeout": "30s", "max-parallel": 64, "rule": rules}));
    let search = Search::tokens(canaries.iter().chain([&expired]).map(String::as_str));

    // While the commands run and have printed.
    let verbose = |name: &str| with_options(name, json!({"verbose": 2}));
    let running = format!(
        "until [ -e {} ]; do sleep 0.02; done; {}",
        site.path("end"),
        PRINT.join(" ")
    );
    let jobs: Vec<String> = names
        .iter()
        .map(|name| instance.submit(&["sh", "-c", &running], verbose(name)))
        .collect();
    let job = |name: &str| jobs[names.iter().position(|other| *other == name).unwrap()].clone();
    for name in ["command", "canceled", "late"] {
        until("the command has printed", || {
            site.at(&format!("printed-{name}")).exists()
        });
    }
    assert_eq!(found(&site, &mut instance, &[], &search), [""; 0]);
    instance.ok("cancel", json!({"jobid": job("canceled")}));
    for name in ["readable", "lines", "nul", "expired", "huge", "cut", "failing", "slow"] {
        instance.undelivered(&job(name));
    }
    instance.wait(&job("file"), "start");
    instance.ok("fault", json!({"what": "hold-commits"}));
    site.write("go", 0o600, "");
    // One commit has both records, or the second waits for the first.
    instance.ok("wait-held", json!({"count": 1}));
    instance.ok("cancel", json!({"jobid": job("late")}));
    instance.wait(&job("late"), "clean");
    instance.ok("fault", json!({"what": "release-commits"}));
    instance.wait(&job("command"), "start");
    instance.ok("fault", json!({"what": "commit", "count": -1}));
    let refused = instance.submit(&["true"], verbose("file"));
    instance.undelivered(&refused);
    instance.ok("fault", json!({"what": "commit", "count": 0}));

    // While the jobs run.
    assert!(instance.record(&job("file")).is_some());
    assert_eq!(found(&site, &mut instance, &jobs, &search), [""; 0]);
    site.write("end", 0o600, "");
    for (name, n) in [("file", 0), ("command", 6)] {
        instance.wait(&job(name), "clean");
        let output = instance.stdout(&job(name));
        assert_eq!(output.trim_end(), canaries[n]);
        assert!(
            search.finds(output.as_bytes()),
            "the search does not find what there is"
        );
        let stderr = instance.stderr(&job(name));
        assert!(stderr.contains("exported DW_WORKFLOW_TOKEN"), "{stderr}");
    }

    // A record that is damaged on its way to the shell.
    instance.ok("load", site.hold());
    let damaged = instance.submit(&["echo", "started"], verbose("file"));
    instance.wait(&damaged, "prolog-finish");
    let (key, mut record) = (instance.record_key(&damaged), instance.record(&damaged).unwrap());
    let credential = record["credential"].as_str().unwrap().replacen('A', "B", 1);
    record["credential"] = json!(credential);
    instance.ok("kvs-put", json!({"key": key, "value": record.to_string()}));
    instance.go();
    instance.refused(&damaged);

    let all = [jobs, vec![refused, damaged]].concat();
    assert_eq!(found(&site, &mut instance, &all, &search), [""; 0]);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn the_search_for_tokens_finds_what_is_planted_wherever_it_is_and_however_it_is_encoded() {
    let site = Site::new();
    let planted = jwt(json!({}));
    let search = Search::tokens([planted.as_str()]);
    let mut instance = site.instance(json!({}));
    let part = &planted[planted.len() - 25..];
    site.write("part", 0o600, part);
    let command = format!("cat {} >&2; exec sleep 1000", site.path("part"));
    let job = instance.submit(&["sh", "-c", &command], json!({}));
    until("the job has written", || !instance.stderr(&job).is_empty());
    assert_eq!(found(&site, &mut instance, &[], &search), [""; 0]);

    let payload = planted.split('.').nth(1).unwrap();
    let forms = [
        ("plain", planted.clone()),
        ("payload", format!("xx{payload}")),
        ("part", part.to_owned()),
        ("base64", format!("xxx{}", STANDARD.encode(format!("x{planted}")))),
        ("twice", STANDARD.encode(STANDARD.encode(format!("xx{part}")))),
        ("hex", planted.bytes().map(|byte| format!("{byte:02X}")).collect()),
        (
            "claims",
            String::from_utf8(URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap(),
        ),
    ];
    for (name, value) in &forms {
        instance.ok("kvs-put", json!({"key": format!("planted.{name}"), "value": value}));
    }
    instance.ok(
        "raise",
        json!({"jobid": job, "severity": 7, "type": "test", "note": part}),
    );
    fs::write(site.munged.socket().with_file_name("planted"), part).unwrap();
    // They end when their standard input does.
    let mut argument = Command::new("cat");
    let mut environment = Command::new("cat");
    argument.args(["-", part]);
    environment.arg("-u").env("PLANTED", part);
    let processes = [argument, environment].map(|mut command| {
        let command = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().unwrap()
    });
    let mut places = Vec::new();
    let expected = [
        "/content",
        "/munged",
        "cat - ",
        "cat -u",
        "eventlog of",
        "standard error of",
    ];
    // A process has its arguments a moment after it was started.
    until("all is found", || {
        places = found(&site, &mut instance, std::slice::from_ref(&job), &search);
        let is_found = |place: &&str| places.iter().any(|found| found.contains(*place));
        expected.iter().all(is_found)
    });
    for mut process in processes {
        drop(process.stdin.take());
        process.wait().unwrap();
    }
    for (name, _) in &forms {
        assert!(
            places.contains(&format!("key \"planted.{name}\"")),
            "{name}: {places:?}"
        );
    }
    instance.ok("cancel", json!({"jobid": job}));
    instance.wait(&job, "clean");
    instance.shutdown();
}
