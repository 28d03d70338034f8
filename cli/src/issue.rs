// SPDX-License-Identifier: MIT OR Apache-2.0

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ArgGroup;
use clap::builder::NonEmptyStringValueParser;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use source::keys::{self, KeysError, MAX_KEY_FILE, Want};
use source::secure_file::{self, Refusal};
use token::{ClaimsToIssue, Grant, HmacKey, Job, JobScheduler, KeyError, Name, NumericDate, Scope, Session};
use zeroize::Zeroizing;

use crate::print;

/// Issue a token of a user or of a job, with a key directory, or a token as the rabbit software issues it
///
/// The token is printed to standard output, and nowhere else. With --key, it is identical to a token of the rabbit
/// software: HS256 with the DER bytes of a PEM private key. Such a token never expires: it is valid until the key is
/// replaced.
#[derive(clap::Args)]
#[command(group = ArgGroup::new("signer").required(true))]
pub struct Args {
    /// PEM file with the private key, for a token of the rabbit software; it must belong to you or root, and be
    /// accessible only to its owner (mode 0600)
    #[arg(long, value_name = "FILE", group = "signer")]
    key: Option<PathBuf>,

    /// Key directory, whose active key signs
    #[arg(long, value_name = "DIR", group = "signer", requires_all = ["issuer", "audience", "scope"])]
    keys: Option<PathBuf>,

    /// Subject of the token (claim `sub`): a user or a service; the rabbit software uses "user-container"
    #[arg(long, value_name = "SUBJECT", value_parser = NonEmptyStringValueParser::new())]
    sub: String,

    /// Time of issue (claim `iat`), in seconds since 1970 [default: now]
    #[arg(long, value_name = "SECONDS", conflicts_with = "keys")]
    iat: Option<u64>,

    /// Issuer of the token (claim `iss`)
    #[arg(long, value_name = "ISSUER", value_parser = NonEmptyStringValueParser::new(), conflicts_with = "key")]
    issuer: Option<String>,

    /// A service that the token is for (claim `aud`); may be repeated
    #[arg(long, value_name = "AUDIENCE", value_parser = NonEmptyStringValueParser::new(), conflicts_with = "key")]
    audience: Vec<String>,

    /// Scope of the token: cluster (everything), workspace (the listed workspaces), system (for an executor, the
    /// workspaces that it is bound to) or session (one job)
    #[arg(long, value_name = "SCOPE", conflicts_with = "key")]
    scope: Option<Scope>,

    /// A workspace (claim `workspace`); may be repeated, except for the scope session
    #[arg(long, value_name = "NAME", conflicts_with = "key")]
    workspace: Vec<Name>,

    /// Lifetime of the token
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = config::parse_duration,
        conflicts_with = "key")]
    lifetime: Duration,

    /// The job, for the scope session: its id, as flux jobs prints it
    #[arg(long, value_name = "JOBID", conflicts_with = "key")]
    job: Option<Session>,

    /// The uid of the job owner, for the scope session
    #[arg(long, value_name = "UID", conflicts_with = "key")]
    uid: Option<u32>,

    /// The Flux instance of the job, for the scope session
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new(), conflicts_with = "key")]
    instance: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The reason why no token was issued.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("--key -: the key must be in a file, so that its owner and mode can be checked")]
    KeyFromStdin,
    #[error("key file {0}: {1}")]
    Unreadable(String, Refusal),
    #[error("key file {0}: {1}")]
    NotKey(String, KeyError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("{0}: no key is active: choose one with `[flux] workflow-token rotate promote`")]
    NoActive(String),
    #[error("--scope {scope} {needs}")]
    Scope { scope: Scope, needs: &'static str },
    #[error("the clock of this node is before 1970: set it, or use --iat")]
    Clock,
    #[error("the token could not be written: {0}")]
    Write(io::Error),
}

