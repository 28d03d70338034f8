//! From the answer to the lookup to variables in the environment of the job's tasks.

use std::{
    ffi::CString,
    thread,
    time::{Duration, Instant},
};

use ffi::{Future, Shell, ShellLogLevel};
use seal::{Expected, ExposeSecret, Opened, Owner, Record, Staleness};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    LOOKUP_TIMEOUT, NAME,
    settings::{Expectation, Settings},
};

const ENOENT: i32 = nix::errno::Errno::ENOENT as i32;

/// How long a munged that is being restarted is waited for.
const MUNGED_TIMEOUT: Duration = Duration::from_secs(10);

/// Exports the variables of the job, or says why the job must not start.
pub(crate) fn export(
    shell: &Shell<'_>,
    settings: &Settings,
    expectation: Expectation,
    lookup: &Future,
) -> Result<(), String> {
    let Some(text) = record_text(shell, expectation, lookup)? else {
        return Ok(());
    };
    let record = Record::from_json(&text).map_err(|e| refused(&e))?;
    let job = shell.job().map_err(|e| refused(&e))?;
    let expected = Expected {
        owner: Owner {
            jobid: job.jobid,
            uid: nix::unistd::geteuid().as_raw(),
        },
        instance_owner: job.instance_owner,
    };
    let opened = open(settings, &record, &expected)?;
    for (name, value) in opened.variables.iter() {
        // No variable has a NUL: such a record does not open. The C string wipes itself when dropped.
        let value = Zeroizing::new(CString::new(value.expose_secret()).map_err(|e| refused(&e))?);
        shell
            .set_env(name, &value)
            .map_err(|e| format!("{name} could not be set in the environment of the job: {e}"))?;
    }
    shell.log(NAME, ShellLogLevel::Debug, &report(&opened));
    Ok(())
}

/// The record of the job, where there is one.
fn record_text(shell: &Shell<'_>, expectation: Expectation, lookup: &Future) -> Result<Option<String>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("the sealed record of the job could not be looked up: {e}");
    let answer = match lookup.wait(LOOKUP_TIMEOUT).and_then(|()| lookup.rpc()) {
        Ok(answer) => answer.unwrap_or_default(),
        Err(e) if e.errno() == ENOENT && expectation == Expectation::Yes => {
            return Err("this job is to get a workflow token, but there is no sealed record for it: the plugin \
                        workflow-token.so is not loaded in the job manager, or no rule there matches: tell the operators"
                .to_owned());
        }
        Err(e) if e.errno() == ENOENT => {
            shell.log(
                NAME,
                ShellLogLevel::Debug,
                "there is no sealed record: no rule is for this job",
            );
            return Ok(None);
        }
        Err(e) => return Err(failed(&e)),
    };
    let answer: Value = serde_json::from_str(&answer).map_err(|e| failed(&e))?;
    match &answer[seal::key::WORKFLOW_TOKEN] {
        Value::String(text) => Ok(Some(text.clone())),
        _ => Err(failed(&"the answer has no record in it")),
    }
}

fn open(settings: &Settings, record: &Record, expected: &Expected) -> Result<Opened, String> {
    let munge = settings.munge.client().map_err(|e| refused(&e))?;
    let start = Instant::now();
    loop {
        match record.open(&munge, expected) {
            Ok(opened) => return Ok(opened),
            Err(e) if e.is_retryable() && start.elapsed() < MUNGED_TIMEOUT => {
                thread::sleep(Duration::from_millis(200));
            }
            Err(e) => return Err(refused(&e)),
        }
    }
}

fn refused(e: &dyn std::fmt::Display) -> String {
    format!(
        "the workflow token of this job cannot be used: {e}: submit it again, and tell the operators if this goes on"
    )
}

fn report(opened: &Opened) -> String {
    let names: Vec<_> = opened.variables.names().collect();
    let late = match opened.staleness {
        None => "",
        Some(Staleness::Expired) => ", its credential older than MUNGE's time to live",
        Some(Staleness::Rewound) => ", its credential from the future by this node's clock",
        Some(Staleness::Replayed) => ", its credential opened on this node before",
    };
    format!("exported {}{late}", names.join(", "))
}
