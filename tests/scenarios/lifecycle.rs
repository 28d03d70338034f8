// SPDX-License-Identifier: MIT OR Apache-2.0

//! The job manager's plugin and its agent are configured, loaded, removed, restarted and killed at any moment of a
//! delivery, and under load. No job is lost, stuck, or started without its token.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
};

use crate::support::{
    plugins::{PLAIN, PRINT, Scheduler, Site, decimal, is_gone, jwt, line_of, matching, until},
    simulator::{Instance, built, plugin},
};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

const NAME: &str = "workflow-token.so";

/// A script that records that it was called, and waits until the file `go` exists.
const WAIT: &str = "echo $1 >>asked; until [ -e go ]; do sleep 0.02; done";

/// Returns a rule whose command waits, and the token that it finally delivers.
fn waiting_rule(site: &Site) -> (Value, String) {
    let token = jwt(json!({}));
    site.write("token", 0o600, &token);
    let rule = site.command_rule("dw", &format!("{WAIT}; cat token"), &["{jobid}"]);
    (rule, token)
}

/// Returns a rule that delivers a different secret to each job. The secret contains the job id.
fn rule_for_each(site: &Site) -> Value {
    let mut rule = site.command_rule("dw", "sleep 0.05; echo secret-of-$1", &["{jobid.dec}"]);
    rule["check"] = json!("none");
    rule
}

#[track_caller]
fn assert_own_secret(instance: &mut Instance, job: &str) {
    instance.wait(job, "clean");
    assert_eq!(instance.stdout(job), format!("secret-of-{}\n", decimal(job)));
}

#[scenario]
fn an_invalid_table_is_rejected_with_its_key_and_the_earlier_one_stays_in_force(site: Site) {
    let token = jwt(json!({}));
    let good = site.file_rule("dw", &token);
    let mut instance = site.instance(json!({"rule": [good]}));
    let tables = [
        ("variable", json!("A=B")),
        ("variable", json!(1)),
        ("variable", json!("1A")),
        ("timeout", json!("soon")),
        ("timeout", json!("0s")),
        ("timeout", json!(-1)),
        ("timeout", json!(true)),
        ("timeout", json!("inf")),
        ("timeout", json!("200000000000000d")),
        ("tiemout", json!("60s")),
        ("unlink", json!("perhaps")),
        ("max-parallel", json!(0)),
        ("max-parallel", json!(1025)),
        ("helper", json!("flux-workflow-token")),
        ("munge-socket", json!("socket")),
        ("munge-socket", json!(format!("/{}", "x".repeat(107)))),
        ("munge-cipher", json!("none")),
        ("munge-mac", json!("md5")),
        ("munge-ttl", json!("2h")),
        ("munge-ttl", json!("1.5s")),
        ("munge-socket", json!(7)),
        ("unlink", json!(1)),
        ("max-parallel", json!("many")),
        ("rule", json!({})),
        ("rules", json!([])),
    ];
    for (key, value) in tables {
        let mut config = site.config(json!({"rule": []}));
        config["workflow-token"][key] = value.clone();
        let error = instance.error("config-reload", json!({"config": config}));
        assert!(
            error.contains(&format!("workflow-token.{key}: ")),
            "{key} = {value}: {error}"
        );
    }
    let rules = [
        ("attribute", json!("")),
        ("attribute", json!("system..dw")),
        ("attribute", json!(1)),
        ("queue", json!("")),
        ("bank", json!([])),
        ("project", json!(7)),
        ("user", json!(-1)),
        ("user", json!("")),
        ("user", json!(4_294_967_295_u32)),
        ("group", json!(1.5)),
        ("source", json!("vault")),
        ("source", json!(null)),
        ("path", json!("token")),
        ("path", json!("/x/{jobname}")),
        ("path", json!("/x/{jobid")),
        ("path", json!(null)),
        ("command", json!(["/bin/true"])),
        ("timeout", json!("eventually")),
        ("check", json!("signature")),
        ("variable", json!("1X")),
        ("contition", json!("x")),
    ];
    for (key, value) in rules {
        let mut rule = good.clone();
        match value {
            Value::Null => drop(rule.as_object_mut().unwrap().remove(key)),
            ref value => rule[key] = value.clone(),
        }
        let config = site.config(json!({"rule": [{"queue": "q", "source": "file", "path": "/x"}, rule]}));
        let error = instance.error("config-reload", json!({"config": config}));
        let named = format!("workflow-token.rule[1].{key}: ");
        assert!(error.contains(&named), "{key} = {value}: {error}");
    }
    for command in [
        json!([]),
        json!("/bin/true"),
        json!(["true"]),
        json!(["/bin/{user}"]),
        json!(["/bin/true", 1]),
    ] {
        let config = site.config(json!({"rule": [{"source": "command", "command": command}]}));
        let error = instance.error("config-reload", json!({"config": config}));
        assert!(error.contains("workflow-token.rule[0].command: "), "{command}: {error}");
    }
    let everybody = json!({"source": "file", "path": "/x"});
    for (rules, key) in [(json!([1]), "rule[0]: "), (json!([everybody, good]), "rule[1]: ")] {
        let error = instance.error("config-reload", json!({"config": site.config(json!({"rule": rules}))}));
        assert!(error.contains(key), "{error}");
    }
    let error = instance.error("config-reload", json!({"config": {"workflow-token": 1}}));
    assert!(error.contains("workflow-token: must be a table"), "{error}");
    assert_eq!(instance.token("dw"), token);
    instance.shutdown();
}

