// SPDX-License-Identifier: MIT OR Apache-2.0

//! Flyte's AuthMetadataService, in which Flyte's clients find the authorization server and their client id.
//!
//! Clients of Flyte 2 call it with the Connect protocol. Those of Flyte 1 use gRPC, which needs HTTP/2 and is not
//! supported, or the paths of Flyte's gateway.

pub mod messages;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use self::messages::{OAuth2Metadata, PublicClientConfig};
use crate::{
    connect::{Call, CallError},
    metadata,
    service::Service,
    settings::PublicClient,
};

/// The service of Flyte 1.
pub const SERVICE: &str = "/flyteidl.service.AuthMetadataService";

/// The service of Flyte 2. Its methods are declared free of side effects, so they accept GET, too.
pub const SERVICE_2: &str = "/flyteidl2.auth.AuthMetadataService";

/// The path of the gateway of Flyte 1 for the public client.
pub const GATEWAY: &str = "/config/v1/flyte_client";

/// Returns the paths of Flyte.
pub fn routes() -> Router<Arc<Service>> {
    let at = |service: &str, method: &str| format!("{service}/{method}");
    Router::new()
        .route(&at(SERVICE, "GetOAuth2Metadata"), post(oauth2_metadata))
        .route(&at(SERVICE, "GetPublicClientConfig"), post(public_client))
        .route(
            &at(SERVICE_2, "GetOAuth2Metadata"),
            get(oauth2_metadata).post(oauth2_metadata),
        )
        .route(
            &at(SERVICE_2, "GetPublicClientConfig"),
            get(public_client).post(public_client),
        )
        .route(GATEWAY, get(gateway))
}

async fn oauth2_metadata(State(service): State<Arc<Service>>, call: Call) -> Result<Response, CallError> {
    let metadata = metadata::document(&service).ok_or(CallError::Unavailable)?;
    let message: OAuth2Metadata =
        serde_json::from_value(Value::Object(metadata)).map_err(|_| CallError::Unavailable)?;
    Ok(call.response(&message))
}

async fn public_client(State(service): State<Arc<Service>>, call: Call) -> Result<Response, CallError> {
    let settings = service.settings();
    let client = settings.public_client.as_ref();
    let client = client.ok_or(CallError::Unimplemented("this service has no settings for clients"))?;
    Ok(call.response(&config(client)))
}

/// Handles a request in the format of the gateway of Flyte 1, which uses the field names of Protocol Buffers.
async fn gateway(State(service): State<Arc<Service>>) -> Response {
    let settings = service.settings();
    let Some(client) = &settings.public_client else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let PublicClientConfig {
        client_id,
        redirect_uri,
        scopes,
        authorization_metadata_key,
        audience,
    } = config(client);
    let body = json!({
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "scopes": scopes,
        "authorization_metadata_key": authorization_metadata_key,
        "audience": audience,
    });
    Json(body).into_response()
}

/// Returns the settings in the format of Flyte, whose clients support one redirect URI.
fn config(client: &PublicClient) -> PublicClientConfig {
    PublicClientConfig {
        client_id: client.id.clone(),
        redirect_uri: client.redirect_uris.first().cloned().unwrap_or_default(),
        scopes: client.scopes.clone(),
        authorization_metadata_key: client.authorization_metadata_key.to_string(),
        audience: client.audience.clone().unwrap_or_default(),
    }
}
