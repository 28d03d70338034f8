// SPDX-License-Identifier: MIT OR Apache-2.0

//! `workflow-token-slurmstepd`: keeps the tokens of a step's tasks on one node in files.
//!
//! The plugin in slurmstepd starts it as root. As root, it reads the configuration, and contacts agents with the node's
//! credential. As the job owner, it opens records, writes the files and signals tasks. Only root can signal or trace
//! it.

#![forbid(unsafe_code)]

mod step;
mod syslog;
mod tasks;
mod user;

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    process::ExitCode,
    time::Duration,
};

use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::{alarm, daemon},
};
use slurm::{MAX_MESSAGE, Start, Started};

use crate::step::Step;

/// The timeout for a message from or to the plugin.
const MESSAGE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            syslog::log(&e.to_string());
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // Each task needs a descriptor.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    // slurmstepd waits for tasks among its children, and kills its descendants.
    daemon(false, true)?;
    secure_path::close_inherited(None)?;
    alarm::set(step::TIMEOUT);
    let mut plugin = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    plugin.set_read_timeout(Some(MESSAGE))?;
    plugin.set_write_timeout(Some(MESSAGE))?;
    let start: Start = protocol::receive(&mut plugin, MAX_MESSAGE)?;
    let (step, started) = match Step::begin(start) {
        Ok((step, variables)) => (Some(step), Ok(variables)),
        Err(why) => (None, Err(why)),
    };
    send(&mut plugin, &started)?;
    match step {
        Some(step) => step.follow(&mut plugin),
        None => Ok(()),
    }
}

fn send(plugin: &mut UnixStream, started: &Started) -> io::Result<()> {
    let frame = protocol::encode(started).map_err(io::Error::other)?;
    io::Write::write_all(plugin, &frame)
}
