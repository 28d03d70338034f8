// SPDX-License-Identifier: MIT OR Apache-2.0

//! Findings of checks.

/// The result of a check.
pub struct Finding {
    pub status: FindingStatus,
    /// The subject, in a word or two.
    pub check: &'static str,
    /// The fact.
    pub what: String,
    /// The next step; empty if none is needed.
    pub todo: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FindingStatus {
    Ok,
    Warn,
    Fail,
    Skip,
}

impl FindingStatus {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

pub fn ok(check: &'static str, what: impl Into<String>) -> Finding {
    Finding {
        status: FindingStatus::Ok,
        check,
        what: what.into(),
        todo: String::new(),
    }
}

pub fn warn(check: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Finding {
    Finding {
        status: FindingStatus::Warn,
        check,
        what: what.into(),
        todo: todo.into(),
    }
}

pub fn fail(check: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Finding {
    Finding {
        status: FindingStatus::Fail,
        check,
        what: what.into(),
        todo: todo.into(),
    }
}

pub fn skip(check: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Finding {
    Finding {
        status: FindingStatus::Skip,
        check,
        what: what.into(),
        todo: todo.into(),
    }
}
