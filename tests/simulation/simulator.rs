// SPDX-License-Identifier: MIT OR Apache-2.0

//! The simulator itself, with small plugins in C that have their own declarations.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::support::plugins::decimal;
use crate::support::simulator::{Instance, flux_sim, plugin};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Place {
    dir: TempDir,
    jobtap: String,
    shell: String,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let (jobtap, shell) = (
            path(plugin(dir.path(), "jobtap.c")),
            path(plugin(dir.path(), "shell.c")),
        );
        Place { dir, jobtap, shell }
    }

    fn statedir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn instance(&self, args: &[&str]) -> Instance {
        Instance::start(&self.statedir(), args)
    }

    /// Starts an instance with the plugin for the job manager.
    fn loaded(&self) -> Instance {
        self.instance(&["--jobtap", &self.jobtap])
    }

    /// Starts an instance with the plugin for the job manager, which waits for its service "go".
    fn manual(&self) -> Instance {
        let mut instance = self.instance(&[]);
        instance.ok("load", json!({"path": self.jobtap, "conf": {"manual": 1}}));
        instance
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.statedir().join(name)).unwrap()).into_owned()
    }
}

/// The events of an ordinary job.
const PLAIN: [&str; 10] = [
    "submit", "validate", "depend", "priority", "alloc", "start", "finish", "release", "free", "clean",
];

#[test]
fn a_job_without_plugins_passes_through_all_states() {
    let place = Place::new();
    let mut instance = place.instance(&[]);
    let job = instance.submit(&["sh", "-c", "echo out; echo err >&2; exit 3"], json!({}));
    assert_eq!(instance.wait(&job, "finish")["context"]["status"], 3 << 8);
    instance.wait(&job, "clean");
    assert_eq!(instance.events(&job), PLAIN);
    let output = instance.ok("output", json!({"jobid": job}));
    assert_eq!(
        (output["stdout"].as_str(), output["stderr"].as_str()),
        (Some("out\n"), Some("err\n"))
    );
    assert_eq!(instance.ok("state", json!({"jobid": job}))["state"], "INACTIVE");
    let error = instance.error("wait", json!({"jobid": job, "event": "prolog-start"}));
    assert!(error.contains("ended without the event prolog-start"), "{error}");
    instance.shutdown();
}

#[test]
fn a_held_job_gets_no_resources_until_it_is_cancelled() {
    let place = Place::new();
    let mut instance = place.instance(&[]);
    let job = instance.submit(&["true"], json!({"urgency": 0}));
    instance.wait(&job, "priority");
    instance.ok("cancel", json!({"jobid": job}));
    instance.wait(&job, "clean");
    assert_eq!(
        instance.events(&job),
        ["submit", "validate", "depend", "priority", "exception", "clean"]
    );
}

#[test]
fn a_running_job_is_cancelled() {
    let place = Place::new();
    let mut instance = place.instance(&[]);
    let job = instance.submit(&["sleep", "1000"], json!({}));
    instance.wait(&job, "start");
    let error = instance.error("cancel", json!({"jobid": job, "userid": 4321}));
    assert_eq!(error, "guests can only raise exceptions on their own jobs");
    instance.ok("cancel", json!({"jobid": job}));
    let status = instance.wait(&job, "finish")["context"]["status"].as_i64().unwrap();
    assert_ne!(status, 0);
    instance.wait(&job, "clean");
}

#[test]
fn a_plugin_is_loaded_once_by_its_file_name_and_removed() {
    let place = Place::new();
    let mut instance = place.instance(&[]);
    assert_eq!(instance.ok("load", json!({"path": place.jobtap}))["name"], "jobtap.so");
    assert_eq!(instance.ok("list", json!({}))["plugins"], json!(["jobtap.so"]));

    let refused = instance.send("load", json!({"path": place.jobtap}));
    let refused = instance.response(refused);
    assert_eq!(
        (&refused["error"], &refused["errnum"]),
        (&json!("jobtap.so already loaded"), &json!(libc::EEXIST))
    );
    let result = instance.ok("query", json!({"name": "jobtap.so"}))["result"].clone();
    assert_eq!(
        result["inits"], 2,
        "the second plugin was initialized before it was rejected"
    );
    assert_eq!(
        (&result["name"], &result["path"]),
        (&json!("jobtap.so"), &json!(place.jobtap))
    );

    instance.ok("remove", json!({"name": "job*"}));
    instance.ok("wait-log", json!({"text": "test plugin destroyed"}));
    assert_eq!(
        instance.error("query", json!({"name": "jobtap.so"})),
        "jobtap.so: plugin not found"
    );
    assert_eq!(
        instance.error("remove", json!({"name": "jobtap.so"})),
        "Failed to find plugin to remove"
    );
    instance.ok("load", json!({"path": place.jobtap}));
    let result = instance.ok("query", json!({"name": "jobtap.so"}))["result"].clone();
    assert_eq!(result["inits"], 3, "items of the handle outlive the plugin");
    instance.shutdown();
}

#[test]
fn a_plugin_that_cannot_be_loaded_is_named() {
    let place = Place::new();
    let mut instance = place.instance(&[]);
    let error = instance.error("load", json!({"path": "/nowhere/x.so"}));
    assert_eq!(error, "/nowhere/x.so: No such file or directory");
    let text = place.dir.path().join("text.so");
    std::fs::write(&text, "no object").unwrap();
    assert!(instance.error("load", json!({"path": text})).starts_with("dlopen: "));
    let error = instance.error("load", json!({"path": place.jobtap, "conf": {"fail": 1}}));
    assert_eq!(error, format!("{}: flux_plugin_init failed", place.jobtap));
    let error = instance.error("load", json!({"path": place.jobtap, "conf": [1]}));
    assert_eq!(error, "jobtap: plugin conf must be a JSON object");
    instance.shutdown();
}

#[test]
fn a_configuration_that_a_plugin_rejects_is_not_used() {
    let place = Place::new();
    let mut instance = place.loaded();
    let error = instance.error("config-reload", json!({"config": {"test": {"bad": "worse"}}}));
    assert_eq!(error, "test.bad: worse is refused");
    instance.ok("config-reload", json!({"config": {"test": {}}}));
    instance.shutdown();

    let config = place.dir.path().join("bad.toml");
    let toml = format!(
        "[test]\nbad = \"x\"\n[[job-manager.plugins]]\nload = \"{}\"\n",
        place.jobtap
    );
    std::fs::write(&config, toml).unwrap();
    let output = Command::new(flux_sim())
        .args([
            "instance",
            "--statedir",
            place.statedir().to_str().unwrap(),
            "--config",
            config.to_str().unwrap(),
        ])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains("test.bad: x is refused"),
        "{stderr}"
    );
}

