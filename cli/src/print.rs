//! Standard output: without buffers that keep a copy, and without characters that steer a terminal.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use serde_json::Value;

/// Writes to standard output, past the buffer of `std::io::stdout`, which is never zeroized.
///
/// # Errors
/// Of writing; a pipe without a reader is one.
pub fn out(text: &str) -> io::Result<()> {
    File::from(io::stdout().as_fd().try_clone_to_owned()?).write_all(text.as_bytes())
}

/// JSON over several lines, in ASCII except for letters: what comes from a token or a record could hold characters that
/// move the cursor or turn the direction of writing.
pub fn json(value: &Value) -> String {
    let mut safe = String::new();
    for c in format!("{value:#}").chars() {
        if c != '\n' && !is_plain(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

/// A word from a record on one line, its odd characters escaped.
pub fn word(text: &str) -> String {
    text.chars()
        .map(|c| {
            if is_plain(c) {
                c.to_string()
            } else {
                c.escape_unicode().to_string()
            }
        })
        .collect()
}

fn is_plain(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        let value = serde_json::json!({"sub": "a\u{1b}[2J\u{9b}2J\u{202e}é\u{e0001}\u{7f}\"\\"});
        let printed = json(&value);
        assert_eq!(
            printed,
            "{\n  \"sub\": \"a\\u001b[2J\\u009b2J\\u202eé\\udb40\\udc01\\u007f\\\"\\\\\"\n}"
        );
        assert_eq!(serde_json::from_str::<Value>(&printed).unwrap(), value);
        assert_eq!(word("A\nB\u{202e}é"), "A\\u{a}B\\u{202e}é");
    }
}
