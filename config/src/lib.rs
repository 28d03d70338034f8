//! The table `[workflow-token]` of the configuration of Flux or of a Slurm cluster, and the choice of a job's rule.
//!
//! The table is parsed once, at the edge, into a [`Config`] in which nothing is left to check. Every error names the
//! key. Nothing here calls a scheduler: a job is seen through [`Facts`], which the job manager plugin and the job shell
//! plugin answer each in its own way.

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

/// The variable that carries the token, unless the table or a rule names another.
pub const VARIABLE: &str = "DW_WORKFLOW_TOKEN";

/// The name of the table.
pub const TABLE: &str = "workflow-token";

/// The longest name of a queue, bank, project, user or group, in bytes. No rule and no project has a longer one, so
/// that of an attribute of a job no more needs to be looked at to know that it is none.
pub const MAX_NAME: usize = 256;

/// The table.
#[derive(Debug, Clone)]
pub struct Config {
    /// The environment variable that carries the token, unless a rule says otherwise.
    pub variable: String,
    /// The timeout of a delivery.
    pub timeout: Duration,
    /// Set if the record is removed when the job has ended.
    pub unlink: bool,
    /// The number of deliveries of one rule that are under way at once.
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
    /// The projects that jobs can be in, and who is in them; the tables `project` and `identity`.
    pub projects: Projects,
    /// The rules, of which the first that matches wins.
    pub rules: Vec<Rule>,
    /// The table `slurm`, which makes this the configuration of a Slurm cluster.
    pub slurm: Option<Slurm>,
    /// Keys that are accepted and have no effect any more, one line each with what to do.
    pub obsolete: Vec<String>,
}

/// Settings for MUNGE.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Munge {
    /// munged's socket; where libmunge looks by default if not given.
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
    /// Returns the configuration reduced to one part: the others have no rules, no projects or no source in it.
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

    /// Returns a client of munged that seals and opens records. Those of a Slurm cluster name it.
    ///
    /// # Errors
    /// A socket path that cannot be one.
    pub fn munge_client(&self) -> Result<seal::Munge, seal::MungeError> {
        let munge = self.munge.client()?;
        Ok(match &self.slurm {
            Some(slurm) => munge.instance(&slurm.cluster),
            None => munge,
        })
    }
}

impl Munge {
    /// The same as `seal` takes it.
    ///
    /// # Errors
    /// A socket path that cannot be one.
    pub fn client(&self) -> Result<seal::Munge, seal::MungeError> {
        Ok(seal::Munge::new(self.socket.as_deref())?
            .user(self.user.clone())
            .cipher(self.cipher)
            .mac(self.mac)
            .ttl(self.ttl))
    }
}

/// One rule: which jobs it is for, and where their token comes from.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The name of the token. For each name, the first rule that a job matches delivers.
    pub name: Option<String>,
    /// The jobs that the rule is for.
    pub conditions: Conditions,
    /// The environment variable that carries the token.
    pub variable: String,
    /// The source of the token.
    pub source: Source,
    /// The timeout of the source; never longer than that of the delivery.
    pub timeout: Duration,
    /// The check of the token before it is delivered.
    pub check: Check,
    /// How the token is renewed before it expires.
    pub renewal: Renewal,
    /// The consequence of a token that cannot last as long as its job.
    pub on_shortfall: OnShortfall,
    /// The audiences and scopes that users may request besides the defaults.
    pub allowed: Allowed,
}

/// How a token is renewed before it expires.
#[derive(Debug, Clone, PartialEq)]
pub struct Renewal {
    /// The part of the remaining lifetime after which the token is fetched again; none if it is not.
    pub after: Option<f64>,
    /// The signal that tasks receive when their file holds a new token, signal(7).
    pub signal: Option<i32>,
    /// The consequence of a token that expires before it could be renewed.
    pub on_expiry: seal::OnExpiry,
    /// Set if `BEARER_TOKEN_FILE` names the file of the token, too.
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
        /// The time for which the agent waits while the file is missing or empty.
        wait: Option<Duration>,
    },
    /// The standard output of a command.
    Command {
        /// The program, an absolute path, and its arguments.
        argv: Vec<Template>,
        /// Set if its standard error is logged, with secrets hidden.
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
    /// The name that the key `source` gives it.
    pub fn name(&self) -> &'static str {
        match self {
            Source::File { .. } => "file",
            Source::Command { .. } => "command",
            Source::Kubernetes(_) => "kubernetes",
            Source::Issuer(_) => "issuer",
            Source::OAuth2(_) => "oauth2",
        }
    }

    /// Returns whether it has nothing for a job that is in no project.
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
    /// By whom it claims to be from, against the keys of [`Config::trusts`] of this index.
    Verify(usize),
    /// Not at all: the secret is opaque.
    None,
}