#[scenario]
fn an_invalid_table_prevents_the_load_and_keys_can_be_given_at_load(site: Site) {
    let token = jwt(json!({}));
    let rules = json!([site.file_rule("dw", &token)]);
    let mut instance = site.without_jobtap(json!({}), &[]);
    let load = |conf: Value| json!({"path": site.jobtap(), "conf": conf});
    instance.ok(
        "config-reload",
        json!({"config": site.config(json!({"timeout": "soon", "rule": rules}))}),
    );
    let error = instance.error("load", load(json!({})));
    assert!(error.contains("workflow-token.timeout: "), "{error}");
    instance.ok("config-reload", json!({"config": site.config(json!({"rule": rules}))}));
    for (conf, key) in [
        (json!({"variable": "A B"}), "variable"),
        (json!({"max-parallel": "many"}), "max-parallel"),
        (json!({"config": "x"}), "config"),
    ] {
        let error = instance.error("load", load(conf));
        assert!(error.contains(&format!("workflow-token.{key}: ")), "{error}");
    }
    assert_eq!(instance.ok("list", json!({}))["plugins"], json!([]));
    // Strings, as on a command line.
    instance.ok(
        "load",
        load(json!({"variable": "OTHER", "unlink": "false", "max-parallel": "2", "timeout": "30"})),
    );
    let job = instance.run(&["printenv", "OTHER"], matching("dw"));
    assert_eq!(instance.stdout(&job).trim_end(), token);
    instance.shutdown();
}

#[scenario]
fn a_delivery_goes_on_with_the_configuration_that_it_began_with(site: Site) {
    let (rule, token) = waiting_rule(&site);
    let mut instance = site.instance(json!({"rule": [rule]}));
    let job = instance.submit(PRINT, matching("dw"));
    line_of(&site.at("asked"));
    let other = site.config(json!({"variable": "OTHER", "rule": [site.file_rule("dw", jwt(json!({})))]}));
    instance.ok("config-reload", json!({"config": other}));
    let none = instance.run(PRINT, matching("dw"));
    assert_eq!(instance.stdout(&none), "", "the new configuration is not in force");
    site.write("go", 0o600, "");
    instance.assert_delivered(&job, &token);
    instance.shutdown();
}

