// SPDX-License-Identifier: MIT OR Apache-2.0

//! Makes the test runner ignore tests that cannot run on this machine, and report the reason.

#![forbid(unsafe_code)]

use std::{
    fs, io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proc_macro::{TokenStream, TokenTree};

/// Caches whether Flux is installed: the check is slow, and each scenario needs it.
static FLUX: OnceLock<bool> = OnceLock::new();

/// Ignores the test below if a requirement is missing: `#[needs(munged, root)]` stands above `#[test]`. The macro
/// examines the machine that compiles the test, so every runner reports the test as ignored.
#[proc_macro_attribute]
pub fn needs(what: TokenStream, test: TokenStream) -> TokenStream {
    let mut names = what.into_iter().filter_map(|token| match token {
        TokenTree::Ident(name) => Some(name.to_string()),
        _ => None,
    });
    let reason = names.find_map(|name| missing(&name));
    let mut ignored: TokenStream = ignore(reason).parse().expect("an attribute");
    ignored.extend(test);
    ignored
}

/// Makes two tests of a scenario, which is a function of a `Site`: `NAME::simulation`, and `NAME::flux`, which needs
/// Flux.
#[proc_macro_attribute]
pub fn scenario(_: TokenStream, function: TokenStream) -> TokenStream {
    let mut tokens = function.clone().into_iter().map(|token| token.to_string());
    tokens.find(|token| token == "fn").expect("a function");
    let name = tokens.next().expect("its name");
    let munged = missing("munged");
    let tests = [
        ("simulation", "Simulator", munged),
        ("flux", "Flux", munged.or_else(|| missing("flux"))),
    ];
    let tests = tests.map(|(test, scheduler, reason)| {
        let call = format!("super::{name}(super::Site::on(super::Scheduler::{scheduler}))");
        format!("{} #[test] fn {test}() {{ {call} }}", ignore(reason))
    });
    let mut all = function;
    all.extend(
        format!("mod {name} {{ {} }}", tests.concat())
            .parse::<TokenStream>()
            .expect("a module"),
    );
    all
}

/// Returns the attribute that ignores a test, if there is a reason.
fn ignore(reason: Option<&str>) -> String {
    reason.map_or_else(String::new, |reason| format!("#[ignore = {reason:?}]"))
}

/// Returns the reason why a test with a requirement cannot run.
fn missing(what: &str) -> Option<&'static str> {
    let (present, reason) = match what {
        "fuse" => (
            mounts_fuse(),
            "this process cannot mount FUSE file systems: it needs root, CAP_SYS_ADMIN and access to /dev/fuse",
        ),
        "flux" => (
            *FLUX.get_or_init(runs_flux),
            "no Flux with Python 3.11 or newer was found: install it or set FLUX_PREFIX",
        ),
        "munged" => (
            ["/usr/sbin/munged", "/usr/local/sbin/munged", "/usr/bin/munged"]
                .iter()
                .any(|path| Path::new(path).exists()),
            "munged is not installed: install the package munge",
        ),
        "openssl" => (runs("openssl", "version"), "openssl is not installed"),
        "nginx" => (
            Path::new("/usr/sbin/nginx").exists(),
            "nginx is not installed: install the package nginx-light",
        ),
        "postgresql" => (
            fs::read_dir("/usr/lib/postgresql").is_ok_and(|mut versions| {
                versions.any(|version| version.is_ok_and(|version| version.path().join("bin/initdb").exists()))
            }),
            "PostgreSQL is not installed: install the package postgresql",
        ),
        "root" => (
            fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0),
            "only root can become other users and give files to them",
        ),
        "setpriv" => (
            Path::new("/usr/bin/setpriv").exists(),
            "setpriv is not installed: install the package util-linux",
        ),
        "tmpfs" => (
            mounts_tmpfs(),
            "this process cannot mount a tmpfs: it needs root and CAP_SYS_ADMIN",
        ),
        "valgrind" => (runs("valgrind", "--version"), "valgrind is not installed"),
        _ => panic!(
            "needs({what}): known are flux, fuse, munged, nginx, openssl, postgresql, root, setpriv, tmpfs and valgrind"
        ),
    };
    (!present).then_some(reason)
}

/// Mounts a FUSE file system without a server, as a user could with fusermount(1), and unmounts it.
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

/// Mounts a file system in memory, and unmounts it.
fn mounts_tmpfs() -> bool {
    let at = std::env::temp_dir().join(format!("needs-tmpfs-{}", std::process::id()));
    let mounted = || -> io::Result<()> {
        fs::create_dir(&at)?;
        mount(Some("needs"), &at, Some("tmpfs"), MsFlags::empty(), Some("size=4k"))?;
        umount2(&at, MntFlags::MNT_DETACH)?;
        Ok(())
    };
    let mounted = mounted().is_ok();
    let _ = fs::remove_dir(&at);
    mounted
}

fn runs(program: &str, argument: &str) -> bool {
    succeeds(Command::new(program).arg(argument)).is_some()
}

/// Returns whether Flux is installed with a Python that can control an instance.
fn runs_flux() -> bool {
    let mut path = std::env::var("PATH").unwrap_or_default();
    if let Ok(prefix) = std::env::var("FLUX_PREFIX") {
        path = format!("{prefix}/bin:{path}");
    }
    let mut flux = Command::new("/usr/bin/env");
    flux.arg(format!("PATH={path}"))
        .args(["flux", "python", "-c", "import flux.job, tomllib"]);
    succeeds(&mut flux) == Some(true)
}

/// Returns whether a program succeeds, or None if it cannot be run.
fn succeeds(command: &mut Command) -> Option<bool> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().ok().map(|status| status.success())
}
