// SPDX-License-Identifier: MIT OR Apache-2.0

//! Requests the record of a job from the agents, as root.

use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    thread,
    time::Duration,
};

use protocol::{
    HEADER,
    slurm::{NodeReply, NodeRequest, VERSION},
};
use seal::{Munge, Record};

use crate::{
    Site,
    exchange::{Deadline, MAX_REPLY, exchange},
};

/// The total time for requests to the agents. It allows for a restart of an agent.
const TOGETHER: Duration = Duration::from_secs(15);

/// The time in which one agent must accept a connection.
const CONNECT: Duration = Duration::from_secs(2);

/// The time in which one agent must reply.
const REPLY: Duration = Duration::from_secs(5);

/// The pause before all agents are contacted again.
const PAUSE: Duration = Duration::from_millis(500);

/// The maximum length of a reason shown to a user, in characters.
const MAX_REASON: usize = 500;

/// A job on this node, and the context for requesting its record.
pub struct Node<'a> {
    /// The configuration.
    pub site: &'a Site,
    /// The client of this node's munged.
    pub munge: &'a Munge,
    /// The uid of the agents.
    pub agent_uid: u32,
    /// The node name.
    pub name: &'a str,
    /// The job id.
    pub jobid: u32,
    /// The uid of the job owner.
    pub uid: u32,
}

/// The response of an agent.
#[derive(Debug)]
pub enum Answer {
    /// The record. Only its job and uid have been checked.
    Record(Record),
    /// The job must not start, for this reason. The text is for the user.
    Failed(String),
    /// No agent has a record. The text is for the operator: the reply of each agent, or why it was unreachable.
    Unavailable(String),
}

/// Contacts one agent after the other, and retries while any of them is
/// unreachable.
///
/// # Errors
/// Text for the operator: munged of this node does not encode a request.
pub fn ask(node: &Node<'_>) -> Result<Answer, String> {
    let name = node.name;
    let deadline = Deadline::after(TOGETHER);
    loop {
        let mut failures = Vec::new();
        let mut all_know_nothing = true;
        for server in &node.site.slurm.servers {
            // Without munged on this node, no agent can be contacted.
            let request = request(node)?;
            match ask_one(server, &request, deadline) {
                Ok(NodeReply::Record(text)) => match record(node, &text) {
                    Ok(record) => return Ok(Answer::Record(record)),
                    Err(why) => failures.push(format!("{server}: {why}")),
                },
                // The reply is not authenticated, and appears on a terminal.
                Ok(NodeReply::Failed(why)) => {
                    let why = why.escape_debug().take(MAX_REASON).collect();
                    return Ok(Answer::Failed(why));
                }
                Ok(NodeReply::Unknown) => {
                    failures.push(format!(
                        "{server}: the agent does not know this job on node {name}: see its log"
                    ));
                    continue;
                }
                Err(e) => failures.push(format!("{server}: {e}")),
            }
            all_know_nothing = false;
        }
        // A round that begins too late would only report its own timeouts.
        if all_know_nothing || !deadline.left().is_ok_and(|left| left > PAUSE + CONNECT) {
            let failures = failures.join("; ");
            return Ok(Answer::Unavailable(format!("no agent has a record: {failures}")));
        }
        thread::sleep(PAUSE);
    }
}

fn record(node: &Node<'_>, text: &str) -> Result<Record, String> {
    let record = Record::from_json(text).map_err(|e| e.to_string())?;
    match is_of(&record, node.jobid, node.uid) {
        true => Ok(record),
        false => Err(format!(
            "its record is for job {} of uid {}",
            record.jobid(),
            record.uid()
        )),
    }
}

/// Returns whether a record claims to belong to this job.
pub fn is_of(record: &Record, jobid: u32, uid: u32) -> bool {
    (record.jobid(), record.uid()) == (jobid.into(), uid)
}

/// Returns a request in a credential, which is valid for one use.
fn request(node: &Node<'_>) -> Result<String, String> {
    let request = NodeRequest {
        version: VERSION,
        cluster: node.site.slurm.cluster.clone(),
        jobid: node.jobid,
        uid: node.uid,
        node: node.name.to_owned(),
    };
    let frame = protocol::encode(&request).map_err(|e| e.to_string())?;
    // The payload is the message without its length.
    let sealed = node.munge.encode(&frame[HEADER..], node.agent_uid);
    sealed.map_err(|e| e.to_string())
}

fn ask_one(server: &str, credential: &String, deadline: Deadline) -> io::Result<NodeReply> {
    let addresses: Vec<SocketAddr> = server.to_socket_addrs()?.collect();
    let mut stream = connect(&addresses, deadline)?;
    // The request is small and nothing follows it.
    stream.set_nodelay(true)?;
    exchange(&mut stream, credential, MAX_REPLY, deadline.at_most(REPLY))
}

fn connect(addresses: &[SocketAddr], deadline: Deadline) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in addresses {
        match TcpStream::connect_timeout(address, deadline.left()?.min(CONNECT)) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        r#"{"version":1,"jobid":7,"uid":1000,"sealer":1,"variables":["A"],"sealed-at":1.0,"credential":"MUNGE:x:"}"#;

    #[test]
    fn a_record_is_for_one_job_of_one_user() {
        let record = Record::from_json(TEXT).unwrap();
        assert!(is_of(&record, 7, 1000));
        assert!(!is_of(&record, 8, 1000) && !is_of(&record, 7, 1001));
    }
}
