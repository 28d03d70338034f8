// SPDX-License-Identifier: MIT OR Apache-2.0

//! Characters that are shown as they are, and those that could steer a terminal or mislead a reader.

use std::borrow::Cow;

/// Returns whether a character may be printed as it is: no control or format character, which could move the cursor,
/// turn the direction of writing, or be invisible.
///
/// ```
/// use token::is_plain;
///
/// assert!(is_plain('ä') && is_plain('"'));
/// assert!(!is_plain('\n') && !is_plain('\u{202e}'));
/// ```
#[must_use]
pub fn is_plain(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// `text` on one line, for a message or a log: what is not [plain](is_plain) is escaped, as `\u{202e}`.
///
/// ```
/// use token::plain;
///
/// assert_eq!(plain("a job of alice"), "a job of alice");
/// assert_eq!(plain("two\nlines"), r"two\u{a}lines");
/// ```
#[must_use]
pub fn plain(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_plain(c) {
            safe.push(c);
        } else {
            safe.extend(c.escape_unicode());
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_or_misleads_is_escaped_and_nothing_else() {
        for text in ["", "ƒ2oLkTLb1: \"é\" 'ß' C:\\ 日本 …", "a b"] {
            assert!(matches!(plain(text), Cow::Borrowed(same) if same == text));
        }
        for (text, shown) in [
            ("a\nb\r\t\0", "a\\u{a}b\\u{d}\\u{9}\\u{0}"),
            (
                "\u{1b}]0;x\u{7}\u{1b}[2J\u{9b}2J\u{7f}",
                "\\u{1b}]0;x\\u{7}\\u{1b}[2J\\u{9b}2J\\u{7f}",
            ),
            (
                "\u{202e}\u{2066}\u{200b}\u{2028}\u{feff}\u{e0001}",
                "\\u{202e}\\u{2066}\\u{200b}\\u{2028}\\u{feff}\\u{e0001}",
            ),
        ] {
            assert_eq!(plain(text), shown);
        }
    }
}
