// SPDX-License-Identifier: MIT OR Apache-2.0

//! The request for one delivery.

use std::time::Duration;

use config::{Asked, SlurmJob, TokenRequests};

/// The facts of a job whose variables are to be delivered.
pub struct Task {
    /// The job id.
    pub jobid: u64,
    /// The job id as users write it.
    pub f58: String,
    /// The uid of the job owner.
    pub uid: u32,
    /// The project that the job requests.
    pub asked: Asked,
    /// The time limit of the job, if any.
    pub limit: Option<Duration>,
    /// The timeout of the delivery.
    pub timeout: Duration,
    /// Set for a Slurm job.
    pub slurm: Option<SlurmJob>,
    /// The user's requests for tokens, by their names.
    pub requests: TokenRequests,
    /// The number of records that the job has had: 0 for its first delivery.
    pub generation: u32,
    /// The origin of the variables.
    pub variables: Variables,
}

/// The origin of the variables of a delivery.
#[derive(Debug)]
pub enum Variables {
    /// For each name of a token: the source of the first of these rules that matches the job owner.
    Rules(Vec<usize>),
    /// Provided by the plugin. The source for rabbit jobs, if there is one, adds variables and overrides these.
    Provided(seal::Variables),
}