#[test]
fn a_job_that_a_plugin_rejects_leaves_nothing_behind() {
    let place = Place::new();
    let mut instance = place.loaded();
    let request = json!({"command": ["true"], "attributes": {"system": {"reject": "no"}}, "env": {"A": "b"}});
    assert_eq!(instance.error("submit", request), "rejected: no");
    instance.ok("kvs-put", json!({"key": "a.b", "value": "c"}));
    assert_eq!(instance.ok("kvs-list", json!({}))["keys"], json!(["a.b"]));
    assert_eq!(
        instance.error("submit", json!({"jobspec": {"tasks": 1}})),
        "jobspec: tasks[0].command must be an array of strings"
    );
    instance.shutdown();
}

#[test]
fn a_prolog_is_finished_by_a_wake_from_another_thread_and_then_the_job_starts() {
    let place = Place::new();
    let mut instance = place.loaded();
    let job = instance.submit(&["true"], json!({}));
    instance.wait(&job, "clean");
    let mut expected = PLAIN.to_vec();
    expected.splice(5..5, ["prolog-start", "prolog-finish"]);
    assert_eq!(instance.events(&job), expected);
    assert_eq!(
        instance.ok("lookup", json!({"jobid": job, "key": "test"}))["value"],
        "\"canary\""
    );
    let stats = instance.ok("stats", json!({}));
    assert_eq!(stats["topics"]["job.state.run"]["count"], 1, "{stats}");
    assert_eq!(stats["topics"]["continuation"]["count"], 1, "{stats}");
    instance.shutdown();
    assert!(place.read("content").contains("\"canary\""));
}

#[test]
fn a_job_does_not_start_before_its_prolog_has_finished() {
    let place = Place::new();
    let mut instance = place.manual();
    let job = instance.submit(&["true"], json!({}));
    instance.wait(&job, "prolog-start");
    assert_eq!(instance.ok("state", json!({"jobid": job}))["perilog_active"], 1);
    instance.ok("fault", json!({"what": "hold-commits"}));
    let denied = json!({"topic": "job-manager.test.go", "userid": 4321});
    assert_eq!(instance.error("rpc", denied), "Request requires owner credentials");
    assert_eq!(
        instance.ok("rpc", json!({"topic": "job-manager.test.go"}))["payload"]["going"],
        1
    );
    instance.ok("wait-held", json!({"count": 1}));
    assert_eq!(instance.events(&job).last().unwrap(), "prolog-start");
    instance.ok("fault", json!({"what": "release-commits"}));
    instance.wait(&job, "start");
    instance.wait(&job, "clean");
    instance.shutdown();
}

#[test]
fn jobs_wait_where_they_are_held_until_all_of_them_are_released() {
    let place = Place::new();
    let mut instance = place.instance(&[]);
    instance.ok("fault", json!({"what": "hold-allocs"}));
    instance.ok("fault", json!({"what": "hold-starts"}));
    let jobs: Vec<String> = (0..3).map(|_| instance.submit(&["true"], json!({}))).collect();
    for (event, state, release) in [("priority", "SCHED", "allocs"), ("alloc", "RUN", "starts")] {
        for job in &jobs {
            instance.wait(job, event);
            assert_eq!(instance.events(job).last().unwrap(), event);
            assert_eq!(instance.ok("state", json!({"jobid": job}))["state"], state);
        }
        if state == "RUN" {
            instance.ok("cancel", json!({"jobid": jobs[0]}));
            instance.wait(&jobs[0], "clean");
        }
        instance.ok("fault", json!({"what": format!("release-{release}")}));
    }
    for job in &jobs {
        instance.wait(job, "clean");
        assert_eq!(instance.events(job).contains(&"start".to_owned()), job != &jobs[0]);
    }
    instance.shutdown();
}

#[test]
fn a_job_cancelled_in_its_prolog_ends_when_the_prolog_does() {
    let place = Place::new();
    let mut instance = place.manual();
    let job = instance.submit(&["true"], json!({}));
    instance.wait(&job, "prolog-start");
    instance.ok("cancel", json!({"jobid": job}));
    instance.wait(&job, "exception");
    assert_eq!(instance.ok("state", json!({"jobid": job}))["state"], "CLEANUP");
    instance.ok("rpc", json!({"topic": "job-manager.test.go"}));
    instance.wait(&job, "clean");
    let tail = ["alloc", "prolog-start", "exception", "prolog-finish", "free", "clean"];
    assert_eq!(instance.events(&job)[4..], tail);
    instance.shutdown();
}

#[test]
fn a_refused_commit_fails_the_job_and_not_the_instance() {
    let place = Place::new();
    let mut instance = place.loaded();
    instance.ok("fault", json!({"what": "commit", "errnum": libc::ENOSPC}));
    let job = instance.submit(&["true"], json!({}));
    let exception = instance.wait(&job, "exception")["context"].clone();
    assert_eq!(exception["note"], "commit failed: No space left on device");
    assert_eq!(instance.wait(&job, "prolog-finish")["context"]["status"], 1);
    instance.wait(&job, "clean");
    assert!(!instance.events(&job).contains(&"start".to_owned()));
    let job = instance.submit(&["true"], json!({}));
    instance.wait(&job, "start");
    instance.shutdown();
}

#[test]
fn a_key_of_a_job_is_for_its_owner_and_the_instance_owner() {
    let place = Place::new();
    let mut instance = place.manual();
    let job = instance.submit(&["true"], json!({"userid": 4321}));
    instance.wait(&job, "prolog-start");
    let lookup = |key: &str, userid: Option<u32>| json!({"jobid": job, "key": key, "userid": userid});
    for userid in [None, Some(4321)] {
        let jobspec = instance.ok("lookup", lookup("jobspec", userid))["value"].clone();
        assert!(jobspec.as_str().unwrap().contains("command"));
        assert_eq!(instance.error("lookup", lookup("test", userid)), "test: key not found");
    }
    let denied = instance.error("lookup", lookup("jobspec", Some(4322)));
    assert_eq!(denied, "access is restricted to job/instance owner");
    assert_eq!(
        instance.error("lookup", json!({"jobid": "ƒ1234", "key": "x"})),
        "invalid job id"
    );
    instance.shutdown();
}

#[test]
fn a_restarted_instance_replays_a_job_in_its_prolog() {
    let place = Place::new();
    let config = place.dir.path().join("plugins.toml");
    std::fs::write(
        &config,
        format!("[[job-manager.plugins]]\nload = \"{}\"\n", place.jobtap),
    )
    .unwrap();
    for end in [Instance::shutdown, Instance::kill] {
        let mut instance = place.manual();
        let done = instance.submit(&["true"], json!({"urgency": 0}));
        instance.ok("cancel", json!({"jobid": done}));
        instance.wait(&done, "clean");
        let job = instance.submit(&["true"], json!({"env": {"A": "b"}}));
        instance.wait(&job, "prolog-start");
        end(instance);

        let mut instance = place.instance(&["--config", config.to_str().unwrap()]);
        instance.ok("wait-log", json!({"text": "job.new state=16"}));
        instance.wait(&job, "clean");
        let mut expected = PLAIN.to_vec();
        expected.splice(5..5, ["prolog-start", "prolog-finish"]);
        assert_eq!(instance.events(&job), expected);
        assert_eq!(instance.ok("state", json!({"jobid": done}))["state"], "INACTIVE");
        let later = instance.submit(&["true"], json!({}));
        instance.wait(&later, "clean");
        assert!(later != job);
        instance.shutdown();
    }
}

