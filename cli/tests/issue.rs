// SPDX-License-Identifier: MIT OR Apache-2.0

//! `flux workflow-token issue`: tokens that the rabbit software accepts, with keys that nobody else can read.

mod common;

use std::os::unix::fs::chown;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::Bench;
use needs::needs;

const RABBIT: &str = include_str!("../../token/testdata/rabbit.pem");
const PUBLIC: &str = include_str!("../../token/testdata/public.pem");

/// A token of that key, computed by another program (Python's hmac).
const TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3MDAwMDAwMDAsInN1YiI6InVzZXItY29udGFpbmVyIn0.EZos5TxoXCTLxI3ygYTgvEes6yyvrFyEj0fDspG7zIo";

fn issue(bench: &Bench, key: &str, more: &[&str]) -> common::Ran {
    bench.run(&[&["issue", "--sub", "user-container", "--key", key], more].concat())
}

#[test]
fn prints_the_very_token_that_the_rabbit_software_makes_and_nothing_else() {
    let bench = Bench::new();
    for mode in [0o600, 0o400] {
        let key = bench.write("key.pem", mode, RABBIT);
        let ran = issue(&bench, key.to_str().unwrap(), &["--iat", "1700000000"]);
        assert_eq!(
            (ran.ok().out.as_str(), ran.err.as_str()),
            (format!("{TOKEN}\n").as_str(), "")
        );
        std::fs::remove_file(key).unwrap();
    }
}

#[test]
fn issues_at_the_present_time_unless_told_otherwise() {
    let bench = Bench::new();
    let key = bench.write("key.pem", 0o600, RABBIT);
    let before = SystemTime::now();
    let ran = issue(&bench, key.to_str().unwrap(), &[]);
    let token = token::Token::inspect(ran.ok().out.trim_end()).unwrap();
    let iat = UNIX_EPOCH + Duration::from_secs_f64(token.claims().issued_at().unwrap().unwrap().seconds());
    assert!(before < iat + Duration::from_secs(1) && iat <= SystemTime::now());
    assert_eq!(token.claims().subject(), Some("user-container"));
}

#[test]
fn refuses_a_key_that_others_can_read_or_change() {
    let bench = Bench::new();
    for mode in [0o640, 0o604, 0o620, 0o610, 0o644] {
        let key = bench.write("key.pem", mode, RABBIT);
        let ran = issue(&bench, key.to_str().unwrap(), &[]);
        ran.refused(&format!("key file {}: mode 0{mode:o} lets others ", key.display()));
        ran.refused(": use chmod 0600");
    }
}

#[needs(root)]
#[test]
fn refuses_a_key_of_another_user() {
    let bench = Bench::new();
    let key = bench.write("key.pem", 0o600, RABBIT);
    chown(&key, Some(54_321), None).unwrap();
    issue(&bench, key.to_str().unwrap(), &[]).refused("owned by uid 54321");
}

#[test]
fn refuses_what_is_no_key_file_and_never_waits() {
    let bench = Bench::new();
    issue(&bench, "-", &[]).refused("--key -: the key must be in a file");
    issue(&bench, "/nonexistent.pem", &[]).refused("key file /nonexistent.pem: No such file or directory");
    issue(&bench, bench.dir.path().to_str().unwrap(), &[]).refused("not a regular file");

    let fifo = bench.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    issue(&bench, fifo.to_str().unwrap(), &[]).refused("not a regular file");

    let public = bench.write("public.pem", 0o600, PUBLIC);
    issue(&bench, public.to_str().unwrap(), &[]).refused("public.pem: it holds a PEM block \"PUBLIC KEY\"");
    let large = bench.write("large.pem", 0o600, RABBIT.repeat(200));
    issue(&bench, large.to_str().unwrap(), &[]).refused("longer than 65536 bytes");
}

#[test]
fn a_key_as_an_argument_is_refused_and_not_repeated() {
    let ran = issue(&Bench::new(), RABBIT, &[]);
    ran.refused("argument 5 contains a private key");
    assert!(!ran.err.contains("MIHu"), "{}", ran.err);
}

#[test]
fn a_subject_is_needed() {
    let bench = Bench::new();
    let key = bench.write("key.pem", 0o600, RABBIT);
    for args in [
        &["issue", "--key", key.to_str().unwrap()][..],
        &["issue", "--key", "k", "--sub", ""],
    ] {
        let ran = bench.run(args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
        assert!(ran.err.contains("--sub"), "{}", ran.err);
    }
}
