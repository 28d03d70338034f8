// SPDX-License-Identifier: MIT OR Apache-2.0

use std::io;
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::{Value, json};
use token::{Malformed, NumericDate, Token, check_shape};

use crate::{input, print};

/// Print the claims of a token, without trust: the signature is NOT verified
///
/// The token is read from FILE, from standard input, or from an environment variable, never from an argument, which
/// every user of this node could see. Its signature is not printed.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    token: input::TokenInput,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The reason why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Input(#[from] input::Error),
    #[error("{0}: {1}")]
    Malformed(String, Malformed),
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Prints a token.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let (origin, text) = input::read(&args.token)?;
    let now = SystemTime::now();
    let token = Token::inspect(&text).map_err(|e| Error::Malformed(origin, e))?;
    let report = Report {
        check: check_shape(&text, now).err().map(|e| e.to_string()),
        token,
        now,
    };
    print::out(&if args.json {
        print::json(&report.json()) + "\n"
    } else {
        report.text()
    })?;
    Ok(ExitCode::SUCCESS)
}

struct Report {
    token: Token,
    now: SystemTime,
    /// The reason why a rule would not deliver the token.
    check: Option<String>,
}

impl Report {
    fn text(&self) -> String {
        let Self { token, .. } = self;
        let claims = token.claims();
        let signature = match token.signature_len() {
            0 => "none".to_owned(),
            len => format!("{} by its header, {len} bytes, NOT verified", print::word(token.alg())),
        };
        let unsecured = if token.is_unsecured() {
            "\nThe token is UNSECURED (\"alg\": \"none\"): anyone can create such a token. No service may accept it."
        } else {
            ""
        };
        format!(
            "header {}\nclaims {}\n\nissued      {}\nvalid from  {}\nexpires     {}\nsignature   {signature}\n\
             delivered   {}\n\nNothing above is verified: the author of the token chose every value.{unsecured}\n",
            print::json(&Value::Object(token.header().clone())),
            print::json(&Value::Object(claims.as_map().clone())),
            self.time(claims.issued_at(), "unknown", ""),
            self.time(claims.not_before(), "any time", ""),
            self.time(claims.expires(), "never", "EXPIRED, "),
            match &self.check {
                None => "yes, by a rule with check = \"shape\"".to_owned(),
                Some(why) => format!("no, not by a rule with check = \"shape\": {why}"),
            },
        )
    }

    fn time(&self, time: Result<Option<NumericDate>, Malformed>, absent: &str, past: &str) -> String {
        match time {
            Ok(None) => absent.to_owned(),
            Ok(Some(time)) => {
                let mark = if time <= self.now.into() { past } else { "" };
                format!("{mark}{time} ({})", time.relative_to(self.now))
            }
            Err(e) => format!("INVALID: {e}"),
        }
    }

    fn json(&self) -> Value {
        let Self { token, now, .. } = self;
        let claims = token.claims();
        let time = |time: Result<Option<NumericDate>, Malformed>| time.ok().flatten().map(|time| time.to_string());
        json!({
            "verified": false,
            "header": token.header(),
            "claims": claims.as_map(),
            "signature-bytes": token.signature_len(),
            "unsecured": token.is_unsecured(),
            "issued": time(claims.issued_at()),
            "valid-from": time(claims.not_before()),
            "expires": time(claims.expires()),
            "expired": claims.expires().ok().flatten().is_some_and(|exp| exp <= (*now).into()),
            "refused": self.check,
        })
    }
}
