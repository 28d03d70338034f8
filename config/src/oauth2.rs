//! Tokens of an external authorization server: `source = "oauth2"`.

use std::path::PathBuf;

use crate::{Discovery, KeyPath, Munge, Template};

/// Settings for a token request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OAuth2 {
    /// The server.
    pub server: AuthorizationServer,
    /// The id of this client there (RFC 6749 section 2.2).
    pub client_id: String,
    /// The authentication of this client.
    pub authentication: ClientAuthentication,
    /// By what right.
    pub grant: Grant,
    /// The scope, words separated by single spaces (RFC 6749 section 3.3).
    pub scope: Option<String>,
    /// For whom the token is to be, by name (RFC 8693 section 2.1).
    pub audience: Vec<String>,
    /// For whom the token is to be, by URI (RFC 8707 section 2).
    pub resource: Vec<String>,
    /// Settings for connections to the server.
    pub network: Discovery,
}

/// The server that issues tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorizationServer {
    /// At the endpoint that the metadata of this issuer name (RFC 8414).
    Issuer(String),
    /// At this one.
    TokenEndpoint(String),
}

/// The authentication of a client (OpenID Connect Core section 9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuthentication {
    /// By the secret in this file, in a header.
    SecretBasic(KeyPath),
    /// By the secret in this file, in the request's body.
    SecretPost(KeyPath),
    /// By a JWT signed with the private key in this file (RFC 7523 section 2.2).
    PrivateKeyJwt(KeyPath),
}

impl ClientAuthentication {
    /// The file with the secret or key.
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

/// By what right a token is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// The client's own (RFC 6749 section 4.4).
    ClientCredentials {
        /// Set if jobs share a token, rather than having one each.
        share: bool,
    },
    /// The one of whoever has another token, which is exchanged (RFC 8693).
    TokenExchange {
        /// The file with that token.
        subject_token: Template,
        /// The type of that token: a URI of RFC 8693 section 3, or of the server.
        subject_token_type: String,
    },
    /// A user logs in and gets a code (RFC 6749 section 4.1). No rule has this grant.
    AuthorizationCode,
    /// The one that a user has granted by logging in at the token service.
    Login {
        /// The directory with the refresh tokens of logins.
        store: PathBuf,
        /// How they are sealed.
        munge: Munge,
    },
    /// The one that a user or the operator has granted (RFC 6749 section 6).
    RefreshToken {
        /// The file with the refresh token, which the server may replace at each use.
        refresh_token: Template,
    },
}

impl Grant {
    /// The file with the token that is exchanged or sent, if one is.
    pub fn token_file(&self) -> Option<&Template> {
        match self {
            Self::ClientCredentials { .. } | Self::AuthorizationCode | Self::Login { .. } => None,
            Self::TokenExchange { subject_token, .. } => Some(subject_token),
            Self::RefreshToken { refresh_token } => Some(refresh_token),
        }
    }

    /// Returns the name in the protocol.
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

/// Checks a client id: what a form and a header can carry (RFC 6749 appendix A.1).
pub(crate) fn check_client_id(id: &str) -> Result<(), &'static str> {
    if !id.is_empty() && id.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
        Ok(())
    } else {
        Err("must be printable ASCII, and not empty")
    }
}

/// The URI of a type of tokens, from its short name.
pub(crate) fn token_type(name: &str) -> Result<String, &'static str> {
    match name {
        "access_token" | "refresh_token" | "id_token" | "saml1" | "saml2" | "jwt" => {
            Ok(format!("urn:ietf:params:oauth:token-type:{name}"))
        }
        uri if uri.contains(':') && uri.bytes().all(|b| b.is_ascii_graphic()) => Ok(uri.to_owned()),
        _ => Err("must be access_token, id_token, jwt, or a URI (RFC 8693 section 3)"),
    }
}
