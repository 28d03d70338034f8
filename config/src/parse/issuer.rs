// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tables `issuer` and `trust.NAME`, and the keys of rules with `source = "issuer"`.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{Error, field, wrong, wrong_at};
use crate::{
    Discovery, Issuer, KeyPath, TABLE, Template, Trust, TrustedKeys, check_issuer_url, check_label,
    issuer::{LEEWAY, MAX_LEEWAY, REFRESH, check_workspace},
};

pub(super) fn check_issuer(issuer: &Issuer) -> Result<(), Error> {
    if issuer.max_lifetime < Duration::from_secs(1) {
        let what = "must be at least 1s";
        return Err(wrong(format!("{TABLE}.issuer.max-lifetime"), what));
    }
    if issuer.status_list.is_some() {
        check_issuer_url(&issuer.name).map_err(|e| {
            let what = format!("{e}, because services fetch the status lists from it (key status-list)");
            wrong(format!("{TABLE}.issuer.name"), what)
        })?;
    }
    Ok(())
}

/// The keys of a rule with `source = "issuer"`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct MintedTable {
    #[serde(default, deserialize_with = "field::strings")]
    audience: Option<Vec<String>>,
    #[serde(default, deserialize_with = "field::duration")]
    max_lifetime: Option<Duration>,
    workspace: Option<Template>,
}

impl MintedTable {
    /// Returns the settings for minted tokens of the rule.
    pub fn issuer(self, at: &str, issuer: Option<&Issuer>) -> Result<Issuer, Error> {
        let Some(issuer) = issuer else {
            let what = "`issuer` needs the table [workflow-token.issuer]";
            return Err(wrong_at(at, "source", what));
        };
        let audience = self.audience.unwrap_or_else(|| issuer.audience.clone());
        if audience.is_empty() {
            let what = "is missing here and in [workflow-token.issuer]: name the services that the tokens are for";
            return Err(wrong_at(at, "audience", what));
        }
        if let Some(workspace) = &self.workspace {
            check_workspace(workspace).map_err(|e| wrong_at(at, "workspace", e))?;
        }
        let issuer = Issuer {
            audience,
            workspace: self.workspace,
            max_lifetime: self.max_lifetime.unwrap_or(issuer.max_lifetime),
            ..issuer.clone()
        };
        match issuer.max_lifetime < Duration::from_secs(1) {
            true => Err(wrong_at(at, "max-lifetime", "must be at least 1s")),
            false => Ok(issuer),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case", expecting = "a table")]
pub(super) struct TrustTable {
    #[serde(deserialize_with = "field::text")]
    issuer: Option<String>,
    keys: Option<KeyPath>,
    secret: Option<KeyPath>,
    #[serde(deserialize_with = "field::strings")]
    audience: Option<Vec<String>>,
    #[serde(deserialize_with = "field::strings")]
    typ: Vec<String>,
    #[serde(deserialize_with = "field::duration")]
    leeway: Option<Duration>,
    #[serde(deserialize_with = "field::proxy")]
    proxy: Option<String>,
    #[serde(deserialize_with = "field::absolute")]
    ca_file: Option<PathBuf>,
    #[serde(deserialize_with = "field::duration")]
    refresh: Option<Duration>,
}

impl TrustTable {
    pub fn trust(self, name: String) -> Result<Trust, Error> {
        let at = format!("{TABLE}.trust.{}", name.escape_debug());
        check_label(&name).map_err(|e| wrong(&at, e))?;
        let of_discovery = [
            ("proxy", self.proxy.is_some()),
            ("ca-file", self.ca_file.is_some()),
            ("refresh", self.refresh.is_some()),
        ];
        let keys = match (self.keys, self.secret) {
            (Some(_), Some(_)) => {
                let what = "conflicts with keys: set secret for HS256, and keys for all other algorithms";
                return Err(wrong_at(&at, "secret", what));
            }
            (Some(path), None) => TrustedKeys::Path(path),
            (None, Some(path)) => TrustedKeys::Secret(path),
            (None, None) => TrustedKeys::Discovered(Discovery {
                proxy: self.proxy,
                ca_file: self.ca_file,
                refresh: self.refresh.unwrap_or(REFRESH),
            }),
        };
        if let TrustedKeys::Discovered(_) = keys {
            self.issuer.as_deref().map_or(Ok(()), check_issuer_url).map_err(|e| {
                let what =
                    format!("{e}, because its keys are fetched from it; or set keys to a file that contains them");
                wrong_at(&at, "issuer", what)
            })?;
        } else if let Some((key, _)) = of_discovery.iter().find(|(_, is_set)| *is_set) {
            let what = "applies only to keys that are fetched from the issuer, but these are in a file: remove it";
            return Err(wrong_at(&at, key, what));
        }
        let leeway = self.leeway.unwrap_or(LEEWAY);
        if leeway > MAX_LEEWAY {
            let what = "must be at most 10m: synchronize the clocks instead";
            return Err(wrong_at(&at, "leeway", what));
        }
        let missing = |key| wrong_at(&at, key, "is missing");
        Ok(Trust {
            issuer: self.issuer.ok_or_else(|| missing("issuer"))?,
            keys,
            audience: self.audience.ok_or_else(|| missing("audience"))?,
            types: self.typ,
            leeway,
            name,
        })
    }
}

/// Returns the index of the table `trust` that a key names.
pub(super) fn trust_of(at: &str, name: &str, trusts: &[Trust]) -> Result<usize, Error> {
    let found = trusts.iter().position(|trust| trust.name == name);
    found.ok_or_else(|| {
        let what = format!("there is no table [workflow-token.trust.{}]", name.escape_debug());
        wrong_at(at, "trust", what)
    })
}
