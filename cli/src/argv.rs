// SPDX-License-Identifier: MIT OR Apache-2.0

//! Rejects secrets in arguments: every user of the node can read them in /proc, and shells keep them in their history.

use std::ffi::OsString;

use crate::print;

/// An argument contains a secret.
#[derive(Debug, thiserror::Error)]
#[error(
    "argument {position} contains {what}. Every user of this node can see arguments, so replace that secret. \
     Pass secrets in a file, on standard input (-) or in an environment variable (--env)"
)]
pub struct Exposed {
    position: usize,
    what: &'static str,
}

/// Rejects arguments that contain a token, a credential or a key, before anything can print them.
pub fn check(args: impl Iterator<Item = OsString>) -> Result<(), Exposed> {
    for (index, arg) in args.enumerate() {
        let arg = arg.to_string_lossy();
        let what = if arg.contains("PRIVATE KEY-----") || is_private_jwk(&arg) {
            "a private key"
        } else if arg.contains("MUNGE:") {
            "a MUNGE credential"
        } else if token::holds_token(&arg) {
            "a token"
        } else {
            continue;
        };
        return Err(Exposed {
            position: index + 1,
            what,
        });
    }
    Ok(())
}

/// Returns whether a text contains a JWK with a private part or a secret (RFC 7518 section 6).
fn is_private_jwk(arg: &str) -> bool {
    let plain: String = arg.chars().filter(|c| !c.is_whitespace() && *c != '\\').collect();
    let private = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
    let has = |member: &str| plain.contains(&format!("\"{member}\":"));
    has("kty") && private.into_iter().any(has)
}

/// Prints a message of clap, without the secrets in quoted arguments, and exits as clap does.
pub fn exit(error: &clap::Error) -> ! {
    let text = error.render();
    if error.use_stderr() {
        print::err_lines(&print::hidden(text));
    } else {
        let _ = error.print();
    }
    std::process::exit(error.exit_code())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(arg: &str) -> Option<String> {
        check([OsString::from("inspect"), arg.into()].into_iter())
            .err()
            .map(|e| e.to_string())
    }

    #[test]
    fn secrets_are_refused_wherever_they_stand_and_not_repeated() {
        let token = "eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl";
        // The header begins `{ "alg":…`, and the third part is empty.
        let spaced = "eyAiYWxnIjoiSFMyNTYifQ.eyJzdWIiOiJhIn0.";
        for arg in [
            token.to_owned(),
            format!("--env={token}"),
            format!("Bearer {token}"),
            format!("TOKEN='{token}'"),
            format!("@{token}"),
            format!("x,{token}"),
            format!("({token})"),
            spaced.to_owned(),
            format!("-t{spaced}"),
        ] {
            let message = refused(&arg).unwrap();
            assert!(message.starts_with("argument 2 contains a token. "), "{message}");
            assert!(!message.contains("ey"), "{message}");
        }
        assert!(refused("MUNGE:AwQDAAC:").unwrap().contains("a MUNGE credential"));
        for jwk in [
            r#"{"kty":"oct","k":"c2VjcmV0"}"#,
            r#"{"d" : "c2VjcmV0", "kty" : "OKP"}"#,
            r#"{"kty":"RSA","dp":"c2VjcmV0"}"#,
        ] {
            let message = refused(jwk).unwrap();
            assert!(
                message.contains("a private key") && !message.contains("c2VjcmV0"),
                "{message}"
            );
        }
        assert!(
            refused("-----BEGIN EC PRIVATE KEY-----\nMHc")
                .unwrap()
                .contains("a private key")
        );
    }

    #[test]
    fn names_of_files_and_jobs_pass() {
        for arg in [
            "ƒ2oLkTLb1",
            "-",
            "/var/lib/tokens/a.b.jwt",
            "eyJ.tar.gz",
            "/run/munge/munge.socket.2",
            "--env",
        ] {
            assert_eq!(refused(arg), None);
        }
    }
}
