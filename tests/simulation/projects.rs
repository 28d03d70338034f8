// SPDX-License-Identifier: MIT OR Apache-2.0

//! Projects on the simulator, with a name service that the test controls: who may submit which jobs, and who receives a
//! token.

use std::fs;

use crate::support::{
    names::{Asking, BOB, HELD, Place, held_job, job, projects},
    plugins::{PRINT, jwt, me, until},
    simulator::{Instance, plugin},
};
use serde_json::{Value, json};

// Membership

#[needs(munged)]
#[test]
fn every_combination_of_two_users_two_projects_and_requests() {
    let place = Place::new();
    let mut instance = place.instance(json!({"project": projects()}));
    let memberships: [&[&str]; 4] = [&[], &["hydro"], &["fusion"], &["hydro", "fusion"]];
    for of_alice in memberships {
        for of_bob in memberships {
            let members = |project: &str| {
                let users = [("alice", of_alice), ("bob", of_bob)];
                let members: Vec<&str> = users
                    .into_iter()
                    .filter(|(_, his)| his.contains(&project))
                    .map(|(user, _)| user)
                    .collect();
                members
            };
            place.names(&[("hydro", 5000, &members("hydro")), ("fusion", 5001, &members("fusion"))]);
            place.reload(&mut instance, json!({"project": projects()}));
            for (uid, name, his) in [(me(), "alice", of_alice), (BOB, "bob", of_bob)] {
                instance.learn(uid);
                for asked in [None, Some("hydro"), Some("fusion"), Some("astro"), Some("hydro/x")] {
                    let what = format!("{name} of {his:?} asks for {asked:?}");
                    match asked {
                        Some(project @ ("hydro" | "fusion")) if !his.contains(&project) => {
                            let text = instance.error("submit", held_job(uid, asked));
                            let expected = format!("{name} is not in project {project}: it requires group {project}");
                            assert_eq!(text, expected, "{what}");
                        }
                        Some(project @ ("astro" | "hydro/x")) => {
                            let text = instance.error("submit", held_job(uid, asked));
                            assert_eq!(text, format!("there is no project `{project}`"), "{what}");
                        }
                        _ => {
                            let job = instance.submit_held(uid, asked);
                            instance.wait(&job, "depend");
                            assert!(!instance.events(&job).contains(&"dependency-add".to_owned()), "{what}");
                            instance.cancel(&job);
                        }
                    }
                }
            }
        }
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_gets_the_token_of_the_project_that_it_is_in_and_of_no_other() {
    let place = Place::new();
    let (rule, [hydro, fusion]) = place.token_of_project();
    let table = |default: Option<&str>| {
        let mut all = projects();
        for project in all.as_array_mut().unwrap() {
            project["default"] = json!(default.is_some_and(|name| project["name"] == name));
        }
        json!({"project": all, "rule": [rule]})
    };
    let mut instance = place.instance(table(None));
    let both: &[&str] = &["alice"];
    for (default, of_hydro, of_fusion, asked, expected) in [
        (None, both, &[] as &[&str], None, Ok(&hydro)),
        (None, both, &[], Some("hydro"), Ok(&hydro)),
        (None, &[], both, None, Ok(&fusion)),
        (None, both, both, Some("hydro"), Ok(&hydro)),
        (None, both, both, Some("fusion"), Ok(&fusion)),
        (Some("fusion"), both, both, None, Ok(&fusion)),
        (Some("fusion"), both, &[], None, Ok(&hydro)),
        (
            None,
            both,
            both,
            None,
            Err("is in several: use -S project=NAME, one of hydro, fusion"),
        ),
        (None, &[], &[], None, Err("alice is in none")),
        (Some("fusion"), &[], &[], None, Err("alice is in none")),
        (None, &[], &[], Some("hydro"), Err("alice is not in project hydro")),
    ] {
        let what = format!("default {default:?}, hydro {of_hydro:?}, fusion {of_fusion:?}, asked {asked:?}");
        place.names(&[("hydro", 5000, of_hydro), ("fusion", 5001, of_fusion)]);
        place.reload(&mut instance, table(default));
        let mut submission = job(asked);
        submission["command"] = json!(PRINT);
        // At first the plugin may not know alice; later it does.
        for is_known in [false, true] {
            let request = instance.send("submit", submission.clone());
            let response = instance.response(request);
            match (expected, response["jobid"].as_str()) {
                (Ok(token), Some(id)) => {
                    instance.wait(id, "clean");
                    assert_eq!(instance.stdout(id).trim_end(), token, "{what}");
                }
                (Err(says), Some(id)) if !is_known => {
                    let text = instance.fatal(id);
                    assert!(text.contains(says), "{what}: {text}");
                }
                (Err(says), None) => {
                    let text = response["error"].as_str().unwrap();
                    assert!(text.contains(says), "{what}: {text}");
                }
                _ => panic!("{what}: {response}"),
            }
        }
    }
    // A rule without a project also serves users who are in no project.
    place.names(&[]);
    let rule = place.site.file_rule("token", &hydro);
    place.reload(&mut instance, json!({"project": projects(), "rule": [rule]}));
    let id = instance.run(PRINT, job(None));
    assert_eq!(instance.stdout(&id).trim_end(), hydro);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn users_by_name_and_number_and_first_groups_count() {
    let place = Place::new();
    let mut instance = place.instance(json!({}));
    for (members, alice, bob) in [
        (json!({"users": ["alice"]}), true, false),
        (json!({"users": [BOB]}), false, true),
        (json!({"users": ["carol", "bob"]}), false, true),
        (json!({"groups": ["users"]}), true, false),
        (json!({"groups": [200]}), false, true),
        (
            json!({"groups": ["no-such-group"], "users": ["no-such-user"]}),
            false,
            false,
        ),
    ] {
        let mut project = members.clone();
        project["name"] = json!("hydro");
        place.reload(&mut instance, json!({"project": [project]}));
        for (uid, is_in) in [(me(), alice), (BOB, bob)] {
            instance.learn(uid);
            let request = instance.send("submit", held_job(uid, Some("hydro")));
            let response = instance.response(request);
            assert_eq!(response["ok"], is_in, "{members}, uid {uid}: {response}");
        }
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_condition_of_a_rule_is_about_the_project_that_the_job_is_in() {
    let place = Place::new();
    let token = jwt(json!({}));
    let path = place.site.write("token.jwt", 0o600, &token);
    let rule = json!({"project": "hydro", "source": "file", "path": path});
    let mut instance = place.instance(json!({"project": projects(), "rule": [rule]}));
    let print = ["sh", "-c", "echo ${DW_WORKFLOW_TOKEN-unset}"];
    for (groups, expected) in [(["hydro"], &*token), (["fusion"], "unset")] {
        place.names(&[(groups[0], 5000, &["alice"])]);
        place.reload(&mut instance, json!({"project": projects(), "rule": [rule]}));
        // The job requests none: first before the plugin knows alice, then afterwards.
        for _ in 0..2 {
            let id = instance.run(&print, job(None));
            assert_eq!(instance.stdout(&id).trim_end(), expected);
        }
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn an_invalid_name_is_rejected_and_null_requests_nothing() {
    let place = Place::new();
    let mut instance = place.instance(json!({"project": projects()}));
    for bad in [json!(5), json!(["hydro"]), json!({"name": "hydro"}), json!(true)] {
        let mut submission = held_job(me(), None);
        submission["attributes"]["system"]["project"] = bad;
        let text = instance.error("submit", submission);
        assert!(text.contains("must be a string"), "{text}");
    }
    let mut submission = held_job(me(), None);
    submission["attributes"]["system"]["project"] = Value::Null;
    instance.ok("submit", submission);
    // Without projects, the attribute has no meaning.
    place.reload(&mut instance, json!({}));
    instance.submit_held(me(), Some("whatever"));
    instance.shutdown();
}

// A slow or missing name service

#[needs(munged)]
#[test]
fn a_job_of_an_unknown_user_is_held_and_other_jobs_do_not_wait() {
    let place = Place::new();
    let (rule, [hydro, _]) = place.token_of_project();
    place.names(&[("hydro", 5000, &["alice"])]);
    place.hang();
    let mut instance = place.instance(json!({"project": projects(), "rule": [rule]}));
    let good = instance.submit(PRINT, job(Some("hydro")));
    let bad = instance.submit(PRINT, job(Some("fusion")));
    let other = instance.submit_held(BOB, Some("hydro"));
    place.is_asked(me());
    place.is_asked(BOB);
    for job in [&good, &bad, &other] {
        instance.wait(job, "dependency-add");
        assert_eq!(instance.dependencies(job), json!([HELD]));
    }
    assert_eq!(instance.counter("held"), 3);
    // Jobs without a project proceed meanwhile, and so do canceled jobs.
    let free = instance.run(&["true"], json!({}));
    assert_eq!(instance.contexts(&free, "exception"), [json!(null); 0]);
    let away = instance.submit_held(BOB, Some("hydro"));
    instance.wait(&away, "dependency-add");
    instance.cancel(&away);
    assert_eq!(instance.counter("held"), 3);

    place.answer();
    instance.wait(&good, "clean");
    assert_eq!(instance.stdout(&good).trim_end(), hydro);
    assert_eq!(
        instance.contexts(&good, "dependency-remove"),
        [json!({"description": HELD})]
    );
    let text = instance.fatal(&bad);
    assert_eq!(text, "alice is not in project fusion: it requires group fusion");
    assert_eq!(
        instance.fatal(&other),
        "bob is not in project hydro: it requires group hydro"
    );
    assert_eq!(instance.counter("held"), 0);
    // The plugin knows the user now.
    assert_eq!(instance.error("submit", held_job(me(), Some("fusion"))), text);
    instance.shutdown();
}

/// The number of jobs that wait for one user, and the number that the plugin processes at once: its TURN.
const JOBS: usize = 640;
const AT_ONCE: u64 = 16;

/// Returns the number of reactor turns that the plugin used since the counters were reset.
fn turns(instance: &mut Instance) -> u64 {
    let stats = instance.ok("stats", json!({}));
    ["watcher", "timer"]
        .iter()
        .filter_map(|topic| stats["topics"][topic]["count"].as_u64())
        .sum()
}

#[needs(munged)]
#[test]
fn many_deliveries_that_wait_for_one_user_proceed_in_batches() {
    let place = Place::new();
    let path = place.site.write("token.jwt", 0o600, jwt(json!({})));
    let rule = json!({"attribute": "system.token", "source": "file", "path": path});
    place.hang();
    let mut instance = place.instance(json!({"project": projects(), "rule": [rule]}));
    let mut more = job(None);
    more["command"] = json!(["true"]);
    let requests: Vec<_> = (0..JOBS).map(|_| instance.send("submit", more.clone())).collect();
    for request in requests {
        assert_eq!(instance.response(request)["ok"], true);
    }
    until("all are in flight", || instance.counter("in-flight") == JOBS as u64);
    instance.ok("stats", json!({"reset": true}));
    // The jobs fail, so no results arrive, which would have turns of their own.
    place.site.write("names.fail", 0o600, "");
    place.answer();
    until("all have failed", || instance.counter("failed") == JOBS as u64);
    let turns = turns(&mut instance);
    assert!(
        turns >= JOBS as u64 / AT_ONCE,
        "{JOBS} deliveries failed in {turns} turns"
    );
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn many_held_jobs_proceed_in_batches() {
    let place = Place::new();
    place.names(&[("hydro", 5000, &["alice"])]);
    place.hang();
    let mut instance = place.instance(json!({"project": projects()}));
    let requests: Vec<_> = (0..JOBS)
        .map(|_| instance.send("submit", held_job(me(), Some("hydro"))))
        .collect();
    for request in requests {
        assert_eq!(instance.response(request)["ok"], true);
    }
    until("all are held", || instance.counter("held") == JOBS as u64);
    instance.ok("stats", json!({"reset": true}));
    place.answer();
    until("none is held", || instance.counter("held") == 0);
    let turns = turns(&mut instance);
    assert!(turns >= JOBS as u64 / AT_ONCE, "{JOBS} jobs went on in {turns} turns");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_name_service_that_hangs_for_good_fails_the_job_in_time() {
    let place = Place::new();
    place.names(&[("hydro", 5000, &["alice"])]);
    place.hang();
    let mut instance = place.instance(json!({"project": projects(), "timeout": "1s"}));
    let id = instance.submit_held(me(), Some("hydro"));
    let text = instance.fatal(&id);
    assert!(text.contains("could not be found out in time"), "{text}");
    instance.ok("wait-log", json!({"text": "is the name service up?"}));
    place.answer();
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_hung_look_up_of_a_user_delays_no_other_user_and_blocks_one_thread() {
    let place = Place::new();
    let token = jwt(json!({}));
    let path = place.site.write("token.jwt", 0o600, &token);
    let rule = json!({"attribute": "system.token", "source": "file", "path": path});
    let table = json!({"project": projects(), "rule": [rule]});
    place.names(&[("hydro", 5000, &["alice"])]);
    let mut instance = place.instance(table.clone());
    instance.learn(me());
    place.forget();
    place.hang();
    // The jobs request no project, and none is required, so they are not held. There are more of them than may be in
    // flight at once.
    let submissions: Vec<_> = (0..40)
        .map(|_| {
            let mut more = job(None);
            more["userid"] = json!(BOB);
            more["command"] = json!(["true"]);
            instance.ok("submit", more)["jobid"].as_str().unwrap().to_owned()
        })
        .collect();
    for id in &submissions {
        instance.wait(id, "prolog-start");
    }
    place.is_asked(BOB);
    let id = instance.run(PRINT, job(Some("hydro")));
    assert_eq!(instance.stdout(&id).trim_end(), token);
    assert_eq!(instance.counter("in-flight"), 40);
    let asked = fs::read_to_string(place.site.at("names.asked")).unwrap();
    let of_bob = asked.lines().filter(|line| *line == BOB.to_string()).count();
    assert_eq!(of_bob, 1, "concurrent hanging look-ups of a user");
    // The plugin does not wait for canceled jobs. The others proceed once bob is known, and so do those that begin with
    // another configuration.
    let (canceled, others) = submissions.split_at(20);
    for id in canceled {
        instance.ok("cancel", json!({"jobid": id}));
    }
    assert_eq!(instance.counter("in-flight"), 20);
    instance.ok("config-reload", json!({"path": place.site.path("flux.toml")}));
    let mut more = job(None);
    more["userid"] = json!(BOB);
    more["command"] = json!(["true"]);
    let last = instance.ok("submit", more)["jobid"].as_str().unwrap().to_owned();
    instance.wait(&last, "prolog-start");
    place.answer();
    for id in others.iter().chain([&last]) {
        instance.wait(id, "prolog-finish");
        assert_eq!(instance.contexts(id, "prolog-finish")[0]["status"], 0);
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_name_service_that_fails_is_asked_again() {
    let place = Place::new();
    place.names(&[("hydro", 5000, &["alice"])]);
    let failing = place.site.write("names.fail", 0o600, "");
    let mut instance = place.instance(json!({"project": projects()}));
    let id = instance.submit_held(me(), Some("hydro"));
    instance.ok("wait-log", json!({"text": "could not be looked up"}));
    assert_eq!(instance.dependencies(&id), json!([HELD]));
    fs::remove_file(failing).unwrap();
    instance.wait(&id, "depend");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn users_of_the_projects_are_looked_up_in_advance() {
    let place = Place::new();
    place.names(&[("hydro", 5000, &["alice"]), ("fusion", 5001, &["bob"])]);
    let mut instance = place.instance(json!({"project": projects()}));
    until("both are known", || instance.counter("known-users") == 2);
    for (uid, project) in [(me(), "fusion"), (BOB, "hydro")] {
        let text = instance.error("submit", held_job(uid, Some(project)));
        assert!(text.contains(&format!("is not in project {project}")), "{text}");
    }
    instance.shutdown();
}

// Updates of pending jobs

#[needs(munged)]
#[test]
fn a_pending_job_is_updated_to_the_projects_of_its_owner_only() {
    let place = Place::new();
    let (rule, [_, fusion]) = place.token_of_project();
    let names = [
        ("hydro", 5000, &["alice", "bob"] as &[&str]),
        ("fusion", 5001, &["alice"]),
    ];
    place.names(&names);
    let mut instance = place.instance(json!({"project": projects(), "rule": [rule]}));
    until("both are known", || instance.counter("known-users") == 2);
    let project = |name: &str| json!({"attributes.system.project": name});
    let alices = instance.submit_held(me(), Some("hydro"));
    let bobs = instance.submit_held(BOB, None);
    let not_in = "bob is not in project fusion: it requires group fusion";
    // Whoever requests it: the job owner, or the instance owner on their behalf.
    for who in [BOB, me()] {
        assert_eq!(instance.update(&bobs, who, project("fusion")), Err(not_in.to_owned()));
        assert_eq!(
            instance.update(&bobs, who, project("astro")),
            Err("there is no project `astro`".to_owned())
        );
        // Together with an update that would be accepted and valid by itself.
        let both = json!({"attributes.system.duration": 60.0, "attributes.system.project": "fusion"});
        assert_eq!(instance.update(&bobs, who, both), Err(not_in.to_owned()));
        let malformed = instance.update(&bobs, who, json!({"attributes.system.project": {"a": 1}}));
        assert!(malformed.unwrap_err().contains("must be a string"));
        let whole = instance.update(&bobs, who, json!({"attributes.system": {"project": "fusion"}}));
        assert_eq!(whole, Err("update of attributes.system not supported".to_owned()));
    }
    assert_eq!(instance.contexts(&bobs, "jobspec-update"), [json!(null); 0]);
    assert_eq!(instance.update(&bobs, BOB, project("hydro")), Ok(()));
    assert_eq!(
        instance.update(&bobs, BOB, json!({"attributes.system.queue": "q"})),
        Ok(())
    );
    assert_eq!(
        instance.update(&bobs, BOB, json!({"attributes.system.duration": 60.0})),
        Ok(())
    );

    assert_eq!(instance.update(&alices, me(), project("fusion")), Ok(()));
    instance.release(&alices);
    instance.wait(&alices, "clean");
    assert_eq!(instance.contexts(&alices, "exception"), [json!(null); 0]);
    let id = instance.submit(PRINT, job(Some("hydro")));
    instance.wait(&id, "clean");
    let running = instance.submit(&["sleep", "600"], job(Some("hydro")));
    instance.wait(&running, "start");
    let text = instance.update(&running, me(), project("fusion")).unwrap_err();
    assert!(text.contains("cannot be changed any more"), "{text}");
    assert_eq!(
        instance.update(&running, me(), json!({"attributes.system.duration": 900.0})),
        Ok(())
    );
    instance.cancel(&running);

    // The current jobspec counts, with its updates.
    let mut printing = held_job(me(), Some("hydro"));
    printing["command"] = json!(PRINT);
    let id = instance.ok("submit", printing)["jobid"].as_str().unwrap().to_owned();
    assert_eq!(instance.update(&id, me(), project("fusion")), Ok(()));
    instance.release(&id);
    instance.wait(&id, "clean");
    assert_eq!(instance.stdout(&id).trim_end(), fusion);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn the_consent_of_another_plugin_does_not_bypass_the_check() {
    let place = Place::new();
    place.names(&[("hydro", 5000, &["alice"])]);
    let mut instance = place.instance(json!({"project": projects()}));
    let out = json!({
        // One plugin skips validation, and one changes more than requested.
        "job.update.attributes.system.project": {"validated": 1},
        "job.update.attributes.system.bank": {"updates": {"attributes.system.project": "fusion"}},
        "job.update.attributes.system.queue": {"updates": {"attributes.system": {"project": "fusion"}}},
    });
    let puppet = plugin(&place.site.at("job-manager"), "puppet.c");
    instance.ok("load", json!({"path": puppet, "conf": {"out": out}}));
    until("alice is known", || instance.counter("known-users") > 0);
    let id = instance.submit_held(me(), Some("hydro"));
    for key in ["project", "bank", "queue"] {
        let update = json!({format!("attributes.system.{key}"): "fusion"});
        let text = instance.update(&id, me(), update);
        let not_in = "alice is not in project fusion: it requires group fusion";
        assert_eq!(text, Err(not_in.to_owned()), "{key}");
    }
    assert_eq!(instance.contexts(&id, "jobspec-update"), [json!(null); 0]);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn an_update_for_an_unknown_user_can_be_retried() {
    let place = Place::new();
    let mut instance = place.instance(json!({"project": projects()}));
    let id = instance.submit_held(me(), None);
    place.names(&[("hydro", 5000, &["alice"])]);
    place.hang();
    place.reload(&mut instance, json!({"project": projects()}));
    let project = json!({"attributes.system.project": "hydro"});
    let text = instance.update(&id, me(), project.clone()).unwrap_err();
    assert!(text.contains("try again in a moment"), "{text}");
    // Other attributes do not concern this plugin.
    assert_eq!(
        instance.update(&id, me(), json!({"attributes.system.queue": "q"})),
        Ok(())
    );
    place.is_asked(me());
    place.answer();
    until("it is known", || instance.update(&id, me(), project.clone()).is_ok());
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn without_projects_the_plugin_consents_to_no_update() {
    let place = Place::new();
    place.names(&[("hydro", 5000, &["alice"])]);
    let mut instance = place.instance(json!({}));
    let project = json!({"attributes.system.project": "hydro"});
    let id = instance.submit_held(me(), None);
    let unsupported = Err("update of attributes.system.project not supported".to_owned());
    assert_eq!(instance.update(&id, me(), project.clone()), unsupported);
    place.reload(&mut instance, json!({"project": projects()}));
    until("alice is known", || instance.counter("known-users") > 0);
    assert_eq!(instance.update(&id, me(), project.clone()), Ok(()));
    place.reload(&mut instance, json!({}));
    assert_eq!(instance.update(&id, me(), project.clone()), unsupported);
    place.reload(&mut instance, json!({"project": projects()}));
    until("alice is known", || instance.counter("known-users") > 0);
    assert_eq!(instance.update(&id, me(), project), Ok(()));
    instance.shutdown();
}

// The membership at submission does not count for ever

#[needs(munged)]
#[test]
fn a_user_who_left_the_project_before_the_job_starts_receives_no_token() {
    let place = Place::new();
    let (rule, _) = place.token_of_project();
    let table = json!({"project": projects(), "rule": [rule]});
    place.names(&[("hydro", 5000, &["alice"])]);
    let mut instance = place.instance(table.clone());
    let left = instance.submit_held(me(), Some("hydro"));
    instance.wait(&left, "depend");
    // Another plugin or the instance owner updates a job without any checks.
    let updated = instance.submit_held(me(), Some("hydro"));
    instance.wait(&updated, "depend");
    let context = json!({"attributes.system.project": "fusion"});
    instance.ok(
        "post",
        json!({"jobid": updated, "name": "jobspec-update", "context": context}),
    );
    instance.release(&updated);
    let note = instance.undelivered(&updated);
    assert!(
        note.contains("alice is not in project fusion: it requires group fusion"),
        "{note}"
    );
    let context = json!({"attributes.system.project": 1});
    let malformed = instance.submit_held(me(), Some("hydro"));
    instance.ok(
        "post",
        json!({"jobid": malformed, "name": "jobspec-update", "context": context}),
    );
    instance.release(&malformed);
    let note = instance.undelivered(&malformed);
    assert!(note.contains("must be a string"), "{note}");

    place.names(&[]);
    place.reload(&mut instance, table);
    instance.release(&left);
    let note = instance.undelivered(&left);
    assert!(note.contains("alice is not in project hydro"), "{note}");
    assert_eq!(instance.counter("delivered"), 0);
    instance.shutdown();
}

// Removed, loaded again, restarted

#[needs(munged)]
#[test]
fn a_held_job_stays_held_after_a_reload_and_a_restart() {
    let place = Place::new();
    let (rule, [hydro, _]) = place.token_of_project();
    place.names(&[("hydro", 5000, &["alice"])]);
    place.hang();
    let mut instance = place.instance(json!({"project": projects(), "rule": [rule]}));
    let [good, bad] = ["hydro", "fusion"].map(|project| instance.submit(PRINT, job(Some(project))));
    for job in [&good, &bad] {
        instance.wait(job, "dependency-add");
    }
    place.is_asked(me());
    instance.ok("remove", json!({"name": "workflow-token.so"}));
    assert_eq!(instance.dependencies(&good), json!([HELD]));
    instance.ok("load", json!({"path": place.site.jobtap()}));
    // The job is still held, now by the new plugin.
    assert_eq!(instance.counter("held"), 2);
    assert_eq!(instance.dependencies(&good), json!([HELD]));
    instance.kill();

    let mut instance = place.start();
    until("both are held again", || instance.counter("held") == 2);
    place.answer();
    instance.wait(&good, "clean");
    assert_eq!(instance.stdout(&good).trim_end(), hydro);
    assert_eq!(instance.contexts(&good, "dependency-add").len(), 1);
    assert!(instance.fatal(&bad).contains("alice is not in project fusion"));

    // A job that was released earlier is not held again, whatever it waits for.
    let id = instance.submit_held(me(), Some("hydro"));
    instance.wait(&id, "depend");
    instance.ok("remove", json!({"name": "workflow-token.so"}));
    instance.ok("load", json!({"path": place.site.jobtap()}));
    assert_eq!(instance.counter("held"), 0);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_held_job_is_released_when_the_projects_are_removed() {
    let place = Place::new();
    place.names(&[("hydro", 5000, &["alice"])]);
    place.hang();
    let mut instance = place.instance(json!({"project": projects()}));
    let id = instance.submit_held(me(), Some("hydro"));
    instance.wait(&id, "dependency-add");
    place.is_asked(me());
    place.reload(&mut instance, json!({}));
    instance.wait(&id, "depend");
    place.answer();
    instance.shutdown();
}
