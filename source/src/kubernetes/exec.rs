// SPDX-License-Identifier: MIT OR Apache-2.0

//! Credentials from a command: `exec` in a kubeconfig file.
//!
//! The protocol is that of client-go ("client-go credential plugins" in the Kubernetes documentation, and the API group
//! `client.authentication.k8s.io`, versions v1 and v1beta1). The command reads an object `ExecCredential` with a `spec`
//! from the variable `KUBERNETES_EXEC_INFO` and prints one with a `status`: a token, or a client certificate with its
//! key, and the time when it expires. kube runs such a command three times for each client, does not limit its time or
//! output, and drops its standard error, so this module uses only the types of kube. A supervisor runs the command like
//! the commands of rules, see [`crate::supervise`]. It has no terminal, so `spec.interactive` is always false.

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
    bearer::bearer,
    error::{CREDENTIAL, SourceError, credential, quote},
};
use crate::{
    Slot,
    command::MIN_SECRET,
    http::tls::Identity,
    seconds,
    supervise::{self, Ended, Output, Report, Request},
};

const V1: &str = "client.authentication.k8s.io/v1";
const V1BETA1: &str = "client.authentication.k8s.io/v1beta1";

/// The longest output of a command, in bytes. Certificates take a few thousand bytes.
const MAX_OUTPUT: usize = 256 << 10;

/// The longest time before its expiry at which a credential is replaced, so that pending requests still arrive in time.
const MARGIN: Duration = Duration::from_secs(60);

const INSTALL: &str = "install it, or correct command in the kubeconfig file";

/// A command that returns a credential.
pub(super) struct Exec {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    api_version: String,
}

/// The credential that a command returned.
pub(super) struct Credential {
    pub token: Option<Secret>,
    pub identity: Option<Identity>,
    /// The time to request the next one.
    pub renew: Option<SystemTime>,
    /// The time when the credential expires.
    pub expires: Option<SystemTime>,
}

