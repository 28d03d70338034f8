//! The host by itself, with small plugins written in C against declarations of their own.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use support::host::{HOST, Instance, plugin};
use support::skip;
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

    /// An instance with the plugin for the job manager.
    fn loaded(&self) -> Instance {
        self.instance(&["--jobtap", &self.jobtap])
    }

    /// An instance with the plugin for the job manager, which waits for its service "go".
    fn manual(&self) -> Instance {
        let mut instance = self.instance(&[]);
        instance.ok("load", json!({"path": self.jobtap, "conf": {"manual": 1}}));
        instance
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.statedir().join(name)).unwrap()).into_owned()
    }
}

/// The events of a job to which nothing special happens.
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
        "the second plugin was initialized before it was refused"
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
    assert_eq!(result["inits"], 3, "what the handle keeps outlives the plugin");
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
fn a_configuration_that_a_plugin_refuses_is_not_taken() {
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
    let output = Command::new(HOST)
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
fn a_job_that_ran_when_the_instance_went_fails() {
    let place = Place::new();
    let mut instance = place.instance(&[]);
    let job = instance.submit(&["sleep", "1000"], json!({}));
    instance.wait(&job, "start");
    instance.kill();
    let mut instance = place.instance(&[]);
    let note = instance.wait(&job, "exception")["context"]["note"].clone();
    assert!(note.as_str().unwrap().contains("the instance was restarted"), "{note}");
    instance.wait(&job, "clean");
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
fn a_shell_that_cannot_go_on_raises_an_exception() {
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

    // All shells of a job end if one of them does, though the others wait for it.
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
        skip(
            "a_guest_shell_runs_as_the_job_owner",
            "only root can run the shells of other users",
        );
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
        ("config-reload", json!({"config": 1})),
        ("config-reload", json!({"path": "/nowhere"})),
        ("post", json!({"jobid": 1, "name": "x"})),
    ] {
        assert!(!instance.error(cmd, fields).is_empty());
    }
    instance.shutdown();
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(HOST).arg("run").args(args).output().unwrap();
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
    assert_eq!(
        (code, stderr.as_str()),
        (Some(1), "flux-workflow-host: rejected: why\n")
    );

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