#[scenario]
fn a_second_copy_is_rejected_under_any_name_and_affects_no_delivery(site: Site) {
    let (rule, token) = waiting_rule(&site);
    let mut instance = site.instance(json!({"rule": [rule]}));
    let job = instance.submit(PRINT, matching("dw"));
    line_of(&site.at("asked"));
    let (copy, link) = (site.path("copy.so"), site.path("link.so"));
    fs::copy(site.jobtap(), &copy).unwrap();
    std::os::unix::fs::symlink(site.jobtap(), &link).unwrap();
    for (path, says) in [
        (site.jobtap(), "workflow-token.so already loaded"),
        (copy, "already loaded, under another file name: remove that first"),
        (link, "already loaded, under another file name: remove that first"),
    ] {
        let error = instance.error("load", json!({"path": path}));
        assert!(error.contains(says), "{path}: {error}");
    }
    assert_eq!(instance.ok("list", json!({}))["plugins"], json!([NAME]));
    assert_eq!(instance.counter("in-flight"), 1);
    site.write("go", 0o600, "");
    instance.assert_delivered(&job, &token);
    assert_eq!(instance.token("dw"), token);
    // The rejected plugins left nothing behind that would block the next load.
    site.reload(&mut instance);
    assert_eq!(instance.token("dw"), token);
    instance.shutdown();
}

#[scenario]
fn a_delivery_whose_source_ran_at_the_removal_restarts_after_a_reload(site: Site) {
    let (rule, token) = waiting_rule(&site);
    let mut instance = site.instance(json!({"max-parallel": 1, "rule": [rule]}));
    let (job, queued) = (
        instance.submit(PRINT, matching("dw")),
        instance.submit(PRINT, matching("dw")),
    );
    instance.wait(&queued, "prolog-start");
    assert_eq!(line_of(&site.at("asked")), job);
    instance.ok("remove", json!({"name": NAME}));
    instance.ok("wait-log", json!({"text": "removed with 2 deliveries under way"}));
    for job in [&job, &queued] {
        let state = instance.ok("state", json!({"jobid": job}));
        assert_eq!((&state["state"], &state["perilog_active"]), (&json!("RUN"), &json!(1)));
    }
    site.write("go", 0o600, "");
    instance.ok("load", json!({"path": site.jobtap()}));
    instance.assert_delivered(&job, &token);
    instance.assert_delivered(&queued, &token);
    assert_eq!(instance.counter("resumed"), 2);
    instance.shutdown();
}

#[scenario]
fn every_job_gets_its_own_token_while_the_plugin_is_removed_and_loaded_again_20_times(site: Site) {
    let mut instance = site.instance(json!({"rule": [rule_for_each(&site)]}));
    let mut jobs = Vec::new();
    let mut resumed = 0;
    for _ in 0..20 {
        for _ in 0..2 {
            let job = instance.submit(PRINT, matching("dw"));
            // A job that enters RUN while the plugin is not loaded starts without it.
            instance.wait(&job, "prolog-start");
            jobs.push(job);
        }
        site.reload(&mut instance);
        resumed += instance.counter("resumed");
    }
    for job in &jobs {
        assert_own_secret(&mut instance, job);
    }
    assert!(resumed > 0, "no removal happened during a delivery");
    assert_eq!(instance.counter("in-flight"), 0);
    instance.shutdown();
}

#[scenario]
fn a_job_canceled_without_the_plugin_ends_after_a_reload(site: Site) {
    let (rule, _) = waiting_rule(&site);
    let canceled = |instance: &mut Instance| {
        let job = instance.submit(&["true"], matching("dw"));
        instance.wait(&job, "prolog-start");
        instance.ok("remove", json!({"name": NAME}));
        instance.ok("cancel", json!({"jobid": job}));
        instance.wait(&job, "exception");
        assert_eq!(instance.ok("state", json!({"jobid": job}))["state"], "CLEANUP");
        job
    };
    let ended = |instance: &mut Instance, job: &str| {
        instance.wait(job, "clean");
        let status = instance.contexts(job, "prolog-finish");
        assert_eq!(status, [json!({"description": "workflow-token", "status": 1})]);
        assert_eq!(instance.contexts(job, "exception").len(), 1);
    };
    let mut instance = site.instance(json!({"rule": [rule]}));
    let job = canceled(&mut instance);
    instance.ok("load", json!({"path": site.jobtap()}));
    ended(&mut instance, &job);
    for end in [Instance::shutdown, Instance::kill] {
        let job = canceled(&mut instance);
        end(instance);
        instance = site.start(json!({}), &[]);
        ended(&mut instance, &job);
    }
    instance.shutdown();
}

