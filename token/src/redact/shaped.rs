// SPDX-License-Identifier: MIT OR Apache-2.0

//! Finds texts in the form of a secret.

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::REDACTED;

/// Returns where something in `text` has the form of a secret.
pub(super) fn find(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    tokens(text, &mut found);
    munge_credentials(text, &mut found);
    bearers(text, &mut found);
    private_keys(text, &mut found);
    passwords(text, &mut found);
    random_runs(text, &mut found);
    found
}

/// Base64 of `{"`, and of `{` with white space after it, which is rare; and how many dots there must be to tell a
/// token.
const STARTS: [(&str, usize); 5] = [("eyJ", 0), ("eyA", 2), ("ewo", 2), ("ewk", 2), ("ew0", 2)];

/// Whether a whole JWS in compact serialization is anywhere in `text`, as far as its form tells: two dots after the
/// base64url of what a JSON object begins with. Its payload or signature may be empty.
///
/// Where it does not stand alone, what is before the first dot must be a header, which names an algorithm: names of
/// hosts and files may have those letters by chance.
///
/// ```
#[doc = include_str!("../doc_example.txt")]
/// assert!(holds_token(&format!("curl: (22) https://files.example.org/?token={token}")));
/// assert!(!holds_token("files.v1.example.org"));
/// ```
#[must_use]
pub fn holds_token(text: &str) -> bool {
    /// No name that begins so is that long by chance.
    const MIN_LEN: usize = 20;

    let bytes = text.as_bytes();
    let is_token = |at: usize| {
        let segment = |at: usize| {
            let len = count(&bytes[at..], is_base64url);
            at + len + count(&bytes[at + len..], |b| b == b'=')
        };
        let header = count(&bytes[at..], is_base64url);
        let first = segment(at);
        if bytes.get(first) != Some(&b'.') {
            return false;
        }
        let second = segment(first + 1);
        if bytes.get(second) != Some(&b'.') || segment(second + 1) - at < MIN_LEN {
            return false;
        }
        // What the last characters of one that was cut stand for is not needed.
        let Ok(header) = URL_SAFE_NO_PAD.decode(&bytes[at..at + header / 4 * 4]) else {
            return false;
        };
        let begins = header.strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
        let alone = at == 0 || !is_base64url(bytes[at - 1]);
        begins.is_some_and(|rest| rest.starts_with(b"\""))
            && (alone || header.windows(ALG.len()).any(|part| part == ALG))
    };
    STARTS
        .iter()
        .any(|(start, _)| text.match_indices(start).any(|(at, _)| is_token(at)))
}

/// What each header has (RFC 7515 section 4.1.1).
const ALG: &[u8] = b"\"alg\"";

fn tokens(text: &str, found: &mut Vec<Range<usize>>) {
    /// No word in a message is that long after `eyJ`.
    const MIN_LEN: usize = 8;

    let bytes = text.as_bytes();
    for (start, dots) in STARTS {
        let mut from = 0;
        while let Some(at) = text[from..].find(start) {
            let at = from + at;
            let begin = at - count_back(&bytes[..at], is_base64);
            let end = at + count(&bytes[at..], |b| is_base64(b) || matches!(b, b'.' | b'=' | b'~' | b'%'));
            // A full stop after the token is the sentence's.
            let end = at + text[at..end].trim_end_matches('.').len();
            if end - at >= MIN_LEN && text[at..end].matches('.').count() >= dots {
                found.push(begin..end);
            }
            from = end.max(at + start.len());
        }
    }
}

fn munge_credentials(text: &str, found: &mut Vec<Range<usize>>) {
    const START: &str = "MUNGE:";

    for (at, _) in text.match_indices(START) {
        let body = at + START.len();
        let len = count(&text.as_bytes()[body..], |b| is_base64(b) || b == b'=');
        if len > 0 {
            let colon = usize::from(text.as_bytes().get(body + len) == Some(&b':'));
            found.push(at..body + len + colon);
        }
    }
}

fn bearers(text: &str, found: &mut Vec<Range<usize>>) {
    const WORD: &[u8] = b"bearer";
    /// What follows the word in messages about bearer tokens.
    const HARMLESS: [&str; 10] = [
        "token",
        "tokens",
        "auth",
        "authentication",
        "authorization",
        "credential",
        "credentials",
        "scheme",
        "error",
        "realm",
    ];

    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(window) = bytes.get(at..at + WORD.len()) {
        if !window.eq_ignore_ascii_case(WORD) {
            at += 1;
            continue;
        }
        at += WORD.len();
        let mut begin = at;
        loop {
            begin += count(&bytes[begin..], |b| {
                b.is_ascii_whitespace() || matches!(b, b':' | b'=' | b'"' | b'\'' | b'+')
            });
            if !text[begin..].starts_with("%20") {
                break;
            }
            begin += "%20".len();
        }
        let len = count(&bytes[begin..], |b| {
            !b.is_ascii_whitespace() && !matches!(b, b'"' | b'\'' | b',' | b';')
        });
        let word = &text[begin..begin + len];
        let plain = word.trim_matches(|c: char| c.is_ascii_punctuation());
        if begin > at && len > 0 && word != REDACTED && !HARMLESS.iter().any(|h| h.eq_ignore_ascii_case(plain)) {
            found.push(begin..begin + len);
        }
    }
}

