//! Keeping secrets out of logs where the text comes from elsewhere, such as the standard error of a program.
//!
//! Two nets, since each has holes: secrets that are known are found wherever they stand, and what merely looks like one
//! is found by its form. The second errs on the side of hiding: a long random name of no importance is lost to the
//! reader, which costs less than a token in a log.

use std::borrow::Cow;
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::is_plain;

/// What stands in a text where a secret was.
pub const REDACTED: &str = "[redacted]";

/// The longest line that [`redact_lines`] returns, in characters and without the note that it was cut.
pub const MAX_LINE_CHARS: usize = 400;

/// The most lines that [`redact_lines`] returns, without the note that there were more.
pub const MAX_LINES: usize = 20;

/// Hides everything in `text` that has the form of a secret:
///
/// - a JWT or a part of one: what begins as the base64 of a JSON object does (`eyJ…`), with all that hangs on to it by
///   dots;
/// - a MUNGE credential (`MUNGE:…:`);
/// - what follows the word `Bearer`;
/// - a private key in PEM, to its END line or the end of the text;
/// - 32 or more characters of base64, base64url or hexadecimal digits that are not words strung together, with the
///   lines that continue it where the encoder wrapped it.
pub fn redact(text: &str) -> Cow<'_, str> {
    replace(text, shaped(text))
}

/// Hides every occurrence of each of `secrets` in `text`; empty secrets are ignored.
///
/// Where the text was cut in the middle of a secret, at its end or its beginning, the four or more characters of the
/// secret that are left there are hidden as well.
pub fn redact_known<'a>(text: &'a str, secrets: &[&str]) -> Cow<'a, str> {
    replace(text, known(text, secrets))
}

/// Makes lines for a log out of what a program printed: `secrets` and all that [`redact`] knows are hidden, control and
/// invisible characters are escaped, empty lines are left out, and what is longer than [`MAX_LINE_CHARS`] or more than
/// [`MAX_LINES`] is cut with a note. Bytes that are not UTF-8 become U+FFFD.
pub fn redact_lines(output: &[u8], secrets: &[&str]) -> Vec<String> {
    // Each byte becomes at most the three of U+FFFD; no growth leaves a copy behind that nothing zeroizes.
    let mut text = Zeroizing::new(String::with_capacity(output.len() * 3));
    for chunk in output.utf8_chunks() {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    let mut secret = shaped(&text);
    secret.extend(known(&text, secrets));
    let text = replace(&text, secret);

    let mut lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    let mut printed: Vec<_> = lines.by_ref().take(MAX_LINES).map(printable).collect();
    match lines.count() {
        0 => (),
        more => printed.push(format!("… ({more} more lines)")),
    }
    printed
}

/// `line` on one line, without control characters, of bounded length.
fn printable(line: &str) -> String {
    let mut printed = String::new();
    let mut chars = line.chars();
    for c in chars.by_ref().take(MAX_LINE_CHARS) {
        if is_plain(c) {
            printed.push(c);
        } else {
            printed.extend(c.escape_debug());
        }
    }
    match chars.count() {
        0 => (),
        more => printed.push_str(&format!("… ({more} more characters)")),
    }
    printed
}

/// Puts [`REDACTED`] in place of each of `ranges`, which may overlap; their ends are boundaries of characters.
fn replace(text: &str, mut ranges: Vec<Range<usize>>) -> Cow<'_, str> {
    if ranges.is_empty() {
        return Cow::Borrowed(text);
    }
    ranges.sort_by_key(|range| range.start);
    let mut replaced = String::with_capacity(text.len());
    let mut shown = 0;
    for range in ranges {
        if range.start > shown || shown == 0 {
            replaced.push_str(&text[shown..range.start]);
            replaced.push_str(REDACTED);
        }
        shown = shown.max(range.end);
    }
    replaced.push_str(&text[shown..]);
    Cow::Owned(replaced)
}

/// Where `secrets` are in `text`, overlapping occurrences too.
fn known(text: &str, secrets: &[&str]) -> Vec<Range<usize>> {
    /// Shorter leftovers at a cut would be found in texts that were not cut.
    const MIN_LEFTOVER: usize = 4;

    let mut found = Vec::new();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        let mut from = 0;
        while let Some(at) = text[from..].find(secret) {
            found.push(from + at..from + at + secret.len());
            from += at + text[from + at..].chars().next().map_or(1, char::len_utf8);
        }
        let boundaries = || {
            (MIN_LEFTOVER..secret.len())
                .rev()
                .filter(|&len| secret.is_char_boundary(len))
        };
        if let Some(len) = boundaries().find(|&len| text.ends_with(&secret[..len])) {
            found.push(text.len() - len..text.len());
        }
        let boundaries = || (1..=secret.len().saturating_sub(MIN_LEFTOVER)).filter(|&at| secret.is_char_boundary(at));
        if let Some(at) = boundaries().find(|&at| text.starts_with(&secret[at..])) {
            found.push(0..secret.len() - at);
        }
    }
    found
}

