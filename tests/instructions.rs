// SPDX-License-Identifier: MIT OR Apache-2.0

//! Counts with callgrind the plugin's instructions on the reactor thread for a delivery and a renewal: a number that
//! does not depend on the load of the machine. Of the calls into Flux and the C library, only the plugin's own part
//! counts.
//!
//! The counted build is optimized. `make check` builds it (profile `counted`) and names it in `WORKFLOW_TOKEN_COUNTED`.

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use needs::needs;
use serde_json::{Value, json};
use support::{
    plugins::{PRINT, Site, jwt, matching},
    simulator::{Instance, built, plugin},
};

/// The bound on instructions for a delivery, from job.state.run to the removal of its record. It exceeds the measured
/// count by some percent, because versions of the compiler and of crates differ. If the count falls well below, lower
/// the bound.
const BOUND: u64 = 12_000;
const TOLERANCE: u64 = 15;

/// The bound for a job that is in DEPEND or SCHED when the plugin is loaded.
const BOUND_WAITING: u64 = 300;

/// The bound for a renewal, from the request to the stored record, with its share of the ticker. Renewals are spread
/// over time, so most have their own commit.
const BOUND_RENEWAL: u64 = 16_000;

/// The number of renewals that are counted, and the average number per second, independent of the number of jobs.
const RENEWALS: u64 = 1_000;
const RATE: u64 = 50;

/// The interval at which the number of renewals is read, and the maximum number of readings. Each reading also costs
/// instructions of the plugin.
const READING: Duration = Duration::from_secs(1);
const READINGS: u64 = 600;

/// The maximum increase in percent of a delivery's cost with many others in flight, compared with few.
const GROWTH: u64 = 20;

/// Returns the instructions of one object in one thread, from a file of callgrind (its manual, "Callgrind Format
/// Specification"): the cost of each line itself, without its calls.
fn instructions_of(object: &Path, profile: &str) -> u64 {
    let wanted = object.to_str().expect("a path in UTF-8");
    let (mut sum, mut current, mut called) = (0, false, false);
    let mut id = "";
    for line in profile.lines() {
        // A name appears once with its number, where the object is first called, or first calls.
        if let Some(name) = line.strip_prefix("ob=").or_else(|| line.strip_prefix("cob=")) {
            let (number, rest) = name.split_once(')').expect("a name that is compressed");
            if rest.trim() == wanted {
                id = number;
            }
            if line.starts_with("ob=") {
                current = number == id;
            }
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

/// An instance under callgrind, which counts the plugin's instructions on the reactor thread until it exits.
struct Counting<'a> {
    site: &'a Site,
    instance: Instance,
}

impl Counting<'_> {
    fn start<'a>(site: &'a Site, counted: &Path, config: &str) -> Counting<'a> {
        let mut valgrind = Command::new("valgrind");
        let state = format!("state-{}", fs::read_dir(site.at("")).expect("the site").count());
        valgrind
            .args([
                "-q",
                "--tool=callgrind",
                "--separate-threads=yes",
                "--trace-children=no",
            ])
            .arg(format!("--callgrind-out-file={}", site.path("callgrind.out")))
            .arg(counted.join("flux-sim"))
            .args(["instance", "--config", config, "--statedir"])
            .arg(site.at(&state));
        Counting {
            site,
            instance: Instance::of(&mut valgrind),
        }
    }

    /// Submits jobs, and returns their ids.
    fn submit(&mut self, jobs: usize, more: &Value) -> Vec<String> {
        let requests: Vec<_> = (0..jobs)
            .map(|_| {
                let mut request = more.clone();
                request["command"] = json!(PRINT);
                self.instance.send("submit", request)
            })
            .collect();
        let responses = requests.into_iter().map(|request| self.instance.response(request));
        responses
            .map(|response| response["jobid"].as_str().expect("a job id").to_owned())
            .collect()
    }

    /// Runs a command for each job, and waits for an event of each.
    fn each(&mut self, jobs: &[String], cmd: &str, event: &str) {
        let fields = |job| json!({"jobid": job, "event": event});
        let requests: Vec<_> = jobs.iter().map(|job| self.instance.send(cmd, fields(job))).collect();
        for request in requests {
            let response = self.instance.response(request);
            assert_eq!(response["ok"], true, "{cmd} {event}: {response}");
        }
    }

    /// Sends a command to callgrind (its manual, "Monitor Commands").
    fn monitor(&mut self, command: &str) {
        let pid = self.instance.pid();
        let mut vgdb = Command::new("vgdb");
        let done = vgdb.arg(format!("--pid={pid}")).arg(command).output().expect("vgdb");
        assert!(done.status.success(), "vgdb {command}: {done:?}");
    }

    fn end(self) -> u64 {
        self.instance.shutdown();
        counted_in(self.site, "callgrind.out-01")
    }
}

/// Returns the plugin's instructions from a file of callgrind. The first thread is the reactor's.
fn counted_in(site: &Site, file: &str) -> u64 {
    let profile = fs::read_to_string(site.at(file)).expect("what callgrind has counted");
    instructions_of(Path::new(&site.jobtap()), &profile)
}

/// Returns a table with which each job's token is renewed after a time.
fn renewing(site: &Site, every: u64) -> Value {
    let made = Command::new(built("flux-workflow-token"))
        .args(["keygen", &site.path("keys")])
        .output();
    // The files may exist already.
    made.expect("the command");
    json!({
        "timeout": "1h",
        "issuer": {"keys": site.path("keys"), "name": "https://hpc", "audience": "main"},
        "rule": [{"source": "issuer", "workspace": "w", "max-lifetime": format!("{}s", 10 * every), "renew": 0.1}],
    })
}

