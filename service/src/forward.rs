// SPDX-License-Identifier: MIT OR Apache-2.0

//! Forward authentication: a proxy asks for a decision about each request to the service behind it.
//!
//! | proxy | path | grants at | rejects with |
//! |---|---|---|---|
//! | nginx `auth_request` | `/auth/nginx?aud=…` | 2xx | 401 and 403; nginx turns all others into 500 |
//! | Traefik `forwardAuth`, Caddy `forward_auth` | `/auth/traefik?aud=…`, `/auth/caddy?aud=…` | 2xx | the response |
//! | Envoy `ext_authz` | `/auth/envoy` and the path of the request; the demand is in the header [`DEMAND`] | 200 | the response |
//!
//! The decision depends on the token and the demand only, not on the path of the request or on headers `X-Forwarded-…`,
//! which clients can forge. Each grant sets all identity headers, and so replaces those of the client.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use token::Claims;

use crate::{
    bearer::bearer,
    demand::Demand,
    log::Kind,
    metrics::Decision,
    refused::Refused,
    service::Service,
    settings::{Legacy, Settings},
    verdict::satisfying,
};

/// The header with the demand of Envoy, which passes the client's query on.
pub const DEMAND: HeaderName = HeaderName::from_static("x-workflow-token-demand");

static MISCONFIGURED: Kind = Kind::new();
static UNKNOWN: Kind = Kind::new();

/// The identity headers, in the order of [`identity`].
const IDENTITY: [HeaderName; 8] = [
    HeaderName::from_static("x-workflow-token-subject"),
    HeaderName::from_static("x-workflow-token-scope"),
    HeaderName::from_static("x-workflow-token-project"),
    HeaderName::from_static("x-workflow-token-job"),
    HeaderName::from_static("x-workflow-token-uid"),
    HeaderName::from_static("x-workflow-token-instance"),
    HeaderName::from_static("x-workflow-token-id"),
    HeaderName::from_static("x-workflow-token-expires"),
];

/// A proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proxy {
    Nginx,
    Traefik,
    Caddy,
    Envoy,
}

/// Handles a request of nginx.
pub async fn nginx(service: State<Arc<Service>>, uri: Uri, headers: HeaderMap) -> Response {
    answer(&service, Proxy::Nginx, &uri, &headers).await
}

/// Handles a request of Traefik.
pub async fn traefik(service: State<Arc<Service>>, uri: Uri, headers: HeaderMap) -> Response {
    answer(&service, Proxy::Traefik, &uri, &headers).await
}

/// Handles a request of Caddy.
pub async fn caddy(service: State<Arc<Service>>, uri: Uri, headers: HeaderMap) -> Response {
    answer(&service, Proxy::Caddy, &uri, &headers).await
}

/// Handles a request of Envoy.
pub async fn envoy(service: State<Arc<Service>>, uri: Uri, headers: HeaderMap) -> Response {
    answer(&service, Proxy::Envoy, &uri, &headers).await
}

async fn answer(service: &Service, proxy: Proxy, uri: &Uri, headers: &HeaderMap) -> Response {
    let settings = service.settings();
    let demand = match demand(proxy, uri, headers) {
        Ok(demand) => demand,
        Err(why) => {
            // The response repeats the reason, for the log of the proxy.
            MISCONFIGURED.log(format_args!("a request of {proxy:?} was rejected: {why}"));
            service.metrics.decided(Decision::Misconfigured);
            return (StatusCode::FORBIDDEN, format!("{why}\n")).into_response();
        }
    };
    let legacy = settings.legacy.as_ref();
    let found = bearer(headers, legacy.map(|legacy| &legacy.header));
    let (result, is_legacy) = match found {
        Ok(Some(found)) => (satisfying(service, found.token, &demand).await, found.is_legacy),
        Ok(None) => (Err(Refused::Missing), false),
        Err(_) => (Err(Refused::Malformed), false),
    };
    let granted = result.and_then(|claims| identity(&claims));
    service.metrics.decided(Decision::of(&granted));
    let mut response = match granted {
        Ok(identity) => {
            let status = if proxy == Proxy::Envoy {
                StatusCode::OK
            } else {
                StatusCode::NO_CONTENT
            };
            let mut response = status.into_response();
            response.headers_mut().extend(IDENTITY.into_iter().zip(identity));
            response
        }
        Err(refused) => refuse(&settings, proxy, &demand, &refused),
    };
    if let Some(legacy) = legacy.filter(|_| is_legacy) {
        service.metrics.legacy();
        deprecate(legacy, response.headers_mut());
    }
    response
}

