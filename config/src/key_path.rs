//! Paths of keys.

use std::fmt;

/// The path of keys, which may contain `~`, `$VAR` and `${VAR}`. They are expanded when the file is read; the result
/// must be absolute.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyPath(String);

impl KeyPath {
    /// Parses a path.
    ///
    /// # Errors
    /// Returns what the path must be.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.starts_with(['/', '~', '$']) && !text.contains('\0') {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be an absolute path, or begin with ~ or an environment variable")
        }
    }

    /// Returns the path, not expanded.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
