//! Credentials that a command gives: `exec` in a kubeconfig file.
//!
//! The protocol is that of client-go ("client-go credential plugins" in the Kubernetes documentation, and the API group
//! `client.authentication.k8s.io`, versions v1 and v1beta1): the command finds an object `ExecCredential` with a `spec`
//! in the variable `KUBERNETES_EXEC_INFO`, and prints one with a `status`: a token, or a client certificate with its key,
//! and when it expires. kube runs such a command without a limit of time and output, three times for each client, and its
//! standard error goes nowhere, so that only its types are used here. It is run by the helper that runs the commands of rules, see [`crate::supervise`], since no
//! process that the broker starts can be waited for by a plugin. It has no terminal, so it is never asked to be
//! interactive.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use kube::config::{Cluster, ExecAuthCluster, ExecConfig, ExecInteractiveMode};
use seal::Secret;
use secure_path::{Owners, Refusal, find_program};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    access::bearer,
    error::{CREDENTIAL, SourceError, credential, quote},
};
use crate::{
    Slot,
    command::MIN_SECRET,
    http::tls::Identity,
    seconds,
    supervise::{self, Ended, Output, Request},
};

const V1: &str = "client.authentication.k8s.io/v1";
const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";

/// How much a command may print, in bytes: certificates have a few thousand.
const MAX_OUTPUT: usize = 256 << 10;

/// How long before its end a credential is exchanged, at most: a request that is under way still has to arrive.
const MARGIN: Duration = Duration::from_secs(60);

const INSTALL: &str = "install it, or correct command in the kubeconfig file";

/// A command that gives a credential.
pub(super) struct Exec {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    api_version: String,
}

/// What a command gave.
pub(super) struct Credential {
    pub token: Option<Secret>,
    pub identity: Option<Identity>,
    /// When to ask for the next one.
    pub renew: Option<SystemTime>,
    /// When it is worth nothing any more.
    pub expires: Option<SystemTime>,
}

