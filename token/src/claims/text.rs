// SPDX-License-Identifier: MIT OR Apache-2.0

//! Strings of claims, kept as places in the payload.

use std::borrow::Cow;
use std::ops::Range;

use crate::VerifyError;
use crate::json::{self, Value};

/// A string of the payload: where it is, or what it is where it was written with escapes.
#[derive(Clone)]
pub(super) enum Text {
    At(Range<usize>),
    Unescaped(Box<str>),
}

impl Text {
    pub(super) fn new(text: Cow<str>, payload: &str) -> Self {
        match text {
            Cow::Borrowed(text) => match json::place(text, payload) {
                Some(range) => Self::At(range),
                None => Self::Unescaped(text.into()),
            },
            Cow::Owned(text) => Self::Unescaped(text.into()),
        }
    }

    pub(super) fn of<'a>(&'a self, payload: &'a str) -> &'a str {
        match self {
            Self::At(range) => &payload[range.clone()],
            Self::Unescaped(text) => text,
        }
    }
}

/// A string, or an array of them, as `aud` is.
#[derive(Clone)]
pub(super) enum Texts {
    None,
    One(Text),
    Several(Vec<Text>),
}

impl Texts {
    pub(super) fn iter<'a>(&'a self, payload: &'a str) -> impl Iterator<Item = &'a str> {
        let texts = match self {
            Self::None => &[],
            Self::One(text) => std::slice::from_ref(text),
            Self::Several(texts) => texts.as_slice(),
        };
        texts.iter().map(|text| text.of(payload))
    }
}

/// At least one string.
pub(super) fn texts(claim: &'static str, value: Option<Value>, payload: &str) -> Result<Texts, VerifyError> {
    let invalid = VerifyError::InvalidClaim(claim);
    match value {
        None => Err(VerifyError::Missing(claim)),
        Some(Value::Text(text)) => Ok(Texts::One(Text::new(text, payload))),
        Some(Value::List(list)) => {
            let texts: Option<Vec<_>> = list
                .into_iter()
                .map(|value| match value {
                    Value::Text(text) => Some(Text::new(text, payload)),
                    _ => None,
                })
                .collect();
            let mut texts = texts.ok_or(invalid.clone())?;
            match (texts.pop(), texts.is_empty()) {
                (None, _) => Err(invalid),
                (Some(only), true) => Ok(Texts::One(only)),
                (Some(last), false) => {
                    texts.push(last);
                    Ok(Texts::Several(texts))
                }
            }
        }
        Some(_) => Err(invalid),
    }
}
