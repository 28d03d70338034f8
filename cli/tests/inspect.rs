// SPDX-License-Identifier: MIT OR Apache-2.0

//! `flux workflow-token inspect`: prints the claims of a token, and copies neither the token nor its signature.

mod common;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{Bench, Ran};
use serde_json::Value;

const SIGNATURE: &str = "Y2FuYXJ5LWNhbmFyeS1jYW5hcnktY2FuYXJ5LTE";

fn jwt(header: &str, claims: &str) -> String {
    format!(
        "{}.{}.{SIGNATURE}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    )
}

fn hs256(claims: &str) -> String {
    jwt(r#"{"alg":"HS256","typ":"JWT"}"#, claims)
}

/// Asserts that the output contains neither the token nor its signature.
#[track_caller]
fn keeps(ran: &Ran, token: &str) {
    for shown in [&ran.out, &ran.err] {
        assert!(!shown.contains(SIGNATURE), "{shown}");
        assert!(token.is_empty() || !shown.contains(token), "{shown}");
    }
}

fn inspect(token: &str) -> Ran {
    let ran = Bench::new().run_with_stdin(&["inspect"], token.as_bytes());
    keeps(&ran, token);
    ran
}

#[test]
fn shows_header_claims_and_times_and_that_nothing_is_verified() {
    let ran = inspect(&hs256(
        r#"{"sub":"alice","iat":1700000000,"exp":4102444800,"aud":["a","b"]}"#,
    ));
    assert!(
        ran.ok()
            .out
            .starts_with("header {\n  \"alg\": \"HS256\",\n  \"typ\": \"JWT\"\n}\nclaims {\n"),
        "{}",
        ran.out
    );
    assert!(ran.line("\"sub\"").contains("\"alice\""));
    assert!(ran.line("issued ").contains("2023-11-14T22:13:20Z ("), "{}", ran.out);
    assert!(ran.line("issued ").ends_with(" ago)"), "{}", ran.out);
    assert_eq!(ran.line("valid from"), "valid from  any time");
    assert!(
        ran.line("expires").starts_with("expires     2100-01-01T00:00:00Z (in "),
        "{}",
        ran.out
    );
    assert_eq!(
        ran.line("signature"),
        "signature   HS256 by its header, 29 bytes, NOT verified"
    );
    assert_eq!(
        ran.line("delivered"),
        "delivered   yes, by a rule with check = \"shape\""
    );
    assert!(ran.out.contains("\nNothing above is verified"));
}

#[test]
fn shows_what_keeps_a_token_from_being_delivered() {
    let ran = inspect(&hs256(r#"{"exp":1000}"#));
    assert!(
        ran.ok()
            .line("expires")
            .starts_with("expires     EXPIRED, 1970-01-01T00:16:40Z ("),
        "{}",
        ran.out
    );
    assert!(
        ran.line("delivered")
            .contains("no, not by a rule with check = \"shape\": the token expired ")
    );

    let ran = inspect(&hs256(r#"{"nbf":"tomorrow"}"#));
    assert!(
        ran.ok()
            .line("valid from")
            .contains("INVALID: the claim `nbf` is not a number"),
        "{}",
        ran.out
    );

    let ran = inspect(&jwt(r#"{"alg":"none"}"#, "{}"));
    assert!(ran.ok().out.contains("UNSECURED"), "{}", ran.out);
    assert!(ran.line("delivered").contains("unsecured"), "{}", ran.out);
    let unsigned = jwt(r#"{"alg":"none"}"#, "{}").replace(SIGNATURE, "");
    assert_eq!(inspect(&unsigned).ok().line("signature "), "signature   none");
}

#[test]
fn prints_json_for_programs() {
    let token = hs256(r#"{"sub":"alice","iat":1700000000,"exp":1700000001}"#);
    let ran = Bench::new().run_with_stdin(&["inspect", "--json", "-"], token.as_bytes());
    keeps(&ran, &token);
    let json: Value = serde_json::from_str(&ran.ok().out).unwrap();
    assert_eq!(json["verified"], false);
    assert_eq!(json["header"]["alg"], "HS256");
    assert_eq!(json["claims"]["sub"], "alice");
    assert_eq!(json["issued"], "2023-11-14T22:13:20Z");
    assert_eq!(json["expires"], "2023-11-14T22:13:21Z");
    assert_eq!(json["valid-from"], Value::Null);
    assert_eq!(json["expired"], true);
    assert_eq!(json["unsecured"], false);
    assert_eq!(json["signature-bytes"], 29);
    assert!(json["refused"].as_str().unwrap().starts_with("the token expired"));
}

#[test]
fn reads_a_file_standard_input_or_a_variable_and_takes_a_line_end_off() {
    let bench = Bench::new();
    let token = hs256(r#"{"sub":"alice"}"#);
    for end in ["", "\n", "\r\n"] {
        let text = format!("{token}{end}");
        let file = bench.write("token", 0o600, &text);
        assert_eq!(bench.run(&["inspect", file.to_str().unwrap()]).ok().err, "");
        bench.run_with_stdin(&["inspect", "-"], text.as_bytes()).ok();
    }
    Ran::of(bench.command(&["inspect", "--env", "T"]).env("T", &token)).ok();
    bench
        .run(&["inspect", "--env", "T"])
        .refused("the environment variable T is not set");
    bench
        .run(&["inspect", "/nonexistent"])
        .refused("/nonexistent: No such file or directory");
}

#[test]
fn warns_of_a_token_that_others_can_read() {
    let bench = Bench::new();
    let file = bench.write("token", 0o644, hs256("{}"));
    let ran = bench.run(&["inspect", file.to_str().unwrap()]);
    assert!(
        ran.ok().err.contains("mode 0644 gives others than its owner access"),
        "{}",
        ran.err
    );
}

#[test]
fn says_what_is_wrong_with_a_malformed_token_and_where_it_came_from() {
    inspect("").refused("standard input: the token is empty");
    inspect("hunter2").refused("standard input: not a JWT: it has one segment");
    inspect(&(hs256("{}") + "=")).refused("its signature (third segment) is not base64url: padding");
    inspect(&"x".repeat(100_000)).refused("longer than the 65536 bytes");
    let ran = Bench::new().run_with_stdin(&["inspect"], b"\xff\xfe");
    ran.refused("standard input: not UTF-8");
    let ran = Ran::of(Bench::new().command(&["inspect", "--env", "T"]).env("T", "hunter2"));
    ran.refused("environment variable T: not a JWT");
    assert!(!ran.err.contains("hunter2"));
}

#[test]
fn refuses_a_token_as_an_argument_and_says_why() {
    let token = hs256("{}");
    for args in [
        &["inspect", &token][..],
        &["inspect", "--env", &token],
        &["show", &token],
        &[&token],
        &["inspect", &format!("@{token}")],
        &["inspect", &format!("x,{token}")],
        &["inspect", &format!("({token}")],
        &["verify", &format!("--secret={token}")],
        &["inspect", &jwt("{ \"alg\":\"HS256\"}", "{}")],
    ] {
        let ran = Bench::new().run(args);
        ran.refused("a token. Every user of this node can see arguments, so replace that secret");
        keeps(&ran, &token);
    }
}

#[test]
fn what_looks_like_a_secret_in_place_of_a_name_is_not_repeated() {
    let secret = "5f4dcc3b5aa765d61d8327deb882cf99c3RlYWw";
    let any = ["--any-issuer", "--any-audience"];
    for args in [
        &["inspect", "file", secret][..],
        &["inspect", secret],
        &["inspect", "--env", secret],
        &["show", secret],
        &["issue", "--sub", "alice", "--key", secret],
        &["verify", "--secret", secret, any[0], any[1]],
    ] {
        let bench = Bench::new();
        let ran = bench.flux("*) exit 1;;").run(args);
        assert!(matches!(ran.code, Some(1 | 2)), "{args:?}");
        assert!(
            ran.err.contains("[redacted]") && !ran.err.contains(secret),
            "{args:?}: {}",
            ran.err
        );
    }
}

#[test]
fn nothing_in_an_argument_steers_the_terminal() {
    for args in [
        &["inspect", "a\u{1b}[2J\u{202e}b"][..],
        &["inspect", "--env", "a\u{1b}[2J\u{202e}b"],
        &["inspect", "a", "a\u{1b}[2J\u{202e}b"],
    ] {
        let ran = Bench::new().run(args);
        assert!(ran.err.contains("\\u{202e}b"), "{}", ran.err);
        assert!(!ran.err.contains(['\u{1b}', '\u{202e}']), "{:?}", ran.err);
    }
}

#[test]
fn nothing_in_a_token_steers_the_terminal() {
    let ran = inspect(&hs256("{\"sub\":\"\\u001b[2J\u{9b}2J\u{202e}\"}"));
    assert!(
        !ran.ok()
            .out
            .chars()
            .any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'),
        "{:?}",
        ran.out
    );
}

#[test]
fn the_command_has_the_name_that_it_was_called_by() {
    let directory = tempfile::tempdir().unwrap();
    let called = directory.path().join("workflow-token");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_flux-workflow-token"), &called).unwrap();
    for (program, name, usage) in [
        (called.to_str().unwrap(), "workflow-token", "Usage: workflow-token "),
        (
            env!("CARGO_BIN_EXE_flux-workflow-token"),
            "flux-workflow-token",
            "Usage: flux workflow-token ",
        ),
    ] {
        let run = |args: &[&str]| std::process::Command::new(program).args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let err = text(run(&["jwks", "/no/such/keys"]).stderr);
        assert!(err.starts_with(&format!("{name}: ")), "{err}");
        let help = text(run(&["--help"]).stdout);
        assert!(help.contains(usage), "{help}");
        assert_eq!(
            text(run(&["--version"]).stdout),
            format!("{name} {}\n", env!("CARGO_PKG_VERSION"))
        );
    }
}
