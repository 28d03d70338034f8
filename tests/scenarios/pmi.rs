// SPDX-License-Identifier: MIT OR Apache-2.0

//! Cray PMI: which job receives which ports, through reloads and restarts. The secret is in the record and in the shell
//! option of `cray_pals.so`, and nowhere else.

use std::collections::HashSet;

use crate::support::{
    plugins::{PLAIN, Scheduler, Site, decimal, kvs_key, me, until},
    pmi::{KEY, NAME, counter, delivered, instance, load, nodes, ports, record, without_plugin},
    search::told,
    simulator::Instance,
};
use nix::sys::signal::Signal;
use seal::{Expected, ExposeSecret, Owner, Record, Secret, Variables};
use serde_json::{Value, json};

/// Prints the values that `cray_pals.so` would receive, or that there are none.
const SHOW: &[&str] = &[
    "sh",
    "-c",
    "echo ${PMI_CONTROL_PORT-unset} ${PMI_SHARED_SECRET-unset} ${PALS_NO_EDIT-unset}",
];

fn with_option(nodes: usize, options: Value) -> Value {
    json!({"nodes": nodes, "attributes": {"system": {"shell": {"options": options}}}})
}

/// Starts a job of two shells that runs until the file `go` exists.
fn running(site: &Site, instance: &mut Instance) -> String {
    let wait = format!("until [ -e {} ]; do sleep 0.02; done", site.path("go"));
    let job = instance.submit(&["sh", "-c", &wait], nodes(2));
    instance.wait(&job, "start");
    job
}

#[scenario]
fn all_tasks_of_a_job_of_several_nodes_have_its_ports_and_one_secret_which_is_in_no_event(mut site: Site) {
    site.nodes = 3;
    let mut instance = instance(&site, json!({"unlink": false}));
    let mut secrets = HashSet::new();
    for expected in [[11_999, 11_998], [11_998, 11_999], [11_999, 11_998]] {
        let options = json!({"verbose": 2, "cray-pals": {"no-edit-env": 1}});
        let job = instance.run(SHOW, with_option(3, options));
        assert_eq!(instance.events(&job), delivered());
        assert_eq!(ports(&mut instance, &job), expected);
        for (event, rest) in [("prolog-start", json!({})), ("prolog-finish", json!({"status": 0}))] {
            let mut context = rest;
            context["description"] = json!(KEY);
            assert_eq!(instance.contexts(&job, event), [context]);
        }
        let owner = Owner {
            jobid: decimal(&job),
            uid: me(),
        };
        let record = record(&mut instance, &job).unwrap();
        let opened = record.open(
            &site.munged.client(),
            &Expected {
                owner,
                instance_owner: me(),
            },
        );
        let variables = opened.unwrap().variables;
        let value = |wanted: &str| {
            let (_, value) = variables.iter().find(|(name, _)| *name == wanted).unwrap();
            value.expose_secret().to_owned()
        };
        let (port, secret) = (value("PMI_CONTROL_PORT"), value("PMI_SHARED_SECRET"));
        assert_eq!(port, format!("{},{}", expected[0], expected[1]));
        assert_eq!(instance.stdout(&job), format!("{port} {secret} 1\n").repeat(3));
        let (stderr, log) = (instance.stderr(&job), instance.dmesg().concat());
        assert!(stderr.contains("set cray-pals.pmi-bootstrap"), "{stderr}");
        assert!(!stderr.contains(&secret) && !log.contains(&secret), "{stderr}{log}");
        for (place, text) in told(&mut instance, std::slice::from_ref(&job)) {
            // The job's own tasks print the secret.
            let is_told = text.contains(&secret) && !place.contains("guest.output");
            assert!(!is_told, "{place} contains the secret");
        }
        secrets.insert(secret);
    }
    assert_eq!(secrets.len(), 3);
    instance.shutdown();
}

#[scenario]
fn a_job_of_one_node_is_left_alone(site: Site) {
    let mut instance = instance(&site, json!({}));
    let job = instance.run(SHOW, nodes(1));
    assert_eq!(instance.events(&job), PLAIN);
    assert_eq!(instance.stdout(&job), "unset unset unset\n");
    instance.shutdown();
}

#[scenario]
fn options_of_the_user_or_of_another_pmi_are_not_changed(mut site: Site) {
    site.nodes = 2;
    let mut instance = instance(&site, json!({}));
    for (options, shows) in [
        (json!({"cray-pals": {"pmi-bootstrap": [1, 2, 3]}}), "1,2 3 unset\n"),
        (json!({"cray-pals": {"pmi-bootstrap": "off"}}), "unset unset unset\n"),
        (json!({"pmi": "simple"}), "unset unset unset\n"),
    ] {
        let job = instance.run(SHOW, with_option(2, options.clone()));
        assert_eq!(instance.stdout(&job), shows.repeat(2), "{options}");
    }
    let job = instance.run(SHOW, with_option(2, json!({"pmi": "simple,cray-pals"})));
    assert!(instance.stdout(&job).starts_with("1199"), "{}", instance.stdout(&job));
    instance.shutdown();
}

