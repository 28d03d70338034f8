// SPDX-License-Identifier: MIT OR Apache-2.0

//! `dws_environment.so` on the simulator. Rabbit jobs find the variables of their sealed record in their environment.
//! Jobs prepared before variables were sealed find those of their eventlog. No rabbit job starts without its variables.

use crate::support::{
    plugins::{Site, decimal, kvs_key, matching, me},
    simulator::Instance,
};
use seal::{Owner, Record, Secret, Variables};
use serde_json::{Value, json};

const CANARY: &str = "canary-5d1ee7";

/// Prints the exported variables, or that there are none.
const SHOW: &[&str] = &["sh", "-c", "echo ${DW_JOB_a-unset} ${DW_WORKFLOW_TOKEN-unset}"];

/// Starts an instance whose job manager has not loaded the product, and which holds its jobs until [`Instance::go`].
fn held(site: &Site, conf: Value) -> Instance {
    let plugin = site.install("libshell_dws_environment.so", "shell", "dws_environment.so");
    let mut whole = json!({"munge-socket": site.munged.socket()});
    for (key, value) in conf.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let args = ["--shell-plugin", &plugin, "--shell-conf", &whole.to_string()];
    let mut instance = site.launch(&args);
    instance.ok("load", site.hold());
    instance
}

/// Submits a job, prepares it, and runs it to its end.
fn run(instance: &mut Instance, more: Value, prepare: impl FnOnce(&mut Instance, &str)) -> String {
    let job = instance.submit(SHOW, more);
    instance.wait(&job, "prolog-start");
    prepare(instance, &job);
    instance.go();
    instance.wait(&job, "clean");
    job
}

fn put_record(site: &Site, instance: &mut Instance, job: &str, jobid: u64) {
    let mut variables = Variables::new();
    variables.insert("DW_JOB_a", Secret::from("/mnt/a")).unwrap();
    variables.insert("DW_WORKFLOW_TOKEN", Secret::from(CANARY)).unwrap();
    let record = Record::seal(
        &site.munged.client(),
        Owner { jobid, uid: me() },
        me(),
        &variables,
        &Default::default(),
    )
    .unwrap();
    let key = kvs_key(job, "dws-environment");
    instance.ok("kvs-put", json!({"key": key, "value": record.to_json()}));
}

fn post(instance: &mut Instance, job: &str, context: Value) {
    instance.ok(
        "post",
        json!({"jobid": job, "name": "dws_environment", "context": context}),
    );
}

fn dw() -> Value {
    json!({"nodes": 2, "attributes": {"system": {
        "dw": ["#DW jobdw type=xfs name=a"],
        "shell": {"options": {"verbose": 2}},
    }}})
}

