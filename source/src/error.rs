//! Errors of sources.

use std::fmt;

/// The reason why a source gave no variables. It has two readers: the user, who learns what kind of thing failed, and
/// the operator, who learns the cause. Neither text has a secret in it, and the detail, which goes to the log, is one
/// line of plain characters.
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

    /// For the user: what failed, with no path or other detail of the site.
    pub fn summary(&self) -> &str {
        &self.summary
    }
}

/// For the operator: what failed, where and why.
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
        let error = Error::new("its token file is not there", "/a/\u{1b}[2J\n\u{202e}é");
        assert_eq!(
            error.to_string(),
            "its token file is not there: /a/\\u{1b}[2J\\u{a}\\u{202e}é"
        );
    }
}