#[test]
fn a_job_that_ran_at_the_end_of_the_instance_fails() {
    let place = Place::new();
    let mut instance = place.instance(&[]);
    let job = instance.submit(&["sleep", "1000"], json!({}));
    instance.wait(&job, "start");
    instance.kill();
    let mut instance = place.instance(&[]);
    let note = instance.wait(&job, "exception")["context"]["note"].clone();
    assert!(note.as_str().unwrap().contains("the instance was restarted"), "{note}");
    instance.wait(&job, "clean");
    let events = instance.events(&job);
    assert_eq!(events[5..], ["start", "exception", "release", "free", "clean"]);
    instance.shutdown();
}

#[test]
fn a_shell_plugin_reads_a_key_and_sets_the_environment_of_the_task() {
    let place = Place::new();
    let mut instance = place.instance(&[
        "--jobtap",
        &place.jobtap,
        "--shell-plugin",
        &place.shell,
        "--shell-conf",
        "{\"a\":1}",
    ]);
    let job = instance.submit(
        &["sh", "-c", "echo $TEST_VALUE $TEST_KEPT $TEST_CONF"],
        json!({"env": {"TEST_KEPT": "kept"}}),
    );
    instance.wait(&job, "clean");
    let output = instance.ok("output", json!({"jobid": job}));
    assert_eq!(output["stdout"], "canary kept {\"a\":1}\n", "{output}");
    let log = "flux-shell[0]:  WARN: test: rank 0 of 1\nflux-shell[0]:  WARN: test: shell.start\n\
               flux-shell[0]:  WARN: test: shell.exit\n";
    assert_eq!(output["stderr"], log);

    let verbose = json!({"attributes": {"system": {"shell": {"options": {"verbose": 1}}}}});
    let job = instance.submit(&["true"], verbose);
    instance.wait(&job, "clean");
    let output = instance.ok("output", json!({"jobid": job}))["output"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(output.contains("flux-shell[0]: DEBUG: test: detail\n"), "{output}");
    instance.shutdown();
}

#[test]
fn a_failing_shell_raises_an_exception() {
    let place = Place::new();
    let mut instance = place.instance(&["--shell-plugin", &place.shell]);
    let job = instance.submit(&["true"], json!({}));
    let exception = instance.wait(&job, "exception")["context"].clone();
    assert_eq!(
        (&exception["type"], &exception["severity"]),
        (&json!("exec"), &json!(0))
    );
    assert_eq!(exception["note"], "lookup: test: key not found");
    assert_eq!(instance.wait(&job, "finish")["context"]["status"], 7 << 8);
    instance.wait(&job, "clean");
    let output = instance.ok("output", json!({"jobid": job}))["output"].clone();
    assert_eq!(output, "flux-shell[0]: FATAL: test: lookup: test: key not found\n");

    // All shells of a job end if one of them does, even those that wait for it.
    let options = json!({"nodes": 3, "attributes": {"system": {"shell": {"options": {"fatal": {"why": "tested"}}}}}});
    let job = instance.submit(&["true"], options);
    let note = instance.wait(&job, "exception")["context"]["note"].clone();
    assert_eq!(note, "asked to fail with {\"why\":\"tested\"}");
    instance.wait(&job, "clean");
    instance.shutdown();
}

#[test]
fn each_node_has_a_shell() {
    let place = Place::new();
    let mut instance = place.instance(&["--jobtap", &place.jobtap, "--shell-plugin", &place.shell]);
    let job = instance.submit(&["sh", "-c", "exit $FLUX_TASK_RANK"], json!({"nodes": 3}));
    assert_eq!(instance.wait(&job, "finish")["context"]["status"], 2 << 8);
    instance.wait(&job, "clean");
    let output = instance.ok("output", json!({"jobid": job}))["output"]
        .as_str()
        .unwrap()
        .to_owned();
    for rank in 0..3 {
        assert!(
            output.contains(&format!("flux-shell[{rank}]:  WARN: test: rank {rank} of 3\n")),
            "{output}"
        );
    }
    instance.shutdown();
}

#[test]
fn a_guest_shell_runs_as_the_job_owner() {
    let place = Place::new();
    let mut instance = place.instance(&["--jobtap", &place.jobtap, "--shell-plugin", &place.shell]);
    let nobody = nix::unistd::User::from_name("nobody")
        .unwrap()
        .expect("there is a user nobody")
        .uid
        .as_raw();
    let job = instance.submit(
        &["sh", "-c", "id -u; id -G; echo $TEST_VALUE"],
        json!({"userid": nobody}),
    );
    if !nix::unistd::geteuid().is_root() {
        let note = instance.wait(&job, "exception")["context"]["note"].clone();
        assert!(note.as_str().unwrap().contains("does not run as root"), "{note}");
        instance.wait(&job, "clean");
        return;
    }
    instance.wait(&job, "clean");
    let output = instance.ok("output", json!({"jobid": job}));
    let lines: Vec<&str> = output["stdout"].as_str().unwrap().lines().collect();
    assert_eq!(
        (lines[0], lines[2]),
        (nobody.to_string().as_str(), "canary"),
        "{output}"
    );
    assert!(!lines[1].split(' ').any(|gid| gid == "0"), "{output}");

    let job = instance.submit(&["true"], json!({"userid": 3_999_999}));
    let note = instance.wait(&job, "exception")["context"]["note"].clone();
    assert_eq!(note, "uid 3999999 is not in the password database");
    instance.wait(&job, "clean");
    instance.shutdown();
}

/// The plugin that a test controls, see puppet.c.
struct Puppet(String);

impl Puppet {
    fn new(place: &Place) -> Puppet {
        Puppet(plugin(place.dir.path(), "puppet.c").to_str().unwrap().to_owned())
    }

    /// Loads it, with its actions in the callbacks of some topics.
    #[track_caller]
    fn load(&self, instance: &mut Instance, on: Value) {
        instance.ok("load", json!({"path": self.0, "conf": {"on": on}}));
    }

    /// Returns the configuration of an instance that loads it at start.
    fn config(&self, place: &Place, on: Value) -> String {
        let config = json!({"job-manager": {"plugins": [{"load": self.0, "conf": {"on": on}}]}});
        let path = place.dir.path().join("puppet.toml");
        std::fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// Makes the puppet act outside of any callback. Returns the result of each function, or its error number.
#[track_caller]
fn act(instance: &mut Instance, id: u64, actions: Value) -> Vec<Result<i64, i32>> {
    let request = json!({"topic": "job-manager.puppet.do", "payload": {"id": id, "actions": actions}});
    let results = instance.ok("rpc", request)["payload"]["results"].clone();
    let result = |result: &Value| match result["errno"].as_i64() {
        Some(errno) => Err(errno as i32),
        None => Ok(result["rc"].as_i64().unwrap()),
    };
    results.as_array().unwrap().iter().map(result).collect()
}

/// Returns the calls to the puppet and its actions so far.
#[track_caller]
fn calls(instance: &mut Instance) -> Vec<Value> {
    let result = instance.ok("query", json!({"name": "puppet.so"}))["result"].clone();
    result["calls"].as_array().unwrap().clone()
}

/// Returns the topics of the callbacks about a job.
#[track_caller]
fn topics(instance: &mut Instance, job: &str) -> Vec<String> {
    let id = decimal(job);
    let calls = calls(instance).into_iter().filter(|call| call["id"] == id);
    calls.map(|call| call["topic"].as_str().unwrap().to_owned()).collect()
}

/// Returns the first callback of a topic.
#[track_caller]
fn call(instance: &mut Instance, topic: &str) -> Value {
    let calls = calls(instance);
    let call = calls.iter().find(|call| call["topic"] == topic);
    call.unwrap_or_else(|| panic!("no {topic} in {calls:?}")).clone()
}

fn depends_on(description: &str) -> Value {
    json!([{"do": "dependency-add", "description": description}])
}

/// The two ways to end an instance before a restart.
const ENDS: [fn(Instance); 2] = [Instance::shutdown, Instance::kill];

#[test]
fn a_job_waits_for_its_dependencies() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    let mut instance = place.instance(&[]);
    let add = |description: &str| json!({"do": "dependency-add", "description": description});
    let remove = |description: &str| json!({"do": "dependency-remove", "description": description});
    let mut current = add("c");
    current["current"] = json!(true);
    puppet.load(
        &mut instance,
        json!({"job.state.depend": [add("a"), add("b"), current]}),
    );
    let job = instance.submit(&["true"], json!({}));
    let id = decimal(&job);
    instance.ok("wait", json!({"jobid": job, "event": "dependency-add", "count": 2}));
    let state = instance.ok("state", json!({"jobid": job}));
    assert_eq!(
        (&state["state"], &state["dependencies"]),
        (&json!("DEPEND"), &json!(["a", "b"]))
    );
    assert!(
        calls(&mut instance).contains(&json!({"did": "dependency-add", "rc": -1, "errno": libc::ENOENT})),
        "the current job has no name here"
    );

    let results = act(
        &mut instance,
        id,
        json!([add("a"), remove("none"), remove("a"), add("a"), add("d"), {"do": "dependency-add"}, remove("b")]),
    );
    let errors = [Ok(0), Err(libc::ENOENT), Ok(0), Ok(0), Ok(0), Err(libc::EINVAL), Ok(0)];
    assert_eq!(results, errors);
    let state = instance.ok("state", json!({"jobid": job}));
    assert_eq!(
        state["dependencies"],
        json!(["d"]),
        "a removed dependency cannot be added again"
    );

    assert_eq!(act(&mut instance, id, json!([remove("d")])), [Ok(0)]);
    instance.wait(&job, "clean");
    let mut expected = PLAIN.to_vec();
    expected.splice(
        2..2,
        ["add", "add", "remove", "add", "add", "remove", "remove"].map(|what| match what {
            "add" => "dependency-add",
            _ => "dependency-remove",
        }),
    );
    assert_eq!(instance.events(&job), expected);
    assert_eq!(act(&mut instance, id, json!([add("e")])), [Err(libc::ENOENT)]);
    instance.ok("remove", json!({"name": "puppet.so"}));

    puppet.load(&mut instance, json!({"job.state.run": [add("late")]}));
    let job = instance.submit(&["true"], json!({}));
    instance.wait(&job, "clean");
    assert!(calls(&mut instance).contains(&json!({"did": "dependency-add", "rc": -1, "errno": libc::EINVAL})));
    instance.shutdown();
}

#[test]
fn a_dependency_survives_a_reload_and_a_restart() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    let on = json!({"job.state.depend": depends_on("a")});
    for end in ENDS {
        let mut instance = place.instance(&[]);
        puppet.load(&mut instance, on.clone());
        let job = instance.submit(&["true"], json!({}));
        instance.wait(&job, "dependency-add");
        instance.ok("remove", json!({"name": "puppet.so"}));
        puppet.load(&mut instance, on.clone());
        assert_eq!(
            topics(&mut instance, &job),
            ["job.create", "job.new", "job.state.depend"]
        );
        end(instance);

        let config = puppet.config(&place, on.clone());
        let mut instance = place.instance(&["--config", &config]);
        assert_eq!(
            topics(&mut instance, &job),
            ["job.create", "job.new"],
            "a restart does not change the state"
        );
        let id = decimal(&job);
        assert_eq!(act(&mut instance, id, depends_on("a")), [Ok(0)]);
        let state = instance.ok("state", json!({"jobid": job}));
        assert_eq!(state["dependencies"], json!(["a"]));
        let remove = json!([{"do": "dependency-remove", "description": "a"}]);
        assert_eq!(act(&mut instance, id, remove), [Ok(0)]);
        instance.wait(&job, "clean");
        let mut expected = PLAIN.to_vec();
        expected.splice(2..2, ["dependency-add", "dependency-remove"]);
        assert_eq!(instance.events(&job), expected);
        instance.shutdown();
    }
}

#[test]
fn an_epilog_keeps_the_resources_until_all_have_finished() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    let mut instance = place.instance(&[]);
    let start = |description: &str| json!([{"do": "epilog-start", "description": description}]);
    let finish = |description: &str| json!([{"do": "epilog-finish", "description": description, "status": 3}]);
    let on = json!({
        "job.new": [{"do": "subscribe", "current": true}],
        "job.state.run": start("early"),
        "job.event.finish": start("one"),
        "job.state.cleanup": start("two"),
        "job.event.free": start("late"),
    });
    puppet.load(&mut instance, on);
    let job = instance.submit(&["true"], json!({}));
    let id = decimal(&job);
    instance.wait(&job, "release");
    let state = instance.ok("state", json!({"jobid": job}));
    assert_eq!(
        (&state["state"], &state["perilog_active"]),
        (&json!("CLEANUP"), &json!(2))
    );
    let early = json!({"did": "epilog-start", "rc": -1, "errno": libc::EINVAL});
    assert!(
        calls(&mut instance).contains(&early),
        "there is no epilog before CLEANUP"
    );
    assert_eq!(
        act(&mut instance, id, start("nobody")),
        [Err(libc::EINVAL)],
        "an epilog starts in a callback"
    );

    assert_eq!(act(&mut instance, id, finish("one")), [Ok(0)]);
    instance.wait(&job, "epilog-finish");
    assert_eq!(instance.ok("state", json!({"jobid": job}))["perilog_active"], 1);
    assert_eq!(act(&mut instance, id, finish("two")), [Ok(0)]);
    instance.wait(&job, "free");
    assert_eq!(
        instance.ok("state", json!({"jobid": job}))["state"],
        "CLEANUP",
        "an epilog that starts after the resources are released still holds the job"
    );
    assert_eq!(act(&mut instance, id, finish("late")), [Ok(0)]);
    instance.wait(&job, "clean");
    assert_eq!(act(&mut instance, id, finish("late")), [Err(libc::ENOENT)]);
    let mut expected = PLAIN.to_vec();
    expected.splice(
        7..9,
        [
            "epilog-start",
            "epilog-start",
            "release",
            "epilog-finish",
            "epilog-finish",
            "free",
            "epilog-start",
            "epilog-finish",
        ],
    );
    assert_eq!(instance.events(&job), expected);
    let events = instance.ok("eventlog", json!({"jobid": job}))["events"].clone();
    assert_eq!(events[10]["context"], json!({"description": "one", "status": 3}));

    let running = instance.submit(&["sleep", "1000"], json!({}));
    instance.wait(&running, "start");
    assert_eq!(
        act(&mut instance, decimal(&running), finish("one")),
        [Err(libc::EINVAL)]
    );
    instance.shutdown();
}

