// SPDX-License-Identifier: MIT OR Apache-2.0

//! A site with rabbits, and the service that communicates with DWS, played by a test.

use serde_json::{Value, json};

use super::{
    plugins::{Site, decimal, kvs_key},
    simulator::{Instance, plugin},
};

pub const NAME: &str = "dws-jobtap.so";

/// The topics of the service.
pub const SERVICE: [&str; 5] = ["dws.create", "dws.setup", "dws.post_run", "dws.teardown", "dws.abort"];

/// The events of an ordinary rabbit job.
pub const WHOLE: [&str; 18] = [
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

/// A command that prints the variable that DWS provides to the job.
pub const PRINT: &[&str] = &["sh", "-c", "echo ${DW_JOB_a-unset}"];

/// A site with rabbits.
pub struct Rabbits {
    pub site: Site,
    pub jobtap: String,
    pub shell: String,
}

impl Rabbits {
    pub fn new() -> Rabbits {
        Rabbits::at(Site::new())
    }

    pub fn at(site: Site) -> Rabbits {
        let jobtap = site.install("libjobtap_dws.so", "job-manager", NAME);
        let shell = site.install("libshell_dws_environment.so", "shell", "dws_environment.so");
        Rabbits { site, jobtap, shell }
    }

    /// Returns the request that loads the plugin.
    pub fn load(&self, conf: Value) -> Value {
        json!({"path": self.jobtap, "conf": conf})
    }

    /// Returns the arguments of the simulator for an instance with the plugins, and with additions to
    /// the table.
    pub fn args(&self, conf: Value, table: Value) -> Vec<String> {
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

    pub fn start_without_service(&self, conf: Value, table: Value) -> Instance {
        let args = self.args(conf, table);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.site.launch(&args)
    }

    pub fn start_with(&self, conf: Value, table: Value) -> Instance {
        let mut instance = self.start_without_service(conf, table);
        for topic in SERVICE {
            instance.service(topic, json!({"payload": {"success": true}}));
        }
        instance
    }

    /// Starts an instance with a service that accepts everything. The test itself sends the service's
    /// messages to the plugin.
    pub fn start(&self) -> Instance {
        self.start_with(json!({}), json!({}))
    }

    /// Makes another plugin perform actions in callbacks, by topic.
    pub fn puppet(&self, instance: &mut Instance, on: Value) {
        let puppet = plugin(&self.site.at("job-manager"), "puppet.c");
        instance.ok("load", json!({"path": puppet, "conf": {"on": on}}));
    }

    /// Posts the memo with which the service names the Workflow of a job, once the Workflow exists.
    pub fn name_workflow(&self, instance: &mut Instance, job: &str) {
        self.puppet(instance, json!({}));
        let memo = json!({"rabbit_workflow": format!("fluxjob-{}", decimal(job))});
        let actions = json!([{"do": "post", "name": "memo", "context": memo}]);
        let payload = json!({"id": decimal(job), "actions": actions});
        let topic = "job-manager.puppet.do";
        let answer = instance.ok("rpc", json!({"topic": topic, "payload": payload}));
        assert!(answer.to_string().contains("\"rc\":0"), "{answer}");
        instance.ok("remove", json!({"name": "puppet.so"}));
    }

    pub fn reload(&self, instance: &mut Instance) {
        instance.ok("remove", json!({"name": NAME}));
        instance.ok("load", self.load(json!({})));
    }
}

/// The service, as played by a test, and its view of jobs.
pub trait Dws {
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
    /// Sets the response of the service from now on.
    #[track_caller]
    fn service(&mut self, topic: &str, answer: Value) {
        let mut fields = answer;
        fields["topic"] = json!(topic);
        self.ok("service", fields);
    }

    /// Returns the requests for a job so far.
    #[track_caller]
    fn seen(&mut self, topic: &str, job: &str) -> Vec<Value> {
        let all = self.ok("requests", json!({}))["requests"][topic].clone();
        let all = all.as_array().cloned().unwrap_or_default();
        all.into_iter()
            .filter(|payload| payload["jobid"] == decimal(job))
            .collect()
    }

    /// Waits for a request for a job, and returns it.
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

    /// Sends a request of the service to the plugin.
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

    /// Reports that the workflow of a job exists, and that its resources are known.
    #[track_caller]
    fn create(&mut self, job: &str) {
        let asked = self.asked("dws.create", job);
        let update = json!({"id": decimal(job), "resources": asked["resources"], "exclude": null});
        assert_eq!(self.rpc("resource-update", update), Ok(()));
    }

    /// Submits a job, and waits for its prolog while the service sets up its rabbits.
    #[track_caller]
    fn in_prolog(&mut self, command: &[&str]) -> String {
        let job = self.rabbit(command);
        self.create(&job);
        self.asked("dws.setup", &job);
        job
    }

    /// Reports that the rabbits are set up.
    #[track_caller]
    fn give(&mut self, job: &str, variables: Value) {
        let given = json!({"id": decimal(job), "variables": variables, "rabbits": {}});
        assert_eq!(self.rpc("prolog-remove", given), Ok(()));
    }

    /// Waits for the job's epilog, reports that the workflow is torn down, and waits for the end of
    /// the job.
    #[track_caller]
    fn tear_down(&mut self, job: &str) {
        let asked = self.asked("dws.post_run", job);
        if asked["run_started"] == true {
            // Makes the order of events deterministic.
            self.wait(job, "release");
        }
        assert_eq!(self.rpc("epilog-remove", json!({"id": decimal(job)})), Ok(()));
        self.wait(job, "clean");
    }

    /// Waits for the end of a job that does not start. Returns the only note for its user.
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

    /// Returns the exceptions that end a job: types and notes.
    #[track_caller]
    fn notes(&mut self, job: &str) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        self.contexts(job, "exception")
            .iter()
            .filter(|context| context["severity"] == 0)
            .map(|context| (text(&context["type"]), text(&context["note"])))
            .collect()
    }

    /// Returns the number of outstanding prologs or epilogs of a job, of any plugin.
    #[track_caller]
    fn perilogs(&mut self, job: &str) -> i64 {
        self.ok("state", json!({"jobid": job}))["perilog_active"]
            .as_i64()
            .unwrap()
    }

    /// Returns the record of a job, while it exists.
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
