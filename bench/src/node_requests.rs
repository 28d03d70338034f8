// SPDX-License-Identifier: MIT OR Apache-2.0

//! `node-requests ask|pairs SOCKET PORT AGENT-UID CLUSTER JOBID NODE`: prints how many requests the agent of a Slurm cluster
//! answers a second, or how many credentials munged encodes and decodes a second: eight threads, for two seconds.

use std::{
    net::TcpStream,
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use protocol::{
    HEADER,
    slurm::{NodeReply, NodeRequest, VERSION},
};
use seal::Munge;
use slurm::{Deadline, MAX_REPLY, exchange};

const TIME: Duration = Duration::from_secs(2);
const THREADS: usize = 8;

fn main() -> ExitCode {
    bench::print_rate(
        "node-requests",
        "ask|pairs SOCKET PORT AGENT-UID CLUSTER JOBID NODE",
        run,
    )
}

fn run(args: &[String]) -> Result<f64, Box<dyn std::error::Error>> {
    let [what, socket, port, agent, cluster, jobid, node] = args else {
        return Err("wrong number of arguments".into());
    };
    let munge = Munge::new(Some(Path::new(socket)))?;
    let (port, agent): (u16, u32) = (port.parse()?, agent.parse()?);
    let request = NodeRequest {
        version: VERSION,
        cluster: cluster.clone(),
        jobid: jobid.parse()?,
        uid: rustix::process::getuid().as_raw(),
        node: node.clone(),
    };
    let request = protocol::encode(&request)?;
    let me = rustix::process::getuid().as_raw();
    let asks = what == "ask";
    let (done, start) = (AtomicU64::new(0), Instant::now());
    thread::scope(|scope| {
        let work = || -> Result<(), String> {
            while start.elapsed() < TIME {
                let to = if asks { agent } else { me };
                let credential = munge.encode(&request[HEADER..], to).map_err(|e| e.to_string())?;
                if asks {
                    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
                    let deadline = Deadline::after(TIME);
                    match exchange(&mut stream, &credential, MAX_REPLY, deadline).map_err(|e| e.to_string())? {
                        NodeReply::Record(_) => {}
                        other => return Err(format!("the agent answered {other:?}")),
                    }
                } else {
                    munge.receive(&credential).map_err(|e| e.to_string())?;
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?)
    })?;
    Ok(done.into_inner() as f64 / start.elapsed().as_secs_f64())
}
