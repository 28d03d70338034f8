// SPDX-License-Identifier: MIT OR Apache-2.0

//! Rabbit jobs with a scripted service: their life, their fate after a failure, and how the plugin resumes them from
//! any point when the plugin or the instance returns.

use crate::support::{
    plugins::{PLAIN, Scheduler, Site, decimal, jwt, kvs_key, me, until},
    rabbits::{Dws, NAME, PRINT, Rabbits, SERVICE, WHOLE},
    search::{Search, found},
    simulator::Instance,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[scenario]
fn a_rabbit_job_passes_all_states_and_only_the_names_of_its_variables_are_public(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    // A name that a shell cannot write, as rabbits use.
    let print = "echo $DW_JOB_a $DW_WORKFLOW_NAME; env | grep ^DW_JOB_my-files=";
    let job = instance.rabbit_with(&["bash", "-c", print], json!({"dw_failure_tolerance": 3}));
    let id = decimal(&job);

    let resources = instance.asked("dws.create", &job)["resources"].clone();
    let expected = json!({
        "jobid": id,
        "dw_directives": ["#DW jobdw type=xfs capacity=10GiB name=a"],
        "resources": resources,
        "userid": me(),
        "failure_tolerance": 3,
    });
    assert_eq!(instance.seen("dws.create", &job), [expected]);
    assert_eq!(resources[0]["type"], "node", "{resources}");
    let state = instance.ok("state", json!({"jobid": job}));
    assert_eq!(
        (&state["state"], &state["dependencies"]),
        (&json!("DEPEND"), &json!(["dws-create"]))
    );
    let mut updated = resources.clone();
    updated[0]["with"][0]["with"] = json!([{"type": "core", "count": 2}]);
    let update = json!({"id": id, "resources": updated, "copy-offload": false, "exclude": null});
    assert_eq!(instance.rpc("resource-update", update), Ok(()));
    instance.wait(&job, "prolog-start");
    assert_eq!(
        instance.contexts(&job, "jobspec-update"),
        [json!({"resources": updated})]
    );

    let setup = instance.asked("dws.setup", &job);
    assert_eq!(setup.as_object().unwrap().len(), 2, "{setup}");
    assert!(setup["R"]["execution"]["nodelist"][0].is_string(), "{setup}");
    assert_eq!(instance.perilogs(&job), 1);
    assert_eq!(instance.environment(&job), None);
    // The order is arbitrary, because JSON objects are unordered.
    let given = json!({"DW_WORKFLOW_NAME": "fluxjob-1", "DW_JOB_a": "/mnt/nnf/a", "DW_JOB_my-files": "/mnt/nnf/b"});
    instance.give(&job, given);

    assert_eq!(
        instance.asked("dws.post_run", &job),
        json!({"jobid": id, "run_started": true})
    );
    assert_eq!(
        instance.stdout(&job),
        "/mnt/nnf/a fluxjob-1\nDW_JOB_my-files=/mnt/nnf/b\n"
    );
    assert_eq!(instance.contexts(&job, "epilog-finish"), [Value::Null; 0]);
    let record = instance.environment(&job).expect("a record");
    assert_eq!(
        record["variables"],
        json!(["DW_JOB_a", "DW_JOB_my-files", "DW_WORKFLOW_NAME"])
    );
    assert_eq!(
        instance.contexts(&job, "dws_environment"),
        [json!({"names": ["DW_JOB_a", "DW_JOB_my-files", "DW_WORKFLOW_NAME"]})]
    );
    instance.tear_down(&job);
    assert_eq!(instance.events(&job), WHOLE);
    let done = |description: &str| [json!({"description": description, "status": 0})];
    assert_eq!(instance.contexts(&job, "prolog-finish"), done("dws-setup"));
    assert_eq!(instance.contexts(&job, "epilog-finish"), done("dws-epilog"));
    for topic in ["dws.teardown", "dws.abort"] {
        assert_eq!(instance.seen(topic, &job), [Value::Null; 0]);
    }
    until("the record is removed", || instance.environment(&job).is_none());
    for counter in ["/created", "/set-up", "/torn-down", "/delivered"] {
        assert_eq!(instance.counted(counter), 1, "{counter}");
    }
    assert_eq!(instance.counted("/jobs/active"), 0);
    instance.shutdown();
}

#[scenario]
fn a_job_without_rabbits_is_not_affected(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let other = json!({"attributes": {"system": {"workflow": "dw", "dw_failure_tolerance": -1}}});
    for more in [json!({}), other] {
        let job = instance.run(&["true"], more);
        assert_eq!(instance.events(&job), PLAIN);
        for method in ["resource-update", "prolog-remove", "epilog-remove"] {
            let payload = json!({"id": decimal(&job), "variables": {}, "resources": [], "exclude": null});
            assert!(instance.rpc(method, payload).is_err(), "{method}");
        }
        assert_eq!(instance.events(&job), PLAIN);
    }
    for topic in SERVICE {
        assert_eq!(
            instance.ok("requests", json!({}))["requests"][topic],
            Value::Null,
            "{topic}"
        );
    }
    assert_eq!(instance.counted("/jobs/active"), 0);
    instance.shutdown();
}

#[scenario]
fn a_job_without_variables_starts_with_none(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let job = instance.in_prolog(PRINT);
    instance.give(&job, json!({}));
    instance.tear_down(&job);
    assert_eq!(instance.stdout(&job), "unset\n");
    assert_eq!(instance.contexts(&job, "dws_environment"), [json!({"names": []})]);
    assert_eq!(instance.events(&job), WHOLE);
    instance.shutdown();
}

#[scenario]
fn exclusions_of_the_service_are_added_to_the_constraints_of_the_job(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let (bad, old) = (
        json!({"not": [{"properties": ["bad"]}]}),
        json!({"hostlist": ["node0"]}),
    );
    let both = json!({"and": [old, bad]});
    let or_rabbit = |other: &Value| json!({"or": [{"properties": ["rabbit"]}, other]});
    for (system, expected) in [
        (json!({}), bad.clone()),
        (json!({"constraints": old}), both.clone()),
        (json!({"allow_rabbits": true}), or_rabbit(&bad)),
        (json!({"allow_rabbits": true, "constraints": old}), or_rabbit(&both)),
        (json!({"allow_rabbits": false}), bad.clone()),
    ] {
        let job = instance.rabbit_with(&["true"], system.clone());
        let resources = instance.asked("dws.create", &job)["resources"].clone();
        let update = json!({"id": decimal(&job), "resources": resources, "exclude": bad});
        assert_eq!(instance.rpc("resource-update", update), Ok(()));
        let updated = json!({"resources": resources, "attributes.system.constraints": expected});
        instance.wait(&job, "prolog-start");
        assert_eq!(instance.contexts(&job, "jobspec-update"), [updated], "{system}");
        instance.ok("cancel", json!({"jobid": job}));
        instance.tear_down(&job);
    }
    // A value that cannot be parsed is kept.
    let job = instance.rabbit_with(&["true"], json!({"allow_rabbits": "perhaps"}));
    let resources = instance.asked("dws.create", &job)["resources"].clone();
    let update = json!({"id": decimal(&job), "resources": resources, "exclude": bad});
    let error = instance.rpc("resource-update", update).unwrap_err();
    assert_eq!(error, "Could not generate new constraints");
    instance.tear_down(&job);
    let note = "DWS workflow interactions failed: Could not generate new constraints".to_owned();
    assert_eq!(instance.notes(&job), [("dws".to_owned(), note)]);
    instance.shutdown();
}

#[scenario]
fn a_failure_tolerance_is_an_integer_and_the_service_judges_it(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    for tolerance in [-1, 0, 7] {
        let job = instance.rabbit_with(&["true"], json!({"dw_failure_tolerance": tolerance}));
        assert_eq!(instance.asked("dws.create", &job)["failure_tolerance"], tolerance);
        instance.ok("cancel", json!({"jobid": job}));
        instance.tear_down(&job);
    }
    for tolerance in [json!("1"), json!(1.5), json!([1])] {
        let job = instance.rabbit_with(&["true"], json!({"dw_failure_tolerance": tolerance}));
        instance.tear_down(&job);
        let notes = instance.notes(&job);
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(
            notes[0].1.contains("dw_failure_tolerance must be an integer"),
            "{notes:?}"
        );
        assert_eq!(instance.seen("dws.create", &job), [Value::Null; 0]);
    }
    instance.shutdown();
}

/// Returns the ways in which a service fails, and the text for the user.
fn failures(not_understood: &str) -> [(Value, String); 5] {
    let none = "dws.create RPC could not be sent. Admins: is the flux-coral2-dws service loaded?";
    let no_service = match not_understood.contains("dws.create") {
        true => none,
        false => not_understood,
    };
    [
        (
            json!({"payload": {"success": false, "errstr": "no such rabbit"}}),
            "no such rabbit".to_owned(),
        ),
        (json!({"payload": {"success": "perhaps"}}), not_understood.to_owned()),
        (json!({"payload": []}), not_understood.to_owned()),
        (json!({"errnum": libc::EPERM}), not_understood.to_owned()),
        (json!({}), no_service.to_owned()),
    ]
}

fn told(kind: &str, why: &str) -> (String, String) {
    (kind.to_owned(), format!("DWS workflow interactions failed: {why}"))
}

#[scenario]
fn a_workflow_that_cannot_be_created_ends_the_job_before_it_has_resources(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let refused = (
        json!({"payload": {"success": false}}),
        "dws.create RPC returned failure".to_owned(),
    );
    for (answer, why) in failures("Failed to unpack dws.create RPC").into_iter().chain([refused]) {
        instance.service("dws.create", answer.clone());
        let job = instance.rabbit(&["true"]);
        assert_eq!(
            instance.asked("dws.post_run", &job)["run_started"],
            false,
            "its workflow may exist"
        );
        instance.tear_down(&job);
        assert_eq!(instance.notes(&job), [told("dws-create", &why)], "{answer}");
        let expected = [
            "submit",
            "validate",
            "dependency-add",
            "exception",
            "epilog-start",
            "epilog-finish",
            "clean",
        ];
        assert_eq!(instance.events(&job), expected, "{answer}");
    }
    // The service reports that the resources do not exist.
    instance.service("dws.create", json!({"payload": {"success": true}}));
    let job = instance.rabbit(&["true"]);
    instance.asked("dws.create", &job);
    let update = json!({"id": decimal(&job), "resources": [], "exclude": null, "errmsg": "too large"});
    assert_eq!(instance.rpc("resource-update", update), Ok(()));
    instance.tear_down(&job);
    assert_eq!(instance.notes(&job), [told("dws", "too large")]);
    instance.shutdown();
}

#[scenario]
fn rabbits_that_cannot_be_set_up_end_the_job_in_its_prolog(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let refused = (
        json!({"payload": {"success": false}}),
        "dws.setup RPC returned failure".to_owned(),
    );
    for (answer, why) in failures("Failed to unpack dws.setup RPC").into_iter().chain([refused]) {
        instance.service("dws.setup", answer.clone());
        let job = instance.in_prolog(&["true"]);
        let note = instance.failed(&job);
        assert_eq!(note, told("", &why).1, "{answer}");
        assert_eq!(instance.notes(&job)[0].0, "dws-setup");
        assert_eq!(
            instance.events(&job)[8..],
            [
                "prolog-start",
                "exception",
                "prolog-finish",
                "epilog-start",
                "epilog-finish",
                "free",
                "clean"
            ],
            "{answer}"
        );
        assert_eq!(instance.seen("dws.teardown", &job), [Value::Null; 0]);
    }
    instance.shutdown();
}

#[scenario]
fn a_failed_teardown_ends_the_job_and_is_reported_to_the_service(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let refused = (
        json!({"payload": {"success": false}}),
        "<no error string provided>".to_owned(),
    );
    let failures = failures("Failed to send dws.post_run RPC").into_iter().chain([refused]);
    // The plugin waits for a missing service.
    for (answer, why) in failures.filter(|(answer, _)| *answer != json!({})) {
        instance.service("dws.post_run", answer.clone());
        let job = instance.in_prolog(PRINT);
        instance.give(&job, json!({"DW_JOB_a": "x"}));
        instance.wait(&job, "clean");
        assert_eq!(instance.stdout(&job), "x\n");
        assert_eq!(instance.notes(&job), [told("dws-epilog", &why)], "{answer}");
        let finished = json!({"description": "dws-epilog", "status": 1});
        assert_eq!(instance.contexts(&job, "epilog-finish"), [finished]);
        assert_eq!(instance.seen("dws.teardown", &job), [json!({"jobid": decimal(&job)})]);
    }
    instance.shutdown();
}

#[scenario]
fn a_late_response_has_no_effect(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    // Another plugin keeps the job in its epilog.
    rabbits.puppet(
        &mut instance,
        json!({"job.state.cleanup": [{"do": "epilog-start", "description": "other"}]}),
    );
    for topic in ["dws.setup", "dws.post_run"] {
        instance.service(topic, json!({"hold": true}));
    }
    let job = instance.in_prolog(PRINT);
    instance.give(&job, json!({"DW_JOB_a": "x"}));
    let failure = json!({"success": false, "errstr": "late"});
    instance.ok("respond", json!({"topic": "dws.setup", "payload": failure}));
    instance.asked("dws.post_run", &job);
    assert_eq!(instance.rpc("epilog-remove", json!({"id": decimal(&job)})), Ok(()));
    instance.ok("respond", json!({"topic": "dws.post_run", "payload": failure}));
    // An event after the response proves that the plugin took no other action.
    let other = json!([{"do": "epilog-finish", "description": "other", "status": 0}]);
    let request = json!({"topic": "job-manager.puppet.do", "payload": {"id": decimal(&job), "actions": other}});
    instance.ok("rpc", request);
    instance.wait(&job, "clean");
    assert_eq!(instance.notes(&job), []);
    assert_eq!(instance.contexts(&job, "epilog-finish").len(), 2);
    assert_eq!(instance.stdout(&job), "x\n");
    instance.shutdown();
}

#[scenario]
fn a_request_that_is_malformed_ends_its_job_with_one_exception_that_quotes_nothing(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let canary = jwt(json!({}));
    let payloads = [
        json!({}),
        json!({"variables": null}),
        json!({"variables": [canary]}),
        json!({"variables": canary}),
        json!({"variables": {"A": 1, "B": canary}}),
        json!({"variables": {"A": null}}),
        json!({"variables": {"A": {"B": canary}}}),
        json!({"variables": {"": canary}}),
        json!({"variables": {"A=B": canary}}),
        json!({"variables": {"A\u{0}": canary}}),
        json!({"variables": {"A": format!("{canary}\u{0}")}}),
    ];
    let mut jobs = Vec::new();
    for mut payload in payloads {
        let job = instance.in_prolog(&["true"]);
        payload["id"] = json!(decimal(&job));
        let error = instance.rpc("prolog-remove", payload.clone()).unwrap_err();
        assert_eq!(error, "received malformed dws.prolog-remove RPC", "{payload}");
        let note = instance.failed(&job);
        assert!(note.contains("received malformed dws.prolog-remove RPC: "), "{note}");
        assert_eq!(instance.environment(&job), None);
        jobs.push(job);
    }
    for payload in [
        json!({"resources": []}),
        json!({"exclude": null}),
        json!({"resources": [], "exclude": null, "errmsg": 1}),
    ] {
        let job = instance.rabbit(&["true"]);
        instance.asked("dws.create", &job);
        let mut payload = payload;
        payload["id"] = json!(decimal(&job));
        let error = instance.rpc("resource-update", payload).unwrap_err();
        assert_eq!(error, "received malformed dws.resource-update RPC");
        instance.tear_down(&job);
        let notes = instance.notes(&job);
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].1.contains("malformed dws.resource-update"), "{notes:?}");
    }
    // A request without a job also receives a response.
    for method in ["resource-update", "prolog-remove", "epilog-remove"] {
        for payload in [
            json!({}),
            json!({"id": canary}),
            json!([canary]),
            json!({"id": -1}),
            json!({"id": 0.5}),
        ] {
            let error = instance.rpc(method, payload).unwrap_err();
            assert_eq!(error, format!("received malformed dws.{method} RPC"));
        }
        let none = instance.error("rpc", json!({"topic": format!("job-manager.dws.{method}")}));
        assert_eq!(none, format!("received malformed dws.{method} RPC"));
    }
    let search = Search::tokens([canary.as_str()]);
    let log = instance.dmesg().concat();
    assert!(log.contains("may be out of sync"), "{log}");
    assert!(!search.finds(log.as_bytes()), "{log}");
    for job in &jobs {
        let events = instance.ok("eventlog", json!({"jobid": job})).to_string();
        assert!(!search.finds(events.as_bytes()), "{events}");
    }
    instance.shutdown();
}

