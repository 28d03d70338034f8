// SPDX-License-Identifier: MIT OR Apache-2.0

//! npm packages that tests use.

use std::{
    path::Path,
    process::{Command, Stdio},
};

/// Installs a major version of a package into a directory, unless it is installed. On failure, returns the reason why
/// tests that need it cannot run.
pub fn install(package: &str, version: u32, directory: &Path) -> Result<(), String> {
    let node = Command::new("node").arg("--version").stderr(Stdio::null()).output();
    let node = node.map_err(|e| format!("node cannot be run ({e})"))?;
    let node = String::from_utf8_lossy(&node.stdout).trim().to_owned();
    let major = node.trim_start_matches('v').split('.').next().unwrap_or_default();
    if major.parse().is_ok_and(|major: u32| major < 20) || major.is_empty() {
        return Err(format!("it needs Node.js 20 or newer, but this is {node}"));
    }
    let is_there = || {
        directory
            .join("node_modules")
            .join(package)
            .join("package.json")
            .exists()
    };
    if is_there() {
        return Ok(());
    }
    // npm itself waits for many minutes for a registry that does not respond.
    let npm = Command::new("timeout")
        .args([
            "-k",
            "5",
            "120",
            "npm",
            "install",
            "--loglevel=error",
            "--fetch-retries=1",
        ])
        .args(["--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
        .arg(directory)
        .arg(format!("{package}@{version}"))
        .stdin(Stdio::null())
        .output();
    let npm = npm.map_err(|e| format!("npm cannot be run ({e})"))?;
    if npm.status.success() && is_there() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&npm.stderr).into_owned();
    let line = errors.lines().find(|line| !line.trim().is_empty());
    Err(format!(
        "npm could not install {package} ({}): {}",
        npm.status,
        line.unwrap_or("it gave no reason")
    ))
}