/// Where something in `text` has the form of a secret.
fn shaped(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    tokens(text, &mut found);
    munge_credentials(text, &mut found);
    bearers(text, &mut found);
    private_keys(text, &mut found);
    random_runs(text, &mut found);
    found
}

/// Base64 of `{"`, and of `{` with white space after it, which is rare; and how many dots there must be to tell a token.
const STARTS: [(&str, usize); 5] = [("eyJ", 0), ("eyA", 2), ("ewo", 2), ("ewk", 2), ("ew0", 2)];

/// Whether a whole JWS in compact serialization is anywhere in `text`, as far as its form tells: two dots after the base64url
/// of what a JSON object begins with. Its payload or signature may be empty.
///
/// Where it does not stand alone, what is before the first dot must be a header, which names an algorithm: names of hosts and
/// files may have those letters by chance.
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

/// Whether a run of base64 characters is rather words, numbers and names strung together: a path, an option, an
/// identifier.
fn is_words(run: &str) -> bool {
    let is_hex = |b: u8| b.is_ascii_hexdigit() || b == b'-';
    let digits = run.bytes().filter(|&b| b != b'-').count();
    if run.bytes().all(is_hex) && digits >= 32 {
        return false;
    }
    run.split(['/', '_', '-', '+']).all(is_word)
}

/// Whether `piece`, without separators, could be a word, a number or a short name such as `x86` or `maxRetries`.
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

/// How many of the first bytes in a row are as `is` says.
fn count(bytes: &[u8], is: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|&&b| is(b)).count()
}

