//! `dws-jobtap.so` on the simulator, with a munged and a service that does as it is told: the life of a rabbit job, what becomes
//! of it when something fails, and that it is taken up wherever it is when the plugin or the instance comes back.

use crate::support::{
    plugins::{GUEST, PLAIN, Site, decimal, jwt, kvs_key, me, until, user},
    search::Search,
    simulator::{Instance, plugin, watched},
};
use nix::sys::signal::Signal;
use seal::{Error, Expected, Owner, Record};
use serde_json::{Value, json};

const NAME: &str = "dws-jobtap.so";

/// What the service is asked.
const SERVICE: [&str; 5] = ["dws.create", "dws.setup", "dws.post_run", "dws.teardown", "dws.abort"];

/// The events of a rabbit job to which nothing special happens.
const WHOLE: [&str; 18] = [
    "submit",
    "validate",
    "dependency-add",
    "jobspec-update",
    "dependency-remove",
    "depend",
    "priority",
    "alloc",
    "prolog-start",
    "dws_environment",
    "prolog-finish",
    "start",
    "finish",
    "epilog-start",
    "release",
    "epilog-finish",
    "free",
    "clean",
];

/// Prints what DWS gives to the job.
const PRINT: &[&str] = &["sh", "-c", "echo ${DW_JOB_a-unset}"];

/// A site with rabbits.
struct Rabbits {
    site: Site,
    jobtap: String,
    shell: String,
}

impl Rabbits {
    fn new() -> Rabbits {
        let site = Site::new();
        let jobtap = site.install("libjobtap_dws.so", "job-manager", NAME);
        let shell = site.install("libshell_dws_environment.so", "shell", "dws_environment.so");
        Rabbits { site, jobtap, shell }
    }

    /// What loads the plugin.
    fn load(&self, conf: Value) -> Value {
        json!({"path": self.jobtap, "conf": conf})
    }

    /// The arguments of the simulator for an instance with the plugins and more for the table.
    fn args(&self, conf: Value, table: Value) -> Vec<String> {
        let mut config = self.site.config(table);
        config["job-manager"] = json!({"plugins": [{"load": self.jobtap, "conf": conf}]});
        let config = self.site.write("flux.toml", 0o644, toml::to_string(&config).unwrap());
        let shell = json!({"munge-socket": self.site.munged.socket()}).to_string();
        let args = [
            "--config",
            &config,
            "--shell-plugin",
            &self.shell,
            "--shell-conf",
            &shell,
        ];
        args.map(str::to_owned).to_vec()
    }

    fn start_without_service(&self, conf: Value, table: Value) -> Instance {
        let args = self.args(conf, table);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        Instance::start(&self.site.statedir(), &args)
    }

    fn start_with(&self, conf: Value, table: Value) -> Instance {
        let mut instance = self.start_without_service(conf, table);
        for topic in SERVICE {
            instance.service(topic, json!({"payload": {"success": true}}));
        }
        instance
    }

    /// An instance with a service that has no objections. What it sends to the plugin, the test sends.
    fn start(&self) -> Instance {
        self.start_with(json!({}), json!({}))
    }

    /// Has another plugin do something in callbacks, by topic.
    fn puppet(&self, instance: &mut Instance, on: Value) {
        let puppet = plugin(&self.site.at("job-manager"), "puppet.c");
        instance.ok("load", json!({"path": puppet, "conf": {"on": on}}));
    }

    /// Posts the memo by which the service names the Workflow of a job, once that exists.
    fn name_workflow(&self, instance: &mut Instance, job: &str) {
        self.puppet(instance, json!({}));
        let memo = json!({"rabbit_workflow": format!("fluxjob-{}", decimal(job))});
        let actions = json!([{"do": "post", "name": "memo", "context": memo}]);
        let payload = json!({"id": decimal(job), "actions": actions});
        let topic = "job-manager.puppet.do";
        let answer = instance.ok("rpc", json!({"topic": topic, "payload": payload}));
        assert!(answer.to_string().contains("\"rc\":0"), "{answer}");
        instance.ok("remove", json!({"name": "puppet.so"}));
    }

    fn reload(&self, instance: &mut Instance) {
        instance.ok("remove", json!({"name": NAME}));
        instance.ok("load", self.load(json!({})));
    }
}