#[scenario]
fn a_job_that_is_canceled_while_it_runs_is_torn_down_when_its_shells_have_ended(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let job = instance.in_prolog(&["sleep", "1000"]);
    instance.give(&job, json!({}));
    instance.wait(&job, "start");
    instance.ok("cancel", json!({"jobid": job}));
    assert_eq!(instance.asked("dws.post_run", &job)["run_started"], true);
    instance.tear_down(&job);
    let events = instance.events(&job);
    let at = |name: &str| events.iter().position(|event| event == name);
    assert!(at("finish") < at("epilog-start"), "{events:?}");
    assert_eq!(instance.contexts(&job, "epilog-start").len(), 1);
    assert_eq!(instance.seen("dws.teardown", &job), [Value::Null; 0]);
    instance.shutdown();
}

#[scenario]
fn an_exception_in_the_epilog_tears_down_or_abandons_the_workflow(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let in_epilog = |instance: &mut Instance| {
        let job = instance.in_prolog(&["true"]);
        instance.give(&job, json!({}));
        instance.asked("dws.post_run", &job);
        job
    };
    let job = in_epilog(&mut instance);
    instance.ok("raise", json!({"jobid": job, "type": "warning", "severity": 2}));
    assert_eq!(instance.seen("dws.teardown", &job), [Value::Null; 0]);
    instance.ok("cancel", json!({"jobid": job}));
    assert_eq!(instance.asked("dws.teardown", &job), json!({"jobid": decimal(&job)}));
    assert_eq!(instance.perilogs(&job), 1);
    instance.tear_down(&job);
    assert_eq!(instance.contexts(&job, "epilog-finish")[0]["status"], 0);
    assert_eq!(instance.seen("dws.abort", &job), [Value::Null; 0]);

    let job = in_epilog(&mut instance);
    instance.ok("raise", json!({"jobid": job, "type": "dws-epilog-timeout"}));
    instance.wait(&job, "clean");
    assert_eq!(instance.contexts(&job, "epilog-finish")[0]["status"], 1);
    assert_eq!(instance.seen("dws.abort", &job), [json!({"jobid": decimal(&job)})]);
    assert_eq!(instance.seen("dws.teardown", &job), [Value::Null; 0]);
    // The service may not know this yet.
    assert!(instance.rpc("epilog-remove", json!({"id": decimal(&job)})).is_err());
    instance.shutdown();
}

