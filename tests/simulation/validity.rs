//! The agent answers whether the job of a token is active, and when it ended.

use std::{fs, io::Write, os::unix::net::UnixStream, time::SystemTime};

use crate::support::plugins::{Site, decimal, jwt, matching, until};
use protocol::{Answer, Ask, JobEnd, JobFacts, MAX_FRAME, Question, Reply, Request, TokenFacts, VERSION, Validity};
use serde_json::json;

/// Asks the agent of an instance about a token of a job.
fn check(site: &Site, instance: &str, jobid: u64) -> Validity {
    let arguments = fs::read(format!("/proc/{}/cmdline", site.agent())).unwrap();
    let arguments = String::from_utf8(arguments).unwrap();
    let socket = arguments.split('\0').skip_while(|word| *word != "--socket").nth(1);
    let mut agent = UnixStream::connect(socket.unwrap()).unwrap();
    let job = JobFacts {
        instance: instance.to_owned(),
        jobid,
        uid: 0,
    };
    let question = Question::Check(TokenFacts {
        job: Some(job),
        ..TokenFacts::default()
    });
    let ask = protocol::encode(&Request::Ask(Ask {
        version: VERSION,
        question,
    }));
    agent.write_all(&ask.unwrap()).unwrap();
    match protocol::receive(&mut agent, MAX_FRAME).unwrap() {
        Reply::Answer(Answer::Validity(validity)) => validity,
        _ => panic!("the agent answered another question"),
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
    // The job manager writes its events a little later.
    let mut end = JobEnd::default();
    until("the end is known", || match check(&site, host, id) {
        Validity::Ended(at) => {
            end = at;
            at.at.is_some()
        }
        validity => panic!("{validity:?}"),
    });
    assert!((before..=now()).contains(&end.at.unwrap()), "{end:?} and {before}");
    // The time is that of its last event, whatever a question comes after.
    assert_eq!(check(&site, host, id), Validity::Ended(end));
    let never = Validity::Ended(JobEnd { at: None });
    assert_eq!(check(&site, host, 12345), never);
    // While the KVS does not answer, the job has ended nevertheless.
    instance.ok("fault", json!({"what": "hold-lookups"}));
    assert_eq!(check(&site, host, id), never);
    instance.ok("fault", json!({"what": "release-lookups"}));
    assert!(matches!(check(&site, "elsewhere", id), Validity::Unknown(_)));
    instance.shutdown();
}