/// How many of the last bytes in a row are as `is` says.
fn count_back(bytes: &[u8], is: impl Fn(u8) -> bool) -> usize {
    bytes.iter().rev().take_while(|&&b| is(b)).count()
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::jws::tests::{RFC_7519, jwt};
    use crate::key::hmac::tests::RABBIT;

    #[test]
    fn hides_tokens_and_leaves_the_message() {
        for (text, shown) in [
            (format!("got {RFC_7519}"), "got [redacted]".to_owned()),
            (format!("token={RFC_7519}."), "token=[redacted].".into()),
            (
                format!("{{\"token\":\"{RFC_7519}\"}}"),
                "{\"token\":\"[redacted]\"}".into(),
            ),
            (
                format!("{RFC_7519}{RFC_7519} {RFC_7519}"),
                "[redacted] [redacted]".into(),
            ),
            (format!("cut {}", &RFC_7519[..30]), "cut [redacted]".into()),
            (format!("cut {}", &RFC_7519[50..]), "cut [redacted].[redacted]".into()),
            (
                format!("?t={}&x=1", jwt("{ \"alg\":\"x\"}", "{}")),
                "?t=[redacted]&x=1".into(),
            ),
            (
                "Authorization: Bearer s3cret, x".into(),
                "Authorization: Bearer [redacted], x".into(),
            ),
            (
                "authorization: bearer   s3cret".into(),
                "authorization: bearer   [redacted]".into(),
            ),
            (
                "Authorization=Bearer%20s3cret".into(),
                "Authorization=Bearer%20[redacted]".into(),
            ),
            ("Bearer: 'hunter2'".into(), "Bearer: '[redacted]'".into()),
            ("cred MUNGE:AwQDAACO5f/+x==: end".into(), "cred [redacted] end".into()),
            ("cred MUNGE:AwQDAACO5f".into(), "cred [redacted]".into()),
            (format!("key:\n{RABBIT}end"), "key:\n[redacted]\nend".into()),
            (format!("key:\n{}", &RABBIT[..150]), "key:\n[redacted]".into()),
            ("id 5f4dcc3b5aa765d61d8327deb882cf99!".into(), "id [redacted]!".into()),
            ("id 5f4dcc3b-5aa7-65d6-1d83-27deb882cf99".into(), "id [redacted]".into()),
            ("s=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ====".into(), "s=[redacted]".into()),
            ("s=correcthorsebatterystaplecorrecthorse".into(), "s=[redacted]".into()),
        ] {
            assert_eq!(redact(&text), shown);
        }
    }

    #[test]
    fn tells_a_text_that_holds_a_token_from_names() {
        for token in [
            RFC_7519.to_owned(),
            jwt("{ \"alg\":\"x\"}", "{}"),
            jwt("{\n  \"typ\": \"JWT\", \"alg\": \"x\"}", "{\"sub\":\"alice\"}"),
            jwt("{\t\"alg\":\"x\"}", "{}"),
            jwt("{\r\n\"alg\":\"x\"}", "{}"),
            format!("{}.", jwt("{\"alg\":\"none\"}", "{}").rsplit_once('.').unwrap().0),
            format!("{}..c2lnbmF0dXJl", RFC_7519.split_once('.').unwrap().0),
            RFC_7519.replace('.', "==."),
            // Its header was cut.
            format!("{}.{}", &RFC_7519[..9], RFC_7519.split_once('.').unwrap().1),
        ] {
            for text in [
                token.clone(),
                format!("@{token}"),
                format!("x,{token}"),
                format!("({token})"),
                format!("?t={token}&x=1"),
                format!("ü{token}ü"),
            ] {
                assert!(holds_token(&text), "{text}");
            }
        }
        assert!(holds_token(&format!("-t{RFC_7519}")) && holds_token(&format!("TOKEN{RFC_7519}")));
        for text in [
            "",
            "eyJ",
            "eyJ.tar.gz",
            "eyJ..",
            "/etc/keyJars-of-the-cluster.v1.json",
            "https://network-login.example.org/",
            "/var/lib/a.b.c/networking-tokens.v1.jwk",
            "monkeyA-long-name-of-a-file.tar.gz",
            "renew0-at-the-end-of-the-day.example.org.",
        ] {
            assert!(!holds_token(text), "{text}");
        }
    }

    #[test]
    fn hides_a_wrapped_secret_to_its_end() {
        let encoded = STANDARD.encode((0..100).map(|i: u8| i.wrapping_mul(91)).collect::<Vec<_>>());
        let wrapped = format!("{}\n{}\nnext line", &encoded[..76], &encoded[76..]);
        assert_eq!(redact(&wrapped), "[redacted]\n[redacted]\nnext line");
        let wrapped = format!("{}\r\n{}", &encoded[..130], &encoded[130..]);
        assert_eq!(redact(&wrapped), "[redacted]\r\n[redacted]");
    }

    #[test]
    fn leaves_what_operators_need_to_read() {
        for text in [
            "",
            "get-token: no such user",
            "no bearer token for this user; see the bearer-token section",
            "Bearer authentication failed",
            "error: /var/lib/workflow-token/tokens/users/alice/current.jwt: Permission denied",
            "/usr/lib/x86_64-linux-gnu/security/pam_unix.so: undefined symbol",
            "https://keycloak.example.org:8443/realms/cluster/protocol/openid-connect/token: 401",
            "--enable-experimental-workflow-token-exchange is not a flag",
            "DWS_WORKFLOW_TOKEN_SERVER_NAMESPACE_OVERRIDE is unset",
            "job ƒ2oLkTLb1: exit 1 after 2026-03-01T12:00:00Z",
            "munge: Error: MUNGE: no socket",
            "========================================",
        ] {
            assert_eq!(redact(text), text);
            assert!(matches!(redact(text), Cow::Borrowed(_)));
        }
    }

    #[test]
    fn hides_known_secrets_of_any_form() {
        assert_eq!(redact_known("pass hunter2hunter2.", &["hunter2"]), "pass [redacted].");
        assert_eq!(redact_known("abcd", &["abc", "bcd", ""]), "[redacted]");
        assert_eq!(redact_known("ababab", &["abab"]), "[redacted]");
        assert_eq!(redact_known("päß wörd", &["wörd", "äß"]), "p[redacted] [redacted]");
        assert_eq!(redact_known("nothing here", &["hunter2"]), "nothing here");
    }

    #[test]
    fn hides_what_a_cut_left_of_a_known_secret() {
        assert_eq!(
            redact_known("the secret is hunte", &["hunter2"]),
            "the secret is [redacted]"
        );
        assert_eq!(redact_known("nter2 was it", &["hunter2"]), "[redacted] was it");
        assert_eq!(redact_known("a shun", &["hunter2"]), "a shun");
    }

    #[test]
    fn makes_printable_lines() {
        let mut output = b"\x1b[31mfailed\x1b[0m: \"a\\b\"\r\n\n  \nx\x00y\x07\xe2\x80\xaez\xff ".to_vec();
        output.extend(RFC_7519.as_bytes());
        assert_eq!(
            redact_lines(&output, &["failed"]),
            [
                "\\u{1b}[31m[redacted]\\u{1b}[0m: \"a\\b\"",
                "x\\0y\\u{7}\\u{202e}z\u{fffd} [redacted]"
            ]
        );
    }

    #[test]
    fn cuts_long_output_and_says_so() {
        let long = format!("{}\n", "no ".repeat(200)).repeat(30);
        let lines = redact_lines(long.as_bytes(), &[]);
        assert_eq!(lines.len(), MAX_LINES + 1);
        assert!(lines[0].ends_with("… (199 more characters)"), "{}", lines[0]);
        assert_eq!(lines[MAX_LINES], "… (10 more lines)");
        assert!(redact_lines(b"", &[]).is_empty());
    }

    #[test]
    fn a_secret_across_the_cut_of_a_line_is_hidden() {
        let line = format!("{}{RFC_7519}", "a ".repeat(MAX_LINE_CHARS / 2 - 5));
        let line = &redact_lines(line.as_bytes(), &[])[0];
        assert!(!line.contains("eyJ"), "{line}");
    }

    proptest! {
        // A run of random characters is told from words by their statistics; with a fixed seed the test cannot fail by
        // chance.
        #![proptest_config(ProptestConfig { cases: 2000, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]

        /// No eight characters in a row of a random secret get through.
        #[test]
        fn never_shows_a_random_secret(
            bytes in prop::collection::vec(any::<u8>(), 24..80), before in "[^A-Za-z0-9+/=_-]{0,9}", after in "[^A-Za-z0-9+/=_-]{0,9}"
        ) {
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            for secret in [STANDARD.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes), hex] {
                let shown = redact(&format!("{before}{secret}{after}")).into_owned();
                for window in secret.as_bytes().windows(8) {
                    prop_assert!(!shown.contains(std::str::from_utf8(window).unwrap()), "{secret} {shown}");
                }
            }
        }

        /// Neither whole nor cut anywhere, in any surroundings.
        #[test]
        fn never_shows_a_token(
            sub in "\\PC{0,20}", signature in prop::collection::vec(any::<u8>(), 16..64),
            before in "\\PC{0,20}", after in "\\PC{0,20}", cut in 0..200usize
        ) {
            let token = jwt(r#"{"alg":"HS256","typ":"JWT"}"#, &format!(r#"{{"sub":{sub:?}}}"#));
            let token = format!("{}.{}", token.rsplit_once('.').unwrap().0, URL_SAFE_NO_PAD.encode(signature));
            let cut = token.len() - cut.min(token.len() - 8);
            for text in [format!("{before}{token}{after}"), format!("{before}{}", &token[..cut])] {
                for shown in [redact(&text).into_owned(), redact_lines(text.as_bytes(), &[]).join("\n")] {
                    for window in token.as_bytes()[..cut].windows(12) {
                        prop_assert!(!shown.contains(std::str::from_utf8(window).unwrap()), "{text} {shown}");
                    }
                }
            }
        }

        #[test]
        fn never_shows_a_known_secret(secret in "\\PC{1,12}", texts in prop::collection::vec("\\PC{0,9}", 1..4)) {
            let text = texts.join(&secret);
            let shown = redact_known(&text, &[&secret]).into_owned();
            prop_assert!(!shown.split(REDACTED).any(|rest| rest.contains(&secret)), "{text} {shown}");
        }

        #[test]
        fn never_panics_and_prints_no_control_character(
            output in prop::collection::vec(any::<u8>(), 0..300), text in "(eyJ|MUNGE:|Bearer |-----BEGIN |PRIVATE KEY-----|-----END |é|\\.|=|[a-z]){0,20}",
            secret in "\\PC{0,4}"
        ) {
            redact(&text);
            for line in redact_lines(&[output.as_slice(), text.as_bytes()].concat(), &[&secret]) {
                prop_assert!(!line.chars().any(char::is_control));
                prop_assert!(line.chars().count() <= MAX_LINE_CHARS * 10 + 40);
            }
        }

        #[test]
        fn a_second_pass_changes_nothing(text in "(eyJ|MUNGE:|Bearer |[A-Za-z0-9]{32}|\\.|=|:| |\n|[a-z]){0,20}") {
            let once = redact(&text).into_owned();
            prop_assert_eq!(redact(&once).into_owned(), once);
        }
    }
}
