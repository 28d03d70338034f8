// SPDX-License-Identifier: MIT OR Apache-2.0

//! Findings about a source, for the operator, before a job uses it.

use crate::http::SourceError;

/// A finding, with the next step if one is needed.
#[derive(Debug)]
pub enum Examined {
    /// No problem.
    Good(String),
    /// It works, but is misconfigured.
    Unwise {
        /// The fact.
        what: String,
        /// The next step.
        todo: String,
    },
    /// No job gets its token.
    Bad {
        /// The fact.
        what: String,
        /// The next step.
        todo: String,
    },
}

impl Examined {
    pub(crate) fn bad(what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self::Bad {
            what: what.into(),
            todo: todo.into(),
        }
    }

    /// Returns the finding for the error of a server.
    pub(crate) fn failed(server: &str, error: &SourceError) -> Self {
        let what = match server {
            "" => error.cause().to_owned(),
            server => format!("{server}: {}", error.cause()),
        };
        Self::bad(what, error.remedy())
    }

    /// Returns the finding for a result. `good` describes a success.
    pub(crate) fn of<T>(result: Result<T, SourceError>, server: &str, good: impl FnOnce(T) -> String) -> Self {
        match result {
            Ok(value) => Self::Good(good(value)),
            Err(error) => Self::failed(server, &error),
        }
    }
}
