// SPDX-License-Identifier: MIT OR Apache-2.0

//! Queries Slurm about jobs and nodes, and cancels and signals jobs, with its commands (squeue(1), scontrol(1),
//! scancel(1)).

use std::{collections::HashSet, path::Path, process::Stdio, time::Duration};

use protocol::JobEnd;
use protocol::slurm::Job;
use secure_path::{Owners, find_program};
use tokio::{io::AsyncReadExt, process::Command};

/// The most concurrent queries.
pub const AT_ONCE: usize = 8;

/// The timeout of a command.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The longest output, in bytes: 10,000 nodes take 10 MB.
const MAX_ANSWER: u64 = 64 << 20;

/// Properties of a job that some releases do not pass to its prolog.
pub struct More {
    pub qos: Option<String>,
    pub limit: Option<Duration>,
    pub comment: Option<String>,
}

/// Returns the job id for commands. The job id of one array task is also that of the array, and then means all of its
/// tasks.
fn id(job: &Job) -> String {
    match job.array {
        Some((array, task)) => format!("{array}_{task}"),
        None => job.jobid.to_string(),
    }
}

/// Returns the quality of service, the time limit and the comment of a job.
///
/// # Errors
/// For the operator: the query failed.
pub async fn more_of(job: &Job) -> Result<More, String> {
    let job = format!("--jobs={}", id(job));
    let arguments = ["--all", "--noheader", "--states=all", &job, "--format=%q|%l|%k"];
    let answer = run("squeue", &arguments).await?;
    let mut fields = answer.lines().next().unwrap_or_default().splitn(3, '|');
    let (Some(qos), Some(limit), Some(comment)) = (fields.next(), fields.next(), fields.next()) else {
        return Err(format!("squeue {job} lists no job"));
    };
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty() && text != "(null)");
    Ok(More {
        qos: text(qos),
        limit: time_limit(limit),
        comment: text(comment),
    })
}

/// Returns the ids of all active jobs.
///
/// # Errors
/// For the operator: the query failed.
pub async fn active_jobs() -> Result<HashSet<u32>, String> {
    let answer = run("squeue", &["--all", "--noheader", "--array", "--format=%A"]).await?;
    Ok(answer.lines().filter_map(|line| line.trim().parse().ok()).collect())
}

/// The states of a job that has ended, squeue(1).
const ENDED: [&str; 9] = [
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
];

/// Returns the end of a job; none if it is active.
///
/// # Errors
/// For the operator: the query failed.
pub async fn end_of(jobid: u32) -> Result<Option<JobEnd>, String> {
    let job = format!("--jobs={jobid}");
    match run(
        "squeue",
        &[
            "--all",
            "--noheader",
            "--array",
            "--states=all",
            &job,
            "--format=%A|%T|%e",
        ],
    )
    .await
    {
        Ok(answer) => Ok(end_in(jobid, &answer)),
        // squeue fails for a job that Slurm has forgotten, MinJobAge after its end (slurm.conf(5)).
        Err(_) => Ok((!active_jobs().await?.contains(&jobid)).then(JobEnd::default)),
    }
}

/// Cancels a job, or sends a signal to the tasks of its steps (scancel(1)).
///
/// # Errors
/// For the operator: the command failed.
pub async fn cancel(job: &Job, signal: Option<&str>) -> Result<(), String> {
    let (signal, id) = (signal.map(|signal| format!("--signal={signal}")), id(job));
    let arguments: Vec<&str> = signal.iter().map(String::as_str).chain([id.as_str()]).collect();
    run("scancel", &arguments).await.map(drop)
}

/// Parses lines with a job id, a state and an end time. Returns the end of the job; none if it is active. For the id of
/// an array or of a heterogeneous job, squeue also lists other jobs, each with its own id.
fn end_in(jobid: u32, answer: &str) -> Option<JobEnd> {
    let mut last = JobEnd::default();
    for line in answer.lines() {
        let mut fields = line.splitn(3, '|').map(str::trim);
        let (id, state, end) = (fields.next(), fields.next(), fields.next());
        if id.and_then(|id| id.parse().ok()) != Some(jobid) {
            continue;
        }
        if !state.is_some_and(|state| ENDED.contains(&state)) {
            return None;
        }
        last.at = last.at.max(end.and_then(|end| end.parse().ok()));
    }
    Some(last)
}

