// SPDX-License-Identifier: MIT OR Apache-2.0

//! `flux workflow-token keygen`, `rotate`, `jwks`, `issue` and `verify`: keys and tokens as operators handle them.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::{Bench, Ran};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::{
    Algorithm, ClaimsToIssue, Grant, KeySet, SigningKey, StatusEntry, StatusList, StatusListToIssue, mint,
    sign_status_list,
};

const ALGORITHMS: [&str; 4] = ["EdDSA", "ES256", "RS256", "HS256"];
const ISSUER: [&str; 2] = ["--issuer", "https://hpc.example.org"];
const AUDIENCE: [&str; 2] = ["--audience", "service"];

/// A command with a key directory, and its path.
struct Site {
    bench: Bench,
    keys: String,
}

impl Site {
    /// Creates a key of this algorithm.
    fn new(algorithm: &str) -> Self {
        let site = Self::empty();
        let kid = site.run(&["keygen", &site.keys, "--algorithm", algorithm]);
        assert_eq!(kid.ok().out.trim_end().len(), 43, "the kid is a thumbprint of SHA-256");
        site
    }

    fn empty() -> Self {
        let bench = Bench::new();
        let keys = bench.path("keys").to_str().unwrap().to_owned();
        Self { bench, keys }
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.bench.run(args)
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let ran = self.run(&[args, &["--json"]].concat());
        serde_json::from_str(&ran.ok().out).unwrap()
    }

    /// Issues a token of alice.
    #[track_caller]
    fn issue(&self, more: &[&str]) -> String {
        self.try_issue(more).ok().out.trim_end().to_owned()
    }

    fn try_issue(&self, more: &[&str]) -> Ran {
        let all = [
            &["issue", "--keys", &self.keys, "--sub", "alice"],
            &ISSUER[..],
            &AUDIENCE,
            more,
        ]
        .concat();
        self.run(&all)
    }

    /// Verifies a token from standard input.
    fn verify(&self, token: &str, more: &[&str]) -> Ran {
        let all = [&["verify", "--keys", &self.keys], &ISSUER[..], &AUDIENCE, more].concat();
        self.bench.run_with_stdin(&all, token.as_bytes())
    }

    fn kids(&self) -> Vec<(String, bool)> {
        let list = self.json(&["rotate", "list", &self.keys]);
        let keys = list["keys"].as_array().unwrap().iter();
        keys.map(|key| {
            (
                key["kid"].as_str().unwrap().to_owned(),
                key["active"].as_bool().unwrap(),
            )
        })
        .collect()
    }
}

/// Asserts that a token was rejected, and why.
#[track_caller]
fn refuses(ran: &Ran, says: &str) {
    ran.refused(&format!("refused: {says}"));
}

/// Asserts that the command could not decide, and why.
#[track_caller]
fn cannot_tell(ran: &Ran, says: &str) {
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{}", ran.err);
    assert!(ran.err.contains(says), "{:?} does not say {says:?}", ran.err);
}

#[test]
fn the_names_of_keys_do_not_steer_the_terminal() {
    let site = Site::new("EdDSA");
    let jwk = |kid: &str| {
        let mut key = site.json(&["jwks", &site.keys])["keys"][0].clone();
        key["kid"] = json!(kid);
        key.to_string()
    };
    let write = |name: &str, text: &str| fs::write(Path::new(&site.keys).join(name), text).unwrap();
    write("a.jwk", &jwk("k\u{1b}[2J\u{9b}2J\u{202e}\u{7f}"));
    for args in [
        &["jwks", &site.keys][..],
        &["jwks", &site.keys, "--json"],
        &["rotate", "list", &site.keys],
        &["rotate", "list", &site.keys, "--json"],
    ] {
        let ran = site.run(args);
        let is_odd = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!ran.ok().out.contains(is_odd), "{:?}", ran.out);
    }
    // Keys are not replaced either if they are in the way.
    let other = Site::new("EdDSA");
    let mut key = other.json(&["jwks", &other.keys])["keys"][0].clone();
    key["kid"] = json!("k\u{1b}[2J\u{9b}2J\u{202e}\u{7f}");
    write("b.jwk", &key.to_string());
    site.run(&["jwks", &site.keys])
        .refused("the same kid, k\\u{1b}[2J\\u{9b}2J\\u{202e}\\u{7f}: give");
}