impl Exec {
    /// What the kubeconfig file, which is in `dir`, says of it. The certificates of `cluster` are to be data.
    pub fn new(exec: &ExecConfig, cluster: &Cluster, dir: &Path) -> Result<Self, SourceError> {
        let api_version = match exec.api_version.as_deref() {
            Some(version @ (V1 | V1BETA1)) => version.to_owned(),
            _ => {
                return Err(credential(
                    "the apiVersion of exec is not supported",
                    format_args!("use a command that speaks {V1} or {V1BETA1}"),
                ));
            }
        };
        if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
            return Err(credential(
                "exec has interactiveMode Always, and there is nobody to ask",
                "use a credential that needs no interaction",
            ));
        }
        let Some(command) = exec.command.as_deref().filter(|command| !command.is_empty()) else {
            return Err(credential("exec has no command", "name the program to run"));
        };
        // A name without a slash is looked for on PATH, as client-go does.
        let program = match command.contains('/') {
            true => dir.join(command).display().to_string(),
            false => command.to_owned(),
        };
        let pairs = exec.env.iter().flatten();
        let mut env: BTreeMap<_, _> = pairs
            .filter_map(|pair| Some((pair.get("name")?.clone(), pair.get("value")?.clone())))
            .collect();
        let cluster = exec.provide_cluster_info.then(|| ExecAuthCluster::try_from(cluster));
        let cluster = cluster.transpose().map_err(|_| {
            credential(
                "its cluster cannot be described to the exec command",
                "remove provideClusterInfo",
            )
        })?;
        let mut info = json!({"apiVersion": api_version, "kind": "ExecCredential", "spec": {"interactive": false}});
        if let Some(cluster) = cluster {
            info["spec"]["cluster"] = json!(cluster);
        }
        env.insert("KUBERNETES_EXEC_INFO".to_owned(), info.to_string());
        let bad = |text: &String| text.contains('\0');
        let args = exec.args.iter().flatten().cloned();
        let argv: Vec<_> = std::iter::once(program).chain(args).collect();
        let is_name = |name: &String| !name.is_empty() && !name.contains('=');
        if argv.iter().any(bad)
            || env
                .iter()
                .any(|(name, value)| bad(name) || bad(value) || !is_name(name))
        {
            return Err(credential(
                "exec has an argument or a variable that no program can be given",
                "see that args has no NUL, and each env a name and a value",
            ));
        }
        Ok(Self { argv, env, api_version })
    }

    /// The program.
    pub fn program(&self) -> &Path {
        Path::new(self.argv.first().map(String::as_str).unwrap_or_default())
    }

    /// Finds the program, and checks that nobody but the instance owner and root could have put it there. Blocks.
    pub fn find(&mut self) -> Result<(), SourceError> {
        let found = find_program(self.program(), Owners::process());
        let found = found.map_err(|refusal| match refusal {
            Refusal::Io(e) => credential(format_args!("{} could not be started ({e})", self.name()), INSTALL),
            Refusal::Untrusted(why) => credential(
                format_args!("{} was refused ({why})", self.name()),
                "let nobody but the instance owner and root change it",
            ),
        })?;
        self.argv[0] = found.display().to_string();
        Ok(())
    }

    /// Runs the command, which is killed when the future is dropped, or the time is over. What it wrote to its standard
    /// error is for the operator, and has no secret in it.
    pub async fn run(&self, helpers: &[PathBuf], limit: Duration) -> (Result<Credential, SourceError>, Vec<String>) {
        let request = Request {
            argv: self.argv.clone(),
            env: self.env.clone(),
            timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            max_stdout: MAX_OUTPUT,
        };
        let Output { answer, stdout, stderr } = match supervise::run(helpers.to_vec(), request, Slot::default()).await {
            Ok(output) => output,
            Err(e) => {
                let todo = "see that the program of the agent is installed";
                let what = format_args!("{}: its helper could not run it ({e})", self.name());
                return (Err(credential(what, todo)), Vec::new());
            }
        };
        let read: Result<ExecCredential, _> = serde_json::from_slice(&stdout);
        let status = read.as_ref().ok().and_then(|read| read.status.as_ref());
        // Whatever it is, what was printed is not repeated.
        let printed = Zeroizing::new(String::from_utf8_lossy(&stdout).into_owned());
        let lines = printed.lines().map(str::trim).filter(|line| line.len() >= MIN_SECRET);
        let secrets: Vec<&str> = status.iter().flat_map(|status| status.secrets()).chain(lines).collect();
        let notes = token::redact_lines(&stderr, &secrets)
            .into_iter()
            .map(|line| format!("{}: {line}", self.name()))
            .collect();
        (self.judge(&answer.ended, limit, read.as_ref().ok()), notes)
    }

    fn judge(&self, ended: &Ended, limit: Duration, read: Option<&ExecCredential>) -> Result<Credential, SourceError> {
        const SEE: &str = "see what it wrote to its standard error, and run it by hand as the instance owner";

        let failed = |what: &str| {
            Err(SourceError::retryable(
                CREDENTIAL,
                format_args!("{} {what}", self.name()),
                SEE,
            ))
        };
        match ended {
            Ended::Exit(0) => {}
            Ended::Exit(code) => return failed(&format!("failed (exit code {code})")),
            Ended::Signal(signal) => return failed(&format!("was killed (signal {signal})")),
            Ended::Timeout => return failed(&format!("took longer than {} and was killed", seconds(limit))),
            Ended::TooMuch => return failed(&format!("printed more than {MAX_OUTPUT} bytes and was killed")),
            Ended::NotStarted(why) => {
                return Err(credential(
                    format_args!("{} could not be started ({why})", self.name()),
                    INSTALL,
                ));
            }
        }
        let wrong = |what: &str| {
            credential(
                format_args!("{} printed {what}", self.name()),
                format_args!("see that it speaks {}", self.api_version),
            )
        };
        let Some(read) = read else {
            return Err(wrong("no ExecCredential in JSON"));
        };
        if read.kind != "ExecCredential" || read.api_version != self.api_version {
            return Err(wrong(
                "something else than an ExecCredential of the version that it was asked for",
            ));
        }
        let Some(status) = &read.status else {
            return Err(wrong("an ExecCredential without a status"));
        };
        status.credential(SystemTime::now()).map_err(wrong)
    }

    fn name(&self) -> String {
        format!("the exec command {}", quote(&self.program().display().to_string(), &[]))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    kind: String,
    api_version: String,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<Zeroizing<String>>,
    client_certificate_data: Option<String>,
    client_key_data: Option<Zeroizing<String>>,
    expiration_timestamp: Option<String>,
}

impl Status {
    fn secrets(&self) -> impl Iterator<Item = &str> {
        [&self.token, &self.client_key_data]
            .into_iter()
            .flatten()
            .map(|secret| secret.as_str())
    }

    fn credential(&self, now: SystemTime) -> Result<Credential, &'static str> {
        let token = match self.token.as_ref().filter(|token| !token.is_empty()) {
            Some(token) => Some(bearer(token.as_bytes(), "token").map_err(|_| "a token that is no bearer token")?),
            None => None,
        };
        let present = |text: &&String| !text.is_empty();
        let certificate = self.client_certificate_data.as_ref().filter(present);
        let key = self.client_key_data.as_ref().filter(|key| !key.is_empty());
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(Identity {
                certificate: certificate.as_bytes().to_vec(),
                key: Zeroizing::new(key.as_bytes().to_vec()),
            }),
            (None, None) => None,
            _ => return Err("one of clientCertificateData and clientKeyData without the other"),
        };
        if token.is_none() && identity.is_none() {
            return Err("an ExecCredential without a token or a client certificate");
        }
        let expires = match &self.expiration_timestamp {
            None => None,
            Some(text) => {
                let time: jiff::Timestamp = text
                    .parse()
                    .map_err(|_| "an expirationTimestamp that is no RFC 3339 time")?;
                Some(SystemTime::from(time))
            }
        };
        let life = expires.map(|expires| expires.duration_since(now));
        let renew = match (expires, life) {
            (Some(expires), Some(Ok(life))) => Some(expires - MARGIN.min(life / 4)),
            (Some(_), _) => return Err("a credential that has expired already (is the clock of this node right?)"),
            _ => None,
        };
        Ok(Credential {
            token,
            identity,
            renew,
            expires,
        })
    }
}
