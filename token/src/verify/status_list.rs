// SPDX-License-Identifier: MIT OR Apache-2.0

//! Verification of Status List Tokens (draft-ietf-oauth-status-list-20 sections 5.1 and 8.3).

use std::time::{Duration, SystemTime};

use serde::de::MapAccess;

use super::header::Header;
use super::{Buffer, Parts, Shown, Verifier, VerifyError, is_type};
use crate::json::{self, Members, ObjectOr, Skipped, Value};
use crate::jws;
use crate::malformed::{Malformed, Segment};
use crate::status_list::TYPE;
use crate::times::Times;
use crate::{NumericDate, StatusList, StatusListError};

/// The longest Status List Token that is looked at, in bytes: one of a million entries has 233 KB, and with eight bits for each,
/// 1.9 MB.
pub const MAX_STATUS_TOKEN: usize = 2 << 20;

/// A Status List Token that was verified.
#[derive(Clone, Debug, PartialEq)]
pub struct VerifiedStatusList {
    /// `iss`: who issued it.
    pub iss: Option<String>,
    /// `sub`: the URI of the list.
    pub uri: String,
    /// `iat`: when it was issued.
    pub iat: NumericDate,
    /// `exp`: from when on it is of no use.
    pub exp: NumericDate,
    /// `ttl`: for how long it is used before a later one should be fetched.
    pub ttl: Duration,
    /// The list.
    pub list: StatusList,
}

impl Verifier {
    /// Verifies a Status List Token at the time `now`. The issuer, keys and leeway are those of other tokens; audiences and types
    /// are not.
    ///
    /// `sub`, `iat`, `exp` and `ttl` must be there. One that was issued in the future is refused: later ones would seem older.
    ///
    /// ```
    /// use std::time::SystemTime;
    /// use token::{KeySet, Verifier};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// // The example of section 5.1.
    /// let keys = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"12","alg":"ES256",
    ///     "x":"I3HWm_0Ds1dPMI-IWmf4mBmH-YaeAVbPVu7vB27CxXo","y":"6N_d5Elj9bs1htgV3okJKIdbHEpkgTmAluYKJemzn1M"}]}"#;
    /// let token = "eyJhbGciOiJFUzI1NiIsImtpZCI6IjEyIiwidHlwIjoic3RhdHVzbGlzdCtqd3QifQ.eyJleHAiOjIyOTE3MjAxNzAsImlhdCI6MTY4Njky\
    ///     MDE3MCwiaXNzIjoiaHR0cHM6Ly9leGFtcGxlLmNvbSIsInN0YXR1c19saXN0Ijp7ImJpdHMiOjEsImxzdCI6ImVOcmJ1UmdBQWhjQlhRIn0sInN1YiI6Imh\
    ///     0dHBzOi8vZXhhbXBsZS5jb20vc3RhdHVzbGlzdHMvMSIsInR0bCI6NDMyMDB9.2lKUUNG503R9htu4aHAYi7vjmr3sgApbfoDvPrl65N3URUO1EYqqQl45\
    ///     Jfzd-Av4QzlKa3oVALpLwOEUOq-U_g";
    /// let verifier = Verifier::new(KeySet::from_jwks(keys.as_bytes())?.0).issuer("https://example.com");
    /// let verified = verifier.verify_status_list(token, SystemTime::now())?;
    /// assert_eq!(verified.uri, "https://example.com/statuslists/1");
    /// assert_eq!((verified.list.get(0), verified.list.get(1)), (Some(1), Some(0)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`VerifyError`]. With [`VerifyError::UnknownKid`] it may be worth reading the keys again.
    pub fn verify_status_list(&self, token: &str, now: SystemTime) -> Result<VerifiedStatusList, VerifyError> {
        if token.len() > MAX_STATUS_TOKEN {
            return Err(StatusListError::TooLong.into());
        }
        let parts = Parts::of_segments(token, jws::split_any(token)?)?;
        if parts.payload.is_empty() {
            return Err(Malformed::EmptySegment(Segment::Claims).into());
        }
        let mut buffer = Buffer::default();
        let header = Header::read(buffer.decode(parts.header)?)?;
        let typ = header.typ.as_deref().unwrap_or("none");
        if !is_type(typ, TYPE) {
            return Err(VerifyError::WrongType(Shown::new(typ)));
        }
        let payload = parts.verified_payload(&header, &self.keys)?;
        let claims: Claims = jws::members(jws::object_text(&payload, Segment::Claims)?, Segment::Claims)?;
        self.check_list(claims, now)
    }

    fn check_list(&self, claims: Claims, now: SystemTime) -> Result<VerifiedStatusList, VerifyError> {
        let iss = claims.iss.map(|iss| text("iss", Some(iss))).transpose()?;
        let exp = claims.times.exp()?.ok_or(VerifyError::Missing("exp"))?;
        let iat = claims.times.iat()?.ok_or(VerifyError::Missing("iat"))?;
        self.rules.check_issuer(iss.as_deref())?;
        self.rules.check_times(exp, claims.times.nbf()?, now)?;
        self.rules.check_times(exp, Some(iat), now)?;
        let ttl = match claims.ttl {
            Some(Value::Number(seconds)) if seconds > 0.0 => Duration::try_from_secs_f64(seconds).ok(),
            None => return Err(VerifyError::Missing("ttl")),
            _ => None,
        };
        let list = claims.status_list.ok_or(VerifyError::Missing("status_list"))?;
        let invalid = VerifyError::InvalidClaim("status_list");
        let bits = match list.as_ref().and_then(|list| list.bits.as_ref()) {
            Some(Value::Number(bits)) if bits.fract() == 0.0 && (0.0..256.0).contains(bits) => *bits as u8,
            _ => return Err(invalid),
        };
        let Some(Value::Text(lst)) = list.and_then(|list| list.lst) else {
            return Err(invalid);
        };
        Ok(VerifiedStatusList {
            iss,
            uri: text("sub", claims.sub)?,
            iat,
            exp,
            ttl: ttl.ok_or(VerifyError::InvalidClaim("ttl"))?,
            list: StatusList::from_lst(bits, &lst)?,
        })
    }

    pub(crate) fn accepted_leeway(&self) -> Duration {
        self.rules.leeway
    }
}

/// A claim that must be there.
fn text(name: &'static str, value: Option<Value>) -> Result<String, VerifyError> {
    match value {
        Some(Value::Text(text)) if !text.is_empty() => Ok(text.into_owned()),
        Some(_) => Err(VerifyError::InvalidClaim(name)),
        None => Err(VerifyError::Missing(name)),
    }
}

#[derive(Default)]
struct Claims<'a> {
    times: Times<'a>,
    iss: Option<Value<'a>>,
    sub: Option<Value<'a>>,
    ttl: Option<Value<'a>>,
    status_list: Option<Option<List<'a>>>,
}

impl<'de> Members<'de> for Claims<'de> {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "iss" => json::value(map, &mut self.iss),
            "sub" => json::value(map, &mut self.sub),
            "ttl" => json::value(map, &mut self.ttl),
            "status_list" => {
                let ObjectOr(list) = map.next_value()?;
                self.status_list = Some(list);
                Ok(true)
            }
            name => self.times.take(name, map),
        }
    }
}

#[derive(Default)]
struct List<'a> {
    bits: Option<Value<'a>>,
    lst: Option<Value<'a>>,
}

impl<'de> Members<'de> for List<'de> {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "bits" => json::value(map, &mut self.bits),
            "lst" => json::value(map, &mut self.lst),
            _ => Ok(false),
        }
    }
}
