// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table `state`: the database of sessions, logins and codes.

use std::{fmt, net::IpAddr, path::PathBuf};

use rustls::pki_types::{CertificateDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use sqlx::postgres::PgConnectOptions;
use zeroize::Zeroizing;

use super::paths::absolute;
use crate::state::seal::Keyring;

/// The longest password or certificate file, in bytes.
const MAX_FILE: usize = 1 << 20;

/// The settings of the state.
#[derive(Debug, Clone)]
pub struct StateSettings {
    /// The database.
    pub database: DatabaseSettings,
    /// The maximum number of records of one kind.
    pub max_records: u64,
    /// The keys that seal records.
    pub keyring: Keyring,
}

/// A database.
#[derive(Debug, Clone)]
pub enum DatabaseSettings {
    /// An SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
    Postgres(PostgresSettings),
}

/// A PostgreSQL database.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    /// Its URL, without a password.
    pub url: String,
    /// The password of the user in the URL.
    pub password: Option<SecretString>,
    /// Trusted certificates in PEM, besides the public ones.
    pub ca: Option<Vec<u8>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct StateTable {
    #[serde(default = "default_database")]
    database: Zeroizing<String>,
    password_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
    key_file: PathBuf,
    #[serde(default = "default_max_records")]
    max_records: u64,
}

fn default_database() -> Zeroizing<String> {
    "sqlite:///var/lib/workflow-tokend/state.db".to_owned().into()
}

fn default_max_records() -> u64 {
    1_000_000
}

impl StateTable {
    pub fn state(self) -> Result<StateSettings, String> {
        let key_file = absolute(self.key_file).map_err(|e| format!("state.key-file: {e}"))?;
        let files = [("password-file", &self.password_file), ("ca-file", &self.ca_file)];
        let database = match self.database.strip_prefix("sqlite://") {
            Some(path) => {
                if let Some((key, _)) = files.iter().find(|(_, file)| file.is_some()) {
                    return Err(format!("state.{key}: is for PostgreSQL, not for SQLite"));
                }
                DatabaseSettings::Sqlite(absolute(path.into()).map_err(|e| format!("state.database: {e}"))?)
            }
            None => DatabaseSettings::Postgres(PostgresSettings {
                url: postgres_url(&self.database).map_err(|e| format!("state.database: {e}"))?,
                password: self.password_file.map(password).transpose()?,
                ca: self.ca_file.map(authorities).transpose()?,
            }),
        };
        if self.max_records == 0 {
            return Err("state.max-records: must be at least 1".to_owned());
        }
        Ok(StateSettings {
            database,
            max_records: self.max_records,
            keyring: Keyring::load(&key_file).map_err(|e| format!("state.key-file: {e}"))?,
        })
    }
}

impl StateSettings {
    /// Returns whether other settings differ in nothing but the keys.
    pub fn has_same_database(&self, other: &Self) -> bool {
        let is_same = match (&self.database, &other.database) {
            (DatabaseSettings::Sqlite(a), DatabaseSettings::Sqlite(b)) => a == b,
            (DatabaseSettings::Postgres(a), DatabaseSettings::Postgres(b)) => {
                let password = |settings: &PostgresSettings| {
                    let password = settings.password.as_ref();
                    password.map(|password| Zeroizing::new(password.expose_secret().to_owned()))
                };
                (&a.url, &a.ca, password(a)) == (&b.url, &b.ca, password(b))
            }
            _ => false,
        };
        is_same && self.max_records == other.max_records
    }
}

impl PostgresSettings {
    /// Returns whether the connection uses TLS: it crosses the network, or `ca-file` is set.
    pub fn is_tls(&self, options: &PgConnectOptions) -> bool {
        let host = options.get_host().trim_matches(['[', ']']);
        let is_loopback = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        self.ca.is_some() || !(is_loopback || options.get_socket().is_some() || host.starts_with('/'))
    }
}

impl fmt::Display for DatabaseSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(settings) => f.write_str(&settings.url),
        }
    }
}

/// Checks the URL of a database. Error messages contain no part of the URL, which may include a password.
fn postgres_url(text: &str) -> Result<String, &'static str> {
    let form = "must be sqlite:///PATH, postgres://USER@HOST/DATABASE, or postgres://USER@%2FDIRECTORY/DATABASE for a Unix socket";
    let url = url::Url::parse(text).map_err(|_| form)?;
    if url.password().is_some() {
        return Err("must contain no password: write it to a file, and set password-file");
    }
    let has_all = !url.username().is_empty() && url.has_host() && url.path().len() > 1;
    let has_more = url.query().is_some() || url.fragment().is_some();
    match matches!(url.scheme(), "postgres" | "postgresql") && has_all && !has_more {
        true => Ok(text.to_owned()),
        false => Err(form),
    }
}

fn password(path: PathBuf) -> Result<SecretString, String> {
    let failed = |e: &dyn fmt::Display| format!("state.password-file: {}: {e}", path.display());
    let bytes = secure_path::read_private(&path, MAX_FILE).map_err(|e| failed(&e))?;
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    match str::from_utf8(bytes) {
        Ok("") => Err(failed(&"is empty")),
        Ok(text) => Ok(text.into()),
        Err(_) => Err(failed(&"is not UTF-8")),
    }
}

fn authorities(path: PathBuf) -> Result<Vec<u8>, String> {
    let failed = |e: &dyn fmt::Display| format!("state.ca-file: {}: {e}", path.display());
    let pem = secure_path::read_public(&path, MAX_FILE).map_err(|e| failed(&e))?;
    let first = CertificateDer::pem_slice_iter(&pem).next();
    match first {
        Some(Ok(_)) => Ok(pem.to_vec()),
        _ => Err(failed(&"it contains no certificate (BEGIN CERTIFICATE)")),
    }
}
