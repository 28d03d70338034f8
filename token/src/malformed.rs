// SPDX-License-Identifier: MIT OR Apache-2.0

//! The reasons why a text is not a JWT.

use std::fmt;

/// The longest token that is looked at, in bytes. Linux passes no environment variable above 128 KiB to a program, and
/// HTTP servers refuse headers far shorter than this.
pub const MAX_LEN: usize = 64 * 1024;

/// One of the three parts of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// The first: the JOSE header.
    Header,
    /// The second: the claims.
    Claims,
    /// The third: the signature.
    Signature,
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header (first segment)",
            Self::Claims => "claims (second segment)",
            Self::Signature => "signature (third segment)",
        })
    }
}

/// The reason why a text is not a JWT. Holds positions and counts, never a piece of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// Nothing at all.
    #[error("the token is empty")]
    Empty,
    /// Longer than [`MAX_LEN`].
    #[error("the token is longer than the {MAX_LEN} bytes that are accepted")]
    TooLong,
    /// The text does not have three segments.
    #[error("not a JWT: it has {} instead of three separated by dots{}", count(*.0), hint(*.0))]
    Segments(usize),
    /// A segment with nothing in it.
    #[error("not a JWT: its {0} is empty")]
    EmptySegment(Segment),
    /// A segment that is not base64url without padding (RFC 7515 section 2).
    #[error("not a JWT: its {segment} is not base64url: {fault} at its byte {at}")]
    Base64 {
        /// The segment.
        segment: Segment,
        /// The error.
        fault: Base64Fault,
        /// The position, in bytes from the start of the segment.
        at: usize,
    },
    /// The decoded segment is not UTF-8.
    #[error("not a JWT: its {segment} decodes to bytes that are not UTF-8, at byte {at}")]
    NotUtf8 {
        /// The segment.
        segment: Segment,
        /// The position, in bytes from the start of the decoded segment.
        at: usize,
    },
    /// The decoded segment is not JSON.
    #[error("not a JWT: its {segment} decodes to invalid JSON, at line {line} column {column}")]
    NotJson {
        /// The segment.
        segment: Segment,
        /// Line within the decoded segment, from 1.
        line: usize,
        /// Column within the decoded segment, from 1; 0 is its end.
        column: usize,
    },
    /// A text in the decoded segment has an escape of half a character, such as `\ud83d` by itself (RFC 8259 section 8.2).
    /// Readers disagree on it, so it is refused wherever it is.
    #[error(
        "not a JWT: its {segment} has an escape of half a character (\\ud800 to \\udfff without its other half), at line {line} \
         column {column}: have its issuer write that text whole"
    )]
    HalfCharacter {
        /// Which segment.
        segment: Segment,
        /// Line within the decoded segment, from 1.
        line: usize,
        /// Column within the decoded segment, from 1.
        column: usize,
    },
    /// The decoded segment is JSON, but no object.
    #[error("not a JWT: its {0} is JSON but not an object")]
    NotObject(Segment),
    /// One of the names that are looked at occurs twice (RFC 7519 section 4 lets a reader refuse that).
    #[error("not a JWT: its {0} has a name twice, so readers would disagree on its value")]
    Repeated(Segment),
    /// The header names no algorithm (RFC 7515 section 4.1.1).
    #[error("not a JWT: its header has no `alg`")]
    NoAlg,
    /// The header's `alg` is not a string.
    #[error("not a JWT: the `alg` of its header is not a string")]
    AlgNotString,
    /// A time claim that is not a number (RFC 7519 section 2, "NumericDate").
    #[error("the claim `{0}` is not a number of seconds since 1970")]
    NotNumber(&'static str),
}

fn count(segments: usize) -> String {
    match segments {
        1 => "one segment".to_owned(),
        n => format!("{n} segments"),
    }
}

/// Returns what the text may be instead.
fn hint(segments: usize) -> &'static str {
    match segments {
        1 => " (an opaque secret? it can be used, and not be checked as a token)",
        5 => " (an encrypted token, JWE? those cannot be read without their key)",
        _ => "",
    }
}

/// An error of base64url.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base64Fault {
    /// `=`: RFC 7515 section 2 omits padding.
    Padding,
    /// `+` or `/`: the standard alphabet, not the URL and filename safe one.
    StandardAlphabet,
    /// A space, tab or line break.
    Whitespace,
    /// Any other character.
    Character,
    /// A length that no number of bytes encodes to; the text was probably cut.
    Length,
    /// Leftover bits in the last character that are not zero; the text was probably cut.
    TrailingBits,
}

impl fmt::Display for Base64Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Padding => "padding (`=`), which a JWT leaves out,",
            Self::StandardAlphabet => "a `+` or `/` of the standard alphabet",
            Self::Whitespace => "white space",
            Self::Character => "a character outside its alphabet",
            Self::Length => "an impossible length (was the text cut?)",
            Self::TrailingBits => "leftover bits (was the text cut?)",
        })
    }
}
