//! The work of the plugin in each program.
//!
//! srun, sbatch, salloc: the variables of the surrounding job are removed, so that no secret is sent or stored with an inner
//! job or step, which gets its own.
//!
//! slurmstepd, before it forks the tasks, as root: the sealed record of the job is taken from the node's cache or from the
//! agent. In each task, as the job owner: the record is opened, and the variables are set. slurmstepd logs the environment of
//! a step before `task_init`, depending on its settings, but not after.

use std::{
    collections::BTreeSet,
    ffi::CString,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use config::{Config, VARIABLE};
use nix::unistd::geteuid;
use seal::{Expected, ExposeSecret, Opened, Owner, Record};
use slurm::Site;
use spank::{Context, EXTERN_STEP, Spank};
use zeroize::Zeroizing;

use crate::{
    cache,
    client::{self, Answer, Node},
    expectation,
};

/// The time that a restart of munged may take.
const MUNGED_TIMEOUT: Duration = Duration::from_secs(10);

/// The result of `init` in slurmstepd, for the tasks that it forks. Without one, no task may start.
static STEP: Mutex<Step> = Mutex::new(Step::Unknown);

/// The outcome for the tasks of a step.
enum Step {
    /// Not known: `init` has failed, and its place is in slurmd.log.
    Unknown,
    /// Nothing: no rule is for the job.
    NoToken,
    /// The variables in this record.
    Record(Box<Sealed>),
    /// Nothing, and they must not start.
    Failed(Failed),
}

/// A record, and what is needed to open it.
struct Sealed {
    record: Record,
    jobid: u32,
    agent_uid: u32,
    munge: seal::Munge,
}

/// `slurm_spank_init`.
pub fn init(spank: &Spank<'_>, arguments: &[String]) {
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

/// `slurm_spank_task_init`. If the task must not start, the process ends here: Slurm would report more, and less clearly.
pub fn task_init(spank: &Spank<'_>, _arguments: &[String]) {
    let step = STEP.lock().unwrap_or_else(PoisonError::into_inner);
    let (why, is_everywhere) = match &*step {
        Step::NoToken => return,
        Step::Record(sealed) => match set_variables(spank, sealed) {
            Ok(()) => return,
            Err(why) => (why, false),
        },
        Step::Failed(failed) => (failed.user.clone(), failed.is_everywhere),
        Step::Unknown => (USER.to_owned(), false),
    };
    // One line for the step, or for each node with a fault of its own.
    let speaks = match is_everywhere {
        true => spank.task() == Some(0),
        false => spank.local_task() == Some(0),
    };
    if speaks {
        spank::print(&format!("workflow-token: {why}"));
    }
    spank::exit_now(1);
}

/// `slurm_spank_job_epilog`: a job that is requeued gets a new record.
pub fn forget(spank: &Spank<'_>, arguments: &[String]) {
    let Some(jobid) = spank.jobid() else { return };
    let removed = Site::read(&config_of(arguments)).and_then(|site| {
        let cache = &site.slurm.cache;
        cache::remove(cache, jobid).map_err(|e| format!("{}: {e}", cache.display()))
    });
    if let Err(e) = removed {
        spank::log_error(&format!(
            "workflow-token: the record of job {jobid} was not removed: {e}"
        ));
    }
}

/// The message to a user about a fault of the site.
const USER: &str = "the workflow token of this job could not be delivered: tell the operators that the reason is in slurmd.log \
                    on its node";

/// A step that must not start.
pub struct Failed {
    user: String,
    operator: String,
    /// Set if all nodes of the job have this fault.
    is_everywhere: bool,
}

impl Failed {
    /// A fault of this node, or of its way to the agents.
    fn here(operator: String, is_everywhere: bool) -> Self {
        Self {
            user: USER.to_owned(),
            operator,
            is_everywhere,
        }
    }
}

/// Returns the file that `config=` names in plugstack.conf.
fn config_of(arguments: &[String]) -> PathBuf {
    let named = arguments.iter().find_map(|argument| argument.strip_prefix("config="));
    named.unwrap_or(slurm::CONFIG).into()
}

/// Removes what a rule could have set, from the environment of this process. Without a configuration, it is the variable
/// that rules set by default.
fn remove_variables(arguments: &[String]) {
    let config = Site::read(&config_of(arguments)).map(|site| site.config);
    for name in config.map_or_else(|_| BTreeSet::from([VARIABLE.to_owned()]), |config| variables(&config)) {
        spank::remove_own_env(&name);
    }
}

fn variables(config: &Config) -> BTreeSet<String> {
    let of_rules = config.rules.iter().map(|rule| rule.variable.clone());
    of_rules.chain([config.variable.clone()]).collect()
}

/// Finds out what the tasks of a step get.
fn step(spank: &Spank<'_>, arguments: &[String]) -> Result<Step, Failed> {
    let unknown = |what: &str| Failed::here(format!("Slurm does not tell the {what} of a step"), false);
    let jobid = spank.jobid().ok_or_else(|| unknown("job id"))?;
    let uid = spank.uid().ok_or_else(|| unknown("uid"))?;
    let failed = |e: String| Failed::here(format!("job {jobid}: {e}"), false);
    let site = Site::read(&config_of(arguments)).map_err(failed)?;
    if !expectation::may_match(&site, uid) {
        return Ok(Step::NoToken);
    }
    let agent_uid = site.agent_uid().map_err(failed)?;
    let munge = site.config.munge_client().map_err(|e| failed(e.to_string()))?;
    let node = Node {
        site: &site,
        munge: &munge,
        agent_uid,
        jobid,
        uid,
    };
    let answer = cache::get(&site.slurm.cache, jobid, uid, || client::ask(&node));
    let record = match answer.map_err(|e| Failed::here(format!("job {jobid}: {e}"), true))? {
        Answer::Record(record) => record,
        Answer::Failed(user) => {
            return Err(Failed {
                user,
                operator: format!("job {jobid}: the agent has no token for it: see the log of the agent"),
                is_everywhere: true,
            });
        }
    };
    if has_container(spank) && !record.variables().is_empty() {
        let user = "this job is to get a workflow token, and Slurm writes the environment of containers to a file: \
                    start it without --container";
        return Err(Failed {
            user: user.to_owned(),
            operator: format!("job {jobid}: a step with --container was refused"),
            is_everywhere: true,
        });
    }
    Ok(Step::Record(Box::new(Sealed {
        record,
        jobid,
        agent_uid,
        munge,
    })))
}

fn has_container(spank: &Spank<'_>) -> bool {
    spank.has_env(c"SLURM_CONTAINER")
}

/// Opens the record as the job owner, and sets the variables for the task.
fn set_variables(spank: &Spank<'_>, sealed: &Sealed) -> Result<(), String> {
    let opened = open(spank, sealed)?;
    for (name, value) in opened.variables.iter() {
        // No variable has a NUL: such a record does not open.
        let value = Zeroizing::new(CString::new(value.expose_secret()).map_err(|e| refused(&e))?);
        spank
            .set_env(name, &value)
            .map_err(|e| format!("{name} could not be set: {e}"))?;
    }
    Ok(())
}

fn open(spank: &Spank<'_>, sealed: &Sealed) -> Result<Opened, String> {
    let uid = geteuid().as_raw();
    if spank.uid() != Some(uid) {
        return Err(refused(&"the task does not run as the owner of its job"));
    }
    let expected = Expected {
        owner: Owner {
            jobid: sealed.jobid.into(),
            uid,
        },
        instance_owner: sealed.agent_uid,
    };
    let opened = sealed.record.open_within(MUNGED_TIMEOUT, &sealed.munge, &expected);
    opened.map_err(|e| refused(&e))
}

fn refused(e: &dyn std::fmt::Display) -> String {
    format!(
        "the workflow token of this job cannot be used: {e}: submit it again, and tell the operators if this goes on"
    )
}
