// SPDX-License-Identifier: MIT OR Apache-2.0

//! The metadata of another authorization server (RFC 8414, OpenID Connect Discovery), which the service publishes
//! instead of its own.
//!
//! The service fetches them again every hour, and keeps the last ones while the server does not respond.

use std::{
    error::Error,
    iter,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use http::{
    Request,
    header::{ACCEPT, ACCEPT_ENCODING, LOCATION, USER_AGENT},
};
use http_body_util::{BodyExt, LengthLimitError};
use http_client::{Http, Transport};
use serde_json::{Map, Value};
use tokio::{sync::watch, time::timeout};

use crate::{
    flyte::messages::OAuth2Metadata,
    settings::{External as Server, TokenEndpoint},
};

/// The longest metadata, in bytes.
const MAX_BODY: usize = 1 << 20;

/// The timeout of one request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The first pause before another attempt, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));

/// The longest quotation of the server's response in a message, in characters.
const MAX_QUOTE: usize = 300;

/// The members that describe the token endpoint.
const OF_TOKEN_ENDPOINT: [&str; 3] = [
    "token_endpoint",
    "token_endpoint_auth_methods_supported",
    "grant_types_supported",
];

/// Members that could lead a client to another token endpoint than the one that is published.
const WITH_TOKEN_ENDPOINT: [&str; 3] = [
    "mtls_endpoint_aliases",
    "signed_metadata",
    "token_endpoint_auth_signing_alg_values_supported",
];

type Members = Map<String, Value>;

/// The current metadata of the server that the settings name, if any.
pub struct External {
    settings: watch::Sender<Option<Arc<Server>>>,
    known: Arc<RwLock<Option<Arc<Members>>>>,
}

impl External {
    /// Starts to fetch the metadata, for the lifetime of the service.
    pub fn start(server: Option<Arc<Server>>) -> Self {
        let (settings, changes) = watch::channel(server);
        let known = Arc::default();
        tokio::spawn(keep_known(changes, Arc::clone(&known)));
        Self { settings, known }
    }

    /// Applies new settings, and fetches at once.
    pub fn replace(&self, server: Option<Arc<Server>>) {
        self.settings.send_replace(server);
    }

    /// Returns the published metadata of a server, or `None` until they are known. `ours` returns those of this
    /// service.
    pub fn document(&self, server: &Server, ours: impl FnOnce() -> Option<Members>) -> Option<Members> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        if !is_of(&known, &server.issuer) {
            return None;
        }
        let mut members = Members::clone(&known);
        let Some(endpoint) = &server.token_endpoint else {
            return Some(members);
        };
        for name in WITH_TOKEN_ENDPOINT {
            members.remove(name);
        }
        match endpoint {
            TokenEndpoint::Url(url) => {
                members.insert("token_endpoint".to_owned(), url.as_str().into());
            }
            TokenEndpoint::Ours => {
                let mut ours = ours()?;
                members.extend(OF_TOKEN_ENDPOINT.iter().filter_map(|name| ours.remove_entry(*name)));
            }
        }
        Some(members)
    }
}

async fn keep_known(mut changes: watch::Receiver<Option<Arc<Server>>>, known: Arc<RwLock<Option<Arc<Members>>>>) {
    let mut pause = PAUSES.0;
    let mut said = String::new();
    loop {
        let server = changes.borrow_and_update().clone();
        let next = match server {
            Some(server) => match fetch(&server).await {
                Ok(members) => {
                    if !said.is_empty() {
                        eprintln!("workflow-tokend: the metadata of {} were fetched", server.issuer);
                        said.clear();
                    }
                    *known.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(members));
                    pause = PAUSES.0;
                    server.refresh
                }
                Err(e) => {
                    if e != said {
                        eprintln!("workflow-tokend: {e}");
                        said = e;
                    }
                    let this = pause;
                    pause = (pause * 2).min(PAUSES.1);
                    this
                }
            },
            None => Duration::MAX,
        };
        match timeout(next, changes.changed()).await {
            Err(_) => {}
            Ok(Ok(())) => pause = PAUSES.0,
            // The service is shutting down.
            Ok(Err(_)) => return,
        }
    }
}

/// Fetches metadata from the first URL that has them.
async fn fetch(server: &Server) -> Result<Members, String> {
    let http = http_client::client(Transport {
        tls: server.tls.clone(),
        server_name: None,
        proxy: server.proxy.clone(),
        // The settings allow plain HTTP only for a server on this machine.
        plain: true,
        idle: 0,
    });
    let mut failures = Vec::new();
    for url in &server.places {
        let got = timeout(TIMEOUT, get(&http, url)).await;
        let got = got.unwrap_or_else(|_| Err(format!("no answer within {} seconds", TIMEOUT.as_secs())));
        match got.and_then(|body| read(&server.issuer, &body)) {
            Ok(members) => return Ok(members),
            Err(e) => failures.push(format!("{url}: {e}")),
        }
    }
    Err(format!(
        "the metadata of {} could not be fetched: {}. The service retries, and publishes the last known metadata",
        server.issuer,
        failures.join("; ")
    ))
}