#[test]
fn a_token_of_each_algorithm_is_issued_and_verified() {
    for algorithm in ALGORITHMS {
        let site = Site::new(algorithm);
        let token = site.issue(&["--scope", "cluster"]);
        let ran = site.verify(&token, &[]);
        assert!(ran.ok().line("verified").contains("user token"), "{}", ran.out);
        assert!(ran.line("subject").contains("alice"), "{}", ran.out);
        assert!(
            ran.line("expires").contains("in 59m") || ran.line("expires").contains("in 1h"),
            "{}",
            ran.out
        );
        let inspected = site.bench.run_with_stdin(&["inspect", "--json"], token.as_bytes());
        let header: Value = serde_json::from_str(&inspected.ok().out).unwrap();
        assert_eq!(header["header"]["alg"], algorithm);
        assert_eq!(header["header"]["kid"], site.kids()[0].0);
    }
}

#[test]
fn the_claims_are_those_of_the_scope() {
    let site = Site::new("EdDSA");
    let of_job = [
        "--workspace",
        "hydro",
        "--job",
        "ƒ2oLkTLb1",
        "--uid",
        "1000",
        "--instance",
        "fluke",
    ];
    for (args, scope, workspace, flux) in [
        (&["--scope", "cluster"][..], "cluster", json!(null), json!(null)),
        (
            &["--scope", "workspace", "--workspace", "a", "--workspace", "b"],
            "workspace",
            json!(["a", "b"]),
            json!(null),
        ),
        (
            &["--scope", "system", "--workspace", "a"],
            "system",
            json!("a"),
            json!(null),
        ),
        (
            &[&["--scope", "session"], &of_job[..]].concat(),
            "session",
            json!("hydro"),
            json!({"jobid": "f2oLkTLb1", "uid": 1000, "instance": "fluke"}),
        ),
    ] {
        let token = site.issue(args);
        let verified: Value = serde_json::from_str(&site.verify(&token, &["--json"]).ok().out).unwrap();
        let claims = &verified["claims"];
        assert_eq!(verified["verified"], true);
        assert_eq!(verified["kid"], site.kids()[0].0);
        assert_eq!(claims["scope"], scope);
        assert_eq!(claims["sub"], "alice");
        assert_eq!(claims["aud"], "service");
        assert_eq!(claims.get("workspace").unwrap_or(&Value::Null), &workspace, "{scope}");
        assert_eq!(claims.get("flux").unwrap_or(&Value::Null), &flux, "{scope}");
        assert!(claims["jti"].is_string() && claims["nbf"] == claims["iat"], "{claims}");
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 3600);
    }
    for (args, says) in [
        (&["--scope", "workspace"][..], "--scope workspace requires --workspace"),
        (
            &["--scope", "session", "--workspace", "a"],
            "--scope session requires --job, --uid and --instance",
        ),
        (
            &["--scope", "session", "--workspace", "a", "--workspace", "b"],
            "--scope session requires one --workspace",
        ),
        (
            &["--scope", "cluster", "--workspace", "a"],
            "--scope cluster includes all workspaces",
        ),
        (&["--scope", "cluster", "--uid", "1"], "--scope cluster concerns no job"),
    ] {
        site.try_issue(args).refused(says);
    }
    for args in [
        &["--scope", "all"][..],
        &["--scope", "workspace", "--workspace", "A/b"],
        &["--scope", "cluster", "--lifetime", "0"],
        &["--scope", "cluster", "--key", "k"],
    ] {
        let ran = site.try_issue(args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}");
    }
    let issued = site.try_issue(&["--scope", "cluster", "--lifetime", "5m", "--json"]);
    let issued: Value = serde_json::from_str(&issued.ok().out).unwrap();
    assert_eq!(issued["kid"], site.kids()[0].0);
    site.verify(issued["token"].as_str().unwrap(), &[]).ok();
}

