// SPDX-License-Identifier: MIT OR Apache-2.0

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use zeroize::Zeroizing;

use super::{KeyError, MIN_KEY_LEN, pem};

/// A secret for HMAC with SHA-256 (RFC 2104), and the state that aws-lc computes from it once, and zeroizes.
pub(super) struct Secret {
    bytes: Zeroizing<Vec<u8>>,
    pub(super) key: hmac::Key,
}

impl Secret {
    pub(super) fn new(bytes: &[u8]) -> Result<Self, KeyError> {
        let decoded = [from_base64(bytes), from_hex(bytes)];
        let mut decoded = decoded.iter().flatten().map(|decoded| decoded.as_slice());
        if is_key(bytes) || decoded.clone().any(is_key) {
            return Err(KeyError::KeyAsSecret);
        }
        if bytes.len() < MIN_KEY_LEN {
            return Err(KeyError::TooShort(bytes.len()));
        }
        if repeats(bytes, MIN_KEY_LEN / 2 - 1) || decoded.any(|decoded| repeats(decoded, 1)) {
            return Err(KeyError::Repetition);
        }
        Ok(Self {
            bytes: Zeroizing::new(bytes.to_vec()),
            key: hmac::Key::new(hmac::HMAC_SHA256, bytes),
        })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Whether these bytes, but for an end of line, repeat a piece of at most `longest`: whoever guesses the piece has the
/// secret. Random ones do by a chance of no account.
fn repeats(bytes: &[u8], longest: usize) -> bool {
    let Some(last) = bytes.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')) else {
        return true;
    };
    let text = &bytes[..=last];
    (1..=longest).any(|len| text.len() >= 2 * len && text[len..] == text[..text.len() - len])
}

/// Returns whether these are the bytes of a file with a key, which may be a public one, so that everyone has them: PEM,
/// a JWK or a set of them, a key of SSH, or DER.
fn is_key(bytes: &[u8]) -> bool {
    // Of UTF-16, what is ASCII is left.
    let text = copy(bytes.iter().copied().filter(|&byte| byte != 0), bytes.len());
    let marks: [&[u8]; 3] = [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"];
    let unmarked = marks.iter().find_map(|mark| text.strip_prefix(*mark));
    let text = unmarked.unwrap_or(&text).trim_ascii_start();
    // Other text may stand before these. The second is of RFC 4716.
    let marks: [&[u8]; 3] = [b"-----BEGIN ", b"---- BEGIN ", b"\"kty"];
    if marks
        .iter()
        .any(|mark| text.windows(mark.len()).any(|part| part == *mark))
    {
        return true;
    }
    // Random bytes may begin like this, and are no text.
    let is_text_of_key = |text: &str| {
        let starts = ["{", "[", "ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
        // Each key of SSH is in base64, and begins with a length (RFC 4253 section 6.6).
        starts.iter().any(|start| text.starts_with(start)) || text.contains(" AAAA")
    };
    std::str::from_utf8(text).is_ok_and(is_text_of_key) || is_public_der(bytes) || is_point(bytes)
}

/// Returns whether it is an uncompressed point of P-256, which is a public key as SEC 1 and many programs write it.
fn is_point(bytes: &[u8]) -> bool {
    bytes.len() == 65 && bytes[0] == 4 && ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, bytes).is_ok()
}

/// Returns whether it is one DER sequence, but for an end of line, and not of a private key, of which the first element
/// is a version, an integer of one byte (RFC 5208, RFC 5915, RFC 8017). Public keys begin with the sequence of their
/// algorithm, or with a large integer, certificates with a sequence.
fn is_public_der(bytes: &[u8]) -> bool {
    if pem::sequence_len(bytes).is_none_or(|len| len.abs_diff(bytes.len()) > 2) {
        return false;
    }
    let header = match bytes[1] {
        octets @ 0x80.. => 2 + usize::from(octets & 0x7f),
        _ => 2,
    };
    let first = bytes.get(header..).unwrap_or_default();
    first.starts_with(&[0x30]) || (first.starts_with(&[0x02]) && !first.starts_with(&[0x02, 1]))
}

/// What a text in base64 or base64url stands for, on one line or several.
fn from_base64(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let plain = text.iter().filter(|byte| !byte.is_ascii_whitespace() && **byte != b'=');
    let plain = copy(
        plain.map(|byte| match byte {
            b'-' => b'+',
            b'_' => b'/',
            byte => *byte,
        }),
        text.len(),
    );
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(plain.len())]);
    let len = STANDARD_NO_PAD.decode_slice(&*plain, &mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

/// What a text in hexadecimal stands for, on one line or several, with or without colons between the bytes.
fn from_hex(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let plain = text.iter().filter(|byte| !byte.is_ascii_whitespace() && **byte != b':');
    let plain = copy(plain.copied(), text.len());
    let digits = plain.strip_prefix(b"0x").unwrap_or(&plain);
    if digits.len() % 2 != 0 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let digit = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default() as u8;
    let bytes = digits.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1]));
    Some(copy(bytes, digits.len() / 2))
}

/// At most `len` bytes, in memory that is zeroized, and not moved as it fills.
fn copy(bytes: impl Iterator<Item = u8>, len: usize) -> Zeroizing<Vec<u8>> {
    let mut copy = Zeroizing::new(Vec::with_capacity(len));
    copy.extend(bytes);
    copy
}
