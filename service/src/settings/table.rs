// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tables of the file, before validation.

use std::{net::SocketAddr, path::PathBuf};

use http::HeaderName;
use jiff::{civil::Date, tz::TimeZone};
use serde::Deserialize;

use super::{
    Legacy, Resource, client::ClientTable, external::ExternalTable, public_client::PublicClientTable,
    state::StateTable, user::UserName,
};

/// Headers that have a fixed meaning, so that they cannot contain tokens.
const RESERVED: [&str; 8] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "te",
    "transfer-encoding",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Table {
    pub issuer: String,
    #[serde(default = "default_agent")]
    pub agent: PathBuf,
    pub agent_user: Option<UserName>,
    #[serde(default)]
    pub listen: Vec<ListenTable>,
    pub metrics: Option<MetricsTable>,
    #[serde(default)]
    pub client: Vec<ClientTable>,
    #[serde(default)]
    pub resource: Vec<ResourceTable>,
    pub legacy: Option<LegacyTable>,
    pub audit: Option<AuditTable>,
    pub public_client: Option<PublicClientTable>,
    pub external: Option<ExternalTable>,
    pub state: Option<StateTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ListenTable {
    pub address: Option<SocketAddr>,
    pub socket: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    #[serde(default)]
    pub allow_plain_http: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetricsTable {
    pub address: SocketAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditTable {
    pub file: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResourceTable {
    name: String,
    url: String,
    #[serde(default)]
    scopes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LegacyTable {
    header: String,
    deprecated: String,
    sunset: Option<String>,
}

fn default_agent() -> PathBuf {
    "/run/workflow-token/service".into()
}

impl Table {
    pub fn parse(text: &str) -> Result<Self, String> {
        let input = toml::Deserializer::parse(text).map_err(|e| one_line(&e.to_string()))?;
        serde_path_to_error::deserialize(input).map_err(|e| {
            let path = e.path().to_string();
            let what = one_line(e.inner().message());
            match path.as_str() {
                "." => what,
                path => format!("{}: {what}", path.escape_debug()),
            }
        })
    }
}

impl ResourceTable {
    pub fn resource(self, at: &str) -> Result<Resource, String> {
        if self.name.is_empty() || !crate::strict::is_plain_path(&format!("/{}", self.name)) || self.name.contains('/')
        {
            return Err(format!(
                "{at}.name: must contain only letters, digits and -._~, since it is part of a URL"
            ));
        }
        config::check_url(&self.url).map_err(|e| format!("{at}.url: {e}"))?;
        let is_scope = |scope: &String| !scope.is_empty() && scope.bytes().all(crate::strict::is_scope_byte);
        if !self.scopes.iter().all(is_scope) {
            return Err(format!(
                "{at}.scopes: must be words of visible ASCII, without quotes and backslashes"
            ));
        }
        let Self { name, url, scopes } = self;
        Ok(Resource { name, url, scopes })
    }
}

impl LegacyTable {
    pub fn legacy(self) -> Result<Legacy, String> {
        let header: HeaderName = self
            .header
            .parse()
            .map_err(|_| "legacy.header: must be the name of a header".to_owned())?;
        if RESERVED.contains(&header.as_str()) || !crate::strict::is_unambiguous(&header) {
            return Err(format!(
                "legacy.header: {header} has another meaning: name the header of the old clients"
            ));
        }
        let day = |key: &str, text: &str| -> Result<Date, String> {
            text.parse()
                .map_err(|_| format!("legacy.{key}: must be a date, as in \"2027-06-30\""))
        };
        let deprecated = day("deprecated", &self.deprecated)?.to_zoned(TimeZone::UTC);
        let deprecated = deprecated
            .map_err(|e| format!("legacy.deprecated: {e}"))?
            .timestamp()
            .as_second();
        let sunset = self.sunset.map(|text| day("sunset", &text)).transpose()?;
        Ok(Legacy {
            header,
            deprecated: format!("@{deprecated}"),
            sunset: sunset.map(|day| day.strftime("%a, %d %b %Y 00:00:00 GMT").to_string()),
        })
    }
}

/// Shortens a message of the parser to one line. The others quote the file, which may contain secrets.
fn one_line(message: &str) -> String {
    let lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ").replace(char::is_control, "?")
}
