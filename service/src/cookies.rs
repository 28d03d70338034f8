// SPDX-License-Identifier: MIT OR Apache-2.0

//! Cookies. Their names begin with `__Host-`: browsers accept such a cookie only from this host, over https and for all
//! paths, so no other host of the domain can set one (RFC 6265bis section 4.1.3.2).

use axum::http::{HeaderMap, HeaderValue, header};
use cookie::{Cookie, SameSite, time::Duration};

/// The session.
pub const SESSION: &str = "__Host-workflow-token";

/// A login in progress.
pub const LOGIN: &str = "__Host-workflow-token-login";

/// The longest accepted value, in bytes.
const MAX_VALUE: usize = 4096;

/// Returns the value of a cookie, or `None` if the name is repeated, since somebody else may have set one of them.
pub fn get<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok());
    let pairs = lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let mut values = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
    match (values.next(), values.next()) {
        (Some(value), None) if value.len() <= MAX_VALUE => Some(value),
        _ => None,
    }
}

/// Returns the header that sets a cookie for a number of seconds.
pub fn set(name: &'static str, value: &str, seconds: u64) -> HeaderValue {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    header(Cookie::build((name, value.to_owned())).max_age(Duration::seconds(seconds)))
}

/// Returns the header that removes a cookie.
pub fn remove(name: &'static str) -> HeaderValue {
    header(Cookie::build((name, "")).max_age(Duration::ZERO))
}

fn header(cookie: cookie::CookieBuilder<'_>) -> HeaderValue {
    let cookie = cookie
        .path("/")
        .secure(true)
        .http_only(true)
        .same_site(SameSite::Lax)
        .build();
    // Names and values are letters, digits, `-` and `_`.
    let mut value = HeaderValue::try_from(cookie.to_string()).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_there_once() {
        let get = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::COOKIE, line.parse().unwrap());
            }
            get(&headers, SESSION).map(str::to_owned)
        };
        assert_eq!(get(&["a=b; __Host-workflow-token=x"]), Some("x".to_owned()));
        assert_eq!(get(&["a=b", "__Host-workflow-token=x"]), Some("x".to_owned()));
        assert_eq!(get(&["__Host-workflow-token=x; __Host-workflow-token=y"]), None);
        assert_eq!(get(&["__Host-workflow-token=x", "__Host-workflow-token=x"]), None);
        assert_eq!(get(&["__Host-workflow-token-login=x"]), None);
        assert_eq!(get(&["__host-workflow-token=x"]), None);
        assert_eq!(get(&[]), None);
    }

    #[test]
    fn a_cookie_is_for_this_host_and_no_script() {
        let set = set(SESSION, "x", 60);
        let text = set.to_str().unwrap();
        for part in [
            "__Host-workflow-token=x",
            "Secure",
            "HttpOnly",
            "SameSite=Lax",
            "Path=/",
            "Max-Age=60",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("Domain"), "{text}");
        assert!(remove(SESSION).to_str().unwrap().contains("Max-Age=0"));
    }
}
