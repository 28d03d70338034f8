// SPDX-License-Identifier: MIT OR Apache-2.0

//! `dws-jobtap.so` in cases that only the simulator can test: faults of the KVS, jobs of other users, and jobs in every
//! state when the plugin or the instance returns. `tests/scenarios/` tests everything else that users notice.

use crate::support::{
    plugins::{GUEST, decimal, jwt, me, until, user},
    rabbits::{Dws, NAME, PRINT, Rabbits, SERVICE, WHOLE},
    search::Search,
    simulator::{Instance, watched},
};
use nix::sys::signal::Signal;
use seal::{Error, Expected, Owner, Record};
use serde_json::{Value, json};

#[needs(munged, root)]
#[test]
fn only_the_job_owner_can_open_the_record() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start_with(json!({}), json!({"unlink": false}));
    let (canary, guest) = (jwt(json!({})), user(GUEST).uid.as_raw());
    let system = json!({"dw": "#DW jobdw"});
    let job = instance.submit(
        &["sh", "-c", "id -u; echo $DW_JOB_a"],
        json!({"userid": guest, "attributes": {"system": system}}),
    );
    instance.create(&job);
    assert_eq!(instance.seen("dws.create", &job)[0]["userid"], guest);
    instance.asked("dws.setup", &job);
    instance.give(&job, json!({"DW_JOB_a": canary}));
    instance.tear_down(&job);
    assert_eq!(instance.stdout(&job), format!("{guest}\n{canary}\n"));

    let text = instance.environment(&job).unwrap().to_string();
    let expected = Expected {
        owner: Owner {
            jobid: decimal(&job),
            uid: guest,
        },
        instance_owner: 0,
    };
    match Record::from_json(&text)
        .unwrap()
        .open(&rabbits.site.munged.client(), &expected)
    {
        Err(Error::Munge(e)) if e.is_unauthorized() => {}
        other => panic!("the instance owner was not refused: {other:?}"),
    }
    let lookup = |userid: u32| json!({"jobid": job, "key": "dws-environment", "userid": userid});
    instance.ok("lookup", lookup(guest));
    assert_eq!(
        instance.error("lookup", lookup(guest - 1)),
        "access is restricted to job/instance owner"
    );
    // Only the instance owner can play the service.
    for method in ["resource-update", "prolog-remove", "epilog-remove"] {
        let request = json!({"topic": format!("job-manager.dws.{method}"), "userid": guest, "payload": {"id": 1}});
        let denied = instance.error("rpc", request);
        assert!(denied.contains("owner"), "{denied}");
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn repeated_or_misdirected_messages_of_the_service_are_answered_without_effect() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let remove = |id: u64| json!({"id": id, "variables": {"DW_JOB_a": "x"}});
    let no_prolog = Err("the job has no prolog dws-setup: it is not a rabbit job in RUN".to_owned());
    let no_epilog = |instance: &mut Instance, id: u64| {
        assert!(instance.rpc("epilog-remove", json!({"id": id})).is_err(), "{id}");
    };
    // This job does not exist.
    assert_eq!(instance.rpc("prolog-remove", remove(7)), no_prolog);
    no_epilog(&mut instance, 7);

    let wait = format!(
        "until [ -e {} ]; do sleep 0.02; done; echo $DW_JOB_a",
        rabbits.site.path("go")
    );
    let job = instance.rabbit(&["sh", "-c", &wait]);
    let id = decimal(&job);
    let resources = instance.asked("dws.create", &job)["resources"].clone();
    assert_eq!(instance.rpc("prolog-remove", remove(id)), no_prolog);
    no_epilog(&mut instance, id);
    let update = json!({"id": id, "resources": resources, "exclude": null});
    assert_eq!(instance.rpc("resource-update", update.clone()), Ok(()));
    instance.asked("dws.setup", &job);
    assert_eq!(
        instance.rpc("resource-update", update),
        Err("job not found in depend state".to_owned())
    );
    no_epilog(&mut instance, id);
    // Twice during the delivery, and once more.
    instance.ok("fault", json!({"what": "hold-commits"}));
    let request = json!({"topic": "job-manager.dws.prolog-remove", "payload": remove(id)});
    let first = instance.send("rpc", request.clone());
    instance.ok("wait-held", json!({"count": 1}));
    let second = instance.send("rpc", request);
    instance.ok("fault", json!({"what": "release-commits"}));
    for request in [first, second] {
        assert_eq!(instance.response(request)["ok"], true);
    }
    assert_eq!(instance.rpc("prolog-remove", remove(id)), Ok(()));
    instance.wait(&job, "start");
    assert_eq!(instance.rpc("prolog-remove", remove(id)), Ok(()));
    no_epilog(&mut instance, id);
    rabbits.site.write("go", 0o600, "");
    instance.asked("dws.post_run", &job);
    assert_eq!(instance.rpc("prolog-remove", remove(id)), no_prolog);
    instance.tear_down(&job);
    no_epilog(&mut instance, id);
    assert_eq!(instance.rpc("prolog-remove", remove(id)), no_prolog);
    assert_eq!(instance.events(&job), WHOLE);
    assert_eq!(instance.stdout(&job), "x\n");
    assert_eq!((instance.counted("/started"), instance.counted("/delivered")), (1, 1));
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_that_is_canceled_in_its_prolog_is_torn_down_and_not_set_up_any_more() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    // While its resources are unknown.
    instance.ok("fault", json!({"what": "hold-lookups"}));
    let job = instance.rabbit(&["true"]);
    instance.create(&job);
    instance.wait(&job, "prolog-start");
    instance.ok("cancel", json!({"jobid": job}));
    instance.asked("dws.post_run", &job);
    instance.ok("fault", json!({"what": "release-lookups"}));
    assert_eq!(instance.failed(&job), "");
    // While the service sets it up.
    let other = instance.in_prolog(&["true"]);
    instance.ok("raise", json!({"jobid": other, "type": "node-failure", "severity": 1}));
    assert_eq!(instance.perilogs(&other), 1, "otherwise the job would have survived");
    instance.ok("cancel", json!({"jobid": other}));
    assert_eq!(instance.failed(&other), "");
    assert_eq!(instance.seen("dws.setup", &job), [Value::Null; 0]);
    for job in [&job, &other] {
        assert_eq!(instance.seen("dws.teardown", job), [Value::Null; 0]);
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_that_is_canceled_while_its_variables_are_delivered_ends_and_keeps_none() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let deliver = |instance: &mut Instance, job: &str| {
        let payload = json!({"id": decimal(job), "variables": {"DW_JOB_a": "x"}});
        instance.send(
            "rpc",
            json!({"topic": "job-manager.dws.prolog-remove", "payload": payload}),
        )
    };
    // While munged seals its record.
    rabbits.site.munged.signal(Signal::SIGSTOP);
    let sealing = instance.in_prolog(&["true"]);
    let request = deliver(&mut instance, &sealing);
    until("munged is asked", || rabbits.site.waiting_for_munged() > 0);
    instance.ok("cancel", json!({"jobid": sealing}));
    assert_eq!(instance.response(request)["error"], "the job has got an exception");
    rabbits.site.munged.signal(Signal::SIGCONT);
    assert_eq!(instance.failed(&sealing), "");
    assert_eq!(instance.environment(&sealing), None);
    // During the commit.
    instance.ok("fault", json!({"what": "hold-commits"}));
    let committing = instance.in_prolog(&["true"]);
    let request = deliver(&mut instance, &committing);
    instance.ok("wait-held", json!({"count": 1}));
    instance.ok("cancel", json!({"jobid": committing}));
    assert_eq!(instance.response(request)["error"], "the job has got an exception");
    instance.ok("fault", json!({"what": "release-commits"}));
    assert_eq!(instance.failed(&committing), "");
    until("the record is removed", || instance.environment(&committing).is_none());
    assert_eq!(instance.contexts(&committing, "dws_environment"), [Value::Null; 0]);
    assert_eq!((instance.counted("/canceled"), instance.counted("/in-flight")), (2, 0));
    instance.shutdown();
}

/// Only the instance owner may disable rabbits. A `dws-epilog-timeout` raised by a job owner is an ordinary exception.
#[needs(munged)]
#[test]
fn epilog_timeout_is_for_the_instance_owner() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let guest = user(GUEST).uid.as_raw();
    let system = json!({"dw": ["#DW jobdw type=xfs capacity=10GiB name=a"]});
    let job = instance.submit(&["true"], json!({"userid": guest, "attributes": {"system": system}}));
    instance.create(&job);
    instance.asked("dws.setup", &job);
    instance.give(&job, json!({}));
    instance.asked("dws.post_run", &job);
    let raise = |userid: u32| json!({"jobid": job, "type": "dws-epilog-timeout", "userid": userid});
    instance.ok("raise", raise(guest));
    assert_eq!(instance.asked("dws.teardown", &job), json!({"jobid": decimal(&job)}));
    assert_eq!(instance.perilogs(&job), 1, "a job owner ended the epilog");
    assert_eq!(instance.seen("dws.abort", &job), [Value::Null; 0]);
    instance.ok("raise", raise(me()));
    assert_eq!(instance.asked("dws.abort", &job), json!({"jobid": decimal(&job)}));
    instance.wait(&job, "clean");
    assert_eq!(instance.contexts(&job, "epilog-finish")[0]["status"], 1);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_record_that_cannot_be_made_or_stored_ends_the_job_with_one_clear_exception() {
    let mut rabbits = Rabbits::new();
    let mut instance = rabbits.start_with(json!({}), json!({"timeout": "1s"}));
    let canary = jwt(json!({}));
    let fails = |instance: &mut Instance, variables: Value, says: &str, cause: &str| {
        let job = instance.in_prolog(&["true"]);
        let payload = json!({"id": decimal(&job), "variables": variables});
        let error = instance.rpc("prolog-remove", payload).unwrap_err();
        let expected = format!("its environment could not be delivered: {says}");
        assert!(error.starts_with(&expected), "{error}");
        let note = instance.failed(&job);
        assert!(note.contains(&expected), "{note}");
        assert!(note.contains("ask the operators") && !note.contains('/'), "{note}");
        assert_eq!(instance.notes(&job)[0].0, "dws-setup");
        let log = instance.dmesg();
        let line = format!("{job}: no environment from DWS was delivered: ");
        let lines: Vec<_> = log.iter().filter(|text| text.contains(&line)).collect();
        assert!(lines.len() == 1 && lines[0].contains(cause), "{lines:?}");
        until("there is no record", || instance.environment(&job).is_none());
    };
    let variables = json!({"DW_JOB_a": canary});
    instance.ok("fault", json!({"what": "commit", "count": 1, "errnum": libc::ENOSPC}));
    fails(
        &mut instance,
        variables.clone(),
        "it could not be stored",
        "No space left",
    );
    // The second value is longer than a message to the agent can be.
    for length in [2 << 20, 9 << 20] {
        let variables = json!({"DW_JOB_a": "x".repeat(length)});
        fails(&mut instance, variables, "its variables take", "[too-large]");
    }
    instance.ok("fault", json!({"what": "hold-commits"}));
    fails(&mut instance, variables.clone(), "it took longer than 1 s", "timeout");
    instance.ok("fault", json!({"what": "release-commits"}));
    rabbits.site.kill_munged();
    fails(&mut instance, variables.clone(), "it took longer than 1 s", "seal");
    rabbits.site.munged.restart();
    // The next job is not affected.
    let job = instance.in_prolog(PRINT);
    instance.give(&job, variables);
    instance.tear_down(&job);
    assert_eq!(instance.stdout(&job), format!("{canary}\n"));
    assert_eq!(instance.counted("/failed"), 5);
    assert!(!Search::tokens([canary.as_str()]).finds(instance.dmesg().concat().as_bytes()));
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn variables_are_found_only_in_the_environment_of_their_job() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let canaries: Vec<String> = (0..6).map(|_| jwt(json!({}))).collect();
    let search = Search::tokens(canaries.iter().map(String::as_str));
    let wait = format!(
        "until [ -e {} ]; do sleep 0.02; done; echo $DW_JOB_a",
        rabbits.site.path("go")
    );
    let verbose = json!({"shell": {"options": {"verbose": 2}}});
    let mut jobs = Vec::new();
    for canary in &canaries {
        let job = instance.rabbit_with(&["sh", "-c", &wait], verbose.clone());
        instance.create(&job);
        instance.asked("dws.setup", &job);
        let payload = json!({"id": decimal(&job), "variables": {"DW_JOB_a": canary}});
        jobs.push((
            job,
            json!({"topic": "job-manager.dws.prolog-remove", "payload": payload}),
        ));
    }
    // One job runs; the commit of one fails; one is canceled during the commit; one is malformed; one is in flight.
    assert_eq!(instance.ok("rpc", jobs[0].1.clone())["ok"], true);
    instance.ok("fault", json!({"what": "commit", "count": 1}));
    instance.error("rpc", jobs[1].1.clone());
    instance.ok("fault", json!({"what": "hold-commits"}));
    instance.send("rpc", jobs[2].1.clone());
    instance.ok("wait-held", json!({"count": 1}));
    instance.ok("cancel", json!({"jobid": jobs[2].0}));
    let mut malformed = jobs[3].1.clone();
    malformed["payload"]["variables"]["B"] = json!({"C": canaries[3]});
    instance.error("rpc", malformed);
    instance.send("rpc", jobs[4].1.clone());
    instance.wait(&jobs[0].0, "start");
    let found = |instance: &mut Instance| {
        let mut found = search.processes();
        for command in ["dmesg", "stats", "kvs-list"] {
            if search.finds(instance.ok(command, json!({})).to_string().as_bytes()) {
                found.push(command.to_owned());
            }
        }
        let query = instance.ok("query", json!({"name": NAME})).to_string();
        assert!(!search.finds(query.as_bytes()), "{query}");
        for key in instance.ok("kvs-list", json!({}))["keys"].as_array().unwrap() {
            let value = instance.ok("kvs-get", json!({"key": key}))["value"].to_string();
            if search.finds(value.as_bytes()) {
                found.push(key.to_string());
            }
        }
        for (job, _) in &jobs {
            for command in ["eventlog", "state"] {
                if search.finds(instance.ok(command, json!({"jobid": job})).to_string().as_bytes()) {
                    found.push(format!("{command} of {job}"));
                }
            }
            if search.finds(instance.stderr(job).as_bytes()) {
                found.push(format!("standard error of {job}"));
            }
        }
        let files = search.files(&rabbits.site.statedir());
        found.extend(files.iter().map(|path| path.display().to_string()));
        found
    };
    assert_eq!(found(&mut instance), [""; 0]);
    instance.ok("fault", json!({"what": "release-commits"}));
    rabbits.site.write("go", 0o600, "");
    instance.tear_down(&jobs[0].0);
    instance.tear_down(&jobs[4].0);
    for n in [0, 4] {
        let output = instance.stdout(&jobs[n].0);
        assert_eq!(output.trim_end(), canaries[n]);
        assert!(
            search.finds(output.as_bytes()),
            "the search does not find a known secret"
        );
        let stderr = instance.stderr(&jobs[n].0);
        assert!(stderr.contains("exported DW_JOB_a"), "{stderr}");
    }
    assert_eq!(found(&mut instance), ["the output"; 0]);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_prolog_of_another_plugin_is_never_finished_by_this_one() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start_with(json!({}), json!({"timeout": "1s"}));
    let other = |what: &str| json!([{"do": what, "description": "other", "status": 0}]);
    rabbits.puppet(
        &mut instance,
        json!({"job.state.run": other("prolog-start"), "job.state.cleanup": other("epilog-start")}),
    );
    let act = {
        let other = other("prolog-finish");
        move |instance: &mut Instance, job: &str| {
            let payload = json!({"id": decimal(job), "actions": other});
            instance.ok("rpc", json!({"topic": "job-manager.puppet.do", "payload": payload}));
        }
    };
    let remove = |job: &str| json!({"id": decimal(job), "variables": {"DW_JOB_a": "x"}});

    // The job has its record, and the service keeps sending requests.
    let job = instance.in_prolog(PRINT);
    assert_eq!(instance.perilogs(&job), 2);
    for _ in 0..3 {
        assert_eq!(instance.rpc("prolog-remove", remove(&job)), Ok(()));
        assert_eq!(instance.perilogs(&job), 1);
    }
    rabbits.reload(&mut instance);
    assert_eq!(instance.rpc("prolog-remove", remove(&job)), Ok(()));
    assert_eq!(instance.perilogs(&job), 1);
    act(&mut instance, &job);
    instance.asked("dws.post_run", &job);
    assert_eq!(instance.stdout(&job), "x\n");
    for finished in [true, false] {
        let removed = instance.rpc("epilog-remove", json!({"id": decimal(&job)}));
        assert_eq!(removed.is_ok(), finished, "{removed:?}");
        assert_eq!(instance.perilogs(&job), 1);
    }

    // Failed, malformed, canceled: each twice, with a reload of the plugin in between.
    for how in 0..3 {
        let job = instance.in_prolog(&["true"]);
        for _ in 0..2 {
            match how {
                0 => {
                    instance.ok("fault", json!({"what": "commit", "count": 1}));
                    assert!(instance.rpc("prolog-remove", remove(&job)).is_err());
                    instance.ok("fault", json!({"what": "commit", "count": 0}));
                }
                1 => assert!(instance.rpc("prolog-remove", json!({"id": decimal(&job)})).is_err()),
                _ => drop(instance.ok("cancel", json!({"jobid": job}))),
            }
            // The other plugin's prolog, and two epilogs.
            assert_eq!(instance.perilogs(&job), 3, "{how}");
            rabbits.reload(&mut instance);
            assert_eq!(instance.perilogs(&job), 3, "{how}");
        }
        assert_eq!(instance.rpc("epilog-remove", json!({"id": decimal(&job)})), Ok(()));
        assert_eq!(instance.perilogs(&job), 2, "{how}");
    }
    instance.shutdown();
}

/// Jobs in every state. Each must end normally once the plugin returns.
struct Everywhere {
    asked: String,
    waits_for_other: String,
    scheduled: String,
    set_up_later: String,
    in_prolog: String,
    in_flight: String,
    running: String,
    in_epilog: String,
}

const OTHER: &str = "wait";

impl Everywhere {
    fn new(rabbits: &Rabbits, instance: &mut Instance) -> Everywhere {
        let wait = format!(
            "until [ -e {} ]; do sleep 0.02; done; echo $DW_JOB_a",
            rabbits.site.path("go")
        );
        let in_epilog = instance.in_prolog(&["true"]);
        instance.give(&in_epilog, json!({}));
        instance.asked("dws.post_run", &in_epilog);
        let running = instance.in_prolog(&["sh", "-c", &wait]);
        instance.give(&running, json!({"DW_JOB_a": "running"}));
        instance.wait(&running, "start");
        let in_prolog = instance.in_prolog(PRINT);
        let scheduled = instance.submit(
            PRINT,
            json!({"urgency": 0, "attributes": {"system": {"dw": "#DW jobdw"}}}),
        );
        instance.create(&scheduled);
        instance.wait(&scheduled, "priority");
        // When its resources are known, it still waits for another dependency.
        rabbits.puppet(
            instance,
            json!({"job.state.depend": [{"do": "dependency-add", "description": OTHER}]}),
        );
        let waits_for_other = instance.rabbit(PRINT);
        instance.create(&waits_for_other);
        instance.ok("remove", json!({"name": "puppet.so"}));
        let asked = instance.rabbit(PRINT);
        instance.asked("dws.create", &asked);
        rabbits.name_workflow(instance, &asked);
        let in_flight = instance.in_prolog(PRINT);
        instance.ok("fault", json!({"what": "hold-commits"}));
        let payload = json!({"id": decimal(&in_flight), "variables": {"DW_JOB_a": "in flight"}});
        instance.send(
            "rpc",
            json!({"topic": "job-manager.dws.prolog-remove", "payload": payload}),
        );
        instance.ok("wait-held", json!({"count": 1}));
        instance.ok("fault", json!({"what": "hold-lookups"}));
        let set_up_later = instance.rabbit(PRINT);
        instance.create(&set_up_later);
        instance.wait(&set_up_later, "prolog-start");
        assert_eq!(instance.counted("/jobs/active"), 8);
        assert_eq!(instance.counted("/jobs/in-prolog"), 3);
        assert_eq!(instance.counted("/jobs/in-epilog"), 1);
        // An existing workflow is not created again.
        let exists = json!({"success": false, "errstr": "workflows \"fluxjob\" already exists"});
        instance.service("dws.create", json!({"payload": exists}));
        Everywhere {
            asked,
            waits_for_other,
            scheduled,
            set_up_later,
            in_prolog,
            in_flight,
            running,
            in_epilog,
        }
    }

    /// Continues every job from its state.
    fn go_on(&self, rabbits: &Rabbits, instance: &mut Instance) {
        // The service reports the resources once it knows them, whoever requested them.
        let resources = instance.seen("dws.create", &self.asked)[0]["resources"].clone();
        until("the request is repeated", || {
            instance.seen("dws.create", &self.asked).len() > 1
        });
        let update = json!({"id": decimal(&self.asked), "resources": resources, "exclude": null});
        assert_eq!(instance.rpc("resource-update", update), Ok(()));
        // This job waits for the other dependency only.
        let state = instance.ok("state", json!({"jobid": self.waits_for_other}));
        assert_eq!(state["dependencies"], json!([OTHER]));
        rabbits.puppet(instance, json!({}));
        let other = json!([{"do": "dependency-remove", "description": OTHER}]);
        let payload = json!({"id": decimal(&self.waits_for_other), "actions": other});
        instance.ok("rpc", json!({"topic": "job-manager.puppet.do", "payload": payload}));
        instance.ok("remove", json!({"name": "puppet.so"}));
        // A job without resources receives its epilog, though the plugin had no earlier work for it.
        instance.ok("cancel", json!({"jobid": self.scheduled}));
        assert_eq!(instance.asked("dws.post_run", &self.scheduled)["run_started"], false);
        instance.ok("raise", json!({"jobid": self.scheduled, "type": "dws-epilog-timeout"}));
        instance.wait(&self.scheduled, "clean");
        for job in [&self.asked, &self.waits_for_other] {
            instance.asked("dws.setup", job);
            instance.give(job, json!({"DW_JOB_a": "given"}));
            instance.tear_down(job);
            assert_eq!(instance.stdout(job), "given\n");
            assert_eq!(instance.notes(job), [], "{job}");
        }
        assert_eq!(instance.seen("dws.create", &self.waits_for_other).len(), 1);
        instance.give(&self.in_prolog, json!({"DW_JOB_a": "in prolog"}));
        instance.tear_down(&self.in_prolog);
        assert_eq!(instance.stdout(&self.in_prolog), "in prolog\n");
        assert_eq!(instance.seen("dws.setup", &self.in_prolog).len(), 1);
        instance.tear_down(&self.in_epilog);
        assert_eq!(instance.seen("dws.post_run", &self.in_epilog).len(), 1);
        for event in ["epilog-start", "epilog-finish"] {
            assert_eq!(instance.contexts(&self.in_epilog, event).len(), 1);
        }
    }
}

#[needs(munged)]
#[test]
fn a_record_sealed_before_the_removal_is_looked_up_until_its_fate_is_known() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let prolog_remove = |job: &str, value: &str| {
        let payload = json!({"id": decimal(job), "variables": {"DW_JOB_a": value}});
        json!({"topic": "job-manager.dws.prolog-remove", "payload": payload})
    };
    let [stored, again, canceled, refused] = [(); 4].map(|()| instance.in_prolog(PRINT));
    instance.ok("fault", json!({"what": "hold-commits"}));
    for (n, job) in [&stored, &again, &canceled].into_iter().enumerate() {
        instance.send("rpc", prolog_remove(job, "first"));
        // The first delivery is committed alone. The others wait for its commit, or are being sealed.
        until("the delivery is in flight", || {
            instance.counted("/in-flight") == n as u64 + 1
        });
    }
    instance.ok("wait-held", json!({"count": 1}));
    rabbits.reload(&mut instance);
    // The plugin does not know the jobs yet when it is removed again.
    rabbits.reload(&mut instance);
    let waits = instance.send("rpc", prolog_remove(&again, "second"));
    instance.ok("cancel", json!({"jobid": canceled}));
    instance.ok("fault", json!({"what": "release-commits"}));
    assert_eq!(instance.response(waits)["ok"], true);
    for (job, found) in [(&stored, "first\n"), (&again, "second\n")] {
        instance.tear_down(job);
        assert_eq!(instance.stdout(job), found);
        assert_eq!(instance.events(job), WHOLE);
    }
    instance.tear_down(&canceled);
    assert!(
        !instance.events(&canceled).contains(&"start".to_owned()),
        "the job was started"
    );

    instance.ok("fault", json!({"what": "hold-commits"}));
    instance.send("rpc", prolog_remove(&refused, "never"));
    instance.ok("wait-held", json!({"count": 1}));
    instance.ok("fault", json!({"what": "commit", "count": -1}));
    rabbits.reload(&mut instance);
    let note = instance.failed(&refused);
    assert!(note.contains("submit it again"), "{note}");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn jobs_in_all_states_continue_after_a_reload_of_the_plugin() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let jobs = Everywhere::new(&rabbits, &mut instance);
    let held = instance.send(
        "rpc",
        json!({"topic": "job-manager.dws.prolog-remove", "payload": {"id": decimal(&jobs.in_flight), "variables": {}}}),
    );
    // By then, the plugin has received the earlier request.
    assert!(instance.rpc("epilog-remove", json!({"id": 7})).is_err());
    rabbits.reload(&mut instance);
    let error = instance.response(held)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("being removed"), "{error}");
    instance.ok("fault", json!({"what": "release-commits"}));
    instance.ok("fault", json!({"what": "release-lookups"}));
    jobs.go_on(&rabbits, &mut instance);
    instance.asked("dws.setup", &jobs.set_up_later);
    instance.give(&jobs.set_up_later, json!({"DW_JOB_a": "later"}));
    instance.tear_down(&jobs.set_up_later);
    assert_eq!(instance.stdout(&jobs.set_up_later), "later\n");
    // The variables were sealed and on their way to the KVS.
    instance.tear_down(&jobs.in_flight);
    assert_eq!(instance.stdout(&jobs.in_flight), "in flight\n");
    assert_eq!(instance.events(&jobs.in_flight), WHOLE);
    rabbits.site.write("go", 0o600, "");
    instance.tear_down(&jobs.running);
    assert_eq!(instance.stdout(&jobs.running), "running\n");
    assert_eq!(instance.events(&jobs.running), WHOLE);
    for job in [&jobs.running, &jobs.in_prolog, &jobs.in_flight] {
        until("the record is removed", || instance.environment(job).is_none());
    }
    assert_eq!(instance.counted("/jobs/active"), 0);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn jobs_in_all_states_continue_after_a_restart_of_the_instance() {
    let rabbits = Rabbits::new();
    for end in [Instance::shutdown, Instance::kill] {
        let mut instance = rabbits.start();
        let jobs = Everywhere::new(&rabbits, &mut instance);
        let resources = instance.seen("dws.create", &jobs.asked)[0]["resources"].clone();
        end(instance);
        let mut instance = rabbits.start();
        let exists = json!({"success": false, "errstr": "workflows \"fluxjob\" already exists"});
        instance.service("dws.create", json!({"payload": exists}));
        // The service repeats its messages about jobs whose rabbits are ready, perhaps before this plugin knows them.
        instance.give(&jobs.in_flight, json!({"DW_JOB_a": "in flight"}));
        instance.tear_down(&jobs.in_flight);
        assert_eq!(instance.stdout(&jobs.in_flight), "in flight\n");
        instance.give(&jobs.in_prolog, json!({"DW_JOB_a": "in prolog"}));
        instance.tear_down(&jobs.in_prolog);
        assert_eq!(instance.stdout(&jobs.in_prolog), "in prolog\n");
        // The service may not have received this.
        assert_eq!(instance.asked("dws.post_run", &jobs.in_epilog)["run_started"], true);
        assert_eq!(
            instance.rpc("epilog-remove", json!({"id": decimal(&jobs.in_epilog)})),
            Ok(())
        );
        instance.wait(&jobs.in_epilog, "clean");
        // Its shells were lost.
        assert_eq!(instance.asked("dws.post_run", &jobs.running)["run_started"], true);
        instance.tear_down(&jobs.running);
        instance.asked("dws.create", &jobs.asked);
        let update = json!({"id": decimal(&jobs.asked), "resources": resources, "exclude": null});
        assert_eq!(instance.rpc("resource-update", update), Ok(()));
        assert_eq!(instance.seen("dws.create", &jobs.waits_for_other), [Value::Null; 0]);
        instance.asked("dws.setup", &jobs.asked);
        instance.give(&jobs.asked, json!({"DW_JOB_a": "asked"}));
        instance.tear_down(&jobs.asked);
        assert_eq!(instance.stdout(&jobs.asked), "asked\n");
        for job in [&jobs.scheduled, &jobs.waits_for_other, &jobs.set_up_later] {
            instance.ok("cancel", json!({"jobid": job}));
            assert_eq!(instance.asked("dws.post_run", job)["run_started"], false);
            instance.tear_down(job);
        }
        for job in [&jobs.running, &jobs.in_prolog, &jobs.in_flight] {
            until("the record is removed", || instance.environment(job).is_none());
        }
        assert_eq!(instance.counted("/jobs/active"), 0);
        instance.shutdown();
    }
}

