// SPDX-License-Identifier: MIT OR Apache-2.0

//! The claim `status` of a token: its entry in a Status List (draft-ietf-oauth-status-list-20 section 6.2).

use std::borrow::Cow;

use serde::de::{Deserialize, Deserializer, MapAccess};

use crate::VerifyError;
use crate::json::{self, Members, ObjectOr, Skipped, Value};

/// The entry of a token in a Status List, as its claims name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusClaim<'a> {
    /// `idx`: the index.
    pub index: u32,
    /// `uri`: the list.
    pub uri: &'a str,
}

/// The entry of a token in a Status List, for the claims of a token that is issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusEntry {
    /// `idx`: the index.
    pub index: u32,
    /// `uri`: the list.
    pub uri: String,
}

/// The value of the claim; none if it is no object.
pub(crate) struct RawStatus<'a>(Option<Mechanisms<'a>>);

impl<'de> Deserialize<'de> for RawStatus<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ObjectOr(mechanisms) = ObjectOr::deserialize(deserializer)?;
        Ok(Self(mechanisms))
    }
}

impl<'a> RawStatus<'a> {
    /// Returns the index and the list; none if the status of the token is known in another way.
    pub(crate) fn entry(self) -> Result<Option<(u32, Cow<'a, str>)>, VerifyError> {
        match self.0 {
            Some(Mechanisms { status_list: None }) => Ok(None),
            Some(Mechanisms {
                status_list:
                    Some(Some(Reference {
                        idx: Some(Value::Number(index)),
                        uri: Some(Value::Text(uri)),
                    })),
            }) if index.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&index) && !uri.is_empty() => {
                Ok(Some((index as u32, uri)))
            }
            _ => Err(VerifyError::InvalidClaim("status")),
        }
    }
}

#[derive(Default)]
struct Mechanisms<'a> {
    status_list: Option<Option<Reference<'a>>>,
}

impl<'de> Members<'de> for Mechanisms<'de> {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        if name != "status_list" {
            return Ok(false);
        }
        let ObjectOr(reference) = map.next_value()?;
        self.status_list = Some(reference);
        Ok(true)
    }
}

#[derive(Default)]
struct Reference<'a> {
    idx: Option<Value<'a>>,
    uri: Option<Value<'a>>,
}

impl<'de> Members<'de> for Reference<'de> {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "idx" => json::value(map, &mut self.idx),
            "uri" => json::value(map, &mut self.uri),
            _ => Ok(false),
        }
    }
}
