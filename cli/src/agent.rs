// SPDX-License-Identifier: MIT OR Apache-2.0

//! The client of the agent of this Flux instance or Slurm cluster.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use protocol::{
    Answer, Ask, Question, Reply, Request, VERSION,
    slurm::{ControllerReply, ControllerRequest},
};
use slurm::{Deadline, MAX_REPLY, Site, exchange};

use crate::{flux, print};

/// The timeout of a reply: longer than the scheduler may take to answer the agent.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The name of the socket of an agent that the plugins started, in the rundir of the broker.
const SOCKET: &str = "workflow-token-agent";

/// The address of an agent.
pub enum Agent {
    /// The socket of an agent of a Flux instance.
    Flux(PathBuf),
    /// The socket of an agent of a Slurm cluster, and the name of the cluster.
    Slurm(PathBuf, String),
}

impl Agent {
    /// Finds the agent: that of the Slurm cluster with this configuration; or else that of the enclosing Flux instance;
    /// or else that of the cluster to which this node belongs.
    ///
    /// # Errors
    /// A message for the operator if no agent is configured.
    pub fn find(config: Option<&Path>) -> Result<Self, String> {
        if let Some(path) = config {
            return Self::from_cluster(path);
        }
        let rundir = match flux::run(&["getattr", "rundir"]) {
            Ok(rundir) => rundir,
            Err(e) if e.is_no_instance() && Path::new(slurm::CONFIG).exists() => {
                return Self::from_cluster(Path::new(slurm::CONFIG));
            }
            Err(e) => return Err(format!("the agent of the instance cannot be found: {e}")),
        };
        let config = flux::configuration()?;
        Ok(Self::Flux(
            config.agent.socket.unwrap_or_else(|| Path::new(&rundir).join(SOCKET)),
        ))
    }

    fn from_cluster(path: &Path) -> Result<Self, String> {
        let site = Site::read(path)?;
        Ok(Self::Slurm(site.slurm.socket, site.slurm.cluster))
    }

    /// Returns the name of the Slurm cluster, or `None` on Flux.
    pub fn cluster(&self) -> Option<&str> {
        match self {
            Self::Flux(_) => None,
            Self::Slurm(_, cluster) => Some(cluster),
        }
    }

    /// Sends a request, and returns the reply.
    ///
    /// # Errors
    /// A message for the operator if no reply arrives.
    pub fn ask(&self, question: Question) -> Result<Answer, String> {
        let (Self::Flux(socket) | Self::Slurm(socket, _)) = self;
        let failed = |e: io::Error| {
            let path = print::word(&socket.display().to_string());
            format!("the agent at {path} does not answer: {e}. Check that it runs, and run this as root or its user")
        };
        let deadline = Deadline::after(TIMEOUT);
        let mut stream = UnixStream::connect(socket).map_err(failed)?;
        let ask = Ask {
            version: VERSION,
            question,
        };
        let answer = match self {
            Self::Flux(_) => match exchange(&mut stream, &Request::Ask(ask), MAX_REPLY, deadline) {
                Ok(Reply::Answer(answer)) => Ok(answer),
                Ok(_) => Err(io::Error::other(
                    "it serves another user, or belongs to another release",
                )),
                Err(e) => Err(e),
            },
            Self::Slurm(..) => match exchange(&mut stream, &ControllerRequest::Ask(ask), MAX_REPLY, deadline) {
                Ok(ControllerReply::Answer(answer)) => Ok(answer),
                Ok(_) => Err(io::Error::other("it belongs to another release")),
                Err(e) => Err(e),
            },
        };
        answer.map_err(failed)
    }
}
