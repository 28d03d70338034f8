// SPDX-License-Identifier: MIT OR Apache-2.0

//! Random texts that cannot be guessed.

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// The letters of codes that people type: no vowels, so that codes form no words, and no similar letters (RFC 8628
/// section 6.1).
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// The number of letters in such a code: more than 34 bits.
const CODE: usize = 8;

/// Returns a secret of 256 bits: letters, digits, `-` and `_`.
pub fn secret() -> Zeroizing<String> {
    let mut bytes = Zeroizing::new([0; 32]);
    fill(&mut *bytes);
    Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes))
}

/// Returns the code challenge of a verifier, for the method S256 (RFC 7636 section 4.2).
pub fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()))
}

/// Returns a code that people type, without its hyphen.
pub fn user_code() -> String {
    let mut code = String::with_capacity(CODE);
    while code.len() < CODE {
        let mut bytes = [0; 2 * CODE];
        fill(&mut bytes);
        // 240 is a multiple of 20, so all letters are equally likely.
        let letters = bytes.iter().filter(|byte| **byte < 240);
        let letters = letters.map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]));
        code.extend(letters.take(CODE - code.len()));
    }
    code
}

/// Returns a code as users see it: `WDJB-MJHT`.
pub fn shown(code: &str) -> String {
    match code.split_at_checked(CODE / 2) {
        Some((first, second)) => format!("{first}-{second}"),
        None => code.to_owned(),
    }
}

/// Normalizes a code that a person typed, ignoring case and separators. Returns `None` if it is not a code.
pub fn typed(text: &str) -> Option<String> {
    let code: String = text
        .chars()
        .take(4 * CODE)
        .filter(|c| !matches!(c, '-' | ' ' | '_' | '.'))
        .map(|c| c.to_ascii_uppercase())
        .collect();
    let is_code = code.len() == CODE && code.bytes().all(|byte| LETTERS.contains(&byte));
    is_code.then_some(code)
}

fn fill(bytes: &mut [u8]) {
    // aws-lc aborts the process if no randomness is available.
    rand::fill(bytes).expect("random bytes");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_is_that_of_the_rfc() {
        // RFC 7636 appendix B.
        let challenge = challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk");
        assert_eq!(challenge, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn a_code_is_understood_as_people_type_it() {
        let code = user_code();
        assert_eq!(typed(&shown(&code)).as_ref(), Some(&code));
        assert_eq!(typed(&shown(&code).to_lowercase()).as_ref(), Some(&code));
        assert_eq!(typed(" wdjb mjht ").as_deref(), Some("WDJBMJHT"));
        for wrong in ["", "WDJB", "WDJB-MJHTX", "AEIO-UAEI", "WDJBMJH1", "ÄDJBMJHT"] {
            assert_eq!(typed(wrong), None, "{wrong}");
        }
        assert_ne!(user_code(), user_code());
        assert_ne!(secret(), secret());
        assert_eq!(secret().len(), 43);
    }
}
