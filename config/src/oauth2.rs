// SPDX-License-Identifier: MIT OR Apache-2.0

//! Tokens of an external authorization server: `source = "oauth2"`.

use std::path::PathBuf;

use crate::{Discovery, KeyPath, Munge, Template};

/// Settings for a token request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OAuth2 {
    /// The server.
    pub server: AuthorizationServer,
    /// The client identifier (RFC 6749 section 2.2).
    pub client_id: String,
    /// The authentication of this client.
    pub authentication: ClientAuthentication,
    /// The grant.
    pub grant: Grant,
    /// The scope, words separated by single spaces (RFC 6749 section 3.3).
    pub scope: Option<String>,
    /// The names of the services that the token is for (RFC 8693 section 2.1).
    pub audience: Vec<String>,
    /// The URIs of the services that the token is for (RFC 8707 section 2).
    pub resource: Vec<String>,
    /// Settings for connections to the server.
    pub network: Discovery,
}

/// The server that issues tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorizationServer {
    /// The issuer, whose metadata contain the token endpoint (RFC 8414).
    Issuer(String),
    /// The URL of the token endpoint.
    TokenEndpoint(String),
}

/// The authentication of a client (OpenID Connect Core section 9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuthentication {
    /// The secret in this file, sent in a header.
    SecretBasic(KeyPath),
    /// The secret in this file, sent in the body of the request.
    SecretPost(KeyPath),
    /// A JWT signed with the private key in this file (RFC 7523 section 2.2).
    PrivateKeyJwt(KeyPath),
}

impl ClientAuthentication {
    /// Returns the path of the secret or key.
    pub fn path(&self) -> &KeyPath {
        match self {
            Self::SecretBasic(path) | Self::SecretPost(path) | Self::PrivateKeyJwt(path) => path,
        }
    }

    /// Returns the name in OpenID Connect Core section 9.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SecretBasic(_) => "client_secret_basic",
            Self::SecretPost(_) => "client_secret_post",
            Self::PrivateKeyJwt(_) => "private_key_jwt",
        }
    }
}

/// The grant of a token request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// Client credentials (RFC 6749 section 4.4).
    ClientCredentials {
        /// Set if all jobs share one token.
        share: bool,
    },
    /// Token exchange (RFC 8693).
    TokenExchange {
        /// The file with the subject token.
        subject_token: Template,
        /// The type of the subject token: a URI from RFC 8693 section 3, or one that the server defines.
        subject_token_type: String,
    },
    /// An authorization code, which a user receives at login (RFC 6749 section 4.1). No rule has this grant.
    AuthorizationCode,
    /// The refresh token of a user who has logged in at the token service.
    Login {
        /// The directory with the refresh tokens of logins.
        store: PathBuf,
        /// The settings that seal them.
        munge: Munge,
    },
    /// A refresh token that a user or the operator has placed in a file (RFC 6749 section 6).
    RefreshToken {
        /// The file with the refresh token, which the server may replace at each use.
        refresh_token: Template,
    },
}

impl Grant {
    /// Returns the path of the token that is exchanged or sent, if any.
    pub fn token_file(&self) -> Option<&Template> {
        match self {
            Self::ClientCredentials { .. } | Self::AuthorizationCode | Self::Login { .. } => None,
            Self::TokenExchange { subject_token, .. } => Some(subject_token),
            Self::RefreshToken { refresh_token } => Some(refresh_token),
        }
    }

    /// Returns the value of the parameter `grant_type`.
    pub fn uri(&self) -> &'static str {
        match self {
            Self::ClientCredentials { .. } => "client_credentials",
            Self::TokenExchange { .. } => "urn:ietf:params:oauth:grant-type:token-exchange",
            Self::AuthorizationCode => "authorization_code",
            Self::RefreshToken { .. } | Self::Login { .. } => "refresh_token",
        }
    }
}

/// Checks a scope (RFC 6749 section 3.3).
pub(crate) fn check_scope(scope: &str) -> Result<(), &'static str> {
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
    if scope.split(' ').all(is_word) {
        Ok(())
    } else {
        Err("must be words separated by single spaces, of printable ASCII without `\"` and `\\`")
    }
}

/// Checks that a form and a header can carry a client identifier (RFC 6749 appendix A.1).
pub(crate) fn check_client_id(id: &str) -> Result<(), &'static str> {
    if !id.is_empty() && id.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        Ok(())
    } else {
        Err("must be printable ASCII and must not be empty")
    }
}

/// Returns the URI of a token type for its short name. A URI is returned unchanged.
pub(crate) fn token_type(name: &str) -> Result<String, &'static str> {
    match name {
        "access_token" | "refresh_token" | "id_token" | "saml1" | "saml2" | "jwt" => {
            Ok(format!("urn:ietf:params:oauth:token-type:{name}"))
        }
        uri if uri.contains(':') && uri.bytes().all(|b| b.is_ascii_graphic()) => Ok(uri.to_owned()),
        _ => Err("must be access_token, id_token, jwt, or a URI (RFC 8693 section 3)"),
    }
}