/// The service, as a test plays it, and what it sees of jobs.
trait Dws {
    fn service(&mut self, topic: &str, answer: Value);
    fn seen(&mut self, topic: &str, job: &str) -> Vec<Value>;
    fn asked(&mut self, topic: &str, job: &str) -> Value;
    fn rpc(&mut self, method: &str, payload: Value) -> Result<(), String>;
    fn rabbit(&mut self, command: &[&str]) -> String;
    fn rabbit_with(&mut self, command: &[&str], system: Value) -> String;
    fn create(&mut self, job: &str);
    fn in_prolog(&mut self, command: &[&str]) -> String;
    fn give(&mut self, job: &str, variables: Value);
    fn tear_down(&mut self, job: &str);
    fn failed(&mut self, job: &str) -> String;
    fn notes(&mut self, job: &str) -> Vec<(String, String)>;
    fn perilogs(&mut self, job: &str) -> i64;
    fn environment(&mut self, job: &str) -> Option<Value>;
    fn counted(&mut self, pointer: &str) -> u64;
}

impl Dws for Instance {
    /// How the service answers from now on.
    #[track_caller]
    fn service(&mut self, topic: &str, answer: Value) {
        let mut fields = answer;
        fields["topic"] = json!(topic);
        self.ok("service", fields);
    }

    /// What was asked for a job so far.
    #[track_caller]
    fn seen(&mut self, topic: &str, job: &str) -> Vec<Value> {
        let all = self.ok("requests", json!({}))["requests"][topic].clone();
        let all = all.as_array().cloned().unwrap_or_default();
        all.into_iter()
            .filter(|payload| payload["jobid"] == decimal(job))
            .collect()
    }

    /// What is asked for a job, once it is.
    #[track_caller]
    fn asked(&mut self, topic: &str, job: &str) -> Value {
        for count in 1.. {
            let payload = self.ok("wait-request", json!({"topic": topic, "count": count}))["payload"].clone();
            if payload["jobid"] == decimal(job) {
                return payload;
            }
        }
        unreachable!()
    }

    /// What the service asks of the plugin.
    #[track_caller]
    fn rpc(&mut self, method: &str, payload: Value) -> Result<(), String> {
        let topic = format!("job-manager.dws.{method}");
        let request = self.send("rpc", json!({"topic": topic, "payload": payload}));
        let response = self.response(request);
        match response["ok"] == true {
            true => Ok(()),
            false => Err(response["error"].as_str().unwrap().to_owned()),
        }
    }

    #[track_caller]
    fn rabbit(&mut self, command: &[&str]) -> String {
        self.rabbit_with(command, json!({}))
    }

    #[track_caller]
    fn rabbit_with(&mut self, command: &[&str], system: Value) -> String {
        let mut system = system;
        system["dw"] = json!(["#DW jobdw type=xfs capacity=10GiB name=a"]);
        self.submit(command, json!({"attributes": {"system": system}}))
    }

    /// The workflow of a job is there, and its resources are known.
    #[track_caller]
    fn create(&mut self, job: &str) {
        let asked = self.asked("dws.create", job);
        let update = json!({"id": decimal(job), "resources": asked["resources"], "exclude": null});
        assert_eq!(self.rpc("resource-update", update), Ok(()));
    }

    /// A job in its prolog, whose rabbits the service is setting up.
    #[track_caller]
    fn in_prolog(&mut self, command: &[&str]) -> String {
        let job = self.rabbit(command);
        self.create(&job);
        self.asked("dws.setup", &job);
        job
    }

    /// The rabbits are set up.
    #[track_caller]
    fn give(&mut self, job: &str, variables: Value) {
        let given = json!({"id": decimal(job), "variables": variables, "rabbits": {}});
        assert_eq!(self.rpc("prolog-remove", given), Ok(()));
    }

    /// The workflow is torn down when the job has come to its epilog, and the job ends.
    #[track_caller]
    fn tear_down(&mut self, job: &str) {
        let asked = self.asked("dws.post_run", job);
        if asked["run_started"] == true {
            // So that it is always before.
            self.wait(job, "release");
        }
        assert_eq!(self.rpc("epilog-remove", json!({"id": decimal(job)})), Ok(()));
        self.wait(job, "clean");
    }