#[needs(munged)]
#[test]
fn every_task_of_a_rabbit_job_has_the_variables_of_its_record_and_no_log_contains_them() {
    let site = Site::new();
    let mut instance = held(&site, json!({}));
    let job = run(&mut instance, dw(), |instance, job| {
        put_record(&site, instance, job, decimal(job));
        // The plugin ignores the variables in the event of a job with a record.
        post(
            instance,
            job,
            json!({"names": ["DW_JOB_a"], "variables": {"DW_JOB_a": "wrong"}}),
        );
    });
    assert_eq!(instance.stdout(&job), format!("/mnt/a {CANARY}\n").repeat(2));
    let stderr = instance.stderr(&job);
    assert!(stderr.contains("exported DW_JOB_a, DW_WORKFLOW_TOKEN"), "{stderr}");
    assert!(!stderr.contains(CANARY) && !stderr.contains("WARN"), "{stderr}");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn the_record_of_a_job_without_the_attribute_is_looked_up_because_it_may_be_added_later() {
    let site = Site::new();
    let mut instance = held(&site, json!({}));
    let job = run(&mut instance, matching("other"), |instance, job| {
        put_record(&site, instance, job, decimal(job));
    });
    assert_eq!(instance.stdout(&job), format!("/mnt/a {CANARY}\n"));
    let job = run(&mut instance, matching("other"), |_, _| {});
    assert_eq!(instance.stdout(&job), "unset unset\n");
    let refusal = json!({"topic": "job-info.lookup", "errnum": libc::EPERM, "errstr": "no lookups here"});
    instance.ok("service", refusal);
    for attribute in ["other", "dw"] {
        let job = run(&mut instance, matching(attribute), |_, _| {});
        assert!(
            instance
                .refused(&job)
                .contains("could not be looked up: no lookups here"),
            "{attribute}"
        );
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_of_the_former_plugin_has_the_variables_of_its_last_event_and_the_operator_is_warned() {
    let site = Site::new();
    let mut instance = held(&site, json!({}));
    let job = run(&mut instance, matching("dw"), |instance, job| {
        post(instance, job, json!({"variables": {"DW_JOB_a": "first"}}));
        post(
            instance,
            job,
            json!({"variables": {"DW_JOB_a": "/mnt/a", "DW_WORKFLOW_TOKEN": CANARY}, "rabbits": {}}),
        );
    });
    assert_eq!(instance.stdout(&job), format!("/mnt/a {CANARY}\n"));
    let stderr = instance.stderr(&job);
    let warning = stderr.lines().find(|line| line.contains("WARN: dws_environment: "));
    let warning = warning.unwrap_or_else(|| panic!("{stderr}"));
    assert!(
        warning.contains("DW_JOB_a, DW_WORKFLOW_TOKEN") && warning.contains("dws-jobtap.so"),
        "{warning}"
    );
    assert!(!stderr.contains(CANARY), "{stderr}");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_rabbit_job_without_variables_does_not_start_and_one_line_states_the_reason() {
    let site = Site::new();
    let mut instance = held(&site, json!({}));
    type Prepare = fn(&Site, &mut Instance, &str);
    let cases: [(Prepare, &str); 5] = [
        (|_, _, _| {}, "the job manager has not loaded dws-jobtap.so"),
        (
            |_, instance, job| post(instance, job, json!({"names": ["DW_JOB_a"]})),
            "no sealed record with the variables of its rabbits, though they were sealed",
        ),
        (
            |_, instance, job| post(instance, job, json!({"variables": {"DW_JOB_a": 4711}})),
            "not an object of strings",
        ),
        (
            |site, instance, job| put_record(site, instance, job, decimal(job) + 1),
            "the rabbit environment of this job cannot be used: the sealed record belongs to job",
        ),
        // An event does not replace a rejected record. Otherwise an event could displace any record.
        (
            |site, instance, job| {
                put_record(site, instance, job, decimal(job) + 1);
                post(instance, job, json!({"variables": {"DW_JOB_a": "/mnt/a"}}));
            },
            "belongs to job",
        ),
    ];
    for (prepare, says) in cases {
        let job = run(&mut instance, matching("dw"), |instance, job| {
            prepare(&site, instance, job)
        });
        let note = instance.refused(&job);
        assert!(note.contains(says), "{says}: {note}");
        assert!(!note.contains("4711") && !note.contains(CANARY), "{note}");
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_needs_a_record_if_eventlogs_are_disabled() {
    let site = Site::new();
    let mut instance = held(&site, json!({"legacy": false}));
    let job = run(&mut instance, matching("dw"), |instance, job| {
        post(instance, job, json!({"variables": {"DW_JOB_a": "/mnt/a"}}));
    });
    let note = instance.refused(&job);
    assert!(
        note.contains("no sealed record") && note.contains("dws-jobtap.so"),
        "{note}"
    );
    let job = run(&mut instance, matching("dw"), |instance, job| {
        put_record(&site, instance, job, decimal(job));
    });
    assert_eq!(instance.stdout(&job), format!("/mnt/a {CANARY}\n"));
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn no_record_is_looked_up_in_an_instance_of_another_owner() {
    let site = Site::new();
    let mut instance = held(&site, json!({"instance-owner": (me() + 1).to_string()}));
    let job = run(&mut instance, matching("dw"), |_, _| {});
    assert_eq!(instance.stdout(&job), "unset unset\n");
    instance.shutdown();
}
