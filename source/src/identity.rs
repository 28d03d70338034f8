//! Identity tokens: what a login has left for its user, from which a site's projects take the claims of that user.

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
};

use config::{Identity, Values};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{
    Error,
    secure_file::{self, Refusal},
};

/// Reads the identity token of a user; nothing where there is none. The file and its directories may belong to the user, as
/// a token says nothing before it is verified; but not to anybody else than the user, root and whom this runs as, and nobody
/// else may read it. Blocks.
///
/// # Errors
/// It cannot be read, or others can read or change it.
pub fn read_identity(identity: &Identity, user: &Values) -> Result<Option<Zeroizing<String>>, Error> {
    let path = match identity.token.fill(user) {
        Ok(path) => PathBuf::from(path),
        Err(e) => return Err(Error::new("its name cannot be formed", e)),
    };
    let at = |summary: &str, detail: &dyn Display| Error::new(summary, format!("{}: {detail}", path.display()));
    let file = match secure_file::open_private(Some(user.uid), Path::new(identity.token.prefix()), &path) {
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
        Err(_) => Err(at("it is no token", &"not UTF-8")),
    }
}

/// The claims of a verified identity token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The values of the claim; none where there is no such claim.
    Values(Vec<String>),
    /// It is the token of somebody else.
    Other,
}

/// Takes the values of the claim out of the claims of a token that was verified.
pub fn claimed(identity: &Identity, user: &str, claims: &Value) -> Claimed {
    if claims.get(&identity.user).and_then(Value::as_str) != Some(user) {
        return Claimed::Other;
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Claimed::Values(match claims.get(&identity.claim) {
        Some(Value::Array(values)) => values.iter().filter_map(text).collect(),
        Some(value) => text(value).into_iter().collect(),
        None => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, chown, symlink},
    };

    use config::Template;
    use needs::needs;
    use serde_json::json;

    use super::*;

    const USER: u32 = 4_000_001;

    fn identity(dir: &Path) -> Identity {
        Identity {
            token: Template::parse(&format!("{}/{{uid}}/identity.jwt", dir.display())).unwrap(),
            trust: "site".to_owned(),
            claim: "groups".to_owned(),
            user: "sub".to_owned(),
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
        // The user may own a directory on the way, and so choose what is in it, but not among what others have.
        chown(&theirs, Some(USER), None).unwrap();
        let error = read(&theirs.join("link"), USER).unwrap_err();
        assert!(error.contains("belongs to uid 4000001"), "{error}");
        place(&theirs, USER, 0o600, b"canary");
        assert_eq!(read(&theirs, USER), Ok(Some("canary".to_owned())));
    }

    #[test]
    fn only_the_token_of_the_user_counts_and_the_claim_is_a_string_or_several() {
        let identity = identity(Path::new("/"));
        let claimed = |claims: Value| claimed(&identity, "alice", &claims);
        let values = |all: &[&str]| Claimed::Values(all.iter().map(|v| (*v).to_owned()).collect());
        assert_eq!(
            claimed(json!({"sub": "alice", "groups": ["a", 1, "b"]})),
            values(&["a", "b"])
        );
        assert_eq!(claimed(json!({"sub": "alice", "groups": "a b"})), values(&["a b"]));
        assert_eq!(claimed(json!({"sub": "alice"})), values(&[]));
        assert_eq!(claimed(json!({"sub": "alice", "groups": {"a": 1}})), values(&[]));
        for other in [
            json!({"sub": "bob", "groups": ["a"]}),
            json!({"groups": ["a"]}),
            json!({"sub": ["alice"]}),
        ] {
            assert_eq!(claimed(other), Claimed::Other);
        }
    }
}
