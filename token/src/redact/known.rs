// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where known secrets are in a text, in whatever form: as they are, and by any eight of their letters and digits in a
//! row, in upper or lower case, with anything in between, escaped, or as a dump in numbers.
//!
//! The text is read in several ways, such as "letters and digits only" or "hexadecimal numbers". Each [`Reading`] is a
//! row of letters and digits with their places in the text. In each, the windows of the secrets are looked for.

use std::ops::Range;

use zeroize::Zeroizing;

use super::{MAX_SECRETS, merge};

/// The number of letters and digits of a secret that must not be visible in a row.
const WINDOW: usize = 8;

/// A shorter secret is looked for as it is only.
const MIN_LEN: usize = 4;

/// Shorter leftovers at a cut would be found in texts that were not cut.
const MIN_LEFTOVER: usize = 4;

/// Returns where `secrets` are in `text`. `None` if there are too many of them.
pub(super) fn find(text: &str, secrets: &[&str]) -> Option<Vec<Range<usize>>> {
    let mut secrets: Vec<&str> = secrets.iter().copied().filter(|secret| !secret.is_empty()).collect();
    secrets.sort_unstable();
    secrets.dedup();
    let mut found = Vec::new();
    match secrets.len() {
        0 => return Some(found),
        1..=MAX_SECRETS => {}
        _ => return None,
    }
    for secret in &secrets {
        literally(text, secret, &mut found);
        leftovers(text, secret, &mut found);
    }
    let windows = Windows::of(&secrets);
    for reading in Reading::all(text) {
        windows.find(&reading, &mut found);
        merge(&mut found);
    }
    Some(found)
}

/// A longer one has a window in it, unless it has few letters.
const MAX_LEFTOVER: usize = 64;

/// All occurrences. Of those that overlap, only some where the secret is long: windows are found in the others.
fn literally(text: &str, secret: &str, found: &mut Vec<Range<usize>>) {
    if secret.len() > MAX_LEFTOVER {
        found.extend(text.match_indices(secret).map(|(at, _)| at..at + secret.len()));
        return;
    }
    let mut from = 0;
    let mut last: Option<Range<usize>> = None;
    while let Some(at) = text[from..].find(secret) {
        let range = from + at..from + at + secret.len();
        from = range.start + text[range.start..].chars().next().map_or(1, char::len_utf8);
        match &mut last {
            Some(last) if last.end >= range.start => last.end = range.end,
            _ => found.extend(last.replace(range)),
        }
    }
    found.extend(last);
}

/// The end of a secret at the beginning of the text, and the other way round, where a window is too long for it.
fn leftovers(text: &str, secret: &str, found: &mut Vec<Range<usize>>) {
    let lengths = || (MIN_LEFTOVER..secret.len().min(MAX_LEFTOVER)).rev();
    let mut at_end = lengths().filter(|len| secret.is_char_boundary(*len));
    if let Some(len) = at_end.find(|len| text.ends_with(&secret[..*len])) {
        found.push(text.len() - len..text.len());
    }
    let mut at_start = lengths().filter(|len| secret.is_char_boundary(secret.len() - len));
    if let Some(len) = at_start.find(|len| text.starts_with(&secret[secret.len() - len..])) {
        found.push(0..len);
    }
}

/// All windows of some secrets, as numbers: the letters and digits from the most significant byte on.
struct Windows {
    sorted: Zeroizing<Vec<u64>>,
    /// Of which lengths there are some.
    lengths: Vec<usize>,
}

impl Windows {
    fn of(secrets: &[&str]) -> Self {
        let total = secrets.iter().map(|secret| secret.len()).sum();
        let mut sorted = Zeroizing::new(Vec::with_capacity(total));
        let mut lengths = Vec::new();
        for secret in secrets {
            let letters = secret.bytes().filter(u8::is_ascii_alphanumeric);
            let mut normal = Zeroizing::new(Vec::with_capacity(secret.len()));
            normal.extend(letters.map(|b| b.to_ascii_lowercase()));
            let len = normal.len().min(WINDOW);
            if len < MIN_LEN {
                continue;
            }
            if !lengths.contains(&len) {
                lengths.push(len);
            }
            sorted.extend(normal.windows(len).map(number));
        }
        sorted.sort_unstable();
        sorted.dedup();
        Self { sorted, lengths }
    }

    fn find(&self, reading: &Reading, found: &mut Vec<Range<usize>>) {
        for len in &self.lengths {
            for at in 0..(reading.letters.len() + 1).saturating_sub(*len) {
                if self
                    .sorted
                    .binary_search(&number(&reading.letters[at..at + len]))
                    .is_ok()
                {
                    let range = reading.places[at].start..reading.places[at + len - 1].end;
                    match found.last_mut() {
                        Some(last) if last.start <= range.start && last.end >= range.start => {
                            last.end = last.end.max(range.end);
                        }
                        _ => found.push(range),
                    }
                }
            }
        }
    }
}

fn number(window: &[u8]) -> u64 {
    let mut bytes = [0; WINDOW];
    bytes[..window.len()].copy_from_slice(window);
    u64::from_be_bytes(bytes)
}

/// Letters and digits that a text may stand for, in lower case, and where they stand.
#[derive(Default)]
struct Reading {
    letters: Zeroizing<Vec<u8>>,
    places: Vec<Range<usize>>,
}

impl Reading {
    fn all(text: &str) -> Vec<Self> {
        let mut all = vec![Self::plain(text, false), Self::plain(text, true)];
        for skip in [false, true] {
            let words: Vec<_> = words(text, skip).collect();
            all.push(Self::of(text, words.iter().cloned()));
            all.push(Self::hexadecimal(text, &words));
            for radix in [2, 8, 10, 16] {
                for bytes in [1, 2, 4, 8] {
                    all.push(Self::numbers(text, &words, radix, bytes));
                }
            }
        }
        all
    }