#[scenario]
fn an_epilog_times_out_unless_it_has_finished(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start_with(json!({"epilog-timeout": 0.2}), json!({}));
    // Another plugin keeps jobs in their epilogs.
    rabbits.puppet(
        &mut instance,
        json!({"job.state.cleanup": [{"do": "epilog-start", "description": "other"}]}),
    );
    let in_epilog = |instance: &mut Instance| {
        let job = instance.in_prolog(&["true"]);
        instance.give(&job, json!({}));
        instance.asked("dws.post_run", &job);
        job
    };
    // On a slow machine, the timeout may expire earlier.
    let mut first = in_epilog(&mut instance);
    while instance.rpc("epilog-remove", json!({"id": decimal(&first)})).is_err() {
        first = in_epilog(&mut instance);
    }
    let jobs = [first, in_epilog(&mut instance)];
    // The second job's timeout expires after the first one's would have.
    instance.wait(&jobs[1], "exception");
    assert_eq!(
        instance.notes(&jobs[1]),
        [("dws-epilog-timeout".to_owned(), "DWS epilog timed out".to_owned())]
    );
    assert_eq!(
        instance.seen("dws.abort", &jobs[1]),
        [json!({"jobid": decimal(&jobs[1])})]
    );
    assert_eq!(instance.notes(&jobs[0]), []);
    for job in &jobs {
        assert_eq!(instance.perilogs(job), 1, "only the other plugin's epilog is active");
    }
    instance.shutdown();
}

