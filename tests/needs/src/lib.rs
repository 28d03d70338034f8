//! Has the runner ignore tests that cannot run on this machine, with the reason.

#![forbid(unsafe_code)]

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use proc_macro::{TokenStream, TokenTree};

/// Ignores the test below where something is missing: `#[needs(munged, root)]` stands above `#[test]`. The macro looks when
/// the test is compiled, so that every runner knows.
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

/// Returns why a test cannot run that needs something.
fn missing(what: &str) -> Option<&'static str> {
    let (present, reason) = match what {
        "fuse" => (
            Path::new("/dev/fuse").exists(),
            "FUSE file systems cannot be mounted: there is no /dev/fuse",
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

fn runs(program: &str, argument: &str) -> bool {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null()).status().is_ok()
}
