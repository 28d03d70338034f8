// SPDX-License-Identifier: MIT OR Apache-2.0

use std::time::{Duration, SystemTime};

use serde::de::MapAccess;

use crate::NumericDate;
use crate::json::{self, Members, Skipped, Value};
use crate::jws;
use crate::malformed::{Malformed, Segment};
use crate::times::Times;

/// The accepted distance of a token's `nbf` in the future: clocks of two machines never agree entirely
/// (RFC 7519 section 4.1.5 allows for it).
pub const LEEWAY: Duration = Duration::from_secs(60);

/// The times that a well-formed token states. None of them is verified.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Shape {
    /// `exp`: from when on the token is not accepted; `None` where it never expires.
    pub expires: Option<NumericDate>,
    /// `nbf`: before when the token is not accepted.
    pub not_before: Option<NumericDate>,
    /// `iat`: when the token was issued.
    pub issued_at: Option<NumericDate>,
}

/// Checks that `token` is a JWT that a service could accept at the time `now`, as far as one can tell without its key.
///
/// It is three segments of base64url without padding (RFC 7515 section 3.1), none empty and all together of at most
/// [`MAX_LEN`](crate::MAX_LEN) bytes; the header is a JSON object with a string `alg` other than `none`; the claims are
/// a JSON object, which is read as [`Verifier`](crate::Verifier) does, whole; `exp`, `nbf` and `iat` are numbers where they are there (RFC 7519 section 4.1); `exp` lies after
/// `now`, without leeway; `nbf` lies at most [`LEEWAY`] after `now`.
///
/// The signature is **not** verified: this catches a source that delivered the wrong thing, and no forger.
///
/// It runs for each job. It allocates the three decoded segments, which are zeroized, and no JSON tree.
///
/// ```
#[doc = include_str!("doc_example.txt")]
/// let shape = check_shape(token, now)?;
/// assert_eq!(shape.expires.map(|exp| exp.seconds()), Some(1_800_000_600.0));
/// let later = now + Duration::from_secs(600);
/// assert!(matches!(check_shape(token, later), Err(ShapeError::Expired { .. })));
/// # Ok::<(), ShapeError>(())
/// ```
///
/// # Errors
/// [`ShapeError`] tells what is wrong and what to do; it holds nothing of the token but its times. The caller adds which
/// job it was.
pub fn check_shape(token: &str, now: SystemTime) -> Result<Shape, ShapeError> {
    let [header, claims, signature] = jws::segments(token)?;
    jws::decode(Segment::Signature, signature)?;

    let bytes = jws::decode(Segment::Header, header)?;
    let header: Header = jws::members(jws::object_text(&bytes, Segment::Header)?, Segment::Header)?;
    match header.alg {
        Some(Value::Text(alg)) if jws::is_none(&alg) => return Err(ShapeError::Unsecured),
        Some(Value::Text(_)) => (),
        Some(_) => return Err(Malformed::AlgNotString.into()),
        None => return Err(Malformed::NoAlg.into()),
    }

    let bytes = jws::decode(Segment::Claims, claims)?;
    let Claims(times) = jws::members(jws::object_text(&bytes, Segment::Claims)?, Segment::Claims)?;
    let shape = Shape {
        expires: times.exp()?,
        not_before: times.nbf()?,
        issued_at: times.iat()?,
    };

    if let Some(at) = shape.expires.filter(|exp| *exp <= now.into()) {
        return Err(ShapeError::Expired { at, now });
    }
    let latest = NumericDate::from_seconds(NumericDate::from(now).seconds() + LEEWAY.as_secs_f64());
    if let Some(at) = shape.not_before.filter(|nbf| *nbf > latest) {
        return Err(ShapeError::NotYet { at, now });
    }
    Ok(shape)
}

/// The reason why a token is not delivered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// The text is not a JWT.
    #[error("{0}: see that the source prints one JWT and nothing else")]
    Malformed(#[from] Malformed),
    /// The header says `"alg":"none"`.
    #[error("the token is unsecured (\"alg\":\"none\"), which no service accepts: have its source sign it")]
    Unsecured,
    /// `exp` has passed.
    #[error("the token expired {}, at {at}: have its source issue a fresh one, and compare the clocks", .at.relative_to(*.now))]
    Expired {
        /// The token's `exp`.
        at: NumericDate,
        /// The time when it was checked.
        now: SystemTime,
    },
    /// `nbf` is further away than [`LEEWAY`].
    #[error("the token is not valid before {at}, {}: compare this clock with that of its issuer", .at.relative_to(*.now))]
    NotYet {
        /// The token's `nbf`.
        at: NumericDate,
        /// The time when it was checked.
        now: SystemTime,
    },
}

#[derive(Default)]
struct Header<'a> {
    alg: Option<Value<'a>>,
}

impl<'de> Members<'de> for Header<'de> {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "alg" => json::value(map, &mut self.alg),
            _ => Ok(false),
        }
    }
}

#[derive(Default)]
struct Claims<'a>(Times<'a>);

