//! The request of one delivery.

use std::time::Duration;

use config::{Asked, SlurmJob, TokenRequests};

/// The facts of a job that gets its variables.
pub struct Task {
    /// The job id.
    pub jobid: u64,
    /// The job id as users write it.
    pub f58: String,
    /// The uid of the job owner.
    pub uid: u32,
    /// The project that the job asks for.
    pub asked: Asked,
    /// The time limit of the job, if any.
    pub limit: Option<Duration>,
    /// The timeout of the delivery.
    pub timeout: Duration,
    /// Set if it is a job of Slurm.
    pub slurm: Option<SlurmJob>,
    /// What the user requests of its tokens, by their names.
    pub requests: TokenRequests,
    /// The number of records that the job has had: 0 for its first delivery.
    pub generation: u32,
    /// The origin of the variables.
    pub variables: Variables,
}

/// The origin of the variables of a delivery.
#[derive(Debug)]
pub enum Variables {
    /// For each name of a token, from the source of the first of these rules that is for the job owner.
    Rules(Vec<usize>),
    /// Provided by the plugin. Those of the source for rabbit jobs, if there is one, are added and win.
    Provided(seal::Variables),
}
