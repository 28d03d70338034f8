// SPDX-License-Identifier: MIT OR Apache-2.0

//! The messages of Flyte's AuthMetadataService, as defined in `flyteidl.service` and `flyteidl2.auth`. Fields that this
//! service never sets are omitted.

use prost::Message;
use serde::{Deserialize, Serialize};

/// The response of `GetOAuth2Metadata`. It is read from metadata, which use other names and contain further members.
#[derive(Clone, PartialEq, Message, Deserialize, Serialize)]
#[serde(default, rename_all(serialize = "camelCase"))]
pub struct OAuth2Metadata {
    #[prost(string, tag = "1")]
    issuer: String,
    #[prost(string, tag = "2")]
    authorization_endpoint: String,
    #[prost(string, tag = "3")]
    token_endpoint: String,
    #[prost(string, repeated, tag = "4")]
    response_types_supported: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    scopes_supported: Vec<String>,
    #[prost(string, repeated, tag = "6")]
    token_endpoint_auth_methods_supported: Vec<String>,
    #[prost(string, tag = "7")]
    jwks_uri: String,
    #[prost(string, repeated, tag = "8")]
    code_challenge_methods_supported: Vec<String>,
    #[prost(string, repeated, tag = "9")]
    grant_types_supported: Vec<String>,
    #[prost(string, tag = "10")]
    device_authorization_endpoint: String,
}

/// The response of `GetPublicClientConfig`.
#[derive(Clone, PartialEq, Message, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PublicClientConfig {
    #[prost(string, tag = "1")]
    pub client_id: String,
    #[prost(string, tag = "2")]
    pub redirect_uri: String,
    #[prost(string, repeated, tag = "3")]
    pub scopes: Vec<String>,
    #[prost(string, tag = "4")]
    pub authorization_metadata_key: String,
    #[prost(string, tag = "6")]
    pub audience: String,
}