    /// The end of a job that does not start. Returns what its user is told, which is one thing.
    #[track_caller]
    fn failed(&mut self, job: &str) -> String {
        self.tear_down(job);
        assert_eq!(self.seen("dws.post_run", job).last().unwrap()["run_started"], false);
        let finished = json!({"description": "dws-setup", "status": 1});
        assert_eq!(self.contexts(job, "prolog-finish"), [finished], "{job}");
        assert!(!self.events(job).contains(&"start".to_owned()), "{job} was started");
        let mut notes = self.notes(job);
        assert_eq!(notes.len(), 1, "{job}: {notes:?}");
        notes.remove(0).1
    }

    /// The exceptions that end a job: types and notes.
    #[track_caller]
    fn notes(&mut self, job: &str) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        self.contexts(job, "exception")
            .iter()
            .filter(|context| context["severity"] == 0)
            .map(|context| (text(&context["type"]), text(&context["note"])))
            .collect()
    }

    /// How many prologs or epilogs of a job are outstanding, of whatever plugin.
    #[track_caller]
    fn perilogs(&mut self, job: &str) -> i64 {
        self.ok("state", json!({"jobid": job}))["perilog_active"]
            .as_i64()
            .unwrap()
    }

    /// The record of a job, while there is one.
    #[track_caller]
    fn environment(&mut self, job: &str) -> Option<Value> {
        let key = kvs_key(job, "dws-environment");
        let request = self.send("kvs-get", json!({"key": key}));
        let response = self.response(request);
        response["value"]
            .as_str()
            .map(|text| serde_json::from_str(text).unwrap())
    }

    #[track_caller]
    fn counted(&mut self, pointer: &str) -> u64 {
        let all = self.ok("query", json!({"name": NAME}))["result"].clone();
        let count = all.pointer(pointer).and_then(Value::as_u64);
        count.unwrap_or_else(|| panic!("no {pointer} in {all}"))
    }
}

// The life of a job

#[needs(munged)]
#[test]
fn a_rabbit_job_passes_through_its_life_and_has_its_variables_and_nothing_but_their_names_is_told() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    // A name that a shell cannot write, as rabbits of old have it.
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
    // Names in no order, since JSON has none.
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

