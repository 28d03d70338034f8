// SPDX-License-Identifier: MIT OR Apache-2.0

//! Projects by the claims of identity tokens, on the simulator: which tokens are accepted.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::support::{
    names::{Asking, BOB, Place, held_job, job},
    plugins::{PRINT, jwt, me, until},
    simulator::{Instance, built},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nix::{sys::stat::Mode, unistd::mkfifo};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::{Algorithm, SigningKey};

const LOGIN: &str = "https://login.example.org";

/// A site with a login service that signs identity tokens.
struct Login {
    place: Place,
    key: SigningKey,
}

impl Login {
    fn new() -> Login {
        let place = Place::new();
        let key = SigningKey::generate(Algorithm::EdDsa);
        let public = json!({"keys": [key.verifying_key().to_jwk().expect("it has a public part")]});
        place.site.write("login.jwks", 0o644, public.to_string());
        fs::create_dir(place.site.at("identity")).expect("a directory");
        Login { place, key }
    }

    /// Returns a table with one project by group, and one by claim.
    fn table(&self, more: Value) -> Value {
        let mut table = json!({
            "trust": {"login": {
                "issuer": LOGIN,
                "keys": self.place.site.path("login.jwks"),
                "audience": "cluster",
                "leeway": "1ms",
            }},
            "identity": {
                "token": self.place.site.path("identity/{uid}.jwt"),
                "trust": "login",
                "claim": "groups",
            },
            "project": [
                {"name": "hydro", "groups": ["hydro"]},
                {"name": "fusion", "claims": ["fusion-team"]},
            ],
        });
        for (key, value) in more.as_object().unwrap() {
            table[key] = value.clone();
        }
        table
    }

    /// Returns the claims of a valid token of alice, with some replaced.
    fn claims(&self, more: Value) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let mut claims = json!({
            "iss": LOGIN, "sub": "alice", "aud": "cluster", "exp": now + 3600, "groups": ["users", "fusion-team"],
        });
        for (name, value) in more.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims
    }

    fn token(&self, more: Value) -> String {
        sign(&self.key, &self.claims(more))
    }

    /// Writes a file to the path where the plugin looks for the identity token of a user.
    fn place(&self, uid: u32, mode: u32, content: &str) -> PathBuf {
        let path = self.place.site.at(&format!("identity/{uid}.jwt"));
        let _ = fs::remove_file(&path);
        fs::write(&path, content).expect("a file is written");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its mode is set");
        path
    }
}

fn sign(key: &SigningKey, claims: &Value) -> String {
    let token = key.sign(&[("typ", "JWT")], claims.to_string().as_bytes());
    token.expose_secret().to_owned()
}

fn past(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    now.as_secs() - seconds
}

/// Returns the note for a user who requests a project of which they are not a member, at submission or later.
#[track_caller]
fn refusal(instance: &mut Instance, submission: Value) -> String {
    let request = instance.send("submit", submission);
    let response = instance.response(request);
    match response["jobid"].as_str() {
        Some(id) => instance.fatal(id),
        None => response["error"].as_str().unwrap().to_owned(),
    }
}

