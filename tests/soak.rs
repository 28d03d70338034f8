// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs randomized fault injection on the simulator for a given time. Jobs of several users run at full rate. Meanwhile
//! munged is killed, stopped and restarted; sources fail, hang and send garbage; jobs are canceled; the plugin is
//! removed and loaded again; its configuration changes; the KVS is slow or full; and descriptors run out. At the end,
//! each job must have its own token or one clear exception. No job may be stuck, nothing may leak, and no secret may be
//! found.
//!
//! `WORKFLOW_TOKEN_SOAK` is the duration in seconds (60). `WORKFLOW_TOKEN_SEED` is the seed of all random choices,
//! which the test prints. The seed does not determine the scheduling of threads and processes.

mod support;

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    fs,
    time::{Duration, Instant},
};

use fastrand::Rng;
use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use support::{
    plugins::{GUEST, Site, decimal, matching, me, until, user},
    search::Search,
    simulator::{Instance, Request},
};

const NAME: &str = "workflow-token.so";

/// The maximum number of concurrent jobs.
const AT_ONCE: usize = 24;

/// The duration of a fault, in milliseconds.
const BROKEN: std::ops::Range<u64> = 50..1500;

/// The command of a source. The word in the file `mode` determines its behavior: it prints its job's own secret, or
/// something else.
const SOURCE: &str = r#"
case $(cat mode) in
good) ;;
fail) echo nothing to be had >&2; exit 3 ;;
hang) sleep 600 ;;
slow) sleep 0.3 ;;
garbage) head -c 300 /dev/urandom; exit 0 ;;
empty) exit 0 ;;
huge) head -c 3000000 /dev/zero | tr '\0' x; exit 0 ;;
killed) kill -9 $$ ;;
esac
printf '%s-of-%s\n' "$(cat canary)" "$1"
"#;
const MODES: &[&str] = &["fail", "hang", "slow", "garbage", "empty", "huge", "killed"];

/// A current fault, and the time at which it ends.
struct Broken {
    until: Instant,
    mend: fn(&mut Soak),
    what: &'static str,
}

struct Job {
    id: String,
    expected: String,
    end: Request,
    canceled: bool,
}

struct Soak {
    site: Site,
    instance: Instance,
    rng: Rng,
    canary: String,
    users: Vec<u32>,
    broken: Vec<Broken>,
    jobs: Vec<Job>,
    submitted: Vec<(Request, bool)>,
    outcomes: BTreeMap<String, usize>,
    chaos: BTreeMap<&'static str, usize>,
    notes: Vec<String>,
    loaded: bool,
}

impl Soak {
    fn table(site: &Site, rng: &mut Rng) -> Value {
        let mut rules = Vec::new();
        for (name, timeout) in [("command", "1s"), ("file", "1s")] {
            let mut rule = match name {
                "command" => {
                    json!({"attribute": "system.command", "source": "command", "command": ["/bin/sh", site.path("source.sh"), "{jobid.dec}"]})
                }
                _ => json!({"attribute": "system.file", "source": "file", "path": site.path("file.secret")}),
            };
            (rule["timeout"], rule["check"]) = (json!(timeout), json!("none"));
            rules.push(rule);
        }
        json!({"timeout": format!("{}s", rng.u32(4..8)), "max-parallel": rng.u32(1..64), "rule": rules})
    }

    fn start(site: Site, rng: Rng) -> Soak {
        let mut rng = rng;
        let canary: String = (0..32).fold(String::new(), |mut text, _| {
            // Writing to a string does not fail. Do not use the seed: the text is a secret.
            let _ = write!(text, "{:x}", fastrand::u8(0..16));
            text
        });
        site.write("canary", 0o600, &canary);
        site.write("file.secret", 0o600, format!("{canary}-of-all\n"));
        site.write("source.sh", 0o600, format!("cd {}\n{SOURCE}", site.path("")));
        site.write("mode", 0o600, "good");
        site.configure(Soak::table(&site, &mut rng));
        // Without its record, a job does not start, whether or not the plugin was loaded when it was allocated.
        let shell = json!({"config": site.path("flux.toml")});
        let instance = site.start(shell, &[]);
        let mut users = vec![me()];
        if me() == 0 {
            users.extend([GUEST, "daemon"].map(|name| user(name).uid.as_raw()));
        }
        Soak {
            site,
            instance,
            rng,
            canary,
            users,
            broken: Vec::new(),
            jobs: Vec::new(),
            submitted: Vec::new(),
            outcomes: BTreeMap::new(),
            chaos: BTreeMap::new(),
            notes: Vec::new(),
            loaded: true,
        }
    }

