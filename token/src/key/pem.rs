// SPDX-License-Identifier: MIT OR Apache-2.0

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::KeyError;
use crate::json::without_mark;

/// The same as [`read`] for keys that only this implementation reads: the parameters of a curve that `openssl ecparam -genkey`
/// writes before a key are skipped, since the key names its curve itself.
pub(super) fn read_key(pem: &[u8]) -> Result<(&str, Zeroizing<Vec<u8>>), KeyError> {
    let pem = without_mark(pem);
    let parameters = pem.trim_ascii_start().strip_prefix(b"-----BEGIN EC PARAMETERS-----");
    let key = parameters.and_then(|parameters| {
        const END: &[u8] = b"-----END EC PARAMETERS-----";
        let end = parameters.windows(END.len()).position(|part| part == END)?;
        parameters.get(end + END.len()..)
    });
    read(key.unwrap_or(pem))
}

/// The command of openssl that shows the public key of a file whose first block has a certificate or a request for one, which may
/// have text or further blocks around it.
pub(super) fn certificate_command(pem: &[u8]) -> Option<&'static str> {
    let text = std::str::from_utf8(pem).ok()?;
    let (_, rest) = text.split_once("-----BEGIN ")?;
    match rest.split_once("-----")?.0 {
        "CERTIFICATE" | "X509 CERTIFICATE" | "TRUSTED CERTIFICATE" => Some("x509"),
        "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => Some("req"),
        _ => None,
    }
}

/// Label and content of the only block of a PEM file (RFC 7468).
///
/// A reader in Go takes the first block of a file whatever it is; a second block would let two sides use different
/// keys.
pub(super) fn read(pem: &[u8]) -> Result<(&str, Zeroizing<Vec<u8>>), KeyError> {
    let text = std::str::from_utf8(pem).map_err(|_| KeyError::NotPem)?;
    let (label, body) = only_block(text)?;
    if label == "ENCRYPTED PRIVATE KEY" {
        return Err(KeyError::Encrypted);
    }

    // Sized up front: a vector that grows would leave copies behind that nothing zeroizes.
    let mut base64 = Zeroizing::new(Vec::with_capacity(body.len()));
    for (number, line) in body.lines().enumerate() {
        // A header such as "Proc-Type: 4,ENCRYPTED" (RFC 1421)
        if line.contains(':') {
            return Err(KeyError::Encrypted);
        }
        let line = line.trim_ascii();
        if line
            .bytes()
            .any(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=')))
        {
            return Err(KeyError::Base64Line(number + 1));
        }
        base64.extend_from_slice(line.as_bytes());
    }
    let mut der = Zeroizing::new(vec![0; base64::decoded_len_estimate(base64.len())]);
    let len = STANDARD
        .decode_slice(&*base64, &mut der)
        .map_err(|_| KeyError::Base64)?;
    der.truncate(len);
    Ok((label, der))
}

/// Label and body of the PEM block that is all of `text` but white space.
fn only_block(text: &str) -> Result<(&str, &str), KeyError> {
    const BEGIN: &str = "-----BEGIN ";

    let Some(begin) = text.find(BEGIN) else {
        return Err(KeyError::NotPem);
    };
    let (before, rest) = text.split_at(begin);
    let Some((label, rest)) = rest[BEGIN.len()..].split_once("-----") else {
        return Err(KeyError::NotPem);
    };
    if label.contains(['\n', '\r']) {
        return Err(KeyError::NotPem);
    }
    let Some((body, after)) = rest.split_once(&format!("-----END {label}-----")) else {
        return Err(KeyError::NoEnd);
    };
    if !before.trim_ascii().is_empty() || !after.trim_ascii().is_empty() {
        return Err(KeyError::NotAlone);
    }
    Ok((label, body.trim_ascii()))
}

/// A label as it may be shown: no label has more than these characters, and anything else may be part of a key.
pub(super) fn printable(label: &str) -> String {
    let ok = label.len() <= 40 && label.bytes().all(|b| b.is_ascii_uppercase() || b == b' ');
    if ok {
        label.to_owned()
    } else {
        "(an unusual label)".to_owned()
    }
}

/// Length of the whole DER `SEQUENCE` that `der` begins with, by its own count (X.690 sections 8.1 and 10.1).
pub(super) fn sequence_len(der: &[u8]) -> Option<usize> {
    const SEQUENCE: u8 = 0x30;

    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if tag != SEQUENCE {
        return None;
    }
    if first < 0x80 {
        return Some(2 + usize::from(first));
    }
    let octets = usize::from(first & 0x7f);
    if !(1..=4).contains(&octets) {
        return None;
    }
    let content = rest
        .get(..octets)?
        .iter()
        .fold(0, |len, &octet| len << 8 | usize::from(octet));
    content.checked_add(2 + octets)
}
