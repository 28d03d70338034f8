// SPDX-License-Identifier: MIT OR Apache-2.0

use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::{HmacKey, json};

/// The header that the rabbit software writes, its names in alphabetical order.
const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// Issues a token for `sub` that was issued at `iat`, in seconds since 1970, signed with HMAC SHA-256
/// (RFC 7518 section 3.2). It never expires.
///
/// It is, byte for byte, what the rabbit software makes of the same key, subject and time: the header
/// `{"alg":"HS256","typ":"JWT"}` and the claims `{"iat":…,"sub":…}`, as Go's `encoding/json` writes them.
///
/// ```
/// use secrecy::ExposeSecret;
/// use token::{Algorithm, HmacKey, SigningKey, Token, issue};
///
/// let pem = SigningKey::generate(Algorithm::Es256).to_pem().expect("the private key");
/// let key = HmacKey::from_pem(pem.expose_secret().as_bytes())?;
/// let token = issue(&key, "user-container", 1_800_000_000);
/// let token = Token::inspect(token.expose_secret()).expect("a JWT");
/// assert_eq!(token.claims().subject(), Some("user-container"));
/// assert_eq!(token.claims().expires(), Ok(None));
/// # Ok::<(), token::KeyError>(())
/// ```
pub fn issue(key: &HmacKey, sub: &str, iat: u64) -> SecretString {
    let claims = Zeroizing::new(format!(r#"{{"iat":{iat},"sub":{}}}"#, go_string(sub)));
    key.sign(HEADER, &claims)
}

/// A JSON string as Go's `json.Marshal` writes it, which also escapes what HTML or JavaScript would take for syntax.
fn go_string(text: &str) -> String {
    let json = json::quoted(text);
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use aws_lc_rs::digest::{SHA256, digest};
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;
    use crate::key::hmac::tests::RABBIT;
    use crate::{Token, check_shape};

    fn key() -> HmacKey {
        HmacKey::from_pem(RABBIT.as_bytes()).unwrap()
    }

    /// HMAC written out as RFC 2104 section 2 defines it.
    fn hmac_sha256(key: &[u8], message: &[u8]) -> Vec<u8> {
        let mut block = [0; 64];
        let key = if key.len() > block.len() {
            digest(&SHA256, key).as_ref().to_vec()
        } else {
            key.to_vec()
        };
        block[..key.len()].copy_from_slice(&key);
        let inner = digest(&SHA256, &[&block.map(|b| b ^ 0x36), message].concat());
        digest(&SHA256, &[&block.map(|b| b ^ 0x5c)[..], inner.as_ref()].concat())
            .as_ref()
            .to_vec()
    }

    fn der() -> Vec<u8> {
        let base64: String = RABBIT.lines().filter(|line| !line.starts_with('-')).collect();
        STANDARD.decode(base64).unwrap()
    }

    #[test]
    fn is_byte_for_byte_what_the_rabbit_software_makes() {
        // Computed with the hmac module of Python, over the JSON that Go writes.
        assert_eq!(
            issue(&key(), "user-container", 1_700_000_000).expose_secret(),
            "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3MDAwMDAwMDAsInN1YiI6InVzZXItY29udGFpbmVyIn0.EZos5TxoXCTLxI3ygYTgvEes6yyvrFyEj0fDspG7zIo"
        );
        assert_eq!(
            issue(&key(), "a<b>&\"\\\né\u{2028}", 0).expose_secret(),
            "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjAsInN1YiI6ImFcdTAwM2NiXHUwMDNlXHUwMDI2XCJcXFxuw6lcdTIwMjgifQ.0YOmKmldZUplEDkvFKMqsnitFed3omeABXMPHNrku7k"
        );
    }

    #[test]
    fn passes_the_shape_check() {
        let shape = check_shape(
            issue(&key(), "alice", 1000).expose_secret(),
            UNIX_EPOCH + Duration::from_secs(1000),
        );
        assert_eq!(shape.unwrap().issued_at.unwrap().seconds(), 1000.0);
    }

    #[test]
    fn does_not_print_itself() {
        assert!(!format!("{:?}", issue(&key(), "alice", 1000)).contains("eyJ"));
    }

    proptest! {
        #[test]
        fn verifies_and_says_what_was_asked_for(sub in any::<String>(), iat in any::<u64>()) {
            let token = issue(&key(), &sub, iat);
            let (message, signature) = token.expose_secret().rsplit_once('.').unwrap();
            prop_assert_eq!(URL_SAFE_NO_PAD.decode(signature).unwrap(), hmac_sha256(&der(), message.as_bytes()));

            if token.expose_secret().len() <= crate::MAX_LEN {
                let read = Token::inspect(token.expose_secret()).unwrap();
                prop_assert_eq!(read.alg(), "HS256");
                prop_assert_eq!(read.claims().subject(), Some(sub.as_str()));
                prop_assert_eq!(read.claims().as_map()["iat"].as_u64(), Some(iat));
                prop_assert_eq!(read.claims().as_map().len(), 2);
            }
        }
    }
}
