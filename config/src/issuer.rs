//! Tokens that the instance mints itself, and whom tokens are verified against: `source = "issuer"`, the tables
//! `issuer` and `trust.NAME`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{Template, Values, key_path::KeyPath, label::check_label, parse::field};

/// The default of `margin`: the time between the issue of a token and the start of its job, such as other prologs.
fn margin() -> Duration {
    Duration::from_secs(600)
}

/// The default of `max-lifetime`.
fn max_lifetime() -> Duration {
    Duration::from_secs(24 * 3600)
}

/// The default difference of clocks. RFC 7519 section 4.1.4 recommends a few minutes at most.
pub(crate) const LEEWAY: Duration = Duration::from_secs(60);

/// The largest difference that can be configured.
pub(crate) const MAX_LEEWAY: Duration = Duration::from_secs(600);

/// The default age of fetched keys.
pub(crate) const REFRESH: Duration = Duration::from_secs(3600);

/// Settings for minted tokens: the table `issuer`, and the keys of the rule, which override it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", expecting = "a table")]
pub struct Issuer {
    /// The key directory, whose active key signs.
    pub keys: KeyPath,
    /// The claim `iss`.
    #[serde(deserialize_with = "field::text")]
    pub name: String,
    /// The claim `aud`: for whom the tokens are. At least one, with a rule.
    #[serde(default, deserialize_with = "field::strings")]
    pub audience: Vec<String>,
    /// The lifetime of a token beyond the time limit of its job.
    #[serde(default = "margin", deserialize_with = "field::duration")]
    pub margin: Duration,
    /// The longest life of a token; also that of a job without a time limit.
    #[serde(default = "max_lifetime", deserialize_with = "field::duration")]
    pub max_lifetime: Duration,
    /// What tells this instance from others whose tokens name the same issuer; by default, what Flux calls it.
    #[serde(default, deserialize_with = "field::text")]
    pub instance: Option<String>,
    /// The directory of the Status Lists in which tokens of jobs have entries; none have without it.
    #[serde(default, deserialize_with = "field::absolute")]
    pub status_list: Option<PathBuf>,
    /// The workspace; by default, the project of the job. It is a key of rules only.
    #[serde(skip)]
    pub workspace: Option<Template>,
}

/// An issuer whose tokens are accepted: a table `trust.NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The last part of the table's name.
    pub name: String,
    /// The claim `iss` that is demanded.
    pub issuer: String,
    /// The keys of that issuer.
    pub keys: TrustedKeys,
    /// The claim `aud`: one of these is demanded. At least one.
    pub audience: Vec<String>,
    /// The types of tokens (`typ` in their header) of which one is demanded; where there are none, `JWT` or no type.
    pub types: Vec<String>,
    /// The accepted difference of clocks.
    pub leeway: Duration,
}

/// The location of an issuer's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustedKeys {
    /// A key directory, or a file with a JWKS, a JWK or a PEM block.
    Path(KeyPath),
    /// A file with the secret that both sides have, for HS256.
    Secret(KeyPath),
    /// At the issuer, whose URL is its name.
    Discovered(Discovery),
}

/// Settings for connections to an issuer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Discovery {
    /// The HTTP proxy, a URL.
    pub proxy: Option<String>,
    /// Roots of trust beside those of the system: a file of PEM certificates.
    pub ca_file: Option<PathBuf>,
    /// The age at which keys are fetched again.
    pub refresh: Duration,
}

/// Checks the workspaces that a template will form, by one job as an example.
pub(crate) fn check_workspace(template: &Template) -> Result<(), String> {
    let name = template.fill(&Values::example()).map_err(|e| e.to_string())?;
    check_label(&name).map_err(|wrong| format!("{wrong}; of the job id, only {{jobid.dec}} can be part of it"))
}
