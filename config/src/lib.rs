// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table `[workflow-token]` of the configuration of Flux or of a Slurm cluster, and the choice of a job's rule.
//!
//! The table is parsed once, at the edge, into a fully checked [`Config`]. Every error names the key. Nothing here
//! calls a scheduler: the job manager plugin and the job shell plugin each implement [`Facts`] to describe a job.

#![forbid(unsafe_code)]

mod duration;
mod issuer;
mod key_path;
mod kubernetes;
mod label;
mod login;
mod oauth2;
mod parse;
mod project;
mod request;
mod rule;
mod service;
mod shortfall;
mod slurm;
mod template;
mod url;

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

pub use duration::parse_duration;
pub use issuer::{Discovery, Issuer, Trust, TrustedKeys};
pub use key_path::KeyPath;
pub use kubernetes::{Dws, Kubernetes};
pub use label::{check_label, check_object_name};
pub use login::{Login, UserTemplate};
pub use oauth2::{AuthorizationServer, ClientAuthentication, Grant, OAuth2};
pub use parse::{Error, Files, Replaced, read_files};
pub use project::{Asked, Denied, Identity, IdentityToken, Person, Project, Projects};
pub use request::{Allowed, DEFAULT_NAME, LONGEST_REQUESTS, TokenRequest, TokenRequests, parse_requests};
pub use rule::{AttributePath, Conditions, Facts, Principal, Property, Scheduler, Selection};
pub use service::{Agent, EvidenceKind, Grant as ServiceGrant, Service};
pub use shortfall::{Membership, OnShortfall, Outlook, round_for_users};
pub use slurm::{Slurm, SlurmJob};
pub use template::{Template, TemplateError, Values};
pub use url::{check_issuer_url, check_proxy_url, check_url, is_plain_url};

/// The default name of the variable that carries the token.
pub const VARIABLE: &str = "DW_WORKFLOW_TOKEN";

/// The name of the table.
pub const TABLE: &str = "workflow-token";

/// The longest name of a queue, bank, project, user or group, in bytes. Rules and projects have no longer names, so a
/// longer job attribute cannot match and is not compared.
pub const MAX_NAME: usize = 256;

/// The table.
#[derive(Debug, Clone)]
pub struct Config {
    /// The environment variable that carries the token, unless a rule overrides it.
    pub variable: String,
    /// The timeout of a delivery.
    pub timeout: Duration,
    /// Set if the record is removed after the job has ended.
    pub unlink: bool,
    /// The maximum number of concurrent deliveries of one rule.
    pub max_parallel: usize,
    /// Settings of the agent: the keys `agent`, `agent-program` and `revocations`, and the table `service`.
    pub agent: Agent,
    /// Settings for MUNGE.
    pub munge: Munge,
    /// The table `dws`: the source of variables of rabbit jobs.
    pub dws: Option<Dws>,
    /// The table `issuer`: how the instance mints tokens.
    pub issuer: Option<Issuer>,
    /// The issuers whose tokens are accepted.
    pub trusts: Vec<Trust>,
    /// The projects of jobs and their members; the tables `project` and `identity`.
    pub projects: Projects,
    /// The rules. The first match wins.
    pub rules: Vec<Rule>,
    /// The table `slurm`, which makes this the configuration of a Slurm cluster.
    pub slurm: Option<Slurm>,
    /// Accepted keys that no longer have an effect, one line each with the next step.
    pub obsolete: Vec<String>,
}

/// Settings for MUNGE.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Munge {
    /// munged's socket; libmunge's default if not set.
    pub socket: Option<PathBuf>,
    /// The user that munged runs as, besides root and the instance owner.
    pub user: seal::MungeUser,
    /// The cipher.
    pub cipher: seal::Cipher,
    /// The message authentication code.
    pub mac: seal::Mac,
    /// The time to live of credentials.
    pub ttl: seal::Ttl,
}

/// The part of the table that a reader uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Rules and projects: workflow tokens.
    Tokens,
    /// The source of rabbit jobs, and projects.
    Rabbits,
    /// Only the settings for sealing.
    Sealing,
}

impl Config {
    /// Returns the configuration reduced to one part, without the rules, projects or source of the others.
    #[must_use]
    pub fn only(mut self, part: Part) -> Self {
        if part != Part::Tokens {
            self.rules.clear();
        }
        if part != Part::Rabbits {
            self.dws = None;
        }
        if part == Part::Sealing {
            self.projects = Projects::default();
        }
        self
    }

