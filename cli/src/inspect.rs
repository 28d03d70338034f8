use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::{Value, json};
use token::{MAX_LEN, Malformed, NumericDate, Token, check_shape};
use zeroize::Zeroizing;

use crate::print;

/// Show what a token says, without trusting it: the signature is NOT verified
///
/// The token is read from FILE, from standard input, or from an environment variable, never from an argument, which
/// every user of this node could see. Its signature is not shown.
#[derive(clap::Args)]
pub struct Args {
    /// File that holds the token; - is standard input, as is no FILE where that is not a terminal
    #[arg(value_name = "FILE", conflicts_with = "env")]
    file: Option<PathBuf>,

    /// Take the token from this environment variable, such as DW_WORKFLOW_TOKEN
    #[arg(long, value_name = "NAME")]
    env: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no token was given: name a file, give - for standard input, or --env NAME for an environment variable")]
    NoInput,
    #[error(
        "the environment variable {0} is not set: see the names that a job was given with `flux workflow-token show JOBID`"
    )]
    NoVariable(String),
    #[error("{0}: {1}")]
    Unreadable(String, io::Error),
    #[error("{0}: not UTF-8, so not a token: see that it is the right file")]
    NotUtf8(String),
    #[error("{0}: {1}")]
    Malformed(String, Malformed),
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// Shows a token.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let (origin, text) = read(args)?;
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

/// Where the token came from, for messages, and the token.
fn read(args: &Args) -> Result<(String, Zeroizing<String>), Error> {
    if let Some(name) = &args.env {
        // The value is copied once more by the conversion; the process's environment keeps it anyway.
        let value = std::env::var_os(name).ok_or_else(|| Error::NoVariable(name.clone()))?;
        let origin = format!("environment variable {name}");
        return match value.into_string() {
            Ok(value) => Ok((origin, Zeroizing::new(value))),
            Err(_) => Err(Error::NotUtf8(origin)),
        };
    }
    match args.file.as_deref() {
        None if io::stdin().is_terminal() => Err(Error::NoInput),
        None => read_from(io::stdin(), "standard input".to_owned()),
        Some(path) if path.as_os_str() == "-" => read_from(io::stdin(), "standard input".to_owned()),
        Some(path) => {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|e| Error::Unreadable(name.clone(), e))?;
            let meta = file.metadata().map_err(|e| Error::Unreadable(name.clone(), e))?;
            if meta.is_file() && meta.mode() & 0o077 != 0 {
                eprintln!(
                    "flux-workflow-token: warning: {name}: mode {:04o} lets others than its owner read or change the \
                     token: use chmod 0600",
                    meta.mode() & 0o7777
                );
            }
            read_from(file, name)
        }
    }
}

fn read_from(reader: impl Read, origin: String) -> Result<(String, Zeroizing<String>), Error> {
    // One byte more tells "too long" from "just fits", next to a line end; sized up front against stray copies.
    let limit = MAX_LEN + "\r\n".len() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit));
    reader
        .take(limit as u64)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::Unreadable(origin.clone(), e))?;
    let Ok(text) = std::str::from_utf8(&bytes) else {
        return Err(Error::NotUtf8(origin));
    };
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    Ok((origin, Zeroizing::new(text.to_owned())))
}

struct Report {
    token: Token,
    now: SystemTime,
    /// Why it would not be delivered.
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
            "\nThe token is UNSECURED (\"alg\": \"none\"): anyone can make such a token, and no service may accept it."
        } else {
            ""
        };
        format!(
            "header {}\nclaims {}\n\nissued      {}\nvalid from  {}\nexpires     {}\nsignature   {signature}\n\
             delivered   {}\n\nNothing above is verified: whoever made the token chose every value of it.{unsecured}\n",
            print::json(&Value::Object(token.header().clone())),
            print::json(&Value::Object(claims.as_map().clone())),
            self.time(claims.issued_at(), "not said", ""),
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
