// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tokens that the instance mints, and tokens that are verified before delivery, on the simulator. The command verifies
//! the token that a job finds in its environment.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use crate::support::{
    plugins::{PRINT, Site, decimal, jwt, matching, me, until},
    search::Search,
    simulator::{Instance, built},
};
use serde_json::{Value, json};

const ISSUER: &str = "https://hpc.example.org";

/// The result of a command: its status, standard output and standard error.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs the command with this standard input.
fn command(args: &[&str], stdin: &str) -> Ran {
    let mut child = Command::new(built("flux-workflow-token"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command is run");
    // The command may exit without reading it.
    let _ = child.stdin.take().expect("a pipe").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).expect("it prints text"),
        err: String::from_utf8(output.stderr).expect("it prints text"),
    }
}

/// Returns the output of a command, which must succeed.
#[track_caller]
fn ok(args: &[&str]) -> String {
    let ran = command(args, "");
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
    ran.out.trim_end().to_owned()
}

/// A site with a key directory.
struct Minting {
    site: Site,
    keys: String,
}

impl Minting {
    fn new(algorithm: &str) -> Self {
        let site = Site::new();
        let keys = site.path("keys");
        ok(&["keygen", &keys, "--algorithm", algorithm]);
        Self { site, keys }
    }

    /// Returns a table with a rule that mints for jobs with the attribute `system.mint`, and further rules.
    fn table(&self, mint: Value, more: Value) -> Value {
        let mut rule = json!({"attribute": "system.mint", "source": "issuer"});
        merge(&mut rule, &mint);
        let mut rules = vec![rule];
        rules.extend(more.as_array().into_iter().flatten().cloned());
        json!({
            "issuer": {"keys": self.keys, "name": ISSUER, "audience": "service"},
            "trust": {"own": {"keys": self.keys, "issuer": ISSUER, "audience": "service"}},
            "rule": rules,
        })
    }

    /// Returns the path of the private key, and the secret part of its content.
    fn private(&self) -> (String, String) {
        let files = ["signing", "hs256"].map(|name| fs::read_dir(self.site.at("keys").join(name)));
        let mut files = files.into_iter().flatten().flatten();
        let text = fs::read_to_string(files.next().unwrap().unwrap().path()).unwrap();
        // The start of a PEM file only identifies the type of the key.
        let mut secret: String = match serde_json::from_str::<Value>(&text) {
            Ok(jwk) => jwk["k"].as_str().unwrap().to_owned(),
            Err(_) => text.lines().filter(|line| !line.starts_with('-')).collect(),
        };
        if text.starts_with('-') {
            secret.drain(..20);
        }
        (text, secret)
    }

    fn instance(&self, mint: Value, more: Value) -> Instance {
        self.site.instance(self.table(mint, more))
    }

    /// Starts an instance that also verifies its tokens.
    fn verifying(&self) -> Instance {
        let mint = json!({"workspace": "hydro", "check": "verify", "trust": "own"});
        self.instance(mint, json!([]))
    }

    /// Returns the `kid` of the signing key.
    fn active(&self) -> String {
        let kid = fs::read_to_string(self.site.at("keys/active")).unwrap();
        kid.trim_end().to_owned()
    }

    /// Verifies a token with the command.
    fn verify(&self, token: &str) -> Ran {
        let all = [
            "verify",
            "--keys",
            &self.keys,
            "--issuer",
            ISSUER,
            "--audience",
            "service",
            "--json",
        ];
        command(&all, token)
    }

    /// Verifies a token, which must be valid, and returns the output.
    #[track_caller]
    fn claims(&self, token: &str) -> Value {
        let ran = self.verify(token);
        assert_eq!(ran.code, Some(0), "{}{}", ran.out, ran.err);
        serde_json::from_str(&ran.out).expect("it prints JSON")
    }

    /// Issues a token with the command, as another issuer would.
    fn issue(&self, more: &[&str]) -> String {
        let all = ["issue", "--keys", &self.keys, "--sub", "alice", "--issuer", ISSUER];
        ok(&[&all[..], more].concat())
    }
}

fn merge(into: &mut Value, from: &Value) {
    let members = from.as_object().expect("an object").clone();
    into.as_object_mut().expect("an object").extend(members);
}

fn minting(duration: Value) -> Value {
    json!({"attributes": {"system": {"mint": 1, "duration": duration}}})
}

