//! Status Lists: services that fetch them need not ask about each token (draft-ietf-oauth-status-list-20 sections 8 and 9).

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use protocol::{Answer, IssuerQuestion, Question, service::STATUS_LIST_TTL};
use serde_json::json;
use tokio::sync::Mutex;

use crate::{agent::AgentClient, error::OAuthError, log::Kind, metadata::is_known, service::Service};

/// The path of all lists. That of one is followed by its number.
pub const PATH: &str = "/status";

/// The media type of a list (section 8.2).
const TYPE: HeaderValue = HeaderValue::from_static("application/statuslist+jwt");

/// The shortest interval between two questions to the agent about the same.
const SOONEST: Duration = Duration::from_secs(1);

static UNKNOWN: Kind = Kind::new();

/// The lists of the issuer, as the agent has signed them.
pub struct StatusLists {
    issuer: String,
    agent: AgentClient,
    known: Mutex<Known>,
}

/// The answers of the last moments, with their times.
#[derive(Default)]
struct Known {
    numbers: Option<(Instant, Vec<u32>)>,
    lists: HashMap<u32, (Instant, Arc<List>)>,
}

/// A list.
struct List {
    token: String,
    etag: HeaderValue,
}

impl StatusLists {
    /// Asks this agent.
    pub fn new(issuer: &str, agent: AgentClient) -> Self {
        Self {
            issuer: issuer.to_owned(),
            agent,
            known: Mutex::default(),
        }
    }

    async fn numbers(&self) -> Result<Vec<u32>, OAuthError> {
        let mut known = self.known.lock().await;
        self.numbers_of(&mut known).await.cloned()
    }

    /// Returns a list, if there is one of this number.
    async fn list(&self, number: u32) -> Result<Option<Arc<List>>, OAuthError> {
        let mut known = self.known.lock().await;
        if !self.numbers_of(&mut known).await?.contains(&number) {
            return Ok(None);
        }
        if let Some((asked, list)) = known.lists.get(&number)
            && asked.elapsed() < SOONEST
        {
            return Ok(Some(Arc::clone(list)));
        }
        let asked = Instant::now();
        let Answer::Signed(token) = self.ask(|| IssuerQuestion::StatusList { number }).await? else {
            return Err(OAuthError::Unavailable);
        };
        let etag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes())));
        let list = Arc::new(List {
            token,
            // A digest in base64url is visible ASCII.
            etag: HeaderValue::from_str(&etag).unwrap_or(HeaderValue::from_static("\"\"")),
        });
        known.lists.insert(number, (asked, Arc::clone(&list)));
        Ok(Some(list))
    }

    async fn numbers_of<'a>(&self, known: &'a mut Known) -> Result<&'a Vec<u32>, OAuthError> {
        let former = known.numbers.take().filter(|(asked, _)| asked.elapsed() < SOONEST);
        let numbers = match former {
            Some(former) => former,
            None => {
                let asked = Instant::now();
                let Answer::StatusLists(numbers) = self.ask(|| IssuerQuestion::StatusLists).await? else {
                    return Err(OAuthError::Unavailable);
                };
                known.lists.retain(|number, _| numbers.contains(number));
                (asked, numbers)
            }
        };
        Ok(&known.numbers.insert(numbers).1)
    }

    async fn ask(&self, question: impl Fn() -> IssuerQuestion) -> Result<Answer, OAuthError> {
        let question = || Question::Issuer {
            name: self.issuer.clone(),
            question: question(),
        };
        self.agent.ask(question).await.map_err(|e| {
            UNKNOWN.log(format_args!("the status lists could not be fetched: {e}"));
            OAuthError::Unavailable
        })
    }
}

/// Returns the URIs of all lists.
pub async fn lists(State(service): State<Arc<Service>>) -> Result<Response, OAuthError> {
    let numbers = service.statuses.numbers().await?;
    let issuer = &service.settings().issuer;
    let uris: Vec<String> = numbers
        .iter()
        .map(|number| format!("{}{PATH}/{number}", issuer.url()))
        .collect();
    Ok((headers(), Json(json!({"status_lists": uris}))).into_response())
}

/// Returns a list.
pub async fn list(
    State(service): State<Arc<Service>>,
    Path(number): Path<String>,
    request: HeaderMap,
) -> Result<Response, OAuthError> {
    // Each list has one URI.
    let number: Option<u32> = number.parse().ok().filter(|parsed: &u32| parsed.to_string() == number);
    let list = match number {
        Some(number) => service.statuses.list(number).await?,
        None => None,
    };
    let Some(list) = list else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    let etag = [(header::ETAG, list.etag.clone())];
    if is_known(&request, &list.etag) {
        return Ok((StatusCode::NOT_MODIFIED, headers(), etag).into_response());
    }
    let kind = [(header::CONTENT_TYPE, TYPE)];
    Ok((headers(), etag, kind, list.token.clone()).into_response())
}

/// For caches, and for browsers on pages of other origins (section 8.1).
fn headers() -> [(header::HeaderName, HeaderValue); 2] {
    let max_age = format!("public, max-age={}", STATUS_LIST_TTL.as_secs());
    let max_age = HeaderValue::from_str(&max_age).unwrap_or(HeaderValue::from_static("no-store"));
    [
        (header::CACHE_CONTROL, max_age),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
    ]
}
