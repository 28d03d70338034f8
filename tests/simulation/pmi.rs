// SPDX-License-Identifier: MIT OR Apache-2.0

//! Cray PMI in cases that only the simulator can test: slow look-ups, and memory. `tests/scenarios/` tests everything
//! else that users notice.

use crate::support::{
    plugins::Site,
    pmi::{KEY, NAME, counter, delivered, load, nodes, ports, without_plugin},
    simulator::{Instance, watched},
};
use serde_json::json;

/// Prints the ports that `cray_pals.so` would receive.
const SHOW: &[&str] = &["sh", "-c", "echo ${PMI_CONTROL_PORT-unset}"];

#[needs(munged)]
#[test]
fn new_jobs_wait_until_it_is_known_which_ports_are_taken() {
    let site = Site::new();
    let mut instance = without_plugin(&site);
    instance.ok("load", site.hold());
    let former = instance.submit(&["true"], nodes(2));
    let context = json!({"ports": [11_999, 11_998], "random_integer": -7});
    instance.wait(&former, "prolog-start");
    instance.ok("post", json!({"jobid": former, "name": KEY, "context": context}));
    instance.wait(&former, KEY);
    instance.ok("fault", json!({"what": "hold-lookups"}));
    let with_timeout = |timeout: &str| json!({"config": site.config(json!({"timeout": timeout}))});
    instance.ok("config-reload", with_timeout("500ms"));
    instance.ok("load", load(&site, json!({})));
    let waits = |instance: &mut Instance| {
        let job = instance.submit(SHOW, nodes(2));
        instance.ok("wait", json!({"jobid": job, "event": "prolog-start", "count": 2}));
        job
    };
    // The look-up of one job exceeds the timeout.
    let late = waits(&mut instance);
    let exception = instance.wait(&late, "exception");
    assert_eq!(exception["context"]["type"], KEY, "{exception}");
    let note = exception["context"]["note"].as_str().unwrap();
    assert!(note.contains("[ports-timeout]"), "{note}");
    instance.ok("config-reload", with_timeout("60s"));
    // One job is canceled, and two proceed: the second after a reload.
    let (canceled, first, second) = (waits(&mut instance), waits(&mut instance), waits(&mut instance));
    assert_eq!(counter(&mut instance, "jobs-waiting"), 3);
    instance.ok("cancel", json!({ "jobid": canceled }));
    instance.ok("wait", json!({"jobid": canceled, "event": "prolog-finish"}));
    instance.ok("remove", json!({ "name": NAME }));
    instance.ok("load", load(&site, json!({})));
    assert_eq!(counter(&mut instance, "jobs-waiting"), 2);
    instance.ok("fault", json!({"what": "release-lookups"}));
    for job in [&first, &second] {
        instance.wait(job, KEY);
    }
    let mut given = [ports(&mut instance, &first), ports(&mut instance, &second)];
    given.sort_unstable();
    assert_eq!(given, [[11_995, 11_994], [11_997, 11_996]]);
    instance.go();
    for job in [&former, &late, &canceled, &first, &second] {
        instance.wait(job, "clean");
    }
    for job in [&late, &canceled] {
        assert_eq!(instance.contexts(job, KEY).len(), 0);
        assert!(!instance.events(job).contains(&"start".to_owned()), "{job} started");
        let finished = json!({"description": KEY, "status": 1});
        let finishes = instance.contexts(job, "prolog-finish");
        assert_eq!(
            finishes.iter().filter(|context| **context == finished).count(),
            1,
            "{finishes:?}"
        );
    }
    assert_eq!(counter(&mut instance, "ports-free"), 1000);
    instance.shutdown();
}

#[needs(munged, valgrind)]
#[test]
fn nothing_leaks_and_nothing_is_used_after_it_was_freed() {
    let mut valgrind = watched();
    let site = Site::new();
    site.install("libjobtap_cray_pmi_bootstrap.so", "job-manager", NAME);
    let config = site.write("flux.toml", 0o644, toml::to_string(&site.config(json!({}))).unwrap());
    valgrind
        .args(["--config", &config])
        .arg("--statedir")
        .arg(site.statedir());
    let mut instance = Instance::of(&mut valgrind);
    for _ in 0..3 {
        instance.ok("load", load(&site, json!({})));
        let job = instance.run(&["true"], nodes(2));
        assert_eq!(instance.events(&job), delivered());
        // The plugin is removed with one job in its prolog, and one canceled there.
        instance.ok("fault", json!({"what": "hold-commits"}));
        let (job, canceled) = (
            instance.submit(&["true"], nodes(2)),
            instance.submit(&["true"], nodes(2)),
        );
        instance.ok("wait-held", json!({"count": 1}));
        instance.wait(&canceled, "prolog-start");
        instance.ok("cancel", json!({"jobid": canceled}));
        instance.ok("remove", json!({ "name": NAME }));
        instance.ok("load", load(&site, json!({})));
        instance.ok("fault", json!({"what": "release-commits"}));
        for job in [&job, &canceled] {
            instance.wait(job, "clean");
        }
        instance.ok("remove", json!({ "name": NAME }));
    }
    instance.shutdown();
}
