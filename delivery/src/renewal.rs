// SPDX-License-Identifier: MIT OR Apache-2.0

//! The time at which the tokens of a job are renewed.

use std::time::SystemTime;

use config::Rule;
use seal::{ExposeSecret, OnExpiry, Renewal, Variables};
use token::NumericDate;

/// The largest random reduction of the time until a renewal, as a fraction, so that jobs that started together do not
/// renew together.
const JITTER: f64 = 0.1;

/// The shortest time until a renewal, in seconds: a user may request a short lifetime, and a token may have expired
/// already.
const SHORTEST: f64 = 1.0;

/// The renewal of one record, as its tokens require it.
pub(crate) struct Renewals(Renewal);

impl Renewals {
    /// Returns the renewal of a record without tokens.
    pub fn of(generation: u32) -> Self {
        Self(Renewal {
            generation,
            ..Renewal::default()
        })
    }

    /// Adds the token of a rule. `stated` is the expiry that its source states. The record is renewed when the first of
    /// its tokens is due.
    pub fn add(&mut self, rule: &Rule, variables: &Variables, stated: Option<SystemTime>) {
        let Self(renewal) = self;
        if !variables.names().any(|name| name == rule.variable) {
            return;
        }
        let now = SystemTime::now();
        renewal.files.push(rule.variable.clone());
        if rule.renewal.bearer_token_file {
            renewal.bearer.get_or_insert_with(|| rule.variable.clone());
        }
        renewal.signal = renewal.signal.or(rule.renewal.signal);
        renewal.on_expiry = severest(renewal.on_expiry, rule.renewal.on_expiry);
        let Some(expires) = expiry(rule, variables, stated, now) else {
            return;
        };
        let now = NumericDate::from(now).seconds();
        renewal.expires_at = earliest(renewal.expires_at, expires);
        if let Some(after) = rule.renewal.after {
            let due = now + (expires - now) * after * (1.0 - JITTER * fastrand::f64());
            renewal.renew_at = earliest(renewal.renew_at, due.max(now + SHORTEST));
        }
    }

    /// Returns the renewal for the record.
    pub fn into_renewal(self) -> Renewal {
        self.0
    }
}

/// Returns the expiry of a rule's token, in seconds since 1970-01-01T00:00:00Z: the earlier of its claim `exp` and
/// `stated`; none if both are missing.
pub(crate) fn expiry(rule: &Rule, variables: &Variables, stated: Option<SystemTime>, now: SystemTime) -> Option<f64> {
    let (_, value) = variables.iter().find(|(name, _)| *name == rule.variable)?;
    // An opaque secret may be a JWT nevertheless.
    let shape = token::check_shape(value.expose_secret(), now).ok();
    let own = shape.and_then(|shape| shape.expires).map(NumericDate::seconds);
    let stated = stated.map(|stated| NumericDate::from(stated).seconds());
    own.into_iter().chain(stated).reduce(f64::min)
}

fn earliest(one: Option<f64>, other: f64) -> Option<f64> {
    Some(one.map_or(other, |one| one.min(other)))
}

fn severest(one: OnExpiry, other: OnExpiry) -> OnExpiry {
    match (one, other) {
        (OnExpiry::Exception, _) | (_, OnExpiry::Exception) => OnExpiry::Exception,
        (OnExpiry::Signal, _) | (_, OnExpiry::Signal) => OnExpiry::Signal,
        (OnExpiry::Warn, OnExpiry::Warn) => OnExpiry::Warn,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use seal::Secret;
    use serde_json::json;
    use token::SigningKey;

    use super::*;

    /// Returns the seconds until the token expires and until it is renewed.
    fn renewal(token: &str, stated: Option<u64>) -> Option<(i64, i64)> {
        let table =
            json!({"workflow-token": {"rule": [{"source": "file", "path": "/t", "check": "none", "renew": 0.5}]}});
        let rule = &config::Config::from_json(&table).unwrap().rules[0];
        let mut variables = Variables::new();
        variables.insert(&rule.variable, Secret::from(token)).unwrap();
        let now = SystemTime::now();
        let mut renewals = Renewals::of(0);
        renewals.add(
            rule,
            &variables,
            stated.map(|seconds| now + Duration::from_secs(seconds)),
        );
        let renewal = renewals.into_renewal();
        let after = |at: f64| (at - NumericDate::from(now).seconds()).round() as i64;
        Some((after(renewal.expires_at?), after(renewal.renew_at?)))
    }

    #[test]
    fn a_token_is_renewed_before_the_earlier_end_of_its_own_and_that_of_its_source() {
        let jwt = |seconds: u64| {
            let exp = NumericDate::from(SystemTime::now()).seconds() + seconds as f64;
            let key = SigningKey::from_secret(b"known to everyone, and used for this only").unwrap();
            let jwt = key.sign(&[("typ", "JWT")], json!({ "exp": exp }).to_string().as_bytes());
            jwt.expose_secret().to_owned()
        };
        for (token, stated, expires) in [
            ("opaque".to_owned(), None, None),
            ("opaque".to_owned(), Some(1000), Some(1000)),
            (jwt(2000), None, Some(2000)),
            (jwt(2000), Some(1000), Some(1000)),
            (jwt(2000), Some(3000), Some(2000)),
        ] {
            let renewal = renewal(&token, stated);
            assert_eq!(renewal.map(|(expires, _)| expires), expires, "{token} {stated:?}");
            if let Some((expires, due)) = renewal {
                assert!((expires * 45 / 100..=expires / 2).contains(&due), "{due} of {expires}");
            }
        }
    }
}
