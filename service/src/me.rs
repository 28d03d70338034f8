// SPDX-License-Identifier: MIT OR Apache-2.0

//! The page of a logged-in user (`/me`), and tokens for programs in the browser.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use protocol::{Answer, LoginQuestion, Question, UserRequest};
use serde_json::json;

use crate::{
    clock::now,
    error::OAuthError,
    failed::Failed,
    families::Family,
    form::Form,
    grantee::Grantee,
    introspect::read_form,
    login,
    mint::mint,
    pages::{JobLoginRow, Me, Page, SessionRow},
    posted::posted,
    service::Service,
    session::{self, Current, Session},
    settings::Settings,
    state::Kind,
    wanted::{REPEATABLE, Wanted},
};

/// The maximum number of sessions and logins on the page.
const MOST: u32 = 100;

/// The id of the login for jobs in forms.
const JOB_LOGIN: &str = "job-login";

impl JobLoginRow {
    fn since(since: u64) -> Self {
        Self {
            id: JOB_LOGIN.to_owned(),
            since,
        }
    }
}

/// Shows the page of the user.
pub async fn page(State(service): State<Arc<Service>>, headers: HeaderMap) -> Response {
    let settings = service.settings();
    let shown = async {
        let state = service.state()?;
        let Some(Current { id, session }) = session::current(state, &headers).await? else {
            return Ok(login::required(&settings, "/me"));
        };
        let (owner, own) = (session.owner(), digest(&SHA256, id.as_bytes()));
        let sessions = state.owned::<Session>(Kind::Session, &owner, MOST).await?;
        let sessions = sessions.into_iter().filter(|(digest, _)| digest != own.as_ref());
        let sessions = sessions.map(|(digest, stored)| SessionRow {
            id: URL_SAFE_NO_PAD.encode(digest),
            client: "Browser".to_owned(),
            since: stored.value.since,
            expires: stored.expires,
        });
        let families = state.owned::<Family>(Kind::Family, &owner, MOST).await?;
        let families = families.into_iter().map(|(digest, stored)| SessionRow {
            id: URL_SAFE_NO_PAD.encode(digest),
            client: stored.value.client,
            since: stored.value.since,
            expires: stored.expires,
        });
        let jobs = match service.agent.ask(|| Question::Held { uid: session.uid }).await {
            Ok(Answer::Held(held)) => Some(held),
            Ok(_) | Err(_) => None,
        };
        let job_login = match ask(&service, &settings, &session, UserRequest::JobLogin).await {
            Ok(Answer::JobLogin(since)) => since.map(JobLoginRow::since),
            _ => None,
        };
        let page = Me {
            frame: session.frame(&settings.issuer),
            now: now(),
            sessions: sessions.chain(families).collect(),
            session_expires: session.expires,
            user: session.user,
            uid: session.uid,
            projects: session.projects,
            jobs,
            job_login,
        };
        Ok(page.response())
    };
    shown.await.unwrap_or_else(|failed: Failed| failed.response(&settings))
}

/// Sends the agent a request for the user of a session.
async fn ask(
    service: &Service,
    settings: &Settings,
    session: &Session,
    request: UserRequest,
) -> Result<Answer, Failed> {
    let ticket = session.ticket.clone();
    login::ask(service, settings, LoginQuestion::User { ticket, request }).await
}

/// Revokes the tokens of one of the user's jobs.
pub async fn revoke(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let settings = service.settings();
    let revoked = async {
        let (form, current) = posted(&service, &settings, &headers, &body, &[]).await?;
        let Some(Current { session, .. }) = current else {
            return Ok(login::required(&settings, "/me"));
        };
        let (instance, jobid) = (form.get("instance"), form.get("jobid").and_then(|id| id.parse().ok()));
        let (Some(instance), Some(jobid)) = (instance.map(str::to_owned), jobid) else {
            return Err(Failed::Malformed("The parameters name no job"));
        };
        match ask(&service, &settings, &session, UserRequest::Revoke { instance, jobid }).await? {
            Answer::Revoked => {
                service.audit.login("revoke-job", &session);
                back(&settings)
            }
            Answer::NotStored => Err(Failed::Refused("this site does not store revocations".to_owned())),
            _ => Err(Failed::Unavailable),
        }
    };
    revoked
        .await
        .unwrap_or_else(|failed: Failed| failed.response(&settings))
}

fn back(settings: &Settings) -> Result<Response, Failed> {
    let to = format!("{}/me", settings.issuer.path());
    Ok((StatusCode::SEE_OTHER, [(header::LOCATION, login::location(&to)?)]).into_response())
}

/// Ends another session, or a login, of the user.
pub async fn end(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Response {
    let settings = service.settings();
    let ended = async {
        let (form, current) = posted(&service, &settings, &headers, &body, &[]).await?;
        let state = service.state()?;
        let Some(Current { session, .. }) = current else {
            return Ok(login::required(&settings, "/me"));
        };
        service.audit.login("end", &session);
        if form.get("id") == Some(JOB_LOGIN) {
            ask(&service, &settings, &session, UserRequest::EndJobLogin).await?;
            return back(&settings);
        }
        let digest = form.get("id").and_then(|id| URL_SAFE_NO_PAD.decode(id).ok());
        let digest = digest.ok_or(Failed::Malformed("The parameter id is malformed"))?;
        for kind in [Kind::Session, Kind::Family] {
            state.remove_digest(kind, &session.owner(), &digest).await?;
        }
        back(&settings)
    };
    ended.await.unwrap_or_else(|failed: Failed| failed.response(&settings))
}

/// Exchanges the session of a browser for a token, for a page of the same origin.
pub async fn token(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, OAuthError> {
    let settings = service.settings();
    // Neither forms nor scripts of other sites can send these headers.
    let is_same_origin = headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin")
        || headers.contains_key("x-requested-with");
    let is_foreign = headers
        .get(header::ORIGIN)
        .is_some_and(|origin| origin != settings.issuer.origin());
    if !is_same_origin || is_foreign {
        return Err(OAuthError::InvalidRequest(
            "the request must come from a page of this origin, or contain the header X-Requested-With",
        ));
    }
    let form = match body.is_empty() {
        true => Form::default(),
        false => read_form(&headers, &body, &REPEATABLE)?,
    };
    let wanted = Wanted::read(&settings, &form)?;
    let state = service.state()?;
    let current = session::current(state, &headers).await?;
    let Some(Current { session, .. }) = current else {
        return Err(OAuthError::InvalidGrant("the browser is not logged in".to_owned()));
    };
    let request = wanted.request(Grantee::of(&session).evidence(), None);
    let minted = mint(&service, &settings, "exchange", request).await?;
    let answer = json!({
        "token": *minted.token.0,
        "access_token": *minted.token.0,
        "token_type": "Bearer",
        "expires_in": minted.expires_in(),
        "scope": minted.claims.scope().map(|scope| scope.as_str()),
    });
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response())
}