#[scenario]
fn invalid_port_ranges_are_rejected_and_none_means_the_default(mut site: Site) {
    site.nodes = 2;
    let mut instance = without_plugin(&site);
    for (min, max) in [(0, 12_000), (11_000, 120_000), (11_000, 11_049), (11_000, 11_010)] {
        instance.error("load", load(&site, json!({"port-min": min, "port-max": max})));
    }
    instance.ok(
        "wait-log",
        json!({"text": "cray-pmi-bootstrap: cannot be loaded: not enough ports"}),
    );
    instance.ok("load", load(&site, json!({"port-min": 2000, "port-max": 2050})));
    let job = instance.run(&["true"], nodes(2));
    assert_eq!(ports(&mut instance, &job), [2049, 2048]);
    assert_eq!(counter(&mut instance, "ports-free"), 50);
    instance.ok("remove", json!({ "name": NAME }));
    instance.ok("load", load(&site, json!({})));
    let notice = "Port range not specified in config with port-min and port-max. Using defaults of 11000 and 12000.";
    instance.ok("wait-log", json!({ "text": notice }));
    assert_eq!(counter(&mut instance, "ports-free"), 1000);
    instance.shutdown();
}

#[scenario]
fn a_job_without_free_ports_runs_without_them_and_ports_are_released_later(mut site: Site) {
    site.nodes = 2;
    let mut instance = instance(&site, json!({"port-min": 2000, "port-max": 2051}));
    // Jobs that wait for munged hold all ports.
    site.munged.signal(Signal::SIGSTOP);
    let held: Vec<String> = (0..25).map(|_| instance.submit(&["true"], nodes(2))).collect();
    for job in &held {
        instance.wait(job, "prolog-start");
    }
    let without = instance.run(SHOW, nodes(2));
    assert_eq!(instance.events(&without), PLAIN);
    assert_eq!(instance.stdout(&without), "unset unset unset\n".repeat(2));
    instance.ok(
        "wait-log",
        json!({"text": format!("{without}: no ports are free: it goes on without")}),
    );
    assert_eq!(
        (
            counter(&mut instance, "out-of-ports"),
            counter(&mut instance, "ports-free")
        ),
        (1, 1)
    );
    site.munged.signal(Signal::SIGCONT);
    let mut all = HashSet::new();
    for job in &held {
        instance.wait(job, "clean");
        all.extend(ports(&mut instance, job));
    }
    assert_eq!(all.len(), 50, "a port was allocated twice");
    assert_eq!(counter(&mut instance, "ports-free"), 51);
    instance.shutdown();
}

#[scenario]
fn a_job_whose_secret_cannot_be_sealed_gets_one_exception_and_does_not_start(mut site: Site) {
    site.nodes = 2;
    let mut instance = instance(&site, json!({"timeout": "500ms"}));
    site.munged.signal(Signal::SIGSTOP);
    let job = instance.submit(&["true"], nodes(2));
    instance.wait(&job, "clean");
    site.munged.signal(Signal::SIGCONT);
    let exceptions = instance.contexts(&job, "exception");
    assert_eq!(exceptions.len(), 1, "{exceptions:?}");
    assert_eq!(
        (&exceptions[0]["type"], &exceptions[0]["severity"]),
        (&json!(KEY), &json!(0))
    );
    let note = exceptions[0]["note"].as_str().unwrap();
    assert!(
        note.starts_with("no secret for Cray PMI for this job: it took longer than 0.5 s"),
        "{note}"
    );
    assert!(!instance.events(&job).contains(&"start".to_owned()));
    assert_eq!(counter(&mut instance, "ports-free"), 1000);
    instance.shutdown();
}

#[scenario]
fn a_job_canceled_during_its_delivery_ends_and_releases_its_ports(mut site: Site) {
    site.nodes = 2;
    let mut instance = instance(&site, json!({}));
    site.munged.signal(Signal::SIGSTOP);
    let job = instance.submit(&["true"], nodes(2));
    instance.wait(&job, "prolog-start");
    instance.ok("cancel", json!({ "jobid": job }));
    instance.wait(&job, "clean");
    site.munged.signal(Signal::SIGCONT);
    let status = instance.contexts(&job, "prolog-finish");
    assert_eq!(status, [json!({"description": KEY, "status": 1})]);
    assert_eq!(counter(&mut instance, "ports-free"), 1000);
    assert_eq!(counter(&mut instance, "canceled"), 1);
    instance.shutdown();
}

