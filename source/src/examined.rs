//! What an operator is told of a source before a job needs it.

use crate::http::SourceError;

/// What was looked at, and how it is; where something is to be done, what.
#[derive(Debug)]
pub enum Examined {
    /// As it should be.
    Good(String),
    /// It works, and is not as it should be.
    Unwise {
        /// What is so.
        what: String,
        /// What to do about it.
        todo: String,
    },
    /// No job gets its token.
    Bad {
        /// What is so.
        what: String,
        /// What to do about it.
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

    /// The error of a server.
    pub(crate) fn failed(server: &str, error: &SourceError) -> Self {
        let what = match server {
            "" => error.cause().to_owned(),
            server => format!("{server}: {}", error.cause()),
        };
        Self::bad(what, error.remedy())
    }

    /// The same from a result, with what is good.
    pub(crate) fn of<T>(result: Result<T, SourceError>, server: &str, good: impl FnOnce(T) -> String) -> Self {
        match result {
            Ok(value) => Self::Good(good(value)),
            Err(error) => Self::failed(server, &error),
        }
    }
}
