// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Status Lists of the issuer, signed by the agent. Each is fetched at most once per second.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};
use axum::http::HeaderValue;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use protocol::{Answer, IssuerQuestion, Question};
use tokio::sync::Mutex;

use crate::{agent::AgentClient, error::OAuthError, log::Kind};

/// The shortest interval between two identical requests to the agent.
const SOONEST: Duration = Duration::from_secs(1);

static UNKNOWN: Kind = Kind::new();

/// The Status Lists of the issuer, signed by the agent.
pub struct StatusLists {
    issuer: String,
    agent: AgentClient,
    known: Mutex<Known>,
}

/// The recent replies, with their times.
#[derive(Default)]
struct Known {
    numbers: Option<(Instant, Vec<u32>)>,
    lists: HashMap<u32, (Instant, Arc<List>)>,
}

/// A list.
pub struct List {
    /// The JWT.
    pub token: String,
    /// Its entity tag.
    pub etag: HeaderValue,
}

impl StatusLists {
    /// Returns an empty cache for the lists of an issuer.
    pub fn new(issuer: &str, agent: AgentClient) -> Self {
        Self {
            issuer: issuer.to_owned(),
            agent,
            known: Mutex::default(),
        }
    }

    /// Returns the numbers of all lists.
    ///
    /// # Errors
    /// [`OAuthError::Unavailable`].
    pub async fn numbers(&self) -> Result<Vec<u32>, OAuthError> {
        let mut known = self.known.lock().await;
        self.numbers_of(&mut known).await.cloned()
    }

    /// Returns the list with this number, or `None`.
    ///
    /// # Errors
    /// [`OAuthError::Unavailable`].
    pub async fn list(&self, number: u32) -> Result<Option<Arc<List>>, OAuthError> {
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
            UNKNOWN.log(format_args!("the Status Lists could not be fetched: {e}"));
            OAuthError::Unavailable
        })
    }
}
