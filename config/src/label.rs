// SPDX-License-Identifier: MIT OR Apache-2.0

//! Names of Kubernetes objects and namespaces.

/// The longest name of an object: a DNS subdomain (Kubernetes, "Object Names and IDs").
const MAX_NAME: usize = 253;

/// The longest name of a namespace: a DNS label (ibid.).
const MAX_LABEL: usize = 63;

/// Checks the name of an object: a DNS subdomain (RFC 1123), which is safe in the path of a request.
///
/// # Errors
/// Returns a description of valid names, without the name.
pub fn check_object_name(name: &str) -> Result<(), &'static str> {
    let is_part = |part: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = part.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
    };
    if name.len() <= MAX_NAME && name.split('.').all(is_part) {
        Ok(())
    } else {
        Err("must be at most 253 lower-case letters, digits, `-` and `.`, with a letter or digit at both ends")
    }
}

/// Checks the name of a namespace or a project: a DNS label (RFC 1123).
///
/// # Errors
/// Returns a description of valid names, without the name.
pub fn check_label(name: &str) -> Result<(), &'static str> {
    if name.len() <= MAX_LABEL && !name.contains('.') && check_object_name(name).is_ok() {
        Ok(())
    } else {
        Err("must be at most 63 lower-case letters, digits and `-`, with a letter or digit at both ends")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_lead_to_another_path_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "a/../b",
            "a..b",
            "-a",
            "a-",
            "a%2fb",
            "a?b",
            "A",
            "ƒ",
            &"a".repeat(254),
        ] {
            assert!(check_object_name(bad).is_err(), "{bad:?} was accepted");
        }
        for good in ["fluxjob-123", "a.b-c.9", "a"] {
            check_object_name(good).unwrap();
        }
        assert!(check_label("a.b").is_err());
        assert!(check_label(&"a".repeat(64)).is_err());
        check_label("nnf-system").unwrap();
    }
}