fn private_keys(text: &str, found: &mut Vec<Range<usize>>) {
    const DASHES: &str = "-----";

    let mut hidden = 0;
    for (at, begin) in text.match_indices("-----BEGIN ") {
        let label = at + begin.len();
        let Some(end_of_label) = text[label..].find(DASHES) else {
            break;
        };
        if at < hidden || !text[label..label + end_of_label].ends_with("PRIVATE KEY") {
            continue;
        }
        let end = text[label..].find("-----END ").and_then(|end| {
            let end = label + end + "-----END ".len();
            text[end..].find(DASHES).map(|dashes| end + dashes + DASHES.len())
        });
        hidden = end.unwrap_or(text.len());
        found.push(at..hidden);
    }
}

/// Those in URLs: `scheme://user:password@host`, or a token in place of the user (RFC 3986 section 3.2.1).
fn passwords(text: &str, found: &mut Vec<Range<usize>>) {
    for (at, slashes) in text.match_indices("://") {
        let begin = at + slashes.len();
        let is_end = |c: char| matches!(c, '/' | '?' | '#' | '"' | '\'' | '<' | '>') || c.is_whitespace();
        let authority = text[begin..].split(is_end).next().unwrap_or_default();
        let Some((userinfo, _)) = authority.rsplit_once('@') else {
            continue;
        };
        let user = userinfo.find(':').map_or(0, |colon| colon + 1);
        if user < userinfo.len() && &userinfo[user..] != REDACTED {
            found.push(begin + user..begin + userinfo.len());
        }
    }
}

fn random_runs(text: &str, found: &mut Vec<Range<usize>>) {
    /// 16 bytes in hexadecimal, 24 in base64: what a secret has at least.
    const MIN_LEN: usize = 32;
    /// Encoders wrap at 60 (od, uuencode), 64 (PEM, RFC 7468) or 76 (MIME, base64(1)) characters.
    const MIN_WRAPPED: usize = 60;
    /// Of base32; base64 has two at most.
    const MAX_PADDING: usize = 6;

    let bytes = text.as_bytes();
    let run_at = |at: usize| {
        let len = count(&bytes[at..], is_base64);
        let padding = if len == 0 {
            0
        } else {
            count(&bytes[at + len..], |b| b == b'=').min(MAX_PADDING)
        };
        at..at + len + padding
    };

    let mut at = 0;
    while at < bytes.len() {
        let run = run_at(at);
        if run.is_empty() {
            at += 1;
            continue;
        }
        at = run.end;
        if run.len() < MIN_LEN || is_words(text[run.clone()].trim_end_matches('=')) {
            continue;
        }
        let mut wrapped = run.len() >= MIN_WRAPPED;
        found.push(run);
        while wrapped {
            let newline = count(&bytes[at..], |b| matches!(b, b'\r' | b'\n'));
            let next = run_at(at + newline);
            let to_end_of_line = next.end == bytes.len() || matches!(bytes[next.end], b'\r' | b'\n');
            if newline == 0 || next.is_empty() || !to_end_of_line {
                break;
            }
            at = next.end;
            wrapped = next.len() >= MIN_WRAPPED;
            found.push(next);
        }
    }
}

/// Returns whether a run of base64 characters is rather words, numbers and names strung together: a path, an option, an
/// identifier.
fn is_words(run: &str) -> bool {
    let is_hex = |b: u8| b.is_ascii_hexdigit() || b == b'-';
    let digits = run.bytes().filter(|&b| b != b'-').count();
    if run.bytes().all(is_hex) && digits >= 32 {
        return false;
    }
    run.split(['/', '_', '-', '+']).all(is_word)
}

/// Returns whether `piece`, without separators, could be a word, a number or a short name such as `x86` or
/// `maxRetries`.
fn is_word(piece: &str) -> bool {
    let len = piece.len();
    let digits = piece.bytes().filter(u8::is_ascii_digit).count();
    if digits == len {
        return len < 20;
    }
    let pairs = || piece.as_bytes().windows(2);
    if digits > 0 {
        let changes = pairs()
            .filter(|pair| pair[0].is_ascii_digit() != pair[1].is_ascii_digit())
            .count();
        return len <= 12 && changes <= 2;
    }
    // A word ends where a capital follows a small letter, or another capital.
    let words = 1 + pairs().filter(|pair| pair[1].is_ascii_uppercase()).count();
    let all_capital = piece.bytes().all(|b| b.is_ascii_uppercase());
    len < 20 && (all_capital || len >= words * 4 || len <= 3)
}

/// The characters of base64 and base64url without padding.
fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}

fn is_base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Returns how many of the first bytes in a row are as `is` says.
fn count(bytes: &[u8], is: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|&&b| is(b)).count()
}

/// Returns how many of the last bytes in a row are as `is` says.
fn count_back(bytes: &[u8], is: impl Fn(u8) -> bool) -> usize {
    bytes.iter().rev().take_while(|&&b| is(b)).count()
}
