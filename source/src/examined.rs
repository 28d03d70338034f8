//! What an operator is told of a source before a job needs it.

use crate::http::Trouble;

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

    /// What went wrong with a server.
    pub(crate) fn trouble(server: &str, trouble: &Trouble) -> Self {
        let what = match server {
            "" => trouble.what().to_owned(),
            server => format!("{server}: {}", trouble.what()),
        };
        Self::bad(what, trouble.todo())
    }

    /// The same from a result, with what is good.
    pub(crate) fn of<T>(result: Result<T, Trouble>, server: &str, good: impl FnOnce(T) -> String) -> Self {
        match result {
            Ok(value) => Self::Good(good(value)),
            Err(trouble) => Self::trouble(server, &trouble),
        }
    }
}
