// SPDX-License-Identifier: MIT OR Apache-2.0

//! The cost of a delivery does not grow with the number of others. On the simulator: memory, by the plugin's own
//! count.

use crate::support::{
    plugins::{PRINT, Site, jwt, matching, until},
    simulator::Instance,
};
use serde_json::json;

/// The maximum memory of a delivery in flight, in bytes, in addition to three times the size of its variables.
const EACH: usize = 4096;

/// Holds this number of jobs with their deliveries on the way to the KVS. Returns the peak memory of the plugin.
fn in_flight(instance: &mut Instance, count: usize) -> (Vec<String>, usize) {
    instance.ok("fault", json!({"what": "hold-commits"}));
    let requests: Vec<_> = (0..count)
        .map(|_| {
            let mut request = matching("dw");
            request["command"] = json!(PRINT);
            instance.send("submit", request)
        })
        .collect();
    let jobs = requests.into_iter().map(|request| {
        let response = instance.response(request);
        response["jobid"]
            .as_str()
            .unwrap_or_else(|| panic!("{response}"))
            .to_owned()
    });
    let jobs: Vec<String> = jobs.collect();
    until("all are in flight", || instance.counter("in-flight") == count as u64);
    // The agent makes the records one after the other.
    let (mut most, mut last, mut same) = (0, 0, 0);
    until("all records are made and handed over", || {
        let now = instance.counter("memory") as usize;
        same = if now.abs_diff(last) < EACH { same + 1 } else { 0 };
        (last, most) = (now, most.max(now));
        // Waiting records are handed over with one commit a second.
        same > 150
    });
    (jobs, most)
}

/// Completes all deliveries, and then ends the jobs without starting them.
fn end(instance: &mut Instance, jobs: &[String]) {
    instance.ok("fault", json!({"what": "release-commits"}));
    until("all are delivered", || instance.counter("in-flight") == 0);
    let before = instance.counter("unlinked");
    let requests: Vec<_> = jobs
        .iter()
        .map(|job| instance.send("cancel", json!({ "jobid": job })))
        .collect();
    for request in requests {
        instance.response(request);
    }
    until("their records are removed", || {
        instance.counter("unlinked") == before + jobs.len() as u64
    });
}

#[needs(munged)]
#[test]
fn memory_in_flight_is_bounded_for_each_delivery_and_freed_afterwards() {
    let site = Site::with_faults();
    let token = jwt(json!({"padding": "x".repeat(1000)}));
    let rule = site.file_rule("dw", &token);
    let mut instance = site.instance(json!({"timeout": "1h", "rule": [rule]}));
    instance.ok("fault", json!({"what": "hold-starts"}));
    let mut after = Vec::new();
    for count in [100, 1000] {
        let before = instance.counter("memory") as usize;
        let (jobs, memory) = in_flight(&mut instance, count);
        let each = memory.saturating_sub(before) / count;
        eprintln!("{count} in flight: {each} bytes each");
        assert!(
            each <= EACH + 3 * token.len(),
            "{each} bytes for each of {count} in flight"
        );
        end(&mut instance, &jobs);
        until("the memory is freed", || {
            after.push(instance.counter("memory") as usize);
            after.last() <= Some(&(after[0] + (128 << 10)))
        });
    }
    assert_eq!(instance.counter("failed"), 0);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn renewals_give_their_memory_back() {
    const JOBS: u64 = 100;

    let site = Site::with_faults();
    let soon = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 20;
    let mut rule = site.file_rule("dw", jwt(json!({"exp": soon})));
    rule["renew"] = json!(0.1);
    let mut instance = site.instance(json!({"rule": [rule]}));
    instance.ok("fault", json!({"what": "hold-starts"}));
    let jobs: Vec<String> = (0..JOBS).map(|_| instance.submit(&["true"], matching("dw"))).collect();
    until("all are renewed", || instance.counter("renewed") >= JOBS);
    let before = instance.counter("memory");
    until("all are renewed repeatedly", || instance.counter("renewed") >= 4 * JOBS);
    let after = instance.counter("memory");
    assert!(after <= before + (128 << 10), "{before} and then {after}");
    assert_eq!(instance.counter("renewing"), JOBS);
    for job in &jobs {
        instance.ok("cancel", json!({ "jobid": job }));
    }
    until("none is renewed", || instance.counter("renewing") == 0);
    instance.shutdown();
}