fn demand(proxy: Proxy, uri: &Uri, headers: &HeaderMap) -> Result<Demand, String> {
    let query = match proxy {
        Proxy::Envoy => {
            let mut values = headers.get_all(DEMAND).iter();
            match (values.next(), values.next()) {
                (Some(value), None) => value
                    .to_str()
                    .map_err(|_| format!("the header {DEMAND} is not ASCII"))?,
                _ => {
                    return Err(format!(
                        "the header {DEMAND} must occur once: set it with headers_to_add"
                    ));
                }
            }
        }
        _ => uri.query().unwrap_or_default(),
    };
    Demand::parse(query).map_err(|e| e.to_string())
}

/// Returns the values of the identity headers. Values for absent claims are empty.
fn identity(claims: &Claims) -> Result<[HeaderValue; 8], Refused> {
    let job = claims.job();
    let text = |text: &str| {
        let is_plain = text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) && text.trim() == text;
        let value = HeaderValue::from_str(text).ok().filter(|_| is_plain);
        value.ok_or_else(|| Refused::Invalid("one of its claims cannot be passed in a header".to_owned()))
    };
    let workspaces: Vec<&str> = claims.workspaces().collect();
    Ok([
        text(claims.sub().unwrap_or_default())?,
        text(claims.scope().map_or("", |scope| scope.as_str()))?,
        text(&workspaces.join(","))?,
        text(job.map_or("", |job| job.id))?,
        text(&job.map_or_else(String::new, |job| job.uid.to_string()))?,
        text(job.map_or("", |job| job.instance))?,
        text(claims.jti().unwrap_or_default())?,
        text(&(claims.exp().seconds() as u64).to_string())?,
    ])
}

fn refuse(settings: &Settings, proxy: Proxy, demand: &Demand, refused: &Refused) -> Response {
    let (status, error) = match refused {
        Refused::Missing => (StatusCode::UNAUTHORIZED, None),
        Refused::Invalid(why) => (StatusCode::UNAUTHORIZED, Some(("invalid_token", why.as_str()))),
        Refused::OtherAudience => (
            StatusCode::UNAUTHORIZED,
            Some(("invalid_token", "it is for another service")),
        ),
        // nginx turns 400 into 500.
        Refused::Malformed if proxy == Proxy::Nginx => (
            StatusCode::UNAUTHORIZED,
            Some(("invalid_request", "send one token, in Authorization: Bearer")),
        ),
        Refused::Malformed => (
            StatusCode::BAD_REQUEST,
            Some(("invalid_request", "send one token, in Authorization: Bearer")),
        ),
        Refused::Scope(_) => (StatusCode::FORBIDDEN, Some(("insufficient_scope", "it lacks a scope"))),
        Refused::OtherProject => (
            StatusCode::FORBIDDEN,
            Some(("insufficient_scope", "it is for another project")),
        ),
        Refused::Unknown(why) => {
            UNKNOWN.log(format_args!("the validity of a token could not be determined: {why}"));
            return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")]).into_response();
        }
    };
    let mut challenge = format!("Bearer realm=\"{}\"", settings.issuer.url());
    if let Some((error, description)) = error {
        challenge += &format!(", error=\"{error}\", error_description=\"{description}\"");
    }
    if let Refused::Scope(scope) = refused
        && scope
            .bytes()
            .all(|byte| byte == b' ' || crate::strict::is_scope_byte(byte))
    {
        challenge += &format!(", scope=\"{scope}\"");
    }
    if let Some(resource) = settings.resource(&demand.audience) {
        challenge += &format!(
            ", resource_metadata=\"{}\"",
            crate::metadata::resource_url(settings, resource)
        );
    }
    // The challenge is visible ASCII: the configuration and the checks above accept nothing else.
    let challenge = HeaderValue::from_str(&challenge).unwrap_or(HeaderValue::from_static("Bearer"));
    (status, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
}

/// Announces to an old client that its header will be withdrawn (RFC 9745, RFC 8594).
fn deprecate(legacy: &Legacy, headers: &mut HeaderMap) {
    let both = [
        ("deprecation", Some(&legacy.deprecated)),
        ("sunset", legacy.sunset.as_ref()),
    ];
    for (name, value) in both {
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    }
}
