// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table `slurm`: how the agent, the controllers and the nodes of a cluster connect and authenticate.

use std::{net::SocketAddr, path::PathBuf};

use crate::Principal;

/// The table `slurm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slurm {
    /// `ClusterName` of slurm.conf.
    pub cluster: String,
    /// The agents, each as HOST:PORT, in the order in which a node asks them.
    pub servers: Vec<String>,
    /// The address at which the agent listens for nodes.
    pub listen: SocketAddr,
    /// The Unix socket at which the agent listens for the controller.
    pub socket: PathBuf,
    /// The user that the agent runs as. Nodes accept only records that this user sealed.
    pub user: Principal,
    /// The directory in which the agent keeps sealed records.
    pub store: PathBuf,
    /// The directory in which a node keeps the sealed records of its jobs.
    pub cache: PathBuf,
    /// The program that maintains token files on nodes; none for the default path.
    pub step_program: Option<PathBuf>,
    /// Set if a request must come from an address of the node that it names.
    pub check_address: bool,
}

/// The identifiers of a Slurm job besides its job id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlurmJob {
    /// The job id and the index of an array task.
    pub array: Option<(u32, u32)>,
    /// The number of times that Slurm has requeued the job.
    pub restarts: u32,
}

impl Slurm {
    /// The default port for nodes. Slurm's own daemons use 6817 to 6820 by default.
    pub const PORT: u16 = 6822;

    /// Returns the name of the file of a job's record, in [`Slurm::store`] and [`Slurm::cache`].
    pub fn record_name(jobid: u32) -> String {
        format!("job-{jobid}")
    }
}