#[scenario]
fn a_delivery_that_no_rule_matches_after_a_reload_fails_with_a_reason(site: Site) {
    let (rule, _) = waiting_rule(&site);
    let mut instance = site.instance(json!({"rule": [rule]}));
    let job = instance.submit(&["true"], matching("dw"));
    instance.wait(&job, "prolog-start");
    instance.ok("remove", json!({"name": NAME}));
    instance.ok("config-reload", json!({"config": site.config(json!({}))}));
    instance.ok("load", json!({"path": site.jobtap()}));
    let note = instance.undelivered(&job);
    assert!(note.contains("the rules were changed: submit it again"), "{note}");
    instance.shutdown();
}

#[scenario]
fn a_removal_does_not_affect_running_jobs_and_their_records_are_removed_later(site: Site) {
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    let wait = format!(
        "until [ -e {} ]; do sleep 0.02; done; echo ${{DW_WORKFLOW_TOKEN-unset}}",
        site.path("go")
    );
    let with = instance.submit(&["sh", "-c", &wait], matching("dw"));
    instance.wait(&with, "start");
    instance.ok("remove", json!({"name": NAME}));
    let without = instance.submit(&["sh", "-c", &wait], matching("dw"));
    instance.wait(&without, "start");
    instance.ok("load", json!({"path": site.jobtap()}));
    site.write("go", 0o600, "");
    instance.assert_delivered(&with, &token);
    instance.wait(&without, "clean");
    assert_eq!(
        (instance.stdout(&without).as_str(), instance.events(&without)),
        ("unset\n", PLAIN.map(String::from).to_vec())
    );
    until("the record is removed", || instance.record(&with).is_none());
    instance.shutdown();
}

#[scenario]
fn a_removal_while_munged_is_stopped_does_not_hang_and_the_delivery_completes_later(site: Site) {
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    site.munged.signal(Signal::SIGSTOP);
    let jobs: Vec<String> = (0..12).map(|_| instance.submit(PRINT, matching("dw"))).collect();
    for job in &jobs {
        instance.wait(job, "prolog-start");
    }
    until("munged is asked", || site.waiting_for_munged() > 0);
    instance.ok("remove", json!({"name": NAME}));
    let other = instance.run(&["true"], json!({}));
    assert_eq!(instance.events(&other), PLAIN);
    // Loads the plugin again while threads of the agent hang in requests of the first one, and removes it.
    instance.ok("load", json!({"path": site.jobtap()}));
    until("all deliveries are resumed", || instance.counter("in-flight") == 12);
    instance.ok("remove", json!({"name": NAME}));
    site.munged.signal(Signal::SIGCONT);
    until("the threads have returned", || site.waiting_for_munged() == 0);
    instance.ok("load", json!({"path": site.jobtap()}));
    for job in &jobs {
        instance.assert_delivered(job, &token);
    }

    site.munged.signal(Signal::SIGSTOP);
    let job = instance.submit(PRINT, matching("dw"));
    until("munged is asked", || site.waiting_for_munged() > 0);
    instance.shutdown();
    site.munged.signal(Signal::SIGCONT);
    let mut instance = site.start(json!({}), &[]);
    instance.assert_delivered(&job, &token);
    instance.shutdown();
}

