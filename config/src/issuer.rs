//! Tokens that the instance mints itself, and whom tokens are verified against: `source = "issuer"`, the tables `issuer`
//! and `trust.NAME`.

use std::{fmt, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{Template, Values, check_label, parse::field};

/// How long a token is good beyond the time limit of its job: what runs between the two, such as other prologs.
fn margin() -> Duration {
    Duration::from_secs(600)
}

/// The longest life of a token, whatever the job.
fn max_lifetime() -> Duration {
    Duration::from_secs(24 * 3600)
}

/// How much the clocks of issuer and verifier may differ; RFC 7519 section 4.1.4 speaks of a few minutes at most.
pub(crate) const LEEWAY: Duration = Duration::from_secs(60);

/// The most of it.
pub(crate) const MAX_LEEWAY: Duration = Duration::from_secs(600);

/// How old keys that were fetched may become.
pub(crate) const REFRESH: Duration = Duration::from_secs(3600);

/// Where keys are kept: a path in which `~`, `$VAR` and `${VAR}` may stand, which are expanded where the file is read.
/// Once expanded, it must be absolute.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyPath(String);

impl KeyPath {
    /// Takes a path as it was written.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.starts_with(['/', '~', '$']) && !text.contains('\0') {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be an absolute path, or begin with ~ or an environment variable")
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How the tokens of a rule are minted: the table `issuer`, and what the rule has in place of its values.
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
    /// How long a token is good beyond the time limit of its job.
    #[serde(default = "margin", deserialize_with = "field::duration")]
    pub margin: Duration,
    /// The longest life of a token; also that of a job without a time limit.
    #[serde(default = "max_lifetime", deserialize_with = "field::duration")]
    pub max_lifetime: Duration,
    /// What tells this instance from others whose tokens name the same issuer; by default, what Flux calls it.
    #[serde(default, deserialize_with = "field::text")]
    pub instance: Option<String>,
    /// The workspace; by default, the project of the job. It is a key of rules only.
    #[serde(skip)]
    pub workspace: Option<Template>,
}

/// Whom tokens are verified against: a table `trust.NAME`.
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
    /// How much the clocks may differ.
    pub leeway: Duration,
}

/// Where the keys of an issuer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustedKeys {
    /// A key directory, or a file with a JWKS, a JWK or a PEM block.
    Path(KeyPath),
    /// A file with the secret that both sides have, for HS256.
    Secret(KeyPath),
    /// At the issuer, whose URL is its name.
    Discovered(Discovery),
}

/// How an issuer is reached over the network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Discovery {
    /// The HTTP proxy, a URL.
    pub proxy: Option<String>,
    /// Roots of trust beside those of the system: a file of PEM certificates.
    pub ca_file: Option<PathBuf>,
    /// How old its keys may become.
    pub refresh: Duration,
}

/// Checks the workspaces that a template will form, by one job as an example.
pub(crate) fn check_workspace(template: &Template) -> Result<(), String> {
    let name = template.fill(&Values::example()).map_err(|e| e.to_string())?;
    check_label(&name).map_err(|wrong| format!("{wrong}; of the job id, only {{jobid.dec}} can be part of it"))
}