#[test]
fn a_restarted_instance_waits_for_the_epilog() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    for end in ENDS {
        let mut instance = place.instance(&[]);
        let on = json!({"job.state.cleanup": [{"do": "epilog-start", "description": "a"}]});
        puppet.load(&mut instance, on);
        let job = instance.submit(&["true"], json!({}));
        instance.wait(&job, "release");
        end(instance);

        let config = puppet.config(&place, json!({}));
        let mut instance = place.instance(&["--config", &config]);
        let new = call(&mut instance, "job.new");
        assert_eq!(
            (&new["state"], &new["end_event"]["name"]),
            (&json!(32), &json!("finish"))
        );
        assert_eq!(new["R"]["execution"]["R_lite"][0]["rank"], "0");
        assert_eq!(topics(&mut instance, &job), ["job.create", "job.new"]);
        let finish = json!([{"do": "epilog-finish", "description": "a"}]);
        assert_eq!(act(&mut instance, decimal(&job), finish), [Ok(0)]);
        instance.wait(&job, "clean");
        let mut expected = PLAIN.to_vec();
        expected.splice(7..8, ["epilog-start", "release", "epilog-finish"]);
        assert_eq!(instance.events(&job), expected);
        instance.shutdown();
    }
}

#[test]
fn an_exception_in_a_prolog_begins_the_epilog_before_the_prolog_has_finished() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    let mut instance = place.instance(&[]);
    let on = json!({
        "job.state.run": [{"do": "subscribe", "current": true}, {"do": "prolog-start", "description": "p"}],
        "job.state.cleanup": [{"do": "prolog-start", "description": "late"}, {"do": "epilog-start", "description": "e"}],
    });
    puppet.load(&mut instance, on);
    let job = instance.submit(&["true"], json!({}));
    let id = decimal(&job);
    instance.wait(&job, "prolog-start");
    let raise = |severity| json!({"do": "raise", "name": "test", "severity": severity, "description": "why"});
    let results = act(
        &mut instance,
        id,
        json!([
            raise(3),
            raise(0),
            raise(0),
            {"do": "epilog-finish", "description": "e"},
            {"do": "prolog-finish", "description": "p", "status": 1},
        ]),
    );
    assert_eq!(results, [Ok(0); 5]);
    instance.wait(&job, "clean");
    let tail = [
        "prolog-start",
        "exception",
        "exception",
        "epilog-start",
        "exception",
        "epilog-finish",
        "prolog-finish",
        "free",
        "clean",
    ];
    assert_eq!(instance.events(&job)[5..], tail);
    let topics = topics(&mut instance, &job);
    let run = topics.iter().position(|topic| topic == "job.state.run").unwrap();
    let expected = [
        "job.state.run",
        "job.event.prolog-start",
        "job.event.exception",
        "job.event.exception",
        "job.state.cleanup",
        "job.event.epilog-start",
        "job.event.exception",
        "job.event.epilog-finish",
        "job.event.prolog-finish",
        "job.event.free",
        "job.event.clean",
        "job.state.inactive",
        "job.inactive-add",
        "job.destroy",
    ];
    assert_eq!(topics[run..], expected);
    let late = json!({"did": "prolog-start", "rc": -1, "errno": libc::EINVAL});
    assert!(calls(&mut instance).contains(&late));
    instance.shutdown();
}