/// Issues a token.
pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let (token, kid, expires) = match (&args.keys, &args.key) {
        (Some(keys), _) => {
            let (token, kid, expires) = mint(args, keys)?;
            (token, Some(kid), Some(expires))
        }
        (None, Some(key)) => (rabbit(args, key)?, None, None),
        // clap requires one of them.
        (None, None) => return Err(Error::KeyFromStdin),
    };
    // Neither a token nor a kid contains characters that JSON escapes.
    let line = Zeroizing::new(if args.json {
        format!(
            "{{\"token\": \"{}\", \"kid\": {}, \"expires\": {}}}\n",
            token.expose_secret(),
            json!(kid),
            json!(expires.map(|time| time.to_string()))
        )
    } else {
        format!("{}\n", token.expose_secret())
    });
    print::out(&line).map_err(Error::Write)?;
    Ok(ExitCode::SUCCESS)
}

fn mint(args: &Args, path: &Path) -> Result<(SecretString, String, NumericDate), Error> {
    let grant = grant(args)?;
    let keys = keys::read(path, Want::Signing)?;
    let Some(key) = keys.signing() else {
        return Err(Error::NoActive(path.display().to_string()));
    };
    let claims = ClaimsToIssue {
        // clap requires these options with --keys.
        iss: args.issuer.clone().unwrap_or_default(),
        aud: args.audience.clone(),
        sub: args.sub.clone(),
        iat: SystemTime::now(),
        lifetime: args.lifetime,
        grant,
        status: None,
    };
    let iat = claims.iat.duration_since(UNIX_EPOCH).map_err(|_| Error::Clock)?;
    let expires = NumericDate::from_seconds(iat.as_secs().saturating_add(claims.lifetime.as_secs()) as f64);
    Ok((token::mint(key, &claims), key.kid().to_owned(), expires))
}

/// Returns the grant, if the options fit the scope.
fn grant(args: &Args) -> Result<Grant, Error> {
    // clap requires it with --keys.
    let scope = args.scope.unwrap_or(Scope::Session);
    let wrong = |needs| Err(Error::Scope { scope, needs });
    if scope != Scope::Session && (args.job.is_some() || args.uid.is_some() || args.instance.is_some()) {
        return wrong("concerns no job: omit --job, --uid and --instance");
    }
    match (scope, args.workspace.as_slice()) {
        (Scope::Cluster, []) => Ok(Grant::Cluster),
        (Scope::Cluster, _) => wrong("includes all workspaces: omit --workspace"),
        (_, []) => wrong("requires --workspace"),
        (Scope::Workspace, names) => Ok(Grant::Workspaces(names.to_vec())),
        (Scope::System, names) => Ok(Grant::System(names.to_vec())),
        (Scope::Session, [workspace]) => match (&args.job, args.uid, &args.instance) {
            (Some(id), Some(uid), Some(instance)) => Ok(Grant::Session {
                workspace: workspace.clone(),
                job: Job {
                    id: id.clone(),
                    uid,
                    instance: instance.clone(),
                    scheduler: JobScheduler::default(),
                },
            }),
            _ => wrong("requires --job, --uid and --instance"),
        },
        (Scope::Session, _) => wrong("requires one --workspace, that of the job"),
    }
}

fn rabbit(args: &Args, key: &Path) -> Result<SecretString, Error> {
    let key = read_key(key)?;
    let iat = match args.iat {
        Some(iat) => iat,
        None => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_err(|_| Error::Clock)?
            .as_secs(),
    };
    Ok(token::issue(&key, &args.sub, iat))
}

fn read_key(path: &Path) -> Result<HmacKey, Error> {
    if path.as_os_str() == "-" {
        return Err(Error::KeyFromStdin);
    }
    let name = || print::hidden(path.display());
    let pem = secure_file::read_private(path, MAX_KEY_FILE).map_err(|e| Error::Unreadable(name(), e))?;
    HmacKey::from_pem(&pem).map_err(|e| Error::NotKey(name(), e))
}
