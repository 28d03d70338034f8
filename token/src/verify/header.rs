// SPDX-License-Identifier: MIT OR Apache-2.0

use std::borrow::Cow;

use serde::de::MapAccess;

use super::VerifyError;
use super::error::Shown;
use crate::Algorithm;
use crate::json::{self, Members, Skipped, Value};
use crate::jws;
use crate::malformed::{Malformed, Segment};

/// What the header says, after all was refused that no token may say (RFC 7515 section 4, RFC 8725 section 3).
pub(super) struct Header<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<Cow<'a, str>>,
    pub(super) typ: Option<Cow<'a, str>>,
}

/// Members that carry a key, or tell where one is: whoever made the token chose it (RFC 8725 section 3.10).
const EMBEDDED: [&str; 4] = ["jwk", "jku", "x5u", "x5c"];

#[derive(Default)]
struct Raw<'a> {
    alg: Option<Value<'a>>,
    kid: Option<Value<'a>>,
    typ: Option<Value<'a>>,
    crit: Option<Value<'a>>,
    b64: Option<Value<'a>>,
    embedded: Option<&'static str>,
}

impl<'de> Members<'de> for Raw<'de> {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "alg" => json::value(map, &mut self.alg),
            "kid" => json::value(map, &mut self.kid),
            "typ" => json::value(map, &mut self.typ),
            "crit" => json::value(map, &mut self.crit),
            "b64" => json::value(map, &mut self.b64),
            name => {
                if let Some(name) = EMBEDDED.into_iter().find(|embedded| *embedded == name) {
                    self.embedded = Some(name);
                }
                Ok(false)
            }
        }
    }
}

impl<'a> Header<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        let raw: Raw = jws::members(jws::object_text(bytes, Segment::Header)?, Segment::Header)?;
        let alg = match raw.alg {
            Some(Value::Text(alg)) => alg,
            Some(_) => return Err(Malformed::AlgNotString.into()),
            None => return Err(Malformed::NoAlg.into()),
        };
        if jws::is_none(&alg) {
            return Err(VerifyError::Unsecured);
        }
        if let Some(name) = raw.embedded {
            return Err(VerifyError::EmbeddedKey(name));
        }
        if let Some(crit) = raw.crit {
            return Err(match crit {
                Value::List(names) => match names.into_iter().next() {
                    Some(Value::Text(name)) => VerifyError::Critical(Shown::new(&name)),
                    _ => VerifyError::HeaderMember("crit"),
                },
                _ => VerifyError::HeaderMember("crit"),
            });
        }
        if raw.b64.is_some() {
            return Err(VerifyError::Critical(Shown::new("b64")));
        }
        let algorithm = Algorithm::from_jose(&alg).ok_or_else(|| VerifyError::UnknownAlgorithm(Shown::new(&alg)))?;
        Ok(Self {
            algorithm,
            kid: text("kid", raw.kid)?,
            typ: text("typ", raw.typ)?,
        })
    }
}

fn text<'a>(name: &'static str, value: Option<Value<'a>>) -> Result<Option<Cow<'a, str>>, VerifyError> {
    match value {
        None => Ok(None),
        Some(Value::Text(text)) => Ok(Some(text)),
        Some(_) => Err(VerifyError::HeaderMember(name)),
    }
}