async fn get(http: &Http, url: &str) -> Result<Vec<u8>, String> {
    let request = Request::get(url)
        .header(ACCEPT, "application/json")
        .header(ACCEPT_ENCODING, "identity")
        .header(USER_AGENT, concat!("workflow-tokend/", env!("CARGO_PKG_VERSION")))
        .body(http_body_util::Full::default())
        .map_err(|e| e.to_string())?;
    let response = http.request(request).await.map_err(|e| cause(&e).to_string())?;
    let status = response.status();
    if let Some(location) = response.headers().get(LOCATION)
        && status.is_redirection()
    {
        let location = quote(&String::from_utf8_lossy(location.as_bytes()));
        return Err(format!(
            "a redirect to `{location}`, which is not followed: set external.metadata to it if it is right"
        ));
    }
    if !status.is_success() {
        return Err(format!("status {}", status.as_u16()));
    }
    let body = http_client::bounded(response.into_body(), MAX_BODY).collect().await;
    match body {
        Ok(body) => Ok(body.to_bytes().into()),
        Err(e) if cause(&*e).is::<LengthLimitError>() => Err(format!("more than {MAX_BODY} bytes")),
        Err(e) => Err(cause(&*e).to_string()),
    }
}

/// Returns the root cause of an error.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    iter::successors(Some(error), |error| (*error).source())
        .last()
        .unwrap_or(error)
}

/// Parses metadata. Their members are named as in the standards (`jwks_uri`), or in camel case (`jwksUri`).
fn read(issuer: &str, body: &[u8]) -> Result<Members, String> {
    // Some servers begin with a byte order mark (RFC 8259 section 8.1).
    let json = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let found: Members = serde_json::from_slice(json).map_err(|_| "no metadata in JSON".to_owned())?;
    let mut members = Members::new();
    for (name, value) in found {
        let name = snake_case(name);
        // Some servers write null for absent members.
        if value.is_null() {
            continue;
        }
        if members.get(&name).is_some_and(|other| *other != value) {
            return Err(format!("{} has two values in two spellings", quote(&name)));
        }
        members.insert(name, value);
    }
    if !is_of(&members, issuer) {
        let found = members.get("issuer").and_then(Value::as_str).unwrap_or_default();
        return Err(format!(
            "metadata of another issuer, `{}`: if it is correct, set external.issuer to exactly this value",
            quote(found)
        ));
    }
    let checked = serde_path_to_error::deserialize::<_, OAuth2Metadata>(Value::Object(members.clone()));
    checked.map_err(|e| format!("{}: {}", quote(&e.path().to_string()), quote(&e.inner().to_string())))?;
    Ok(members)
}

fn is_of(members: &Members, issuer: &str) -> bool {
    members.get("issuer").and_then(Value::as_str) == Some(issuer)
}

/// Converts a name in camel case to that of the standards. Other names stay as they are.
fn snake_case(name: String) -> String {
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return name;
    }
    let mut snake = String::with_capacity(name.len() + 8);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// Escapes and shortens a foreign text for one line of a message.
fn quote(text: &str) -> String {
    let start: String = text.chars().take(MAX_QUOTE).collect();
    start.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_json(value: &Value) -> Result<Value, String> {
        read("https://i", value.to_string().as_bytes()).map(Value::Object)
    }

    #[test]
    fn members_are_served_as_the_standards_name_them() {
        let camel = json!({"issuer": "https://i", "jwksUri": "https://i/jwks", "tokenEndpointAuthMethodsSupported": ["none"],
            "x-vendor": 1, "Vendor": 2, "vendor_Name": 3, "userinfoEndpoint": null, "jwks_uri": "https://i/jwks"});
        let served = json!({"issuer": "https://i", "jwks_uri": "https://i/jwks", "token_endpoint_auth_methods_supported": ["none"],
            "x-vendor": 1, "Vendor": 2, "vendor_Name": 3});
        assert_eq!(read_json(&camel), Ok(served));
    }

    #[test]
    fn what_is_of_another_issuer_or_malformed_is_refused() {
        for (value, says) in [
            (json!([]), "no metadata in JSON"),
            (json!({}), "another issuer, ``"),
            (json!({"issuer": 1}), "another issuer, ``"),
            (json!({"issuer": "https://i/"}), "another issuer, `https://i/`"),
            (
                json!({"issuer": "https://i", "jwks_uri": "a", "jwksUri": "b"}),
                "jwks_uri has two values",
            ),
            (json!({"issuer": "https://i", "tokenEndpoint": 1}), "token_endpoint: "),
            (
                json!({"issuer": "https://i", "scopes_supported": ["a", {}]}),
                "scopes_supported",
            ),
        ] {
            let error = read_json(&value).unwrap_err();
            assert!(error.contains(says) && !error.contains('\n'), "{value}: {error}");
        }
        let long = read_json(&json!({"issuer": "é\n".repeat(10_000)})).unwrap_err();
        assert!(long.len() < 1000 && !long.contains('\n'), "{long}");
    }
}
