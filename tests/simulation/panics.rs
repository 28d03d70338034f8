// SPDX-License-Identifier: MIT OR Apache-2.0

//! A panic in a plugin costs at most one job. That job ends with one clear exception and does not start without its
//! secret, and neither other jobs nor the instance are affected. Builds with the feature `fault-injection` panic at the
//! place that a file names.

use std::{fs, path::PathBuf, process::Command};

use crate::support::{
    plugins::{PRINT, Site, decimal, jwt, line_of, matching, until},
    simulator::{Build, Instance, flux_sim},
};
use serde_json::{Value, json};

const NAME: &str = "workflow-token.so";

/// A script that waits until the file `go` exists.
const WAIT: &str = "echo $1 >>asked; until [ -e go ]; do sleep 0.02; done; cat token";

/// Starts an instance with a configuration in `flux.toml`, whose plugins in the job manager and in job shells panic on
/// demand.
fn start(site: &Site, shell_plugin: &str) -> Instance {
    let conf = json!({"munge-socket": site.munged.socket()}).to_string();
    let mut simulator = Command::new(flux_sim());
    simulator
        .env("WORKFLOW_TOKEN_FAULT", site.at("fault"))
        .args(["instance", "--config", &site.path("flux.toml")])
        .args(["--shell-plugin", shell_plugin, "--shell-conf", &conf])
        .arg("--statedir")
        .arg(site.statedir());
    Instance::of(&mut simulator)
}

/// Requests a panic of the first caller at a place.
fn trip(site: &Site, place: &str) {
    // Replaces the file atomically, so that a reader finds all of it.
    site.write("fault.new", 0o644, place);
    fs::rename(site.at("fault.new"), site.at("fault")).unwrap();
}

/// Waits until the panic has happened.
#[track_caller]
fn tripped(site: &Site, place: &str) {
    until(&format!("{place} has panicked"), || !site.at("fault").exists());
}

/// An instance with a rule whose file is read immediately, and one whose command waits. One job waits there while
/// others encounter faults.
struct Tokens {
    site: Site,
    instance: Instance,
    token: String,
    bystander: String,
}

impl Tokens {
    fn new() -> Tokens {
        let site = Site::with_faults();
        let token = jwt(json!({}));
        site.write("token", 0o600, &token);
        let rules = [
            site.file_rule("dw", &token),
            site.command_rule("slow", WAIT, &["{jobid}"]),
            site.command_rule("asked", "cat token", &[]),
        ];
        site.configure(json!({ "rule": rules }));
        let mut instance = start(&site, &site.path("shell/workflow-token.so"));
        let bystander = instance.submit(PRINT, matching("slow"));
        assert_eq!(line_of(&site.at("asked")), bystander);
        Tokens {
            site,
            instance,
            token,
            bystander,
        }
    }

    /// Checks that other jobs are not affected.
    #[track_caller]
    fn others_go_on(&mut self, place: &str) {
        assert_eq!(self.instance.token("dw"), self.token, "{place}: the next job");
        let state = self.instance.ok("state", json!({"jobid": self.bystander}));
        assert_eq!(state["perilog_active"], 1, "{place}: {state}");
    }

    /// Checks that the job that waited throughout receives its token.
    #[track_caller]
    fn end(mut self) {
        self.site.write("go", 0o600, "");
        self.instance.wait(&self.bystander, "clean");
        assert_eq!(self.instance.stdout(&self.bystander).trim_end(), self.token);
        assert_eq!(self.instance.contexts(&self.bystander, "exception"), [] as [Value; 0]);
        assert_eq!(self.instance.counter("in-flight"), 0);
        self.instance.shutdown();
    }
}

#[needs(munged)]
#[test]
fn a_delivery_in_which_something_panics_fails_alone_and_with_one_clear_exception() {
    let mut t = Tokens::new();
    for (place, rule) in [
        ("job.state.run", "dw"),
        ("fetch", "dw"),
        ("seal", "dw"),
        ("done", "dw"),
        ("put", "dw"),
        ("committed", "dw"),
        ("fetch", "asked"),
        ("seal", "asked"),
    ] {
        trip(&t.site, place);
        let job = t.instance.submit(PRINT, matching(rule));
        let note = t.instance.undelivered(&job);
        assert!(note.contains("an internal error") || place == "put", "{place}: {note}");
        tripped(&t.site, place);
        let cause = t.instance.cause(&job);
        let output = if ["fetch", "seal"].contains(&place) {
            "agent"
        } else {
            "broker"
        };
        assert!(
            cause.contains(&format!("see its location in the {output}'s output")),
            "{place}: {cause}"
        );
        t.others_go_on(place);
    }
    t.end();
}

