// SPDX-License-Identifier: MIT OR Apache-2.0

//! Numbers in claims, however they are written. `scripts/check` also runs this with another reader of numbers.

mod common;

use std::time::Duration;

use common::{NOW, header, key, now, payload, sign, verifier, with};
use serde_json::json;
use token::{Algorithm, Claims, VerifyError, check_shape};

fn token(claim: &str, number: &str) -> String {
    let key = key(Algorithm::EdDsa);
    let claims = with(payload(), json!({claim: null})).replacen('{', &format!("{{\"{claim}\":{number},"), 1);
    sign(key, header(key).to_string(), claims)
}

fn verify(claim: &str, number: &str) -> Result<Claims, VerifyError> {
    verifier().verify(&token(claim, number), now())
}

#[test]
fn a_time_may_have_a_fraction_and_an_exponent() {
    for (number, seconds) in [
        ("1700000001", 1_700_000_001.0),
        ("1700000000.5", 1_700_000_000.5),
        ("1.7000000005e9", 1_700_000_000.5),
        ("17000000005E-1", 1_700_000_000.5),
        ("20000000000000000000000", 2e22),
        ("1e300", 1e300),
    ] {
        assert_eq!(verify("exp", number).unwrap().exp().seconds(), seconds, "{number}");
        let shape = check_shape(&token("exp", number), now()).unwrap();
        assert_eq!(shape.expires.unwrap().seconds(), seconds, "{number}");
    }
    for number in ["1699999939.5", "-1.5", "0.0", "-20000000000000000000000"] {
        assert!(
            matches!(verify("exp", number), Err(VerifyError::Expired { .. })),
            "{number}"
        );
        assert!(check_shape(&token("exp", number), now()).is_err(), "{number}");
    }
    let strict = verifier().leeway(Duration::ZERO);
    let at = now() + Duration::from_millis(500);
    for (exp, accepted) in [(format!("{NOW}.75"), true), (format!("{NOW}.25"), false)] {
        assert_eq!(strict.verify(&token("exp", &exp), at).is_ok(), accepted, "{exp}");
    }
    assert_eq!(
        verify("nbf", "1699999999.5").unwrap().nbf().unwrap().seconds(),
        1_699_999_999.5
    );
    assert_eq!(verify("iat", "0.5").unwrap().iat().unwrap().seconds(), 0.5);
}

#[test]
fn what_is_no_finite_number_is_refused() {
    for number in [
        "1e999",
        "-1e999",
        r#""1900000000.5""#,
        r#"{"$serde_json::private::Number":"1900000000.5"}"#,
        r#"{"$serde_json::private::Number":1900000000.5}"#,
        r#"{"$serde_json::private::Number":1900000000}"#,
        r#"{"$serde_json::private::Number":{"$serde_json::private::Number":1900000000.5}}"#,
        "[1900000000.5]",
        "{}",
    ] {
        assert!(
            matches!(verify("exp", number), Err(VerifyError::Malformed(_))),
            "{number}"
        );
        assert!(check_shape(&token("exp", number), now()).is_err(), "{number}");
    }
}

#[test]
fn fractions_elsewhere_are_as_good_as_any_other_value() {
    for number in ["1.5", "-0.1e-5", "100000000000000000000000000.5"] {
        assert!(verify("other", number).is_ok(), "{number}");
        assert!(
            verify("other", &format!("[{number},{{\"a\":{number}}}]")).is_ok(),
            "{number}"
        );
        assert!(
            verify("other", &format!("[{{\"a\":{number},\"a\":{number}}}]")).is_err(),
            "{number}"
        );
        for claim in ["aud", "iss", "sub", "flux", "workspace"] {
            assert!(verify(claim, number).is_err(), "{claim} {number}");
        }
    }
}
