//! The plugin for the job manager through its life, as far as only the simulator can show it: removed and restarted during a
//! commit, and its memory. What users notice else, is in `tests/scenarios/`.

use crate::support::{
    plugins::{PRINT, Site, jwt, matching, until},
    simulator::{Instance, watched},
};
use serde_json::json;

#[needs(munged)]
#[test]
fn a_delivery_whose_commit_was_under_way_when_it_was_removed_begins_anew_when_it_is_back() {
    let site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    // The commit ends before the plugin is back, or after.
    for before in [true, false] {
        instance.ok("fault", json!({"what": "hold-commits"}));
        let job = instance.submit(PRINT, matching("dw"));
        instance.ok("wait-held", json!({"count": 1}));
        instance.ok("remove", json!({"name": "workflow-token.so"}));
        if before {
            instance.ok("fault", json!({"what": "release-commits"}));
            until("the record is there", || instance.record(&job).is_some());
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
fn an_instance_that_ended_during_a_commit_delivers_when_it_is_back() {
    let site = Site::new();
    let token = jwt(json!({}));
    for end in [Instance::shutdown, Instance::kill] {
        let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
        instance.ok("fault", json!({"what": "hold-commits"}));
        let job = instance.submit(PRINT, matching("dw"));
        instance.ok("wait-held", json!({"count": 1}));
        // Events are written a little later. An instance that ends before that has not seen the job run.
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
        // Removed in the middle of one, and before the records of others are.
        instance.ok("fault", json!({"what": "hold-commits"}));
        let job = instance.submit(PRINT, matching("dw"));
        instance.ok("wait-held", json!({"count": 1}));
        site.reload(&mut instance);
        instance.ok("fault", json!({"what": "release-commits"}));
        instance.assert_delivered(&job, &token);
    }
    instance.shutdown();
}