    /// Returns a client of munged that seals and opens records. Records of a Slurm cluster name the cluster.
    ///
    /// # Errors
    /// The socket path is invalid.
    pub fn munge_client(&self) -> Result<seal::Munge, seal::MungeError> {
        let munge = self.munge.client()?;
        Ok(match &self.slurm {
            Some(slurm) => munge.instance(&slurm.cluster),
            None => munge,
        })
    }
}

impl Munge {
    /// Returns a client of munged with these settings.
    ///
    /// # Errors
    /// The socket path is invalid.
    pub fn client(&self) -> Result<seal::Munge, seal::MungeError> {
        Ok(seal::Munge::new(self.socket.as_deref())?
            .user(self.user.clone())
            .cipher(self.cipher)
            .mac(self.mac)
            .ttl(self.ttl))
    }
}

/// One rule: the jobs that it applies to, and the source of their token.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The name of the token. For each name, the first rule that a job matches delivers.
    pub name: Option<String>,
    /// The jobs that the rule applies to.
    pub conditions: Conditions,
    /// The environment variable that carries the token.
    pub variable: String,
    /// The source of the token.
    pub source: Source,
    /// The timeout of the source; at most the timeout of the delivery.
    pub timeout: Duration,
    /// The check of the token before it is delivered.
    pub check: Check,
    /// How the token is renewed before it expires.
    pub renewal: Renewal,
    /// The consequence of a token that expires before its job ends.
    pub on_shortfall: OnShortfall,
    /// The audiences and scopes that users may request besides the defaults.
    pub allowed: Allowed,
}

/// How a token is renewed before it expires.
#[derive(Debug, Clone, PartialEq)]
pub struct Renewal {
    /// The fraction of the remaining lifetime after which the token is renewed; none if it is not renewed.
    pub after: Option<f64>,
    /// The signal (signal(7)) that tasks receive when their file contains a new token.
    pub signal: Option<i32>,
    /// The consequence of a token that expires before it is renewed.
    pub on_expiry: seal::OnExpiry,
    /// Set if `BEARER_TOKEN_FILE` also names the file of the token.
    pub bearer_token_file: bool,
}

impl Default for Renewal {
    fn default() -> Self {
        Self {
            after: Some(2.0 / 3.0),
            signal: None,
            on_expiry: seal::OnExpiry::default(),
            bearer_token_file: false,
        }
    }
}

/// The source of a token.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file.
    File {
        /// Its absolute path.
        path: Template,
        /// The time that the agent waits while the file is missing or empty.
        wait: Option<Duration>,
    },
    /// The standard output of a command.
    Command {
        /// The program, an absolute path, and its arguments.
        argv: Vec<Template>,
        /// Set if its standard error is logged, with secrets redacted.
        log_stderr: bool,
    },
    /// The Workflow of a rabbit job, and the Secret that it names.
    Kubernetes(Kubernetes),
    /// The instance itself.
    Issuer(Issuer),
    /// An external authorization server.
    OAuth2(Box<OAuth2>),
}

impl Source {
    /// Returns the value of the key `source` that selects it.
    pub fn name(&self) -> &'static str {
        match self {
            Source::File { .. } => "file",
            Source::Command { .. } => "command",
            Source::Kubernetes(_) => "kubernetes",
            Source::Issuer(_) => "issuer",
            Source::OAuth2(_) => "oauth2",
        }
    }

    /// Returns whether the source needs the project of a job.
    pub fn needs_project(&self) -> bool {
        match self {
            Source::File { path, .. } => path.needs_project(),
            Source::Command { argv, .. } => argv.iter().any(Template::needs_project),
            Source::Kubernetes(settings) => settings.object.needs_project(),
            Source::Issuer(issuer) => issuer.workspace.as_ref().is_none_or(Template::needs_project),
            Source::OAuth2(settings) => settings.grant.token_file().is_some_and(Template::needs_project),
        }
    }
}

/// The check of a token before it is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// A well-formed JWT that has not expired.
    Shape,
    /// Its signature and claims, against the issuer in [`Config::trusts`] of this index.
    Verify(usize),
    /// No check: the secret is opaque.
    None,
}
