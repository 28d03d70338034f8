// SPDX-License-Identifier: MIT OR Apache-2.0

//! Answers of a token endpoint (RFC 6749 sections 5.1 and 5.2, RFC 8693 section 2.2).

use std::time::{Duration, SystemTime};

use http::StatusCode;
use seal::{ExposeSecret, Secret};
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{REFUSED, SERVER};
use crate::{
    http::{HttpReply, Retry, SourceError, quote},
    remote::Remote,
};

/// The longest part of an answer besides the token, such as an unused refresh token, in bytes.
const MAX_REST: usize = 64 << 10;

/// Returns the length of the longest answer with a token of at most `max_token` bytes.
pub(super) fn max_body(max_token: usize) -> usize {
    max_token + MAX_REST
}

/// The result of a token request.
pub(crate) struct Given {
    pub token: Secret,
    /// Its lifetime, if the server states it.
    pub lifetime: Option<Duration>,
    /// Its expiry, if known.
    pub expires: Option<SystemTime>,
    /// The refresh token that replaces the one that was sent, if any.
    pub refresh_token: Option<Secret>,
    /// The identity token of the user who has logged in (OpenID Connect Core section 3.1.3.3).
    pub id_token: Option<Secret>,
    /// Its scope, if the server states one.
    pub scope: Option<String>,
}

#[derive(Deserialize)]
struct Success {
    access_token: Option<Zeroizing<String>>,
    token_type: Option<String>,
    expires_in: Option<Value>,
    refresh_token: Option<Zeroizing<String>>,
    id_token: Option<Zeroizing<String>>,
    scope: Option<Value>,
}

/// Parses an answer. `secrets` were sent, and are redacted from errors.
pub(super) fn read(
    remote: &Remote,
    answer: &HttpReply,
    secrets: &[Secret],
    exchanged: bool,
) -> Result<Given, SourceError> {
    let secrets: Vec<&str> = secrets.iter().map(ExposeSecret::expose_secret).collect();
    if answer.status.is_success() {
        return success(answer, &secrets, exchanged);
    }
    let mut error = refusal(answer, &secrets).unwrap_or_else(|| remote.unusable(answer));
    if answer.status == StatusCode::NOT_FOUND {
        error.retry = Retry::NotFound;
    }
    Err(error)
}

fn success(answer: &HttpReply, secrets: &[&str], exchanged: bool) -> Result<Given, SourceError> {
    let wrong = |what: &dyn std::fmt::Display| {
        SourceError::permanent(
            SERVER.unwell,
            format_args!("its answer {what}"),
            "check that this is the token endpoint of an authorization server (RFC 6749 section 5.1)",
        )
    };
    // The message of the parser may quote the answer.
    let given: Success = serde_json::from_slice(answer.json()).map_err(|_| wrong(&"is not a token in JSON"))?;
    let token = given.access_token.filter(|token| !token.is_empty());
    // Some servers send a refusal with the status of a success.
    let token = token.ok_or_else(|| refusal(answer, secrets).unwrap_or_else(|| wrong(&"has no access_token")))?;
    // A malformed refresh token does not replace the former one.
    let refresh_token = given
        .refresh_token
        .filter(|token| is_token(token) && token.len() <= token::MAX_LEN);
    let hidden: Vec<&str> = std::iter::once(&token)
        .chain(&refresh_token)
        .chain(&given.id_token)
        .map(|token| token.as_str())
        .collect();
    let kind = given.token_type.ok_or_else(|| wrong(&"has no token_type"))?;
    // An exchange may return something other than an access token (RFC 8693 section 2.2.1).
    let is_bearer = kind.eq_ignore_ascii_case("bearer") || (exchanged && kind.eq_ignore_ascii_case("N_A"));
    if !is_bearer {
        let kind = quote(&kind, &[secrets, &hidden].concat());
        return Err(wrong(&format_args!(
            "contains a token of the type `{kind}`, but only bearer tokens can be delivered"
        )));
    }
    // RFC 6749 appendix A.12, but without spaces, which a bearer token cannot contain (RFC 6750 section 2.1).
    if !is_token(&token) {
        return Err(wrong(
            &"contains an access_token with spaces or other invalid characters",
        ));
    }
    let scope = given.scope.as_ref().and_then(scope);
    Ok(Given {
        token: Secret::from(token.as_str()),
        lifetime: given.expires_in.as_ref().and_then(lifetime),
        expires: None,
        scope: scope.map(|scope| quote(&scope, &[secrets, &hidden].concat())),
        refresh_token: refresh_token.as_ref().map(|token| Secret::from(token.as_str())),
        id_token: given.id_token.as_ref().map(|token| Secret::from(token.as_str())),
    })
}