#[needs(munged)]
#[test]
fn a_panic_outside_of_a_job_costs_no_job() {
    let mut t = Tokens::new();
    for place in ["watcher", "tick"] {
        trip(&t.site, place);
        t.others_go_on(place);
        tripped(&t.site, place);
    }
    // A job that has ended, and the records of ended jobs.
    for place in ["job.state.inactive", "unlinked"] {
        trip(&t.site, place);
        t.others_go_on(place);
        tripped(&t.site, place);
        let removed = t.instance.counter("unlinked");
        t.others_go_on(place);
        until("records are removed again", || t.instance.counter("unlinked") > removed);
    }
    // A canceled job ends, and so does its prolog.
    trip(&t.site, "job.state.cleanup");
    let job = t.instance.submit(PRINT, matching("slow"));
    t.instance.wait(&job, "prolog-start");
    t.instance.ok("cancel", json!({"jobid": job}));
    t.instance.wait(&job, "clean");
    tripped(&t.site, "job.state.cleanup");
    t.others_go_on("job.state.cleanup");

    trip(&t.site, "conf.update");
    let error = t
        .instance
        .error("config-reload", json!({"config": t.site.config(json!({}))}));
    assert!(error.contains("an internal error"), "{error}");
    t.others_go_on("conf.update");
    trip(&t.site, "plugin.query");
    let request = t.instance.send("query", json!({"name": NAME}));
    let response = t.instance.response(request);
    assert_eq!(response["ok"], false, "{response}");
    t.others_go_on("plugin.query");
    t.end();
}

#[needs(munged)]
#[test]
fn a_panic_during_a_reload_costs_at_most_one_job() {
    let mut t = Tokens::new();
    let load = json!({"path": t.site.jobtap()});
    // The plugin leaves nothing to its successor, which therefore reads the eventlogs.
    trip(&t.site, "leave");
    t.instance.ok("remove", json!({"name": NAME}));
    tripped(&t.site, "leave");
    t.instance.ok("load", load.clone());
    until("the delivery is resumed", || t.instance.counter("resumed") == 1);
    t.others_go_on("leave");

    t.instance.ok("remove", json!({"name": NAME}));
    trip(&t.site, "flux_plugin_init");
    t.instance.error("load", load.clone());
    tripped(&t.site, "flux_plugin_init");
    t.instance.ok("load", load.clone());
    t.others_go_on("flux_plugin_init");

    // The plugin processes the older job first.
    let victim = std::mem::replace(&mut t.bystander, t.instance.submit(PRINT, matching("slow")));
    t.instance.wait(&t.bystander.clone(), "prolog-start");
    t.instance.ok("remove", json!({"name": NAME}));
    trip(&t.site, "job.new");
    t.instance.ok("load", load);
    t.instance.undelivered(&victim);
    t.others_go_on("job.new");

    // In a new instance.
    let victim = std::mem::replace(&mut t.bystander, t.instance.submit(PRINT, matching("slow")));
    t.instance.wait(&t.bystander.clone(), "prolog-start");
    let Tokens {
        site,
        instance,
        token,
        bystander,
    } = t;
    instance.kill();
    trip(&site, "eventlog");
    let mut t = Tokens {
        instance: start(&site, &site.path("shell/workflow-token.so")),
        site,
        token,
        bystander,
    };
    tripped(&t.site, "eventlog");
    t.instance.undelivered(&victim);
    t.others_go_on("eventlog");
    t.end();
}

// The other plugins

/// Sends all messages of a service for a rabbit job, repeatedly, until the job has ended.
#[track_caller]
fn serve_to_the_end(instance: &mut Instance, job: &str) {
    let id = decimal(job);
    until("the rabbit job ends", || {
        let created = instance.ok("requests", json!({}))["requests"]["dws.create"].clone();
        let mine = created
            .as_array()
            .into_iter()
            .flatten()
            .find(|payload| payload["jobid"] == id)
            .cloned();
        let resources = mine.map_or(Value::Null, |payload| payload["resources"].clone());
        for (method, payload) in [
            (
                "resource-update",
                json!({"id": id, "resources": resources, "exclude": null}),
            ),
            ("prolog-remove", json!({"id": id, "variables": {"DW_JOB_a": "/mnt/a"}})),
            ("epilog-remove", json!({"id": id})),
        ] {
            // Each message is rejected unless the job is in the right state.
            let topic = format!("job-manager.dws.{method}");
            if method != "resource-update" || !resources.is_null() {
                let request = instance.send("rpc", json!({"topic": topic, "payload": payload}));
                instance.response(request);
            }
        }
        instance.events(job).contains(&"clean".to_owned())
    });
}