#[scenario]
fn the_record_of_a_job_that_ended_without_the_plugin_is_removed_after_a_reload(site: Site) {
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    let wait = format!("until [ -e {} ]; do sleep 0.02; done", site.path("go"));
    let job = instance.submit(&["sh", "-c", &wait], matching("dw"));
    instance.wait(&job, "start");
    instance.ok("remove", json!({"name": NAME}));
    site.write("go", 0o600, "");
    instance.wait(&job, "clean");
    assert!(instance.record(&job).is_some());
    instance.ok("load", json!({"path": site.jobtap()}));
    until("the record is removed", || instance.record(&job).is_none());
    instance.shutdown();
}

#[scenario]
fn a_job_held_at_the_first_load_does_not_start_without_its_token(site: Site) {
    let mut instance = site.without_jobtap(json!({}), &[]);
    instance.ok("load", site.hold());
    let rule = site.file_rule("dw", jwt(json!({})));
    instance.ok("config-reload", json!({"config": site.config(json!({"rule": [rule]}))}));
    let job = instance.submit(PRINT, matching("dw"));
    let other = instance.submit(&["true"], json!({}));
    instance.wait(&other, "prolog-start");
    instance.wait(&job, "prolog-start");
    instance.ok("load", json!({"path": site.jobtap()}));
    let exception = instance.wait(&job, "exception");
    let note = exception["context"]["note"].as_str().unwrap_or_default().to_owned();
    assert!(note.contains("submit it again"), "{exception}");
    instance.go();
    instance.wait(&job, "clean");
    assert!(!instance.events(&job).contains(&"start".to_owned()), "the job started");
    instance.wait(&other, "clean");
    assert!(
        instance.events(&other).contains(&"start".to_owned()),
        "another job did not"
    );
    instance.shutdown();
}

#[scenario]
fn a_record_that_was_stored_before_a_restart_is_used_after_it(site: Site) {
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    instance.ok("load", site.hold());
    let job = instance.submit(PRINT, matching("dw"));
    instance.wait(&job, "prolog-finish");
    let record = instance.record(&job);
    instance.kill();
    // This time, the other plugin does not wait.
    let other = plugin(&site.at("shell"), "jobtap.c");
    let mut instance = site.start(json!({}), &["--jobtap", other.to_str().unwrap()]);
    instance.wait(&job, "start");
    assert_eq!(instance.record(&job), record, "a second record was delivered");
    instance.wait(&job, "clean");
    assert_eq!(instance.stdout(&job).trim_end(), token);
    assert_eq!(instance.counter("started"), 0);
    until("the record is removed", || instance.record(&job).is_none());
    instance.shutdown();
}

#[scenario]
fn each_of_300_jobs_at_once_gets_its_own_token_and_no_other(site: Site) {
    let mut rule = json!({"source": "command", "command": ["/bin/echo", "secret-of-{jobid.dec}"]});
    rule["check"] = json!("none");
    let mut instance = site.instance(json!({"rule": [rule]}));
    let requests: Vec<_> = (0..300)
        .map(|_| instance.send("submit", json!({"command": PRINT})))
        .collect();
    for request in requests {
        let submitted = instance.response(request);
        let job = submitted["jobid"]
            .as_str()
            .unwrap_or_else(|| panic!("{submitted}"))
            .to_owned();
        assert_own_secret(&mut instance, &job);
    }
    assert_eq!((instance.counter("delivered"), instance.counter("in-flight")), (300, 0));
    until("all records are removed", || instance.counter("unlinked") == 300);
    instance.shutdown();
}

#[scenario]
fn an_instance_that_ended_during_a_fetch_delivers_after_a_restart(site: Site) {
    let (rule, token) = waiting_rule(&site);
    for end in [Instance::shutdown, Instance::kill] {
        let mut instance = site.instance(json!({"rule": [rule]}));
        let job = instance.submit(PRINT, matching("dw"));
        assert_eq!(line_of(&site.at("asked")), job);
        end(instance);
        fs::remove_file(site.at("asked")).unwrap();
        let mut instance = site.start(json!({}), &[]);
        assert_eq!(line_of(&site.at("asked")), job);
        site.write("go", 0o600, "");
        instance.assert_delivered(&job, &token);
        assert_eq!(instance.counter("resumed"), 1);
        until("the record is removed", || instance.record(&job).is_none());
        instance.shutdown();
        for name in ["go", "asked"] {
            fs::remove_file(site.at(name)).unwrap();
        }
    }
}

