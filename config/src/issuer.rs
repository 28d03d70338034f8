// SPDX-License-Identifier: MIT OR Apache-2.0

//! Minted tokens and trusted issuers: `source = "issuer"`, the tables `issuer` and `trust.NAME`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{Template, Values, key_path::KeyPath, label::check_label, parse::field};

/// The default of `margin`, which covers the time from the issue of a token to the start of its job (other prologs).
fn margin() -> Duration {
    Duration::from_secs(600)
}

/// The default of `max-lifetime`.
fn max_lifetime() -> Duration {
    Duration::from_secs(24 * 3600)
}

/// The default clock skew. RFC 7519 section 4.1.4 recommends at most a few minutes.
pub(crate) const LEEWAY: Duration = Duration::from_secs(60);

/// The largest clock skew that can be configured.
pub(crate) const MAX_LEEWAY: Duration = Duration::from_secs(600);

/// The default age at which keys are fetched again.
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
    /// The claim `aud`: the recipients of the tokens. A rule has at least one.
    #[serde(default, deserialize_with = "field::strings")]
    pub audience: Vec<String>,
    /// The lifetime of a token beyond the time limit of its job.
    #[serde(default = "margin", deserialize_with = "field::duration")]
    pub margin: Duration,
    /// The longest lifetime of a token, and the lifetime for a job without a time limit.
    #[serde(default = "max_lifetime", deserialize_with = "field::duration")]
    pub max_lifetime: Duration,
    /// The name that distinguishes this instance from others with the same issuer; by default, its name in Flux.
    #[serde(default, deserialize_with = "field::text")]
    pub instance: Option<String>,
    /// The directory of the Status Lists with the entries of job tokens; none if tokens have no entries.
    #[serde(default, deserialize_with = "field::absolute")]
    pub status_list: Option<PathBuf>,
    /// The workspace; by default, the project of the job. Only rules have this key.
    #[serde(skip)]
    pub workspace: Option<Template>,
}

/// An issuer whose tokens are accepted: a table `trust.NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The last part of the table's name.
    pub name: String,
    /// The required claim `iss`.
    pub issuer: String,
    /// The keys of that issuer.
    pub keys: TrustedKeys,
    /// The accepted values of the claim `aud`. At least one.
    pub audience: Vec<String>,
    /// The accepted types of tokens (`typ` in their header). If empty, `JWT` and tokens without a type are accepted.
    pub types: Vec<String>,
    /// The accepted clock skew.
    pub leeway: Duration,
}

/// The location of an issuer's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustedKeys {
    /// A key directory, or a file with a JWKS, a JWK or a PEM block.
    Path(KeyPath),
    /// A file with the shared secret for HS256.
    Secret(KeyPath),
    /// Fetched from the issuer, whose name is its URL.
    Discovered(Discovery),
}

/// Settings for connections to an issuer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Discovery {
    /// The HTTP proxy, a URL.
    pub proxy: Option<String>,
    /// Trusted root certificates besides those of the system: a PEM file.
    pub ca_file: Option<PathBuf>,
    /// The age at which keys are fetched again.
    pub refresh: Duration,
}

/// Checks a template of workspaces with an example job.
pub(crate) fn check_workspace(template: &Template) -> Result<(), String> {
    let name = template.fill(&Values::example()).map_err(|e| e.to_string())?;
    check_label(&name).map_err(|wrong| format!("{wrong}; use {{jobid.dec}} for the job id, and no other form"))
}
