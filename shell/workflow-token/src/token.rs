//! `workflow-token.so`: puts the token of a job into the environment of its tasks.
//!
//! It sends its first lookup while the shell is still loading plugins, and uses the answer in `shell.init`, so that a job
//! waits for at most one round trip. A token that is renewed is looked up again when the next one is due.

use std::{cell::RefCell, ffi::CString, rc::Rc};

use ffi::{Args, Future, Plugin, PluginError, Shell, ShellLogLevel};
use shell::{Reader, Settings, conf, look_up, not_loaded};

use crate::{
    expectation::{Expectation, ShellFacts},
    follower::Follower,
};

pub(crate) static READER: Reader = Reader {
    name: c"workflow-token",
    key: seal::key::WORKFLOW_TOKEN,
    what: "workflow token",
};

/// The variable with the names of those that this plugin sets. Commands that submit jobs from within this one remove them.
const VARIABLES: &str = "WORKFLOW_TOKEN_VARIABLES";

/// The state of the plugin.
struct Pending {
    plugin: Plugin<'static>,
    settings: Settings,
    expectation: Expectation,
    lookup: RefCell<Option<Future>>,
    /// Set once the tasks have a token in a file.
    follower: RefCell<Option<Rc<Follower>>>,
}

impl ffi::State for Pending {}

pub(crate) fn init(plugin: Plugin<'static>) -> i32 {
    shell::init(plugin, READER.name, load)
}

fn load(plugin: Plugin<'static>, shell: &Shell<'_>) -> Result<(), String> {
    let job = shell.job().map_err(not_loaded)?;
    let settings = Settings::read(conf(plugin)?, job.instance_owner)?;
    let without = "its rules are not known here, so every job is asked for";
    settings.warn(READER.name, shell, without);
    let option = READER.option(shell, c"workflow-token");
    let expectation = Expectation::by_option(option.as_ref()).unwrap_or_else(|| match &settings.config {
        _ if !settings.applies => Expectation::No,
        Ok(Some(config)) => Expectation::by_rules(config, &ShellFacts(shell)),
        Ok(None) | Err(_) => Expectation::Maybe,
    });
    if expectation == Expectation::No {
        return Ok(());
    }
    let lookup = look_up(shell, job.jobid, READER.key).map_err(not_loaded)?;
    let pending = Pending {
        plugin,
        settings,
        expectation,
        lookup: RefCell::new(Some(lookup)),
        follower: RefCell::default(),
    };
    let pending = plugin.keep(pending).map_err(not_loaded)?;
    plugin.handle(c"shell.init", &pending, shell_init).map_err(not_loaded)?;
    plugin.handle(c"shell.exit", &pending, shell_exit).map_err(not_loaded)
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
        Err(why) => shell.fatal(READER.name, &why),
    }
}

/// `shell.exit`: the tasks have ended.
fn shell_exit(pending: &Pending, _: Plugin<'_>, _: &Args<'_>) -> Result<(), PluginError> {
    drop(pending.follower.take());
    Ok(())
}

/// Exports the variables of the job, or says why the job must not start.
fn export(shell: &Shell<'_>, pending: &Pending, lookup: &Future) -> Result<(), String> {
    match READER.open(shell, &pending.settings, lookup)? {
        Some(opened) => {
            READER.export(shell, &opened)?;
            let (plugin, settings) = (pending.plugin, pending.settings.clone());
            let follower = plugin
                .shell()
                .and_then(|shell| Follower::begin(plugin, &shell, settings, &opened));
            let names = opened.variables.names().map(str::to_owned);
            let files = follower.iter().flat_map(|follower| follower.variables(&opened));
            let names: Vec<String> = names.chain(files).collect();
            drop(pending.follower.replace(follower));
            // The names of environment variables have no NUL.
            let names = CString::new(names.join(" ")).unwrap_or_default();
            let set = shell.set_env(VARIABLES, &names);
            set.map_err(|e| format!("{VARIABLES} could not be set in the environment of the job: {e}"))
        }
        None if pending.expectation == Expectation::Yes => Err(
            "this job is to get a workflow token, but there is no sealed record for it: the plugin \
                 workflow-token.so is not loaded in the job manager, or no rule there matches: tell the operators"
                .to_owned(),
        ),
        None => {
            let line = "there is no sealed record: no rule is for this job";
            shell.log(READER.name, ShellLogLevel::Debug, line);
            Ok(())
        }
    }
}