#[needs(munged)]
#[test]
fn a_panic_fails_only_its_rabbit_job_with_an_exception() {
    let site = Site::with_faults();
    let jobtap = site.install("libjobtap_dws.so", "job-manager", "dws-jobtap.so");
    let shell = site.install("libshell_dws_environment.so", "shell", "dws_environment.so");
    let load = json!({"path": jobtap, "conf": {"epilog-timeout": 30.0}});
    let mut config = site.config(json!({}));
    config["job-manager"] = json!({"plugins": [{"load": jobtap}]});
    site.write("flux.toml", 0o644, toml::to_string(&config).unwrap());
    let mut instance = start(&site, &shell);
    for topic in ["dws.create", "dws.setup", "dws.post_run", "dws.teardown", "dws.abort"] {
        instance.ok("service", json!({"topic": topic, "payload": {"success": true}}));
    }
    let rabbit = json!({"attributes": {"system": {"dw": ["#DW jobdw type=xfs name=a"]}}});
    let print = ["sh", "-c", "echo ${DW_JOB_a-unset}"];
    let internal = |instance: &mut Instance, job: &str| {
        let notes = instance.contexts(job, "exception");
        notes
            .iter()
            .any(|note| note["severity"] == 0 && note["note"].to_string().contains("an internal error"))
    };
    let others_go_on = |instance: &mut Instance, place: &str| {
        let job = instance.submit(&print, rabbit.clone());
        serve_to_the_end(instance, &job);
        assert_eq!(instance.stdout(&job), "/mnt/a\n", "{place}: the next job");
        assert_eq!(
            instance.contexts(&job, "exception"),
            [] as [Value; 0],
            "{place}: the next job"
        );
    };
    for place in [
        "job.state.depend",
        "answer-create",
        "resource-update",
        "job.state.run",
        "answer-resources",
        "answer-setup",
        "prolog-remove",
        "seal",
        "done",
        "committed",
        "job.event.finish",
        "job.state.cleanup",
        "answer-post-run",
        "job.event.release",
        "epilog-remove",
    ] {
        trip(&site, place);
        let job = instance.submit(&print, rabbit.clone());
        serve_to_the_end(&mut instance, &job);
        tripped(&site, place);
        assert!(
            internal(&mut instance, &job),
            "{place}: {:?}",
            instance.contexts(&job, "exception")
        );
        let torn_down = instance.ok("requests", json!({}))["requests"]["dws.post_run"].clone();
        let mut torn_down = torn_down.as_array().into_iter().flatten();
        assert!(
            torn_down.any(|payload| payload["jobid"] == decimal(&job)),
            "{place}: its workflow was not torn down"
        );
        others_go_on(&mut instance, place);
    }
    // A job canceled while its rabbits are set up.
    trip(&site, "job.event.exception");
    let job = instance.submit(&print, rabbit.clone());
    instance.ok("cancel", json!({"jobid": job}));
    serve_to_the_end(&mut instance, &job);
    tripped(&site, "job.event.exception");
    others_go_on(&mut instance, "job.event.exception");
    // A job that has ended.
    trip(&site, "job.state.inactive");
    others_go_on(&mut instance, "job.state.inactive");
    tripped(&site, "job.state.inactive");
    // A job from before the reload.
    for place in ["job.new", "answer-eventlog", "leave"] {
        let job = instance.submit(&print, rabbit.clone());
        instance.ok("remove", json!({"name": "dws-jobtap.so"}));
        if place == "leave" {
            instance.ok("load", load.clone());
            trip(&site, place);
            instance.ok("remove", json!({"name": "dws-jobtap.so"}));
        } else {
            trip(&site, place);
        }
        instance.ok("load", load.clone());
        tripped(&site, place);
        serve_to_the_end(&mut instance, &job);
        assert!(place == "leave" || internal(&mut instance, &job), "{place}");
        others_go_on(&mut instance, place);
    }
    // Two jobs that became inactive while the plugin was not loaded.
    for place in ["gone", "answer-gone"] {
        let jobs = [(); 2].map(|()| instance.submit(&print, rabbit.clone()));
        instance.ok("remove", json!({"name": "dws-jobtap.so"}));
        for job in &jobs {
            instance.ok("cancel", json!({"jobid": job}));
            instance.wait(job, "clean");
        }
        trip(&site, place);
        instance.ok("load", load.clone());
        tripped(&site, place);
        let given_up = format!("{}: dws.post_run, after the job had ended: an internal error", jobs[0]);
        instance.ok("wait-log", json!({ "text": given_up }));
        until("the other one is torn down", || {
            let torn_down = instance.ok("requests", json!({}))["requests"]["dws.post_run"].clone();
            let mut torn_down = torn_down.as_array().into_iter().flatten();
            torn_down.any(|payload| payload["jobid"] == decimal(&jobs[1]))
        });
        let topic = "job-manager.dws.epilog-remove";
        let request = instance.send("rpc", json!({"topic": topic, "payload": {"id": decimal(&jobs[1])}}));
        assert_eq!(instance.response(request)["ok"], true, "{place}");
        others_go_on(&mut instance, place);
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_panic_fails_only_its_job_of_several_nodes_and_frees_the_ports() {
    let site = Site::with_faults();
    let name = "cray-pmi-bootstrap.so";
    let jobtap = site.install("libjobtap_cray_pmi_bootstrap.so", "job-manager", name);
    let shell = site.install("libshell_cray_pmi_bootstrap.so", "shell", name);
    let mut config = site.config(json!({}));
    config["job-manager"] = json!({"plugins": [{"load": jobtap}]});
    site.write("flux.toml", 0o644, toml::to_string(&config).unwrap());
    let mut instance = start(&site, &shell);
    let query = |instance: &mut Instance| instance.ok("query", json!({ "name": name }))["result"].clone();
    let free = query(&mut instance)["ports-free"].clone();
    let others_go_on = |instance: &mut Instance, place: &str| {
        let job = instance.run(&["true"], json!({"nodes": 2}));
        assert_eq!(
            instance.contexts(&job, "exception"),
            [] as [Value; 0],
            "{place}: the next job"
        );
        assert!(
            instance.events(&job).contains(&name.replace(".so", "")),
            "{place}: the next job"
        );
        until("ports are free again", || query(instance)["ports-free"] == free);
    };
    for place in ["job.state.run", "seal", "done", "committed"] {
        trip(&site, place);
        let job = instance.run(&["echo", "started"], json!({"nodes": 2}));
        tripped(&site, place);
        let exceptions = instance.contexts(&job, "exception");
        assert_eq!(exceptions.len(), 1, "{place}: {exceptions:?}");
        assert!(
            exceptions[0]["note"].to_string().contains("an internal error"),
            "{exceptions:?}"
        );
        assert_eq!(instance.stdout(&job), "", "{place}: the job was started");
        others_go_on(&mut instance, place);
    }
    for place in ["job.state.cleanup", "job.state.inactive"] {
        trip(&site, place);
        instance.run(&["true"], json!({"nodes": 2}));
        tripped(&site, place);
        let job = instance.run(&["true"], json!({"nodes": 2}));
        assert_eq!(
            instance.contexts(&job, "exception"),
            [] as [Value; 0],
            "{place}: the next job"
        );
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_shell_whose_plugin_panics_ends_its_job_and_no_task_is_started() {
    let mut t = Tokens::new();
    for place in ["flux_plugin_init", "shell.init"] {
        // Job shells run as the job owner, and remove the file.
        trip(&t.site, place);
        let job = t.instance.run(&["echo", "started"], matching("dw"));
        tripped(&t.site, place);
        let exceptions = t.instance.contexts(&job, "exception");
        assert_eq!(exceptions.len(), 1, "{place}: {exceptions:?}");
        assert_eq!(exceptions[0]["severity"], 0, "{place}: {exceptions:?}");
        assert_eq!(t.instance.stdout(&job), "", "{place}: the job was started");
        t.others_go_on(place);
    }
    t.end();
    for (object, name, places) in [
        (
            "libshell_dws_environment.so",
            "dws_environment.so",
            &["flux_plugin_init", "shell.init"][..],
        ),
        (
            "libshell_cray_pmi_bootstrap.so",
            "cray-pmi-bootstrap.so",
            &["flux_plugin_init"][..],
        ),
    ] {
        let site = Site::with_faults();
        let shell = site.install(object, "shell", name);
        site.write("flux.toml", 0o644, "");
        let mut instance = start(&site, &shell);
        for place in places {
            trip(&site, place);
            let rabbit = json!({"attributes": {"system": {"dw": ["#DW jobdw type=xfs name=a"]}}});
            let job = instance.run(&["echo", "started"], rabbit);
            tripped(&site, place);
            let exceptions = instance.contexts(&job, "exception");
            assert_eq!(exceptions.len(), 1, "{name}: {place}: {exceptions:?}");
            assert_eq!(instance.stdout(&job), "", "{name}: {place}: the job was started");
            let job = instance.run(&["echo", "started"], json!({}));
            assert_eq!(instance.stdout(&job), "started\n", "{name}: {place}: the next job");
        }
        instance.shutdown();
    }
}

#[test]
fn no_shipped_object_injects_faults() {
    let injects = |object: PathBuf| {
        let content = fs::read(object).unwrap();
        content.windows(20).any(|part| part == b"WORKFLOW_TOKEN_FAULT")
    };
    for object in [
        "libjobtap_workflow_token.so",
        "libjobtap_dws.so",
        "libjobtap_cray_pmi_bootstrap.so",
        "libshell_workflow_token.so",
        "libshell_dws_environment.so",
        "libshell_cray_pmi_bootstrap.so",
    ] {
        assert!(!injects(Build::Shipped.path(object)), "{object}");
        assert!(
            injects(Build::FaultInjection.path(object)),
            "{object} injects no faults"
        );
    }
}
