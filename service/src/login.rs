// SPDX-License-Identifier: MIT OR Apache-2.0

//! Logins of browsers at the provider (OpenID Connect Core section 3.1): `/login` and `/callback`.
//!
//! A sealed cookie contains the state of a login in progress. So logins that strangers begin use no memory, and a login
//! can end only in the browser in which it began.

use std::sync::Arc;

use axum::{
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use protocol::{Answer, BeginLogin, FinishLogin, IssuerQuestion, LoginQuestion, Question, SecretText};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    clock::now, cookies, devices, failed::Failed, form::Form, grantee::Grantee, log::Kind as Line, random,
    service::Service, session, settings::Settings,
};

/// The time within which the user must log in, in seconds.
const LIFETIME: u64 = 900;

/// The longest return address, in bytes.
const MAX_RETURN: usize = 2048;

/// The pages that a login can return to, relative to the path of the issuer.
const RETURNS: [&str; 3] = ["/me", "/device", "/authorize"];

static FAILED: Line = Line::new();

/// A login in progress, in its cookie.
#[derive(Serialize, Deserialize)]
struct Attempt {
    state: String,
    nonce: String,
    verifier: SecretText,
    /// The path and query to return to.
    back: String,
    /// The device code, if the login is for jobs.
    device: Option<SecretText>,
    expires: u64,
}

/// Redirects a browser to the provider.
pub async fn login(State(service): State<Arc<Service>>, RawQuery(query): RawQuery) -> Response {
    let settings = service.settings();
    let begun = async {
        let query = query.unwrap_or_default();
        let form = Form::parse(query.as_bytes()).map_err(|e| Failed::Malformed(e.text()))?;
        let back = form.get("return").unwrap_or("/me");
        if !is_page(back) {
            return Err(Failed::Malformed("The parameter return names no page of this service"));
        }
        begin(&service, &settings, back.to_owned(), None).await
    };
    begun.await.unwrap_or_else(|failed: Failed| failed.response(&settings))
}

