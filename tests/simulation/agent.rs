// SPDX-License-Identifier: MIT OR Apache-2.0

//! Agents that plugins did not start.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    thread,
};

use crate::support::plugins::{PRINT, Site, jwt, matching, me};
use protocol::{Incoming, RELEASE, Reply, Request, VERSION};
use serde_json::json;

/// Plays an agent of another user: it sends its welcome only after it receives a delivery, together with the answer.
fn welcome_late(mut plugin: UnixStream) -> std::io::Result<()> {
    let mut incoming = Incoming::default();
    let mut buffer = [0; 4096];
    loop {
        let length = plugin.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        incoming.add(&buffer[..length]);
        while let Some(request) = incoming.take::<Request>().map_err(std::io::Error::other)? {
            let Request::Deliver(deliver) = request else { continue };
            let (number, release, uid) = (deliver.number, RELEASE.to_owned(), me() + 1);
            let welcome = Reply::Welcome {
                version: VERSION,
                release,
                uid,
            };
            let mut bytes = Vec::new();
            for reply in [welcome, Reply::NoRule { number }] {
                bytes.extend_from_slice(&protocol::encode(&reply).map_err(std::io::Error::other)?);
            }
            plugin.write_all(&bytes)?;
        }
    }
}

/// Plays an agent of another release that does not exit: it answers the first message of each plugin.
fn stay(mut plugin: UnixStream) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    if plugin.read(&mut buffer)? == 0 {
        return Ok(());
    }
    let release = "0.0.0".to_owned();
    let (version, uid) = (VERSION, me());
    let welcome = protocol::encode(&Reply::Welcome { version, release, uid });
    plugin.write_all(&welcome.map_err(std::io::Error::other)?)?;
    while plugin.read(&mut buffer)? != 0 {}
    Ok(())
}

/// The plugins are older or newer than the installed agent. The log names both releases once, and jobs fail in time.
#[needs(munged)]
#[test]
fn other_release() {
    let site = Site::new();
    fs::create_dir(site.at("state")).unwrap();
    let socket = UnixListener::bind(site.at("state/workflow-token-agent")).unwrap();
    thread::spawn(move || {
        for plugin in socket.incoming().flatten() {
            thread::spawn(move || stay(plugin));
        }
    });
    let rule = site.file_rule("dw", jwt(json!({})));
    let mut instance = site.instance(json!({"timeout": "1s", "rule": [rule]}));
    let job = instance.submit(PRINT, matching("dw"));
    let note = instance.undelivered(&job);
    assert!(note.contains("[agent-unavailable]"), "{note}");
    let line = format!("an agent of release 0.0.0 was there: this plugin is of release {RELEASE}");
    let log = instance.dmesg();
    assert_eq!(log.iter().filter(|logged| logged.contains(&line)).count(), 1, "{log:?}");
    instance.shutdown();
}

/// Every job shell would reject the agent's records. The kernel does not report the user of a socket that systemd
/// created.
#[needs(munged)]
#[test]
fn an_agent_of_another_user_is_not_used_and_the_log_reports_it() {
    let site = Site::new();
    let socket = UnixListener::bind(site.at("agent")).unwrap();
    thread::spawn(move || {
        for plugin in socket.incoming().flatten() {
            // The plugin may close the connection at any time.
            let _ = welcome_late(plugin);
        }
    });
    let rule = site.file_rule("dw", jwt(json!({})));
    let mut instance = site.instance(json!({"agent": site.path("agent"), "timeout": "1s", "rule": [rule]}));
    let job = instance.submit(PRINT, matching("dw"));
    let note = instance.undelivered(&job);
    assert!(
        note.contains("[agent-unavailable]") || note.contains("[agent-timeout]"),
        "{note}"
    );
    let line = format!(
        "it runs as uid {}, and job shells accept only what uid {} has sealed",
        me() + 1,
        me()
    );
    let told = instance.dmesg().iter().filter(|logged| logged.contains(&line)).count();
    assert_eq!(told, 1, "{:?}", instance.dmesg());
    instance.shutdown();
}
