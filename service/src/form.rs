// SPDX-License-Identifier: MIT OR Apache-2.0

//! Parameters of a request, in a query or a body of the type `application/x-www-form-urlencoded`.

use std::borrow::Cow;

/// Parameters.
#[derive(Default)]
pub struct Form<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

/// The reason why parameters were rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// A parameter is repeated (RFC 6749 section 3.2).
    #[error("{}", self.text())]
    Repeated,
    /// The bytes are not UTF-8.
    #[error("{}", self.text())]
    NotUtf8,
    /// The number of parameters exceeds [`MAX_PARAMETERS`].
    #[error("{}", self.text())]
    TooMany,
}

impl FormError {
    /// Returns the error message.
    pub fn text(self) -> &'static str {
        match self {
            Self::Repeated => "a parameter is repeated",
            Self::NotUtf8 => "the parameters are not UTF-8",
            Self::TooMany => "there are more than 64 parameters",
        }
    }
}

/// The maximum number of parameters.
pub const MAX_PARAMETERS: usize = 64;

impl<'a> Form<'a> {
    /// Parses parameters.
    ///
    /// # Errors
    /// [`FormError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormError> {
        Self::parse_with(bytes, &[])
    }

    /// Parses parameters. Those in `repeatable` may be repeated.
    ///
    /// # Errors
    /// [`FormError`].
    pub fn parse_with(bytes: &'a [u8], repeatable: &[&str]) -> Result<Self, FormError> {
        if std::str::from_utf8(bytes).is_err() {
            return Err(FormError::NotUtf8);
        }
        let mut all: Vec<(Cow<str>, Cow<str>)> = Vec::new();
        for (name, value) in form_urlencoded::parse(bytes) {
            // The parser replaces bytes that are not UTF-8 by this character.
            if name.contains('\u{fffd}') || value.contains('\u{fffd}') {
                return Err(FormError::NotUtf8);
            }
            if all.iter().any(|(known, _)| *known == name) && !repeatable.contains(&&*name) {
                return Err(FormError::Repeated);
            }
            if all.len() == MAX_PARAMETERS {
                return Err(FormError::TooMany);
            }
            all.push((name, value));
        }
        Ok(Self(all))
    }

    /// Returns the value of a parameter. An empty parameter counts as absent (RFC 6749 section 3.1).
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value.as_ref())
    }

    /// Returns all values of a repeatable parameter.
    pub fn all<'b>(&'b self, name: &'b str) -> impl Iterator<Item = &'b str> {
        let found = self
            .0
            .iter()
            .filter(move |(known, value)| known == name && !value.is_empty());
        found.map(|(_, value)| value.as_ref())
    }

    /// Returns all parameters that are not empty.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.0.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
        pairs.filter(|(_, value)| !value.is_empty())
    }

    /// Returns the names of all parameters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters() {
        let form = Form::parse(b"token=a%2Bb+c&empty=&token_type_hint=access_token").unwrap();
        assert_eq!(
            (form.get("token"), form.get("empty"), form.get("other")),
            (Some("a+b c"), None, None)
        );
        assert_eq!(form.names().collect::<Vec<_>>(), ["token", "empty", "token_type_hint"]);
        let error = |bytes: &[u8]| Form::parse(bytes).err();
        assert_eq!(error(b"token=a&token=a"), Some(FormError::Repeated));
        assert_eq!(error(b"token=&tok%65n=a"), Some(FormError::Repeated));
        let form = Form::parse_with(b"audience=a&audience=b&audience=", &["audience"]).unwrap();
        assert_eq!(form.all("audience").collect::<Vec<_>>(), ["a", "b"]);
        assert!(Form::parse_with(b"audience=a&token=b&token=b", &["audience"]).is_err());
        assert_eq!(error(b"token=%ff"), Some(FormError::NotUtf8));
        assert_eq!(error(b"token=\xff"), Some(FormError::NotUtf8));
        let many: Vec<String> = (0..=MAX_PARAMETERS).map(|n| format!("p{n}=")).collect();
        assert_eq!(error(many.join("&").as_bytes()), Some(FormError::TooMany));
    }
}
