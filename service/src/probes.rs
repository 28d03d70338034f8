// SPDX-License-Identifier: MIT OR Apache-2.0

//! Metrics, and probes of liveness and readiness.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::service::Service;

/// The media type of OpenMetrics 1.0.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns all metrics.
pub async fn metrics(State(service): State<Arc<Service>>) -> Response {
    match service.metrics.text(service.agent.is_connected()) {
        Ok(text) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Reports that the process runs.
pub async fn live() -> &'static str {
    "ok\n"
}

/// Reports whether the service can answer requests: the agent is connected, the keys are known, and the state can be
/// used.
pub async fn ready(State(service): State<Arc<Service>>) -> Response {
    let missing = match (service.agent.is_connected(), service.keys.known()) {
        (true, Some(_)) => match service.has_state().await {
            true => return "ok\n".into_response(),
            false => "the state cannot be used\n",
        },
        (false, _) => "the agent is not connected\n",
        (true, None) => "the keys of the issuer are unknown\n",
    };
    (StatusCode::SERVICE_UNAVAILABLE, missing).into_response()
}