#[test]
fn a_subscriber_receives_every_event_once_per_subscription() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    let mut instance = place.instance(&[]);
    let on = json!({
        "job.new": [{"do": "subscribe", "current": true}],
        "job.state.cleanup": [{"do": "subscribe"}],
    });
    puppet.load(&mut instance, on);
    let job = instance.submit(&["true"], json!({}));
    instance.wait(&job, "clean");
    let expected = [
        "job.create",
        "job.new",
        "job.event.validate",
        "job.state.depend",
        "job.event.depend",
        "job.state.priority",
        "job.event.priority",
        "job.state.sched",
        "job.event.annotations",
        "job.event.alloc",
        "job.state.run",
        "job.event.start",
        "job.event.finish",
        "job.state.cleanup",
        "job.event.release",
        "job.event.release",
        "job.event.free",
        "job.event.free",
        "job.event.clean",
        "job.event.clean",
        "job.state.inactive",
        "job.inactive-add",
        "job.destroy",
    ];
    assert_eq!(topics(&mut instance, &job), expected);

    let finish = call(&mut instance, "job.event.finish");
    assert_eq!(
        (&finish["entry"]["name"], &finish["entry"]["context"]),
        (&json!("finish"), &json!({"status": 0}))
    );
    assert!(finish["entry"]["timestamp"].is_f64());
    assert_eq!(
        (&finish["state"], &finish["prev_state"]),
        (&json!(32), &Value::Null),
        "the state is the new one"
    );
    let cleanup = call(&mut instance, "job.state.cleanup");
    assert_eq!(
        (&cleanup["entry"], &cleanup["prev_state"]),
        (&finish["entry"], &json!(16))
    );

    let subscribe = json!([{"do": "subscribe"}]);
    assert_eq!(
        act(&mut instance, decimal(&job), subscribe.clone()),
        [Err(libc::ENOENT)]
    );
    let held = instance.submit(&["true"], json!({"urgency": 0}));
    instance.wait(&held, "priority");
    assert_eq!(act(&mut instance, decimal(&held), subscribe), [Ok(0)]);
    instance.ok("remove", json!({"name": "puppet.so"}));
    instance.ok("cancel", json!({"jobid": held}));
    instance.wait(&held, "clean");
    instance.shutdown();
}