impl<'de> Members<'de> for Claims<'de> {
    type Unknown = Skipped;

    fn take<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        self.0.take(name, map)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::jws::tests::{RFC_7519, jwt};

    const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn check(claims: &str, now: u64) -> Result<Shape, ShapeError> {
        check_shape(&jwt(HS256, claims), at(now))
    }

    #[test]
    fn accepts_the_example_of_rfc_7519_until_it_expires() {
        let shape = check_shape(RFC_7519, at(1_300_819_379)).unwrap();
        assert_eq!(shape.expires.unwrap().seconds(), 1_300_819_380.0);
        assert_eq!((shape.not_before, shape.issued_at), (None, None));

        let error = check_shape(RFC_7519, at(1_300_819_380)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the token expired now, at 2011-03-22T18:43:00Z: have its source issue a fresh one, and compare the clocks"
        );
        let error = check_shape(RFC_7519, at(1_300_819_380 + 7_380)).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("the token expired 2h 3m ago, at 2011-03-22T18:43:00Z"),
            "{error}"
        );
    }

    #[test]
    fn accepts_a_token_without_times_as_the_rabbit_software_makes_them() {
        let shape = check(r#"{"iat":1700000000,"sub":"user-container"}"#, 1_700_000_000).unwrap();
        assert_eq!(shape.expires, None);
        assert_eq!(shape.issued_at.unwrap().to_string(), "2023-11-14T22:13:20Z");
    }

    #[test]
    fn allows_fractions_of_a_second() {
        assert!(check(r#"{"exp":1000.5}"#, 1000).is_ok());
        assert!(check(r#"{"exp":999.999}"#, 1000).is_err());
        assert!(check(r#"{"exp":1.0005e3}"#, 1000).is_ok());
    }

    #[test]
    fn forgives_a_minute_of_clock_difference_for_nbf_only() {
        assert!(check(r#"{"nbf":1060}"#, 1000).is_ok());
        let error = check(r#"{"nbf":1061}"#, 1000).unwrap_err().to_string();
        assert_eq!(
            error,
            "the token is not valid before 1970-01-01T00:17:41Z, in 1m 1s: compare this clock with that of its issuer"
        );
        assert!(check(r#"{"exp":1000}"#, 1000).is_err());
    }

    #[test]
    fn refuses_times_that_are_not_numbers() {
        for value in [r#""1000""#, "null", "true", "[1]", r#"{"a":1}"#] {
            for claim in ["exp", "nbf", "iat"] {
                let error = check(&format!(r#"{{"{claim}":{value}}}"#), 1000)
                    .unwrap_err()
                    .to_string();
                assert_eq!(
                    error,
                    format!(
                        "the claim `{claim}` is not a number of seconds since 1970: \
                         see that the source prints one JWT and nothing else"
                    )
                );
            }
        }
    }

    #[test]
    fn refuses_what_no_service_accepts() {
        for (header, says) in [
            (r#"{"typ":"JWT"}"#, "has no `alg`"),
            (r#"{"alg":null}"#, "the `alg` of its header is not a string"),
            (r#"{"alg":["HS256"]}"#, "the `alg` of its header is not a string"),
            (r#"{"alg":"none"}"#, "is unsecured"),
            (r#"{"alg":"None"}"#, "is unsecured"),
            (r#"["HS256"]"#, "is JSON but not an object"),
            (r#"{"alg":"HS256","alg":"none"}"#, "has a name twice"),
            ("[1} ", "invalid JSON"),
            ("\"x\" y", "invalid JSON"),
        ] {
            let error = check_shape(&jwt(header, "{}"), at(0)).unwrap_err().to_string();
            assert!(error.contains(says), "{header}: {error:?} does not say {says:?}");
        }
        for (claims, says) in [
            ("[1000]", "is JSON but not an object"),
            (r#"{"exp":5,"exp":5000}"#, "has a name twice"),
            (r#"{"exp":1e999}"#, "invalid JSON"),
            (r#"{"exp":5000"#, "invalid JSON"),
            ("", "is empty"),
        ] {
            let error = check(claims, 1000).unwrap_err().to_string();
            assert!(error.contains(says), "{claims}: {error:?} does not say {says:?}");
        }
        let unsigned = jwt(HS256, "{}").rsplit_once('.').unwrap().0.to_owned() + ".";
        assert!(
            check_shape(&unsigned, at(0))
                .unwrap_err()
                .to_string()
                .contains("signature (third segment) is empty")
        );
        let newline = jwt(HS256, "{}") + "\n";
        assert!(
            check_shape(&newline, at(0))
                .unwrap_err()
                .to_string()
                .contains("white space")
        );
    }

    #[test]
    fn takes_a_clock_before_1970() {
        let now = UNIX_EPOCH - Duration::from_secs(100);
        assert!(check_shape(&jwt(HS256, r#"{"exp":-50,"nbf":-150}"#), now).is_ok());
        assert!(check_shape(&jwt(HS256, r#"{"exp":-150}"#), now).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in any::<String>()) {
            let _ = check_shape(&text, at(0));
        }

        #[test]
        fn never_panics_on_any_claims(claims in "\\PC{0,40}", value in "\\PC{0,10}", now in any::<u32>()) {
            let _ = check(&claims, now.into());
            let _ = check(&format!(r#"{{"exp":{value}}}"#), now.into());
        }

        #[test]
        fn compares_any_exp_with_any_clock(exp in any::<u32>(), now in any::<u32>()) {
            let shape = check(&format!(r#"{{"exp":{exp}}}"#), now.into());
            prop_assert_eq!(shape.is_ok(), exp > now);
        }
    }
}