impl Exec {
    /// Reads the table `exec` of a kubeconfig file in `dir`. The certificates of `cluster` must be data.
    pub fn new(exec: &ExecConfig, cluster: &Cluster, dir: &Path) -> Result<Self, SourceError> {
        let api_version = match exec.api_version.as_deref() {
            Some(version @ (V1 | V1BETA1)) => version.to_owned(),
            other => {
                let cause = match other.filter(|version| !version.is_empty()) {
                    Some(other) => format!("exec has the apiVersion {}, which is not supported", quote(other, &[])),
                    None => "exec has no apiVersion".to_owned(),
                };
                return Err(credential(
                    cause,
                    format_args!("use a command that supports {V1} or {V1BETA1}"),
                ));
            }
        };
        if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
            return Err(credential(
                "exec has interactiveMode Always, but no user is present",
                "use a credential that needs no interaction",
            ));
        }
        let Some(command) = exec.command.as_deref().filter(|command| !command.is_empty()) else {
            return Err(credential("exec has no command", "name the program to run"));
        };
        // A name without a slash is searched on PATH, as client-go does.
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
                "exec contains an invalid argument or variable",
                "remove NUL characters from args and env, and give each entry of env a name and a value",
            ));
        }
        Ok(Self { argv, env, api_version })
    }

    /// Returns the program.
    pub fn program(&self) -> &Path {
        Path::new(self.argv.first().map(String::as_str).unwrap_or_default())
    }

    /// Finds the program, and checks that only the instance owner and root can have changed it. Blocks.
    pub fn find(&mut self) -> Result<(), SourceError> {
        let found = find_program(self.program(), Owners::process());
        let found = found.map_err(|refusal| match refusal {
            Refusal::Io(e) => credential(format_args!("{} could not be started ({e})", self.name()), INSTALL),
            Refusal::Untrusted(why) => credential(
                format_args!("{} was refused ({why})", self.name()),
                "allow only the instance owner and root to change it",
            ),
        })?;
        self.argv[0] = found.display().to_string();
        Ok(())
    }

    /// Runs the command. Dropping the future or reaching the limit kills it. `slot` is held until it has ended. With
    /// `log_stderr`, also returns its standard error for the operator's log, without secrets.
    pub async fn run(
        &self,
        supervisors: &[PathBuf],
        limit: Duration,
        slot: Slot,
        log_stderr: bool,
    ) -> (Result<Credential, SourceError>, Vec<String>) {
        let request = Request {
            argv: self.argv.clone(),
            env: self.env.clone(),
            timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            max_stdout: MAX_OUTPUT,
        };
        let Output { report, stdout, stderr } = match supervise::run(supervisors.to_vec(), request, slot).await {
            Ok(output) => output,
            Err(e) => {
                let todo = "check that the program of the agent is installed";
                let what = format_args!("{}: its supervisor failed ({e})", self.name());
                return (Err(credential(what, todo)), Vec::new());
            }
        };
        let read: Result<ExecCredential, _> = serde_json::from_slice(&stdout);
        let status = read.as_ref().ok().and_then(|read| read.status.as_ref());
        // Every line of its standard output may be a secret.
        let printed = Zeroizing::new(String::from_utf8_lossy(&stdout).into_owned());
        let lines = printed.lines().map(str::trim).filter(|line| line.len() >= MIN_SECRET);
        let secrets: Vec<&str> = status.iter().flat_map(|status| status.secrets()).chain(lines).collect();
        let lines = if log_stderr {
            token::redact_lines(&stderr, &secrets)
        } else {
            Vec::new()
        };
        let notes = lines.into_iter().map(|line| format!("{}: {line}", self.name()));
        (
            self.judge(&report, limit, log_stderr, read.as_ref().ok()),
            notes.collect(),
        )
    }

    fn judge(
        &self,
        report: &Report,
        limit: Duration,
        log_stderr: bool,
        read: Option<&ExecCredential>,
    ) -> Result<Credential, SourceError> {
        let failed = |what: &str| {
            let what = format_args!("{} {what}", self.name());
            Err(SourceError::retryable(CREDENTIAL, what, todo(report, log_stderr)))
        };
        match &report.ended {
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
                format_args!("check that it supports {}", self.api_version),
            )
        };
        let Some(read) = read else {
            return Err(wrong("no ExecCredential in JSON"));
        };
        if read.kind != "ExecCredential" || read.api_version != self.api_version {
            return Err(wrong("something other than an ExecCredential of the requested version"));
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

/// Returns the next step of the operator after a command has failed.
fn todo(report: &Report, log_stderr: bool) -> String {
    let stderr = match (report.wrote, log_stderr) {
        (0, _) => String::new(),
        (_, true) => "see its standard error above, and ".to_owned(),
        (bytes, false) => {
            format!("set log-stderr = true to log the {bytes} bytes that it wrote to its standard error, and ")
        }
    };
    format!("{stderr}run it by hand as the instance owner")
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    kind: String,
    api_version: String,
    status: Option<ExecStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecStatus {
    token: Option<Zeroizing<String>>,
    client_certificate_data: Option<String>,
    client_key_data: Option<Zeroizing<String>>,
    expiration_timestamp: Option<String>,
}

impl ExecStatus {
    fn secrets(&self) -> impl Iterator<Item = &str> {
        [&self.token, &self.client_key_data]
            .into_iter()
            .flatten()
            .map(|secret| secret.as_str())
    }

    fn credential(&self, now: SystemTime) -> Result<Credential, &'static str> {
        let token = match self.token.as_ref().filter(|token| !token.is_empty()) {
            Some(token) => Some(bearer(token.as_bytes(), "token").map_err(|_| "a token that is not a bearer token")?),
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
                    .map_err(|_| "an expirationTimestamp that is not an RFC 3339 time")?;
                Some(SystemTime::from(time))
            }
        };
        let life = expires.map(|expires| expires.duration_since(now));
        let renew = match (expires, life) {
            (Some(expires), Some(Ok(life))) => Some(expires - MARGIN.min(life / 4)),
            (Some(_), _) => return Err("a credential that has already expired (check the clock of this node)"),
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