/// Jobs in CLEANUP that the plugin does not know, as after it has replaced another one.
#[needs(munged)]
#[test]
fn a_job_that_another_plugin_left_in_cleanup_is_held_until_its_state_is_known() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    instance.ok("remove", json!({"name": NAME}));
    // Its epilog is to come, is outstanding, or is over.
    let act = |what: &str, description: &str| json!({"do": what, "description": description, "status": 0});
    let epilogs = [
        vec![],
        vec![act("epilog-start", "dws-epilog")],
        vec![act("epilog-start", "dws-epilog"), act("epilog-finish", "dws-epilog")],
    ];
    for (n, mut epilog) in epilogs.into_iter().enumerate() {
        epilog.push(act("epilog-start", "other"));
        rabbits.puppet(
            &mut instance,
            json!({
                "job.state.run": [act("prolog-start", "dws-setup")],
                "job.state.cleanup": epilog,
            }),
        );
        let job = instance.rabbit(&["true"]);
        instance.wait(&job, "prolog-start");
        instance.ok("cancel", json!({"jobid": job}));
        instance.wait(&job, "epilog-start");
        // Held lookups show that the job does not end meanwhile.
        instance.ok("fault", json!({"what": "hold-lookups"}));
        instance.ok("load", rabbits.load(json!({})));
        let payload = json!({"id": decimal(&job), "actions": [act("epilog-finish", "other")]});
        instance.ok("rpc", json!({"topic": "job-manager.puppet.do", "payload": payload}));
        let waiting = instance.send(
            "rpc",
            json!({"topic": "job-manager.dws.epilog-remove", "payload": {"id": decimal(&job)}}),
        );
        instance.ok("fault", json!({"what": "release-lookups"}));
        let response = instance.response(waiting);
        assert_eq!(response["ok"], n < 2, "{n}: {response}");
        instance.wait(&job, "clean");
        // The service may have been notified earlier.
        assert_eq!(instance.seen("dws.post_run", &job).len(), usize::from(n < 2), "{n}");
        let count = |events: &[String], name: &str| events.iter().filter(|event| *event == name).count();
        let events = instance.events(&job);
        assert_eq!(count(&events, "prolog-finish"), 1, "{n}: {events:?}");
        assert_eq!(
            count(&events, "epilog-start"),
            count(&events, "epilog-finish"),
            "{n}: {events:?}"
        );
        for name in [NAME, "puppet.so"] {
            instance.ok("remove", json!({"name": name}));
        }
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_canceled_before_its_state_is_known_is_held_until_then() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    instance.ok("remove", json!({"name": NAME}));
    // Another plugin set up its rabbits, and it waits for another dependency.
    let act = |what: &str, description: &str| json!({"do": what, "description": description, "status": 0});
    rabbits.puppet(
        &mut instance,
        json!({"job.state.run": [act("prolog-start", "dws-setup"), act("prolog-start", "other")]}),
    );
    let finish = |instance: &mut Instance, job: &str, which: &str| {
        let payload = json!({"id": decimal(job), "actions": [act("prolog-finish", which)]});
        instance.ok("rpc", json!({"topic": "job-manager.puppet.do", "payload": payload}));
    };
    let job = instance.rabbit(&["true"]);
    instance.wait(&job, "prolog-start");
    finish(&mut instance, &job, "dws-setup");
    instance.ok("fault", json!({"what": "hold-lookups"}));
    instance.ok("load", rabbits.load(json!({})));
    instance.ok("cancel", json!({"jobid": job}));
    finish(&mut instance, &job, "other");
    // A prolog, because the other plugin may have left the job without one, and the epilog.
    assert_eq!(instance.perilogs(&job), 2, "its workflow is orphaned");
    instance.ok("fault", json!({"what": "release-lookups"}));
    assert_eq!(instance.asked("dws.post_run", &job)["run_started"], false);
    instance.tear_down(&job);
    assert_eq!(instance.contexts(&job, "prolog-finish").len(), 3);
    assert_eq!(instance.contexts(&job, "epilog-start").len(), 1);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn failed_requests_after_a_reload_are_repeated() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let asked = instance.rabbit(PRINT);
    let resources = instance.asked("dws.create", &asked)["resources"].clone();
    // The service is missing, and the KVS accepts nothing.
    instance.service("dws.create", json!({}));
    instance.ok("fault", json!({"what": "commit", "count": 1}));
    rabbits.reload(&mut instance);
    instance.ok("wait-log", json!({"text": "its eventlog could not be read"}));
    instance.ok(
        "wait-log",
        json!({"text": "no service answers to it: is flux-coral2-dws running?: asking again"}),
    );
    instance.service("dws.create", json!({"payload": {"success": true}}));
    until("it is created", || instance.counted("/created") == 1);
    let update = json!({"id": decimal(&asked), "resources": resources, "exclude": null});
    assert_eq!(instance.rpc("resource-update", update), Ok(()));
    instance.asked("dws.setup", &asked);
    instance.give(&asked, json!({"DW_JOB_a": "x"}));
    instance.tear_down(&asked);
    assert_eq!(instance.stdout(&asked), "x\n");
    instance.shutdown();
}

