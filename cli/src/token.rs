// SPDX-License-Identifier: MIT OR Apache-2.0

use std::{process::ExitCode, time::Duration};

use seal::ExposeSecret;
use source::token_service::Wanted;

use crate::{
    print,
    service::{Error, ServiceArgs},
};

/// Print a token of your own, for services that accept it
///
/// MUNGE proves your identity to the token service of the cluster, which issues a token for your projects. Programs
/// that run a command to get their token can run this.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    service: ServiceArgs,

    /// An audience of the token [default: all services that the site allows]; may be repeated
    #[arg(long, value_name = "NAME")]
    audience: Vec<String>,

    /// A project that the token is for [default: all of yours]; may be repeated
    #[arg(long = "project", value_name = "NAME")]
    projects: Vec<String>,

    /// The lifetime; the default and the maximum are those that the site allows
    #[arg(long, value_name = "DURATION", value_parser = config::parse_duration)]
    lifetime: Option<Duration>,
}

/// Prints a token.
///
/// # Errors
/// [`Error`].
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let service = args.service.connect()?;
    let wanted = Wanted {
        audience: args.audience.clone(),
        projects: args.projects.clone(),
        lifetime: args.lifetime,
    };
    let credential = service.seal(&protocol::munge_payload(&service.issuer))?;
    let token = service.client.token(&wanted, &credential);
    let token = token.map_err(|e| Error::Service(print::hidden(e)))?;
    print::out(token.expose_secret())?;
    print::out("\n")?;
    Ok(ExitCode::SUCCESS)
}
