// SPDX-License-Identifier: MIT OR Apache-2.0

//! `workflow-token.so`: sets the token of a job in the environment of its tasks.
//!
//! It sends its first look-up while the shell is still loading plugins, and uses the response in `shell.init`, so that
//! a job waits for at most one round trip. For a token that is renewed, it looks up the next one when due.

use std::{cell::RefCell, ffi::CString, rc::Rc};

use ffi::{Args, Future, Plugin, PluginError, Shell, ShellLogLevel};
use nix::unistd::geteuid;
use seal::Variables;
use shell::{Settings, conf, look_up, not_loaded};

use crate::{
    enclosing::{self, VARIABLES},
    expectation::{Expectation, ShellFacts},
    follower::{Follower, READER},
};

/// The state of the plugin.
struct Pending {
    plugin: Plugin<'static>,
    settings: Settings,
    expectation: Expectation,
    /// The variables of the enclosing job, for a job without a record.
    enclosing: Option<Variables>,
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
    let without = "the rules are unknown on this node, so the record of every job is looked up";
    settings.warn(READER.name, shell, without);
    let option = READER.option(shell, c"workflow-token");
    let expectation = Expectation::by_option(option.as_ref()).unwrap_or_else(|| match &settings.config {
        _ if !settings.applies => Expectation::No,
        Ok(Some(config)) => Expectation::by_rules(config, &ShellFacts(shell)),
        Ok(None) | Err(_) => Expectation::Maybe,
    });
    // Only an instance of a user can run in a job.
    let is_wanted = Expectation::by_option(option.as_ref()) != Some(Expectation::No);
    let enclosing = match is_wanted && job.instance_owner == geteuid().as_raw() {
        true => enclosing::variables().map_err(|e| READER.refused(&e))?,
        false => None,
    };
    let lookup = match expectation {
        Expectation::No if enclosing.is_none() => return Ok(()),
        Expectation::No => None,
        Expectation::Maybe | Expectation::Yes => Some(look_up(shell, job.jobid, READER.key).map_err(not_loaded)?),
    };
    let pending = Pending {
        plugin,
        settings,
        expectation,
        enclosing,
        lookup: RefCell::new(lookup),
        follower: RefCell::default(),
    };
    let pending = plugin.keep(pending).map_err(not_loaded)?;
    plugin.handle(c"shell.init", &pending, shell_init).map_err(not_loaded)?;
    plugin.handle(c"shell.exit", &pending, shell_exit).map_err(not_loaded)
}

/// Handles `shell.init`: no shell of the job has started its tasks yet.
fn shell_init(pending: &Pending, plugin: Plugin<'_>, _: &Args<'_>) -> Result<(), PluginError> {
    let Some(shell) = plugin.shell() else { return Ok(()) };
    match export(&shell, pending, pending.lookup.take()) {
        Ok(()) => Ok(()),
        // One exception with one clear line. Returning an error would add a second exception without information.
        Err(why) => shell.fatal(READER.name, &why),
    }
}

/// Handles `shell.exit`: the tasks have ended.
fn shell_exit(pending: &Pending, _: Plugin<'_>, _: &Args<'_>) -> Result<(), PluginError> {
    drop(pending.follower.take());
    Ok(())
}

/// Exports the variables of the job, or returns the reason why the job must not start.
fn export(shell: &Shell<'_>, pending: &Pending, lookup: Option<Future>) -> Result<(), String> {
    let opened = match &lookup {
        Some(lookup) => READER.open(shell, &pending.settings, lookup)?,
        None => None,
    };
    match (opened, &pending.enclosing) {
        (Some(opened), _) => {
            READER.export(shell, &opened)?;
            let (plugin, settings) = (pending.plugin, pending.settings.clone());
            let follower = plugin
                .shell()
                .and_then(|shell| Follower::begin(plugin, &shell, settings, &opened));
            let names = opened.variables.names().map(str::to_owned);
            let files = follower.iter().flat_map(|follower| follower.variables(&opened));
            let names: Vec<String> = names.chain(files).collect();
            drop(pending.follower.replace(follower));
            list(shell, &names)
        }
        (None, _) if pending.expectation == Expectation::Yes => Err(
            "this job must receive a workflow token, but there is no sealed record for it: the plugin \
             workflow-token.so is not loaded in the job manager, or no rule matches there: tell the operators"
                .to_owned(),
        ),
        (None, Some(variables)) => {
            READER.set(shell, variables.iter())?;
            let names: Vec<String> = variables.names().map(str::to_owned).collect();
            let line = format!("exported {} of the enclosing job", names.join(", "));
            shell.log(READER.name, ShellLogLevel::Debug, &line);
            list(shell, &names)
        }
        (None, None) => {
            let line = "there is no sealed record: no rule matches this job";
            shell.log(READER.name, ShellLogLevel::Debug, line);
            Ok(())
        }
    }
}

/// Lists the variables that were set in [`VARIABLES`].
fn list(shell: &Shell<'_>, names: &[String]) -> Result<(), String> {
    // The name of an environment variable contains no NUL.
    let names = CString::new(names.join(" ")).unwrap_or_default();
    let set = shell.set_env(VARIABLES, &names);
    set.map_err(|e| format!("{VARIABLES} could not be set in the environment of the job: {e}"))
}