#[test]
fn a_token_that_is_not_good_is_refused_with_its_reason() {
    let site = Site::new("EdDSA");
    let other = Site::new("EdDSA");
    let token = site.issue(&["--scope", "cluster"]);
    let second = site.issue(&["--scope", "cluster"]);
    let altered = format!(
        "{}.{}",
        token.rsplit_once('.').unwrap().0,
        second.rsplit_once('.').unwrap().1
    );
    refuses(&site.verify(&altered, &[]), "the token's signature is wrong");
    refuses(&other.verify(&token, &[]), "the token is signed with the key");
    refuses(&site.verify("hello", &[]), "not a JWT");
    let with = |issuer: &[&str], audience: &[&str]| {
        let all = [&["verify", "--keys", &site.keys], issuer, audience].concat();
        site.bench.run_with_stdin(&all, token.as_bytes())
    };
    refuses(
        &with(&["--issuer", "x"], &AUDIENCE),
        "the token is of the issuer \"https://hpc.example.org\"",
    );
    refuses(&with(&ISSUER, &["--audience", "x"]), "the token is for \"service\"");
    with(&ISSUER, &["--audience", "x", "--audience", "service"]).ok();
    with(&["--any-issuer"], &["--any-audience"]).ok();

    let ran = with(&["--issuer", "x"], &[&AUDIENCE[..], &["--json"]].concat());
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""));
    let refused: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(refused["verified"], false);
    assert!(refused["reason"].as_str().unwrap().contains("issuer"), "{refused}");

    // Tokens of the rabbit software never expire.
    let key = site
        .bench
        .write("rabbit.pem", 0o600, include_str!("../../token/testdata/rabbit.pem"));
    let rabbit = site.run(&["issue", "--sub", "user-container", "--key", key.to_str().unwrap()]);
    let all = [
        "verify",
        "--secret",
        key.to_str().unwrap(),
        "--any-issuer",
        "--any-audience",
    ];
    let ran = site.bench.run_with_stdin(&all, rabbit.ok().out.as_bytes());
    refuses(&ran, "the token has no claim `exp`");
}

#[test]
fn a_token_comes_from_a_file_standard_input_or_a_variable_and_never_an_argument() {
    let site = Site::new("ES256");
    let token = site.issue(&["--scope", "cluster"]);
    let file = site.bench.write("token", 0o600, format!("{token}\n"));
    let verify = [&["verify", "--keys", &site.keys], &ISSUER[..], &AUDIENCE].concat();
    site.run(&[&verify[..], &[file.to_str().unwrap()]].concat()).ok();
    site.verify(&token, &["-"]).ok();
    let mut command = site.bench.command(&[&verify[..], &["--env", "TOKEN"]].concat());
    Ran::of(command.env("TOKEN", &token)).ok();

    let ran = site.run(&[&verify[..], &[&token]].concat());
    ran.refused("contains a token");
    assert!(!ran.err.contains(&token[..20]), "{}", ran.err);
}

#[test]
fn where_it_cannot_be_told_the_exit_status_says_so() {
    let site = Site::new("EdDSA");
    let token = site.issue(&["--scope", "cluster"]);
    let with = |keys: &[&str]| {
        let all = [&["verify"], keys, &ISSUER[..], &AUDIENCE].concat();
        site.bench.run_with_stdin(&all, token.as_bytes())
    };
    cannot_tell(&with(&["--keys", "/nonexistent"]), "/nonexistent: No such file");
    let readable = site.bench.write("secret", 0o644, "0123456789abcdef0123456789abcdef");
    cannot_tell(&with(&["--secret", readable.to_str().unwrap()]), "chmod 0600");
    cannot_tell(&with(&[]), "--keys");
    cannot_tell(&with(&["--keys", &site.keys, "--secret", "s"]), "--secret");
    cannot_tell(&site.verify("", &["--env", "NOT_SET"]), "NOT_SET is not set");
    cannot_tell(&site.verify("", &["/nonexistent.jwt"]), "/nonexistent.jwt");
    // An issuer or an audience must be named, or "any" chosen explicitly.
    let all = ["verify", "--keys", &site.keys];
    cannot_tell(&site.bench.run_with_stdin(&all, token.as_bytes()), "--issuer");
}

