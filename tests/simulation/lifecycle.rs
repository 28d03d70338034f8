// SPDX-License-Identifier: MIT OR Apache-2.0

//! The life of the job manager's plugin, in cases that only the simulator can test: removal and restart during a
//! commit, and its memory. `tests/scenarios/` tests everything else that users notice.

use crate::support::{
    plugins::{PRINT, Site, jwt, matching, until},
    simulator::{Instance, watched},
};
use serde_json::json;

#[needs(munged)]
#[test]
fn a_delivery_whose_commit_was_outstanding_at_the_removal_restarts_after_a_reload() {
    let site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    // The commit ends before or after the plugin returns.
    for before in [true, false] {
        instance.ok("fault", json!({"what": "hold-commits"}));
        let job = instance.submit(PRINT, matching("dw"));
        instance.ok("wait-held", json!({"count": 1}));
        instance.ok("remove", json!({"name": "workflow-token.so"}));
        if before {
            instance.ok("fault", json!({"what": "release-commits"}));
            until("the record exists", || instance.record(&job).is_some());
            instance.ok("load", json!({"path": site.jobtap()}));
        } else {
            instance.ok("load", json!({"path": site.jobtap()}));
            instance.ok("wait-held", json!({"count": 2}));
            instance.ok("fault", json!({"what": "release-commits"}));
        }
        instance.assert_delivered(&job, &token);
        until("the record is removed", || instance.record(&job).is_none());
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn an_instance_that_ended_during_a_commit_delivers_after_a_restart() {
    let site = Site::new();
    let token = jwt(json!({}));
    for end in [Instance::shutdown, Instance::kill] {
        let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
        instance.ok("fault", json!({"what": "hold-commits"}));
        let job = instance.submit(PRINT, matching("dw"));
        instance.ok("wait-held", json!({"count": 1}));
        // Events are written with a delay. An instance that ends earlier has not recorded that the job ran.
        instance.wait(&job, "prolog-start");
        end(instance);
        let mut instance = site.start(json!({}), &[]);
        instance.assert_delivered(&job, &token);
        assert_eq!(instance.counter("resumed"), 1);
        until("the record is removed", || instance.record(&job).is_none());
        instance.shutdown();
    }
}

#[needs(munged, valgrind)]
#[test]
fn nothing_leaks_and_nothing_is_used_after_it_was_freed() {
    let mut valgrind = watched();
    let site = Site::new();
    let token = jwt(json!({}));
    let failing = site.command_rule("failing", "echo no >&2; exit 1", &[]);
    let config = site.configure(json!({"rule": [site.file_rule("dw", &token), failing]}));
    valgrind.args(["--config", &config]);
    valgrind.arg("--statedir").arg(site.statedir());
    let conf = json!({"munge-socket": site.munged.socket()}).to_string();
    valgrind.args([
        "--shell-plugin",
        &site.path("shell/workflow-token.so"),
        "--shell-conf",
        &conf,
    ]);
    let mut instance = Instance::of(&mut valgrind);
    for _ in 0..5 {
        assert_eq!(instance.token("dw"), token);
        let job = instance.submit(&["true"], matching("failing"));
        instance.undelivered(&job);
        let bad = site.config(json!({"rule": 1}));
        instance.error("config-reload", json!({"config": bad}));
        instance.error("load", json!({"path": site.jobtap()}));
        // The plugin is removed during one delivery, and before the records of other jobs are removed.
        instance.ok("fault", json!({"what": "hold-commits"}));
        let job = instance.submit(PRINT, matching("dw"));
        instance.ok("wait-held", json!({"count": 1}));
        site.reload(&mut instance);
        instance.ok("fault", json!({"what": "release-commits"}));
        instance.assert_delivered(&job, &token);
    }
    instance.shutdown();
}
