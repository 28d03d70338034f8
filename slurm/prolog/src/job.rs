// SPDX-License-Identifier: MIT OR Apache-2.0

//! The facts of a job in the environment of PrologSlurmctld and EpilogSlurmctld (slurm.conf(5), prolog_epilog).
//! slurmctld sets all variables that begin with `SLURM_`. Variables set by users begin with `SPANK_`.

use std::{env, str::FromStr};

use protocol::slurm::{ControllerRequest, Job, REQUESTS, VERSION};

/// The longest value, in bytes. A node list of 10,000 nodes with unordered numbers is shorter.
const MAX: usize = 128 << 10;

/// Returns the job that is about to start.
///
/// # Errors
/// Names the variable that is missing or malformed.
pub fn of_env() -> Result<Job, String> {
    let array = match (number("SLURM_ARRAY_JOB_ID")?, number("SLURM_ARRAY_TASK_ID")?) {
        (Some(job), Some(task)) => Some((job, task)),
        _ => None,
    };
    Ok(Job {
        version: VERSION,
        cluster: required(text("SLURM_CLUSTER_NAME")?, "SLURM_CLUSTER_NAME")?,
        jobid: jobid()?,
        uid: required(number("SLURM_JOB_UID")?, "SLURM_JOB_UID")?,
        partition: required(text("SLURM_JOB_PARTITION")?, "SLURM_JOB_PARTITION")?,
        account: text("SLURM_JOB_ACCOUNT")?,
        qos: text("SLURM_JOB_QOS")?,
        comment: text("SLURM_JOB_COMMENT")?,
        nodes: required(text("SLURM_JOB_NODELIST")?, "SLURM_JOB_NODELIST")?,
        restarts: number("SLURM_JOB_RESTART_COUNT")?.unwrap_or(0),
        array,
        requests: requests(),
    })
}

/// Returns the requests of the user. A value that is too long or malformed counts as empty. The agent rejects an empty
/// value, so the job fails with a reason.
fn requests() -> Option<String> {
    let value = env::var_os(format!("SPANK_{REQUESTS}"))?;
    let value = value
        .into_string()
        .ok()
        .filter(|value| value.len() <= config::LONGEST_REQUESTS);
    Some(value.unwrap_or_default())
}

/// Returns the request that reports the end of the job.
///
/// # Errors
/// Names the variable that is missing or malformed.
pub fn end_of_env() -> Result<ControllerRequest, String> {
    Ok(ControllerRequest::Epilog {
        version: VERSION,
        jobid: jobid()?,
        restarts: number("SLURM_JOB_RESTART_COUNT")?.unwrap_or(0),
    })
}

/// Returns the job id.
///
/// # Errors
/// The variable is missing or malformed.
pub fn jobid() -> Result<u32, String> {
    required(number("SLURM_JOB_ID")?, "SLURM_JOB_ID")
}

fn required<T>(value: Option<T>, name: &str) -> Result<T, String> {
    value.ok_or_else(|| format!("{name} is missing: only slurmctld can run this program"))
}

/// Returns a value, or None if it is unset or empty. slurmctld prints null pointers as `(null)`.
fn text(name: &str) -> Result<Option<String>, String> {
    let Some(value) = env::var_os(name) else {
        return Ok(None);
    };
    let value = value.into_string().map_err(|_| format!("{name} is not UTF-8"))?;
    match value.len() {
        0 => Ok(None),
        1..=MAX => Ok(Some(value).filter(|value| value != "(null)")),
        length => Err(format!("{name} is {length} bytes long, more than {MAX}")),
    }
}

fn number<T: FromStr>(name: &str) -> Result<Option<T>, String> {
    let parse = |value: String| {
        value
            .parse()
            .map_err(|_| format!("{name} is not a number: {}", value.escape_debug()))
    };
    text(name)?.map(parse).transpose()
}
