// SPDX-License-Identifier: MIT OR Apache-2.0

//! The variables of one job: a map of environment variable names to secret values.

use std::collections::BTreeMap;

use secrecy::ExposeSecret;
pub use secrecy::SecretString as Secret;

/// A map of environment variable names to secret values. Every name is one that an environment can carry.
#[derive(Debug, Default, Clone)]
pub struct Variables(BTreeMap<String, Secret>);

impl Variables {
    /// Creates an empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a variable. A later value replaces an earlier one.
    ///
    /// # Errors
    /// [`NameError`] if an environment cannot carry `name`, or if the value contains a NUL.
    pub fn insert(&mut self, name: &str, value: Secret) -> Result<(), NameError> {
        // Other services choose names such as DW_JOB_my-files. They need not be valid in a shell.
        if name.is_empty() || name.len() > NAME_MAX || name.contains(|c: char| c == '=' || c.is_control()) {
            return Err(NameError::Impossible(name.escape_default().to_string()));
        }
        if value.expose_secret().contains('\0') {
            return Err(NameError::Nul(name.to_owned()));
        }
        self.0.insert(name.to_owned(), value);
        Ok(())
    }

    /// Adds all variables of another map. Its values replace existing ones.
    pub fn extend(&mut self, other: Variables) {
        self.0.extend(other.0);
    }

    /// Returns the names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Returns the number of variables.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the map is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The reason why a variable was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is invalid by POSIX.1-2017, section 8.1.
    #[error("`{0}` is not the name of an environment variable: use letters, digits and `_`, not starting with a digit")]
    Name(String),
    /// An environment cannot carry the name.
    #[error("`{0}` cannot be the name of an environment variable")]
    Impossible(String),
    /// The value contains a NUL, which an environment cannot carry.
    #[error("the value for {0} contains a NUL character, which an environment cannot carry")]
    Nul(String),
}

/// The maximum length of a name, in bytes.
const NAME_MAX: usize = 255;

/// Checks a configured name of an environment variable (POSIX.1-2017, section 8.1).
///
/// # Errors
/// [`NameError::Name`] if the name is invalid.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let mut bytes = name.bytes();
    let valid = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.len() <= NAME_MAX;
    if valid {
        Ok(())
    } else {
        Err(NameError::Name(name.escape_default().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_an_environment_cannot_carry_are_refused() {
        for bad in ["", "1A", "A=B", "A B", "A\0", "É", &"A".repeat(256)] {
            assert!(check_name(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["A", "_", "DW_WORKFLOW_TOKEN", "a9"] {
            check_name(good).unwrap();
        }
    }

    #[test]
    fn names_that_no_shell_can_write_are_accepted() {
        let insert = |name: &str| Variables::new().insert(name, Secret::from("x".to_owned()));
        for good in ["DW_JOB_my-files", "1A", "A.B", "É"] {
            insert(good).unwrap();
        }
        for bad in ["", "A=B", "A\0", "A\nB", &"A".repeat(256)] {
            assert!(insert(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn values_do_not_print() {
        let mut variables = Variables::new();
        variables.insert("T", Secret::from("canary-value".to_owned())).unwrap();
        assert!(!format!("{variables:?}").contains("canary"));
    }
}
