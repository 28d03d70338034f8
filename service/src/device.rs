// SPDX-License-Identifier: MIT OR Apache-2.0

//! Logins of devices without a browser, such as command-line tools (RFC 8628), and logins for jobs.
//!
//! The device shows a code, which the user types in a browser. A login for jobs differs in two points: a MUNGE
//! credential proves who the user is on the cluster, and the user logs in at the provider again, which gives the agent
//! a refresh token.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use protocol::{Answer, Bound, LoginQuestion};
use serde_json::json;

use crate::{
    clients::authenticate,
    devices::{self, INTERVAL, JobLogin, LIFETIME},
    error::OAuthError,
    failed::Failed,
    form::Form,
    grantee::Grantee,
    introspect::read_form,
    job_login, login,
    pages::{Confirm, Done, EnterCode, Page},
    peer::Peer,
    posted::posted,
    random,
    service::Service,
    session::{self, Current, Session},
    settings::Settings,
    wanted::{REPEATABLE, Wanted},
};

/// Handles the authorization request of a device (RFC 8628 section 3.1).
pub async fn authorization(
    State(service): State<Arc<Service>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, OAuthError> {
    let settings = service.settings();
    let form = read_form(&headers, &body, &REPEATABLE)?;
    let wanted = Wanted::read(&settings, &form)?;
    let job_login = bound(&service, &settings, &form).await?;
    let client = match job_login {
        Some(_) => None,
        None => {
            let client = authenticate(&settings, peer, &headers, &form)?;
            if client.is_public() {
                service.limits.check_device()?;
            }
            Some(client.id.clone())
        }
    };
    let (device_code, user_code) = devices::begin(service.state()?, client, wanted, job_login).await?;
    let at = format!("{}/device", settings.issuer.url());
    let user_code = random::shown(&user_code);
    let answer = json!({
        "device_code": *device_code,
        "user_code": user_code,
        "verification_uri": at,
        "verification_uri_complete": format!("{at}?user_code={user_code}"),
        "expires_in": LIFETIME,
        "interval": INTERVAL,
    });
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response())
}

/// Returns the login for jobs that a request begins, or `None`. Its user encoded the MUNGE credential in the request.
async fn bound(service: &Service, settings: &Settings, form: &Form<'_>) -> Result<Option<JobLogin>, OAuthError> {
    let Some(credential) = job_login::credential(form)? else {
        return Ok(None);
    };
    match job_login::ask(service, settings, LoginQuestion::Bind(credential)).await? {
        Answer::Bound(Bound { user, proof }) => Ok(Some(JobLogin { user, proof })),
        _ => Err(OAuthError::Unavailable),
    }
}

/// Shows the form for the code, or the page that asks whether the device may act as the user.
pub async fn page(State(service): State<Arc<Service>>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let (settings, query) = (service.settings(), query.unwrap_or_default());
    let shown = async {
        let form = Form::parse(query.as_bytes()).map_err(|e| Failed::Malformed(e.text()))?;
        let (code, state) = (form.get("user_code"), service.state()?);
        let Some(Current { session, .. }) = session::current(state, &headers).await? else {
            let code = code.and_then(random::typed);
            let back = code.map_or("/device".to_owned(), |code| {
                format!("/device?user_code={}", random::shown(&code))
            });
            return Ok(login::required(&settings, &back));
        };
        let enter = |problem: Option<&str>| {
            let page = EnterCode {
                frame: session.frame(&settings.issuer),
                code: code.map(str::to_owned),
                problem: problem.map(str::to_owned),
            };
            Ok(page.response())
        };
        let Some(code) = code else { return enter(None) };
        service.limits.check_code(&session.user)?;
        let Some((_, device)) = devices::typed(state, code).await? else {
            return enter(Some(
                "This code is wrong or has expired. Look at your terminal, and type it again.",
            ));
        };
        let mut frame = session.frame(&settings.issuer);
        if device.job_login.is_some() {
            frame.form_origins.extend(login::provider(&service, &settings).await?);
        }
        let code = random::shown(&device.user_code);
        let page = Confirm {
            frame,
            action: "/device".to_owned(),
            hidden: vec![("user_code".to_owned(), code.clone())],
            client: device.client.unwrap_or_else(|| "workflow-token login".to_owned()),
            code: Some(code),
            projects: device.wanted.projects_of(&session),
            audience: device.wanted.audience,
            scope: device.wanted.scope.unwrap_or_default(),
            expires_in: device.wanted.lifetime,
            for_jobs: device.job_login.map(|login| login.user),
        };
        Ok(page.response())
    };
    shown.await.unwrap_or_else(|failed: Failed| failed.response(&settings))
}

/// Handles the decision of the user.
pub async fn decide(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let settings = service.settings();
    let decided = async {
        let (form, current) = posted(&service, &settings, &headers, &body, &[]).await?;
        let state = service.state()?;
        let Some(Current { session, .. }) = current else {
            return Ok(login::required(&settings, "/device"));
        };
        let code = form.get("user_code").unwrap_or_default();
        let Some(decision) = form.get("decision") else {
            // This was the form for the code. The next page asks for the decision.
            return to_page(&settings, code);
        };
        service.limits.check_code(&session.user)?;
        let Some((device_code, device)) = devices::typed(state, code).await? else {
            return to_page(&settings, code);
        };
        let is_allowed = decision == "allow";
        if is_allowed && device.job_login.is_some() {
            return login::begin(&service, &settings, "/done".to_owned(), Some(device_code)).await;
        }
        let grantee = is_allowed.then(|| Grantee::of(&session));
        devices::decide(state, &device_code.0, grantee).await?;
        service.audit.login(if is_allowed { "allow" } else { "deny" }, &session);
        Ok(done(&settings, &session, is_allowed))
    };
    decided
        .await
        .unwrap_or_else(|failed: Failed| failed.response(&settings))
}

fn to_page(settings: &Settings, code: &str) -> Result<Response, Failed> {
    let code: String = form_urlencoded::byte_serialize(code.as_bytes()).collect();
    let to = format!("{}/device?user_code={code}", settings.issuer.path());
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, login::location(&to)?)]).into_response())
}

/// Shows that a login for jobs is complete.
pub async fn over(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    let settings = service.settings();
    let shown = async {
        match session::current(service.state()?, &headers).await? {
            Some(Current { session, .. }) => Ok(done(&settings, &session, true)),
            None => Ok(login::required(&settings, "/me")),
        }
    };
    shown.await.unwrap_or_else(|failed: Failed| failed.response(&settings))
}

fn done(settings: &Settings, session: &Session, is_allowed: bool) -> Response {
    let (title, text) = match is_allowed {
        true => ("You are logged in", "Your program continues automatically."),
        false => ("The request was denied", "No token was issued."),
    };
    let page = Done {
        frame: session.frame(&settings.issuer),
        title: title.to_owned(),
        text: text.to_owned(),
    };
    page.response()
}