#[scenario]
fn ports_of_running_jobs_are_not_allocated_again_after_a_reload_and_are_released_at_their_end(mut site: Site) {
    site.nodes = 2;
    let mut instance = instance(&site, json!({}));
    let before = running(&site, &mut instance);
    instance.ok("remove", json!({ "name": NAME }));
    // The plugin does not notice the job, which receives nothing.
    let unnoticed = instance.run(SHOW, nodes(2));
    assert_eq!(instance.stdout(&unnoticed), "unset unset unset\n".repeat(2));
    instance.ok("load", load(&site, json!({})));
    assert_eq!(counter(&mut instance, "ports-free"), 998);
    let after = running(&site, &mut instance);
    assert_eq!(
        (ports(&mut instance, &before), ports(&mut instance, &after)),
        ([11_999, 11_998], [11_997, 11_996])
    );
    // One job ends while the plugin is removed.
    instance.ok("remove", json!({ "name": NAME }));
    site.write("go", 0o600, "");
    for job in [&before, &after] {
        instance.wait(job, "clean");
    }
    instance.ok("load", load(&site, json!({})));
    assert_eq!(counter(&mut instance, "ports-free"), 1000);
    until("the records are removed", || {
        record(&mut instance, &before).is_none() && record(&mut instance, &after).is_none()
    });
    instance.shutdown();
}

#[scenario]
fn a_delivery_in_progress_continues_after_a_reload_with_the_same_ports(mut site: Site) {
    site.nodes = 2;
    let mut instance = instance(&site, json!({}));
    site.munged.signal(Signal::SIGSTOP);
    let (job, canceled) = (instance.submit(SHOW, nodes(2)), instance.submit(&["true"], nodes(2)));
    for job in [&job, &canceled] {
        instance.wait(job, "prolog-start");
    }
    instance.ok("remove", json!({ "name": NAME }));
    instance.ok("cancel", json!({ "jobid": canceled }));
    instance.wait(&canceled, "exception");
    instance.ok("load", load(&site, json!({})));
    instance.wait(&canceled, "clean");
    site.munged.signal(Signal::SIGCONT);
    instance.wait(&job, "clean");
    assert_eq!(instance.events(&job), delivered());
    assert_eq!(ports(&mut instance, &job), [11_999, 11_998]);
    assert!(
        instance.stdout(&job).starts_with("11999,11998 "),
        "{}",
        instance.stdout(&job)
    );
    assert_eq!(counter(&mut instance, "resumed"), 1);
    assert_eq!(counter(&mut instance, "ports-free"), 1000);
    instance.shutdown();
}

#[scenario]
fn a_second_copy_is_refused_under_any_name(mut site: Site) {
    site.nodes = 2;
    let mut instance = instance(&site, json!({}));
    let copy = site.install("libjobtap_cray_pmi_bootstrap.so", "job-manager", "copy.so");
    let error = instance.error("load", json!({ "path": copy }));
    assert!(error.contains("cray-pmi-bootstrap is already loaded"), "{error}");
    let job = instance.run(&["true"], nodes(2));
    assert_eq!(instance.events(&job), delivered());
    instance.shutdown();
}

#[scenario]
fn it_works_beside_the_plugin_for_workflow_tokens(mut site: Site) {
    site.nodes = 2;
    let mut instance = instance(&site, json!({}));
    let rule = site.file_rule("dw", crate::support::plugins::jwt(json!({})));
    instance.ok("load", json!({"path": site.jobtap()}));
    instance.ok("config-reload", json!({"config": site.config(json!({"rule": [rule]}))}));
    let job = instance.run(SHOW, json!({"nodes": 2, "attributes": {"system": {"dw": 1}}}));
    assert!(
        instance.stdout(&job).starts_with("11999,11998 "),
        "{}",
        instance.stdout(&job)
    );
    assert_eq!(instance.contexts(&job, "prolog-finish").len(), 2);
    assert_eq!(counter(&mut instance, "delivered"), 1);
    assert_eq!(instance.counter("delivered"), 1);
    instance.ok("remove", json!({ "name": NAME }));
    instance.ok("load", load(&site, json!({})));
    assert_eq!(instance.counter("delivered"), 1);
    instance.shutdown();
}

