// SPDX-License-Identifier: MIT OR Apache-2.0

//! The client of Flyte's SDK, from PyPI, finds the authorization server and its client id.

mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use libtest_mimic::{Arguments, Trial};
use serde_json::{Value, json};
use support::{ISSUER, Service};

fn main() -> ExitCode {
    let name = "the_sdk_of_flyte_finds_its_settings";
    let trial = match flyte() {
        Ok(modules) => Trial::test(name, move || {
            the_sdk_of_flyte_finds_its_settings(&modules);
            Ok(())
        }),
        Err(why) => Trial::test(name, || Ok(())).with_kind(why).with_ignored_flag(true),
    };
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

/// Installs the SDK into the target directory, if it is missing. Returns the directory to import it from, or the reason
/// why it cannot be used.
fn flyte() -> Result<PathBuf, String> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("flyte");
    let imports = || {
        let mut python = Command::new("python3");
        python.args(["-c", "import flyte.remote._client.auth._client_config"]);
        python.env("PYTHONPATH", &directory).stderr(Stdio::null());
        python.status().is_ok_and(|status| status.success())
    };
    if imports() {
        return Ok(directory);
    }
    let pip = Command::new("timeout")
        .args(["-k", "5", "180", "python3", "-m", "pip", "install", "--quiet"])
        .args([
            "--disable-pip-version-check",
            "--retries=1",
            "--timeout=20",
            "--no-compile",
        ])
        .args(["--only-binary=:all:", "--upgrade", "--target"])
        .arg(&directory)
        .arg("flyte==2.*")
        .stdin(Stdio::null())
        .output();
    let pip = pip.map_err(|e| format!("python3 cannot be run ({e})"))?;
    let errors = String::from_utf8_lossy(&pip.stderr).into_owned();
    let line = errors.lines().rfind(|line| !line.trim().is_empty());
    match pip.status.success() && imports() {
        true => Ok(directory),
        false => Err(format!(
            "pip could not install flyte: {}",
            line.unwrap_or("it gave no reason")
        )),
    }
}

fn the_sdk_of_flyte_finds_its_settings(modules: &Path) {
    let service = Service::with(
        "[public-client]\nclient-id = \"flyte\"\nscopes = [\"all\"]\nredirect-uris = [\"http://localhost:53593/callback\"]\n\
         audience = \"a\"\n",
    );
    let output = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/flyte/client.py"))
        .arg(format!("http://{}", service.address))
        .env("PYTHONPATH", modules)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (
            &found["client_id"],
            &found["redirect_uri"],
            &found["scopes"],
            &found["audience"],
            &found["header_key"]
        ),
        (
            &json!("flyte"),
            &json!("http://localhost:53593/callback"),
            &json!(["all"]),
            &json!("a"),
            &json!("authorization")
        )
    );
    assert_eq!(found["token_endpoint"], format!("{ISSUER}/token"));
}
