// SPDX-License-Identifier: MIT OR Apache-2.0

//! The token of a request: in `Authorization: Bearer` (RFC 6750 section 2.1), or in the header of old clients.

use http::{HeaderMap, HeaderName, header};

/// The token of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Bearer<'a> {
    /// The token.
    pub token: &'a str,
    /// Set if the token was in the header of old clients.
    pub is_legacy: bool,
}

/// The headers with a token are malformed, or there are several tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Returns the token of a request, or `None` if the request contains none.
///
/// # Errors
/// [`Malformed`].
pub fn bearer<'a>(headers: &'a HeaderMap, legacy: Option<&HeaderName>) -> Result<Option<Bearer<'a>>, Malformed> {
    let current = single(headers, &header::AUTHORIZATION)?
        .and_then(bearer_token)
        .transpose()?;
    let old = match legacy {
        Some(name) => single(headers, name)?.map(|token| is_token(token).then_some(token).ok_or(Malformed)),
        None => None,
    };
    let old = old.transpose()?;
    match (current, old) {
        // During a migration, a client may send the same token in both headers.
        (Some(current), Some(old)) if current != old => Err(Malformed),
        (Some(token), _) => Ok(Some(Bearer {
            token,
            is_legacy: false,
        })),
        (None, old) => Ok(old.map(|token| Bearer { token, is_legacy: true })),
    }
}

/// Returns the value of a header, or `None` if the header is absent. A repeated header is an error.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Malformed> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| Malformed),
        (Some(_), Some(_)) => Err(Malformed),
    }
}

/// Returns the token of credentials, or `None` if their scheme is not `Bearer`.
fn bearer_token(credentials: &str) -> Option<Result<&str, Malformed>> {
    let (scheme, token) = credentials.split_once(' ').unwrap_or((credentials, ""));
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let token = token.trim_start_matches(' ');
    Some(is_token(token).then_some(token).ok_or(Malformed))
}

/// Returns whether a text is a `b64token` (RFC 6750 section 2.1).
fn is_token(text: &str) -> bool {
    let end = text.trim_end_matches('=');
    !end.is_empty()
        && end
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&str, &str)]) -> Result<Option<(String, bool)>, Malformed> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let legacy = HeaderName::from_static("x-session");
        let read = bearer(&map, Some(&legacy));
        read.map(|found| found.map(|found| (found.token.to_owned(), found.is_legacy)))
    }

    #[test]
    fn a_token_is_in_one_place() {
        let found = |token: &str, is_legacy| Ok(Some((token.to_owned(), is_legacy)));
        assert_eq!(
            read(&[("authorization", "Bearer a.b-c_d~e+f/g==")]),
            found("a.b-c_d~e+f/g==", false)
        );
        assert_eq!(read(&[("authorization", "bEARER   a")]), found("a", false));
        assert_eq!(read(&[("x-session", "a")]), found("a", true));
        assert_eq!(
            read(&[("authorization", "Bearer a"), ("x-session", "a")]),
            found("a", false)
        );
        assert_eq!(
            read(&[("authorization", "Basic YTpi"), ("x-session", "a")]),
            found("a", true)
        );
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("authorization", "Basic YTpi")]), Ok(None));
        for malformed in [
            &[("authorization", "Bearer")][..],
            &[("authorization", "Bearer ")],
            &[("authorization", "Bearer a b")],
            &[("authorization", "Bearer a,b")],
            &[("authorization", "Bearer =")],
            &[("authorization", "Bearer a=b")],
            &[("authorization", "Bearer\ta")],
            &[("authorization", "Bearer a"), ("authorization", "Bearer a")],
            &[("authorization", "Bearer a"), ("x-session", "b")],
            &[("x-session", "a"), ("x-session", "a")],
            &[("x-session", "")],
        ] {
            // A scheme ends at a space, so a tab makes the scheme unknown.
            let read = read(malformed);
            assert!(
                read == Err(Malformed) || read == Ok(None) && malformed[0].1.contains('\t'),
                "{malformed:?}"
            );
        }
    }

    #[test]
    fn the_header_of_old_clients_is_off_by_default() {
        let mut map = HeaderMap::new();
        map.append("x-session", "a".parse().unwrap());
        assert_eq!(bearer(&map, None), Ok(None));
    }
}