#[needs(munged)]
#[test]
fn a_job_receives_its_own_token_that_the_command_verifies() {
    for algorithm in ["EdDSA", "ES256", "RS256", "HS256"] {
        let place = Minting::new(algorithm);
        let mut instance = place.instance(
            json!({"workspace": "u-{uid}", "check": "verify", "trust": "own"}),
            json!([]),
        );
        let mut tokens = BTreeSet::new();
        for (duration, lifetime) in [
            (json!(3600), 4200),
            (json!(1.5), 601),
            (json!(0), 86_400),
            (json!(null), 86_400),
            (json!(1e9), 86_400),
        ] {
            let job = instance.run(PRINT, minting(duration.clone()));
            let token = instance.stdout(&job).trim_end().to_owned();
            let verified = place.claims(&token);
            let claims = &verified["claims"];
            assert_eq!(verified["kind"], "workflow token");
            assert_eq!(
                claims["sub"],
                nix::unistd::User::from_uid(me().into()).unwrap().unwrap().name
            );
            assert_eq!(claims["workspace"], format!("u-{}", me()));
            assert_eq!(claims["flux"]["jobid"], job.replace('ƒ', "f"));
            assert_eq!(claims["flux"]["uid"], me());
            let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
            assert_eq!(claims["flux"]["instance"], host.trim_end());
            let seconds = |claim: &str| claims[claim].as_u64().unwrap();
            assert_eq!(seconds("exp") - seconds("iat"), lifetime, "{duration}");
            assert!(tokens.insert(token));
        }
        assert_eq!(instance.counter("failed"), 0);
        let log = instance.dmesg().join("\n");
        assert!(!Search::tokens(tokens.iter().map(String::as_str)).finds(log.as_bytes()));

        // No other place contains any part of the signing key.
        let (private, secret) = place.private();
        let search = Search::secrets([secret.as_str()]);
        assert!(search.finds(private.as_bytes()));
        assert!(!search.finds(log.as_bytes()));
        assert_eq!(search.processes(), Vec::<String>::new());
        instance.shutdown();
        assert_eq!(search.files(&place.site.statedir()), Vec::<std::path::PathBuf>::new());
    }
}

