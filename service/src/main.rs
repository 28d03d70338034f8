// SPDX-License-Identifier: MIT OR Apache-2.0

//! `workflow-tokend`: the token service.

#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use service::settings::Settings;

/// The maximum number of worker threads: the agent would not answer more requests.
const MAX_WORKERS: usize = 8;

/// The maximum number of threads that wait for files and the name service.
const BLOCKING_THREADS: usize = 16;

/// Reports over HTTP whether tokens are valid, and mints tokens
#[derive(Parser)]
#[command(name = "workflow-tokend", version)]
struct Cli {
    /// The configuration of the service
    #[arg(long, value_name = "FILE", default_value = service::settings::PATH)]
    config: PathBuf,
    /// Check the configuration, with all files that it names, and exit
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.check {
        true => Settings::load(&cli.config).map(|settings| println!("{}", settings.summary())),
        false => run(&cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("workflow-tokend: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), String> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(cores.min(MAX_WORKERS))
        .max_blocking_threads(BLOCKING_THREADS);
    let runtime = builder.enable_all().build();
    let runtime = runtime.map_err(|e| format!("threads cannot be started: {e}"))?;
    let served = runtime.block_on(service::run(&cli.config));
    runtime.shutdown_background();
    served
}
