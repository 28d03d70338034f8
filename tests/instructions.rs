//! What a delivery costs the reactor thread, in instructions of the plugin, counted by callgrind: a number that does not
//! depend on what else the machine is doing. Of the calls into Flux and the C library, only the plugin's own part counts.
//!
//! It is counted on a build with optimizations, which `make check` makes (profile `counted`) and names in
//! `WORKFLOW_TOKEN_COUNTED`.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use support::{
    host::{Instance, plugin},
    plugins::{PRINT, Site, jwt, matching},
    skip,
};

/// Instructions for a delivery, from job.state.run to the removal of its record, as they were when this was written; and how
/// many percent more are let pass: versions of the compiler and of crates differ by some. Where there are a good many fewer,
/// lower the bound.
const BOUND: u64 = 100_000;
const TOLERANCE: u64 = 15;

/// By how many percent a delivery may cost more with many others in flight than with few.
const GROWTH: u64 = 20;

/// The instructions of one object in one thread, by a file of callgrind (its manual, "Callgrind Format Specification"): the
/// cost of each line itself, without that of what is called there.
fn instructions_of(object: &Path, profile: &str) -> u64 {
    let wanted = object.to_str().expect("a path in UTF-8");
    let (mut sum, mut current, mut called) = (0, false, false);
    let mut id = "";
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("ob=") {
            let (number, rest) = name.split_once(')').expect("a name that is compressed");
            if rest.trim() == wanted {
                id = number;
            }
            current = number == id;
        } else if line.starts_with("calls=") {
            called = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost = line.split_whitespace().nth(1).and_then(|cost| cost.parse::<u64>().ok());
            if !std::mem::take(&mut called) && current {
                sum += cost.unwrap_or(0);
            }
        }
    }
    assert!(!id.is_empty(), "{wanted} is in the profile");
    sum
}

/// The instructions of the plugin on the reactor thread, for so many jobs that are in flight all at once.
fn count(site: &Site, counted: &Path, jobs: usize) -> u64 {
    let jobtap = PathBuf::from(site.jobtap());
    let out = site.at("callgrind.out");
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args([
            "-q",
            "--tool=callgrind",
            "--separate-threads=yes",
            "--trace-children=no",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(counted.join("flux-workflow-host"))
        .args(["instance", "--config", &site.path("flux.toml"), "--statedir"])
        .arg(site.at(&format!("state-{jobs}")));
    let mut instance = Instance::of(&mut valgrind);
    // Another prolog keeps them from being started.
    let puppet = plugin(&site.at("job-manager"), "puppet.c");
    let on = json!({
        "job.state.run": [{"do": "prolog-start", "description": "hold"}],
        "job.state.cleanup": [{"do": "prolog-finish", "description": "hold", "status": 1}],
    });
    instance.ok("load", json!({"path": puppet, "conf": {"on": on}}));
    instance.ok("fault", json!({"what": "hold-commits"}));
    let all = |instance: &mut Instance, requests: Vec<support::host::Request>| -> Vec<serde_json::Value> {
        requests.into_iter().map(|request| instance.response(request)).collect()
    };
    let submitted = (0..jobs).map(|_| {
        let mut request = matching("dw");
        request["command"] = json!(PRINT);
        instance.send("submit", request)
    });
    let submitted = submitted.collect();
    let jobs: Vec<String> = all(&mut instance, submitted)
        .iter()
        .map(|response| response["jobid"].as_str().expect("a job id").to_owned())
        .collect();
    let mut each = |instance: &mut Instance, cmd: &str, event: &str| {
        let requests = jobs
            .iter()
            .map(|job| instance.send(cmd, json!({"jobid": job, "event": event})));
        let requests = requests.collect();
        for response in all(instance, requests) {
            assert_eq!(response["ok"], true, "{cmd} {event}: {response}");
        }
    };
    each(&mut instance, "wait", "prolog-start");
    instance.ok("fault", json!({"what": "release-commits"}));
    each(&mut instance, "wait", "prolog-finish");
    each(&mut instance, "cancel", "");
    each(&mut instance, "wait", "clean");
    instance.shutdown();
    // The first thread is the reactor's.
    let profile = fs::read_to_string(out.with_extension("out-01")).expect("what callgrind has counted");
    instructions_of(&jobtap, &profile)
}

#[test]
fn a_delivery_costs_so_many_instructions_whoever_else_is_in_flight() {
    const TEST: &str = "a_delivery_costs_so_many_instructions_whoever_else_is_in_flight";
    let Some(counted) = std::env::var_os("WORKFLOW_TOKEN_COUNTED").map(PathBuf::from) else {
        return skip(
            TEST,
            "WORKFLOW_TOKEN_COUNTED is not set: make check builds what is counted, and sets it",
        );
    };
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skip(TEST, "valgrind is not installed");
    }
    let Some(site) = Site::new(TEST) else { return };
    fs::remove_file(site.jobtap()).unwrap();
    fs::copy(counted.join("libjobtap_workflow_token.so"), site.jobtap()).unwrap();
    let rule = site.file_rule("dw", jwt(json!({})));
    site.configure(json!({"timeout": "1h", "rule": [rule]}));
    let [none, few, many] = [10, 110, 1110].map(|jobs| count(&site, &counted, jobs));
    let (with_few, with_many) = ((few - none) / 100, (many - few) / 1000);
    println!(
        "instructions of a delivery on the reactor thread: {with_few}, with a thousand others in flight {with_many}"
    );
    assert!(
        with_many * 100 <= with_few * (100 + GROWTH),
        "a delivery costs {with_few} instructions with a hundred others in flight, and {with_many} with a thousand"
    );
    assert!(
        with_many * 100 <= BOUND * (100 + TOLERANCE),
        "a delivery costs {with_many} instructions on the reactor thread, of which {BOUND} are allowed for"
    );
}