#[scenario]
fn the_timeout_is_a_number_and_unknown_options_are_rejected(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    for (conf, says) in [
        (json!({"epilog-timeout": -1.0}), "epilog timeout = -1.000s"),
        (json!({"epilog-timeout": 10}), "epilog timeout = 10.000s"),
        (json!({"epilog-timeout": "soon"}), "failed to unpack config"),
    ] {
        instance.ok("remove", json!({"name": NAME}));
        instance.ok("load", rabbits.load(conf));
        let log = instance.dmesg();
        assert!(log.iter().any(|line| line.contains(says)), "{says}: {log:?}");
    }
    instance.ok("remove", json!({"name": NAME}));
    let error = instance.error("load", rabbits.load(json!({"epilogue-timeout": 10})));
    assert!(error.contains("epilogue-timeout"), "{error}");
    instance.shutdown();
}

#[scenario]
fn a_rabbit_job_in_a_project_that_its_owner_is_not_in_gets_nothing(site: Site) {
    let rabbits = Rabbits::at(site);
    let mine = json!({"name": "mine", "users": [me()]});
    let projects = json!([mine, {"name": "other", "users": [me() + 1]}]);
    let mut instance = rabbits.start_with(json!({}), json!({"project": projects}));
    let canary = jwt(json!({}));
    let variables = json!({"DW_JOB_a": canary});
    for project in [Value::Null, json!("mine")] {
        let job = instance.rabbit_with(PRINT, json!({"project": project}));
        instance.create(&job);
        instance.asked("dws.setup", &job);
        instance.give(&job, variables.clone());
        instance.tear_down(&job);
        assert_eq!(instance.stdout(&job).trim_end(), canary, "{project}");
    }
    for (project, says) in [
        (json!("other"), "is not in project other"),
        (json!("none"), "there is no project `none`"),
    ] {
        let job = instance.rabbit_with(&["true"], json!({"project": project}));
        instance.create(&job);
        instance.asked("dws.setup", &job);
        let payload = json!({"id": decimal(&job), "variables": variables});
        let error = instance.rpc("prolog-remove", payload).unwrap_err();
        assert!(error.contains(says), "{error}");
        let note = instance.failed(&job);
        assert!(note.contains(says), "{note}");
        assert_eq!(instance.environment(&job), None);
    }
    instance.shutdown();
}

