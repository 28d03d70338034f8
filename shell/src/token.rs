//! `workflow-token.so`: puts the token of a job into the environment of its tasks.
//!
//! It sends its one lookup while the shell is still loading plugins, and uses the answer in `shell.init`, so that a job
//! waits for at most one round trip. Where the rules are known here (see [`crate::settings`]), a job that none of them can
//! match costs nothing.

use std::cell::RefCell;

use ffi::{Args, Future, Plugin, PluginError, Shell, ShellLogLevel};

use crate::{
    record::{Kind, look_up},
    settings::{Expectation, Settings},
};

/// The plugin.
pub(crate) static KIND: Kind = Kind {
    name: c"workflow-token",
    key: seal::key::WORKFLOW_TOKEN,
    what: "workflow token",
    keys: &["config", "munge-socket", "instance-owner"],
    without_config: "its rules are not known here, so every job is asked for",
};

/// What the plugin knows between its load and `shell.init`.
struct Pending {
    settings: Settings,
    expectation: Expectation,
    lookup: RefCell<Option<Future>>,
}

impl ffi::State for Pending {}

pub(crate) fn load(plugin: Plugin<'static>, shell: &Shell<'_>) -> Result<(), String> {
    let wrong = |e: std::io::Error| format!("the plugin cannot be loaded: {e}");
    let job = shell.job().map_err(wrong)?;
    let settings = Settings::of(&KIND, &plugin.conf(), job.instance_owner)?;
    settings.warn(&KIND, shell);
    let expectation = settings.expectation(shell);
    if expectation == Expectation::No {
        return Ok(());
    }
    let lookup = look_up(shell, job.jobid, KIND.key).map_err(wrong)?;
    let pending = Pending {
        settings,
        expectation,
        lookup: RefCell::new(Some(lookup)),
    };
    let pending = plugin.keep(pending).map_err(wrong)?;
    plugin.handle(c"shell.init", &pending, shell_init).map_err(wrong)
}

/// `shell.init`: the tasks have not started yet, in any shell of the job.
fn shell_init(pending: &Pending, plugin: Plugin<'_>, _: &Args<'_>) -> Result<(), PluginError> {
    let Some(shell) = plugin.shell() else { return Ok(()) };
    let Some(lookup) = pending.lookup.take() else {
        return Ok(());
    };
    match export(&shell, pending, &lookup) {
        Ok(()) => Ok(()),
        // One exception with one clear line; returning an error would add a second one that says nothing.
        Err(why) => shell.fatal(KIND.name, &why),
    }
}

/// Exports the variables of the job, or says why the job must not start.
fn export(shell: &Shell<'_>, pending: &Pending, lookup: &Future) -> Result<(), String> {
    match KIND.open(shell, &pending.settings, lookup)? {
        Some(opened) => KIND.export(shell, &opened),
        None if pending.expectation == Expectation::Yes => Err(
            "this job is to get a workflow token, but there is no sealed record for it: the plugin \
                 workflow-token.so is not loaded in the job manager, or no rule there matches: tell the operators"
                .to_owned(),
        ),
        None => {
            let line = "there is no sealed record: no rule is for this job";
            shell.log(KIND.name, ShellLogLevel::Debug, line);
            Ok(())
        }
    }
}
