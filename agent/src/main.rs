// SPDX-License-Identifier: MIT OR Apache-2.0

//! `workflow-token-agent`: the process that fetches, checks and seals tokens for the plugins of a scheduler.
//!
//! It runs everything that can hang, grow, crash or be attacked, so that the scheduler does not. It may be killed at
//! any moment: plugins start another one and repeat their requests. On disk, it keeps revocations, the entries of
//! tokens in status lists, and refresh tokens; on Slurm also sealed records.

#![forbid(unsafe_code)]

mod agent;
mod connection;
mod frames;
mod hardening;
mod held;
mod issuer;
mod listener;
mod narrow;
mod revocations;
mod serve;
mod service;
mod signer;
mod slurm;
mod status;
mod validity;

use std::{os::unix::net::UnixListener, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use tokio::{
    runtime::Builder,
    signal::unix::{SignalKind, signal},
    time::timeout,
};

/// The most threads that block. Permits limit each of their users: lanes, look-ups, sealing.
const BLOCKING_THREADS: usize = 4096;

/// The longest wait at SIGTERM for requests that use refresh tokens: longer than such a request takes.
const ENDING: Duration = Duration::from_secs(30);

/// Fetches, checks and seals the secrets of jobs for the plugins of a scheduler.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The Unix socket to listen on; not needed if systemd passes one
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Keep running while no plugin is connected
    #[arg(long)]
    stay: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serves the controller and the nodes of a Slurm cluster
    Slurm {
        /// The configuration of the cluster: a file, or a directory of files
        #[arg(long, value_name = "FILE|DIR", default_value = ::slurm::CONFIG)]
        config: PathBuf,
    },
    /// Runs one command of a rule, for the agent itself
    #[command(hide = true)]
    Supervise,
}

fn main() -> ExitCode {
    hardening::report_panics_by_place();
    let cli = Cli::parse();
    if matches!(cli.command, Some(Command::Supervise)) {
        return source::supervise::main();
    }
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("workflow-token-agent: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<(), String> {
    let passed = listener::passed_by_systemd()?;
    hardening::harden(passed.as_ref())?;
    let mut builder = Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("workflow-token");
    let runtime = builder.enable_all().build().map_err(|e| format!("no threads: {e}"))?;
    let served = match &cli.command {
        Some(Command::Slurm { config }) => runtime.block_on(until_terminated(slurm::serve(config, passed))),
        _ => runtime.block_on(until_terminated(serve_plugins(cli, passed))),
    };
    // Do not wait for hung threads.
    runtime.shutdown_background();
    served
}

/// Serves until SIGTERM. A server replaces a refresh token when it is used, so the process does not end before the next one is on disk.
async fn until_terminated(served: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let mut end = signal(SignalKind::terminate()).map_err(|e| format!("signals: {e}"))?;
    tokio::select! {
        served = served => served,
        _ = end.recv() => {
            let _ = timeout(ENDING, source::rotations_ended()).await;
            Ok(())
        }
    }
}

async fn serve_plugins(cli: &Cli, passed: Option<UnixListener>) -> Result<(), String> {
    let listening = match (passed, &cli.socket) {
        (Some(socket), _) => listener::Listening::of_systemd(socket),
        (None, Some(path)) => match listener::Listening::bind(path)? {
            Some(listening) => listening,
            // Another agent serves the socket.
            None => return Ok(()),
        },
        (None, None) => return Err("no socket: use --socket PATH, or have systemd pass one".to_owned()),
    };
    let stays = cli.stay || listening.is_of_systemd();
    serve::serve(listening, stays).await
}
