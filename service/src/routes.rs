// SPDX-License-Identifier: MIT OR Apache-2.0

//! The paths of the service: a fixed list. The response to all others is 404.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use tokio::time::timeout;
use tower_http::compression::CompressionLayer;

use crate::{
    authorize, device, flyte, forward, introspect, job_login, login, logout, me, metadata, operator, pages, probes,
    revoke, service::Service, status, strict, token,
};

/// The longest body of a request, in bytes.
const MAX_BODY: usize = 32 << 10;

/// The routes, as named in metrics.
const ROUTES: [&str; 29] = [
    metadata::JWKS,
    metadata::TOKEN,
    metadata::INTROSPECTION,
    metadata::REVOCATION,
    metadata::RESOURCE,
    metadata::STATUS,
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
    metadata::DEVICE_AUTHORIZATION,
    metadata::AUTHORIZATION,
    "/device",
    "/login",
    "/callback",
    "/me",
    "/session/token",
    metadata::PUBLIC_CLIENT,
    flyte::SERVICE,
    flyte::SERVICE_2,
    flyte::GATEWAY,
    "/auth/nginx",
    "/auth/traefik",
    "/auth/caddy",
    "/auth/envoy",
    "/livez",
    "/healthz",
    "/readyz",
    "/metrics",
    "/operator",
    pages::STYLE,
];

/// The timeout of a request, from its last header on: longer than the timeouts of the agent.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Returns the public paths.
pub fn public(service: &Arc<Service>) -> Router {
    let settings = service.settings();
    let base = settings.issuer.path();
    let at = |path: &str| format!("{base}{path}");
    let router = Router::new()
        .route(&at(metadata::JWKS), get(metadata::jwks))
        .route(&at(metadata::INTROSPECTION), post(introspect::introspect))
        .route(&at(metadata::REVOCATION), post(revoke::revoke))
        .route(&at(metadata::TOKEN), post(token::token))
        .route(&at(metadata::STATUS), get(status::lists))
        .route(
            &format!("{}/{{number}}", at(metadata::STATUS)),
            // A list in a JWT is encoded in base64 twice, so it compresses well.
            get(status::list).layer(CompressionLayer::new().gzip(true)),
        )
        // The well-known part is in front of the issuer's path in RFC 8414 section 3.1, and behind it in OpenID Connect
        // Discovery.
        .route(
            &format!("/.well-known/oauth-authorization-server{base}"),
            get(metadata::issuer),
        )
        .route(&at("/.well-known/openid-configuration"), get(metadata::issuer))
        .route(&at(metadata::PUBLIC_CLIENT), get(metadata::public_client))
        .route(&format!("{}/{{name}}", metadata::RESOURCE), get(metadata::resource))
        .route(&at(pages::STYLE), get(pages::style))
        .merge(flyte::routes())
        .route(&at("/auth/nginx"), any(forward::nginx))
        .route(&at("/auth/traefik"), any(forward::traefik))
        .route(&at("/auth/caddy"), any(forward::caddy))
        .route(&at("/auth/envoy"), any(forward::envoy))
        .route(&at("/auth/envoy/"), any(forward::envoy))
        .route(&at("/auth/envoy/{*path}"), any(forward::envoy))
        .route("/livez", get(probes::live))
        .route("/healthz", get(probes::live))
        .route("/readyz", get(probes::ready));
    let router = match &service.state {
        Some(_) => router.merge(logins(base)),
        None => router,
    };
    guarded(router, service)
}

/// Returns the paths of logins.
fn logins(base: &str) -> Router<Arc<Service>> {
    let at = |path: &str| format!("{base}{path}");
    Router::new()
        .route(&at("/login"), get(login::login))
        .route(&at("/callback"), get(login::callback))
        .route(&at("/logout"), post(logout::logout))
        .route(&at("/logged-out"), get(logout::page))
        .route(&at("/backchannel-logout"), post(logout::back_channel))
        .route(&at("/me"), get(me::page))
        .route(&at("/me/end"), post(me::end))
        .route(&at("/me/revoke"), post(me::revoke))
        .route(&at("/session/token"), post(me::token))
        .route(&at("/device"), get(device::page).post(device::decide))
        .route(&at(metadata::JOB_LOGIN), post(job_login::job_login))
        .route(&at("/done"), get(device::over))
        .route(&at(metadata::DEVICE_AUTHORIZATION), post(device::authorization))
        .route(
            &at(metadata::AUTHORIZATION),
            get(authorize::page).post(authorize::decide),
        )
}

/// Returns the paths of the listener for metrics.
pub fn internal(service: &Arc<Service>) -> Router {
    let router = Router::new()
        .route("/metrics", get(probes::metrics))
        .route("/operator", get(operator::operator))
        .route(pages::STYLE, get(pages::style))
        .route("/livez", get(probes::live))
        .route("/healthz", get(probes::live))
        .route("/readyz", get(probes::ready));
    guarded(router, service)
}

fn guarded(router: Router<Arc<Service>>, service: &Arc<Service>) -> Router {
    let foreign: Arc<str> = format!("{}{}", service.settings().issuer.path(), strict::FOREIGN).into();
    router
        .route_layer(middleware::from_fn_with_state(Arc::clone(service), count))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(foreign, strict::refuse_ambiguous))
        .layer(middleware::from_fn(bound))
        .with_state(Arc::clone(service))
}

/// Ends requests that take too long, and sets headers of all responses.
async fn bound(request: Request, next: Next) -> Response {
    let answered = timeout(TIMEOUT, next.run(request)).await;
    let mut response = answered.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response());
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Counts a request by its route.
async fn count(State(service): State<Arc<Service>>, path: MatchedPath, request: Request, next: Next) -> Response {
    let settings = service.settings();
    let of_issuer = path
        .as_str()
        .strip_prefix(settings.issuer.path())
        .unwrap_or(path.as_str());
    let is_this = |route: &&str| of_issuer.starts_with(*route) || path.as_str().starts_with(*route);
    let route = ROUTES.into_iter().find(is_this).unwrap_or("other");
    let response = next.run(request).await;
    service.metrics.requested(route, response.status().as_u16());
    response
}
