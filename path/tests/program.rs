// SPDX-License-Identifier: MIT OR Apache-2.0

//! Rejects programs and sockets that another user could have created or changed.

use std::{
    fs, io,
    os::unix::{
        fs::{PermissionsExt, chown, symlink},
        net::UnixListener,
    },
    path::Path,
};

use secure_path::{Owners, Refusal, check_program, check_socket, find_program};
use tempfile::TempDir;

use needs::needs;

const OTHER: u32 = 4_000_001;

fn place() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("bin")).unwrap();
    set_mode(&dir.path().join("bin"), 0o755);
    fs::write(dir.path().join("bin/program"), "#!/bin/sh\n").unwrap();
    set_mode(&dir.path().join("bin/program"), 0o755);
    dir
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[track_caller]
fn refused<T>(result: Result<T, Refusal>) -> String {
    match result {
        Ok(_) => panic!("it was accepted"),
        Err(Refusal::Io(e)) => panic!("{e}"),
        Err(Refusal::Untrusted(why)) => why,
    }
}

#[test]
fn a_program_that_others_can_change_is_refused() {
    let dir = place();
    let (bin, program) = (dir.path().join("bin"), dir.path().join("bin/program"));
    check_program(&program, Owners::process()).unwrap();
    for mode in [0o775, 0o757] {
        set_mode(&program, mode);
        assert!(refused(check_program(&program, Owners::process())).contains("lets others write to it"));
        set_mode(&program, 0o755);
        set_mode(&bin, mode);
        assert!(refused(check_program(&program, Owners::process())).contains("others can write to the directory"));
        set_mode(&bin, 0o755);
    }
    symlink(&program, dir.path().join("link")).unwrap();
    check_program(&dir.path().join("link"), Owners::process()).unwrap();
    set_mode(&bin, 0o777);
    assert!(refused(check_program(&dir.path().join("link"), Owners::process())).contains("the symbolic link"));
}

#[needs(root)]
#[test]
fn a_program_of_another_user_is_refused() {
    let dir = place();
    let program = dir.path().join("bin/program");
    chown(&program, Some(OTHER), None).unwrap();
    assert!(refused(check_program(&program, Owners::process())).contains("owned by uid 4000001"));
    check_program(&program, Owners::process().and(OTHER)).unwrap();
}

#[test]
fn a_program_that_cannot_be_run_is_an_error() {
    let dir = place();
    set_mode(&dir.path().join("bin/program"), 0o644);
    match check_program(&dir.path().join("bin/program"), Owners::process()) {
        Err(Refusal::Io(e)) => assert_eq!(e.kind(), io::ErrorKind::PermissionDenied),
        other => panic!("{other:?}"),
    }
    assert!(refused(check_program(&dir.path().join("bin"), Owners::process())).contains("not a regular file"));
    match find_program(Path::new("no-such-program-anywhere"), Owners::process()) {
        Err(Refusal::Io(e)) => assert_eq!(e.kind(), io::ErrorKind::NotFound),
        other => panic!("{other:?}"),
    }
    let found = find_program(Path::new("sh"), Owners::process()).unwrap();
    assert!(found.is_absolute() && found.ends_with("sh"));
}

#[needs(root)]
#[test]
fn a_socket_that_others_could_have_created_is_rejected() {
    let dir = place();
    let path = dir.path().join("bin/socket");
    let first = UnixListener::bind(&path).unwrap();
    let checked = check_socket(&path, Owners::process()).unwrap();
    assert!(checked.still_holds(&path));
    fs::remove_file(&path).unwrap();
    let _second = UnixListener::bind(&path).unwrap();
    assert!(!checked.still_holds(&path), "another listener looks the same");
    drop(first);
    let checked = check_socket(&path, Owners::process()).unwrap();
    set_mode(&dir.path().join("bin"), 0o777);
    assert!(
        !checked.still_holds(&path),
        "a directory that was opened looks the same"
    );
    assert!(refused(check_socket(&path, Owners::process())).contains("others can write to the directory"));
    let program = dir.path().join("bin/program");
    set_mode(&dir.path().join("bin"), 0o1777);
    assert!(refused(check_socket(&program, Owners::process())).contains("not a socket"));
    check_socket(&path, Owners::process()).unwrap();
    chown(&path, Some(OTHER), None).unwrap();
    assert!(refused(check_socket(&path, Owners::process())).contains("owned by uid 4000001"));
}
