// SPDX-License-Identifier: MIT OR Apache-2.0

use serde::de::MapAccess;

use crate::NumericDate;
use crate::json::{self, Value};
use crate::malformed::Malformed;

/// The claims that are times (RFC 7519 section 4.1), as they are in the JSON.
#[derive(Default)]
pub(crate) struct Times<'a> {
    exp: Option<Value<'a>>,
    nbf: Option<Value<'a>>,
    iat: Option<Value<'a>>,
}

impl<'de> Times<'de> {
    /// As [`Members::take`](json::Members::take).
    pub(crate) fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "exp" => json::value(map, &mut self.exp),
            "nbf" => json::value(map, &mut self.nbf),
            "iat" => json::value(map, &mut self.iat),
            _ => Ok(false),
        }
    }

    pub(crate) fn exp(&self) -> Result<Option<NumericDate>, Malformed> {
        date("exp", self.exp.as_ref())
    }

    pub(crate) fn nbf(&self) -> Result<Option<NumericDate>, Malformed> {
        date("nbf", self.nbf.as_ref())
    }

    pub(crate) fn iat(&self) -> Result<Option<NumericDate>, Malformed> {
        date("iat", self.iat.as_ref())
    }
}

fn date(claim: &'static str, value: Option<&Value>) -> Result<Option<NumericDate>, Malformed> {
    match value {
        None => Ok(None),
        // Without arbitrary_precision, serde_json refuses one that is infinite.
        Some(Value::Number(seconds)) if seconds.is_finite() => Ok(Some(NumericDate::from_seconds(*seconds))),
        Some(_) => Err(Malformed::NotNumber(claim)),
    }
}