#[scenario]
fn a_job_that_ended_without_the_plugin_is_torn_down_after_a_reload(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    // Only the plugin's prolog holds this job.
    let alone = instance.in_prolog(&["true"]);
    instance.ok("remove", json!({"name": NAME}));
    instance.ok("cancel", json!({"jobid": alone}));
    instance.wait(&alone, "exception");
    instance.ok("load", rabbits.load(json!({})));
    assert_eq!(instance.failed(&alone), "");
    // Another plugin keeps jobs in their epilogs.
    let other = json!([{"do": "epilog-start", "description": "other"}]);
    rabbits.puppet(&mut instance, json!({"job.state.cleanup": other}));
    let wait = format!("until [ -e {} ]; do sleep 0.02; done", rabbits.site.path("go"));
    let ran = instance.in_prolog(&["sh", "-c", &wait]);
    instance.give(&ran, json!({}));
    instance.wait(&ran, "start");
    let canceled = instance.in_prolog(&["true"]);
    instance.ok("remove", json!({"name": NAME}));
    instance.ok("cancel", json!({"jobid": canceled}));
    rabbits.site.write("go", 0o600, "");
    for job in [&ran, &canceled] {
        instance.wait(job, "epilog-start");
    }
    instance.ok("load", rabbits.load(json!({})));
    for (job, has_run) in [(&ran, true), (&canceled, false)] {
        assert_eq!(instance.asked("dws.post_run", job)["run_started"], has_run);
        assert_eq!(instance.perilogs(job), 2);
        assert_eq!(instance.rpc("epilog-remove", json!({"id": decimal(job)})), Ok(()));
        assert_eq!(instance.perilogs(job), 1);
    }
    instance.shutdown();
}