/// Returns the NodeName and NodeAddr of all nodes (slurm.conf(5)).
///
/// # Errors
/// For the operator: the query failed.
pub async fn nodes() -> Result<Vec<(String, String)>, String> {
    let answer = run("scontrol", &["--all", "--oneliner", "show", "nodes"]).await?;
    let value = |line: &str, key: &str| {
        let mut words = line.split_ascii_whitespace();
        words.find_map(|word| word.strip_prefix(key).map(str::to_owned))
    };
    let nodes = answer.lines().filter_map(|line| {
        let name = value(line, "NodeName=")?;
        let address = value(line, "NodeAddr=").unwrap_or_else(|| name.clone());
        Some((name, address))
    });
    Ok(nodes.collect())
}

/// Parses a time limit: `D-HH:MM:SS`, `HH:MM:SS`, `MM:SS`; none for `UNLIMITED` and anything else.
fn time_limit(text: &str) -> Option<Duration> {
    let (days, rest) = match text.trim().split_once('-') {
        Some((days, rest)) => (days.parse::<u64>().ok()?, rest),
        None => (0, text.trim()),
    };
    let parts: Vec<u64> = rest.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let seconds = match parts[..] {
        [hours, minutes, seconds] => hours
            .checked_mul(3600)?
            .checked_add(minutes.checked_mul(60)?)?
            .checked_add(seconds)?,
        [minutes, seconds] => minutes.checked_mul(60)?.checked_add(seconds)?,
        _ => return None,
    };
    Some(Duration::from_secs(days.checked_mul(24 * 3600)?.checked_add(seconds)?))
}

async fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{program}: {e}");
    let found = find_program(Path::new(program), Owners::process()).map_err(|e| failed(&e))?;
    let mut command = Command::new(found);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // The environment may contain defaults for interactive use.
    let defaults = std::env::vars_os().map(|(name, _)| name);
    for name in defaults.filter(|name| name.as_encoded_bytes().starts_with(b"SQUEUE_")) {
        command.env_remove(name);
    }
    // Prints times in seconds since 1970.
    command.env("SLURM_TIME_FORMAT", "%s");
    let answer = async {
        let mut child = command.kill_on_drop(true).spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (mut out, mut err) = (String::new(), String::new());
        let read_out = async {
            match stdout {
                Some(stdout) => stdout.take(MAX_ANSWER).read_to_string(&mut out).await,
                None => Ok(0),
            }
        };
        let read_err = async {
            match stderr {
                Some(stderr) => stderr.take(4096).read_to_string(&mut err).await,
                None => Ok(0),
            }
        };
        let (read, _) = tokio::join!(read_out, read_err);
        read?;
        Ok::<_, std::io::Error>((child.wait().await?, out, err))
    };
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(Ok((status, out, _))) if status.success() => Ok(out),
        Ok(Ok((status, _, err))) => Err(failed(&format_args!("{status}: {}", err.trim().escape_debug()))),
        Ok(Err(e)) => Err(failed(&e)),
        Err(_) => Err(failed(&format_args!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_job_is_its_own() {
        let end = |at| Some(JobEnd { at });
        for (answer, expected) in [
            ("7|COMPLETED|1700000000\n", end(Some(1_700_000_000))),
            // For the id of an array, squeue lists all of its tasks, each with its own id.
            ("7|FAILED|1700000002\n8|RUNNING|1900000000\n", end(Some(1_700_000_002))),
            ("8|COMPLETED|1700000002\n7|RUNNING|1900000000\n", None),
            ("7|CANCELLED|N/A\n", end(None)),
            ("7|CANCELLED|2026-01-01T00:00:00\n", end(None)),
            ("7|TIMEOUT\n", end(None)),
            ("", end(None)),
            ("7|COMPLETING|1700000000\n", None),
            ("7|PENDING|N/A\n", None),
            ("7\n", None),
        ] {
            assert_eq!(end_in(7, answer), expected, "{answer}");
        }
    }

    #[test]
    fn time_limits_are_read_as_squeue_writes_them() {
        for (text, seconds) in [
            ("1:00", Some(60)),
            ("2:03:04", Some(7384)),
            ("1-00:00:00", Some(86_400)),
            ("UNLIMITED", None),
            ("NOT_SET", None),
            ("", None),
            ("1", None),
            ("18446744073709551615-00:00:00", None),
        ] {
            assert_eq!(time_limit(text), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
