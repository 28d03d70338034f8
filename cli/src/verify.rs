// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::ArgGroup;
use config::Discovery;
use protocol::{Answer, JobEnd, Question, TokenFacts, Validity};
use serde_json::{Value, json};
use source::JwksClient;
use source::keys::{self, KeysError, Want};
use token::{Claims, KeySet, MAX_STATUS_TOKEN, NumericDate, StatusCache, Token, TokenStatus, Verifier};

use crate::{agent::Agent, input, print};

/// Verify a token: its signature, issuer, audience and times
///
/// The exit status is 0 if the token is valid, 1 if it is rejected, and 2 if the command cannot decide, because it
/// cannot read the keys or the token. The reason is printed.
#[derive(clap::Args)]
#[command(group = ArgGroup::new("with").required(true), group = ArgGroup::new("by").required(true),
    group = ArgGroup::new("for").required(true))]
pub struct Args {
    #[command(flatten)]
    token: input::TokenInput,

    /// The keys of the issuer: a key directory, or a file with a JWKS, a JWK or a PEM block
    #[arg(long, value_name = "PATH", group = "with")]
    keys: Option<PathBuf>,

    /// For HS256: the file of the secret (a JWK, a PEM private key, or the secret itself), accessible only to its owner
    #[arg(long, value_name = "FILE", group = "with")]
    secret: Option<PathBuf>,

    /// The keys that the issuer publishes, at the URL of --issuer (RFC 8414, OpenID Connect Discovery)
    #[arg(long, group = "with", conflicts_with = "any_issuer")]
    discover: bool,

    /// With --discover: certificates in PEM to trust, besides those of the system
    #[arg(long, value_name = "FILE", requires = "discover")]
    ca_file: Option<PathBuf>,

    /// With --discover: the HTTP proxy, as http://HOST:PORT
    #[arg(long, value_name = "URL", requires = "discover")]
    proxy: Option<String>,

    /// The required issuer (claim `iss`)
    #[arg(long, value_name = "ISSUER", group = "by")]
    issuer: Option<String>,

    /// Accept any issuer
    #[arg(long, group = "by")]
    any_issuer: bool,

    /// The required audience (claim `aud`); if repeated, the token must be for one of them
    #[arg(long, value_name = "AUDIENCE", group = "for")]
    audience: Vec<String>,

    /// Accept any audience
    #[arg(long, group = "for")]
    any_audience: bool,

