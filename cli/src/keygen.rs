// SPDX-License-Identifier: MIT OR Apache-2.0

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;
use source::keys::{self, KeysError};
use token::Algorithm;

use crate::print;

/// Create a key directory with one key, which signs from now on
///
/// Creates the directory if necessary, and never replaces keys (see rotate). Run it as the instance owner, who must be
/// able to read the private keys. Prints the `kid` of the key.
#[derive(clap::Args)]
pub struct Args {
    /// The key directory, as in the key `keys` of [workflow-token.issuer]
    #[arg(value_name = "DIR")]
    keys: PathBuf,

    #[command(flatten)]
    kind: KeyKind,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The kind of a key.
#[derive(clap::Args)]
pub struct KeyKind {
    /// Algorithm of the key: EdDSA, ES256, RS256, or HS256, whose secret every verifier must hold
    #[arg(long, value_name = "ALGORITHM", default_value = "EdDSA")]
    pub algorithm: Algorithm,
}

/// The reason why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Creates a key directory.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let kid = keys::create(&args.keys, args.kind.algorithm)?;
    kid_out(
        &kid,
        args.json,
        json!({"algorithm": args.kind.algorithm.as_str(), "active": true}),
    )
}

/// Prints the `kid`, or an object with it.
pub fn kid_out(kid: &str, json: bool, mut object: serde_json::Value) -> Result<ExitCode, Error> {
    if json {
        object["kid"] = json!(kid);
        print::out(&(print::json(&object) + "\n"))?;
    } else {
        print::out(&format!("{kid}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
