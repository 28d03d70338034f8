// SPDX-License-Identifier: MIT OR Apache-2.0

//! The configuration of the service: a separate TOML file.

mod client;
mod external;
mod paths;
mod public_client;
mod state;
mod table;
mod user;

use std::{
    collections::HashSet,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use http::HeaderName;
use rustls::sign::CertifiedKey;

pub use client::{Client, Proof};
pub use external::{External, TokenEndpoint};
pub use public_client::PublicClient;
use state::StateTable;
pub use state::{DatabaseSettings, PostgresSettings, StateSettings};
use table::{ListenTable, Table};

use crate::certificates;

/// The default path of the file.
pub const PATH: &str = "/etc/workflow-token/tokend.toml";

/// The longest file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The settings.
#[derive(Debug)]
pub struct Settings {
    /// The issuer of the tokens, whose URL is that of the service.
    pub issuer: IssuerUrl,
    /// The Unix socket of the agent.
    pub agent: PathBuf,
    /// The uid that the agent may have, besides root and that of the service itself.
    pub agent_uid: Option<u32>,
    /// The listening addresses; at least one.
    pub listen: Vec<Listen>,
    /// The address of the listener for metrics, if any.
    pub metrics: Option<SocketAddr>,
    /// The clients that may ask about tokens.
    pub clients: Vec<Client>,
    /// The protected services.
    pub resources: Vec<Resource>,
    /// The header that old clients send instead of `Authorization`, if they are supported.
    pub legacy: Option<Legacy>,
    /// The file of the audit stream, or `None` for standard error.
    pub audit: Option<PathBuf>,
    /// The public client of command-line tools, if any.
    pub public_client: Option<PublicClient>,
    /// The server whose metadata the service publishes instead of its own.
    pub external: Option<Arc<External>>,
    /// The state, if one is configured.
    pub state: Option<StateSettings>,
}

/// The URL of the issuer: `https://HOST` or `https://HOST/PATH`, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerUrl {
    url: String,
    path: usize,
}

/// A listening address.
#[derive(Debug, Clone)]
pub enum Listen {
    /// TCP.
    Tcp(TcpListen),
    /// A Unix socket, to which every user can connect.
    Unix(PathBuf),
}

/// A listening TCP address.
#[derive(Debug, Clone)]
pub struct TcpListen {
    /// The address and port.
    pub address: SocketAddr,
    /// The certificate for TLS. It is optional only for loopback addresses.
    pub certificate: Option<Arc<CertifiedKey>>,
    /// Allows other addresses without a certificate.
    pub allow_plain_http: bool,
}

impl TcpListen {
    /// Checks that no token can cross the network in clear text by mistake.
    ///
    /// # Errors
    /// The remedy.
    pub fn check_address(&self, address: SocketAddr) -> Result<(), &'static str> {
        match self.certificate.is_some() || self.allow_plain_http || address.ip().is_loopback() {
            true => Ok(()),
            false => Err(
                "is missing: tokens and secrets would cross the network in clear text. Add certificate and key, listen at a \
                 loopback address or a socket, or set allow-plain-http = true",
            ),
        }
    }
}

/// A protected service (RFC 9728).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Its name, which is the claim `aud` of its tokens.
    pub name: String,
    /// Its URL, the resource identifier.
    pub url: String,
    /// The scopes that it supports.
    pub scopes: Vec<String>,
}

/// A header that old clients send instead of `Authorization`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Legacy {
    /// The name of the header. Its value is the token.
    pub header: HeaderName,
    /// The date of the deprecation: `@` and seconds since 1970-01-01T00:00:00Z (RFC 9745).
    pub deprecated: String,
    /// The date from which the header is rejected, if known, as an HTTP date (RFC 8594).
    pub sunset: Option<String>,
}

impl IssuerUrl {
    fn parse(url: &str) -> Result<Self, String> {
        config::check_issuer_url(url).map_err(|e| e.to_string())?;
        let after_scheme = url.find("://").map_or(0, |at| at + 3);
        let path = url[after_scheme..].find('/').map_or(url.len(), |at| after_scheme + at);
        match url.ends_with('/') || !crate::strict::is_plain_path(&url[path..]) {
            true => Err("must have no slash at its end, and only letters, digits and -._~ in its path".to_owned()),
            false => Ok(Self {
                url: url.to_owned(),
                path,
            }),
        }
    }

    /// Returns the URL, the claim `iss` of tokens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the origin: the URL without its path.
    pub fn origin(&self) -> &str {
        &self.url[..self.path]
    }

    /// Returns the path of the URL. It is empty, or begins with a slash.
    pub fn path(&self) -> &str {
        &self.url[self.path..]
    }
}