#[needs(munged, valgrind)]
#[test]
fn nothing_leaks_and_nothing_is_used_after_it_was_freed() {
    let mut valgrind = watched();
    let rabbits = Rabbits::new();
    valgrind
        .arg("--statedir")
        .arg(rabbits.site.statedir())
        .args(rabbits.args(json!({}), json!({})));
    let mut instance = Instance::of(&mut valgrind);
    for topic in SERVICE {
        instance.service(topic, json!({"payload": {"success": true}}));
    }
    for _ in 0..3 {
        let job = instance.in_prolog(PRINT);
        instance.give(&job, json!({"DW_JOB_a": "x"}));
        instance.tear_down(&job);
        // Every request that is outstanding when the plugin is removed or the job ends.
        for topic in SERVICE {
            instance.service(topic, json!({"hold": true}));
        }
        let created = instance.rabbit(&["true"]);
        instance.asked("dws.create", &created);
        let in_prolog = instance.in_prolog(&["true"]);
        let canceled = instance.in_prolog(&["true"]);
        instance.ok("fault", json!({"what": "hold-commits"}));
        let payload = json!({"id": decimal(&in_prolog), "variables": {"DW_JOB_a": "x"}});
        let held = instance.send(
            "rpc",
            json!({"topic": "job-manager.dws.prolog-remove", "payload": payload}),
        );
        instance.ok("wait-held", json!({"count": 1}));
        instance.ok("cancel", json!({"jobid": canceled}));
        assert!(
            instance
                .rpc("prolog-remove", json!({"id": decimal(&canceled)}))
                .is_err()
        );
        instance.asked("dws.post_run", &canceled);
        rabbits.reload(&mut instance);
        assert_eq!(instance.response(held)["ok"], false);
        instance.ok("fault", json!({"what": "release-commits"}));
        for topic in SERVICE {
            instance.service(topic, json!({"payload": {"success": true}}));
        }
        for job in [&in_prolog, &canceled] {
            instance.tear_down(job);
        }
        instance.ok("cancel", json!({"jobid": created}));
        instance.tear_down(&created);
    }
    instance.shutdown();
}
