// SPDX-License-Identifier: MIT OR Apache-2.0

//! Converts the bytes that a source has read into a value that an environment can carry.

use seal::Secret;
use zeroize::Zeroizing;

/// Linux's limit for one environment string including its name, `=` and NUL, in bytes (MAX_ARG_STRLEN, execve(2)).
const MAX_ARG_STRLEN: usize = 32 * 4096;

/// Returns the length of the longest value of the variable `name`, in bytes. With a longer one, no program would start.
pub fn max_value(name: &str) -> usize {
    MAX_ARG_STRLEN - name.len() - 2
}

/// The reason why a value was rejected. Messages never contain the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The value is empty or only a newline.
    #[error("it is empty")]
    Empty,
    /// The value is longer than an environment can carry.
    #[error("it is longer than {0} bytes, the limit for this environment variable")]
    TooLong(usize),
    /// The value is not UTF-8.
    #[error("it is not UTF-8 (at byte {0})")]
    NotUtf8(usize),
    /// The value contains a NUL.
    #[error("it contains a NUL character")]
    Nul,
    /// The value has more than one line.
    #[error("it has more than one line; only one trailing newline is allowed")]
    Newline,
}

/// Removes one trailing newline, and rejects a value that an environment cannot carry or that cannot be a token.
///
/// # Errors
/// [`ValueError`].
pub(crate) fn of_bytes(name: &str, bytes: Zeroizing<Vec<u8>>) -> Result<Secret, ValueError> {
    let mut value = bytes.as_slice();
    value = value.strip_suffix(b"\n").unwrap_or(value);
    value = value.strip_suffix(b"\r").unwrap_or(value);
    if value.is_empty() {
        return Err(ValueError::Empty);
    }
    if value.len() > max_value(name) {
        return Err(ValueError::TooLong(max_value(name)));
    }
    if value.contains(&0) {
        return Err(ValueError::Nul);
    }
    if value.contains(&b'\n') || value.contains(&b'\r') {
        return Err(ValueError::Newline);
    }
    let text = std::str::from_utf8(value).map_err(|e| ValueError::NotUtf8(e.valid_up_to()))?;
    Ok(Secret::from(text))
}

#[cfg(test)]
mod tests {
    use seal::ExposeSecret;

    use super::*;

    fn of(bytes: &[u8]) -> Result<String, ValueError> {
        of_bytes("DW_WORKFLOW_TOKEN", Zeroizing::new(bytes.to_vec())).map(|s| s.expose_secret().to_owned())
    }

    #[test]
    fn one_trailing_newline_is_trimmed() {
        for good in ["token", "token\n", "token\r\n"] {
            assert_eq!(of(good.as_bytes()).unwrap(), "token");
        }
    }

    #[test]
    fn what_an_environment_cannot_carry_is_refused() {
        let longest = max_value("DW_WORKFLOW_TOKEN");
        assert_eq!(of(&vec![b'x'; longest]).unwrap().len(), longest);
        assert_eq!(of(&vec![b'x'; longest + 1]), Err(ValueError::TooLong(longest)));
        assert_eq!(of(b""), Err(ValueError::Empty));
        assert_eq!(of(b"\n"), Err(ValueError::Empty));
        assert_eq!(of(b"to\0ken"), Err(ValueError::Nul));
        assert_eq!(of(b"to\nken\n"), Err(ValueError::Newline));
        assert_eq!(of(b"token\n\n"), Err(ValueError::Newline));
        assert_eq!(of(b"to\xffken"), Err(ValueError::NotUtf8(2)));
    }
}
