// SPDX-License-Identifier: MIT OR Apache-2.0

use std::path::PathBuf;
use std::process::ExitCode;

use source::keys::{self, Want};

use crate::keygen::Error;
use crate::print;

/// Print the public keys of a key directory as a JWKS (RFC 7517), for services that verify
///
/// Secrets for HS256 are omitted.
#[derive(clap::Args)]
pub struct Args {
    /// The key directory, or a file with public keys: a JWKS, a JWK or a PEM block
    #[arg(value_name = "DIR")]
    keys: PathBuf,

    /// Print the JWKS on one line
    #[arg(long)]
    json: bool,
}

/// Prints a JWKS.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let keys = keys::read(&args.keys, Want::Verifying)?;
    for note in keys.notes() {
        print::err(format_args!("warning: {note}"));
    }
    let jwks = serde_json::from_str(&keys.verifying().public_jwks()).unwrap_or_default();
    let text = if args.json {
        print::json_line(&jwks)
    } else {
        print::json(&jwks)
    };
    print::out(&(text + "\n"))?;
    Ok(ExitCode::SUCCESS)
}