#[test]
fn a_plugin_posts_its_own_events_and_knows_posted_events() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    let mut instance = place.instance(&[]);
    puppet.load(&mut instance, json!({"job.state.depend": depends_on("a")}));
    let job = instance.submit(&["true"], json!({}));
    let id = decimal(&job);
    instance.wait(&job, "dependency-add");
    let posted = |name: &str| json!({"do": "event-posted", "name": name});
    let results = act(
        &mut instance,
        id,
        json!([
            posted("mine"),
            {"do": "post", "name": "mine", "context": {"a": [1, "b"]}},
            {"do": "post", "name": "bare"},
            {"do": "post", "name": ""},
            {"do": "post", "name": "array", "context": [1]},
            posted("mine"),
            posted("dependency-add"),
            posted("alloc"),
        ]),
    );
    let (invalid, none) = (Err(libc::EINVAL), Err(libc::ENOENT));
    assert_eq!(results, [Ok(0), Ok(0), Ok(0), invalid, invalid, Ok(1), Ok(1), Ok(0)]);
    assert_eq!(instance.wait(&job, "mine")["context"], json!({"a": [1, "b"]}));
    assert!(instance.wait(&job, "bare").get("context").is_none());
    let unknown = json!([posted("mine"), {"do": "post", "name": "mine"}, {"do": "subscribe"}]);
    assert_eq!(act(&mut instance, 1234, unknown), [none; 3]);
    instance.kill();

    let config = puppet.config(&place, json!({}));
    let mut instance = place.instance(&["--config", &config]);
    let after = json!([
        posted("mine"),
        posted("dependency-add"),
        {"do": "dependency-remove", "description": "a"},
        posted("dependency-remove"),
    ]);
    assert_eq!(
        act(&mut instance, id, after),
        [Ok(0), Ok(0), Ok(0), Ok(1)],
        "replayed events do not count"
    );
    instance.wait(&job, "clean");
    let inactive = json!([posted("clean"), {"do": "post", "name": "mine"}]);
    assert_eq!(act(&mut instance, id, inactive), [Ok(1), none]);
    instance.shutdown();
}

#[test]
fn a_plugin_updates_the_jobspec_of_a_job_that_does_not_run_yet() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    let mut instance = place.instance(&[]);
    let update = |updates: Value| json!({"do": "update", "context": updates});
    let on = json!({
        "job.new": [{"do": "subscribe", "current": true}],
        "job.state.depend": depends_on("a"),
        "job.update": [update(json!({"attributes.system.b": 1}))],
        "job.state.run": [update(json!({"attributes.system.b": 1})), {"do": "prolog-start", "description": "p"}],
    });
    puppet.load(&mut instance, on);
    let request = json!({"urgency": 0, "env": {"A": "b"}, "attributes": {"system": {"given": 1}}});
    let job = instance.submit(&["true"], request);
    let id = decimal(&job);
    instance.wait(&job, "dependency-add");
    let (invalid, updates) = (
        Err(libc::EINVAL),
        json!({"attributes.system.made.deep": {"x": 1}, "attributes.user": "u"}),
    );
    let results = act(
        &mut instance,
        id,
        json!([
            update(updates.clone()),
            update(json!({"version": 2})),
            update(json!({"attributes.system.given.deeper": 1})),
            update(json!([1])),
            {"do": "lookup"},
        ]),
    );
    assert_eq!(results, [Ok(0), invalid, invalid, invalid, Ok(0)]);
    assert_eq!(instance.wait(&job, "jobspec-update")["context"], updates);
    assert_eq!(call(&mut instance, "job.update")["updates"], updates);
    let denied = json!({"did": "update", "rc": -1, "errno": libc::EINVAL});
    let in_callback = calls(&mut instance)
        .iter()
        .skip_while(|call| call["topic"] != "job.update")
        .nth(1)
        .cloned();
    assert_eq!(in_callback, Some(denied), "not the job that a callback concerns");
    let lookups = calls(&mut instance);
    let jobspec = &lookups.iter().find_map(|call| call.get("lookup")).unwrap()["jobspec"];
    let expected = json!({"duration": 0, "given": 1, "made": {"deep": {"x": 1}}});
    assert_eq!(
        (&jobspec["attributes"]["system"], &jobspec["attributes"]["user"]),
        (&expected, &json!("u"))
    );

    // A job that waits for resources receives a new priority after the plugins were notified of the update.
    let remove = json!([{"do": "dependency-remove", "description": "a"}]);
    assert_eq!(act(&mut instance, id, remove), [Ok(0)]);
    instance.wait(&job, "priority");
    let before = topics(&mut instance, &job).len();
    let resource = json!({"type": "slot", "count": 1, "label": "task", "with": [{"type": "core", "count": 1}]});
    let resources = json!({"resources": [{"type": "node", "count": 3, "with": [resource]}]});
    assert_eq!(act(&mut instance, id, json!([update(resources)])), [Ok(0)]);
    let expected = [
        "job.event.jobspec-update",
        "job.update",
        "job.state.priority",
        "job.event.priority",
        "job.state.sched",
    ];
    assert_eq!(topics(&mut instance, &job)[before..], expected);
    instance.ok("wait", json!({"jobid": job, "event": "priority", "count": 2}));
    instance.kill();
    assert_replays_updates(&place, &puppet, &job);
}

/// Asserts that a new job manager replays the updates of a job, and that the key in the KVS is as submitted, unless the
/// caller requests the current jobspec.
fn assert_replays_updates(place: &Place, puppet: &Puppet, job: &str) {
    let update = |updates: Value| json!({"do": "update", "context": updates});
    let (id, invalid) = (decimal(job), Err(libc::EINVAL));
    let config = puppet.config(
        place,
        json!({"job.state.run": [{"do": "prolog-start", "description": "p"}]}),
    );
    let mut instance = place.instance(&["--config", &config]);
    let new = call(&mut instance, "job.new")["jobspec"].clone();
    assert_eq!(
        (&new["attributes"]["user"], &new["resources"][0]["count"]),
        (&json!("u"), &json!(3))
    );
    let lookup = |flags: u64| json!({"jobid": job, "key": "jobspec", "flags": flags});
    let old = instance.ok("lookup", lookup(1))["value"].clone();
    assert_eq!(
        (&old["attributes"]["user"], &old["resources"][0]["count"]),
        (&Value::Null, &json!(1))
    );
    assert_eq!(instance.ok("lookup", lookup(3))["value"], new);
    instance.ok(
        "post",
        json!({"jobid": job, "name": "urgency", "context": {"urgency": 16}}),
    );
    instance.wait(job, "prolog-start");
    let run = call(&mut instance, "job.state.run");
    assert_eq!(
        run["R"]["execution"]["R_lite"][0]["rank"], "0-2",
        "it receives the resources of the updated jobspec"
    );
    let late = json!([update(json!({"attributes.user": 1})), {"do": "prolog-finish", "description": "p"}]);
    assert_eq!(act(&mut instance, id, late), [invalid, Ok(0)]);
    instance.wait(job, "clean");
    assert_eq!(
        act(&mut instance, 1234, json!([update(json!({"attributes.user": 1}))])),
        [invalid]
    );
    instance.shutdown();
}

