// SPDX-License-Identifier: MIT OR Apache-2.0

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};
use source::keys::{self, Want};

use crate::keygen::{Error, KeyKind, kid_out};
use crate::print;

/// Replace the key that signs, in steps during which no token is rejected
///
/// First, add a key. When every service that verifies has it (see jwks), promote it: it signs from then on. When the
/// last token of the former key has expired, retire that key. A running instance applies each step at once.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    step: Step,

    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Step {
    /// Add a key, with which tokens are verified from now on; prints its kid
    Add {
        /// The key directory
        #[arg(value_name = "DIR")]
        keys: PathBuf,

        #[command(flatten)]
        kind: KeyKind,
    },
    /// Sign with this key from now on; prints its kid
    Promote {
        /// The key directory
        #[arg(value_name = "DIR")]
        keys: PathBuf,

        /// The key [default: the only one that is not the active one]
        #[arg(value_name = "KID", allow_hyphen_values = true)]
        kid: Option<String>,
    },
    /// Delete the private part of a key, which must not be active: its tokens are rejected from now on
    Retire {
        /// The key directory
        #[arg(value_name = "DIR")]
        keys: PathBuf,

        /// The key
        #[arg(value_name = "KID", allow_hyphen_values = true)]
        kid: String,
    },
    /// List the keys, and which of them signs
    List {
        /// The key directory
        #[arg(value_name = "DIR")]
        keys: PathBuf,
    },
}

/// Performs one step of a rotation.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    match &args.step {
        Step::Add { keys, kind } => {
            let kid = keys::add(keys, kind.algorithm)?;
            let object = json!({"algorithm": kind.algorithm.as_str(), "active": false});
            kid_out(&kid, args.json, object)
        }
        Step::Promote { keys, kid } => {
            let kid = keys::promote(keys, kid.as_deref())?;
            kid_out(&kid, args.json, json!({"active": true}))
        }
        Step::Retire { keys, kid } => {
            keys::retire(keys, kid)?;
            kid_out(kid, args.json, json!({"retired": true}))
        }
        Step::List { keys } => list(&keys::read(keys, Want::Signing)?, args.json),
    }
}

fn list(keys: &keys::Keys, json: bool) -> Result<ExitCode, Error> {
    for note in keys.notes() {
        print::err(format_args!("warning: {note}"));
    }
    let active = keys.signing().map(|key| key.kid());
    let rows: Vec<(&str, &str, &str)> = keys
        .verifying()
        .iter()
        .map(|key| {
            let does = if Some(key.kid()) == active {
                "signs"
            } else if keys.private().iter().any(|private| private == key.kid()) {
                "can sign"
            } else {
                "verifies only"
            };
            (key.kid(), key.algorithm().as_str(), does)
        })
        .collect();
    let text = if json {
        let all: Vec<Value> = rows
            .iter()
            .map(|(kid, algorithm, does)| {
                json!({
                    "kid": kid,
                    "algorithm": algorithm,
                    "active": *does == "signs",
                    "private": *does != "verifies only",
                })
            })
            .collect();
        print::json(&json!({"keys": all})) + "\n"
    } else {
        let row =
            |(kid, algorithm, does): &(&str, &str, &str)| format!("{}  {algorithm:5}  {does}\n", print::word(kid));
        rows.iter().map(row).collect()
    };
    print::out(&text)?;
    Ok(ExitCode::SUCCESS)
}