    /// Submits jobs up to the limit.
    fn submit(&mut self) {
        while self.jobs.len() + self.submitted.len() < AT_ONCE {
            let by_command = self.rng.bool();
            let mut request = matching(if by_command { "command" } else { "file" });
            request["command"] = json!(["sh", "-c", "echo $DW_WORKFLOW_TOKEN"]);
            request["userid"] = json!(self.users[self.rng.usize(..self.users.len())]);
            let sent = self.instance.send("submit", request);
            self.submitted.push((sent, by_command));
        }
    }

    /// Handles the responses for submitted and ended jobs. Returns whether there were any.
    fn hear(&mut self) -> bool {
        let mut heard = false;
        for (request, by_command) in std::mem::take(&mut self.submitted) {
            let Some(response) = self.instance.answered(request) else {
                self.submitted.push((request, by_command));
                continue;
            };
            heard = true;
            let Some(id) = response["jobid"].as_str().map(str::to_owned) else {
                // The simulator itself had no descriptors left.
                *self.outcomes.entry("refused by the simulator".to_owned()).or_default() += 1;
                continue;
            };
            let whose = if by_command {
                decimal(&id).to_string()
            } else {
                "all".to_owned()
            };
            self.jobs.push(Job {
                expected: format!("{}-of-{whose}\n", self.canary),
                end: self.instance.send("wait", json!({"jobid": id, "event": "clean"})),
                id,
                canceled: false,
            });
        }
        for job in std::mem::take(&mut self.jobs) {
            match self.instance.answered(job.end) {
                Some(_) => {
                    heard = true;
                    self.account(&job);
                }
                None => self.jobs.push(job),
            }
        }
        heard
    }

