// SPDX-License-Identifier: MIT OR Apache-2.0

//! Fetches the published metadata and keys of an issuer once.

use std::{sync::Arc, time::Duration};

use config::Discovery;
use token::{KeySet, SkippedKey};

use super::{JwksClient, SERVER};
use crate::{
    Examined,
    http::{SourceError, quote},
    remote::{Need, ask_here},
};

/// The longest JWKS, in bytes.
const MAX_JWKS: usize = 1 << 20;

/// The timeout of one request.
const REQUEST: Duration = Duration::from_secs(10);

/// The maximum number of unusable keys that a line of the log names.
pub(super) const MAX_NAMED: usize = 4;

/// The maximum number of unusable keys that a caller receives.
const MAX_LISTED: usize = 64;

/// The results of one fetch.
pub(super) struct Published {
    pub jwks_uri: String,
    pub keys: KeySet,
    pub skipped: Vec<SkippedKey>,
    pub max_age: Option<Duration>,
}

impl JwksClient {
    pub(super) async fn fetch(&self, known: Option<String>) -> Result<Published, SourceError> {
        let jwks_uri = match known {
            Some(known) => known,
            None => self.remote.discover(&self.url, Need::Keys, REQUEST).await?.address,
        };
        let at = |error: SourceError| error.at(&jwks_uri);
        let answer = self.remote.get(&jwks_uri, MAX_JWKS, REQUEST).await.map_err(at)?;
        if !answer.status.is_success() {
            return Err(at(self.remote.unusable(&answer)));
        }
        let (keys, skipped) = KeySet::from_jwks(&answer.body).map_err(|e| {
            at(SourceError::permanent(
                SERVER.unwell,
                format_args!("its answer is not a JWKS ({e})"),
                "see the server's log",
            ))
        })?;
        Ok(Published {
            max_age: answer.max_age(),
            jwks_uri,
            keys,
            skipped,
        })
    }

    /// Returns the keys that an issuer publishes now, and a line about unusable ones, if any. Blocks for at most
    /// `limit`.
    ///
    /// # Errors
    /// For the operator: the issuer publishes no usable key.
    pub fn published(
        url: &str,
        discovery: &Discovery,
        limit: Duration,
    ) -> Result<(Arc<KeySet>, Option<String>), String> {
        let client = Self::of(url, discovery);
        let fetched = ask_here(&SERVER, limit, client.fetch(None));
        let fetched = fetched.map_err(|error| format!("issuer {url}: {error}"))?;
        if fetched.keys.is_empty() {
            return Err(fetched.nothing(url));
        }
        let note = match describe_skipped(&fetched.skipped, MAX_LISTED) {
            none if none.is_empty() => None,
            some => Some(format!("issuer {url}: some of its keys cannot be used: {some}")),
        };
        Ok((Arc::new(fetched.keys), note))
    }

    /// Checks that the keys of an issuer can be fetched. Blocks for at most `limit`.
    #[must_use]
    pub fn examine(url: &str, discovery: &Discovery, limit: Duration) -> Examined {
        let client = Self::of(url, discovery);
        let fetched = ask_here(&SERVER, limit, client.fetch(None));
        match fetched {
            Ok(fetched) if fetched.keys.is_empty() => Examined::bad(fetched.nothing(url), "see its configuration"),
            fetched => Examined::of(fetched, &format!("issuer {url}"), |fetched| {
                let skipped = match describe_skipped(&fetched.skipped, MAX_LISTED) {
                    none if none.is_empty() => none,
                    some => format!("; others cannot be used: {some}"),
                };
                format!(
                    "issuer {url}: its metadata is valid, and {} has {} usable key(s){skipped}",
                    fetched.jwks_uri,
                    fetched.keys.len()
                )
            }),
        }
    }
}

impl Published {
    fn nothing(&self, url: &str) -> String {
        let why = match describe_skipped(&self.skipped, MAX_LISTED) {
            none if none.is_empty() => "it publishes none".to_owned(),
            some => some,
        };
        format!("issuer {url}: it has no usable key: {why}")
    }
}

/// Lists unusable keys, each with the reason, and at most `most` of them.
pub(super) fn describe_skipped(skipped: &[SkippedKey], most: usize) -> String {
    let mut named: Vec<_> = skipped
        .iter()
        .take(most)
        .map(|key| {
            let name = match &key.kid {
                Some(kid) => format!("`{}`", quote(kid, &[])),
                None => format!("number {}", key.index),
            };
            format!("{name} ({})", key.reason)
        })
        .collect();
    if skipped.len() > most {
        named.push(format!("and {} more", skipped.len() - most));
    }
    named.join(", ")
}