#[needs(munged)]
#[test]
fn the_workspace_is_the_project_of_the_job() {
    let place = Minting::new("EdDSA");
    let mut table = place.table(json!({}), json!([]));
    table["project"] = json!([
        {"name": "hydro", "users": [me()]},
        {"name": "solar", "users": [me()]},
    ]);
    let mut instance = place.site.instance(table);
    for project in ["hydro", "solar"] {
        let job = instance.run(
            PRINT,
            json!({"attributes": {"system": {"mint": 1, "project": project}}}),
        );
        let token = instance.stdout(&job).trim_end().to_owned();
        assert_eq!(place.claims(&token)["claims"]["workspace"], project);
    }
    let mut submission = matching("mint");
    submission["command"] = json!(PRINT);
    let error = instance.error("submit", submission);
    assert!(error.contains("needs a project"), "{error}");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn keys_are_rotated_while_jobs_get_tokens_and_none_is_refused() {
    /// The number of jobs between two steps.
    const JOBS: usize = 20;

    let place = Minting::new("EdDSA");
    let keys = &place.keys;
    let mut instance = place.verifying();
    let submit = |instance: &mut Instance| -> Vec<String> {
        (0..JOBS).map(|_| instance.submit(PRINT, matching("mint"))).collect()
    };
    let check = |instance: &mut Instance, jobs: Vec<String>| -> BTreeSet<String> {
        let jobs = jobs.into_iter().map(|job| {
            instance.wait(&job, "clean");
            let token = instance.stdout(&job).trim_end().to_owned();
            place.claims(&token)["kid"].as_str().unwrap().to_owned()
        });
        jobs.collect()
    };
    let (mut kids, mut delivered) = (BTreeSet::from([place.active()]), 0);
    for algorithm in ["ES256", "HS256", "EdDSA"] {
        let old = place.active();
        // Each step happens while jobs are in flight.
        let before = submit(&mut instance);
        let new = ok(&["rotate", "add", keys, "--algorithm", algorithm]);
        let added = submit(&mut instance);
        ok(&["rotate", "promote", keys, &new]);
        let promoted = submit(&mut instance);
        let last = instance.run(PRINT, matching("mint"));
        assert_eq!(
            check(&mut instance, vec![last]),
            BTreeSet::from([new.clone()]),
            "the new key signs immediately"
        );
        for jobs in [before, added, promoted] {
            let signed = check(&mut instance, jobs);
            assert!(
                signed.is_subset(&BTreeSet::from([old.clone(), new.clone()])),
                "{signed:?}"
            );
            delivered += JOBS;
        }
        ok(&["rotate", "retire", keys, &old]);
        assert_eq!(place.active(), new);
        kids.insert(new);
        delivered += 1;
    }
    let after = submit(&mut instance);
    assert_eq!(check(&mut instance, after), BTreeSet::from([place.active()]));
    assert_eq!(kids.len(), 4);
    assert_eq!(instance.counter("delivered") as usize, delivered + JOBS);
    assert_eq!(instance.counter("failed"), 0);
    let complaints: Vec<_> = instance
        .dmesg()
        .into_iter()
        .filter(|line| line.contains("keys"))
        .collect();
    assert_eq!(complaints, Vec::<String>::new());
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn ten_thousand_tokens_are_minted_verified_and_delivered_over_three_rotations() {
    /// The number of jobs between two of the nine steps.
    const JOBS: usize = 1112;

    let place = Minting::new("EdDSA");
    let keys = &place.keys;
    let mut instance = place.verifying();
    // The plugin verifies the token, so no process is needed.
    instance.ok("fault", json!({"what": "hold-starts"}));
    let deliver = |instance: &mut Instance, step: &dyn Fn()| {
        let before = instance.counter("delivered");
        let mut job = matching("mint");
        job["command"] = json!(["true"]);
        let requests: Vec<_> = (0..JOBS).map(|_| instance.send("submit", job.clone())).collect();
        // While the jobs are in flight.
        step();
        let jobs: Vec<_> = requests
            .into_iter()
            .map(|request| instance.response(request)["jobid"].clone())
            .collect();
        until("all have got their tokens", || {
            instance.counter("delivered") + instance.counter("failed") == before + JOBS as u64
        });
        for job in jobs {
            instance.ok("cancel", json!({"jobid": job}));
        }
    };
    for algorithm in ["ES256", "HS256", "EdDSA"] {
        let old = place.active();
        let new = RefCell::new(String::new());
        deliver(&mut instance, &|| {
            new.replace(ok(&["rotate", "add", keys, "--algorithm", algorithm]));
        });
        deliver(&mut instance, &|| {
            ok(&["rotate", "promote", keys, &new.borrow()]);
        });
        ok(&["rotate", "retire", keys, &old]);
        deliver(&mut instance, &|| ());
        instance.ok("fault", json!({"what": "release-starts"}));
        let token = instance.token("mint");
        assert_eq!(place.claims(&token)["kid"], *new.borrow(), "the key was rotated");
        instance.ok("fault", json!({"what": "hold-starts"}));
    }
    assert_eq!(instance.counter("delivered"), 9 * JOBS as u64 + 3);
    assert_eq!(instance.counter("failed"), 0);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn unreadable_keys_fail_the_job_but_an_unreadable_change_does_not() {
    let place = Minting::new("EdDSA");
    let site = &place.site;
    let private = site.at("keys/signing").join(format!("{}.pem", place.active()));
    fs::set_permissions(&private, Permissions::from_mode(0o644)).unwrap();
    let mut instance = place.instance(json!({"workspace": "hydro"}), json!([]));
    let job = instance.submit(PRINT, matching("mint"));
    let note = instance.undelivered(&job);
    assert!(note.contains("there is no key to sign it with"), "{note}");
    let cause = instance.cause(&job);
    assert!(
        cause.contains(private.to_str().unwrap()) && cause.contains("chmod 0600"),
        "{cause}"
    );

    fs::set_permissions(&private, Permissions::from_mode(0o600)).unwrap();
    place.claims(&instance.token("mint"));

    let told = |instance: &mut Instance| {
        let lines = instance.dmesg();
        lines.iter().filter(|line| line.contains("remain in use")).count()
    };
    assert_eq!(told(&mut instance), 0);
    site.write("keys/broken.pem", 0o644, "no key");
    for _ in 0..3 {
        instance.token("mint");
    }
    assert_eq!(told(&mut instance), 1, "it is reported once");
    // A reload of the configuration does not discard the keys.
    instance.ok(
        "config-reload",
        json!({"config": site.config(place.table(json!({"workspace": "other"}), json!([])))}),
    );
    let token = instance.token("mint");
    fs::remove_file(site.at("keys/broken.pem")).unwrap();
    assert_eq!(place.claims(&token)["claims"]["workspace"], "other");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_path_that_leads_nowhere_where_the_agent_runs_fails_jobs_and_its_key_is_logged() {
    let place = Minting::new("EdDSA");
    let mut instance = place.instance(json!({"workspace": "hydro"}), json!([]));
    for (pointer, key) in [
        ("/issuer/keys", "workflow-token.issuer.keys"),
        ("/trust/own/keys", "workflow-token.trust.own.keys"),
    ] {
        let mut table = place.table(json!({"workspace": "hydro"}), json!([]));
        *table.pointer_mut(pointer).unwrap() = json!("$WORKFLOW_TOKEN_NOT_SET/keys");
        instance.ok("config-reload", json!({"config": place.site.config(table)}));
        instance.ok("wait-log", json!({"text": format!("{key}: ")}));
        let job = instance.submit(PRINT, matching("mint"));
        let note = instance.undelivered(&job);
        assert!(note.contains("[agent-configuration]"), "{note}");
        let cause = instance.cause(&job);
        assert!(cause.contains("WORKFLOW_TOKEN_NOT_SET is not set"), "{cause}");
    }
    let table = place.table(json!({"workspace": "hydro"}), json!([]));
    instance.ok("config-reload", json!({"config": place.site.config(table)}));
    place.claims(&instance.token("mint"));
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_token_that_does_not_verify_is_not_delivered() {
    let place = Minting::new("EdDSA");
    let other = Minting::new("EdDSA");
    let good = ["--audience", "service", "--scope", "cluster"];
    let uid = me().to_string();
    let here = fs::read_to_string("/proc/sys/kernel/hostname")
        .unwrap()
        .trim_end()
        .to_owned();
    let of_job = |uid: &str, instance: &str| {
        let job = [
            "--workspace",
            "a",
            "--job",
            "f2oLkTLb1",
            "--uid",
            uid,
            "--instance",
            instance,
        ];
        place.issue(&[&["--audience", "service", "--scope", "session"], &job[..]].concat())
    };
    let altered = {
        let (one, two) = (place.issue(&good), place.issue(&good));
        format!(
            "{}.{}",
            one.rsplit_once('.').unwrap().0,
            two.rsplit_once('.').unwrap().1
        )
    };
    let cases = [
        ("good", place.issue(&good), ""),
        ("foreign", other.issue(&good), "is signed with the key"),
        ("unsigned", jwt(json!({"exp": 4_102_444_800_u64})), "refused"),
        ("altered", altered, "signature is wrong"),
        (
            "elsewhere",
            place.issue(&["--audience", "x", "--scope", "cluster"]),
            "and not for this service",
        ),
        ("user", of_job("4000001", &here), "of another user"),
        ("job", of_job(&uid, &here), "of another job"),
        ("instance", of_job(&uid, "elsewhere"), "of another instance"),
    ];
    let rules: Vec<Value> = cases
        .iter()
        .map(|(name, token, _)| {
            let mut rule = place.site.file_rule(name, token);
            merge(&mut rule, &json!({"check": "verify", "trust": "own"}));
            rule
        })
        .collect();
    let mut instance = place.instance(json!({"workspace": "hydro"}), json!(rules));
    for (name, token, says) in &cases {
        let job = instance.submit(PRINT, matching(name));
        if says.is_empty() {
            instance.wait(&job, "clean");
            assert_eq!(instance.stdout(&job).trim_end(), token);
            continue;
        }
        let note = instance.undelivered(&job);
        assert!(note.contains("was refused") && note.contains(says), "{name}: {note}");
        let cause = instance.cause(&job);
        assert!(
            cause.contains("trust = \"own\"") && cause.contains(says),
            "{name}: {cause}"
        );
        let part = token.split('.').nth(1).unwrap();
        assert!(!(note + &cause).contains(part), "{name}: the token was revealed");
    }

    // Without keys, every token is rejected, with an error that differs from that of an invalid token.
    let mut table = place.table(json!({"workspace": "hydro"}), json!(rules));
    table["trust"]["own"]["keys"] = json!(place.site.path("missing"));
    instance.ok("config-reload", json!({"config": place.site.config(table)}));
    let job = instance.submit(PRINT, matching("good"));
    let note = instance.undelivered(&job);
    assert!(note.contains("could not be verified"), "{note}");
    assert!(decimal(&job) > 0 && instance.cause(&job).contains("missing"));
    instance.shutdown();
}
