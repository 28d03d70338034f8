// SPDX-License-Identifier: MIT OR Apache-2.0

//! Logins of command-line tools and of applications with a browser: the authorization code flow (RFC 6749 section 4.1)
//! for public clients, with PKCE (RFC 7636) and redirects to loopback addresses (RFC 8252 section 7.3).

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use zeroize::Zeroizing;

use crate::{
    codes::{self, Code},
    error::OAuthError,
    failed::Failed,
    form::Form,
    grantee::Grantee,
    login,
    pages::{Confirm, Page},
    posted::posted,
    service::Service,
    session::{self, Current, Session},
    settings::{Client, Settings},
    wanted::{REPEATABLE, Wanted},
};

/// The longest `state`, in bytes.
const MAX_STATE: usize = 1024;

/// An authorization request.
struct Request<'a> {
    client: &'a Client,
    redirect_uri: &'a str,
    state: Option<&'a str>,
    challenge: &'a str,
    wanted: Wanted,
}

/// Shows the page that asks whether the client may act as the user.
pub async fn page(State(service): State<Arc<Service>>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let (settings, query) = (service.settings(), query.unwrap_or_default());
    let shown = async {
        let form = Form::parse_with(query.as_bytes(), &REPEATABLE).map_err(|e| Failed::Malformed(e.text()))?;
        let request = match Request::read(&settings, &form)? {
            Ok(request) => request,
            Err(redirection) => return Ok(redirection),
        };
        let Some(Current { session, .. }) = session::current(service.state()?, &headers).await? else {
            return Ok(login::required(&settings, &format!("/authorize?{query}")));
        };
        let mut frame = session.frame(&settings.issuer);
        frame.form_origins.push(request.redirect_uri.to_owned());
        let fields = form.pairs().filter(|(name, _)| Request::NAMES.contains(name));
        let page = Confirm {
            frame,
            action: "/authorize".to_owned(),
            hidden: fields
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            client: request.client.id.clone(),
            code: None,
            projects: request.wanted.projects_of(&session),
            audience: request.wanted.audience,
            scope: request.wanted.scope.unwrap_or_default(),
            expires_in: request.wanted.lifetime,
            for_jobs: None,
        };
        Ok(page.response())
    };
    shown.await.unwrap_or_else(|failed: Failed| failed.response(&settings))
}

/// Handles the decision of the user.
pub async fn decide(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let settings = service.settings();
    let decided = async {
        let (form, current) = posted(&service, &settings, &headers, &body, &REPEATABLE).await?;
        let Current { session, .. } = current.ok_or(Failed::Stale)?;
        let request = match Request::read(&settings, &form)? {
            Ok(request) => request,
            Err(redirection) => return Ok(redirection),
        };
        match form.get("decision") {
            Some("allow") => {
                service.audit.login("allow", &session);
                request.allow(&service, &settings, &session).await
            }
            _ => {
                service.audit.login("deny", &session);
                request.answer(&settings, &[("error", "access_denied")])
            }
        }
    };
    decided
        .await
        .unwrap_or_else(|failed: Failed| failed.response(&settings))
}

impl<'a> Request<'a> {
    /// The parameters that the page passes on to the decision.
    const NAMES: [&'static str; 11] = [
        "response_type",
        "client_id",
        "redirect_uri",
        "state",
        "code_challenge",
        "code_challenge_method",
        "scope",
        "audience",
        "resource",
        "project",
        "lifetime",
    ];

    /// Reads the parameters. Errors of a known client become redirects to it, all others pages.
    fn read(settings: &'a Settings, form: &'a Form) -> Result<Result<Self, Response>, Failed> {
        let id = form.get("client_id").unwrap_or_default();
        let client = settings
            .clients
            .iter()
            .find(|client| client.id == id && client.is_public());
        let client = client.ok_or(Failed::Malformed(
            "The parameter client_id names no client that users can log in to",
        ))?;
        let redirect_uri = form.get("redirect_uri").unwrap_or_default();
        if !client.redirects_to(redirect_uri) {
            return Err(Failed::Malformed(
                "The parameter redirect_uri is not registered for the client",
            ));
        }
        let state = form.get("state");
        let challenge = form.get("code_challenge").unwrap_or_default();
        let wanted = Wanted::read(settings, form);
        let error = if form.get("response_type") != Some("code") {
            Some("unsupported_response_type")
        } else if form.get("code_challenge_method") != Some("S256")
            || !is_challenge(challenge)
            || state.is_some_and(|state| state.len() > MAX_STATE)
            || form.get("request").is_some()
            || form.get("request_uri").is_some()
        {
            Some("invalid_request")
        } else {
            wanted.as_ref().err().map(|e| match e {
                OAuthError::InvalidTarget(_) => "invalid_target",
                _ => "invalid_request",
            })
        };
        let request = Self {
            client,
            redirect_uri,
            state,
            challenge,
            wanted: wanted.unwrap_or_default(),
        };
        match error {
            Some(error) => request.answer(settings, &[("error", error)]).map(Err),
            None => Ok(Ok(request)),
        }
    }

    async fn allow(self, service: &Service, settings: &Settings, session: &Session) -> Result<Response, Failed> {
        let code = Code {
            client: self.client.id.clone(),
            redirect_uri: self.redirect_uri.to_owned(),
            challenge: self.challenge.to_owned(),
            wanted: self.wanted.clone(),
            grantee: Grantee::of(session),
            family: None,
        };
        let id = codes::issue(service.state()?, &code).await?;
        self.answer(settings, &[("code", &id)])
    }

    /// Redirects the browser to the client, with the parameter `iss` of RFC 9207.
    fn answer(&self, settings: &Settings, parameters: &[(&str, &str)]) -> Result<Response, Failed> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(parameters);
        query.append_pair("iss", settings.issuer.url());
        if let Some(state) = self.state {
            query.append_pair("state", state);
        }
        let separator = if self.redirect_uri.contains('?') { '&' } else { '?' };
        let to = Zeroizing::new(format!("{}{separator}{}", self.redirect_uri, query.finish()));
        let mut location = login::location(&to)?;
        location.set_sensitive(true);
        let headers = [
            (header::LOCATION, location),
            (header::REFERRER_POLICY, header::HeaderValue::from_static("no-referrer")),
        ];
        Ok((StatusCode::SEE_OTHER, headers).into_response())
    }
}

/// Returns whether a text is a code challenge of the method S256: 32 bytes in base64url (RFC 7636 section 4.2).
fn is_challenge(text: &str) -> bool {
    text.len() == 43
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}
