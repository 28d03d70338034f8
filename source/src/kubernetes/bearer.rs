//! Bearer tokens.

use seal::Secret;

use super::error::{SourceError, credential};

/// Returns a bearer token, which a header can carry (RFC 6750, section 2.1), without spaces around it.
pub(super) fn bearer(bytes: &[u8], key: &str) -> Result<Secret, SourceError> {
    let token = bytes.trim_ascii();
    let is_token = !token.is_empty() && token.iter().all(u8::is_ascii_graphic);
    let text = std::str::from_utf8(token).ok().filter(|_| is_token);
    text.map(Secret::from).ok_or_else(|| {
        credential(
            format_args!("{key} is not a bearer token (it is empty, or has spaces or other characters in it)"),
            "write the token into it, and nothing else",
        )
    })
}