#[test]
fn a_rotation_has_three_steps() {
    let site = Site::new("EdDSA");
    let first = site.kids()[0].0.clone();
    let before = site.issue(&["--scope", "cluster"]);
    let added = site.json(&["rotate", "add", &site.keys, "--algorithm", "ES256"]);
    let second = added["kid"].as_str().unwrap();
    assert_eq!(
        (&added["algorithm"], &added["active"]),
        (&json!("ES256"), &json!(false))
    );
    let jwks = site.json(&["jwks", &site.keys]);
    let published: Vec<_> = jwks["keys"].as_array().unwrap().iter().map(|key| &key["kid"]).collect();
    assert!(
        published.contains(&&json!(first)) && published.contains(&&json!(second)),
        "{jwks}"
    );

    site.run(&["rotate", "retire", &site.keys, &first]).refused("is active");
    let promoted = site.run(&["rotate", "promote", &site.keys]);
    assert_eq!(promoted.ok().out, format!("{second}\n"));
    let after = site.issue(&["--scope", "cluster"]);
    for token in [&before, &after] {
        site.verify(token, &[]).ok();
    }
    let mut kids = site.kids();
    kids.sort_by_key(|(_, active)| *active);
    assert_eq!(kids, [(first.clone(), false), (second.to_owned(), true)]);

    site.run(&["rotate", "retire", &site.keys, &first]).ok();
    refuses(&site.verify(&before, &[]), "the token is signed with the key");
    site.verify(&after, &[]).ok();
    site.run(&["rotate", "retire", &site.keys, &first])
        .refused("there is no key");
    // A thumbprint may begin with a hyphen, like an option.
    site.run(&["rotate", "retire", &site.keys, "-x"])
        .refused("there is no key -x");
    let list = site.run(&["rotate", "list", &site.keys]);
    assert_eq!(list.ok().out, format!("{second}  ES256  signs\n"));
}

#[test]
fn nobody_else_can_read_a_private_key_whatever_the_umask() {
    let site = Site::empty();
    let program = env!("CARGO_BIN_EXE_flux-workflow-token");
    for (algorithm, private) in [("EdDSA", "signing"), ("HS256", "hs256")] {
        let keys = format!("{}-{algorithm}", site.keys);
        let script = format!("umask 000; exec {program} keygen {keys} --algorithm {algorithm}");
        let ran = Ran::of(std::process::Command::new("sh").args(["-c", &script]));
        let kid = ran.ok().out.trim_end().to_owned();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let directory = Path::new(&keys).join(private);
        let file = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
        assert_eq!(
            (mode(Path::new(&keys)), mode(&directory), mode(&file)),
            (0o755, 0o700, 0o600)
        );
        let jwks = site.run(&["jwks", &keys]);
        assert_eq!(jwks.ok().out.contains(&kid), algorithm == "EdDSA", "{}", jwks.out);
        // No subcommand prints private parts.
        let secret = fs::read_to_string(&file).unwrap();
        let secret = secret.lines().nth(1).unwrap_or(&secret).to_owned();
        for args in [
            &["jwks", &keys][..],
            &["rotate", "list", &keys],
            &["rotate", "list", &keys, "--json"],
        ] {
            let ran = site.run(args);
            assert!(!(ran.out + &ran.err).contains(&secret), "{args:?}");
        }
    }
}

