// SPDX-License-Identifier: MIT OR Apache-2.0

//! Identity tokens, which a login stores for its user. Projects use their claims.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
};

use config::{Identity, IdentityToken, Values};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    Error,
    secure_file::{self, Refusal},
};

/// Reads the identity token of a user; none if it does not exist. The file and its directories must belong to the user,
/// root or the user of this process, and nobody else may read the file. It may belong to the user, because a token is
/// not trusted before it is verified. Blocks.
///
/// # Errors
/// The file cannot be read, or others can read or change it.
pub fn read_identity(identity: &Identity, user: &Values) -> Result<Option<Zeroizing<String>>, Error> {
    let template = match &identity.token {
        IdentityToken::File(template) => template,
        IdentityToken::Login(client) => return crate::login::identity_token(client, user.uid),
    };
    let path = match template.fill(user) {
        Ok(path) => PathBuf::from(path),
        Err(e) => return Err(Error::new("its name cannot be formed", e)),
    };
    let at = |summary: &str, detail: &dyn Display| Error::new(summary, format!("{}: {detail}", path.display()));
    let file = match secure_file::open_private(Some(user.uid), Path::new(template.prefix()), &path) {
        Ok(file) => file,
        Err(Refusal::Io(e)) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(Refusal::Io(e)) => return Err(at("it could not be read", &e)),
        Err(Refusal::Untrusted(why)) => return Err(at("its file is not safe", &why)),
    };
    let mut bytes = secure_file::read(file, token::MAX_LEN + 1).map_err(|e| at("it could not be read", &e))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.len() > token::MAX_LEN {
        let detail = format!("longer than {} bytes", token::MAX_LEN);
        return Err(at("it is too long", &detail));
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Some(Zeroizing::new(text.to_owned()))),
        Err(_) => Err(at("it is not a token", &"not UTF-8")),
    }
}

/// Returns the values of the claim in the claims of a verified token. A string is one value; an array of strings
/// contains several.
///
/// # Errors
/// [`Unclaimed`].
pub fn claimed(identity: &Identity, user: &str, claims: &Value) -> Result<Vec<String>, Unclaimed> {
    let named = member(claims, &identity.user).ok_or_else(|| Unclaimed::Missing(identity.user.clone()))?;
    let of_user = named.as_str().and_then(|named| identity.user_template.user(named));
    if of_user != Some(user) {
        return Err(Unclaimed::OtherUser(identity.user.clone()));
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match member(claims, &identity.claim) {
        Some(Value::Array(values)) => Ok(values.iter().filter_map(text).collect()),
        Some(Value::String(value)) => Ok(vec![value.clone()]),
        Some(_) => Err(Unclaimed::NoText(identity.claim.clone())),
        None => Err(Unclaimed::Missing(identity.claim.clone())),
    }
}

/// The reason why a verified identity token provides no claims of a user. Each variant contains the name of the claim.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unclaimed {
    /// The token belongs to another user.
    #[error("it is the token of another user (claim {})", .0.escape_debug())]
    OtherUser(String),
    /// The claim is missing.
    #[error("it has no claim {}", .0.escape_debug())]
    Missing(String),
    /// The claim is neither a string nor an array.
    #[error("its claim {} is neither a string nor an array", .0.escape_debug())]
    NoText(String),
}

