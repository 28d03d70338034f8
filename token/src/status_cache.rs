// SPDX-License-Identifier: MIT OR Apache-2.0

//! Status Lists that a service has fetched, so that it knows without a question for each token which ones are still valid.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use crate::{Claims, NumericDate, StatusList, StatusListError, VerifiedStatusList, Verifier, VerifyError};

/// The longest `ttl` that is honoured.
const MAX_TTL: Duration = Duration::from_secs(86_400);

/// Verified Status Lists, by their URIs. It fetches nothing: the service does, such as every half minute all lists that the
/// metadata member `status_list_aggregation_endpoint` of the issuer leads to.
///
/// A list is used until its `ttl` has passed since it was received, and never longer than its `ttl` and the leeway of the verifier
/// after its issue, whoever has kept it meanwhile.
#[derive(Debug)]
pub struct StatusCache {
    verifier: Verifier,
    most: usize,
    held: RwLock<HashMap<String, Held>>,
}

#[derive(Debug)]
struct Held {
    iss: Option<String>,
    iat: NumericDate,
    /// From when on it says nothing about tokens that it has as valid.
    stale: NumericDate,
    list: StatusList,
}

/// Whether a token is still valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenStatus {
    /// It is.
    Valid,
    /// It was revoked, its job has ended, or its list has no such entry.
    Invalid,
    /// That is not known: the list of this URI must be fetched.
    Stale {
        /// The URI.
        uri: String,
    },
    /// That is in no list: ask the token service.
    Unlisted,
}

impl StatusCache {
    /// Returns a cache of at most so many lists, for tokens and lists of the issuer of this verifier.
    ///
    /// ```
    /// use token::{KeySet, StatusCache, Verifier};
    ///
    /// let cache = StatusCache::new(Verifier::new(KeySet::new()).issuer("https://hpc.example.org"), 16);
    /// ```
    pub fn new(verifier: Verifier, most: usize) -> Self {
        Self {
            verifier,
            most,
            held: RwLock::default(),
        }
    }

    /// Verifies a Status List Token that was received at `now`, and keeps its list. If there are too many, the oldest one is
    /// dropped.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use token::{Algorithm, KeySet, SigningKey, StatusCache, StatusList, StatusListToIssue, Verifier, sign_status_list};
    ///
    /// # fn main() -> Result<(), token::VerifyError> {
    /// let key = SigningKey::generate(Algorithm::EdDsa);
    /// let issue = |iat| sign_status_list(&key, &StatusListToIssue {
    ///     iss: "https://hpc.example.org",
    ///     uri: "https://hpc.example.org/status/7",
    ///     iat,
    ///     lifetime: Duration::from_secs(600),
    ///     ttl: Duration::from_secs(60),
    ///     list: &StatusList::new(1000),
    /// });
    /// let cache = StatusCache::new(Verifier::new(KeySet::from(key.verifying_key())).issuer("https://hpc.example.org"), 16);
    /// let now = SystemTime::now();
    /// cache.insert(&issue(now), now)?;
    /// assert!(cache.insert(&issue(now - Duration::from_secs(5)), now).is_err(), "it is older");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`VerifyError`]. The list that is held stays.
    pub fn insert(&self, token: &str, now: SystemTime) -> Result<(), VerifyError> {
        let verified = self.verifier.verify_status_list(token, now)?;
        let stale = self.stale_at(&verified, now);
        let VerifiedStatusList {
            iss, uri, iat, list, ..
        } = verified;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        match held.get(&uri) {
            Some(known) if known.iat > iat => return Err(StatusListError::Older.into()),
            // The same list lasts no longer because it came again.
            Some(known) if known.iat == iat => return Ok(()),
            Some(_) => {}
            None => {
                while held.len() >= self.most.max(1) {
                    let by_age = |(_, one): &(&String, &Held), (_, other): &(&String, &Held)| {
                        one.iat.seconds().total_cmp(&other.iat.seconds())
                    };
                    let oldest = held.iter().min_by(by_age).map(|(uri, _)| uri.clone());
                    held.remove(&oldest.unwrap_or_default());
                }
            }
        }
        held.insert(uri, Held { iss, iat, stale, list });
        Ok(())
    }

    fn stale_at(&self, verified: &VerifiedStatusList, now: SystemTime) -> NumericDate {
        let ttl = verified.ttl.min(MAX_TTL).as_secs_f64();
        let since_issue = verified.iat.seconds() + ttl + self.verifier.accepted_leeway().as_secs_f64();
        let since_receipt = NumericDate::from(now).seconds() + ttl;
        NumericDate::from_seconds(since_issue.min(since_receipt).min(verified.exp.seconds()))
    }

    /// Returns whether a token that was verified is still valid at the time `now`. What is not valid any more stays so, also
    /// after its list has become stale.
    ///
    /// ```
    /// use std::time::SystemTime;
    /// use token::{Claims, StatusCache, TokenStatus, Verifier};
    ///
    /// fn is_valid(cache: &StatusCache, claims: &Claims) -> bool {
    ///     match cache.status(claims, SystemTime::now()) {
    ///         TokenStatus::Valid => true,
    ///         TokenStatus::Invalid | TokenStatus::Unlisted => false,
    ///         // Fetch the list of `uri`, insert it and look again; until then, refuse the token.
    ///         TokenStatus::Stale { uri: _ } => false,
    ///     }
    /// }
    /// # use std::time::Duration;
    /// # use secrecy::ExposeSecret;
    /// # use token::*;
    /// # let key = SigningKey::generate(Algorithm::EdDsa);
    /// # let token = mint(&key, &ClaimsToIssue {
    /// #     iss: "i".into(), sub: "a".into(), aud: vec!["a".into()], iat: SystemTime::now(), lifetime: Duration::from_secs(60),
    /// #     grant: Grant::Cluster, status: None,
    /// # });
    /// # let verifier = Verifier::new(KeySet::from(key.verifying_key())).audience("a");
    /// # let claims = verifier.verify(token.expose_secret(), SystemTime::now()).unwrap();
    /// # assert!(!is_valid(&StatusCache::new(verifier, 16), &claims));
    /// ```
    pub fn status(&self, claims: &Claims, now: SystemTime) -> TokenStatus {
        let Some(entry) = claims.status() else {
            return TokenStatus::Unlisted;
        };
        let stale = || TokenStatus::Stale {
            uri: entry.uri.to_owned(),
        };
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = held.get(entry.uri) else {
            return stale();
        };
        let is_stale = known.stale <= NumericDate::from(now);
        match known.list.get(entry.index) {
            Some(1) => TokenStatus::Invalid,
            _ if is_stale => stale(),
            Some(0) if known.iss.as_deref() == claims.iss() => TokenStatus::Valid,
            _ => TokenStatus::Invalid,
        }
    }
}
