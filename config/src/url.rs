// SPDX-License-Identifier: MIT OR Apache-2.0

//! URLs of servers in the configuration.

use http::Uri;
use http::uri::Scheme;

/// Checks the URL of a server. The scheme is `https`, or `http` if the host is this node, because the server receives
/// secrets and its answers are trusted.
///
/// # Errors
/// Returns a description of the mistake, without the URL.
pub fn check_url(text: &str) -> Result<(), &'static str> {
    let uri = parse(text)?;
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if uri.host().is_some_and(is_loopback) => Ok(()),
        Some("http") => Err("must be https: only a server on this node (127.0.0.1, ::1, localhost) may use http"),
        _ => Err("must begin with https://"),
    }
}

/// Checks the URL of an issuer as [`check_url`] does, and rejects a query (RFC 8414 section 2).
///
/// # Errors
/// Returns a description of the mistake, without the URL.
pub fn check_issuer_url(text: &str) -> Result<(), &'static str> {
    check_url(text)?;
    if text.contains('?') {
        return Err("must not contain a query (RFC 8414)");
    }
    Ok(())
}

/// Checks the URL of an HTTP proxy: a host and a port.
///
/// # Errors
/// Returns a description of the mistake, without the URL.
pub fn check_proxy_url(text: &str) -> Result<(), &'static str> {
    let uri = parse(text)?;
    if uri.scheme_str() != Some("http") || uri.port_u16().is_none() || uri.path() != "/" || uri.query().is_some() {
        return Err("must be a host and a port, as in http://proxy.example.com:3128");
    }
    Ok(())
}

/// Returns whether a URL denotes a connection without TLS. Schemes are case-insensitive (RFC 3986 section 3.1).
#[must_use]
pub fn is_plain_url(text: &str) -> bool {
    parse(text).is_ok_and(|uri| uri.scheme() == Some(&Scheme::HTTP))
}

fn parse(text: &str) -> Result<Uri, &'static str> {
    let wrong = "is not a URL with a host, as in https://login.example.com";
    // The parser drops a fragment silently.
    if text.contains('#') {
        return Err("must not contain a fragment (`#`)");
    }
    // The parser accepts other bytes in a path, which RFC 3986 section 2 does not allow.
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("must be printable ASCII: encode other characters, as in %C3%A9");
    }
    let uri: Uri = text.parse().map_err(|_| wrong)?;
    let authority = uri.authority().ok_or(wrong)?;
    if authority.as_str().contains('@') {
        return Err("must not contain a user name or password: do not put secrets into a URL");
    }
    if uri.scheme_str().is_none() || authority.host().is_empty() {
        return Err(wrong);
    }
    Ok(uri)
}

/// Returns whether a host is this node: a loopback address, or the reserved name `localhost` (RFC 6761 section 6.3).
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse();
    address.map_or(host.eq_ignore_ascii_case("localhost"), |address: std::net::IpAddr| {
        address.is_loopback()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_goes_over_tls_or_stays_on_this_node() {
        for good in [
            "https://login.example.com",
            "https://login.example.com:8443/realms/hpc/",
            "https://[2001:db8::1]/x?y=z",
            "http://127.0.0.1:8080/token",
            "http://[::1]:8080",
            "http://localhost/token",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "/token",
            "login.example.com",
            "https://",
            "https://#",
            "http://login.example.com",
            "http://128.0.0.1",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "http://2130706433",
            "ftp://login.example.com",
            "https://user:secret@login.example.com",
            "http://127.0.0.1@login.example.com",
            "https://login.example.com/#x",
            "https://login example.com",
            "https://login.example.com/é",
            "https://login.example.com/\u{202e}",
            "https://login.example.com/\u{9b}2J",
        ] {
            assert!(check_url(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn a_scheme_may_be_in_capitals() {
        for (url, is_plain) in [
            ("http://127.0.0.1/x", true),
            ("HTTP://127.0.0.1/x", true),
            ("hTTp://localhost", true),
            ("https://127.0.0.1/x", false),
            ("HTTPS://http://", false),
            ("http", false),
        ] {
            assert_eq!(is_plain_url(url), is_plain, "{url}");
        }
        assert!(check_url("HTTP://login.example.com").is_err());
    }

    #[test]
    fn an_issuer_has_no_query_and_a_proxy_nothing_but_a_host_and_a_port() {
        assert!(check_issuer_url("https://login.example.com/?realm=hpc").is_err());
        assert_eq!(check_issuer_url("https://login.example.com/realms/hpc"), Ok(()));
        for good in ["http://proxy:3128", "http://10.0.0.1:3128/", "http://[::1]:3128"] {
            assert_eq!(check_proxy_url(good), Ok(()), "{good}");
        }
        for bad in [
            "proxy:3128",
            "http://proxy",
            "https://proxy:3128",
            "socks5://proxy:1080",
            "http://user:secret@proxy:3128",
            "http://proxy:3128/x",
        ] {
            assert!(check_proxy_url(bad).is_err(), "{bad} was accepted");
        }
    }
}
