// SPDX-License-Identifier: MIT OR Apache-2.0

//! Bearer tokens.

use seal::Secret;

use super::error::{SourceError, credential};

/// Returns a bearer token that a header can carry (RFC 6750 section 2.1), without surrounding spaces.
pub(super) fn bearer(bytes: &[u8], key: &str) -> Result<Secret, SourceError> {
    let token = bytes.trim_ascii();
    let is_token = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    let text = std::str::from_utf8(token).ok().filter(|_| is_token);
    text.map(Secret::from).ok_or_else(|| {
        credential(
            format_args!("{key} is not a bearer token (it is empty, or contains spaces or other invalid characters)"),
            "write only the token into it",
        )
    })
}
