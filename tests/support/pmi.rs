// SPDX-License-Identifier: MIT OR Apache-2.0

//! Instances with the plugins for Cray PMI, and jobs as seen by these plugins.

use serde_json::{Value, json};

use super::{
    plugins::{PLAIN, Site, kvs_key},
    simulator::{Instance, plugin},
};
use seal::Record;

pub const NAME: &str = "cray-pmi-bootstrap.so";
pub const KEY: &str = "cray-pmi-bootstrap";

/// Returns the request that loads the plugin with a configuration.
pub fn load(site: &Site, conf: Value) -> Value {
    json!({"path": site.path(&format!("job-manager/{NAME}")), "conf": conf})
}

pub fn without_plugin(site: &Site) -> Instance {
    let jobtap = site.at(&format!("job-manager/{NAME}"));
    if !jobtap.exists() {
        site.install("libjobtap_cray_pmi_bootstrap.so", "job-manager", NAME);
        site.install("libshell_cray_pmi_bootstrap.so", "shell", NAME);
    }
    let config = site.write("flux.toml", 0o644, toml::to_string(&site.config(json!({}))).unwrap());
    let pals = plugin(&site.at("shell"), "pals.c");
    let conf = json!({"munge-socket": site.munged.socket()}).to_string();
    let shell = site.path(&format!("shell/{NAME}"));
    let args = ["--config", &config, "--shell-plugin", &shell];
    let more = ["--shell-plugin", pals.to_str().unwrap(), "--shell-conf", &conf];
    site.launch(&[args, more].concat())
}

pub fn instance(site: &Site, conf: Value) -> Instance {
    let mut instance = without_plugin(site);
    instance.ok("load", load(site, conf));
    instance
}

pub fn nodes(nodes: usize) -> Value {
    json!({ "nodes": nodes })
}

/// Returns the ports from the event of a job. Checks that it contains nothing
/// else.
#[track_caller]
pub fn ports(instance: &mut Instance, job: &str) -> [u64; 2] {
    let contexts = instance.contexts(job, KEY);
    assert_eq!(contexts.len(), 1, "{job}: {contexts:?}");
    assert_eq!(contexts[0].as_object().unwrap().len(), 1, "{job}: {contexts:?}");
    let ports = serde_json::from_value(contexts[0]["ports"].clone());
    ports.unwrap_or_else(|e| panic!("{job}: {e}: {contexts:?}"))
}

#[track_caller]
pub fn counter(instance: &mut Instance, name: &str) -> u64 {
    let all = instance.ok("query", json!({ "name": NAME }))["result"].clone();
    all[name].as_u64().unwrap_or_else(|| panic!("no {name} in {all}"))
}

pub fn record(instance: &mut Instance, job: &str) -> Option<Record> {
    let request = instance.send("kvs-get", json!({"key": kvs_key(job, KEY)}));
    let response = instance.response(request);
    Some(Record::from_json(response["value"].as_str()?).unwrap())
}

/// Returns the events of a job that received its ports.
pub fn delivered() -> Vec<&'static str> {
    let mut events = PLAIN.to_vec();
    events.splice(5..5, ["prolog-start", KEY, "prolog-finish"]);
    events
}
