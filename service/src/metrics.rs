// SPDX-License-Identifier: MIT OR Apache-2.0

//! Metrics, in the format of OpenMetrics.

use std::{fmt::Write, sync::atomic::AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::refused::Refused;

/// Counters of the service.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    decisions: Family<DecisionLabels, Counter>,
    legacy: Counter,
    connections: Gauge,
    agent: Gauge<i64>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    code: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DecisionLabels {
    result: Decision,
}

/// A decision about the token of a request.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Decision {
    /// The token was valid.
    Granted,
    /// The request contained no token.
    Missing,
    /// The token was not valid, or malformed.
    Invalid,
    /// The token was for another service or project, or lacked a scope.
    Forbidden,
    /// The agent could not report the validity of the token.
    Unknown,
    /// The demand of the proxy was missing or malformed.
    Misconfigured,
}

impl Decision {
    /// Returns the decision for a result.
    pub fn of<T>(result: &Result<T, Refused>) -> Self {
        match result {
            Ok(_) => Self::Granted,
            Err(Refused::Missing) => Self::Missing,
            Err(Refused::Malformed | Refused::Invalid(_)) => Self::Invalid,
            Err(Refused::OtherAudience | Refused::Scope(_) | Refused::OtherProject) => Self::Forbidden,
            Err(Refused::Unknown(_)) => Self::Unknown,
        }
    }
}

impl EncodeLabelValue for Decision {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::Granted => "granted",
            Self::Missing => "missing",
            Self::Invalid => "invalid",
            Self::Forbidden => "forbidden",
            Self::Unknown => "unknown",
            Self::Misconfigured => "misconfigured",
        })
    }
}

impl Metrics {
    /// Returns all metrics, as text.
    ///
    /// # Errors
    /// The metrics cannot be formatted.
    pub fn text(&self, is_agent_connected: bool) -> Result<String, std::fmt::Error> {
        self.agent.set(is_agent_connected.into());
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// Returns counters with the value 0.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("workflow_tokend");
        let requests = Family::default();
        let decisions = Family::default();
        let legacy = Counter::<u64, AtomicU64>::default();
        let connections = Gauge::default();
        let agent = Gauge::default();
        registry.register("requests", "Requests, by route and status code", requests.clone());
        registry.register("decisions", "Decisions about tokens", decisions.clone());
        registry.register("legacy_requests", "Tokens in the header of old clients", legacy.clone());
        registry.register("connections", "Open connections", connections.clone());
        registry.register("agent_connected", "1 while the agent is connected", agent.clone());
        Self {
            registry,
            requests,
            decisions,
            legacy,
            connections,
            agent,
        }
    }

    /// Counts a request.
    pub fn requested(&self, route: &'static str, code: u16) {
        self.requests.get_or_create(&RequestLabels { route, code }).inc();
    }

    /// Counts a decision.
    pub fn decided(&self, result: Decision) {
        self.decisions.get_or_create(&DecisionLabels { result }).inc();
    }

    /// Counts a token in the header of old clients.
    pub fn legacy(&self) {
        self.legacy.inc();
    }

    /// Counts a connection as open until the returned value is dropped.
    pub fn connected(&self) -> Connected {
        self.connections.inc();
        Connected(self.connections.clone())
    }
}

/// An open connection.
pub struct Connected(Gauge);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.dec();
    }
}
