// SPDX-License-Identifier: MIT OR Apache-2.0

//! A FUSE file system whose user claims that root owns everything in it.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::AsRawFd,
    path::Path,
    thread,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use secure_path::{Owners, Refusal, check_program, check_way};

use needs::needs;

const OTHER: u32 = 4_000_001;

/// A mount that is removed when dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

/// Mounts a file system as fusermount(1) would for `uid`, if possible.
fn mounted(at: &Path, uid: u32) -> Option<Mounted<'_>> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
    let options = format!(
        "fd={},rootmode=40755,user_id={uid},group_id=0,allow_other",
        device.as_raw_fd()
    );
    mount(Some("liar"), at, Some("fuse"), MsFlags::empty(), Some(&*options)).ok()?;
    thread::spawn(move || serve(device));
    Some(Mounted(at))
}

/// Responds as linux/fuse.h requires: a directory that contains any program that is looked
/// up, all owned by root.
fn serve(mut device: File) {
    const LOOKUP: u32 = 1;
    const GETATTR: u32 = 3;
    const STATFS: u32 = 17;
    const INIT: u32 = 26;
    const ENOSYS: i32 = 38;
    let attributes = |node: u64| {
        let mut all = Vec::new();
        all.extend(node.to_ne_bytes());
        all.extend([0; 52]);
        let mode: u32 = if node == 1 { 0o40755 } else { 0o100755 };
        for value in [mode, 1, 0, 0, 0, 0, 0] {
            all.extend(value.to_ne_bytes());
        }
        all
    };
    let mut request = vec![0; 1 << 20];
    while let Ok(len) = device.read(&mut request) {
        if len < 40 {
            return;
        }
        let number = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("four bytes"));
        let node = u64::from_ne_bytes(request[16..24].try_into().expect("eight bytes"));
        let body = match number(4) {
            INIT => [7, 31, 0, 0, 0, 4096, 1]
                .iter()
                .flat_map(|n: &u32| n.to_ne_bytes())
                .chain([0; 36])
                .collect(),
            LOOKUP => [&2u64.to_ne_bytes()[..], &[0; 32], &attributes(2)].concat(),
            GETATTR => [&[0; 16][..], &attributes(node)].concat(),
            STATFS => vec![0; 80],
            _ => Vec::new(),
        };
        let error = if body.is_empty() { -ENOSYS } else { 0 };
        let mut answer = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
        answer.extend(error.to_ne_bytes());
        answer.extend(&request[8..16]);
        answer.extend(body);
        if device.write_all(&answer).is_err() {
            return;
        }
    }
}

#[needs(root, fuse)]
#[test]
fn owners_in_a_fuse_mount_of_another_user_are_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    {
        let _mounted = mounted(dir.path(), OTHER).expect("root mounts FUSE file systems");
        for result in [
            check_way(&program, Owners::process()),
            check_program(&program, Owners::process()),
        ] {
            match result {
                Err(Refusal::Untrusted(why)) => {
                    assert!(why.contains("FUSE file system that uid 4000001 mounted"), "{why}");
                }
                other => panic!("{other:?}"),
            }
        }
        // Accepted for paths that concern that user only.
        check_way(&program, Owners::process().and_user(Some(OTHER))).unwrap();
    }
    let _mounted = mounted(dir.path(), 0).expect("root mounts FUSE file systems");
    check_program(&program, Owners::process()).unwrap();
}