/// Jobs that nothing held any more.
#[scenario]
fn the_workflow_of_a_job_that_became_inactive_without_the_plugin_is_torn_down_after_a_reload(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let wait = format!("until [ -e {} ]; do sleep 0.02; done", rabbits.site.path("go"));
    let ran = instance.in_prolog(&["sh", "-c", &wait]);
    instance.give(&ran, json!({}));
    instance.wait(&ran, "start");
    let [created, purged] = [(); 2].map(|()| {
        let job = instance.rabbit(&["true"]);
        instance.asked("dws.create", &job);
        job
    });
    let torn_down = instance.in_prolog(&["true"]);
    instance.give(&torn_down, json!({}));
    instance.tear_down(&torn_down);
    let active = instance.in_prolog(&["true"]);
    instance.ok("remove", json!({"name": NAME}));
    for job in [&created, &purged] {
        instance.ok("cancel", json!({"jobid": job}));
    }
    rabbits.site.write("go", 0o600, "");
    for job in [&ran, &created, &purged] {
        instance.wait(job, "clean");
    }
    instance.ok("kvs-put", json!({"key": kvs_key(&purged, "eventlog"), "value": null}));

    // The service is missing, and the plugin is removed again before it appears.
    instance.service("dws.post_run", json!({}));
    instance.ok("load", rabbits.load(json!({})));
    let text = "3 rabbit jobs have ended while the plugin dws-jobtap was not loaded";
    instance.ok("wait-log", json!({ "text": text }));
    instance.ok("wait-log", json!({"text": "dws.post_run: no service answers to it"}));
    instance.ok("remove", json!({"name": NAME}));
    instance.service("dws.post_run", json!({"payload": {"success": true}}));
    let before = [&ran, &created].map(|job| instance.seen("dws.post_run", job).len());
    instance.ok("load", rabbits.load(json!({})));
    for (job, has_run, before) in [(&ran, true, before[0]), (&created, false, before[1])] {
        until("the service is notified", || {
            instance.seen("dws.post_run", job).len() > before
        });
        assert_eq!(
            instance.seen("dws.post_run", job).last().unwrap()["run_started"],
            has_run
        );
    }
    let text = format!("{purged}: dws.post_run, after the job had ended: it has been purged: its Workflow fluxjob-");
    instance.ok("wait-log", json!({ "text": text }));
    // Orphaned workflows stay listed until torn down, and are not reported twice.
    assert_eq!(instance.counted("/jobs/gone"), 2);
    rabbits.reload(&mut instance);
    let again = |line: &String| line.contains("2 rabbit jobs have ended");
    assert!(!instance.dmesg().iter().any(again), "the workflows were reported again");
    for (job, left, before) in [(&ran, 1, before[0]), (&created, 0, before[1])] {
        assert_eq!(instance.rpc("epilog-remove", json!({"id": decimal(job)})), Ok(()));
        assert_eq!(instance.counted("/jobs/gone"), left);
        assert_eq!(instance.seen("dws.post_run", job).len(), before + 1);
    }
    // Neither a workflow that was torn down earlier, nor one whose job has not ended.
    assert_eq!(instance.seen("dws.post_run", &torn_down).len(), 1);
    assert_eq!(instance.seen("dws.post_run", &active), [] as [Value; 0]);
    instance.give(&active, json!({}));
    instance.tear_down(&active);
    instance.shutdown();
}

#[scenario]
fn a_failed_request_about_an_inactive_job_is_repeated(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let [refused, other] = [(); 2].map(|()| {
        let job = instance.rabbit(&["true"]);
        instance.asked("dws.create", &job);
        job
    });
    instance.ok("remove", json!({"name": NAME}));
    for job in [&refused, &other] {
        instance.ok("cancel", json!({"jobid": job}));
        instance.wait(job, "clean");
    }
    let refusal = json!({"success": false, "errstr": "no Kubernetes today"});
    instance.service("dws.post_run", json!({"payload": refusal}));
    instance.ok("load", rabbits.load(json!({})));
    // A rejected workflow does not block the others.
    for job in [&refused, &other] {
        let text = format!("{job}: dws.post_run, after the job had ended: no Kubernetes today: asking again");
        instance.ok("wait-log", json!({ "text": text }));
    }
    // In the next round, the first request receives no response, and the plugin is removed meanwhile.
    instance.service("dws.post_run", json!({"hold": true}));
    until("the request is repeated", || {
        instance.seen("dws.post_run", &refused).len() == 2
    });
    instance.ok("remove", json!({"name": NAME}));
    let backwards = json!({"success": false, "errstr": "cannot go backwards"});
    instance.service("dws.post_run", json!({"payload": backwards}));
    instance.ok("load", rabbits.load(json!({})));
    let text = format!("{refused}: dws.post_run, which may have been sent before: cannot go backwards: waiting");
    instance.ok("wait-log", json!({ "text": text }));
    let text = format!("{other}: dws.post_run, after the job had ended: cannot go backwards: asking again");
    instance.ok("wait-log", json!({ "text": text }));
    assert_eq!(instance.counted("/jobs/gone"), 2);
    for job in [&refused, &other] {
        assert_eq!(instance.rpc("epilog-remove", json!({"id": decimal(job)})), Ok(()));
    }
    assert_eq!(instance.counted("/jobs/gone"), 0);
    instance.shutdown();
}