/// Returns whether a browser may be redirected to an address after a login: it must be a page of this service.
pub fn is_page(address: &str) -> bool {
    let path = address.split('?').next().unwrap_or_default();
    RETURNS.contains(&path) && address.len() <= MAX_RETURN && address.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Redirects a browser to the provider. After the login, the browser returns to a page of the service.
///
/// # Errors
/// [`Failed`].
pub async fn begin(
    service: &Service,
    settings: &Settings,
    back: String,
    device: Option<SecretText>,
) -> Result<Response, Failed> {
    let state = service.state()?;
    let verifier = random::secret();
    let begin = BeginLogin {
        redirect_uri: redirect_uri(settings),
        state: random::secret().to_string(),
        nonce: random::secret().to_string(),
        challenge: random::challenge(&verifier),
        is_for_jobs: device.is_some(),
    };
    let attempt = Attempt {
        state: begin.state.clone(),
        nonce: begin.nonce.clone(),
        verifier: SecretText(verifier),
        back,
        device,
        expires: now() + LIFETIME,
    };
    let address = match ask(service, settings, LoginQuestion::Begin(begin)).await? {
        Answer::LoginAt(address) => address,
        _ => return Err(Failed::Unavailable),
    };
    let sealed = state.seal_cookie(cookies::LOGIN, &attempt)?;
    let headers = [
        (header::SET_COOKIE, cookies::set(cookies::LOGIN, &sealed, LIFETIME)),
        (header::LOCATION, location(&address)?),
    ];
    Ok((StatusCode::SEE_OTHER, headers).into_response())
}

/// Handles the return of a browser from the provider.
pub async fn callback(State(service): State<Arc<Service>>, headers: HeaderMap, RawQuery(query): RawQuery) -> Response {
    let settings = service.settings();
    let query = Zeroizing::new(query.unwrap_or_default());
    let mut response = finish(&service, &settings, &headers, &query)
        .await
        .unwrap_or_else(|failed| failed.response(&settings));
    // Every attempt is valid once, whatever its result.
    response
        .headers_mut()
        .append(header::SET_COOKIE, cookies::remove(cookies::LOGIN));
    response
}

async fn finish(service: &Service, settings: &Settings, headers: &HeaderMap, query: &str) -> Result<Response, Failed> {
    let state = service.state()?;
    let form = Form::parse(query.as_bytes()).map_err(|e| Failed::Malformed(e.text()))?;
    let sealed = cookies::get(headers, cookies::LOGIN).ok_or(Failed::Stale)?;
    let attempt: Attempt = state.open_cookie(cookies::LOGIN, sealed).ok_or(Failed::Stale)?;
    let is_same = |shown: &str| {
        aws_lc_rs::constant_time::verify_slices_are_equal(attempt.state.as_bytes(), shown.as_bytes()).is_ok()
    };
    if attempt.expires <= now() || !form.get("state").is_some_and(is_same) {
        return Err(Failed::Stale);
    }
    if form.get("error").is_some() {
        // Do not show the provider's text, which could be anything.
        return Err(Failed::Refused("the provider did not log you in".to_owned()));
    }
    service.limits.check_attempt(&attempt.state)?;
    let code = form
        .get("code")
        .ok_or(Failed::Malformed("The parameter code is missing"))?;
    let job_login = match &attempt.device {
        Some(code) => {
            let device = devices::open(state, &code.0).await?;
            Some(device.and_then(|device| device.job_login).ok_or(Failed::Stale)?)
        }
        None => None,
    };
    let finish = FinishLogin {
        code: SecretText(Zeroizing::new(code.to_owned())),
        verifier: attempt.verifier,
        nonce: attempt.nonce,
        redirect_uri: redirect_uri(settings),
        iss: form.get("iss").map(str::to_owned),
        binding: job_login.map(|login| login.proof),
    };
    let login = match ask(service, settings, LoginQuestion::Finish(finish)).await? {
        Answer::LoggedIn(login) => *login,
        _ => return Err(Failed::Unavailable),
    };
    let (cookie, session) = session::begin(state, headers, login).await?;
    service.audit.login("login", &session);
    if let Some(code) = &attempt.device {
        devices::decide(state, &code.0, Some(Grantee::of(&session))).await?;
    }
    let to = format!("{}{}", settings.issuer.path(), attempt.back);
    let headers = [(header::SET_COOKIE, cookie), (header::LOCATION, location(&to)?)];
    Ok((StatusCode::SEE_OTHER, headers).into_response())
}

/// Sends the agent a request about a login.
///
/// # Errors
/// [`Failed`].
pub async fn ask(service: &Service, settings: &Settings, question: LoginQuestion) -> Result<Answer, Failed> {
    // Separate turns, so that strangers do not delay users who are logged in, and neither delays checks of tokens.
    let turns = &service.logins[usize::from(matches!(question, LoginQuestion::User { .. }))];
    let question = Question::Issuer {
        name: settings.issuer.url().to_owned(),
        question: IssuerQuestion::Login(question),
    };
    let _turn = turns.try_acquire().map_err(|_| Failed::Unavailable)?;
    match service.agent.ask_slowly(question).await {
        Ok(Answer::Denied(denial)) => Err(Failed::Refused(denial.text)),
        Ok(answer) => Ok(answer),
        Err(e) => {
            FAILED.log(format_args!("a login failed: {e}"));
            Err(Failed::Unavailable)
        }
    }
}

/// Returns an address at the provider, for the policy of a page whose form leads there.
///
/// # Errors
/// [`Failed`].
pub async fn provider(service: &Service, settings: &Settings) -> Result<Option<String>, Failed> {
    let begin = BeginLogin {
        redirect_uri: redirect_uri(settings),
        state: String::new(),
        nonce: String::new(),
        challenge: String::new(),
        is_for_jobs: true,
    };
    match ask(service, settings, LoginQuestion::Begin(begin)).await? {
        Answer::LoginAt(address) => Ok(Some(address)),
        _ => Err(Failed::Unavailable),
    }
}

/// Redirects a browser to the login, and then back to a page.
pub fn required(settings: &Settings, back: &str) -> Response {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("return", back);
    let to = format!("{}/login?{}", settings.issuer.path(), query.finish());
    match location(&to) {
        Ok(location) => (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response(),
        Err(failed) => failed.response(settings),
    }
}

/// Returns the header `Location`.
///
/// # Errors
/// The address cannot be a header.
pub fn location(address: &str) -> Result<header::HeaderValue, Failed> {
    header::HeaderValue::from_str(address).map_err(|_| Failed::Unavailable)
}

fn redirect_uri(settings: &Settings) -> String {
    format!("{}/callback", settings.issuer.url())
}