#[needs(munged)]
#[test]
fn a_user_with_the_claim_in_an_identity_token_is_in_the_project() {
    let login = Login::new();
    let (rule, [_, fusion]) = login.place.token_of_project();
    let table = login.table(json!({"rule": [rule]}));
    login.place(me(), 0o600, &login.token(json!({})));
    let mut instance = login.place.instance(table.clone());
    for claims in [
        json!({}),
        json!({"groups": "fusion-team"}),
        json!({"aud": ["other", "cluster"]}),
    ] {
        login.place(me(), 0o600, &(login.token(claims.clone()) + "\n"));
        login.place.reload(&mut instance, table.clone());
        for asked in [Some("fusion"), None] {
            let id = instance.run(PRINT, job(asked));
            assert_eq!(instance.stdout(&id).trim_end(), fusion, "{claims}");
        }
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn every_other_token_is_rejected_with_the_reason() {
    let login = Login::new();
    let other_key = SigningKey::generate(Algorithm::EdDsa);
    let good = login.token(json!({}));
    let [header, payload, signature] = good.split('.').collect::<Vec<_>>()[..] else {
        panic!("a token has three parts");
    };
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned = format!("{}.{payload}.", encode(&json!({"alg": "none", "typ": "JWT"})));
    let bob = login.token(json!({"sub": "bob"}));
    let [_, bobs, _] = bob.split('.').collect::<Vec<_>>()[..] else {
        panic!("a token has three parts");
    };
    let cases = [
        (
            "expired",
            login.token(json!({"exp": past(60)})),
            0o600,
            "it has expired",
        ),
        (
            "not yet",
            login.token(json!({"nbf": past(0) + 3600})),
            0o600,
            "it is not valid yet",
        ),
        (
            "for another",
            login.token(json!({"aud": "other"})),
            0o600,
            "it is for another service",
        ),
        (
            "of another issuer",
            login.token(json!({"iss": "https://x"})),
            0o600,
            "it is of another issuer",
        ),
        (
            "without an end",
            login.token(json!({"exp": null})),
            0o600,
            "it was refused",
        ),
        (
            "of another key",
            sign(&other_key, &login.claims(json!({}))),
            0o600,
            "its key is not known",
        ),
        (
            "altered",
            format!("{header}.{bobs}.{signature}"),
            0o600,
            "its signature is wrong",
        ),
        ("unsigned", unsigned, 0o600, "it was refused"),
        (
            "of another user",
            bob.clone(),
            0o600,
            "it is the token of another user (claim sub)",
        ),
        ("readable by the group", good.clone(), 0o640, "its file is not safe"),
        ("readable by others", good.clone(), 0o604, "its file is not safe"),
        ("writable by others", good.clone(), 0o602, "its file is not safe"),
        ("no token", "canary".to_owned(), 0o600, "it was refused"),
        ("empty", String::new(), 0o600, "it was refused"),
    ];
    login.place.names(&[("hydro", 5000, &["alice"])]);
    let (rule, [hydro, _]) = login.place.token_of_project();
    let table = login.table(json!({"rule": [rule]}));
    let mut instance = login.place.instance(table.clone());
    let not_in = "alice is not in project fusion: it requires fusion-team in claim groups of the identity token";
    for (what, token, mode, why) in &cases {
        login.place(me(), *mode, token);
        login.place.reload(&mut instance, table.clone());
        for _ in 0..2 {
            let text = refusal(&mut instance, held_job(me(), Some("fusion")));
            assert_eq!(text, format!("{not_in} ({why})"), "{what}");
        }
        // The groups still count.
        let id = instance.run(PRINT, job(Some("hydro")));
        assert_eq!(instance.stdout(&id).trim_end(), hydro, "{what}");
    }

    // Without a token, the note has no reason. The plugin reads no token that is elsewhere or belongs to others.
    let path = login.place(me(), 0o600, &good);
    fs::remove_file(&path).unwrap();
    let elsewhere = login.place.site.write("elsewhere.jwt", 0o600, &good);
    for (link, why) in [(false, ""), (true, " (its file is not safe)")] {
        if link {
            symlink(&elsewhere, &path).unwrap();
        }
        login.place.reload(&mut instance, table.clone());
        let text = refusal(&mut instance, held_job(me(), Some("fusion")));
        assert_eq!(text, format!("{not_in}{why}"));
    }
    // A token with other values is valid but grants nothing. If the claim is missing, the note says so.
    for (groups, why) in [
        (json!(["fusion", "fusion-team2"]), ""),
        (json!([["fusion-team"]]), ""),
        (json!("a fusion-team"), ""),
        (json!(null), " (its claim groups is neither a string nor an array)"),
        (
            json!({"fusion-team": true}),
            " (its claim groups is neither a string nor an array)",
        ),
    ] {
        login.place(me(), 0o600, &login.token(json!({"groups": groups})));
        login.place.reload(&mut instance, table.clone());
        let text = refusal(&mut instance, held_job(me(), Some("fusion")));
        assert_eq!(text, format!("{not_in}{why}"), "{groups}");
    }

    // The operator learns more, but no secrets.
    let log = instance.dmesg().join("\n");
    assert!(
        log.contains("the identity token of alice is not used: the token expired"),
        "{log}"
    );
    assert!(log.contains("use chmod 0600"), "{log}");
    for secret in [payload, signature, "canary"] {
        assert!(!log.contains(secret), "{log}");
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn the_token_of_one_user_does_not_help_another() {
    let login = Login::new();
    let alices = login.token(json!({}));
    login.place(me(), 0o600, &alices);
    login.place(BOB, 0o600, &alices);
    let mut instance = login.place.instance(login.table(json!({})));
    let text = refusal(&mut instance, held_job(BOB, Some("fusion")));
    assert!(
        text.starts_with("bob is not in project fusion") && text.contains("of another user"),
        "{text}"
    );
    instance.learn(me());
    instance.submit_held(me(), Some("fusion"));
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn the_claim_that_names_the_user_can_be_another() {
    let login = Login::new();
    let mut table = login.table(json!({}));
    table["identity"]["user"] = json!("preferred_username");
    let claims = json!({"sub": "4711", "preferred_username": "alice"});
    login.place(me(), 0o600, &login.token(claims));
    let mut instance = login.place.instance(table.clone());
    let id = instance.submit_held(me(), Some("fusion"));
    instance.wait(&id, "depend");
    login.place(me(), 0o600, &login.token(json!({})));
    login.place.reload(&mut instance, table);
    let text = refusal(&mut instance, held_job(me(), Some("fusion")));
    assert!(text.contains("it has no claim preferred_username"), "{text}");
    instance.shutdown();
}

/// The roles of Keycloak are nested in a claim.
#[needs(munged)]
#[test]
fn the_claim_can_be_a_member_and_a_missing_one_is_named() {
    let login = Login::new();
    let (rule, [_, fusion]) = login.place.token_of_project();
    let mut table = login.table(json!({"rule": [rule]}));
    table["identity"]["claim"] = json!("realm_access.roles");
    let roles = json!({"realm_access": {"roles": ["offline_access", "fusion-team"]}});
    login.place(me(), 0o600, &login.token(roles));
    let mut instance = login.place.instance(table.clone());
    let id = instance.run(PRINT, job(Some("fusion")));
    assert_eq!(instance.stdout(&id).trim_end(), fusion);
    for without in [
        json!({}),
        json!({"realm_access": {}}),
        json!({"roles": ["fusion-team"]}),
    ] {
        login.place(me(), 0o600, &login.token(without.clone()));
        login.place.reload(&mut instance, table.clone());
        let text = refusal(&mut instance, held_job(me(), Some("fusion")));
        assert!(
            text.ends_with("(it has no claim realm_access.roles)"),
            "{without}: {text}"
        );
    }
    let log = instance.dmesg().join("\n");
    assert!(
        log.contains("the identity token of alice is not used: it has no claim realm_access.roles"),
        "{log}"
    );
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_token_that_has_expired_when_the_job_starts_is_ignored() {
    let login = Login::new();
    let (mut rule, _) = login.place.token_of_project();
    // The job has no time limit.
    rule["on-shortfall"] = json!("ignore");
    let table = login.table(json!({"rule": [rule]}));
    login.place(me(), 0o600, &login.token(json!({})));
    let mut instance = login.place.instance(table.clone());
    let id = instance.submit_held(me(), Some("fusion"));
    instance.wait(&id, "depend");
    login.place(me(), 0o600, &login.token(json!({"exp": past(1)})));
    login.place.reload(&mut instance, table);
    instance.release(&id);
    let note = instance.undelivered(&id);
    assert!(
        note.contains("alice is not in project fusion") && note.contains("it has expired"),
        "{note}"
    );
    let cause = instance.cause(&id);
    assert!(cause.contains("the identity token: the token expired"), "{cause}");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn claims_end_with_their_token_however_fresh_they_are() {
    let login = Login::new();
    // The token expires soon, but not before its first use.
    let mut instance = login.place.instance(login.table(json!({})));
    until("a token is used before it ends", || {
        login.place(me(), 0o600, &login.token(json!({"exp": past(0) + 3})));
        login.place.reload(&mut instance, login.table(json!({})));
        let id = instance.submit_held(me(), Some("fusion"));
        let response = instance.send("wait", json!({"jobid": id, "event": "depend"}));
        instance.response(response)["ok"] == true
    });
    until("it has ended", || {
        let request = instance.send("submit", held_job(me(), Some("fusion")));
        let response = instance.response(request);
        response["error"]
            .as_str()
            .is_some_and(|text| text.contains("it has expired"))
    });
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_user_whose_membership_ends_while_the_job_waits_receives_the_token_of_the_next_rule() {
    let login = Login::new();
    let site = &login.place.site;
    let (first, second) = (jwt(json!({})), jwt(json!({})));
    site.write("first.jwt", 0o600, &first);
    mkfifo(&site.at("go"), Mode::S_IRWXU).expect("a FIFO");
    let script = "touch started; read line <go; cat first.jwt";
    let mut of_members = site.command_rule("member", script, &[]);
    of_members["project"] = json!("fusion");
    of_members.as_object_mut().expect("a rule").remove("attribute");
    let of_all = json!({"source": "file", "path": site.write("second.jwt", 0o600, &second)});
    let table = login.table(json!({"max-parallel": 1, "rule": [of_members, of_all]}));
    let mut instance = login.place.instance(table.clone());
    let mut one = String::new();
    until("a job begins before the token ends", || {
        login.place(me(), 0o600, &login.token(json!({"exp": past(0) + 3})));
        login.place.reload(&mut instance, table.clone());
        one = instance.submit(PRINT, json!({}));
        instance.wait(&one, "prolog-start");
        until("the job runs", || {
            site.at("started").exists() || instance.events(&one).contains(&"prolog-finish".to_owned())
        });
        site.at("started").exists()
    });
    let two = instance.submit(PRINT, json!({}));
    instance.wait(&two, "prolog-start");
    until("the token has ended", || {
        let request = instance.send("submit", held_job(me(), Some("fusion")));
        let response = instance.response(request);
        response["error"]
            .as_str()
            .is_some_and(|text| text.contains("it has expired"))
    });
    fs::write(site.at("go"), "\n").expect("the FIFO");
    for (id, token) in [(one, first), (two, second)] {
        instance.wait(&id, "clean");
        assert_eq!(instance.stdout(&id).trim_end(), token);
    }
    instance.shutdown();
}

// Minted tokens

fn keygen(login: &Login) -> String {
    let keys = login.place.site.path("keys");
    let made = Command::new(built("flux-workflow-token"))
        .args(["keygen", &keys])
        .output();
    assert!(made.expect("the command is run").status.success());
    keys
}

#[needs(munged)]
#[test]
fn a_workspace_template_grants_no_membership_in_a_project() {
    let login = Login::new();
    let keys = keygen(&login);
    login.place.names(&[("hydro", 5000, &["alice"])]);
    let table = |workspace: Value| {
        let mut rule = json!({"attribute": "system.token", "source": "issuer"});
        if !workspace.is_null() {
            rule["workspace"] = workspace;
        }
        let issuer = json!({"keys": keys, "name": "https://hpc.example.org", "audience": "service"});
        let mut table = login.table(json!({"rule": [rule], "issuer": issuer}));
        // A project with the name of a user who is not a member.
        let others = json!({"name": "alice", "users": ["bob"]});
        table["project"].as_array_mut().unwrap().push(others);
        table
    };
    let mut instance = login.place.instance(table(Value::Null));
    for (workspace, expected) in [
        (Value::Null, Ok("hydro")),
        (json!("{project}"), Ok("hydro")),
        (json!("hydro"), Ok("hydro")),
        (json!("home-{user}"), Ok("home-alice")),
        (json!("{user}"), Err("alice is not in project alice")),
        (json!("fusion"), Err("alice is not in project fusion")),
    ] {
        login.place.reload(&mut instance, table(workspace.clone()));
        let id = instance.submit(PRINT, job(None));
        match expected {
            Ok(name) => {
                instance.wait(&id, "clean");
                let token = instance.stdout(&id);
                let payload = token.split('.').nth(1).expect("a token has a payload");
                let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
                assert_eq!(claims["workspace"], name, "{workspace}");
                assert_eq!((&claims["sub"], &claims["scope"]), (&json!("alice"), &json!("session")));
            }
            Err(says) => {
                let note = instance.undelivered(&id);
                assert!(note.contains(says), "{workspace}: {note}");
            }
        }
    }
    instance.shutdown();
}

/// A job without a project may belong to one by its owner's identity token. An unusable token stops the job, which
/// would otherwise start without a token. After a repair, the next job receives its token.
#[needs(munged)]
#[test]
fn unusable_token() {
    let login = Login::new();
    let rule = json!({
        "attribute": "system.token", "project": "fusion", "source": "file", "path": login.place.site.path("fusion.jwt"),
    });
    let (_, [_, fusion]) = login.place.token_of_project();
    let good = login.token(json!({}));
    login.place(me(), 0o644, &good);
    let mut instance = login.place.instance(login.table(json!({"rule": [rule]})));
    let id = instance.submit(PRINT, job(None));
    let note = instance.undelivered(&id);
    assert!(
        note.contains("[source-failed]") && note.contains("identity token"),
        "{note}"
    );
    let cause = instance.cause(&id);
    assert!(cause.contains("use chmod 0600"), "{cause}");
    login.place(me(), 0o600, &good);
    until("the repaired token counts", || {
        let id = instance.run(PRINT, job(None));
        let output = instance.stdout(&id);
        assert!(output.is_empty() || output.trim_end() == fusion);
        !output.is_empty()
    });
    instance.shutdown();
}

/// A rule for a group that the name service does not know stops the jobs that it may match, and no others.
#[needs(munged)]
#[test]
fn unknown_group() {
    let login = Login::new();
    let token = jwt(json!({}));
    let path = login.place.site.write("token.jwt", 0o600, &token);
    let of = |attribute: &str, more: Value| {
        let mut rule = json!({"attribute": attribute, "source": "file", "path": path});
        for (key, value) in more.as_object().unwrap() {
            rule[key] = value.clone();
        }
        rule
    };
    let rules = [
        of("system.other", json!({})),
        of("system.token", json!({"group": "misspelled"})),
    ];
    let mut instance = login.place.instance(json!({"rule": rules}));
    let id = instance.submit(PRINT, job(None));
    let note = instance.undelivered(&id);
    assert!(note.contains("[owner-unknown]"), "{note}");
    let cause = instance.cause(&id);
    assert!(
        cause.contains("group misspelled is not in the group database"),
        "{cause}"
    );
    let id = instance.run(PRINT, json!({"attributes": {"system": {"other": 1}}}));
    assert_eq!(instance.stdout(&id).trim_end(), token);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_user_whose_identity_token_ends_before_the_job_needs_it_is_warned_or_the_job_rejected() {
    let login = Login::new();
    let (mut rule, _) = login.place.token_of_project();
    login.place.names(&[("hydro", 5000, &["alice"])]);
    login.place(me(), 0o600, &login.token(json!({"exp": past(0) + 1800})));
    let mut instance = login.place.instance(login.table(json!({"rule": [rule]})));
    let asking = |project: &str, seconds: u64, more: Value| {
        let mut job = job(Some(project));
        job["attributes"]["system"]["duration"] = json!(seconds);
        job["attributes"]["system"]["dependencies"] = more;
        job
    };
    // The first job is held until its owner is known.
    let long = "token.default: your identity token for project fusion expires in 29m, and renewals need it, but this job \
                may run 2h: log in again first";
    for _ in 0..2 {
        let id = instance.run(PRINT, asking("fusion", 7200, json!([])));
        let told = instance.contexts(&id, "exception");
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((&told[0]["severity"], &told[0]["note"]), (&json!(4), &json!(long)));
    }
    // A short job no longer needs the identity token, and a member by group never does.
    for (project, seconds) in [("fusion", 600), ("hydro", 7200)] {
        let id = instance.run(PRINT, asking(project, seconds, json!([])));
        assert_eq!(instance.contexts(&id, "exception"), [json!(null); 0], "{project}");
    }

    rule["on-shortfall"] = json!("reject");
    login.place.reload(&mut instance, login.table(json!({"rule": [rule]})));
    let begin = json!([{"scheme": "begin-time", "value": format!("{}.0", past(0) + 3690)}]);
    let late = "token.default: your identity token for project fusion expires in 29m, and this job starts in 61m at the \
                earliest: log in again first";
    for (seconds, dependencies, says) in [(7200, json!([]), long), (7200, json!([]), long), (60, begin, late)] {
        let mut submission = asking("fusion", seconds, dependencies);
        submission["command"] = json!(["true"]);
        assert_eq!(refusal(&mut instance, submission), says);
    }
    let id = instance.run(PRINT, asking("fusion", 600, json!([])));
    assert_eq!(instance.contexts(&id, "exception"), [json!(null); 0]);
    instance.shutdown();
}
