//! Standard output, without buffers that keep a copy, and standard error: neither with characters that steer a terminal.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use serde_json::Value;
use token::is_plain;

/// Writes to standard output, past the buffer of `std::io::stdout`, which is never zeroized.
///
/// # Errors
/// Of writing; a pipe without a reader is one.
pub fn out(text: &str) -> io::Result<()> {
    File::from(io::stdout().as_fd().try_clone_to_owned()?).write_all(text.as_bytes())
}

/// Writes one line to standard error: what a file, a server or an argument says could be anything.
pub fn err(text: impl Display) {
    // There is nowhere else to say it.
    let _ = writeln!(io::stderr(), "flux-workflow-token: {}", word(&text.to_string()));
}

/// The same for a text of several lines that begins as it is to.
pub fn err_lines(text: &str) {
    for line in text.lines() {
        let _ = writeln!(io::stderr(), "{}", word(line));
    }
}

/// A text that quotes an argument where a secret may have been given in place of a name, with all hidden that looks like one.
pub fn hidden(text: impl Display) -> String {
    token::redact(&text.to_string()).into_owned()
}

/// JSON over several lines, in ASCII except for letters: what comes from a token or a record could hold characters that
/// move the cursor or turn the direction of writing.
pub fn json(value: &Value) -> String {
    escaped(&format!("{value:#}"))
}

/// The same on one line.
pub fn json_line(value: &Value) -> String {
    escaped(&value.to_string())
}

/// JSON in which only strings have characters that are not plain.
fn escaped(json: &str) -> String {
    let mut safe = String::new();
    for c in json.chars() {
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
    token::plain(text).into_owned()
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
        assert_eq!(
            json_line(&value),
            printed.replace("\n  ", "").replace('\n', "").replace(": ", ":")
        );
        assert_eq!(word("A\nB\u{202e}é"), "A\\u{a}B\\u{202e}é");
    }
}