    fn push(&mut self, byte: u8, place: Range<usize>) {
        if byte.is_ascii_alphanumeric() {
            if self.letters.len() == self.letters.capacity() {
                // The vector must not leave a copy behind when it grows.
                let mut larger = Zeroizing::new(Vec::with_capacity(self.letters.len() * 2 + 256));
                larger.extend_from_slice(&self.letters);
                self.letters = larger;
            }
            self.letters.push(byte.to_ascii_lowercase());
            self.places.push(place);
        }
    }

    /// The characters of some pieces of the text.
    fn of(text: &str, pieces: impl Iterator<Item = Range<usize>>) -> Self {
        let mut reading = Self::default();
        for at in pieces.flatten() {
            reading.push(text.as_bytes()[at], at..at + 1);
        }
        reading
    }

    /// All characters, with escapes replaced if asked for.
    fn plain(text: &str, unescape: bool) -> Self {
        let mut reading = Self::default();
        let mut at = 0;
        while at < text.len() {
            let (byte, len) = match unescape.then(|| escape(&text.as_bytes()[at..])).flatten() {
                Some(escaped) => escaped,
                None => (text.as_bytes()[at], 1),
            };
            reading.push(byte, at..at + len);
            at += len;
        }
        reading
    }

    /// Hexadecimal numbers of any even length: two digits are a byte.
    fn hexadecimal(text: &str, words: &[Range<usize>]) -> Self {
        let mut reading = Self::default();
        for word in words {
            let digits = digits(text, word.clone());
            if digits.len().is_multiple_of(2) && text[digits.clone()].bytes().all(|b| b.is_ascii_hexdigit()) {
                for at in digits.step_by(2) {
                    if let Ok(byte) = u8::from_str_radix(&text[at..at + 2], 16) {
                        reading.push(byte, at..at + 2);
                    }
                }
            }
        }
        reading
    }

    /// Numbers of so many bytes, of which the first is the least significant, as od(1) and hexdump(1) print them.
    fn numbers(text: &str, words: &[Range<usize>], radix: u32, bytes: usize) -> Self {
        let mut reading = Self::default();
        for word in words {
            let digits = digits(text, word.clone());
            let Ok(number) = u64::from_str_radix(&text[digits.clone()], radix) else {
                continue;
            };
            let all = number.to_le_bytes();
            let (own, rest) = all.split_at(bytes);
            if rest.iter().all(|b| *b == 0) {
                own.iter().for_each(|b| reading.push(*b, digits.clone()));
            }
        }
        reading
    }
}

/// Letters and digits that stand together. With `skip`, without the first of each line if that can be its number or
/// address.
fn words(text: &str, skip: bool) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    text.split_inclusive('\n').flat_map(move |line| {
        let begin = start;
        start += line.len();
        let mut at = 0;
        let mut first = true;
        std::iter::from_fn(move || {
            loop {
                at += line[at..].bytes().take_while(|b| !b.is_ascii_alphanumeric()).count();
                let len = line[at..].bytes().take_while(u8::is_ascii_alphanumeric).count();
                if len == 0 {
                    return None;
                }
                let word = at..at + len;
                at = word.end;
                let is_address = skip && first && line[word.clone()].bytes().all(|b| b.is_ascii_hexdigit());
                first = false;
                if !is_address {
                    return Some(begin + word.start..begin + word.end);
                }
            }
        })
    })
}

/// The digits of a number, without `0x` and the like.
fn digits(text: &str, word: Range<usize>) -> Range<usize> {
    let prefixed = ["0x", "0X", "0o", "0b", "x", "u"];
    let prefix = prefixed.iter().find(|prefix| text[word.clone()].starts_with(**prefix));
    word.start + prefix.map_or(0, |prefix| prefix.len())..word.end
}

/// The character that an escape stands for at the beginning of `text`, and how long that is: those of C, JSON, Python
/// and shells, of URLs, of quoted-printable and of HTML.
fn escape(text: &[u8]) -> Option<(u8, usize)> {
    let number = |from: usize, most: usize, radix: u32| {
        let digits = text[from.min(text.len())..].iter().take(most);
        let len = digits.take_while(|b| (**b as char).is_digit(radix)).count();
        let digits = std::str::from_utf8(text.get(from..from + len)?).ok()?;
        let value = u32::from_str_radix(digits, radix).ok()?;
        // Whatever is not ASCII is in no token.
        Some((u8::try_from(value).unwrap_or(0), from + len))
    };
    let closed =
        |escaped: (u8, usize), by: u8| Some((escaped.0, escaped.1 + usize::from(text.get(escaped.1) == Some(&by))));
    match text {
        [b'\\', b'u' | b'x', b'{', ..] => closed(number(3, 6, 16)?, b'}'),
        [b'\\', b'u', ..] => number(2, 4, 16),
        [b'\\', b'U', ..] => number(2, 8, 16),
        [b'\\', b'x', ..] => number(2, 2, 16),
        [b'\\', b'0'..=b'7', ..] => number(1, 3, 8),
        [b'\\', _, ..] => Some((0, 2)),
        [b'%' | b'=', a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => number(1, 2, 16),
        [b'&', b'#', b'x' | b'X', ..] => closed(number(3, 6, 16)?, b';'),
        [b'&', b'#', ..] => closed(number(2, 7, 10)?, b';'),
        _ => None,
    }
}
