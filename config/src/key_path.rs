// SPDX-License-Identifier: MIT OR Apache-2.0

//! Paths of key files.

use std::fmt;

/// The path of a key file or directory. It may contain `~`, `$VAR` and `${VAR}`, which are expanded when the file is
/// read. The expanded path must be absolute.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyPath(String);

impl KeyPath {
    /// Parses a path.
    ///
    /// # Errors
    /// Returns a description of valid paths.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.starts_with(['/', '~', '$']) && !text.contains('\0') {
            Ok(Self(text.to_owned()))
        } else {
            Err("must be an absolute path, or begin with ~ or an environment variable")
        }
    }

    /// Returns the unexpanded path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
