// SPDX-License-Identifier: MIT OR Apache-2.0

//! Keeping secrets out of logs where the text comes from elsewhere, such as the standard error of a program.
//!
//! Two nets, since each has holes: secrets that are known are found wherever they stand, and what merely looks like one
//! is found by its form. The second errs on the side of hiding: a long random name of no importance is lost to the
//! reader, which costs less than a token in a log.

mod known;
mod shaped;

use std::borrow::Cow;
use std::ops::Range;

use zeroize::Zeroizing;

use crate::is_plain;

pub use shaped::holds_token;

/// The replacement of a secret.
pub const REDACTED: &str = "[redacted]";

/// The longest line that [`redact_lines`] returns, in characters and without the note that it was cut.
pub const MAX_LINE_CHARS: usize = 400;

/// The most lines that [`redact_lines`] returns, without the note that there were more.
pub const MAX_LINES: usize = 20;

/// The most secrets that are looked for.
pub const MAX_SECRETS: usize = 1000;

/// The most bytes of an output that [`redact_lines`] looks at.
pub const MAX_OUTPUT: usize = 64 << 10;

/// Hides everything in `text` that has the form of a secret:
///
/// - a JWT or a part of one: what begins as the base64 of a JSON object does (`eyJ…`), with all that hangs on to it by
///   dots;
/// - a MUNGE credential (`MUNGE:…:`);
/// - what follows the word `Bearer`;
/// - the password in a URL, or a user without one;
/// - a private key in PEM, to its END line or the end of the text;
/// - 32 or more characters of base64, base64url or hexadecimal digits that are not words strung together, with the
///   lines that continue it where the encoder wrapped it.
///
/// ```
/// use token::redact;
///
/// assert_eq!(redact("sent Authorization: Bearer example"), "sent Authorization: Bearer [redacted]");
/// assert_eq!(redact("no such user"), "no such user");
/// ```
pub fn redact(text: &str) -> Cow<'_, str> {
    replace(text, shaped::find(text))
}

/// Hides every occurrence of each of `secrets` in `text`; empty secrets are ignored. If there are more than
/// [`MAX_SECRETS`], everything is hidden.
///
/// Any eight letters and digits in a row of a secret are hidden as well, and all of a shorter one that has at least
/// four: whatever stands between them, in upper or lower case, escaped, or as numbers, as od(1) and hexdump(1) print
/// them. Where the text was cut in the middle of a secret, at its end or its beginning, so are the four or more
/// characters of it that are left there.
///
/// ```
/// use token::redact_known;
///
/// assert_eq!(redact_known("the password example is wrong", &["example"]), "the password [redacted] is wrong");
/// ```
pub fn redact_known<'a>(text: &'a str, secrets: &[&str]) -> Cow<'a, str> {
    match known::find(text, secrets) {
        Some(found) => replace(text, found),
        None => Cow::Borrowed(REDACTED),
    }
}

/// Makes lines for a log out of what a program printed: `secrets` (see [`redact_known`]) and all that [`redact`] knows
/// are hidden, control and invisible characters are escaped, empty lines are left out, and what is longer than
/// [`MAX_OUTPUT`] or [`MAX_LINE_CHARS`], or more than [`MAX_LINES`], is cut with a note. Bytes that are not UTF-8
/// become U+FFFD.
///
/// ```
/// use token::redact_lines;
///
/// let output = b"login failed\n\nthe password example is wrong\x07\n";
/// assert_eq!(redact_lines(output, &["example"]), ["login failed", r"the password [redacted] is wrong\u{7}"]);
/// ```
pub fn redact_lines(output: &[u8], secrets: &[&str]) -> Vec<String> {
    let (output, rest) = output.split_at(output.len().min(MAX_OUTPUT));
    // Each byte becomes at most the three of U+FFFD; no growth leaves a copy behind that nothing zeroizes.
    let mut text = Zeroizing::new(String::with_capacity(output.len() * 3));
    for chunk in output.utf8_chunks() {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    let Some(mut secret) = known::find(&text, secrets) else {
        return vec![format!(
            "… ({} bytes, not shown: there are too many secrets to be hidden)",
            output.len() + rest.len()
        )];
    };
    secret.extend(shaped::find(&text));
    let text = replace(&text, secret);

    let mut lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    let mut printed: Vec<_> = lines.by_ref().take(MAX_LINES).map(printable).collect();
    match lines.count() {
        0 => (),
        more => printed.push(format!("… ({more} more lines)")),
    }
    if !rest.is_empty() {
        printed.push(format!("… ({} more bytes)", rest.len()));
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
    merge(&mut ranges);
    let mut replaced = String::with_capacity(text.len());
    let mut shown = 0;
    for range in ranges {
        replaced.push_str(&text[shown..range.start]);
        replaced.push_str(REDACTED);
        shown = range.end;
    }
    replaced.push_str(&text[shown..]);
    Cow::Owned(replaced)
}

/// Sorts ranges, and makes one of those that overlap or touch.
fn merge(ranges: &mut Vec<Range<usize>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, range| {
        let touches = next.start <= range.end;
        if touches {
            range.end = range.end.max(next.end);
        }
        touches
    });
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
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
