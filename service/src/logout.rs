// SPDX-License-Identifier: MIT OR Apache-2.0

//! Logout by the user (OpenID Connect RP-Initiated Logout 1.0) or by the provider (Back-Channel Logout 1.0).

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use protocol::{Answer, LoginQuestion, Question, SecretText, Subject};
use zeroize::Zeroizing;

use crate::{
    clock::now,
    cookies,
    error::OAuthError,
    failed::Failed,
    introspect::read_form,
    log::Kind as Line,
    login,
    pages::{Frame, LoggedOut, Page},
    posted::posted,
    random,
    service::Service,
    session::{self, Current, Login},
};

static UNREVOKED: Line = Line::new();

/// How long a revocation is kept after the end of its login, in seconds: a tolerance for clock differences.
const CLOCKS: u64 = 600;

/// Ends the session of a browser, and redirects the browser to the provider, to log out there, too.
pub async fn logout(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let settings = service.settings();
    let ended = async {
        let (_, current) = posted(&service, &settings, &headers, &body, &[]).await?;
        let after = format!("{}/logged-out", settings.issuer.url());
        let mut to = after.clone();
        if let Some(Current { id, session }) = current {
            session::end(service.state()?, &id).await?;
            service.audit.login("logout", &session);
            if let Some(provider) = &session.end_session {
                let mut query = form_urlencoded::Serializer::new(String::new());
                query.append_pair("post_logout_redirect_uri", &after);
                query.append_pair("state", &random::secret());
                to = format!("{provider}&{}", query.finish());
            }
        }
        let headers = [
            (header::SET_COOKIE, cookies::remove(cookies::SESSION)),
            (header::LOCATION, login::location(&to)?),
        ];
        Ok((StatusCode::SEE_OTHER, headers).into_response())
    };
    ended.await.unwrap_or_else(|failed: Failed| failed.response(&settings))
}

/// Shows that the session has ended.
pub async fn page(State(service): State<Arc<Service>>) -> Response {
    let frame = Frame {
        base: service.settings().issuer.path().to_owned(),
        ..Frame::default()
    };
    LoggedOut { frame }.response()
}

/// Ends the sessions that the provider names.
pub async fn back_channel(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, OAuthError> {
    let settings = service.settings();
    let form = read_form(&headers, &body, &[])?;
    let token = form
        .get("logout_token")
        .ok_or(OAuthError::InvalidRequest("the parameter logout_token is missing"))?;
    let token = SecretText(Zeroizing::new(token.to_owned()));
    let state = service.state()?;
    match login::ask(&service, &settings, LoginQuestion::LogoutToken(token)).await {
        Ok(Answer::LoggedOut(provider)) => {
            let logins = session::end_of(state, &provider).await?;
            revoke(&service, logins).await;
            Ok(StatusCode::OK)
        }
        Err(Failed::Refused(_)) => Err(OAuthError::InvalidRequest("the logout_token is not valid")),
        _ => Err(OAuthError::Unavailable),
    }
}

/// Revokes logins, so that programs that act by them get no further tokens.
async fn revoke(service: &Service, logins: Vec<Login>) {
    for login in logins {
        let question = || Question::Revoke {
            subjects: vec![Subject::Jti(login.jti.clone())],
            keep_secs: login.expires.saturating_sub(now()).saturating_add(CLOCKS),
        };
        match service.agent.ask(question).await {
            Ok(Answer::Revoked) => {}
            Ok(Answer::NotStored) => UNREVOKED.log(
                "a login was not revoked, so programs may act by it until it ends: set the key revocations of the agent",
            ),
            Ok(_) => UNREVOKED.log("a login was not revoked, since the agent sent an unexpected reply"),
            Err(e) => UNREVOKED.log(format_args!(
                "a login was not revoked, so programs may act by it until it ends: {e}"
            )),
        }
    }
}
