// SPDX-License-Identifier: MIT OR Apache-2.0

//! The page of the operator: the agent's figures, as plots.

use askama::Template;
use axum::http::StatusCode;
use protocol::{DUE, Figures};

use super::{
    Frame, Page,
    plot::{Plot, Value},
    time::{Moment, span},
};

/// The page of the operator. It belongs to the listener of metrics, and contains no forms.
#[derive(Template)]
#[template(path = "operator.html")]
pub struct Operator {
    /// The common parts.
    pub frame: Frame,
    /// The time, in seconds since 1970-01-01T00:00:00Z.
    pub now: u64,
    /// The figures of the agent, or the reason why they are missing.
    pub figures: Result<Figures, String>,
}

impl Page for Operator {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn status(&self) -> StatusCode {
        match self.figures {
            Ok(_) => StatusCode::OK,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Operator {
    /// Returns a time, for the template.
    fn at(&self, at: &u64) -> Moment {
        Moment::new(*at, self.now)
    }

    /// Returns the plots.
    fn plots(&self, figures: &Figures) -> [Plot; 5] {
        [
            results(figures),
            sources(figures),
            latency(figures),
            due(figures),
            self.keys(figures),
        ]
    }

    fn keys(&self, figures: &Figures) -> Plot {
        let keys = figures.keys.iter().map(|key| {
            let age = key.since.map(|since| self.now.saturating_sub(since));
            let role = if key.is_active { "signs: " } else { "" };
            let text = age.map_or("unknown".to_owned(), span);
            Value {
                label: format!("{role}{}, of {}", key.kid, key.issuer),
                number: age.unwrap_or(0),
                brief: text.clone(),
                text,
                is_failure: false,
            }
        });
        Plot::bars("keys", "Age of the signing keys", ("Key", "Age"), keys.collect())
    }
}

fn results(figures: &Figures) -> Plot {
    let results = figures.results.iter().map(|result| {
        let is_failure = !matches!(result.name.as_str(), "delivered" | "no-rule");
        Value::count(&result.name, result.count).failed(is_failure)
    });
    Plot::bars(
        "results",
        "Deliveries by result",
        ("Result", "Deliveries"),
        results.collect(),
    )
}

fn sources(figures: &Figures) -> Plot {
    let sources = figures.sources.iter().flat_map(|source| {
        let failures = source.failures.iter();
        let failures = failures
            .map(|failure| Value::count(format!("{}: {}", source.name, failure.name), failure.count).failed(true));
        let fetched = Value::count(format!("{}: fetched", source.name), source.fetched);
        [fetched].into_iter().chain(failures)
    });
    Plot::bars(
        "sources",
        "Tokens and failures by source",
        ("Source", "Times"),
        sources.collect(),
    )
}

fn latency(figures: &Figures) -> Plot {
    let latency = figures.latency.iter().map(|bucket| {
        let label = bucket.within_ms.map(|ms| (ms as f64 / 1000.0).to_string());
        let label = label.unwrap_or("more".to_owned());
        Value::count(label, bucket.count)
    });
    Plot::columns(
        "latency",
        "Deliveries by the time that they took",
        ("Seconds at most", "Deliveries"),
        latency.collect(),
    )
}

fn due(figures: &Figures) -> Plot {
    let due = (1u64..).zip(&figures.due).map(|(end, count)| {
        let minutes = end * DUE.0 / 60;
        Value::count(format!("{minutes}"), *count)
    });
    Plot::columns(
        "due",
        "Renewals that are due in the next hour",
        ("Minutes from now, at most", "Renewals"),
        due.collect(),
    )
}