#[scenario]
fn a_job_whose_resources_were_allocated_without_the_plugin_does_not_start(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    instance.ok("remove", json!({"name": NAME}));
    instance.ok("load", rabbits.site.hold());
    let job = instance.rabbit(&["true"]);
    let other = instance.submit(&["true"], json!({}));
    for job in [&job, &other] {
        instance.wait(job, "prolog-start");
    }
    instance.ok("load", rabbits.load(json!({})));
    instance.wait(&job, "exception");
    let note = instance.notes(&job).remove(0).1;
    assert!(note.contains("its rabbits are not set up: submit it again"), "{note}");
    instance.go();
    instance.tear_down(&job);
    assert!(!instance.events(&job).contains(&"start".to_owned()), "it was started");
    instance.wait(&other, "clean");
    instance.shutdown();
}

/// The service rejects a repeated `dws.create`. The memo, not the text, shows whether the Workflow exists.
#[scenario]
fn a_workflow_is_known_by_its_memo(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    // The plugin is removed while the Workflow is being created.
    instance.service("dws.create", json!({"hold": true}));
    let [named, later, unnamed] = [(); 3].map(|()| {
        let job = instance.rabbit(PRINT);
        instance.asked("dws.create", &job);
        job
    });
    let resources = instance.seen("dws.create", &named)[0]["resources"].clone();
    rabbits.name_workflow(&mut instance, &named);
    instance.ok("remove", json!({"name": NAME}));
    let refusal = json!({"success": false, "errstr": "HTTP 409 Conflict"});
    instance.ok("load", rabbits.load(json!({})));
    // A job whose memo arrives after the plugin is loaded again.
    until("the request is repeated", || {
        instance.seen("dws.create", &later).len() == 2
    });
    rabbits.name_workflow(&mut instance, &later);
    instance.service("dws.create", json!({"payload": refusal}));
    rabbits.reload(&mut instance);
    instance.wait(&unnamed, "exception");
    assert_eq!(instance.notes(&unnamed), [told("dws-create", "HTTP 409 Conflict")]);
    for job in [&named, &later] {
        until("the request is repeated", || {
            instance.seen("dws.create", job).len() == 3
        });
        let update = json!({"id": decimal(job), "resources": resources, "exclude": null});
        assert_eq!(instance.rpc("resource-update", update), Ok(()));
        instance.asked("dws.setup", job);
        instance.give(job, json!({"DW_JOB_a": "x"}));
        instance.tear_down(job);
        assert_eq!(instance.notes(job), [], "{job}");
    }
    instance.shutdown();
}

/// Runs only on the simulator: after a restart, Flux sends the requests in another order.
#[needs(munged)]
#[test]
fn requests_to_a_missing_service_are_repeated_and_no_workflow_is_orphaned() {
    let rabbits = Rabbits::at(Site::new());
    let mut instance = rabbits.start();
    let start = |instance: &mut Instance| {
        let job = instance.in_prolog(&["sleep", "1000"]);
        instance.give(&job, json!({}));
        instance.wait(&job, "start");
        job
    };
    let (running, ended) = (start(&mut instance), start(&mut instance));
    instance.service("dws.post_run", json!({}));
    instance.ok("cancel", json!({"jobid": ended}));
    instance.ok("wait-log", json!({"text": "dws.post_run: no service answers to it"}));
    instance.wait(&ended, "epilog-start");
    instance.kill();
    let mut instance = rabbits.start_without_service(json!({}), json!({}));
    instance.ok("wait-log", json!({"text": "dws.post_run: no service answers to it"}));
    // A new job receives this message.
    let job = instance.rabbit(&["true"]);
    instance.wait(&job, "clean");
    assert_eq!(instance.notes(&job)[0].0, "dws-create");
    // From now on, the test sees requests, and answers as before.
    instance.service("dws.post_run", json!({}));
    for job in [&running, &ended] {
        assert_eq!(instance.asked("dws.post_run", job)["run_started"], true);
        assert_eq!(instance.perilogs(job), 1, "otherwise its workflow would be orphaned");
    }
    // A workflow that the service has torn down meanwhile needs no second request, and has no further effect.
    let gone = json!({"success": false, "errstr": "cannot go backwards"});
    instance.service("dws.post_run", json!({"payload": gone}));
    instance.ok(
        "wait-log",
        json!({"text": format!("{ended}: dws.post_run, which may have been sent before: cannot")}),
    );
    assert_eq!(instance.notes(&ended).len(), 1);
    instance.tear_down(&ended);
    assert_eq!(instance.contexts(&ended, "epilog-finish").last().unwrap()["status"], 0);
    instance.wait(&running, "clean");
    assert_eq!(instance.notes(&running)[1], told("dws-epilog", "cannot go backwards"));
    instance.shutdown();
}

#[scenario]
fn a_second_copy_is_rejected_and_does_not_affect_the_first(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let copy = rabbits.site.path("copy.so");
    std::fs::copy(&rabbits.jobtap, &copy).unwrap();
    let job = instance.in_prolog(PRINT);
    for path in [&rabbits.jobtap, &copy] {
        let error = instance.error("load", json!({"path": path}));
        assert!(error.contains("already loaded"), "{error}");
    }
    instance.give(&job, json!({"DW_JOB_a": "x"}));
    instance.tear_down(&job);
    assert_eq!(instance.events(&job), WHOLE);
    instance.shutdown();
}

