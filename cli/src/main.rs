// SPDX-License-Identifier: MIT OR Apache-2.0

//! `flux workflow-token`: the command for users and operators.
//!
//! Each subcommand is a module. [`flux`] runs `flux` itself, and [`print`](mod@print) is the only module that writes to standard
//! output. No subcommand accepts a secret as an argument, since every user of the node can see arguments.

mod agent;
mod argv;
mod completions;
mod doctor;
mod flux;
mod input;
mod inspect;
mod issue;
mod jwks;
mod keygen;
mod login;
mod people;
mod print;
mod revoke;
mod rotate;
mod service;
mod show;
mod token;
mod verify;
mod within;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// Workflow tokens for Flux jobs: request, inspect and verify tokens, manage their keys, and check the set-up
#[derive(Parser)]
#[command(
    name = "flux-workflow-token",
    bin_name = "flux workflow-token",
    version,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Keygen(keygen::Args),
    Rotate(rotate::Args),
    Jwks(jwks::Args),
    Issue(Box<issue::Args>),
    Verify(verify::Args),
    Revoke(revoke::Args),
    Inspect(inspect::Args),
    Show(show::Args),
    Token(token::Args),
    Login(login::Args),
    Logout(login::LogoutArgs),
    Status(login::StatusArgs),
    Doctor(doctor::Args),
    Completions(completions::Args),
    /// Supervise the exec program of a kubeconfig file, for `doctor`.
    #[command(hide = true)]
    Supervise,
}

fn main() -> ExitCode {
    if let Err(e) = argv::check(std::env::args_os().skip(1)) {
        return fail(&e);
    }
    let matches = command().try_get_matches();
    let cli = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = cli.unwrap_or_else(|e| argv::exit(&e));
    let done = match cli.command {
        Command::Keygen(args) => keygen::run(&args).map_err(Into::into),
        Command::Rotate(args) => rotate::run(&args).map_err(Into::into),
        Command::Jwks(args) => jwks::run(&args).map_err(Into::into),
        Command::Verify(args) => return verify::run(&args),
        Command::Issue(args) => issue::run(&args).map_err(Into::into),
        Command::Revoke(args) => revoke::run(&args).map_err(Into::into),
        Command::Inspect(args) => inspect::run(&args).map_err(Into::into),
        Command::Show(args) => show::run(&args).map_err(Into::into),
        Command::Token(args) => token::run(&args).map_err(Into::into),
        Command::Login(args) => login::run(&args).map_err(Into::into),
        Command::Logout(args) => login::log_out(&args).map_err(Into::into),
        Command::Status(args) => login::status(&args).map_err(Into::into),
        Command::Doctor(args) => doctor::run(&args).map_err(Into::into),
        Command::Completions(args) => completions::run(&args, Cli::command()).map_err(Into::into),
        Command::Supervise => return source::supervise::main(),
    };
    done.unwrap_or_else(|e: Box<dyn std::error::Error>| fail(e.as_ref()))
}

/// Returns the command line, with the name that this program was called by.
fn command() -> clap::Command {
    match print::name() {
        name @ "workflow-token" => Cli::command().name(name).bin_name(name),
        _ => Cli::command(),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    print::err(error);
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_of_each_subcommand_can_be_read() {
        Cli::command().debug_assert();
    }
}
