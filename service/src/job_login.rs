// SPDX-License-Identifier: MIT OR Apache-2.0

//! Status and end of the login that serves the jobs of a user. A MUNGE credential proves the identity of the user.

use std::sync::Arc;

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use protocol::{Answer, JobLogin, LoginQuestion, SecretText};
use serde_json::json;
use zeroize::Zeroizing;

use crate::{
    error::OAuthError, failed::Failed, form::Form, introspect::read_form, login, metadata::MUNGE, service::Service,
    settings::Settings,
};

/// Handles a request. The status is `{"since": SECONDS}`, or null without a login.
pub async fn job_login(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, OAuthError> {
    let settings = service.settings();
    let form = read_form(&headers, &body, &[])?;
    let request = [JobLogin::Status, JobLogin::End]
        .into_iter()
        .find(|request| form.get("request") == Some(request.name()));
    let request = request.ok_or(OAuthError::InvalidRequest(
        "the parameter request must be status or logout",
    ))?;
    let credential = credential(&form)?.ok_or(OAuthError::InvalidRequest("the parameter subject_token is missing"))?;
    match ask(&service, &settings, LoginQuestion::JobLogin { request, credential }).await? {
        Answer::JobLogin(since) => {
            let no_store = [(header::CACHE_CONTROL, "no-store")];
            Ok((no_store, Json(json!({ "since": since }))).into_response())
        }
        _ => Err(OAuthError::Unavailable),
    }
}

/// Returns the MUNGE credential of a request, or `None`.
///
/// # Errors
/// [`OAuthError::InvalidRequest`].
pub fn credential(form: &Form) -> Result<Option<SecretText>, OAuthError> {
    match (form.get("subject_token"), form.get("subject_token_type")) {
        (None, None) => Ok(None),
        (Some(credential), Some(MUNGE)) if credential.starts_with("MUNGE:") => {
            Ok(Some(SecretText(Zeroizing::new(credential.to_owned()))))
        }
        _ => Err(OAuthError::InvalidRequest(
            "the subject_token is not a MUNGE credential",
        )),
    }
}

/// Asks the agent about a login, at the request of a program.
///
/// # Errors
/// [`OAuthError`].
pub async fn ask(service: &Service, settings: &Settings, question: LoginQuestion) -> Result<Answer, OAuthError> {
    login::ask(service, settings, question)
        .await
        .map_err(|failed| match failed {
            Failed::Refused(why) => OAuthError::InvalidGrant(why),
            Failed::Malformed(what) => OAuthError::InvalidRequest(what),
            Failed::Stale | Failed::Unavailable => OAuthError::Unavailable,
        })
}
