// SPDX-License-Identifier: MIT OR Apache-2.0

//! The table `client`: who may ask about tokens, and exchange them.

use std::{fmt, path::PathBuf};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{SHA256, digest},
};
use serde::Deserialize;

use super::user::UserName;

/// The shortest secret, in bytes: a random one of this length cannot be guessed.
const MIN_SECRET: usize = 32;

/// The longest secret file, in bytes.
const MAX_SECRET: usize = 1024;

/// A client: a service that asks about the tokens that it receives, or a program of users.
#[derive(Debug)]
pub struct Client {
    /// Its id.
    pub id: String,
    /// The method of its authentication.
    pub proof: Proof,
    /// The audiences of the tokens that it may ask about and exchange.
    pub audience: Vec<String>,
    /// Allows the client to introspect tokens (RFC 7662).
    pub may_introspect: bool,
    /// Allows the client to revoke tokens (RFC 7009).
    pub may_revoke: bool,
    /// The redirect URIs of a public client.
    pub redirect_uris: Vec<String>,
}

impl Client {
    /// Returns whether the client has no authentication: programs of users cannot keep a secret (RFC 6749 section 2.1).
    pub fn is_public(&self) -> bool {
        matches!(self.proof, Proof::Public)
    }

    /// Returns whether the client registered a redirect URI. The comparison is exact, except for the port of a loopback
    /// address (RFC 8252 section 7.3).
    pub fn redirects_to(&self, address: &str) -> bool {
        let wanted = without_loopback_port(address);
        let is_same = |known: &String| known == address || wanted.is_some() && without_loopback_port(known) == wanted;
        self.redirect_uris.iter().any(is_same)
    }
}

/// Returns a loopback address without its port, and the rest of the URI. Returns `None` for other addresses.
fn without_loopback_port(address: &str) -> Option<(&str, &str)> {
    let rest = address.strip_prefix("http://")?;
    let host = ["127.0.0.1", "[::1]", "localhost"]
        .into_iter()
        .find(|host| rest.starts_with(host))?;
    let after = &rest[host.len()..];
    let (port, path) = after.split_at(after.find('/').unwrap_or(after.len()));
    let is_port = |digits: &str| digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit());
    match port.strip_prefix(':') {
        None if port.is_empty() => Some((host, path)),
        Some(digits) if is_port(digits) => Some((host, path)),
        _ => None,
    }
}

/// A method of client authentication.
pub enum Proof {
    /// A secret, stored as its SHA-256 digest.
    Secret([u8; 32]),
    /// The uid of the client, over a Unix socket.
    Uid(u32),
    /// None.
    Public,
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(_) => f.write_str("Secret(…)"),
            Self::Uid(uid) => write!(f, "Uid({uid})"),
            Self::Public => f.write_str("Public"),
        }
    }
}

impl Proof {
    /// Returns whether a secret is correct, in constant time.
    pub fn is_secret(&self, secret: &[u8]) -> bool {
        match self {
            Self::Secret(expected) => verify_slices_are_equal(expected, digest(&SHA256, secret).as_ref()).is_ok(),
            Self::Uid(_) | Self::Public => false,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ClientTable {
    id: String,
    secret_file: Option<PathBuf>,
    user: Option<UserName>,
    #[serde(default)]
    audience: Vec<String>,
    #[serde(default)]
    may: Vec<Permission>,
    #[serde(default)]
    public: bool,
    #[serde(default)]
    redirect_uris: Vec<String>,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Permission {
    Introspect,
    Revoke,
}

impl ClientTable {
    pub fn client(self, at: &str) -> Result<Client, String> {
        if self.id.is_empty() || !self.id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
            return Err(format!("{at}.id: must be visible ASCII without a colon"));
        }
        if self.audience.iter().any(String::is_empty) || self.audience.is_empty() && !self.may.is_empty() {
            return Err(format!(
                "{at}.audience: must name the audiences of the tokens that the client may ask about"
            ));
        }
        if !self.public && !self.redirect_uris.is_empty() {
            return Err(format!("{at}.redirect-uris: is for public clients: set public = true"));
        }
        if self.public && !self.may.is_empty() {
            return Err(format!(
                "{at}.may: a public client has no authentication, so it must have no permissions"
            ));
        }
        for uri in &self.redirect_uris {
            if uri.contains(['*', ' ', '\\']) {
                return Err(format!("{at}.redirect-uris: must be complete URLs, without wildcards"));
            }
            config::check_url(uri).map_err(|e| format!("{at}.redirect-uris: {e}"))?;
        }
        let proof = match (self.secret_file, self.user) {
            (None, None) if self.public => Proof::Public,
            (Some(_), None) | (None, Some(_)) if self.public => {
                return Err(format!("{at}.public: set one of secret-file, user and public"));
            }
            (Some(path), None) => {
                let read = secure_path::read_private(&path, MAX_SECRET);
                let bytes = read.map_err(|e| format!("{at}.secret-file: {}: {e}", path.display()))?;
                let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
                if secret.len() < MIN_SECRET {
                    let what = "has fewer than 32 bytes: create one with `openssl rand -hex 32`";
                    return Err(format!("{at}.secret-file: {}: {what}", path.display()));
                }
                let mut expected = [0; 32];
                expected.copy_from_slice(digest(&SHA256, secret).as_ref());
                Proof::Secret(expected)
            }
            (None, Some(user)) => Proof::Uid(user.uid().map_err(|e| format!("{at}.user: {e}"))?),
            _ => return Err(format!("{at}.secret-file: set one of secret-file, user and public")),
        };
        Ok(Client {
            may_introspect: self.may.contains(&Permission::Introspect),
            may_revoke: self.may.contains(&Permission::Revoke),
            id: self.id,
            proof,
            audience: self.audience,
            redirect_uris: self.redirect_uris,
        })
    }
}