#[test]
fn a_plugin_and_the_store_know_the_nodes_of_a_job() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    let mut instance = place.instance(&[]);
    puppet.load(&mut instance, json!({}));
    let job = instance.submit(&["true"], json!({"nodes": 3}));
    instance.wait(&job, "clean");
    let sched = call(&mut instance, "job.state.sched");
    assert!(sched.get("R").is_none(), "there are no resources yet");
    let resources = call(&mut instance, "job.state.run")["R"].clone();
    let hosts = resources["execution"]["nodelist"].as_array().unwrap();
    assert_eq!(hosts.len(), 1, "a hostlist");
    assert_eq!(hosts[0].as_str().unwrap().split(',').count(), 3);
    assert_eq!(resources["execution"]["R_lite"][0]["rank"], "0-2");
    assert_eq!(
        call(&mut instance, "job.state.inactive")["R"],
        resources,
        "plugins still know them after their release"
    );

    let keys = json!({"jobid": job, "keys": ["R", "eventlog", "jobspec"], "flags": 1});
    let values = instance.ok("lookup", keys)["values"].clone();
    assert_eq!((&values["id"], &values["R"]), (&json!(decimal(&job)), &resources));
    assert_eq!(values["jobspec"]["resources"][0]["count"], 3);
    let eventlog = values["eventlog"].as_str().unwrap();
    assert_eq!(eventlog.lines().count(), PLAIN.len(), "{eventlog}");
    assert!(
        eventlog.lines().last().unwrap().contains("\"name\":\"clean\""),
        "{eventlog}"
    );
    let missing = json!({"jobid": job, "keys": ["R", "none"]});
    assert_eq!(instance.error("lookup", missing), "none: key not found");
    instance.shutdown();
}

#[test]
fn a_test_sees_and_answers_a_request_of_a_plugin() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    let mut instance = place.instance(&[]);
    let rpc = |n: u64| {
        let then = json!([{"do": "post", "name": "answered", "context": {"n": n}}]);
        json!({"do": "rpc", "topic": "other.make", "payload": {"n": n}, "then": then})
    };
    puppet.load(
        &mut instance,
        json!({"job.state.depend": [rpc(1), rpc(2), rpc(3), {"do": "dependency-add", "description": "a"}]}),
    );
    instance.ok("service", json!({"topic": "other.make", "hold": true}));
    let wait = instance.send("wait-request", json!({"topic": "other.make", "count": 3}));
    let job = instance.submit(&["true"], json!({}));
    assert_eq!(instance.response(wait)["payload"], json!({"n": 3}));
    let requests = instance.ok("requests", json!({}))["requests"].clone();
    assert_eq!(requests, json!({"other.make": [{"n": 1}, {"n": 2}, {"n": 3}]}));

    let respond = json!({"topic": "other.make", "count": 2, "payload": {"made": true}});
    assert_eq!(instance.ok("respond", respond.clone())["payload"], json!({"n": 2}));
    assert_eq!(instance.wait(&job, "answered")["context"], json!({"n": 2}));
    assert_eq!(
        instance.error("respond", respond),
        "other.make: no such request is held"
    );
    let respond = json!({"topic": "other.make", "errnum": libc::EBUSY, "errstr": "not now"});
    assert_eq!(instance.ok("respond", respond)["payload"], json!({"n": 1}));
    instance.ok("respond", json!({"topic": "other.make"}));
    instance.ok("wait", json!({"jobid": job, "event": "answered", "count": 3}));
    let answers: Vec<Value> = calls(&mut instance)
        .into_iter()
        .filter(|call| call.get("answered").is_some())
        .collect();
    let expected = [
        json!({"answered": "other.make", "payload": {"made": true}}),
        json!({"answered": "other.make", "errno": libc::EBUSY, "error": "not now"}),
        json!({"answered": "other.make"}),
    ];
    assert_eq!(answers, expected);

    // Nobody serves the topic now: the request is recorded, and fails at once.
    instance.ok("service", json!({"topic": "other.make"}));
    act(&mut instance, decimal(&job), json!([rpc(4)]));
    instance.ok("wait", json!({"jobid": job, "event": "answered", "count": 4}));
    let last = calls(&mut instance)
        .iter()
        .rfind(|call| call.get("answered").is_some())
        .cloned()
        .unwrap();
    assert_eq!(last["errno"], libc::ENOSYS);
    let wait = json!({"topic": "other.make", "count": 4});
    assert_eq!(instance.ok("wait-request", wait)["payload"], json!({"n": 4}));

    // Held requests do not block the end of the instance.
    instance.ok("service", json!({"topic": "other.make", "hold": true}));
    let held = instance.send("rpc", json!({"topic": "other.make"}));
    instance.ok("wait-request", json!({"topic": "other.make", "count": 5}));
    instance.ok("shutdown", json!({}));
    assert_eq!(instance.response(held)["errnum"], libc::ENOSYS);
}

#[test]
fn a_plugin_keeps_a_request_and_answers_it_later() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    let mut instance = place.instance(&[]);
    puppet.load(&mut instance, json!({}));
    let topic = |method: &str| json!({"topic": format!("job-manager.puppet.{method}")});
    let keep = |instance: &mut Instance, kept: &mut usize| {
        *kept += 1;
        let request = instance.send("rpc", topic("keep"));
        let seen = *kept;
        // The plugin logs this each time.
        instance.ok("wait-log", json!({"text": "puppet: kept a request"}));
        let stats = instance.ok("stats", json!({}));
        assert_eq!(stats["topics"]["job-manager.puppet.keep"]["count"], seen);
        request
    };
    let mut kept = 0;
    let first = keep(&mut instance, &mut kept);
    let second = keep(&mut instance, &mut kept);
    let mut answer = topic("answer");
    answer["payload"] = json!({"done": 1});
    instance.ok("rpc", answer.clone());
    assert_eq!(instance.response(first)["payload"], json!({"done": 1}));
    instance.ok("rpc", topic("answer"));
    assert_eq!(instance.response(second)["payload"], "", "a response without a payload");

    let failed = keep(&mut instance, &mut kept);
    answer["payload"] = json!({"errnum": libc::EBUSY});
    instance.ok("rpc", answer);
    assert_eq!(instance.response(failed)["errnum"], libc::EBUSY);

    // A requester that never receives a response gets an error, where Flux would let it wait.
    let dropped = keep(&mut instance, &mut kept);
    instance.ok("rpc", topic("drop"));
    let response = instance.response(dropped);
    assert_eq!(
        (&response["error"], &response["errnum"]),
        (
            &json!("job-manager.puppet.keep: the service did not respond"),
            &json!(libc::EPROTO)
        )
    );
    for leak in [json!({}), json!({"leak": true})] {
        instance.ok("remove", json!({"name": "puppet.so"}));
        instance.ok("load", json!({"path": puppet.0, "conf": leak}));
        let request = keep(&mut instance, &mut kept);
        instance.ok("remove", json!({"name": "puppet.so"}));
        assert_eq!(instance.response(request)["ok"], false);
        instance.ok("load", json!({"path": puppet.0, "conf": leak}));
    }
    let request = keep(&mut instance, &mut kept);
    instance.ok("shutdown", json!({}));
    assert_eq!(instance.response(request)["errnum"], libc::ENOSYS);
}

