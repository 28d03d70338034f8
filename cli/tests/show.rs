// SPDX-License-Identifier: MIT OR Apache-2.0

//! `flux workflow-token show`: the names that a job got, and the sealer, without the values.

mod common;

use std::path::Path;

use common::{Bench, Munged, Ran};
use needs::needs;
use seal::{Munge, Owner, Record, Secret, Variables};
use serde_json::Value;

const ID: &str = "ƒ2oLkTLb1";
const JOBID: u64 = 7_654_321;

fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Returns a record for this user. The caller sealed it, but it claims that `sealer` did.
fn sealed(munged: &Munged, jobid: u64, sealer: u32) -> String {
    let owner = Owner { jobid, uid: me() };
    let munge = Munge::new(Some(Path::new(&munged.socket()))).unwrap();
    let mut variables = Variables::new();
    variables.insert("DW_WORKFLOW_TOKEN", Secret::from("canary")).unwrap();
    variables.insert("OTHER", Secret::from("canary")).unwrap();
    Record::seal(&munge, owner, sealer, &variables, &Default::default())
        .unwrap()
        .to_json()
}

/// Returns a record that nobody sealed.
fn unsealed(uid: u32) -> String {
    format!(
        r#"{{"version":1,"jobid":{JOBID},"uid":{uid},"sealer":0,"variables":["DW_WORKFLOW_TOKEN"],
            "sealed-at":1700000000.0,"credential":"MUNGE:AwQ:"}}"#
    )
}

/// Defines an instance of `instance_owner` in which `job info` runs `info`.
fn bench(instance_owner: u32, info: &str) -> Bench {
    let bench = Bench::new();
    bench.flux(&format!(
        r#"
        "job id --to=dec -- {ID}") echo {JOBID};;
        "job id --to=dec -- "*) echo "flux-job: error parsing jobid" >&2; exit 1;;
        "job info {JOBID} workflow-token") {info};;
        "getattr security.owner") echo {instance_owner};;
        "config get") echo '{{}}';;"#
    ));
    bench
}

fn with_record(instance_owner: u32, record: &str) -> Bench {
    let bench = bench(instance_owner, "cat \"$(dirname \"$0\")\"/record");
    bench.write("bin/record", 0o600, record);
    bench
}

fn show(bench: &Bench, munged: &Munged) -> Ran {
    bench.run(&["show", ID, "--munge-socket", &munged.socket()])
}

#[needs(munged)]
#[test]
fn proves_to_the_job_owner_who_sealed_it() {
    let munged = Munged::start();
    let bench = with_record(me(), &sealed(&munged, JOBID, me()));
    // Opening it twice is not an error, although MUNGE reports a replay.
    for _ in 0..2 {
        let ran = show(&bench, &munged);
        assert_eq!(ran.ok().line("variables"), "variables   DW_WORKFLOW_TOKEN OTHER");
        assert!(ran.line("for ").contains(&format!("uid {}", me())), "{}", ran.out);
        assert!(ran.line("sealed by").ends_with(", verified by MUNGE"), "{}", ran.out);
        assert!(
            ran.line("sealed ").ends_with("ago)") || ran.line("sealed ").ends_with("(now)"),
            "{}",
            ran.out
        );
        assert!(!format!("{}{}", ran.out, ran.err).contains("canary"));
    }
}

#[needs(munged)]
#[test]
fn names_the_sealer_and_the_time_that_munge_knows_where_the_record_lies() {
    let munged = Munged::start();
    let record = sealed(&munged, JOBID, 54_321).replace("\"sealed-at\":", "\"sealed-at\":1.5,\"x\":");
    let ran = show(&with_record(me(), &record), &munged);
    assert!(
        ran.ok().line("sealed by").contains(&format!("uid {})", me())),
        "{}",
        ran.out
    );
    assert!(!ran.out.contains("54321") && !ran.out.contains("1970"), "{}", ran.out);
}

#[needs(munged)]
#[test]
fn reads_the_socket_from_the_configuration_of_the_instance() {
    let munged = Munged::start();
    let bench = with_record(me(), &sealed(&munged, JOBID, me()));
    let conf = format!(r#"{{"workflow-token":{{"munge-socket":"{}"}}}}"#, munged.socket());
    bench.replace_in_flux("'{}'", &format!("'{conf}'"));
    let ran = bench.run(&["show", ID]);
    assert!(
        ran.ok().line("sealed by").ends_with(", verified by MUNGE"),
        "{}",
        ran.out
    );
}

#[needs(munged)]
#[test]
fn tells_a_record_that_the_instance_owner_did_not_seal() {
    let munged = Munged::start();
    // The claims of the record do not matter.
    for says in [me(), me() + 1] {
        let bench = with_record(me() + 1, &sealed(&munged, JOBID, says));
        let ran = show(&bench, &munged);
        assert_eq!(ran.code, Some(1));
        assert!(ran.line("sealed by").contains("NOT AUTHENTIC"), "{}", ran.out);
        assert!(ran.line("sealed by").contains("only the instance owner"), "{}", ran.out);
    }
}

#[needs(munged)]
#[test]
fn tells_a_record_of_another_job() {
    let munged = Munged::start();
    let bench = with_record(me(), &sealed(&munged, 99, me()));
    let ran = show(&bench, &munged);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.line("sealed by")
            .contains("NOT AUTHENTIC: it claims to belong to job 99"),
        "{}",
        ran.out
    );
}