#[test]
fn keys_are_not_replaced_and_bad_ones_are_named() {
    let site = Site::new("EdDSA");
    site.run(&["keygen", &site.keys]).refused("already contains keys");
    site.run(&["keygen", "/nonexistent/keys"])
        .refused("/nonexistent/keys: No such file");
    let ran = site.run(&["keygen", &site.keys, "--algorithm", "none"]);
    assert_eq!(ran.code, Some(2));

    let private = format!("{}/signing/{}.pem", site.keys, site.kids()[0].0);
    fs::set_permissions(&private, fs::Permissions::from_mode(0o644)).unwrap();
    for args in [
        &["rotate", "list", &site.keys][..],
        &["rotate", "add", &site.keys],
        &[
            "issue",
            "--keys",
            &site.keys,
            "--sub",
            "a",
            "--issuer",
            "i",
            "--audience",
            "a",
            "--scope",
            "cluster",
        ],
    ] {
        site.run(args).refused(&format!(
            "{private}: mode 0644 lets others than its owner in: use chmod 0600"
        ));
    }
}

/// Signs a Status List of the issuer of the tests, and writes it to a file.
fn status_list(site: &Site, key: &SigningKey, iat: SystemTime, list: &StatusList) -> String {
    let signed = sign_status_list(
        key,
        &StatusListToIssue {
            iss: ISSUER[1],
            uri: STATUS_URI,
            iat,
            lifetime: Duration::from_secs(600),
            ttl: Duration::from_secs(60),
            list,
        },
    );
    let file = site.bench.write("list.jwt", 0o644, signed + "\n");
    file.to_str().expect("a path in UTF-8").to_owned()
}

const STATUS_URI: &str = "https://hpc.example.org/status/7";

#[test]
fn a_token_is_looked_up_in_a_status_list() {
    let site = Site::empty();
    let key = SigningKey::generate(Algorithm::EdDsa);
    let keys = site
        .bench
        .write("keys.jwks", 0o644, KeySet::from(key.verifying_key()).public_jwks());
    let keys = keys.to_str().expect("a path in UTF-8");
    let token = |status: Option<StatusEntry>| {
        let claims = ClaimsToIssue {
            iss: ISSUER[1].into(),
            sub: "alice".into(),
            aud: vec![AUDIENCE[1].into()],
            iat: SystemTime::now(),
            lifetime: Duration::from_secs(600),
            grant: Grant::Cluster,
            status,
        };
        mint(&key, &claims).expose_secret().to_owned()
    };
    let entry = |index| {
        Some(StatusEntry {
            index,
            uri: STATUS_URI.to_owned(),
        })
    };
    let verify = |token: &str, list: &str| {
        let lists = ["--status-list", list];
        let all = [&["verify", "--keys", keys], &ISSUER[..], &AUDIENCE, &lists].concat();
        site.bench.run_with_stdin(&all, token.as_bytes())
    };

    let mut list = StatusList::new(16);
    assert!(list.set(3, 1));
    let now = SystemTime::now();
    let file = status_list(&site, &key, now, &list);
    verify(&token(entry(2)), &file).ok();
    refuses(
        &verify(&token(entry(3)), &file),
        "its Status List reports that it was revoked",
    );
    refuses(&verify(&token(entry(16)), &file), "its Status List reports");
    cannot_tell(&verify(&token(None), &file), "it names no Status List");
    let elsewhere = StatusEntry {
        index: 2,
        uri: "https://hpc.example.org/status/8".to_owned(),
    };
    cannot_tell(
        &verify(&token(Some(elsewhere)), &file),
        "fetch its Status List, https://hpc.example.org/status/8",
    );

    let old = status_list(&site, &key, now - Duration::from_secs(300), &list);
    cannot_tell(&verify(&token(entry(2)), &old), "fetch its Status List");
    refuses(&verify(&token(entry(3)), &old), "its Status List reports");
    let expired = status_list(&site, &key, now - Duration::from_secs(3600), &list);
    cannot_tell(&verify(&token(entry(2)), &expired), "list.jwt: ");
    let other = SigningKey::generate(Algorithm::EdDsa);
    let foreign = status_list(&site, &other, now, &list);
    cannot_tell(&verify(&token(entry(2)), &foreign), "list.jwt: ");
    cannot_tell(
        &verify(&token(entry(2)), "/nowhere/list.jwt"),
        "Status List /nowhere/list.jwt: ",
    );
}
