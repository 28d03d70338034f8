// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sealed records, with a real munged: who can open them, and which are rejected.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use crate::support::munged::Munged;
use base64::{Engine, engine::general_purpose::STANDARD};
use seal::{Error, Expected, ExposeSecret, Munge, Owner, Record, Secret, Staleness, Variables};

const CANARY: &str = "canary-5b1f";
const JOB: u64 = 4711;

fn variables() -> Variables {
    let mut variables = Variables::new();
    variables.insert("DW_WORKFLOW_TOKEN", Secret::from(CANARY)).unwrap();
    variables
}

fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Returns a job of the current user, in an instance of the same user.
fn expected() -> Expected {
    Expected {
        owner: Owner { jobid: JOB, uid: me() },
        instance_owner: me(),
    }
}

fn sealed(munge: &Munge) -> Record {
    Record::seal(munge, expected().owner, me(), &variables(), &Default::default()).unwrap()
}

/// Returns the record with one member of its JSON changed.
fn with(record: &Record, member: &str, value: serde_json::Value) -> Record {
    let mut json: serde_json::Value = serde_json::from_str(&record.to_json()).unwrap();
    json[member] = value;
    Record::from_json(&json.to_string()).unwrap()
}

/// Returns a record whose credential was made by munge(1), with this payload.
fn forged(munged: &Munged, payload: &str, options: &[&str]) -> Record {
    let mut munge = Command::new("munge");
    munge
        .arg("--socket")
        .arg(munged.socket())
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = munge.spawn().expect("munge(1) is installed with munged");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), payload.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let credential = String::from_utf8(output.stdout).unwrap();
    with(&sealed(&munged.client()), "credential", credential.trim().into())
}

#[needs(munged)]
#[test]
fn the_job_owner_opens_it_and_the_record_shows_names_only() {
    let munged = Munged::start();
    let record = Record::from_json(&sealed(&munged.client()).to_json()).unwrap();
    let opened = record.open(&munged.client(), &expected()).unwrap();
    let all: Vec<_> = opened
        .variables
        .iter()
        .map(|(name, value)| (name, value.expose_secret()))
        .collect();
    assert_eq!(all, [("DW_WORKFLOW_TOKEN", CANARY)]);
    assert_eq!(opened.staleness, None);
    assert_eq!(record.variables(), ["DW_WORKFLOW_TOKEN"]);
    assert!(!record.to_json().contains(CANARY));
    // Not in any encoding that an unencrypted credential could have.
    let inside = STANDARD
        .decode(record.credential().trim_start_matches("MUNGE:").trim_end_matches(':'))
        .unwrap();
    assert!(!inside.windows(CANARY.len()).any(|part| part == CANARY.as_bytes()));
}

#[needs(munged)]
#[test]
fn several_shells_on_one_node_open_it_one_after_the_other() {
    let munged = Munged::start();
    let record = sealed(&munged.client());
    record.open(&munged.client(), &expected()).unwrap();
    let again = record.open(&munged.client(), &expected()).unwrap();
    assert_eq!(again.staleness, Some(Staleness::Replayed));
    assert_eq!(again.variables.len(), 1);
}

#[needs(munged)]
#[test]
fn a_job_that_waited_longer_than_the_time_to_live_still_opens_it() {
    let munged = Munged::start();
    let record = sealed(&munged.client().ttl(seal::Ttl::Seconds(1)));
    let opened = loop {
        let opened = record.open(&munged.client(), &expected()).unwrap();
        if opened.staleness == Some(Staleness::Expired) {
            break opened;
        }
        std::thread::yield_now();
    };
    assert_eq!(opened.variables.len(), 1);
}