#[test]
fn shows_to_others_what_the_record_says_and_that_it_is_not_verified() {
    let bench = with_record(0, &unsealed(4_242_424));
    let ran = bench.run(&["show", ID]);
    assert_eq!(ran.ok().line("for "), "for         uid 4242424");
    assert!(
        ran.line("sealed ").starts_with("sealed      2023-11-14T22:13:20Z ("),
        "{}",
        ran.out
    );
    assert_eq!(
        ran.line("sealed by"),
        "sealed by   root (uid 0), according to the record, not verified: only the job owner can open it"
    );

    let json: Value = serde_json::from_str(&bench.run(&["show", "--json", ID]).ok().out).unwrap();
    assert_eq!(json["jobid"], JOBID);
    assert_eq!(json["variables"], serde_json::json!(["DW_WORKFLOW_TOKEN"]));
    assert_eq!(json["uid"], 4_242_424);
    assert_eq!(json["sealed-at"], 1_700_000_000.0);
    assert_eq!(json["sealer-name"], "root");
    assert_eq!(json["verified"], Value::Null);
}

#[test]
fn without_munged_it_shows_the_rest() {
    let bench = with_record(me(), &unsealed(me()));
    let ran = bench.run(&["show", ID, "--munge-socket", "/nonexistent/socket"]);
    assert_eq!(ran.ok().line("variables"), "variables   DW_WORKFLOW_TOKEN");
    assert!(
        ran.line("sealed by").contains("not verified: MUNGE could not open"),
        "{}",
        ran.out
    );
}

#[test]
fn says_why_there_is_nothing_to_show() {
    for (info, says) in [
        (
            "echo 'flux-job: workflow-token: key not found' >&2; exit 1",
            "ƒ2oLkTLb1: the job has no such record: no rule matched this job, the record was removed at the end of the job, \
             or the plugin was not loaded",
        ),
        (
            "echo 'flux-job: invalid job id' >&2; exit 1",
            "ƒ2oLkTLb1: no such job in this instance",
        ),
        (
            "echo 'flux-job: access is restricted to job/instance owner' >&2; exit 1",
            "ƒ2oLkTLb1: only the job owner and the instance owner can read the record",
        ),
        (
            "echo 'flux-job: flux_open: broker socket /run/flux/local was not found' >&2; exit 1",
            "ƒ2oLkTLb1: this does not run in a Flux instance",
        ),
        (
            "echo 'flux-job: No space left' >&2; exit 1",
            "ƒ2oLkTLb1: flux job info 7654321 workflow-token failed: flux-job: No space",
        ),
        ("echo '{}'", "ƒ2oLkTLb1: the sealed record is malformed"),
        ("echo '{\"version\":9}'", "ƒ2oLkTLb1: the sealed record is of version 9"),
    ] {
        bench(0, info).run(&["show", ID]).refused(says);
    }
    bench(0, "exit 1")
        .run(&["show", "a b\u{1b}"])
        .refused("a b\\u{1b}: not a job id");
    let ran = Ran::of(bench(0, "").command(&["show", ID]).env("PATH", "/nonexistent"));
    ran.refused("the command flux is not on PATH");
}

#[test]
fn a_secret_that_flux_prints_is_not_passed_on() {
    let ran = bench(0, "echo 'MUNGE:AwQDAACO5f: eyJhbGciOiJIUzI1NiJ9.e30.c2ln' >&2; exit 1").run(&["show", ID]);
    ran.refused("[redacted]");
    assert!(!ran.err.contains("AwQD") && !ran.err.contains("eyJ"), "{}", ran.err);
}

#[test]
fn names_in_a_record_do_not_steer_the_terminal() {
    let record = unsealed(4_242_424).replace("DW_WORKFLOW_TOKEN", "\\u001b[2J");
    let ran = with_record(0, &record).run(&["show", ID]);
    assert_eq!(ran.ok().line("variables"), "variables   \\u{1b}[2J");
}

#[test]
fn does_not_wait_for_a_flux_that_hangs() {
    // It leaves a process of its group behind that keeps the pipe open.
    let ran = bench(0, "sleep 300 & sleep 300").run(&["show", ID]);
    ran.refused("flux job info 7654321 workflow-token did not answer within 10 seconds and was killed");
}
