// SPDX-License-Identifier: MIT OR Apache-2.0

//! Deliveries that only the simulator can test: faults of the KVS, and jobs of other users. `tests/scenarios/` tests
//! everything else that users notice.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::support::{
    plugins::{GUEST, PRINT, Site, decimal, jwt, matching, until, user, with_options},
    search::{Search, found},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use seal::{Error, Expected, Owner, Record};
use serde_json::json;

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
fn a_failed_commit_fails_only_its_job() {
    let site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    instance.ok("fault", json!({"what": "commit", "errnum": libc::ENOSPC}));
    let job = instance.submit(&["true"], matching("dw"));
    instance.assert_fails(
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
    instance.assert_fails(
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
fn waiting_records_share_a_commit_and_do_not_wait_for_a_slow_one() {
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
fn many_jobs_whose_records_are_committed_together_start_in_batches() {
    const JOBS: u64 = 400;
    /// The maximum number of deliveries in one turn of the reactor.
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
    until("all deliveries are complete", || instance.counter("delivered") == JOBS);
    let stats = instance.ok("stats", json!({}));
    // After each commit, some of its jobs proceed immediately.
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
    instance.assert_canceled(&job);
    instance.ok("fault", json!({"what": "release-commits"}));
    until("the record is removed", || {
        instance.record(&job).is_none() && instance.counter("unlinked") == 1
    });
    assert_eq!(instance.counter("canceled"), 1);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_token_is_found_only_in_the_environment_of_its_job() {
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

    // While the commands run, after they have printed.
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
    // One commit contains both records, or the second waits for the first.
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
            "the search does not find a known secret"
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
fn the_search_finds_planted_tokens_in_every_place_and_encoding() {
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
    // These programs end at the end of their standard input.
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
    // The kernel shows the arguments of a process a moment after it starts.
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
