// SPDX-License-Identifier: MIT OR Apache-2.0

//! Errors of sources.

use std::fmt;

/// The reason why a source returned no variables. The summary names the failed step for the user, and the detail states
/// the cause for the operator. Neither contains a secret. The detail, which is logged, is one line of plain characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    summary: String,
    detail: String,
}

impl Error {
    pub(crate) fn new(summary: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self {
            summary: summary.into(),
            detail: token::plain(&detail.to_string()).into_owned(),
        }
    }

    /// Returns the failed step for the user, without paths or other details of the site.
    pub fn summary(&self) -> &str {
        &self.summary
    }
}

/// Writes the summary and the detail, for the operator.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.summary, self.detail)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_the_log_is_one_line_of_plain_characters() {
        let error = Error::new("its token file does not exist", "/a/\u{1b}[2J\n\u{202e}é");
        assert_eq!(
            error.to_string(),
            "its token file does not exist: /a/\\u{1b}[2J\\u{a}\\u{202e}é"
        );
    }
}