/// Three jobs: one with a delivered record, which another prolog holds; one whose delivery is in progress; and one that
/// received its ports from the plugin that this one replaces.
#[scenario]
fn after_a_restart_the_ports_of_all_jobs_are_known_and_deliveries_go_on(mut site: Site) {
    site.nodes = 2;
    for end in [Instance::shutdown, Instance::kill] {
        let mut first = without_plugin(&site);
        first.ok("load", site.hold());
        let former = first.submit(&["true"], nodes(2));
        first.wait(&former, "prolog-start");
        let context = json!({"ports": [11_995, 11_994], "random_integer": -7});
        first.ok("post", json!({"jobid": former, "name": KEY, "context": context}));
        first.wait(&former, KEY);
        // The plugin is loaded for the first time in this job manager.
        first.ok("load", load(&site, json!({})));
        let held = first.submit(SHOW, nodes(2));
        first.wait(&held, "prolog-finish");
        assert_eq!(ports(&mut first, &held), [11_999, 11_998]);
        site.munged.signal(Signal::SIGSTOP);
        let under_way = first.submit(SHOW, nodes(2));
        first.ok("wait", json!({"jobid": under_way, "event": "prolog-start", "count": 2}));
        first.wait(&under_way, KEY);
        assert_eq!(ports(&mut first, &under_way), [11_997, 11_996]);
        assert_eq!(counter(&mut first, "ports-free"), 994);
        end(first);
        site.munged.signal(Signal::SIGCONT);

        let mut second = without_plugin(&site);
        second.ok("load", load(&site, json!({})));
        // This job arrives before or after the eventlogs are read.
        let new = second.submit(SHOW, nodes(2));
        second.wait(&new, "clean");
        assert_eq!(ports(&mut second, &new), [11_993, 11_992]);
        assert_eq!(second.events(&new), delivered());
        // The other prolog finishes, and the jobs proceed.
        second.ok("load", site.hold());
        second.go();
        for (job, expected) in [(&held, "11999,11998 "), (&under_way, "11997,11996 ")] {
            second.wait(job, "clean");
            let stdout = second.stdout(job);
            assert!(stdout.starts_with(expected), "{job}: {stdout}");
            assert_eq!(second.contexts(job, KEY).len(), 1);
        }
        second.wait(&former, "clean");
        assert_eq!(counter(&mut second, "resumed"), 1);
        assert_eq!(counter(&mut second, "ports-free"), 1000);
        second.shutdown();
    }
}

#[scenario]
fn a_foreign_record_fails_the_job_and_one_line_states_the_reason(mut site: Site) {
    site.nodes = 2;
    let mut instance = without_plugin(&site);
    instance.ok("load", site.hold());
    let variables = |port: &str, secret: &str| {
        let mut variables = Variables::new();
        variables.insert("PMI_CONTROL_PORT", Secret::from(port)).unwrap();
        variables.insert("PMI_SHARED_SECRET", Secret::from(secret)).unwrap();
        variables
    };
    let mut run = |other: u64, variables: Variables| {
        let job = instance.submit(SHOW, nodes(2));
        instance.wait(&job, "prolog-start");
        let owner = Owner {
            jobid: decimal(&job) + other,
            uid: me(),
        };
        let record = Record::seal(&site.munged.client(), owner, me(), &variables, &Default::default()).unwrap();
        instance.ok("kvs-put", json!({"key": kvs_key(&job, KEY), "value": record.to_json()}));
        instance.go();
        instance.wait(&job, "clean");
        if other == 0 && variables.iter().all(|(_, value)| !value.expose_secret().contains("x")) {
            return instance.stdout(&job);
        }
        assert_eq!(instance.stdout(&job), "");
        let exceptions = instance.contexts(&job, "exception");
        let note = exceptions[0]["note"].as_str().unwrap().to_owned();
        assert!(!note.contains("4711"), "{note}");
        note
    };
    // The option contains the number with its sign. The plugin restores the unsigned value.
    let shown = run(0, variables("1,2", "18446744073709551615"));
    assert_eq!(shown, "1,2 18446744073709551615 unset\n".repeat(2));
    assert!(run(1, variables("1,2", "4711")).contains("the sealed record belongs to job"));
    assert!(run(0, variables("1,2", "x4711")).contains("PMI_SHARED_SECRET in the sealed record is not a number"));
    assert!(run(0, variables("1,x", "4711")).contains("PMI_CONTROL_PORT in the sealed record is not two ports"));
    instance.shutdown();
}

#[scenario]
fn without_the_plugin_in_the_job_manager_nothing_is_reported(mut site: Site) {
    site.nodes = 2;
    let mut instance = without_plugin(&site);
    let job = instance.run(SHOW, nodes(2));
    assert_eq!(instance.stdout(&job), "unset unset unset\n".repeat(2));
    assert_eq!(instance.stderr(&job), "");
    instance.shutdown();
}