// The agent

#[scenario]
fn a_delivery_goes_on_with_a_new_agent_when_its_agent_is_killed(site: Site) {
    let (rule, token) = waiting_rule(&site);
    let mut instance = site.instance(json!({"rule": [rule]}));
    let job = instance.submit(PRINT, matching("dw"));
    assert_eq!(line_of(&site.at("asked")), job);
    kill(site.agent(), Signal::SIGKILL).unwrap();
    until("the source is called again", || {
        fs::read_to_string(site.at("asked")).unwrap().lines().count() == 2
    });
    site.write("go", 0o600, "");
    instance.assert_delivered(&job, &token);
    instance.shutdown();
}

#[scenario]
fn while_the_agent_is_stopped_deliveries_fail_in_time_and_a_new_one_serves_the_next_job(site: Site) {
    let token = jwt(json!({}));
    let rules = json!([site.file_rule("dw", &token)]);
    let mut instance = site.instance(json!({"timeout": "2s", "rule": rules}));
    assert_eq!(instance.token("dw"), token);
    let stopped = site.agent();
    kill(stopped, Signal::SIGSTOP).unwrap();
    let job = instance.submit(&["true"], matching("dw"));
    let other = instance.run(&["true"], json!({}));
    assert_eq!(instance.events(&other), PLAIN);
    let note = instance.undelivered(&job);
    assert!(note.contains("[agent-timeout]"), "{note}");
    assert_eq!(instance.token("dw"), token);
    until("the stopped agent has ended", || is_gone(&stopped.to_string()));
    instance.shutdown();
}

#[scenario]
fn without_a_trusted_agent_jobs_fail_in_time_and_the_log_states_the_reason_once(site: Site) {
    let token = jwt(json!({}));
    let rules = json!([site.file_rule("dw", &token)]);
    let changed = site.write("changed", 0o777, fs::read(built("workflow-token-agent")).unwrap());
    fs::create_dir(site.at("open")).unwrap();
    let open = site.write("open/agent", 0o755, fs::read(built("workflow-token-agent")).unwrap());
    fs::set_permissions(site.at("open"), Permissions::from_mode(0o777)).unwrap();
    let ends = site.write(
        "ends",
        0o755,
        format!("#!/bin/sh\necho x >>{}\nexit 3\n", site.path("started")),
    );
    let mut instance = site.instance(json!({"rule": rules}));
    for (key, path, cause) in [
        ("agent-program", &site.path("missing"), "its program was not found"),
        ("agent-program", &changed, "changed is not run"),
        ("agent-program", &open, "open/agent is not run"),
        ("agent-program", &ends, "it ended at once"),
        ("agent", &site.path("nobody"), "nobody cannot be used"),
    ] {
        let config = site.config(json!({"timeout": "1s", "rule": rules, key: path}));
        instance.ok("config-reload", json!({"config": config}));
        if let Some(agent) = site.agents().first() {
            kill(*agent, Signal::SIGKILL).unwrap();
        }
        let mut lines = Vec::new();
        for _ in 0..2 {
            let job = instance.submit(&["true"], matching("dw"));
            let note = instance.undelivered(&job);
            assert!(note.contains("[agent-unavailable]"), "{path}: {note}");
            lines.push(instance.dmesg().iter().filter(|line| line.contains(cause)).count());
        }
        assert!(lines[0] > 0 && lines[0] == lines[1], "{path}: {lines:?}");
    }
    let started = fs::read_to_string(site.at("started")).unwrap().lines().count();
    assert!(started < 30, "it was started {started} times");
    instance.ok("config-reload", json!({"config": site.config(json!({"rule": rules}))}));
    assert_eq!(instance.token("dw"), token);
    instance.shutdown();
}
