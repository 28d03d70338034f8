//! Replies of a token endpoint (RFC 6749 sections 5.1 and 5.2, RFC 8693 section 2.2).

use std::time::Duration;

use http::StatusCode;
use seal::{ExposeSecret, Secret};
use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

use super::{REFUSED, SERVER};
use crate::{
    http::{HttpReply, Retry, SourceError, quote},
    remote::Remote,
};

/// The longest rest of a reply beside the token, such as an unused refresh token, in bytes.
const MAX_REST: usize = 64 << 10;

/// The longest answer with a token of so many bytes.
pub(super) fn max_body(max_token: usize) -> usize {
    max_token + MAX_REST
}

/// A token.
pub(super) struct Given {
    pub token: Secret,
    /// Its lifetime, if the server states it.
    pub lifetime: Option<Duration>,
    /// Its scope, where the server says that it is not the one that was asked for.
    pub scope: Option<String>,
}

#[derive(Deserialize)]
struct Success {
    access_token: Option<Zeroizing<String>>,
    token_type: Option<String>,
    expires_in: Option<Value>,
    scope: Option<String>,
}

#[derive(Deserialize)]
struct Failure {
    error: Option<String>,
    error_description: Option<String>,
}

/// Reads an answer. `secrets` is what was sent, and must not be repeated.
pub(super) fn read(
    remote: &Remote,
    answer: &HttpReply,
    secrets: &[Secret],
    exchanged: bool,
) -> Result<Given, SourceError> {
    let secrets: Vec<&str> = secrets.iter().map(ExposeSecret::expose_secret).collect();
    if answer.status.is_success() {
        return success(&answer.body, &secrets, exchanged);
    }
    if let Some(error) = refusal(answer, &secrets) {
        return Err(error);
    }
    let mut error = remote.unusable(answer);
    if answer.status == StatusCode::NOT_FOUND {
        error.retry = Retry::NotFound;
    }
    Err(error)
}

fn success(body: &[u8], secrets: &[&str], exchanged: bool) -> Result<Given, SourceError> {
    let wrong = |what: &dyn std::fmt::Display| {
        SourceError::permanent(
            SERVER.unwell,
            format_args!("its answer {what}"),
            "see that this is the token endpoint of an authorization server (RFC 6749 section 5.1)",
        )
    };
    // What the parser says may quote the answer.
    let answer: Success = serde_json::from_slice(body).map_err(|_| wrong(&"is not a token in JSON"))?;
    let token = answer.access_token.filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| wrong(&"has no access_token"))?;
    let kind = answer.token_type.ok_or_else(|| wrong(&"has no token_type"))?;
    // What is exchanged may become something else than an access token (RFC 8693 section 2.2.1).
    let is_bearer = kind.eq_ignore_ascii_case("bearer") || (exchanged && kind.eq_ignore_ascii_case("N_A"));
    if !is_bearer {
        let kind = quote(&kind, &[secrets, &[&token]].concat());
        return Err(wrong(&format_args!(
            "has a token of the type `{kind}`, and only bearer tokens can be delivered"
        )));
    }
    // RFC 6749 appendix A.12, without spaces, which no bearer token has (RFC 6750 section 2.1).
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(wrong(&"has an access_token with spaces or other characters in it"));
    }
    Ok(Given {
        token: Secret::from(token.as_str()),
        lifetime: answer.expires_in.as_ref().and_then(lifetime),
        scope: answer.scope.map(|scope| quote(&scope, &[secrets, &[&token]].concat())),
    })
}

/// Seconds; some servers write them as a string.
fn lifetime(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::String(text) => text.parse().ok()?,
        value => value.as_f64()?,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

/// Returns the refusal of the server (RFC 6749 section 5.2).
fn refusal(answer: &HttpReply, secrets: &[&str]) -> Option<SourceError> {
    let failure: Failure = serde_json::from_slice(&answer.body).ok()?;
    let code = failure.error?;
    let says = match failure.error_description {
        Some(text) if !text.is_empty() => format!(" (it says: {})", quote(&text, secrets)),
        _ => String::new(),
    };
    let (summary, todo) = match code.as_str() {
        "invalid_client" => (
            SERVER.credential,
            "see that client-id and the client's secret or key are those that are registered there, and \
             client-authentication the way that is",
        ),
        "unauthorized_client" => (
            SERVER.credential,
            "let this client use the grant, in the server's configuration",
        ),
        "unsupported_grant_type" => (SERVER.credential, "set grant to one that the server has"),
        "invalid_grant" => (
            REFUSED,
            "see that the subject token is good, not expired, and one that this client may exchange",
        ),
        "invalid_scope" => (REFUSED, "set scope to what the server lets this client have"),
        // RFC 8693 section 2.2.2, and RFC 8707 section 2.
        "invalid_target" => (
            REFUSED,
            "set audience or resource to what the server lets this client ask tokens for",
        ),
        _ => (REFUSED, "see the server's log"),
    };
    let (status, retry) = (answer.status_text(), answer.retry());
    let code = quote(&code, secrets);
    let summary = if retry == Retry::Never { summary } else { SERVER.unwell };
    Some(SourceError::new(
        retry,
        summary,
        format_args!("it refused with the error {code} ({status}){says}"),
        todo,
    ))
}