#[needs(munged)]
#[test]
fn a_record_of_another_job_user_or_sealer_is_refused() {
    let munged = Munged::start();
    let munge = munged.client();
    let record = sealed(&munge);
    let other_job = Expected {
        owner: Owner {
            jobid: JOB + 1,
            uid: me(),
        },
        ..expected()
    };
    assert!(matches!(record.open(&munge, &other_job), Err(Error::Foreign { .. })));
    let other_sealer = Expected {
        instance_owner: me() + 1,
        ..expected()
    };
    assert!(matches!(record.open(&munge, &other_sealer), Err(Error::Sealer { .. })));
    // Restricted to this user, but its payload names another.
    let uid = me();
    let payload = format!(r#"{{"version":1,"jobid":{JOB},"uid":{},"variables":{{}}}}"#, uid + 1);
    let record = forged(&munged, &payload, &["--restrict-uid", &uid.to_string()]);
    assert!(matches!(record.open(&munge, &expected()), Err(Error::Foreign { .. })));
}

/// Clusters that share a key have jobs with the same ids.
#[needs(munged)]
#[test]
fn a_record_of_another_cluster_is_refused() {
    let munged = Munged::start();
    let (hpc, other, none) = (
        munged.client().instance("hpc"),
        munged.client().instance("other"),
        munged.client(),
    );
    let record = sealed(&hpc);
    assert_eq!(record.open(&hpc, &expected()).unwrap().variables.len(), 1);
    for munge in [&other, &none] {
        let refused = record.open(munge, &expected());
        assert!(matches!(refused, Err(Error::OtherInstance { .. })), "{refused:?}");
    }
    let refused = sealed(&none).open(&hpc, &expected());
    assert!(matches!(refused, Err(Error::OtherInstance { .. })), "{refused:?}");
}

/// Messages between processes, such as a node's request, are valid for one use by one
/// user.
#[needs(munged)]
#[test]
fn a_message_is_received_once_by_the_user_it_is_for() {
    let munged = Munged::start();
    let munge = munged.client();
    let message = munge.encode(b"request", me()).unwrap();
    let (payload, uid) = munge.receive(&message).unwrap();
    assert_eq!((payload.as_slice(), uid), (&b"request"[..], me()));
    let again = munge.receive(&message).unwrap_err().to_string();
    assert!(again.contains("received before"), "{again}");
    assert!(munge.receive(&munge.encode(b"request", me() + 1).unwrap()).is_err());
    let for_all = forged(&munged, "request", &[]).credential().to_owned();
    let refused = munge.receive(&for_all).unwrap_err().to_string();
    assert!(refused.contains("not restricted"), "{refused}");
    assert!(munge.receive("MUNGE:no:").is_err() && munge.receive("\0").is_err());
}

#[needs(munged)]
#[test]
fn unauthenticated_members_of_a_record_decide_nothing() {
    let munged = Munged::start();
    let munge = munged.client();
    let record = with(
        &with(&sealed(&munge), "jobid", (JOB + 1).into()),
        "sealer",
        (me() + 1).into(),
    );
    record.open(&munge, &expected()).unwrap();
}

#[needs(munged)]
#[test]
fn a_credential_that_others_could_have_opened_is_refused() {
    let munged = Munged::start();
    let uid = me().to_string();
    let payload = format!(r#"{{"version":1,"jobid":{JOB},"uid":{uid},"variables":{{"A":"b"}}}}"#);
    for options in [&[][..], &["--restrict-uid", &uid, "--cipher", "none"][..]] {
        let record = forged(&munged, &payload, options);
        assert!(
            matches!(
                record.open(&munged.client(), &expected()),
                Err(Error::Unrestricted { .. } | Error::Unencrypted)
            ),
            "{options:?}"
        );
    }
    // The correct record is accepted, so no other flaw caused the rejection.
    let record = forged(&munged, &payload, &["--restrict-uid", &uid, "--cipher", "aes128"]);
    record.open(&munged.client(), &expected()).unwrap();
}

#[needs(munged)]
#[test]
fn a_damaged_credential_is_refused() {
    let munged = Munged::start();
    let munge = munged.client();
    let record = sealed(&munge);
    let whole = record.credential();
    let body = whole.trim_start_matches("MUNGE:").trim_end_matches(':');
    let mut bad = vec![String::new(), "MUNGE::".to_owned(), whole[..whole.len() / 2].to_owned()];
    for at in [0, body.len() / 3, body.len() / 2, body.len() - 8] {
        let mut bytes = STANDARD.decode(body).unwrap();
        bytes[at * 3 / 4] ^= 1;
        bad.push(format!("MUNGE:{}:", STANDARD.encode(bytes)));
    }
    for credential in bad {
        let record = with(&record, "credential", credential.clone().into());
        assert!(
            matches!(record.open(&munge, &expected()), Err(Error::Munge(_))),
            "{credential}"
        );
    }
    let foreign_key = Munged::start();
    assert!(matches!(
        record.open(&foreign_key.client(), &expected()),
        Err(Error::Munge(_))
    ));
}

#[needs(munged)]
#[test]
fn a_payload_of_a_newer_version_is_refused() {
    let munged = Munged::start();
    let uid = me().to_string();
    let record = forged(&munged, r#"{"version":2,"shape":"unknown"}"#, &["--restrict-uid", &uid]);
    assert!(matches!(
        record.open(&munged.client(), &expected()),
        Err(Error::Version { found: 2, .. })
    ));
}

#[needs(munged)]
#[test]
fn the_largest_payload_is_carried() {
    let munged = Munged::start();
    let mut variables = Variables::new();
    variables
        .insert("A", Secret::from("x".repeat(seal::MAX_PAYLOAD - 100)))
        .unwrap();
    let record = Record::seal(
        &munged.client(),
        expected().owner,
        me(),
        &variables,
        &Default::default(),
    )
    .unwrap();
    assert_eq!(record.open(&munged.client(), &expected()).unwrap().variables.len(), 1);
}

#[test]
fn munged_that_is_absent_can_be_tried_again() {
    let nowhere = Munge::new(Some(std::path::Path::new("/nonexistent/munge"))).unwrap();
    let error = Record::seal(&nowhere, expected().owner, me(), &variables(), &Default::default()).unwrap_err();
    assert!(error.is_retryable());
    let text = error.to_string();
    assert!(text.contains("is munged running") && !text.contains(CANARY), "{text}");
}

/// Only the job owner can open it: neither root, who sealed it, nor another user.
#[needs(munged, root)]
#[test]
fn root_the_sealer_and_other_users_are_refused() {
    const TEST: &str = "seal::root_the_sealer_and_other_users_are_refused";
    if let Ok(record) = std::env::var("TEST_RECORD") {
        // Runs in a process of the user in question, see below.
        let socket = std::env::var_os("TEST_SOCKET").unwrap();
        let owner: u32 = std::env::var("TEST_OWNER").unwrap().parse().unwrap();
        let munge = Munge::new(Some(std::path::Path::new(&socket))).unwrap();
        let expected = Expected {
            owner: Owner { jobid: JOB, uid: owner },
            instance_owner: 0,
        };
        match Record::from_json(&record).unwrap().open(&munge, &expected) {
            Ok(opened) => println!("opened: {}", opened.variables.len()),
            Err(Error::Munge(e)) if e.is_unauthorized() => println!("unauthorized"),
            Err(e) => println!("failed: {e}"),
        }
        return;
    }
    let munged = Munged::start();
    let (owner, other) = (61001, 61002);
    let record = Record::seal(
        &munged.client(),
        Owner { jobid: JOB, uid: owner },
        0,
        &variables(),
        &Default::default(),
    )
    .unwrap();
    // In a directory where every user can execute it.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for (uid, says) in [(owner, "opened: 1"), (other, "unauthorized"), (0, "unauthorized")] {
        let mut child = Command::new(&program);
        child
            .args(["--exact", TEST, "--nocapture"])
            .uid(uid)
            .gid(uid)
            .current_dir("/");
        child
            .env("TEST_RECORD", record.to_json())
            .env("TEST_SOCKET", munged.socket());
        let output = child.env("TEST_OWNER", owner.to_string()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(says), "uid {uid}: {text}");
    }
}

/// Sends nothing to a socket that others could have created.
#[needs(munged, root)]
#[test]
fn a_socket_that_others_could_have_created_is_not_used() {
    let munged = Munged::start();
    let dir = munged.socket().parent().unwrap().to_owned();
    let set_mode = |mode| std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    let munge = munged.client();
    let record = sealed(&munge);
    let refused = |munge: &Munge| {
        let sealing = Record::seal(munge, expected().owner, me(), &variables(), &Default::default()).unwrap_err();
        let opening = record.open(munge, &expected()).unwrap_err();
        assert!(!sealing.is_retryable() && !opening.is_retryable());
        let texts = [sealing.to_string(), opening.to_string()];
        assert!(
            texts
                .iter()
                .all(|text| text.contains(munged.socket().to_str().unwrap())),
            "{texts:?}"
        );
        texts
    };
    // The socket was used before, and is checked each time.
    set_mode(0o777);
    for text in refused(&munge) {
        assert!(
            text.contains("others can write to the directory") && text.contains("chmod go-w"),
            "{text}"
        );
    }
    set_mode(0o1777);
    sealed(&munge);
    // Another user listens in a directory like /tmp while munged is down.
    std::os::unix::fs::chown(munged.socket(), Some(61_001), None).unwrap();
    for text in refused(&munge) {
        assert!(
            text.contains("owned by uid 61001") && text.contains("munge-user"),
            "{text}"
        );
    }
    sealed(&munged.client().user(seal::MungeUser::Uid(61_001)));
}

/// The owner of a socket does not identify its listener.
#[needs(root)]
#[test]
fn nothing_is_sent_to_a_listener_of_another_user() {
    const TEST: &str = "nothing_is_sent_to_a_listener_of_another_user";
    const OTHER: u32 = 61_001;
    if let Some(path) = std::env::var_os("TEST_LISTENER") {
        // Runs in a process of the other user, see below.
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        println!("listening");
        let (mut connection, _) = listener.accept().unwrap();
        let received = std::io::copy(&mut connection, &mut std::io::sink()).unwrap();
        println!("received {received}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let set_mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    set_mode(dir.path(), 0o777);
    let (program, socket) = (dir.path().join("test"), dir.path().join("socket"));
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut listener = Command::new(&program)
        .args(["--exact", &format!("seal::{TEST}"), "--nocapture"])
        .uid(OTHER)
        .gid(OTHER)
        .current_dir("/")
        .env("TEST_LISTENER", &socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(listener.stdout.take().unwrap()));
    let mut says = |word: &str| {
        lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.contains(word))
            .unwrap()
    };
    says("listening");
    std::os::unix::fs::chown(&socket, Some(0), None).unwrap();
    set_mode(dir.path(), 0o755);
    let munge = Munge::new(Some(&socket)).unwrap();
    let error = Record::seal(&munge, expected().owner, me(), &variables(), &Default::default()).unwrap_err();
    let text = error.to_string();
    assert!(
        !error.is_retryable() && text.contains("uid 61001 listens there"),
        "{text}"
    );
    assert_eq!(says("received"), "received 0");
    listener.wait().unwrap();
}
