//! Makes the runner ignore tests that cannot run on this machine, with the reason.

#![forbid(unsafe_code)]

use std::{
    fs, io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
    process::{Command, Stdio},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proc_macro::{TokenStream, TokenTree};

/// Ignores the test below if something is missing: `#[needs(munged, root)]` stands above `#[test]`. The macro examines the
/// machine that compiles the test, so every runner reports it as ignored.
#[proc_macro_attribute]
pub fn needs(what: TokenStream, test: TokenStream) -> TokenStream {
    let mut names = what.into_iter().filter_map(|token| match token {
        TokenTree::Ident(name) => Some(name.to_string()),
        _ => None,
    });
    let Some(reason) = names.find_map(|name| missing(&name)) else {
        return test;
    };
    let mut ignored: TokenStream = format!("#[ignore = {reason:?}]").parse().expect("an attribute");
    ignored.extend(test);
    ignored
}

/// Returns why a test that needs something cannot run.
fn missing(what: &str) -> Option<&'static str> {
    let (present, reason) = match what {
        "fuse" => (
            mounts_fuse(),
            "this process cannot mount FUSE file systems: it needs root, CAP_SYS_ADMIN and access to /dev/fuse",
        ),
        "munged" => (
            ["/usr/sbin/munged", "/usr/local/sbin/munged", "/usr/bin/munged"]
                .iter()
                .any(|path| Path::new(path).exists()),
            "munged is not installed: install the package munge",
        ),
        "openssl" => (runs("openssl", "version"), "openssl is not installed"),
        "root" => (
            fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0),
            "only root can become other users and give files to them",
        ),
        "setpriv" => (
            Path::new("/usr/bin/setpriv").exists(),
            "setpriv is not installed: install the package util-linux",
        ),
        "valgrind" => (runs("valgrind", "--version"), "valgrind is not installed"),
        _ => panic!("needs({what}): known are fuse, munged, openssl, root, setpriv and valgrind"),
    };
    (!present).then_some(reason)
}

/// Mounts a FUSE file system that nobody serves, as a user could with fusermount(1), and unmounts it.
fn mounts_fuse() -> bool {
    let at = std::env::temp_dir().join(format!("needs-fuse-{}", std::process::id()));
    let mounted = || -> io::Result<()> {
        let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
        fs::create_dir(&at)?;
        let options = format!("fd={},rootmode=40755,user_id=4000001,group_id=0", device.as_raw_fd());
        mount(Some("needs"), &at, Some("fuse"), MsFlags::empty(), Some(&*options))?;
        umount2(&at, MntFlags::MNT_DETACH)?;
        Ok(())
    };
    let mounted = mounted().is_ok();
    let _ = fs::remove_dir(&at);
    mounted
}

fn runs(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null()).status().is_ok()
}