impl Settings {
    /// Loads a file, and all files that it names.
    ///
    /// # Errors
    /// A message for the operator, with the file, the key and the problem.
    pub fn load(path: &Path) -> Result<Self, String> {
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let text = read(path).map_err(|e| failed(&e))?;
        Self::parse(&text).map_err(|e| failed(&e))
    }

    /// Parses the text of a file, and loads all files that it names.
    ///
    /// # Errors
    /// The key and the problem.
    pub fn parse(text: &str) -> Result<Self, String> {
        let table = Table::parse(text)?;
        let at = |key: &str, e: String| format!("{key}: {e}");
        let listen = table.listen.into_iter().enumerate().map(|(i, table)| {
            let at = format!("listen[{i}]");
            listen(table).map_err(|(key, e)| format!("{at}.{key}: {e}"))
        });
        let listen: Vec<Listen> = listen.collect::<Result<_, _>>()?;
        if listen.is_empty() {
            return Err("listen: is missing: add [[listen]] with an address or a socket".to_owned());
        }
        let clients = table.client.into_iter().enumerate();
        let clients = clients.map(|(i, table)| table.client(&format!("client[{i}]")));
        let clients: Vec<Client> = clients.collect::<Result<_, _>>()?;
        unique("client", "id", clients.iter().map(|client| client.id.as_str()))?;
        let resources = table.resource.into_iter().enumerate();
        let resources = resources.map(|(i, table)| table.resource(&format!("resource[{i}]")));
        let resources: Vec<Resource> = resources.collect::<Result<_, _>>()?;
        unique(
            "resource",
            "name",
            resources.iter().map(|resource| resource.name.as_str()),
        )?;
        Ok(Self {
            issuer: IssuerUrl::parse(&table.issuer).map_err(|e| at("issuer", e))?,
            agent: paths::absolute(table.agent).map_err(|e| at("agent", e))?,
            agent_uid: table
                .agent_user
                .map(|user| user.uid())
                .transpose()
                .map_err(|e| at("agent-user", e))?,
            listen,
            metrics: table.metrics.map(|metrics| metrics.address),
            clients,
            resources,
            legacy: table.legacy.map(table::LegacyTable::legacy).transpose()?,
            audit: table
                .audit
                .map(|audit| paths::absolute(audit.file))
                .transpose()
                .map_err(|e| at("audit.file", e))?,
            public_client: table
                .public_client
                .map(public_client::PublicClientTable::public_client)
                .transpose()?,
            external: table.external.map(external::ExternalTable::external).transpose()?,
            state: table.state.map(StateTable::state).transpose()?,
        })
    }

    /// Returns the protected service of an audience.
    pub fn resource(&self, audience: &[String]) -> Option<&Resource> {
        self.resources.iter().find(|resource| audience.contains(&resource.name))
    }

    /// Returns the output of `--check`.
    pub fn summary(&self) -> String {
        format!(
            "{}: ok (tables: {} listen, {} client, {} resource)",
            self.issuer.url(),
            self.listen.len(),
            self.clients.len(),
            self.resources.len()
        )
    }
}

fn listen(table: ListenTable) -> Result<Listen, (&'static str, String)> {
    let certificate = match (&table.certificate, &table.key) {
        (Some(certificate), Some(key)) => Some(certificates::load(certificate, key)?),
        (None, None) => None,
        (Some(_), None) => return Err(("key", "is missing: name the private key of the certificate".to_owned())),
        (None, Some(_)) => {
            return Err((
                "certificate",
                "is missing: name the certificate of the private key".to_owned(),
            ));
        }
    };
    match (table.address, table.socket) {
        (Some(address), None) => {
            let listen = TcpListen {
                address,
                certificate,
                allow_plain_http: table.allow_plain_http,
            };
            listen
                .check_address(address)
                .map_err(|e| ("certificate", e.to_owned()))?;
            Ok(Listen::Tcp(listen))
        }
        (None, Some(socket)) if certificate.is_none() => {
            Ok(Listen::Unix(paths::socket(socket).map_err(|e| ("socket", e))?))
        }
        (None, Some(_)) => Err(("certificate", "is for an address, not for a Unix socket".to_owned())),
        _ => Err(("address", "set either address or socket".to_owned())),
    }
}

/// Rejects duplicate names in a table.
fn unique<'a>(table: &str, key: &str, names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut known = HashSet::new();
    for (i, name) in names.enumerate() {
        if !known.insert(name) {
            return Err(format!(
                "{table}[{i}].{key}: another {table} has the name `{}`",
                name.escape_debug()
            ));
        }
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other(format!("longer than {MAX_FILE} bytes")));
    }
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests;