    /// Checks the end of a job: it had its token, or one clear exception, or was canceled.
    fn account(&mut self, job: &Job) {
        let output = self.instance.ok("output", json!({"jobid": job.id}))["stdout"].clone();
        let output = output.as_str().unwrap_or_default().to_owned();
        let exceptions: Vec<Value> = self.instance.contexts(&job.id, "exception");
        let fatal: Vec<&Value> = exceptions.iter().filter(|context| context["severity"] == 0).collect();
        let (canceled, failed): (Vec<&&Value>, Vec<&&Value>) =
            fatal.iter().partition(|context| context["type"] == "cancel");
        assert!(
            output.is_empty() || output == job.expected,
            "{}: its output is not its token",
            job.id
        );
        assert!(failed.len() <= 1, "{}: {fatal:?}", job.id);
        assert!(canceled.is_empty() || job.canceled, "{}: {fatal:?}", job.id);
        if fatal.is_empty() {
            assert_eq!(output, job.expected, "{}: it succeeded without its token", job.id);
        }
        let events = self.instance.events(&job.id);
        let count = |name: &str| events.iter().filter(|event| *event == name).count();
        assert_eq!(count("prolog-start"), count("prolog-finish"), "{}: {events:?}", job.id);
        for context in &failed {
            let note = context["note"].as_str().unwrap_or_default();
            let kind = context["type"].as_str().unwrap_or_default();
            assert!(matches!(kind, "workflow-token" | "exec"), "{}: {context}", job.id);
            assert!(!note.is_empty() && !note.contains('\n'), "{}: {context}", job.id);
            self.notes.push(note.to_owned());
        }
        let outcome = match (failed.first(), canceled.is_empty()) {
            (Some(context), _) => {
                let note = context["note"].as_str().unwrap_or_default();
                let known: String = note.chars().filter(|c| !c.is_ascii_digit()).take(70).collect();
                format!("{}: {known}…", context["type"].as_str().unwrap_or_default())
            }
            (None, false) => "canceled".to_owned(),
            (None, true) => "with its token".to_owned(),
        };
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// Injects a fault for a while.
    fn break_something(&mut self) {
        match self.rng.u32(..13) {
            0 => self.breaks(
                "munged was killed",
                |soak| soak.site.kill_munged(),
                |soak| soak.site.munged.restart(),
            ),
            1 => self.breaks(
                "munged was stopped",
                |soak| soak.site.munged.signal(Signal::SIGSTOP),
                |soak| soak.site.munged.signal(Signal::SIGCONT),
            ),
            2..=4 => self.breaks(
                "the source misbehaved",
                |soak| {
                    let mode = MODES[soak.rng.usize(..MODES.len())];
                    soak.replace("mode", mode);
                },
                |soak| soak.replace("mode", "good"),
            ),
            5 => self.breaks(
                "the file of a source was missing",
                |soak| {
                    fs::rename(soak.site.at("file.secret"), soak.site.at("file.away")).expect("the file of the source");
                },
                |soak| {
                    fs::rename(soak.site.at("file.away"), soak.site.at("file.secret")).expect("the file of the source");
                },
            ),
            6 => {
                for at in 0..self.jobs.len() {
                    if self.rng.u32(..4) == 0 {
                        let job = &mut self.jobs[at];
                        job.canceled = true;
                        let fields = json!({"jobid": job.id});
                        // The job may have ended already.
                        self.instance.send("cancel", fields);
                    }
                }
                *self.chaos.entry("jobs were canceled").or_default() += 1;
            }
            7 => self.breaks(
                "the plugin was removed",
                |soak| {
                    soak.instance.ok("remove", json!({"name": NAME}));
                    soak.loaded = false;
                },
                |soak| {
                    // Without descriptors, the plugin reports this and is not loaded.
                    soak.limit_descriptors(None);
                    let load = json!({"path": soak.site.jobtap()});
                    soak.instance.ok("load", load);
                    soak.loaded = true;
                },
            ),
            8 => {
                // As above.
                self.limit_descriptors(None);
                let table = Soak::table(&self.site, &mut self.rng);
                let config = self.site.config(table);
                self.instance.ok("config-reload", json!({ "config": config }));
                let wrong = self.site.config(json!({"rule": [{"source": "vault"}]}));
                if self.loaded {
                    self.instance.error("config-reload", json!({ "config": wrong }));
                }
                *self.chaos.entry("the configuration was changed").or_default() += 1;
            }
            9 => self.breaks(
                "the KVS did not answer",
                |soak| drop(soak.instance.ok("fault", json!({"what": "hold-commits"}))),
                |soak| drop(soak.instance.ok("fault", json!({"what": "release-commits"}))),
            ),
            10 => {
                let count = self.rng.u32(1..4);
                let fault = json!({"what": "commit", "errnum": libc::ENOSPC, "count": count});
                self.instance.ok("fault", fault);
                *self.chaos.entry("the disk of the KVS was full").or_default() += 1;
            }
            11 => self.breaks(
                "lookups were not answered",
                |soak| drop(soak.instance.ok("fault", json!({"what": "hold-lookups"}))),
                |soak| drop(soak.instance.ok("fault", json!({"what": "release-lookups"}))),
            ),
            _ => self.breaks(
                "descriptors ran out",
                |soak| soak.limit_descriptors(Some(soak.descriptors() as u64)),
                |soak| soak.limit_descriptors(None),
            ),
        }
    }

    fn breaks(&mut self, what: &'static str, break_it: fn(&mut Soak), mend: fn(&mut Soak)) {
        // Skips faults that are already active.
        if self
            .broken
            .iter()
            .any(|broken| broken.what == what || (what.contains("munged") && broken.what.contains("munged")))
        {
            return;
        }
        break_it(self);
        *self.chaos.entry(what).or_default() += 1;
        let mut lasts = self.rng.u64(BROKEN);
        if what.contains("descriptors") {
            lasts /= 8;
        }
        self.broken.push(Broken {
            until: Instant::now() + Duration::from_millis(lasts),
            mend,
            what,
        });
    }

    fn mend(&mut self, all: bool) {
        let now = Instant::now();
        let (over, still) = std::mem::take(&mut self.broken)
            .into_iter()
            .partition(|broken| all || broken.until <= now);
        self.broken = still;
        let over: Vec<Broken> = over;
        for broken in over {
            (broken.mend)(self);
        }
    }

    fn replace(&self, name: &str, content: &str) {
        self.site.write("new", 0o600, content);
        fs::rename(self.site.at("new"), self.site.at(name)).expect("a file is replaced");
    }

    // The state of the instance

    fn entries(&self, what: &str) -> usize {
        let dir = format!("/proc/{}/{what}", self.instance.pid());
        fs::read_dir(dir).expect("the instance is there").count()
    }

    fn descriptors(&self) -> usize {
        self.entries("fd")
    }

    fn limit_descriptors(&self, most: Option<u64>) {
        let pid = Pid::from_raw(self.instance.pid() as i32).expect("a process id");
        let limit = Rlimit {
            current: most.or(Some(1024)),
            maximum: Some(4096),
        };
        prlimit(Some(pid), Resource::Nofile, limit).expect("a limit is set");
    }

    /// Returns the numbers of threads, descriptors, futures and watchers of an idle instance.
    fn holdings(&mut self) -> HashMap<&'static str, i64> {
        let stats = self.instance.ok("stats", json!({}));
        HashMap::from([
            ("threads", self.entries("task") as i64),
            ("descriptors", self.descriptors() as i64),
            ("futures", stats["futures"].as_i64().expect("a count")),
            ("watchers", stats["watchers"].as_i64().expect("a count")),
        ])
    }

