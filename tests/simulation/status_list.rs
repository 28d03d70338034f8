// SPDX-License-Identifier: MIT OR Apache-2.0

//! The token of a job has an entry in a status list. The list shows that the job has ended, even if it ended while no
//! agent ran.

use std::{fs, io::Write, os::unix::net::UnixStream};

use crate::support::{
    plugins::{Site, matching, until},
    simulator::built,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use protocol::{Answer, Ask, IssuerQuestion, MAX_FRAME, Question, Reply, Request, VERSION};
use serde_json::{Value, json};
use token::StatusList;

const ISSUER: &str = "https://hpc.example.org";

/// Sends a request to the agent of an instance. Returns None if it does not respond.
fn ask(site: &Site, question: IssuerQuestion) -> Option<Answer> {
    let arguments = fs::read(format!("/proc/{}/cmdline", site.agent())).unwrap();
    let arguments = String::from_utf8(arguments).unwrap();
    let socket = arguments.split('\0').skip_while(|word| *word != "--socket").nth(1);
    let mut agent = UnixStream::connect(socket?).ok()?;
    let name = ISSUER.to_owned();
    let ask = protocol::encode(&Request::Ask(Ask {
        version: VERSION,
        question: Question::Issuer { name, question },
    }));
    agent.write_all(&ask.unwrap()).ok()?;
    match protocol::receive(&mut agent, MAX_FRAME).ok()? {
        Reply::Answer(answer) => Some(answer),
        _ => panic!("the agent answered another question"),
    }
}

fn claims(token: &str) -> Value {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice(&claims).unwrap()
}

/// Returns the status of a token in the list that its agent signs, or None if it signs none.
fn status(site: &Site, token: &str) -> Option<u8> {
    let entry = claims(token)["status"]["status_list"].clone();
    let number = entry["uri"]
        .as_str()
        .unwrap()
        .strip_prefix(&format!("{ISSUER}/status/"))
        .unwrap();
    let number = number.parse().unwrap();
    let Some(Answer::Signed(list)) = ask(site, IssuerQuestion::StatusList { number }) else {
        return None;
    };
    let list = claims(&list);
    assert_eq!(list["sub"], entry["uri"]);
    let list = StatusList::from_lst(1, list["status_list"]["lst"].as_str().unwrap()).unwrap();
    list.get(entry["idx"].as_u64().unwrap() as u32)
}

#[needs(munged)]
#[test]
fn the_list_shows_which_jobs_have_ended_also_after_the_agent_was_killed() {
    let site = Site::new();
    let keys = site.path("keys");
    let made = std::process::Command::new(built("flux-workflow-token"))
        .args(["keygen", &keys])
        .output();
    assert!(made.unwrap().status.success());
    let rule = json!({"attribute": "system.listed", "source": "issuer", "workspace": "hydro"});
    let issuer = json!({"keys": keys, "name": ISSUER, "audience": "service", "status-list": site.path("status")});
    let mut instance = site.instance(json!({"rule": [rule], "issuer": issuer}));
    let mut start = |name: &str| {
        let file = site.path(name);
        let print = format!("printf %s \"$DW_WORKFLOW_TOKEN\" >{file}.new && mv {file}.new {file} && exec sleep 1000");
        let job = instance.submit(&["sh", "-c", &print], matching("listed"));
        until("the job has its token", || fs::exists(&file).unwrap());
        (job, fs::read_to_string(&file).unwrap())
    };
    let (first, second, third) = (start("first"), start("second"), start("third"));
    let statuses = || [&first, &second, &third].map(|(_, token)| status(&site, token));
    assert_eq!(statuses(), [Some(0); 3]);
    instance.ok("cancel", json!({ "jobid": first.0 }));
    instance.wait(&first.0, "clean");
    until("the end of the first job is in the list", || {
        statuses() == [Some(1), Some(0), Some(0)]
    });
    // A killed agent is restarted, and requests the earlier jobs.
    nix::sys::signal::kill(site.agent(), nix::sys::signal::Signal::SIGKILL).unwrap();
    instance.ok("cancel", json!({ "jobid": second.0 }));
    instance.wait(&second.0, "clean");
    until("the end of the second job is in the list", || {
        statuses() == [Some(1), Some(1), Some(0)]
    });
    instance.shutdown();
}
