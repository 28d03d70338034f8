// SPDX-License-Identifier: MIT OR Apache-2.0

//! The simulator: a substitute for the job manager, the KVS and the job shell of Flux, for machines without Flux.
//!
//! It loads the same shared objects as Flux, through the same C names, and imitates the parts of Flux that they see:
//! job states and events, dependencies, prologs and epilogs, updates of the jobspec, a KVS with asynchronous commits,
//! owner-checked lookups, shells as the job owner. It is not a workload manager: it has one node with unlimited
//! resources, and only its caller can submit.

mod c;
mod channel;
mod control;
mod eventlog;
mod exec;
mod exports;
mod future;
mod handle;
mod instance;
mod job;
mod jobid;
mod jobtap;
mod kvs;
mod plugin;
mod reactor;
mod run;
mod shell;
mod stage;
mod update;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(
    name = "flux-sim",
    version,
    about = "Runs the plugins of Flux jobs on machines without Flux"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run an instance that is controlled by JSON lines on standard input
    Instance {
        /// Keep the KVS in this directory, and replay the jobs found there
        #[arg(long)]
        statedir: PathBuf,
        #[command(flatten)]
        plugins: Plugins,
    },
    /// Run one job in an instance of its own, and exit as it does
    Run(run::Args),
    /// Run as a job shell (internal)
    #[command(hide = true)]
    Shell,
}

/// The configuration of an instance.
#[derive(clap::Args)]
struct Plugins {
    /// A TOML file of configuration, or a directory of them
    #[arg(long, value_name = "FILE|DIR")]
    config: Option<PathBuf>,
    /// A plugin for the job manager
    #[arg(long, value_name = "PATH")]
    jobtap: Vec<String>,
    /// A plugin for the job shells
    #[arg(long, value_name = "PATH")]
    shell_plugin: Vec<String>,
    /// The configuration of the plugins for the job shells, as plugin.load takes it in an initrc
    #[arg(long, value_name = "JSON")]
    shell_conf: Option<String>,
}

impl Plugins {
    fn config(&self) -> Result<Value, String> {
        self.config
            .as_deref()
            .map_or_else(|| Ok(Value::Object(Default::default())), read_config)
    }

    /// Returns the plugins for the job shells: the absolute path of each, and its configuration.
    fn shell_plugins(&self) -> Result<Value, String> {
        let conf: Value = match &self.shell_conf {
            None => Value::Null,
            Some(text) => serde_json::from_str(text).map_err(|e| format!("--shell-conf: {e}"))?,
        };
        if !conf.is_null() && !conf.is_object() {
            return Err("--shell-conf: must be a JSON object".into());
        }
        let absolute = |path: &String| match std::path::absolute(path) {
            Ok(path) => Ok(json!({"load": path.to_string_lossy(), "conf": conf})),
            Err(e) => Err(format!("{path}: {e}")),
        };
        self.shell_plugin
            .iter()
            .map(absolute)
            .collect::<Result<_, _>>()
            .map(Value::Array)
    }
}

/// Reads a TOML file, or all `*.toml` files of a directory in order of their names.
fn read_config(path: &Path) -> Result<Value, String> {
    config::read_files(path)
        .map(|files| files.conf)
        .map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    exports::keep();
    c::mark_reactor_thread();
    let result = match Cli::parse().command {
        Command::Instance { statedir, plugins } => control::main(&statedir, &plugins),
        Command::Run(args) => run::main(&args),
        Command::Shell => shell::main(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("flux-sim: {error}");
        ExitCode::FAILURE
    })
}