    /// The tolerated difference between the clocks of issuer and verifier
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = config::parse_duration)]
    leeway: Duration,

    /// Also ask the agent whether the token was revoked and whether its job is active; only as root or the agent's user
    #[arg(long)]
    agent: bool,

    /// With --agent, on Slurm: the configuration of the cluster
    #[arg(long, value_name = "FILE|DIR", requires = "agent")]
    config: Option<PathBuf>,

    /// Also look the token up in this Status List, which was fetched from its issuer, without the network; may be
    /// repeated
    #[arg(long, value_name = "FILE")]
    status_list: Vec<PathBuf>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The reason why the command cannot decide.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Input(#[from] input::Error),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("{0}")]
    Secret(String),
    #[error("{0}")]
    Discovery(String),
    #[error("the agent could not report whether the token was revoked or its job has ended: {0}")]
    Agent(String),
    #[error("Status List {0}: {1}")]
    StatusList(String, String),
    #[error("the token could not be looked up in a Status List: {0}")]
    Unlisted(String),
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// The timeout of requests to the issuer.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The exit status for a rejected token.
const REFUSED: u8 = 1;

/// The exit status if the command cannot decide.
const UNKNOWN: u8 = 2;

/// Verifies a token. Prints errors here, since they have a separate exit status.
pub fn run(args: &Args) -> ExitCode {
    verify(args).unwrap_or_else(|e| {
        print::err(e);
        ExitCode::from(UNKNOWN)
    })
}

fn verify(args: &Args) -> Result<ExitCode, Error> {
    let (keys, notes) = keys(args)?;
    for note in notes {
        print::err(format_args!("warning: {note}"));
    }
    let (_, token) = input::read(&args.token)?;
    let mut verifier = Verifier::new(keys).leeway(args.leeway);
    if let Some(issuer) = &args.issuer {
        verifier = verifier.issuer(issuer);
    }
    verifier = match args.audience.as_slice() {
        [] => verifier.any_audience(),
        all => all
            .iter()
            .fold(verifier, |verifier, audience| verifier.audience(audience)),
    };
    let lists = status_lists(&verifier, &args.status_list)?;
    match verifier.verify(&token, SystemTime::now()) {
        Ok(claims) => {
            if let Some(lists) = lists
                && let Some(why) = not_valid(&lists, &claims)?
            {
                return refused(why, args.json);
            }
            if args.agent
                && let Some(why) = invalid(&claims, args.config.as_deref())?
            {
                return refused(&why, args.json);
            }
            let kid = Token::inspect(&token).ok().and_then(|token| {
                let kid = token.header().get("kid")?;
                kid.as_str().map(str::to_owned)
            });
            accepted(&claims, kid.as_deref(), args.json)
        }
        Err(why) => refused(&why.to_string(), args.json),
    }
}

/// Reads Status Lists. Returns `None` if no file is named.
fn status_lists(verifier: &Verifier, files: &[PathBuf]) -> Result<Option<StatusCache>, Error> {
    if files.is_empty() {
        return Ok(None);
    }
    let cache = StatusCache::new(verifier.clone(), files.len());
    for file in files {
        let failed = |why: String| Error::StatusList(print::hidden(file.display()), print::hidden(why));
        let text = fetched(file).map_err(|e| failed(e.to_string()))?;
        cache
            .insert(text.trim_end(), SystemTime::now())
            .map_err(|e| failed(format!("{e}: fetch it again")))?;
    }
    Ok(Some(cache))
}

/// Reads the file of a Status List, up to the maximum length.
fn fetched(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?
        .take(MAX_STATUS_TOKEN as u64 + 2)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Looks up a verified token in Status Lists. Returns the reason why it is no longer valid.
fn not_valid(lists: &StatusCache, claims: &Claims) -> Result<Option<&'static str>, Error> {
    match lists.status(claims, SystemTime::now()) {
        TokenStatus::Valid => Ok(None),
        TokenStatus::Invalid => Ok(Some(
            "its Status List reports that it was revoked, or that its job has ended",
        )),
        TokenStatus::Stale { uri } => {
            let uri = print::hidden(uri);
            Err(Error::Unlisted(format!(
                "fetch its Status List, {uri}, and name the file with --status-list"
            )))
        }
        TokenStatus::Unlisted => Err(Error::Unlisted(
            "it names no Status List: ask the token service, or use --agent".to_owned(),
        )),
    }
}

/// Asks the agent about a verified token. Returns the reason why it is no longer valid.
fn invalid(claims: &Claims, config: Option<&Path>) -> Result<Option<String>, Error> {
    let agent = Agent::find(config).map_err(Error::Agent)?;
    let malformed = || Error::Agent("the job id of the token is not one of its scheduler".to_owned());
    let facts = TokenFacts::of(claims).ok_or_else(malformed)?;
    match agent.ask(Question::Check(facts)).map_err(Error::Agent)? {
        Answer::Validity(Validity::Active) => Ok(None),
        Answer::Validity(Validity::Ended(JobEnd { at: None })) => Ok(Some("its job has ended".to_owned())),
        Answer::Validity(Validity::Ended(JobEnd { at: Some(at) })) => {
            let at = NumericDate::from_seconds(at as f64);
            Ok(Some(format!("its job has ended, at {at}")))
        }
        Answer::Validity(Validity::Revoked) => Ok(Some("it was revoked".to_owned())),
        Answer::Validity(Validity::Unknown(why)) | Answer::Failed(why) => Err(Error::Agent(print::hidden(why))),
        _ => Err(Error::Agent("the agent sent an unexpected reply".to_owned())),
    }
}

/// Returns the keys to verify with, and notes about unusable ones.
fn keys(args: &Args) -> Result<(Arc<KeySet>, Vec<String>), Error> {
    let keys = match (&args.keys, &args.secret) {
        (Some(path), _) => keys::read(path, Want::Verifying)?,
        (None, Some(secret)) => keys::read_secret(secret).map_err(|e| Error::Secret(print::hidden(e)))?,
        // clap requires one of the three options, and requires an issuer with this one.
        (None, None) => return discover(args.issuer.as_deref().unwrap_or_default(), args),
    };
    Ok((Arc::clone(keys.verifying()), keys.notes().to_vec()))
}

/// Returns the keys that the issuer at this URL publishes.
fn discover(url: &str, args: &Args) -> Result<(Arc<KeySet>, Vec<String>), Error> {
    let wrong = |option: &str, wrong: &str| Error::Discovery(format!("{option} {wrong}"));
    config::check_issuer_url(url).map_err(|why| wrong("--issuer", why))?;
    if let Some(proxy) = &args.proxy {
        config::check_proxy_url(proxy).map_err(|why| wrong("--proxy", why))?;
    }
    let discovery = Discovery {
        proxy: args.proxy.clone(),
        ca_file: args.ca_file.clone(),
        refresh: Duration::ZERO,
    };
    let (keys, note) = JwksClient::published(url, &discovery, TIMEOUT).map_err(Error::Discovery)?;
    Ok((keys, note.into_iter().collect()))
}

fn accepted(claims: &Claims, kid: Option<&str>, json: bool) -> Result<ExitCode, Error> {
    let text = if json {
        let all: Value = serde_json::from_str(claims.as_json()).unwrap_or_default();
        print::json(&json!({
            "verified": true,
            "kid": kid,
            "kind": claims.kind().map(|kind| kind.to_string()),
            "claims": all,
            "expires": claims.exp().to_string(),
        })) + "\n"
    } else {
        text(claims, kid)
    };
    print::out(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn text(claims: &Claims, kid: Option<&str>) -> String {
    let list = |all: Vec<&str>| all.into_iter().map(print::word).collect::<Vec<_>>().join(", ");
    let time = |time: NumericDate| format!("{time} ({})", time.relative_to(SystemTime::now()));
    let some = |text: Option<&str>| text.map_or_else(|| "none".to_owned(), print::word);
    let mut rows = vec![
        (
            "verified",
            claims
                .kind()
                .map_or_else(|| "token".to_owned(), |kind| kind.to_string()),
        ),
        ("key", some(kid)),
        ("issuer", some(claims.iss())),
        ("subject", some(claims.sub())),
        ("audience", list(claims.aud().collect())),
    ];
    if let Some(scope) = claims.scope() {
        rows.push(("scope", scope.to_string()));
        let workspaces: Vec<&str> = claims.workspaces().collect();
        if !workspaces.is_empty() {
            rows.push(("workspace", list(workspaces)));
        }
    }
    if let Some(job) = claims.job() {
        let line = format!(
            "{} of uid {}, in {}",
            print::word(job.id),
            job.uid,
            print::word(job.instance)
        );
        rows.push(("job", line));
    }
    rows.push(("expires", time(claims.exp())));
    rows.iter()
        .map(|(name, value)| format!("{name:10}  {value}\n"))
        .collect()
}

fn refused(why: &str, json: bool) -> Result<ExitCode, Error> {
    if json {
        let object = json!({"verified": false, "reason": why});
        print::out(&(print::json(&object) + "\n"))?;
    } else {
        print::err(format_args!("refused: {why}"));
    }
    Ok(ExitCode::from(REFUSED))
}