/// Returns the instructions for each renewal while the tokens of this number of jobs are renewed.
fn renew(site: &Site, counted: &Path, jobs: u64) -> u64 {
    site.configure(renewing(site, jobs / RATE));
    let mut counting = Counting::start(site, counted, &site.path("flux.toml"));
    counting.instance.ok("fault", json!({"what": "hold-starts"}));
    let ids = counting.submit(jobs as usize, &json!({}));
    counting.each(&ids, "wait", "prolog-finish");
    let before = counting.instance.counter("renewed");
    counting.monitor("zero");
    let mut renewed = 0;
    // Jobs submitted together are renewed at about the same time. No renewal happens for a while before and after.
    for _ in 0..READINGS {
        thread::sleep(READING);
        renewed = counting.instance.counter("renewed") - before;
        if renewed >= RENEWALS {
            break;
        }
    }
    counting.monitor("dump");
    assert!(renewed >= RENEWALS, "only {renewed} renewals after {READINGS} readings");
    assert_eq!(counting.instance.counter("renewing"), jobs);
    counted_in(site, "callgrind.out.1-01") / renewed
}

/// Returns the instructions for each of this number of jobs that are in flight together.
fn deliver(site: &Site, counted: &Path, jobs: usize) -> u64 {
    let mut counting = Counting::start(site, counted, &site.path("flux.toml"));
    let instance = &mut counting.instance;
    // Another prolog keeps the jobs from starting.
    let puppet = plugin(&site.at("job-manager"), "puppet.c");
    let on = json!({
        "job.state.run": [{"do": "prolog-start", "description": "hold"}],
        "job.state.cleanup": [{"do": "prolog-finish", "description": "hold", "status": 1}],
    });
    instance.ok("load", json!({"path": puppet, "conf": {"on": on}}));
    instance.ok("fault", json!({"what": "hold-commits"}));
    let jobs = counting.submit(jobs, &matching("dw"));
    counting.each(&jobs, "wait", "prolog-start");
    counting.instance.ok("fault", json!({"what": "release-commits"}));
    counting.each(&jobs, "wait", "prolog-finish");
    counting.each(&jobs, "cancel", "");
    counting.each(&jobs, "wait", "clean");
    counting.end()
}

/// Returns the instructions for loading the plugin while this number of jobs wait for resources.
fn load(site: &Site, counted: &Path, jobs: usize) -> u64 {
    let config = site.config(json!({"rule": [site.file_rule("dw", jwt(json!({})))]}));
    let config = site.write("without.toml", 0o644, toml::to_string(&config).expect("it is TOML"));
    let mut counting = Counting::start(site, counted, &config);
    let mut held = matching("dw");
    held["urgency"] = json!(0);
    counting.submit(jobs, &held);
    counting.instance.ok("load", json!({"path": site.jobtap()}));
    counting.end()
}

/// Returns a site with the counted objects, and their directory.
fn counted() -> (Site, PathBuf) {
    let counted = built("flux-sim")
        .parent()
        .and_then(Path::parent)
        .expect("target")
        .join("counted");
    let site = Site::new();
    fs::remove_file(site.jobtap()).expect("the plugin of the tests");
    let object = counted.join("libjobtap_workflow_token.so");
    fs::copy(&object, site.jobtap()).unwrap_or_else(|e| {
        panic!(
            "{}: {e}: run `cargo build --profile counted -p flux-sim -p jobtap-workflow-token`",
            object.display()
        )
    });
    (site, counted)
}

#[needs(munged, valgrind)]
#[test]
fn the_instructions_of_a_delivery_do_not_grow_with_the_number_in_flight() {
    let (site, counted) = counted();
    let rule = site.file_rule("dw", jwt(json!({})));
    site.configure(json!({"timeout": "1h", "rule": [rule]}));
    let [none, few, many] = [10, 110, 610].map(|jobs| deliver(&site, &counted, jobs));
    let (with_few, with_many) = ((few - none) / 100, (many - few) / 500);
    println!(
        "instructions of a delivery on the reactor thread: {with_few}, with five hundred others in flight {with_many}"
    );
    assert!(
        with_many * 100 <= with_few * (100 + GROWTH),
        "a delivery costs {with_few} instructions with a hundred others in flight, and {with_many} with five hundred more"
    );
    assert!(
        with_many * 100 <= BOUND * (100 + TOLERANCE),
        "a delivery costs {with_many} instructions on the reactor thread, more than the bound of {BOUND}"
    );
}

#[needs(munged, valgrind)]
#[test]
fn a_waiting_job_costs_few_instructions_at_load() {
    let (site, counted) = counted();
    let [few, many] = [10, 1010].map(|jobs| load(&site, &counted, jobs));
    let each = (many - few) / 1000;
    println!("instructions for each job that waits when the plugin is loaded: {each}");
    assert!(
        each * 100 <= BOUND_WAITING * (100 + TOLERANCE),
        "a job that waits costs {each} instructions when the plugin is loaded, more than the bound of {BOUND_WAITING}"
    );
}

#[needs(munged, valgrind)]
#[test]
fn the_instructions_of_a_renewal_do_not_grow_with_the_number_of_jobs() {
    let (site, counted) = counted();
    let [few, many] = [300, 1500].map(|jobs| renew(&site, &counted, jobs));
    println!(
        "instructions of a renewal on the reactor thread: {few} with three hundred jobs, with fifteen hundred {many}"
    );
    assert!(
        many * 100 <= few * (100 + GROWTH),
        "a renewal costs {few} instructions with three hundred jobs, and {many} with fifteen hundred"
    );
    assert!(
        many * 100 <= BOUND_RENEWAL * (100 + TOLERANCE),
        "a renewal costs {many} instructions on the reactor thread, more than the bound of {BOUND_RENEWAL}"
    );
}
