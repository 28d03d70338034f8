//! The time at which the tokens of a job are fetched again.

use std::time::SystemTime;

use config::Rule;
use seal::{ExposeSecret, OnExpiry, Renewal, Variables};
use token::NumericDate;

/// The part of the time until a renewal by which it may come earlier, so that jobs that started together do not renew
/// together.
const JITTER: f64 = 0.1;

/// What the tokens of one record say of its renewal.
pub(crate) struct Renewals(Renewal);

impl Renewals {
    /// Returns those of a record without tokens.
    pub fn of(generation: u32) -> Self {
        Self(Renewal {
            generation,
            ..Renewal::default()
        })
    }

    /// Adds the token of a rule. The record is renewed when the first of its tokens is due.
    pub fn add(&mut self, rule: &Rule, variables: &Variables) {
        let Self(renewal) = self;
        let Some((_, value)) = variables.iter().find(|(name, _)| *name == rule.variable) else {
            return;
        };
        let now = SystemTime::now();
        renewal.files.push(rule.variable.clone());
        if rule.renewal.bearer_token_file {
            renewal.bearer.get_or_insert_with(|| rule.variable.clone());
        }
        renewal.signal = renewal.signal.or(rule.renewal.signal);
        renewal.on_expiry = severest(renewal.on_expiry, rule.renewal.on_expiry);
        // An opaque secret may be a JWT nevertheless.
        let shape = token::check_shape(value.expose_secret(), now).ok();
        let Some(expires) = shape.and_then(|shape| shape.expires) else {
            return;
        };
        let (now, expires) = (NumericDate::from(now).seconds(), expires.seconds());
        renewal.expires_at = earliest(renewal.expires_at, expires);
        if let Some(after) = rule.renewal.after {
            let due = now + (expires - now) * after * (1.0 - JITTER * fastrand::f64());
            renewal.renew_at = earliest(renewal.renew_at, due);
        }
    }

    /// Returns it for the record.
    pub fn into_renewal(self) -> Renewal {
        self.0
    }
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