#[scenario]
fn each_of_200_jobs_at_once_has_its_own_variables(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let jobs: Vec<String> = (0..200).map(|_| instance.rabbit(PRINT)).collect();
    let last = |topic: &str| json!({"topic": topic, "count": jobs.len()});
    let resources = instance.ok("wait-request", last("dws.create"))["payload"]["resources"].clone();
    for job in &jobs {
        let update = json!({"id": decimal(job), "resources": resources, "exclude": null});
        instance.send(
            "rpc",
            json!({"topic": "job-manager.dws.resource-update", "payload": update}),
        );
    }
    instance.ok("wait-request", last("dws.setup"));
    let given: Vec<_> = jobs
        .iter()
        .map(|job| {
            let payload = json!({"id": decimal(job), "variables": {"DW_JOB_a": format!("of-{job}")}});
            instance.send(
                "rpc",
                json!({"topic": "job-manager.dws.prolog-remove", "payload": payload}),
            )
        })
        .collect();
    for request in given {
        assert_eq!(instance.response(request)["ok"], true);
    }
    instance.ok("wait-request", last("dws.post_run"));
    for job in &jobs {
        assert_eq!(instance.rpc("epilog-remove", json!({"id": decimal(job)})), Ok(()));
    }
    for job in &jobs {
        instance.wait(job, "clean");
        assert_eq!(instance.stdout(job), format!("of-{job}\n"));
    }
    until("all records are removed", || instance.counted("/unlinked") == 200);
    for counter in ["/jobs/active", "/in-flight", "/failed"] {
        assert_eq!(instance.counted(counter), 0, "{counter}");
    }
    instance.shutdown();
}

#[scenario]
fn a_job_that_is_canceled_in_its_prolog_is_torn_down(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let job = instance.in_prolog(&["true"]);
    instance.ok("raise", json!({"jobid": job, "type": "node-failure", "severity": 1}));
    instance.wait(&job, "exception");
    assert_eq!(instance.perilogs(&job), 1, "otherwise the job would have survived");
    instance.ok("cancel", json!({"jobid": job}));
    assert_eq!(instance.failed(&job), "");
    assert_eq!(instance.seen("dws.teardown", &job), [Value::Null; 0]);
    instance.shutdown();
}

#[scenario]
fn while_munged_is_stopped_a_job_waits_and_can_be_canceled(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start();
    let munged = &rabbits.site.munged;
    munged.signal(Signal::SIGSTOP);
    let [canceled, waits] = [(); 2].map(|()| {
        let job = instance.in_prolog(PRINT);
        let payload = json!({"id": decimal(&job), "variables": {"DW_JOB_a": "x"}});
        let topic = "job-manager.dws.prolog-remove";
        let request = instance.send("rpc", json!({"topic": topic, "payload": payload}));
        (job, request)
    });
    until("munged is asked", || rabbits.site.waiting_for_munged() > 0);
    instance.ok("cancel", json!({"jobid": canceled.0}));
    assert_eq!(instance.response(canceled.1)["error"], "the job has got an exception");
    assert_eq!(instance.failed(&canceled.0), "");
    assert_eq!(instance.environment(&canceled.0), None);
    munged.signal(Signal::SIGCONT);
    assert_eq!(instance.response(waits.1)["ok"], true);
    instance.tear_down(&waits.0);
    assert_eq!(instance.stdout(&waits.0), "x\n");
    assert_eq!((instance.counted("/canceled"), instance.counted("/in-flight")), (1, 0));
    instance.shutdown();
}

#[scenario]
fn a_record_that_cannot_be_sealed_in_time_ends_the_job_with_one_exception_and_not_the_next_one(site: Site) {
    let rabbits = Rabbits::at(site);
    let mut instance = rabbits.start_with(json!({}), json!({"timeout": "1s"}));
    let canary = jwt(json!({}));
    rabbits.site.munged.signal(Signal::SIGSTOP);
    let job = instance.in_prolog(&["true"]);
    let payload = json!({"id": decimal(&job), "variables": {"DW_JOB_a": canary}});
    let error = instance.rpc("prolog-remove", payload).unwrap_err();
    let expected = "its environment could not be delivered: it took longer than 1 s";
    assert!(error.starts_with(expected), "{error}");
    rabbits.site.munged.signal(Signal::SIGCONT);
    let note = instance.failed(&job);
    assert!(note.contains(expected) && note.contains("ask the operators"), "{note}");
    assert_eq!(instance.notes(&job)[0].0, "dws-setup");
    let search = Search::tokens([canary.as_str()]);
    assert_eq!(found(&rabbits.site, &mut instance, &[job], &search), [""; 0]);
    let next = instance.in_prolog(PRINT);
    instance.give(&next, json!({"DW_JOB_a": canary}));
    instance.tear_down(&next);
    assert_eq!(instance.stdout(&next), format!("{canary}\n"));
    instance.shutdown();
}
