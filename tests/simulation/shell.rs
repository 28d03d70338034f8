// SPDX-License-Identifier: MIT OR Apache-2.0

//! The job shell's part of a delivery, on the simulator: which records are accepted, for which jobs a record is looked
//! up, and the fate of a job whose record cannot be used.

use std::{
    fs,
    io::Write,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
};

use crate::support::{
    munged::Munged,
    plugins::{GUEST, PLAIN, PRINT, Site, decimal, jwt, matching, me, until, user, with_options},
    simulator::Instance,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use seal::{Expected, Owner, Record, Secret, Staleness, Variables};
use serde_json::{Value, json};

const CANARY: &str = "canary-71d0a3";

/// Prints the variable, or that there is none.
const SHOW: &[&str] = &["sh", "-c", "echo ${DW_WORKFLOW_TOKEN-unset}"];

/// Starts an instance whose job manager has not loaded the product, and which holds its jobs until [`Instance::go`].
fn held(site: &Site, conf: Value) -> Instance {
    let mut instance = site.without_jobtap(conf, &[]);
    instance.ok("load", site.hold());
    instance
}

/// Runs a job with a record that the test has made.
fn run_with(instance: &mut Instance, command: &[&str], more: Value, record: impl FnOnce(u64) -> String) -> String {
    let job = instance.submit(command, more);
    instance.wait(&job, "prolog-start");
    let key = instance.record_key(&job);
    instance.ok("kvs-put", json!({"key": key, "value": record(decimal(&job))}));
    instance.go();
    instance.wait(&job, "clean");
    job
}

fn sealed(munged: &Munged, jobid: u64, uid: u32) -> Record {
    let mut variables = Variables::new();
    variables.insert("DW_WORKFLOW_TOKEN", Secret::from(CANARY)).unwrap();
    Record::seal(
        &munged.client(),
        Owner { jobid, uid },
        me(),
        &variables,
        &Default::default(),
    )
    .unwrap()
}

/// Returns a record with one member of its JSON changed.
fn with(record: &Record, member: &str, value: impl Into<Value>) -> String {
    let mut json: Value = serde_json::from_str(&record.to_json()).unwrap();
    json[member] = value.into();
    json.to_string()
}

/// Returns the payload of a record for this user.
fn payload(jobid: u64) -> Value {
    json!({"version": 1, "jobid": jobid, "uid": me(), "variables": {"DW_WORKFLOW_TOKEN": CANARY}})
}

/// Returns a record whose credential was made by munge(1) as a user, with this payload.
fn forged(site: &Site, as_uid: u32, jobid: u64, payload: &Value, options: &[&str]) -> String {
    let mut munge = Command::new("munge");
    munge.arg("--socket").arg(site.munged.socket()).args(options);
    if as_uid != me() {
        munge.uid(as_uid).gid(as_uid).current_dir("/");
    }
    let mut child = munge
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("munge(1) is installed with munged");
    write!(child.stdin.take().unwrap(), "{payload}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "munge: {}", output.status);
    let credential = String::from_utf8(output.stdout).unwrap();
    with(&sealed(&site.munged, jobid, me()), "credential", credential.trim())
}

/// Makes all look-ups of job shells fail: a job that starts has made none.
fn refuse_lookups(instance: &mut Instance) {
    let refusal = json!({"topic": "job-info.lookup", "errnum": libc::EPERM, "errstr": "no lookups here"});
    instance.ok("service", refusal);
}

// Accepted records

/// The means to make a record.
struct Forge {
    site: Site,
    /// A munged with another key.
    foreign: Munged,
}

impl Forge {
    /// Returns a record as the product makes it.
    fn sealed(&self, jobid: u64) -> Record {
        sealed(&self.site.munged, jobid, me())
    }

    /// Returns a record that is correctly restricted to this user, with a wrong payload.
    fn payload(&self, jobid: u64, member: &str, value: Value) -> String {
        let mut payload = payload(jobid);
        payload[member] = value;
        self.munge(jobid, &payload, &["--restrict-uid", &me().to_string()])
    }

    /// Returns a record with a correct payload in a wrong credential.
    fn munge(&self, jobid: u64, payload: &Value, options: &[&str]) -> String {
        forged(&self.site, me(), jobid, payload, options)
    }
}

/// The flaw of a record, the function that makes it for a job, and the text for the user.
type Case = (&'static str, fn(&Forge, u64) -> String, &'static str);

const NOT_OPENED: &str = "MUNGE could not open the sealed record: ";
const NEWER: &str = "of version 2 and this plugin reads versions up to 1: update the plugin";

const REFUSED: &[Case] = &[
    (
        "of another job",
        |forge, id| forge.sealed(id + 1).to_json(),
        "belongs to job",
    ),
    (
        "of another uid, inside",
        |forge, id| forge.payload(id, "uid", json!(me() + 1)),
        "belongs to job",
    ),
    (
        "of another uid",
        |forge, id| with(&sealed(&forge.site.munged, id, me() + 1), "uid", me()),
        NOT_OPENED,
    ),
    (
        "of another key",
        |forge, id| sealed(&forge.foreign, id, me()).to_json(),
        NOT_OPENED,
    ),
    (
        "truncated",
        |forge, id| {
            let text = forge.sealed(id).to_json();
            text[..text.len() / 2].to_owned()
        },
        "malformed",
    ),
    (
        "with a truncated credential",
        |forge, id| {
            let record = forge.sealed(id);
            let credential = record.credential();
            with(&record, "credential", &credential[..credential.len() / 2])
        },
        NOT_OPENED,
    ),
    (
        "with a bit flipped",
        |forge, id| {
            let record = forge.sealed(id);
            let body = record.credential().trim_start_matches("MUNGE:").trim_end_matches(':');
            let mut bytes = STANDARD.decode(body).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            with(&record, "credential", format!("MUNGE:{}:", STANDARD.encode(bytes)))
        },
        NOT_OPENED,
    ),
    (
        "of a newer version",
        |forge, id| with(&forge.sealed(id), "version", 2),
        NEWER,
    ),
    (
        "of a newer version, inside",
        |forge, id| forge.payload(id, "version", json!(2)),
        NEWER,
    ),
    ("not JSON", |_, _| "a record".to_owned(), "malformed"),
    ("not an object", |_, _| "[1]".to_owned(), "malformed"),
    ("without members", |_, _| "{\"version\": 1}".to_owned(), "malformed"),
    (
        "with a name that is none",
        |forge, id| forge.payload(id, "variables", json!({"A=B": CANARY})),
        "malformed",
    ),
    (
        "with a NUL",
        |forge, id| forge.payload(id, "variables", json!({"A": format!("{CANARY}\0")})),
        "malformed",
    ),
    (
        "with variables that are none",
        |forge, id| forge.payload(id, "variables", json!(CANARY)),
        "malformed",
    ),
    (
        "unrestricted",
        |forge, id| forge.munge(id, &payload(id), &[]),
        "not restricted to uid",
    ),
    (
        "not encrypted",
        |forge, id| {
            let options = ["--restrict-uid", &me().to_string(), "--cipher", "none"];
            forge.munge(id, &payload(id), &options)
        },
        "not encrypted: it was refused",
    ),
];

#[needs(munged)]
#[test]
fn a_foreign_or_incomplete_record_fails_the_job_before_its_command_runs() {
    let (site, foreign) = (Site::new(), Munged::start());
    let forge = Forge { site, foreign };
    let mut instance = held(&forge.site, json!({}));
    let verbose = with_options("dw", json!({"verbose": 2}));
    for (wrong, make, says) in REFUSED {
        let job = run_with(&mut instance, &["echo", "started"], verbose.clone(), |id| {
            make(&forge, id)
        });
        let note = instance.refused(&job);
        assert!(
            note.starts_with("the workflow token of this job cannot be used: "),
            "{wrong}: {note}"
        );
        assert!(note.contains(says), "{wrong}: {note}");
        let stderr = instance.stderr(&job);
        assert!(
            !note.contains(CANARY) && !stderr.contains(CANARY),
            "{wrong}: {note}: {stderr}"
        );
    }
    // Correct records are accepted, so the flaws caused the rejections.
    let good: [fn(&Forge, u64) -> String; 2] = [
        |forge, id| forge.sealed(id).to_json(),
        |forge, id| forge.payload(id, "uid", json!(me())),
    ];
    for make in good {
        let job = run_with(&mut instance, PRINT, verbose.clone(), |id| make(&forge, id));
        assert_eq!(instance.stdout(&job).trim_end(), CANARY);
    }
    instance.shutdown();
}

#[needs(munged, root)]
#[test]
fn a_record_that_another_user_has_sealed_is_refused() {
    let site = Site::new();
    let guest = user(GUEST).uid.as_raw();
    let mut instance = held(&site, json!({}));
    // Sealed by the job owner, who may seal anything for themselves.
    let job = run_with(&mut instance, &["echo", "started"], json!({"userid": guest}), |id| {
        let mut payload = payload(id);
        payload["uid"] = json!(guest);
        forged(&site, guest, id, &payload, &["--restrict-uid", &guest.to_string()])
    });
    let note = instance.refused(&job);
    let says = format!("sealed by uid {guest} and only the instance owner (uid 0) may");
    assert!(note.contains(&says), "{note}");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn every_shell_of_a_job_on_one_node_opens_the_record() {
    let site = Site::new();
    let mut instance = held(&site, json!({}));
    let mut more = with_options("dw", json!({"verbose": 2}));
    more["nodes"] = json!(4);
    let job = run_with(&mut instance, PRINT, more, |id| {
        sealed(&site.munged, id, me()).to_json()
    });
    assert_eq!(instance.stdout(&job), format!("{CANARY}\n").repeat(4));
    let stderr = instance.stderr(&job);
    assert_eq!(stderr.matches("exported DW_WORKFLOW_TOKEN").count(), 4, "{stderr}");
    assert_eq!(stderr.matches("opened on this node before").count(), 3, "{stderr}");
    assert!(!stderr.contains(CANARY), "{stderr}");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn the_credential_may_expire_while_the_job_waits_for_another_prolog() {
    let site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"munge-ttl": "1s", "rule": [site.file_rule("dw", &token)]}));
    instance.ok("load", site.hold());
    let job = instance.submit(PRINT, with_options("dw", json!({"verbose": 1})));
    instance.wait(&job, "prolog-finish");
    let record = Record::from_json(&instance.record(&job).unwrap().to_string()).unwrap();
    let owner = Owner {
        jobid: decimal(&job),
        uid: me(),
    };
    until("the credential has expired", || {
        let opened = record.open(
            &site.munged.client(),
            &Expected {
                owner,
                instance_owner: me(),
            },
        );
        opened.unwrap().staleness == Some(Staleness::Expired)
    });
    instance.go();
    instance.wait(&job, "clean");
    assert_eq!(instance.stdout(&job).trim_end(), token);
    let stderr = instance.stderr(&job);
    assert!(stderr.contains("older than MUNGE's time to live"), "{stderr}");
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn the_token_replaces_a_value_of_the_user() {
    let site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    let mut more = matching("dw");
    more["env"] = json!({"DW_WORKFLOW_TOKEN": "mine"});
    let job = instance.run(PRINT, more);
    assert_eq!(instance.stdout(&job).trim_end(), token);
    let job = instance.run(PRINT, json!({"env": {"DW_WORKFLOW_TOKEN": "mine"}}));
    assert_eq!(
        instance.stdout(&job),
        "mine\n",
        "the environment of a job that no rule matches was changed"
    );
    instance.shutdown();
}

#[needs(munged, root)]
#[test]
fn the_most_verbose_output_shows_a_guest_no_secret() {
    let site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    let mut more = with_options("dw", json!({"verbose": 2}));
    more["userid"] = json!(user(GUEST).uid.as_raw());
    let job = instance.run(PRINT, more);
    assert_eq!(instance.stdout(&job).trim_end(), token);
    let stderr = instance.stderr(&job);
    assert!(
        stderr.contains("DEBUG: workflow-token: exported DW_WORKFLOW_TOKEN\n"),
        "{stderr}"
    );
    assert!(!token.split('.').any(|part| stderr.contains(part)), "{stderr}");
    instance.shutdown();
}

// munged on the node

#[needs(munged)]
#[test]
fn a_shell_waits_for_a_restart_of_munged() {
    let mut site = Site::new();
    let token = jwt(json!({}));
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", &token)]}));
    instance.ok("load", site.hold());
    let job = instance.submit(PRINT, matching("dw"));
    instance.wait(&job, "prolog-finish");
    site.restart_munged_late(|| instance.go());
    instance.wait(&job, "clean");
    assert_eq!(instance.stdout(&job).trim_end(), token);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_shell_without_munged_fails_the_job_with_a_reason() {
    let mut site = Site::new();
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", jwt(json!({})))]}));
    instance.ok("load", site.hold());
    let job = instance.submit(&["echo", "started"], matching("dw"));
    instance.wait(&job, "prolog-finish");
    site.kill_munged();
    instance.go();
    let note = instance.refused(&job);
    assert!(note.contains("is munged running on this node"), "{note}");
    instance.shutdown();
}

// Jobs whose record is looked up

#[needs(munged)]
#[test]
fn a_job_without_a_record_runs_without_a_token_unless_it_was_to_have_one() {
    let site = Site::new();
    let mut instance = site.without_jobtap(json!({}), &[]);
    let job = instance.run(SHOW, with_options("dw", json!({"verbose": 1})));
    assert_eq!(instance.stdout(&job), "unset\n");
    assert_eq!(instance.events(&job), PLAIN);
    let stderr = instance.stderr(&job);
    assert!(stderr.contains("there is no sealed record"), "{stderr}");
    for option in [json!(1), json!(true), json!("yes")] {
        let job = instance.submit(
            &["echo", "started"],
            with_options("dw", json!({"workflow-token": option})),
        );
        let note = instance.refused(&job);
        assert!(
            note.contains("there is no sealed record") && note.contains("not loaded in the job manager"),
            "{note}"
        );
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_lookup_that_fails_fails_the_job() {
    let site = Site::new();
    let mut instance = site.without_jobtap(json!({}), &[]);
    refuse_lookups(&mut instance);
    let job = instance.submit(&["echo", "started"], json!({}));
    let note = instance.refused(&job);
    assert!(note.contains("could not be looked up: no lookups here"), "{note}");
    for payload in [json!({}), json!({"workflow-token": 1}), json!("none")] {
        instance.ok("service", json!({"topic": "job-info.lookup", "payload": payload}));
        let job = instance.submit(&["echo", "started"], json!({}));
        let note = instance.refused(&job);
        assert!(note.contains("could not be looked up"), "{payload}: {note}");
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_that_declines_a_token_has_none_and_no_look_up() {
    let site = Site::new();
    let mut instance = site.instance(json!({"rule": [site.file_rule("dw", jwt(json!({})))]}));
    refuse_lookups(&mut instance);
    for option in [json!(0), json!(false)] {
        let job = instance.run(SHOW, with_options("dw", json!({"workflow-token": option})));
        assert_eq!(instance.stdout(&job), "unset\n");
    }
    instance.shutdown();
}

/// Returns a rule for a file that does not exist.
fn file_rule(mut conditions: Value) -> Value {
    conditions["source"] = json!("file");
    conditions["path"] = json!("/nonexistent");
    conditions
}

#[needs(munged)]
#[test]
fn a_shell_with_rules_looks_up_no_record_of_a_job_that_none_can_match() {
    let site = Site::new();
    let owner = nix::unistd::User::from_uid(me().into()).unwrap().unwrap();
    let group = nix::unistd::Group::from_gid(owner.gid).unwrap().unwrap();
    let config = site.configure(json!({"rule": [
        file_rule(json!({"attribute": "system.dw"})),
        file_rule(json!({"attribute": "system.q", "queue": "debug"})),
        file_rule(json!({"attribute": "system.u", "user": owner.name})),
        file_rule(json!({"attribute": "system.n", "user": me()})),
        file_rule(json!({"attribute": "system.o", "user": me() + 1})),
        file_rule(json!({"attribute": "system.g", "group": group.name})),
        file_rule(json!({"attribute": "system.h", "group": 3_999_999})),
    ]}));
    let mut instance = site.without_jobtap(json!({"config": config}), &[]);
    refuse_lookups(&mut instance);
    // An attribute may have been added since submission, and another node may know other groups.
    for asked in ["none", "o", "h", "dw", "q", "u", "n", "g"] {
        let job = instance.submit(&["echo", "started"], matching(asked));
        assert!(instance.refused(&job).contains("no lookups here"), "{asked}");
    }
    // Without a record, the result depends on whether one was certainly expected.
    instance.ok("service", json!({"topic": "job-info.lookup"}));
    for certain in ["dw", "u", "n", "g"] {
        let job = instance.submit(&["echo", "started"], matching(certain));
        let note = instance.refused(&job);
        assert!(note.contains("there is no sealed record"), "{certain}: {note}");
    }
    let job = instance.run(SHOW, json!({"attributes": {"system": {"q": 1, "queue": "debug"}}}));
    assert_eq!(instance.stdout(&job), "unset\n");
    for unmatched in ["none", "o", "h"] {
        let job = instance.run(SHOW, matching(unmatched));
        assert_eq!(instance.stdout(&job), "unset\n", "{unmatched}");
        assert_eq!(instance.events(&job), PLAIN, "{unmatched}");
    }
    instance.shutdown();
    fs::remove_dir_all(site.statedir()).unwrap();

    // The uid of a job never changes.
    let config = site.configure(json!({"rule": [
        file_rule(json!({"user": me() + 1})),
        file_rule(json!({"attribute": "system.dw", "group": group.name, "user": me() + 2})),
    ]}));
    let mut instance = site.without_jobtap(json!({"config": config}), &[]);
    refuse_lookups(&mut instance);
    for unmatched in ["none", "dw"] {
        let job = instance.run(SHOW, matching(unmatched));
        assert_eq!(instance.stdout(&job), "unset\n", "{unmatched}");
        assert_eq!(instance.events(&job), PLAIN, "{unmatched}");
    }
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_that_came_to_match_after_its_submission_gets_its_token() {
    let site = Site::new();
    // Neither the signed jobspec nor the groups on this node show a match.
    for conditions in [
        json!({"attribute": "system.dw"}),
        json!({"group": 3_999_999}),
        json!({"group": "no-such-group"}),
        json!({"user": "no-such-user"}),
    ] {
        let config = site.configure(json!({"rule": [file_rule(conditions.clone())]}));
        let mut instance = held(&site, json!({"config": config}));
        let job = run_with(&mut instance, SHOW, json!({}), |id| {
            sealed(&site.munged, id, me()).to_json()
        });
        assert_eq!(instance.stdout(&job).trim_end(), CANARY, "{conditions}");
        instance.shutdown();
        fs::remove_dir_all(site.statedir()).unwrap();
    }
}

#[needs(munged)]
#[test]
fn a_shell_with_rules_exports_the_token_of_a_job() {
    let site = Site::new();
    let token = jwt(json!({}));
    let config = site.configure(json!({"rule": [site.file_rule("dw", &token)]}));
    // The configuration also contains the settings for munged.
    let shell = site.path("shell/workflow-token.so");
    let conf = json!({"config": config}).to_string();
    let args = ["--config", &config, "--shell-plugin", &shell, "--shell-conf", &conf];
    let mut instance = site.launch(&args);
    assert_eq!(instance.token("dw"), token);
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_shell_without_readable_rules_warns_and_looks_up_every_record() {
    let site = Site::new();
    let bad = site.write("bad.toml", 0o644, "[workflow-token]\ntimeout = \"soon\"\n");
    for config in [site.path("missing.toml"), bad] {
        let mut instance = site.without_jobtap(json!({"config": config}), &[]);
        let job = instance.run(SHOW, json!({}));
        assert_eq!(instance.stdout(&job), "unset\n");
        let stderr = instance.stderr(&job);
        assert!(
            stderr.contains("WARN: workflow-token: the rules are unknown on this node"),
            "{stderr}"
        );
        refuse_lookups(&mut instance);
        let job = instance.submit(&["echo", "started"], json!({}));
        assert!(instance.refused(&job).contains("no lookups here"));
        instance.shutdown();
        fs::remove_dir_all(site.statedir()).unwrap();
    }
}

#[needs(munged)]
#[test]
fn a_shell_in_an_instance_of_another_owner_looks_up_no_record() {
    let site = Site::new();
    let name = nix::unistd::User::from_uid(me().into()).unwrap().unwrap().name;
    for (owner, asks) in [
        (json!(me() + 1), false),
        (json!(GUEST), me() == user(GUEST).uid.as_raw()),
        (json!("no-such-user"), false),
        (json!(me()), true),
        (json!(me().to_string()), true),
        (json!(name), true),
    ] {
        let mut instance = site.without_jobtap(json!({"instance-owner": owner}), &[]);
        refuse_lookups(&mut instance);
        let job = instance.submit(SHOW, json!({}));
        instance.wait(&job, "clean");
        let stdout = instance.stdout(&job);
        assert_eq!(stdout, if asks { "" } else { "unset\n" }, "{owner}");
        instance.shutdown();
        fs::remove_dir_all(site.statedir()).unwrap();
    }
}

#[needs(munged)]
#[test]
fn a_mistake_in_the_shells_configuration_fails_the_job_and_names_the_key() {
    let site = Site::new();
    for (conf, key) in [
        (json!({"confg": "/x"}), "confg"),
        (json!({"config": 1}), "config"),
        (json!({"munge-socket": []}), "munge-socket"),
        (json!({"instance-owner": true}), "instance-owner"),
    ] {
        let mut instance = site.without_jobtap(conf, &[]);
        let job = instance.submit(&["echo", "started"], json!({}));
        instance.refused(&job);
        let stderr = instance.stderr(&job);
        assert!(
            stderr.contains("ERROR: workflow-token: conf in the initrc") && stderr.contains(key),
            "{stderr}"
        );
        instance.shutdown();
        fs::remove_dir_all(site.statedir()).unwrap();
    }
}