/// Finds a member by its name, or by a path of names separated by periods. Names of claims may contain periods; a
/// longer name takes precedence over a path.
fn member<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let object = object.as_object()?;
    object.get(path).or_else(|| {
        let mut splits = path.rmatch_indices('.');
        splits.find_map(|(at, _)| member(object.get(&path[..at])?, &path[at + 1..]))
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, chown, symlink},
    };

    use config::{Template, UserTemplate};
    use needs::needs;
    use serde_json::json;

    use super::*;

    const USER: u32 = 4_000_001;

    fn identity(dir: &Path) -> Identity {
        Identity {
            token: IdentityToken::File(Template::parse(&format!("{}/{{uid}}/identity.jwt", dir.display())).unwrap()),
            trust: "site".to_owned(),
            claim: "groups".to_owned(),
            user: "sub".to_owned(),
            user_template: UserTemplate::default(),
        }
    }

    fn read(dir: &Path, uid: u32) -> Result<Option<String>, String> {
        let user = Values {
            f58: String::new(),
            jobid: 0,
            uid,
            user: Some("alice".to_owned()),
            ..Values::example()
        };
        match read_identity(&identity(dir), &user) {
            Ok(token) => Ok(token.map(|token| token.to_string())),
            Err(e) => Err(e.to_string()),
        }
    }

    fn place(dir: &Path, uid: u32, mode: u32, content: &[u8]) -> PathBuf {
        let dir = dir.join(uid.to_string());
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("identity.jwt");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_token_of_the_user_is_read_and_a_user_without_one_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        place(dir.path(), 7, 0o600, b"canary\n");
        assert_eq!(read(dir.path(), 7), Ok(Some("canary".to_owned())));
        assert_eq!(read(dir.path(), 8), Ok(None));
    }

    #[test]
    fn what_others_can_read_or_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o640, 0o604, 0o660, 0o602] {
            let path = place(dir.path(), 7, mode, b"canary");
            let error = read(dir.path(), 7).unwrap_err();
            assert!(
                error.contains("chmod 0600") && !error.contains("canary"),
                "{mode:o}: {error}"
            );
            fs::remove_file(path).unwrap();
        }
        let other = place(dir.path(), 9, 0o600, b"canary");
        fs::create_dir_all(dir.path().join("7")).unwrap();
        let path = dir.path().join("7/identity.jwt");
        symlink(&other, &path).unwrap();
        assert!(read(dir.path(), 7).unwrap_err().contains("symbolic link"));
        fs::remove_file(&path).unwrap();
        fs::hard_link(&other, &path).unwrap();
        assert!(read(dir.path(), 7).unwrap_err().contains("hard links"));
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(read(dir.path(), 7).unwrap_err().contains("not a regular file"));
    }

    #[test]
    fn what_is_too_long_or_no_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        place(dir.path(), 7, 0o600, &vec![b'x'; token::MAX_LEN + 1]);
        assert!(read(dir.path(), 7).unwrap_err().contains("longer than"));
        place(dir.path(), 7, 0o600, &vec![b'x'; token::MAX_LEN]);
        assert_eq!(read(dir.path(), 7).unwrap().unwrap().len(), token::MAX_LEN);
        place(dir.path(), 7, 0o600, b"can\xffary");
        assert!(read(dir.path(), 7).unwrap_err().contains("UTF-8"));
    }

    #[needs(root)]
    #[test]
    fn a_file_of_the_user_is_for_that_user_only() {
        let dir = tempfile::tempdir().unwrap();
        for (uid, owner, ok) in [(USER, USER, true), (USER + 1, USER, false)] {
            let path = place(dir.path(), uid, 0o600, b"canary");
            chown(&path, Some(owner), None).unwrap();
            chown(path.parent().unwrap(), Some(owner), None).unwrap();
            assert_eq!(read(dir.path(), uid).is_ok(), ok, "of {owner} for {uid}");
        }
    }

    #[needs(root)]
    #[test]
    fn a_link_of_the_user_is_not_followed_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        place(&dir.path().join("others"), USER, 0o600, b"canary");
        let theirs = dir.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        symlink("../others", theirs.join("link")).unwrap();
        assert_eq!(read(&theirs.join("link"), USER), Ok(Some("canary".to_owned())));
        // The user may own a directory of the path and choose its contents, but cannot link to files of others.
        chown(&theirs, Some(USER), None).unwrap();
        let error = read(&theirs.join("link"), USER).unwrap_err();
        assert!(error.contains("belongs to uid 4000001"), "{error}");
        place(&theirs, USER, 0o600, b"canary");
        assert_eq!(read(&theirs, USER), Ok(Some("canary".to_owned())));
    }

    fn claims_of(user: &str, claim: &str, claims: Value) -> Result<Vec<String>, String> {
        let identity = Identity {
            claim: claim.to_owned(),
            user: user.to_owned(),
            ..identity(Path::new("/"))
        };
        claimed(&identity, "alice", &claims).map_err(|e| e.to_string())
    }

    fn values(all: &[&str]) -> Result<Vec<String>, String> {
        Ok(all.iter().map(|value| (*value).to_owned()).collect())
    }

    #[test]
    fn only_the_token_of_the_user_counts_and_the_claim_is_a_string_or_several() {
        let claimed = |claims| claims_of("sub", "groups", claims);
        let of_alice = |groups| claimed(json!({"sub": "alice", "groups": groups}));
        assert_eq!(of_alice(json!(["a", 1, "b"])), values(&["a", "b"]));
        assert_eq!(of_alice(json!("a b")), values(&["a b"]));
        assert_eq!(of_alice(json!([])), values(&[]));
        for (claims, says) in [
            (json!({"sub": "bob", "groups": ["a"]}), "of another user (claim sub)"),
            (
                json!({"sub": ["alice"], "groups": ["a"]}),
                "of another user (claim sub)",
            ),
            (json!({"groups": ["a"]}), "has no claim sub"),
            (json!({"sub": "alice"}), "has no claim groups"),
            (json!({"sub": "alice", "groups": {"a": 1}}), "claim groups is neither"),
            (json!({"sub": "alice", "groups": null}), "claim groups is neither"),
            (json!(["alice"]), "has no claim sub"),
        ] {
            let error = claimed(claims.clone()).unwrap_err();
            assert!(error.contains(says), "{claims}: {error}");
        }
    }

    #[test]
    fn a_claim_may_be_a_member_of_others() {
        // Roles in Keycloak: those of the realm, and those of a client whose name contains periods.
        let claims = json!({
            "user": {"name": "alice"},
            "realm_access": {"roles": ["fusion"]},
            "resource_access": {"hpc.example.org": {"roles": ["hydro"]}},
            "https://hpc.example.org/groups": ["climate"],
            "a.b": {"c": "longer"}, "a": {"b.c": "shorter", "b": {"c": "shortest"}},
        });
        for (claim, expected) in [
            ("realm_access.roles", "fusion"),
            ("resource_access.hpc.example.org.roles", "hydro"),
            ("https://hpc.example.org/groups", "climate"),
            ("a.b.c", "longer"),
        ] {
            assert_eq!(
                claims_of("user.name", claim, claims.clone()),
                values(&[expected]),
                "{claim}"
            );
        }
        for missing in [
            "realm_access.role",
            "realm_access.roles.0",
            "roles",
            "realm_access.",
            ".roles",
            ".",
        ] {
            let error = claims_of("user.name", missing, claims.clone()).unwrap_err();
            assert_eq!(error, format!("it has no claim {missing}"));
        }
        let error = claims_of("user.nam", "a", claims.clone()).unwrap_err();
        assert_eq!(error, "it has no claim user.nam");
        let error = claims_of("user.name", "realm_access", claims).unwrap_err();
        assert!(error.contains("claim realm_access is neither"), "{error}");
    }
}
