// SPDX-License-Identifier: MIT OR Apache-2.0

//! The agent reports whether the job of a token is active, and when it ended.

use std::{fs, io::Write, os::unix::net::UnixStream, time::SystemTime};

use crate::support::plugins::{Site, decimal, jwt, matching, until};
use protocol::{Answer, Ask, JobEnd, JobFacts, MAX_FRAME, Question, Reply, Request, TokenFacts, VERSION, Validity};
use serde_json::json;

/// Sends a request to the agent of an instance.
fn ask(site: &Site, question: Question) -> Answer {
    let arguments = fs::read(format!("/proc/{}/cmdline", site.agent())).unwrap();
    let arguments = String::from_utf8(arguments).unwrap();
    let socket = arguments.split('\0').skip_while(|word| *word != "--socket").nth(1);
    let mut agent = UnixStream::connect(socket.unwrap()).unwrap();
    let ask = protocol::encode(&Request::Ask(Ask {
        version: VERSION,
        question,
    }));
    agent.write_all(&ask.unwrap()).unwrap();
    match protocol::receive(&mut agent, MAX_FRAME).unwrap() {
        Reply::Answer(answer) => answer,
        _ => panic!("the agent did not answer"),
    }
}

/// Requests the validity of a token of a job.
fn check(site: &Site, instance: &str, jobid: u64) -> Validity {
    let job = JobFacts {
        instance: instance.to_owned(),
        jobid,
        uid: 0,
    };
    let question = Question::Check(TokenFacts {
        job: Some(job),
        ..TokenFacts::default()
    });
    match ask(site, question) {
        Answer::Validity(validity) => validity,
        answer => panic!("{answer:?}"),
    }
}

/// Returns the jobs of this user that hold tokens, by name, with their
/// variables.
fn held(site: &Site) -> Vec<(String, Vec<String>)> {
    let uid = nix::unistd::geteuid().as_raw();
    match ask(site, Question::Held { uid }) {
        Answer::Held(held) => held.into_iter().map(|held| (held.name, held.variables)).collect(),
        answer => panic!("{answer:?}"),
    }
}

fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

#[needs(munged)]
#[test]
fn a_job_is_active_until_it_has_ended_at_a_time() {
    let site = Site::new();
    let rule = site.file_rule("dw", jwt(json!({})));
    let mut instance = site.instance(json!({"rule": [rule]}));
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let host = host.trim_end();
    let job = instance.submit(&["sleep", "1000"], matching("dw"));
    instance.wait(&job, "start");
    let id = decimal(&job);
    assert_eq!(check(&site, host, id), Validity::Active);
    let before = now();
    instance.ok("cancel", json!({ "jobid": job }));
    instance.wait(&job, "clean");
    // The job manager writes its events with a delay.
    let mut end = JobEnd::default();
    until("the end is known", || match check(&site, host, id) {
        Validity::Ended(at) => {
            end = at;
            at.at.is_some()
        }
        validity => panic!("{validity:?}"),
    });
    assert!((before..=now()).contains(&end.at.unwrap()), "{end:?} and {before}");
    // The time is that of the job's last event, and does not depend on the
    // question.
    assert_eq!(check(&site, host, id), Validity::Ended(end));
    let never = Validity::Ended(JobEnd { at: None });
    assert_eq!(check(&site, host, 12345), never);
    // The job has ended, even while the KVS does not respond.
    instance.ok("fault", json!({"what": "hold-lookups"}));
    assert_eq!(check(&site, host, id), never);
    instance.ok("fault", json!({"what": "release-lookups"}));
    assert!(matches!(check(&site, "elsewhere", id), Validity::Unknown(_)));
    instance.shutdown();
}

#[needs(munged)]
#[test]
fn a_job_holds_tokens_until_it_has_ended() {
    let site = Site::new();
    let rule = site.file_rule("dw", jwt(json!({"exp": now() + 3600})));
    let mut instance = site.instance(json!({"rule": [rule]}));
    let job = instance.submit(&["sleep", "1000"], matching("dw"));
    instance.wait(&job, "start");
    let [(name, variables)] = &held(&site)[..] else {
        panic!("{:?}", held(&site));
    };
    assert!(name.starts_with('ƒ'), "{name}");
    assert_eq!(variables, &["DW_WORKFLOW_TOKEN"]);
    let Answer::Figures(figures) = ask(&site, Question::Figures) else {
        panic!("no figures");
    };
    let results: Vec<_> = figures
        .results
        .iter()
        .map(|result| (result.name.as_str(), result.count))
        .collect();
    assert_eq!(results, [("delivered", 1)]);
    assert_eq!(
        (figures.sources[0].name.as_str(), figures.sources[0].fetched),
        ("rule 0 (file)", 1)
    );
    instance.ok("cancel", json!({ "jobid": job }));
    instance.wait(&job, "clean");
    assert_eq!(held(&site), []);
    instance.shutdown();
}
