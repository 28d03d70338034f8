// SPDX-License-Identifier: MIT OR Apache-2.0

//! Files behind symbolic links: only links of root and of the current user are followed.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown, lchown, symlink},
    path::{Path, PathBuf},
};

use needs::needs;
use secure_path::Owners;
use source::{
    keys::{self, Want},
    secure_file::{self, Refusal},
};
use tempfile::TempDir;
use token::Algorithm;

const OTHER: u32 = 4_000_001;

fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// A directory that contains the file `real/file` and the directory `theirs`.
struct Place {
    dir: TempDir,
}

impl Place {
    /// Creates it with a mode for the directory `theirs`.
    fn new(mode: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Self { dir };
        for name in ["real", "theirs"] {
            fs::create_dir(place.at(name)).unwrap();
        }
        fs::set_permissions(place.at("theirs"), fs::Permissions::from_mode(mode)).unwrap();
        fs::write(place.at("real/file"), "content").unwrap();
        fs::set_permissions(place.at("real/file"), fs::Permissions::from_mode(0o600)).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Creates a link below the directory. A target that starts with `@` is relative to the directory.
    fn link(&self, target: &str, name: &str) {
        let target = match target.strip_prefix('@') {
            Some(name) => self.at(name),
            None => PathBuf::from(target),
        };
        symlink(target, self.at(name)).unwrap();
    }

    /// Asserts that every function that reads files accepts this path.
    #[track_caller]
    fn follows(&self, name: &str) {
        let path = self.at(name);
        for read in [secure_file::read_public, secure_file::read_private] {
            let bytes = read(&path, 100).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(bytes.as_slice(), b"content", "{name}");
        }
        secure_path::check_way(&path, Owners::of(me())).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// Asserts that every function that reads files rejects this path. Returns the reason.
    #[track_caller]
    fn refuses(&self, name: &str) -> String {
        let path = self.at(name);
        let why = untrusted(secure_file::read_public(&path, 100));
        assert_eq!(untrusted(secure_file::read_private(&path, 100)), why);
        assert_eq!(untrusted(secure_path::check_way(&path, Owners::of(me()))), why);
        why
    }
}

#[track_caller]
fn untrusted<T>(result: Result<T, Refusal>) -> String {
    match result {
        Ok(_) => panic!("it was read"),
        Err(Refusal::Io(e)) => panic!("{e}"),
        Err(Refusal::Untrusted(why)) => why,
    }
}

#[test]
fn links_in_directories_that_are_trusted_are_followed() {
    let place = Place::new(0o755);
    place.follows("real/file");
    place.follows("./real/../theirs/.././real/file");
    for (index, target) in [
        "real/file",
        "./real/./file",
        "theirs/../real/file",
        "real/../real/file",
        "@real/file",
        "@theirs/../real/file",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("to-file-{index}");
        place.link(target, &name);
        place.follows(&name);
        // A link to a link, and a link that is relative to its own directory.
        place.link(&format!("../{name}"), &format!("theirs/{name}"));
        place.follows(&format!("theirs/{name}"));
    }
    // The parent of the root directory is the root directory.
    place.link(&format!("/../..{}", place.at("real/file").display()), "over-the-root");
    place.follows("over-the-root");
    place.link("real", "to-directory");
    place.link("../to-directory/", "theirs/to-directory");
    place.follows("to-directory/file");
    place.follows("theirs/to-directory/file");
    // `..` is the parent of the link's target.
    place.link("@theirs", "real/inner");
    place.follows("real/inner/../real/file");

    place.link("nowhere", "dangling");
    match secure_file::read_public(&place.at("dangling"), 100) {
        Err(Refusal::Io(e)) => {
            assert_eq!(e.kind(), io::ErrorKind::NotFound);
            let link = place.at("dangling");
            assert!(e.to_string().contains(link.to_str().unwrap()), "{e}");
        }
        other => panic!("{other:?}"),
    }
    assert!(untrusted(secure_file::read_public(&place.at("to-directory"), 100)).contains("not a regular file"));
}

#[test]
fn links_in_a_directory_that_others_can_write_to_are_not_followed() {
    for mode in [0o777, 0o775, 0o757] {
        let place = Place::new(mode);
        place.link("@real/file", "theirs/file");
        place.link("../real/file", "theirs/relative");
        place.link("@real", "theirs/directory");
        place.link("theirs/file", "to-file");
        place.link("theirs/directory", "to-directory");
        place.link("to-directory/file", "to-to-file");
        place.link("theirs/../real/file", "through");
        let theirs = format!("others can write to the directory {}", place.at("theirs").display());
        for (name, link) in [
            ("theirs/file", None),
            ("theirs/relative", None),
            ("theirs/directory/file", None),
            // A directory that others can replace with a link is as unsafe as a link.
            ("theirs/../real/file", None),
            ("to-file", Some("to-file")),
            ("to-directory/file", Some("to-directory")),
            ("to-to-file", Some("to-directory")),
            ("through", Some("through")),
        ] {
            let why = place.refuses(name);
            assert!(why.starts_with(&theirs) && why.contains("chmod go-w"), "{name}: {why}");
            match link {
                Some(link) => {
                    let named = format!("(the symbolic link {} leads there)", place.at(link).display());
                    assert!(why.ends_with(&named), "{name}: {why}");
                }
                None => assert!(!why.contains("link"), "{name}: {why}"),
            }
        }
    }
}

#[needs(root)]
#[test]
fn links_in_a_directory_of_another_user_are_not_followed() {
    let place = Place::new(0o755);
    place.link("@real/file", "theirs/file");
    place.link("theirs/file", "to-file");
    place.follows("to-file");
    chown(place.at("theirs"), Some(OTHER), None).unwrap();
    let says = format!(
        "the directory {} belongs to uid {OTHER} and must belong to uid 0 or root",
        place.at("theirs").display()
    );
    for name in ["theirs/file", "to-file"] {
        let why = place.refuses(name);
        assert!(why.starts_with(&says), "{name}: {why}");
    }
    // For an instance of that user, the link is as safe as one of root.
    secure_path::check_way(&place.at("to-file"), Owners::of(OTHER)).unwrap();
}

#[needs(root)]
#[test]
fn of_links_in_a_sticky_directory_those_of_others_are_not_followed() {
    let place = Place::new(0o1777);
    place.link("@real/file", "theirs/file");
    place.link("@real", "theirs/directory");
    place.link("theirs/file", "to-file");
    for name in ["theirs/file", "theirs/directory/file", "to-file"] {
        place.follows(name);
    }
    for name in ["theirs/file", "theirs/directory"] {
        lchown(place.at(name), Some(OTHER), None).unwrap();
    }
    for (name, link) in [
        ("theirs/file", "theirs/file"),
        ("theirs/directory/file", "theirs/directory"),
        ("to-file", "theirs/file"),
    ] {
        let why = place.refuses(name);
        let says = format!(
            "the symbolic link {} belongs to uid {OTHER} and must belong to uid 0 or root",
            place.at(link).display()
        );
        assert!(
            why.starts_with(&says) && why.contains("use the path of its target"),
            "{name}: {why}"
        );
    }
    // If others cannot create links in a directory, its owner has created them.
    fs::set_permissions(place.at("theirs"), fs::Permissions::from_mode(0o755)).unwrap();
    place.follows("theirs/file");
}

#[test]
fn as_many_links_are_followed_as_the_kernel_follows() {
    let place = Place::new(0o755);
    place.link("real/file", "1");
    for number in 2..=41 {
        place.link(&(number - 1).to_string(), &number.to_string());
    }
    assert!(fs::read(place.at("40")).is_ok() && fs::read(place.at("41")).is_err());
    place.follows("40");
    let why = place.refuses("41");
    assert!(
        why.contains("which is the limit") && why.contains("/1 follows 40 others"),
        "{why}"
    );
    place.link("loop", "loop");
    assert!(place.refuses("loop").contains("/loop follows 40 others"));
    assert!(place.refuses("loop/file").contains("/loop follows 40 others"));
}

#[test]
fn a_key_directory_is_not_made_or_read_over_a_link_of_others() {
    let place = Place::new(0o755);
    let make = |name: &str| keys::create(&place.at(name), Algorithm::EdDsa).map_err(|e| e.to_string());
    let read = |name: &str, want| keys::read(&place.at(name), want).map_err(|e| e.to_string());
    let kid = make("real/keys").unwrap();
    place.link("@real", "theirs/real");
    place.link("@real/keys", "theirs/keys");
    place.link(&format!("@real/keys/{kid}.pub.jwk"), "theirs/public.jwk");
    make("theirs/real/more").unwrap();

    let all = ["theirs/keys", "theirs/real/keys", "theirs/public.jwk"];
    for name in all {
        read(name, Want::Verifying).unwrap();
    }
    fs::set_permissions(place.at("theirs"), fs::Permissions::from_mode(0o777)).unwrap();
    for name in all {
        for want in [Want::Verifying, Want::Signing] {
            let error = read(name, want).unwrap_err();
            assert!(error.contains("others can write to the directory"), "{name}: {error}");
        }
    }
    let error = make("theirs/real/new").unwrap_err();
    assert!(error.contains("others can write to the directory"), "{error}");
    assert!(!place.at("real/new").exists(), "others chose where a directory is made");
}

#[test]
fn a_relative_path_is_one_below_the_working_directory() {
    // A checkout that others can write to is rejected over either link.
    let relative = Path::new("Cargo.toml");
    let absolute = std::env::current_dir().unwrap().join(relative);
    let text = |read: Result<_, Refusal>| {
        read.map(|bytes: zeroize::Zeroizing<Vec<u8>>| bytes.to_vec())
            .map_err(|e| e.to_string())
    };
    assert_eq!(
        text(secure_file::read_public(relative, 100_000)),
        text(secure_file::read_public(&absolute, 100_000))
    );
}