#[test]
fn a_timer_expires_as_often_as_requested() {
    let place = Place::new();
    let puppet = Puppet::new(&place);
    let mut instance = place.instance(&[]);
    puppet.load(&mut instance, json!({}));
    let invalid = json!([{"do": "timer", "after": -1.0}]);
    assert_eq!(act(&mut instance, 0, invalid), [Err(libc::EINVAL)]);
    let timer = json!([{"do": "timer", "after": 0.0, "repeat": 0.001, "times": 3}]);
    assert_eq!(act(&mut instance, 0, timer), [Ok(0)]);
    instance.ok("wait-log", json!({"text": "puppet: the timer has ended"}));
    let timers: Vec<Value> = calls(&mut instance)
        .into_iter()
        .filter_map(|call| call.get("timer").cloned())
        .collect();
    assert_eq!(timers, [3, 2, 1]);
    // An outstanding timer ends with its plugin.
    act(
        &mut instance,
        0,
        json!([{"do": "timer", "after": 1000.0, "repeat": 0.0}]),
    );
    instance.shutdown();
}

#[test]
fn a_shell_plugin_sets_options_for_those_after_it() {
    let place = Place::new();
    let option = plugin(place.dir.path(), "option.c").to_str().unwrap().to_owned();
    let mut instance = place.instance(&["--shell-plugin", &option, "--shell-plugin", &place.shell]);
    let options = json!({"attributes": {"system": {"shell": {"options": {"given": 1, "stop": 1}}}}});
    let job = instance.submit(&["true"], options);
    let note = instance.wait(&job, "exception")["context"]["note"].clone();
    assert_eq!(note, "asked to fail with \"why\"");
    instance.wait(&job, "clean");
    let output = instance.ok("output", json!({"jobid": job}))["stderr"]
        .as_str()
        .unwrap()
        .to_owned();
    let expected = [
        "made: 1 {\"scheme\":\"manual\",\"value\":\"[]\"}",
        "unpacked: 1 manual",
        "info: 0 manual",
        "given: 0",
        "unset again: -1",
        "no JSON: -1",
    ];
    let lines: Vec<&str> = output
        .lines()
        .filter_map(|line| line.strip_prefix("flux-shell[0]:  WARN: option: "))
        .collect();
    assert_eq!(lines, expected, "{output}");
    assert!(
        !output.contains("DEBUG"),
        "verbosity is what the job asked for: {output}"
    );
    instance.shutdown();
}

#[test]
fn a_service_of_flux_is_stood_in_for() {
    let place = Place::new();
    let mut instance = place.instance(&[]);
    let request = json!({"topic": "other.get", "payload": {}});
    assert_eq!(
        instance.error("rpc", request.clone()),
        "No service matching other.get is registered"
    );
    instance.ok("service", json!({"topic": "other.get", "payload": {"a": 1}}));
    assert_eq!(instance.ok("rpc", request.clone())["payload"]["a"], 1);
    instance.ok(
        "service",
        json!({"topic": "other.get", "errnum": libc::ENOENT, "errstr": "gone"}),
    );
    assert_eq!(instance.error("rpc", request), "gone");
    instance.shutdown();
}

#[test]
fn nonsense_is_answered() {
    let place = Place::new();
    let mut instance = place.instance(&[]);
    for (cmd, fields) in [
        ("what", json!({})),
        ("state", json!({"jobid": "f0"})),
        ("state", json!({"jobid": 99})),
        ("submit", json!({})),
        ("submit", json!({"command": []})),
        ("submit", json!({"command": ["a", 1]})),
        ("submit", json!({"command": ["true"], "nodes": 0})),
        ("submit", json!({"command": ["true"], "urgency": 99})),
        ("submit", json!({"command": ["true"], "userid": -1})),
        ("submit", json!({"command": ["nul\0"]})),
        ("submit", json!({"command": ["true"], "attributes": {"system": 1}})),
        (
            "submit",
            json!({"jobspec": {"tasks": [{"command": ["true"]}], "attributes": "none"}}),
        ),
        (
            "submit",
            json!({"jobspec": {"tasks": [{"command": ["true"]}], "attributes": {"system": {"environment": 1}}}}),
        ),
        ("load", json!({})),
        ("lookup", json!({"jobid": 1})),
        ("rpc", json!({"topic": "job-info.lookup", "payload": {"id": "x"}})),
        ("rpc", json!({"topic": "job-manager.raise", "payload": [1]})),
        ("kvs-get", json!({"key": "..."})),
        ("fault", json!({"what": "everything"})),
        ("respond", json!({"topic": "none"})),
        ("respond", json!({})),
        ("wait-request", json!({})),
        ("lookup", json!({"jobid": 1, "keys": [1]})),
        ("config-reload", json!({"config": 1})),
        ("config-reload", json!({"path": "/nowhere"})),
        ("post", json!({"jobid": 1, "name": "x"})),
    ] {
        assert!(!instance.error(cmd, fields).is_empty());
    }
    instance.shutdown();
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(flux_sim()).arg("run").args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn run_exits_as_its_job_does() {
    let place = Place::new();
    let (code, stdout, stderr) = run(&["--", "sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!((code, stdout.as_str()), (Some(5), "out\n"));
    assert_eq!(stderr, "err\nflux-job: task(s) exited with exit code 5\n");

    let (code, _, stderr) = run(&["--shell-plugin", &place.shell, "-o", "fatal=x", "--", "true"]);
    assert_eq!(code, Some(7), "{stderr}");
    assert!(
        stderr.contains("type=exec severity=0 asked to fail with \"x\""),
        "{stderr}"
    );

    let args = ["--jobtap", &place.jobtap, "--setattr", "reject=why", "--", "true"];
    let (code, _, stderr) = run(&args);
    assert_eq!((code, stderr.as_str()), (Some(1), "flux-sim: rejected: why\n"));

    assert_eq!(run(&["--", "/nowhere/x"]).0, Some(127));
    assert!(
        run(&["--user", "no-such-user", "--", "true"])
            .2
            .contains("no such user")
    );
}

#[test]
fn commands_are_answered_until_standard_input_ends() {
    let place = Place::new();
    let mut instance = place.manual();
    let job = instance.submit(&["true"], json!({}));
    let wait = instance.send("wait", json!({"jobid": job, "event": "clean"}));
    instance.ok("shutdown", json!({}));
    assert_eq!(instance.response(wait)["error"], "the instance was shut down");
}
