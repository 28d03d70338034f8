// SPDX-License-Identifier: MIT OR Apache-2.0

use proptest::prelude::*;

use super::*;

/// The example of RFC 7519 section 3.1.
pub(crate) const RFC_7519: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
    eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
    dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

pub(crate) fn encode(json: &str) -> String {
    URL_SAFE_NO_PAD.encode(json)
}

pub(crate) fn jwt(header: &str, claims: &str) -> String {
    format!("{}.{}.c2lnbmF0dXJl", encode(header), encode(claims))
}

#[test]
fn reads_the_example_of_rfc_7519() {
    let token = Token::inspect(RFC_7519).unwrap();
    assert_eq!(token.alg(), "HS256");
    assert!(!token.is_unsecured());
    assert_eq!(token.header()["typ"], "JWT");
    assert_eq!(token.claims().as_map()["iss"], "joe");
    assert_eq!(token.claims().as_map()["http://example.com/is_root"], true);
    assert_eq!(
        token.claims().expires().unwrap().unwrap().to_string(),
        "2011-03-22T18:43:00Z"
    );
    assert_eq!(token.claims().not_before().unwrap(), None);
    assert_eq!(token.signature_len(), 32);
}

#[test]
fn notes_an_unsecured_token() {
    // RFC 7519 section 6.1
    let token = "eyJhbGciOiJub25lIn0.\
        eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.";
    let token = Token::inspect(token).unwrap();
    assert!(token.is_unsecured());
    assert_eq!(token.signature_len(), 0);
    assert!(Token::inspect(&jwt(r#"{"alg":"nOnE"}"#, "{}")).unwrap().is_unsecured());
}

#[test]
fn says_what_is_wrong_and_where() {
    let header = encode(r#"{"alg":"HS256"}"#);
    for (token, says) in [
        (String::new(), "the token is empty"),
        (
            "a".repeat(MAX_LEN + 1),
            "the token is longer than the 65536 bytes that are accepted",
        ),
        (
            "hunter2".into(),
            "not a JWT: it has one segment instead of three separated by dots (an opaque secret?",
        ),
        (format!("{header}.e30"), "it has 2 segments instead of three"),
        (
            format!("{header}.a.b.c.d"),
            "it has 5 segments instead of three separated by dots (an encrypted token",
        ),
        (".e30.eA".into(), "its header (first segment) is empty"),
        (format!("{header}..eA"), "its claims (second segment) is empty"),
        (format!("{header}.e30."), "its signature (third segment) is empty"),
        (
            format!("{header}=.e30.eA"),
            "its header (first segment) is not base64url: padding (`=`), which a JWT leaves out, at its byte 20",
        ),
        (
            format!("{header}.e3+0.eA"),
            "its claims (second segment) is not base64url: a `+` or `/` of the standard alphabet at its byte 2",
        ),
        (
            format!("{header}.e30.eA\n"),
            "its signature (third segment) is not base64url: white space at its byte 2",
        ),
        (
            format!("{header}.e30.é"),
            "a character outside its alphabet at its byte 0",
        ),
        (
            format!("{header}.e30.eAAAA"),
            "an impossible length (was the text cut?) at its byte 5",
        ),
        (
            format!("{header}.e30.eB"),
            "leftover bits (was the text cut?) at its byte 1",
        ),
        (
            format!("_w.{header}.eA"),
            "its header (first segment) decodes to bytes that are not UTF-8, at byte 0",
        ),
        (
            jwt("{\"alg\":\"x\"}", "{"),
            "its claims (second segment) decodes to invalid JSON, at line 1 column 1",
        ),
        (
            jwt("{\"alg\":\"x\"}", "[1]"),
            "its claims (second segment) is JSON but not an object",
        ),
        (
            jwt("\"x\"", "{}"),
            "its header (first segment) is JSON but not an object",
        ),
        (jwt("{}", "{}"), "its header has no `alg`"),
        (jwt("{\"alg\":5}", "{}"), "the `alg` of its header is not a string"),
    ] {
        let error = Token::inspect(&token).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} does not say {says:?}");
    }
}

#[test]
fn reads_time_claims_as_numbers_only() {
    let token = Token::inspect(&jwt(r#"{"alg":"x"}"#, r#"{"exp":"soon","nbf":1.5,"iat":null}"#)).unwrap();
    assert_eq!(
        token.claims().expires().unwrap_err().to_string(),
        "the claim `exp` is not a number of seconds since 1970"
    );
    assert_eq!(token.claims().not_before().unwrap().unwrap().seconds(), 1.5);
    assert_eq!(token.claims().issued_at(), Err(Malformed::NotNumber("iat")));
}

#[test]
fn keeps_no_signature() {
    let shown = format!("{:?}", Token::inspect(RFC_7519).unwrap());
    assert!(!shown.contains("dBjftJeZ4CVP"), "{shown}");
}

proptest! {
    #[test]
    fn never_panics(text in any::<String>()) {
        let _ = Token::inspect(&text);
    }

    #[test]
    fn never_panics_on_what_resembles_a_token(
        header in "\\PC{0,20}", claims in "\\PC{0,20}", tail in "[A-Za-z0-9_=+/.-]{0,20}"
    ) {
        let _ = Token::inspect(&format!("{}.{}.{tail}", encode(&header), encode(&claims)));
        let _ = Token::inspect(&format!("{}.{}.{tail}", encode(&format!(r#"{{"alg":"x",{header}}}"#)), encode(&claims)));
    }

    /// An error tells positions; no four characters in a row of the text are in it.
    #[test]
    fn an_error_shows_nothing_of_the_text(parts in prop::collection::vec("[A-Z0-9]{12,20}", 1..6)) {
        let text = parts.join(".");
        if let Err(e) = Token::inspect(&text) {
            for shown in [e.to_string(), format!("{e:?}")] {
                for window in text.as_bytes().windows(4) {
                    prop_assert!(!shown.contains(std::str::from_utf8(window).unwrap()), "{shown} {text}");
                }
            }
        }
    }
}
