// SPDX-License-Identifier: MIT OR Apache-2.0

//! The plugin's work in each program.
//!
//! srun, sbatch, salloc: the plugin removes the variables of the surrounding job, so that no secret is sent or stored
//! with an inner job or step, which receives its own.
//!
//! slurmstepd, as root, before it forks the tasks: the plugin takes the sealed record of the job from the node's cache
//! or from the agent, and starts the program that keeps the tokens in files. In each task, as the job owner, it opens
//! the record and sets the variables. Depending on its settings, slurmstepd logs the environment of a step before
//! `task_init`, but not afterwards.

use std::{
    collections::BTreeSet,
    env,
    ffi::CString,
    os::unix::ffi::OsStrExt,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use config::{Config, VARIABLE};
use nix::unistd::geteuid;
use protocol::Code;
use seal::{BEARER_TOKEN_FILE, ExposeSecret, Opened};
use slurm::{Answer, LocalRecord, Node, Site, Start};
use spank::{Context, EXTERN_STEP, LAST_STEP, Spank};
use zeroize::Zeroizing;

use crate::{expectation, files::Files, request};

/// The result of `init` in slurmstepd, for the tasks that it forks. Without a result, no task may start.
static STEP: Mutex<Step> = Mutex::new(Step::Unknown);

/// The outcome for the tasks of a step.
enum Step {
    /// Unknown: `init` panicked, and slurmd.log contains the location.
    Unknown,
    /// No token: no rule matches the job.
    NoToken,
    /// The variables in this record.
    Record(Box<Sealed>),
    /// No token, and the tasks must not start.
    Failed(Failed),
}

/// A record, the client that opens it, and the files of its tokens, or None if it needs none or they could not be
/// written.
struct Sealed {
    record: LocalRecord,
    munge: seal::Munge,
    files: Option<Files>,
}

/// Handles `slurm_spank_init`.
pub fn init(spank: &Spank<'_>, arguments: &[String]) {
    request::register(spank);
    match spank::context() {
        Context::Local | Context::Allocator => remove_variables(arguments),
        Context::Remote if spank.step() != Some(EXTERN_STEP) => {
            let step = step(spank, arguments).unwrap_or_else(|failed| {
                spank::log_error(&format!("workflow-token: {}", failed.operator));
                Step::Failed(failed)
            });
            *STEP.lock().unwrap_or_else(PoisonError::into_inner) = step;
        }
        Context::Remote | Context::JobScript | Context::Other => {}
    }
}

/// Handles `slurm_spank_task_init`. If the task must not start, the process exits here: Slurm would report more lines,
/// less clearly.
pub fn task_init(spank: &Spank<'_>, _arguments: &[String]) {
    let step = STEP.lock().unwrap_or_else(PoisonError::into_inner);
    let (why, is_everywhere) = match &*step {
        Step::NoToken => return,
        Step::Record(sealed) => match set_variables(spank, sealed) {
            Ok(()) => return,
            Err(why) => (why, false),
        },
        Step::Failed(failed) => (failed.user.clone(), failed.is_everywhere),
        Step::Unknown => (Failed::here(Code::Internal, "").user, false),
    };
    // Print one line for the step, or one for each node that has a fault of its own.
    let prints = match is_everywhere {
        true => spank.task() == Some(0),
        false => spank.local_task() == Some(0),
    };
    if prints {
        spank::print(&format!("workflow-token: {why}"));
    }
    spank::exit_now(1);
}

/// Handles `slurm_spank_task_post_fork`: sends the pid of the task to the program that keeps the files.
pub fn forked(spank: &Spank<'_>, _arguments: &[String]) {
    let mut step = STEP.lock().unwrap_or_else(PoisonError::into_inner);
    let Step::Record(sealed) = &mut *step else { return };
    if let (Some(files), Some(pid)) = (&mut sealed.files, spank.task_pid())
        && let Err(e) = files.task(pid)
    {
        let jobid = sealed.record.jobid;
        spank::log_error(&format!("workflow-token: job {jobid}: its tokens are not renewed: {e}"));
        // Otherwise each task would wait for the program again. Dropping the socket ends the program, which removes the
        // files.
        sealed.files = None;
    }
}

/// Handles `slurm_spank_job_epilog`: removes the cached record, because a requeued job receives a new one.
pub fn forget(spank: &Spank<'_>, arguments: &[String]) {
    let Some(jobid) = spank.jobid() else { return };
    let removed = Site::read(&slurm::config_of(arguments)).and_then(|site| {
        let cache = &site.slurm.cache;
        slurm::forget(cache, jobid).map_err(|e| format!("{}: {e}", cache.display()))
    });
    if let Err(e) = removed {
        spank::log_error(&format!(
            "workflow-token: the record of job {jobid} was not removed: {e}"
        ));
    }
}

/// A step that must not start.
pub struct Failed {
    user: String,
    operator: String,
    /// Set if all nodes of the job have this fault.
    is_everywhere: bool,
}

impl Failed {
    /// Returns a fault whose cause is in the log of this node.
    fn here(code: Code, operator: &str) -> Self {
        let what = "the workflow token of this job could not be delivered";
        let advice = "tell the operators that the reason is in slurmd.log on its node";
        Self {
            user: format!("{what} [{code}]: {advice}"),
            operator: format!("{operator} [{code}]"),
            is_everywhere: code == Code::AgentUnavailable,
        }
    }
}

/// Removes the variables that a rule could have set from the environment of this process. Without a configuration,
/// removes the variable that rules set by default.
fn remove_variables(arguments: &[String]) {
    let config = Site::read(&slurm::config_of(arguments)).map(|site| site.config);
    for name in config.map_or_else(|_| BTreeSet::from([VARIABLE.to_owned()]), |config| variables(&config)) {
        spank::remove_own_env(&name);
    }
}

fn variables(config: &Config) -> BTreeSet<String> {
    let of_rules = config.rules.iter().map(|rule| &rule.variable);
    let values: BTreeSet<_> = of_rules.chain([&config.variable]).collect();
    let is_bearer = config.rules.iter().any(|rule| rule.renewal.bearer_token_file);
    let bearer = is_bearer.then(|| BEARER_TOKEN_FILE.to_owned());
    let files = values.iter().map(|name| format!("{name}_FILE"));
    files
        .chain(bearer)
        .chain(values.iter().map(|name| (*name).clone()))
        .collect()
}

/// Determines the outcome for the tasks of a step.
fn step(spank: &Spank<'_>, arguments: &[String]) -> Result<Step, Failed> {
    let unknown = |what: &str| {
        Failed::here(
            Code::NodeFailed,
            &format!("Slurm does not report the {what} of the step"),
        )
    };
    let jobid = spank.jobid().ok_or_else(|| unknown("job id"))?;
    let uid = spank.uid().ok_or_else(|| unknown("uid"))?;
    let failed = |e: String| Failed::here(Code::NodeFailed, &format!("job {jobid}: {e}"));
    let site = Site::read(&slurm::config_of(arguments)).map_err(failed)?;
    if !expectation::may_match(&site, uid) {
        return Ok(Step::NoToken);
    }
    let agent_uid = site.agent_uid().map_err(failed)?;
    let munge = site.config.munge_client().map_err(|e| failed(e.to_string()))?;
    let name = node_name().map_err(failed)?;
    let node = Node {
        site: &site,
        munge: &munge,
        agent_uid,
        name: &name,
        jobid,
        uid,
    };
    let is_current = |record: &seal::Record| record.renewal().is_current(SystemTime::now());
    let answer = slurm::cached(&site.slurm.cache, jobid, uid, is_current, || slurm::ask(&node));
    let record = match answer.map_err(failed)? {
        Answer::Record(record) => record,
        Answer::Unavailable(why) => {
            return Err(Failed::here(Code::AgentUnavailable, &format!("job {jobid}: {why}")));
        }
        Answer::Failed(user) => {
            return Err(Failed {
                user,
                operator: format!("job {jobid}: the agent has no token for it: see the log of the agent"),
                is_everywhere: true,
            });
        }
    };
    if has_container(spank) && !record.variables().is_empty() {
        let user = "this job must receive a workflow token, but Slurm writes the environment of containers to a file: \
                    start it without --container";
        return Err(Failed {
            user: user.to_owned(),
            operator: format!("job {jobid}: a step with --container was rejected"),
            is_everywhere: true,
        });
    }
    let files = match record.renewal().files.is_empty() {
        true => None,
        false => write_files(spank, arguments, &site, name, &record)
            .inspect_err(|e| {
                let what = "its token is not renewed, because its file could not be written";
                spank::log_error(&format!("workflow-token: job {jobid}: {what}: {e}"));
            })
            .ok(),
    };
    let record = LocalRecord {
        record,
        jobid,
        agent_uid,
    };
    Ok(Step::Record(Box::new(Sealed { record, munge, files })))
}

fn write_files(
    spank: &Spank<'_>,
    arguments: &[String],
    site: &Site,
    node: String,
    record: &seal::Record,
) -> Result<Files, String> {
    let unknown = |what: &str| format!("Slurm does not report the {what} of the step");
    let start = Start {
        config: slurm::config_of(arguments),
        node,
        jobid: spank.jobid().ok_or_else(|| unknown("job id"))?,
        uid: spank.uid().ok_or_else(|| unknown("uid"))?,
        gid: spank.gid().ok_or_else(|| unknown("gid"))?,
        tasks: spank.local_tasks().ok_or_else(|| unknown("tasks"))?,
        // Like scancel(1), spare the shells of batch scripts and of salloc.
        signals: spank.step().is_some_and(|step| step <= LAST_STEP),
        record: record.to_json(),
    };
    Files::write(&slurm::step_program(site.slurm.step_program.as_deref())?, &start)
}

/// Returns the node name. slurmd sets it for slurmstepd before it adds variables of the user.
fn node_name() -> Result<String, String> {
    env::var("SLURMD_NODENAME").map_err(|_| "slurmd does not set SLURMD_NODENAME".to_owned())
}

fn has_container(spank: &Spank<'_>) -> bool {
    spank.has_env(c"SLURM_CONTAINER")
}

/// Opens the record as the job owner, and sets the variables for the task.
fn set_variables(spank: &Spank<'_>, sealed: &Sealed) -> Result<(), String> {
    let opened = open(spank, sealed)?;
    for (name, value) in opened.variables.iter() {
        // A record with a NUL in a variable does not open.
        let value = Zeroizing::new(CString::new(value.expose_secret()).map_err(|e| refused(&e))?);
        spank
            .set_env(name, &value)
            .map_err(|e| format!("{name} could not be set: {e}"))?;
    }
    for (name, path) in sealed.files.iter().flat_map(|files| &files.variables) {
        if !path.exists() {
            let (jobid, path) = (sealed.record.jobid, path.display());
            let line = format!("job {jobid}: its tasks cannot see {path}: check Dirs in job_container.conf");
            spank::log_error(&format!("workflow-token: {line}"));
            break;
        }
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|e| refused(&e))?;
        let set = spank.set_env(name, &path);
        set.map_err(|e| format!("{name} could not be set: {e}"))?;
    }
    Ok(())
}

fn open(spank: &Spank<'_>, sealed: &Sealed) -> Result<Opened, String> {
    let uid = geteuid().as_raw();
    if spank.uid() != Some(uid) {
        return Err(refused(&"the task does not run as the owner of its job"));
    }
    sealed.record.open(&sealed.munge).map_err(|e| refused(&e))
}

fn refused(e: &dyn std::fmt::Display) -> String {
    format!("the workflow token of this job cannot be used: {e}: submit it again, and tell the operators if it recurs")
}
