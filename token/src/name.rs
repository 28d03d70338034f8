// SPDX-License-Identifier: MIT OR Apache-2.0

use std::fmt;
use std::str::FromStr;

/// The name of a workspace or project: `[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?`, as labels of the domain name system are
/// (RFC 1123 section 2.1), so that it has no `/` and can be part of a path, URL, or name in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

impl Name {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 63;

    /// The name as text.
    ///
    /// ```
    /// use token::{Name, NameError};
    ///
    /// let name: Name = "hydro".parse()?;
    /// assert_eq!(name.as_str(), "hydro");
    /// assert_eq!("Hydro/3D".parse::<Name>(), Err(NameError));
    /// # Ok::<(), NameError>(())
    /// ```
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_valid(name: &str) -> bool {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        name.len() <= Self::MAX_LEN
            && name.bytes().all(inner)
            && !name.starts_with('-')
            && !name.ends_with('-')
            && !name.is_empty()
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        if Self::is_valid(name) {
            Ok(Self(name.into()))
        } else {
            Err(NameError)
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        name.parse()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// A text is not a [`Name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a name of a workspace or project: use at most {max} lower-case letters, digits and `-`, with no `-` at either end",
    max = Name::MAX_LEN
)]
pub struct NameError;

/// The name of a session, which is a job: its id in F58, with the prefix `f` of ASCII (RFC 19 of Flux).
///
/// It is up to 63 letters, digits, `-`, `_` and `.`, of which the first is a letter or digit, so that it has no `/`
/// either. The prefix `ƒ` is read as `f`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(Box<str>);

impl Session {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 63;

    /// The name as text.
    ///
    /// ```
    /// use token::{Session, SessionError};
    ///
    /// let session: Session = "ƒ4dVSvb".parse()?;
    /// assert_eq!(session.as_str(), "f4dVSvb");
    /// # Ok::<(), SessionError>(())
    /// ```
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_valid(name: &str) -> bool {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        name.len() <= Self::MAX_LEN && name.bytes().all(inner) && name.starts_with(|c: char| c.is_ascii_alphanumeric())
    }
}

impl FromStr for Session {
    type Err = SessionError;

    fn from_str(name: &str) -> Result<Self, SessionError> {
        let ascii = match name.strip_prefix('ƒ') {
            Some(rest) => format!("f{rest}").into(),
            None => std::borrow::Cow::Borrowed(name),
        };
        if Self::is_valid(&ascii) {
            Ok(Self(ascii.into()))
        } else {
            Err(SessionError)
        }
    }
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text is not a [`Session`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a session: use the id of a job, as flux jobs prints it")]
pub struct SessionError;