#[needs(munged, root)]
#[test]
fn the_record_opens_for_the_job_owner_alone() {
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
    // Nobody but the instance owner can play the service.
    for method in ["resource-update", "prolog-remove", "epilog-remove"] {
        let request = json!({"topic": format!("job-manager.dws.{method}"), "userid": guest, "payload": {"id": 1}});
        let denied = instance.error("rpc", request);
        assert!(denied.contains("owner"), "{denied}");
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_without_rabbits_is_left_alone() {
    let rabbits = Rabbits::new();
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

#[needs(munged)]
#[test]
fn a_job_without_variables_starts_with_none() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let job = instance.in_prolog(PRINT);
    instance.give(&job, json!({}));
    instance.tear_down(&job);
    assert_eq!(instance.stdout(&job), "unset\n");
    assert_eq!(instance.contexts(&job, "dws_environment"), [json!({"names": []})]);
    assert_eq!(instance.events(&job), WHOLE);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn what_the_service_excludes_comes_on_top_of_the_constraints_of_the_job() {
    let rabbits = Rabbits::new();
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
    // What nobody can understand is not thrown away.
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

#[needs(munged)]
#[test]
fn a_failure_tolerance_is_an_integer_and_the_service_judges_it() {
    let rabbits = Rabbits::new();
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

// The service fails

/// How a service fails, and what its user is told then.
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

#[needs(munged)]
#[test]
fn a_workflow_that_cannot_be_created_ends_the_job_before_it_has_resources() {
    let rabbits = Rabbits::new();
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
            "its workflow may be there"
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
    // The service says that there are no such resources.
    instance.service("dws.create", json!({"payload": {"success": true}}));
    let job = instance.rabbit(&["true"]);
    instance.asked("dws.create", &job);
    let update = json!({"id": decimal(&job), "resources": [], "exclude": null, "errmsg": "too large"});
    assert_eq!(instance.rpc("resource-update", update), Ok(()));
    instance.tear_down(&job);
    assert_eq!(instance.notes(&job), [told("dws", "too large")]);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn rabbits_that_cannot_be_set_up_end_the_job_in_its_prolog() {
    let rabbits = Rabbits::new();
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

#[needs(munged)]
#[test]
fn a_workflow_that_cannot_be_torn_down_ends_the_job_all_the_same_and_the_service_hears_of_it() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let refused = (
        json!({"payload": {"success": false}}),
        "<no error string provided>".to_owned(),
    );
    let failures = failures("Failed to send dws.post_run RPC").into_iter().chain([refused]);
    // A service that is not there is waited for.
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

#[needs(munged)]
#[test]
fn an_answer_that_comes_when_all_is_over_changes_nothing() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    // The plugin of somebody else keeps the job in its epilog.
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
    // What comes after the answer, comes after what it would have done.
    let other = json!([{"do": "epilog-finish", "description": "other", "status": 0}]);
    let request = json!({"topic": "job-manager.puppet.do", "payload": {"id": decimal(&job), "actions": other}});
    instance.ok("rpc", request);
    instance.wait(&job, "clean");
    assert_eq!(instance.notes(&job), []);
    assert_eq!(instance.contexts(&job, "epilog-finish").len(), 2);
    assert_eq!(instance.stdout(&job), "x\n");
    instance.shutdown();
}

// What the service sends

#[needs(munged)]
#[test]
fn a_request_that_is_malformed_ends_its_job_with_one_exception_that_quotes_nothing() {
    let rabbits = Rabbits::new();
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
    // Whose job is not told, is answered.
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

#[needs(munged)]
#[test]
fn what_the_service_says_twice_or_of_another_job_is_answered_and_changes_nothing() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let remove = |id: u64| json!({"id": id, "variables": {"DW_JOB_a": "x"}});
    let no_prolog = Err("the job has no prolog dws-setup: it is not a rabbit job in RUN".to_owned());
    let no_epilog = |instance: &mut Instance, id: u64| {
        assert!(instance.rpc("epilog-remove", json!({"id": id})).is_err(), "{id}");
    };
    // There is no such job.
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
    // Twice while it is being delivered, and once more.
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

// Exceptions

#[needs(munged)]
#[test]
fn a_job_that_is_canceled_in_its_prolog_is_torn_down_and_not_set_up_any_more() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    // While it is not known yet which resources it has.
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
    assert_eq!(instance.perilogs(&other), 1, "it would have lived");
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
    // While it is sealed.
    rabbits.site.munged.signal(Signal::SIGSTOP);
    let sealing = instance.in_prolog(&["true"]);
    let request = deliver(&mut instance, &sealing);
    until("munged is asked", || rabbits.site.waiting_for_munged() > 0);
    instance.ok("cancel", json!({"jobid": sealing}));
    assert_eq!(instance.response(request)["error"], "the job has got an exception");
    rabbits.site.munged.signal(Signal::SIGCONT);
    assert_eq!(instance.failed(&sealing), "");
    assert_eq!(instance.environment(&sealing), None);
    // While it is committed.
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

#[needs(munged)]
#[test]
fn a_job_that_is_canceled_while_it_runs_is_torn_down_when_its_shells_have_ended() {
    let rabbits = Rabbits::new();
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

#[needs(munged)]
#[test]
fn an_exception_in_the_epilog_has_the_workflow_torn_down_at_once_or_given_up() {
    let rabbits = Rabbits::new();
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
    // The service may not know yet.
    assert!(instance.rpc("epilog-remove", json!({"id": decimal(&job)})).is_err());
    instance.shutdown();
}

/// Only the instance owner may have rabbits disabled: of a job owner, `dws-epilog-timeout` is an exception like any other.
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
fn an_epilog_that_takes_too_long_is_given_up_and_one_that_is_over_does_not_take_too_long() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start_with(json!({"epilog-timeout": 0.2}), json!({}));
    // The plugin of somebody else keeps jobs in their epilogs.
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
    // On a machine that is slow, time may be over before.
    let mut first = in_epilog(&mut instance);
    while instance.rpc("epilog-remove", json!({"id": decimal(&first)})).is_err() {
        first = in_epilog(&mut instance);
    }
    let jobs = [first, in_epilog(&mut instance)];
    // The second one's time is over after the first one's would have been.
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
        assert_eq!(instance.perilogs(job), 1, "that of the other plugin");
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn the_timeout_is_a_number_and_what_is_no_option_is_refused() {
    let rabbits = Rabbits::new();
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

// Deliveries that fail

#[needs(munged)]
#[test]
fn a_rabbit_job_in_a_project_that_its_owner_is_not_in_gets_nothing() {
    let rabbits = Rabbits::new();
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
    fails(&mut instance, json!({"DW_JOB_a": "x".repeat(2 << 20)}), "", "");
    instance.ok("fault", json!({"what": "hold-commits"}));
    fails(&mut instance, variables.clone(), "it took longer than 1 s", "timeout");
    instance.ok("fault", json!({"what": "release-commits"}));
    rabbits.site.kill_munged();
    fails(&mut instance, variables.clone(), "it took longer than 1 s", "seal");
    rabbits.site.munged.restart();
    // The next one is none the worse for it.
    let job = instance.in_prolog(PRINT);
    instance.give(&job, variables);
    instance.tear_down(&job);
    assert_eq!(instance.stdout(&job), format!("{canary}\n"));
    assert_eq!(instance.counted("/failed"), 4);
    assert!(!Search::tokens([canary.as_str()]).finds(instance.dmesg().concat().as_bytes()));
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn variables_are_found_nowhere_but_in_the_environment_of_their_job() {
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
    // One runs; of one the commit is refused; one is canceled during the commit; one is malformed; one is in flight.
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
            "the search does not find what there is"
        );
        let stderr = instance.stderr(&jobs[n].0);
        assert!(stderr.contains("exported DW_JOB_a"), "{stderr}");
    }
    assert_eq!(found(&mut instance), ["the output"; 0]);
    instance.shutdown();
}

// Prologs and epilogs of others

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

    // Delivered, and the service goes on and on.
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

    // Failed, malformed, canceled: each twice, with the plugin loaded anew in between.
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
            // The other's prolog; and two epilogs.
            assert_eq!(instance.perilogs(&job), 3, "{how}");
            rabbits.reload(&mut instance);
            assert_eq!(instance.perilogs(&job), 3, "{how}");
        }
        assert_eq!(instance.rpc("epilog-remove", json!({"id": decimal(&job)})), Ok(()));
        assert_eq!(instance.perilogs(&job), 2, "{how}");
    }
    instance.shutdown();
}

// Removed and loaded again

/// Jobs at all points of their lives, each of which is to end well when the plugin is back.
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
        // It waits for something else when its resources are known.
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
        // A workflow that is there already is not created again.
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

    /// Every job goes on from where it is.
    fn go_on(&self, rabbits: &Rabbits, instance: &mut Instance) {
        // The service says that the resources are known when it has come to know them, whoever asked.
        let resources = instance.seen("dws.create", &self.asked)[0]["resources"].clone();
        until("it is asked again", || {
            instance.seen("dws.create", &self.asked).len() > 1
        });
        let update = json!({"id": decimal(&self.asked), "resources": resources, "exclude": null});
        assert_eq!(instance.rpc("resource-update", update), Ok(()));
        // The one that waits for something else waits for that alone.
        let state = instance.ok("state", json!({"jobid": self.waits_for_other}));
        assert_eq!(state["dependencies"], json!([OTHER]));
        rabbits.puppet(instance, json!({}));
        let other = json!([{"do": "dependency-remove", "description": OTHER}]);
        let payload = json!({"id": decimal(&self.waits_for_other), "actions": other});
        instance.ok("rpc", json!({"topic": "job-manager.puppet.do", "payload": payload}));
        instance.ok("remove", json!({"name": "puppet.so"}));
        // The one that has no resources is seen to the end of its epilog, though this plugin had nothing to do for it before.
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
fn a_record_that_was_sealed_when_the_plugin_was_removed_is_looked_for_until_it_is_there_or_known_not_to_be() {
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
        // The first goes alone; the others wait for it to be committed, or are being sealed.
        until("it is under way", || instance.counted("/in-flight") == n as u64 + 1);
    }
    instance.ok("wait-held", json!({"count": 1}));
    rabbits.reload(&mut instance);
    // Not yet known; removed once more.
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
        "it was started"
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
fn jobs_at_all_points_of_their_lives_go_on_when_the_plugin_is_loaded_anew() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let jobs = Everywhere::new(&rabbits, &mut instance);
    let held = instance.send(
        "rpc",
        json!({"topic": "job-manager.dws.prolog-remove", "payload": {"id": decimal(&jobs.in_flight), "variables": {}}}),
    );
    // By then, the plugin has that one.
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
    // What it was to get was sealed, and was on its way into the KVS.
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
fn jobs_at_all_points_of_their_lives_go_on_when_the_instance_is_restarted() {
    let rabbits = Rabbits::new();
    for end in [Instance::shutdown, Instance::kill] {
        let mut instance = rabbits.start();
        let jobs = Everywhere::new(&rabbits, &mut instance);
        let resources = instance.seen("dws.create", &jobs.asked)[0]["resources"].clone();
        end(instance);
        let mut instance = rabbits.start();
        let exists = json!({"success": false, "errstr": "workflows \"fluxjob\" already exists"});
        instance.service("dws.create", json!({"payload": exists}));
        // The service says again what it said of jobs whose rabbits are ready, and may do so before this plugin knows.
        instance.give(&jobs.in_flight, json!({"DW_JOB_a": "in flight"}));
        instance.tear_down(&jobs.in_flight);
        assert_eq!(instance.stdout(&jobs.in_flight), "in flight\n");
        instance.give(&jobs.in_prolog, json!({"DW_JOB_a": "in prolog"}));
        instance.tear_down(&jobs.in_prolog);
        assert_eq!(instance.stdout(&jobs.in_prolog), "in prolog\n");
        // It may not have heard of this one.
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

#[needs(munged)]
#[test]
fn a_job_that_ended_while_the_plugin_was_not_there_is_torn_down_when_it_is_back() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    // Nothing but its prolog holds it.
    let alone = instance.in_prolog(&["true"]);
    instance.ok("remove", json!({"name": NAME}));
    instance.ok("cancel", json!({"jobid": alone}));
    instance.wait(&alone, "exception");
    instance.ok("load", rabbits.load(json!({})));
    assert_eq!(instance.failed(&alone), "");
    // The plugin of somebody else keeps jobs in their epilogs.
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

/// Those that nothing held any more.
#[needs(munged)]
#[test]
fn the_workflow_of_a_job_that_became_inactive_while_the_plugin_was_not_there_is_torn_down_when_it_is_back() {
    let rabbits = Rabbits::new();
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

    // The service is not there yet; and the plugin is removed once more before it is.
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
        until("the service is told", || {
            instance.seen("dws.post_run", job).len() > before
        });
        assert_eq!(
            instance.seen("dws.post_run", job).last().unwrap()["run_started"],
            has_run
        );
    }
    let text = format!("{purged}: dws.post_run, after the job had ended: it has been purged: its Workflow fluxjob-");
    instance.ok("wait-log", json!({ "text": text }));
    // They are kept until they are gone, and are not told twice.
    assert_eq!(instance.counted("/jobs/gone"), 2);
    rabbits.reload(&mut instance);
    let again = |line: &String| line.contains("2 rabbit jobs have ended");
    assert!(!instance.dmesg().iter().any(again), "they are to be told again");
    for (job, left, before) in [(&ran, 1, before[0]), (&created, 0, before[1])] {
        assert_eq!(instance.rpc("epilog-remove", json!({"id": decimal(job)})), Ok(()));
        assert_eq!(instance.counted("/jobs/gone"), left);
        assert_eq!(instance.seen("dws.post_run", job).len(), before + 1);
    }
    // Neither one that was torn down before, nor one that is not over.
    assert_eq!(instance.seen("dws.post_run", &torn_down).len(), 1);
    assert_eq!(instance.seen("dws.post_run", &active), [] as [Value; 0]);
    instance.give(&active, json!({}));
    instance.tear_down(&active);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_service_that_refuses_to_hear_of_an_inactive_job_or_does_not_answer_is_asked_again() {
    let rabbits = Rabbits::new();
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
    // One that is refused does not keep the others.
    for job in [&refused, &other] {
        let text = format!("{job}: dws.post_run, after the job had ended: no Kubernetes today: asking again");
        instance.ok("wait-log", json!({ "text": text }));
    }
    // In the next round the first one is not answered, and the plugin is removed meanwhile.
    instance.service("dws.post_run", json!({"hold": true}));
    until("it is asked again", || {
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

/// Jobs in CLEANUP of which the plugin that is loaded knows nothing, as after it took the place of another one.
#[needs(munged)]
#[test]
fn a_job_that_another_plugin_left_in_cleanup_is_held_until_it_is_known_what_it_lacks() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    instance.ok("remove", json!({"name": NAME}));
    // Its epilog is to come; is outstanding; is over.
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
        // Held lookups show that it does not go meanwhile.
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
        // The service was told before, perhaps.
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
fn a_job_that_is_canceled_before_it_is_known_how_far_it_is_is_held_until_then() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    instance.ok("remove", json!({"name": NAME}));
    // Its rabbits were set up by another plugin, and it waits for something else.
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
    // A prolog, since the other plugin may have left the job without, and the epilog.
    assert_eq!(instance.perilogs(&job), 2, "its workflow is forgotten");
    instance.ok("fault", json!({"what": "release-lookups"}));
    assert_eq!(instance.asked("dws.post_run", &job)["run_started"], false);
    instance.tear_down(&job);
    assert_eq!(instance.contexts(&job, "prolog-finish").len(), 3);
    assert_eq!(instance.contexts(&job, "epilog-start").len(), 1);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_whose_resources_were_allocated_without_the_plugin_does_not_start() {
    let rabbits = Rabbits::new();
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

#[needs(munged)]
#[test]
fn what_cannot_be_asked_after_a_reload_is_asked_again() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    let asked = instance.rabbit(PRINT);
    let resources = instance.asked("dws.create", &asked)["resources"].clone();
    // The service is not there yet, nor does the KVS take anything.
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

/// The service answers a repeated `dws.create` with a refusal. The memo tells whether the Workflow exists, not the text.
#[needs(munged)]
#[test]
fn a_workflow_is_known_by_its_memo() {
    let rabbits = Rabbits::new();
    let mut instance = rabbits.start();
    // Whose creation is under way when the plugin is removed.
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
    // One whose memo comes when the plugin is there again.
    until("it is asked again", || instance.seen("dws.create", &later).len() == 2);
    rabbits.name_workflow(&mut instance, &later);
    instance.service("dws.create", json!({"payload": refusal}));
    rabbits.reload(&mut instance);
    instance.wait(&unnamed, "exception");
    assert_eq!(instance.notes(&unnamed), [told("dws-create", "HTTP 409 Conflict")]);
    for job in [&named, &later] {
        until("it is asked again", || instance.seen("dws.create", job).len() == 3);
        let update = json!({"id": decimal(job), "resources": resources, "exclude": null});
        assert_eq!(instance.rpc("resource-update", update), Ok(()));
        instance.asked("dws.setup", job);
        instance.give(job, json!({"DW_JOB_a": "x"}));
        instance.tear_down(job);
        assert_eq!(instance.notes(job), [], "{job}");
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_service_that_is_not_there_at_the_end_of_a_job_is_asked_again_and_no_workflow_is_forgotten() {
    let rabbits = Rabbits::new();
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
    // A job that is new is told so.
    let job = instance.rabbit(&["true"]);
    instance.wait(&job, "clean");
    assert_eq!(instance.notes(&job)[0].0, "dws-create");
    for job in [&running, &ended] {
        assert_eq!(instance.asked("dws.post_run", job)["run_started"], true);
        assert_eq!(instance.perilogs(job), 1, "its workflow would be forgotten");
    }
    // One that the service has torn down meanwhile needs no second time, and is none the worse for it.
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

#[needs(munged)]
#[test]
fn a_second_copy_is_refused_and_the_first_one_does_not_notice() {
    let rabbits = Rabbits::new();
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

// Many, and memory

#[needs(munged)]
#[test]
fn each_of_200_jobs_at_once_has_its_own_variables() {
    let rabbits = Rabbits::new();
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
        // Everything that waits for an answer when it is removed, or when its job is gone.
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