fn is_token(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic())
}

/// Returns a lifetime in seconds, which some servers send as a string.
fn lifetime(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::String(text) => text.parse().ok()?,
        value => value.as_f64()?,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

/// Returns a scope: words separated by spaces, which some servers send as an array.
fn scope(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(words) => {
            let words: Option<Vec<&str>> = words.iter().map(Value::as_str).collect();
            words.map(|words| words.join(" "))
        }
        _ => None,
    }
}

/// Returns the error of the server, in the form of RFC 6749 section 5.2 or in the form of some providers.
fn refusal(answer: &HttpReply, secrets: &[&str]) -> Option<SourceError> {
    let members: Map<String, Value> = serde_json::from_slice(answer.json()).ok()?;
    let text = |names: &[&str]| {
        let mut texts = names.iter().filter_map(|name| member(&members, name));
        texts.find(|text| !text.is_empty())
    };
    // Okta uses `errorCode`, and Google an object `error`.
    let code = text(&["error", "errorCode", "error.status", "error.code"])?;
    let says = text(&["error_description", "errorSummary", "error.message", "message"]);
    let says = says.map(|says| format!(" (it says: {})", quote(&says, secrets)));
    let (summary, todo) = remedy(&code);
    let is_transient = matches!(code.as_str(), "temporarily_unavailable" | "server_error" | "slow_down");
    let retry = match answer.retry() {
        Retry::Never if is_transient => Retry::Backoff(answer.retry_after()),
        retry => retry,
    };
    let (status, code) = (answer.status_text(), quote(&code, secrets));
    let summary = if retry == Retry::Never { summary } else { SERVER.unwell };
    Some(SourceError::new(
        retry,
        summary,
        format_args!(
            "it refused with the error {code} ({status}){}",
            says.unwrap_or_default()
        ),
        todo,
    ))
}

/// Returns a member by its name or by a path of two names, as text.
fn member(members: &Map<String, Value>, path: &str) -> Option<String> {
    let value = match path.split_once('.') {
        Some((object, name)) => members.get(object)?.get(name)?,
        None => members.get(path)?,
    };
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Returns the text for the user, and the next step for the operator, for an error code.
fn remedy(code: &str) -> (&'static str, &'static str) {
    match code {
        "invalid_client" => (
            SERVER.credential,
            "check that client-id, the client's secret or key, and client-authentication match the registration of \
             this client at the server",
        ),
        "unauthorized_client" => (
            SERVER.credential,
            "allow this client to use the grant in the server's configuration",
        ),
        "unsupported_grant_type" => (SERVER.credential, "set grant to one that the server supports"),
        // Keycloak sends `invalid_token` for an invalid subject token, and `access_denied` for one of another client.
        "invalid_grant" | "invalid_token" | "access_denied" => (
            REFUSED,
            "check that the subject token or refresh token is valid, and that this client may use it",
        ),
        "invalid_scope" => (REFUSED, "set scope to one that the server allows for this client"),
        // RFC 8693 section 2.2.2, and RFC 8707 section 2.
        "invalid_target" => (
            REFUSED,
            "set audience or resource to one that the server allows for this client",
        ),
        _ => (REFUSED, "see the server's log"),
    }
}