    /// Returns the memory of the newly loaded plugin after the given number of jobs without faults.
    fn memory(&mut self) -> u64 {
        self.instance.counter("memory")
    }

    /// Runs some jobs without faults until all their processing has ended.
    fn quiet(&mut self) {
        for round in 0..2 {
            let before = self.outcomes.get("with its token").copied().unwrap_or(0);
            self.submit();
            let jobs = self.jobs.len() + self.submitted.len();
            self.drain();
            let after = self.outcomes.get("with its token").copied().unwrap_or(0);
            assert_eq!(
                after - before,
                jobs,
                "round {round}: jobs failed without a fault: {:?}",
                self.outcomes
            );
        }
        until("the records are removed", || {
            let unlinked = self.instance.counter("unlinked");
            self.instance.counter("in-flight") == 0 && unlinked == self.instance.counter("delivered")
        });
    }

    /// Waits for the current jobs.
    fn drain(&mut self) {
        let mut since = Instant::now();
        while !self.jobs.is_empty() || !self.submitted.is_empty() {
            if self.hear() {
                since = Instant::now();
            }
            let stuck: Vec<&String> = self.jobs.iter().map(|job| &job.id).collect();
            assert!(since.elapsed() < Duration::from_secs(60), "these are stuck: {stuck:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the files, messages and processes that contain a part of a secret.
    fn secrets(&mut self) -> Vec<String> {
        let search = Search::secrets([self.canary.as_bytes()]);
        let mut found: Vec<String> = search
            .files(&self.site.statedir())
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let log = self.instance.dmesg();
        found.extend(
            log.iter()
                .chain(&self.notes)
                .filter(|line| search.finds(line.as_bytes()))
                .cloned(),
        );
        found.extend(search.processes());
        found
    }
}

#[needs::needs(munged)]
#[test]
fn every_job_is_accounted_for_under_fault_injection() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = number("WORKFLOW_TOKEN_SOAK").unwrap_or(60);
    let seed = number("WORKFLOW_TOKEN_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("soak: {seconds} s, WORKFLOW_TOKEN_SEED={seed}");
    let site = Site::with_faults();
    let mut soak = Soak::start(site, Rng::with_seed(seed));
    soak.limit_descriptors(None);
    soak.quiet();
    let (holdings, memory) = (soak.holdings(), soak.memory());

    let end = Instant::now() + Duration::from_secs(seconds);
    let mut next = Instant::now();
    while Instant::now() < end {
        soak.submit();
        if Instant::now() >= next {
            soak.break_something();
            next = Instant::now() + Duration::from_millis(soak.rng.u64(20..300));
        }
        soak.mend(false);
        if !soak.hear() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    soak.mend(true);
    soak.drain();
    for (what, times) in &soak.chaos {
        println!("  {times:6} times {what}");
    }
    for (outcome, jobs) in &soak.outcomes {
        println!("  {jobs:6} jobs {outcome}");
    }
    let reactor = soak.instance.ok("query", json!({"name": NAME}))["result"]["reactor-us"].clone();
    println!("  since the last load: {reactor}");
    assert!(soak.outcomes["with its token"] > 0, "seed {seed}");

    // Loads the plugin again, so that the counters start from a known state.
    soak.instance.ok("remove", json!({"name": NAME}));
    let config = soak.site.at("flux.toml").to_str().expect("a path in UTF-8").to_owned();
    soak.instance.ok("config-reload", json!({ "path": config }));
    soak.instance.ok("load", json!({"path": soak.site.jobtap()}));
    // Ends the faults of commits.
    soak.instance.ok("fault", json!({"what": "commit", "count": 0}));
    soak.quiet();
    let mut now = HashMap::new();
    until(
        &format!("no more resources are held than before (seed {seed}): {holdings:?}"),
        || {
            now = soak.holdings();
            holdings.iter().all(|(what, count)| now[what] <= *count)
        },
    );
    let grown = soak.memory().saturating_sub(memory);
    assert!(
        grown < 64 << 10,
        "the plugin uses {grown} bytes more than before (seed {seed})"
    );
    assert_eq!(soak.secrets(), [] as [String; 0], "seed {seed}");
    soak.instance.shutdown();
}
