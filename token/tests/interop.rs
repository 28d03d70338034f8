// SPDX-License-Identifier: MIT OR Apache-2.0

//! Other implementations verify our tokens, and we verify theirs: PyJWT (Python) and jose (JavaScript).
//!
//! Both are installed into the target directory, from their registries.

mod common;
#[path = "../../tests/support/npm.rs"]
mod npm;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::SystemTime;

use common::{AUDIENCE, ISSUER, claims, decode, key, payload, session, verifier, with};
use libtest_mimic::{Arguments, Trial};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::{Algorithm, KeySet, SigningKey, VerifyingKey, mint};

fn main() -> ExitCode {
    let trial = |name: &str, command: Result<(&'static str, PathBuf), String>| match command {
        Ok((program, modules)) => Trial::test(name, move || {
            both_ways(|| other(program, &modules));
            Ok(())
        }),
        Err(why) => Trial::test(name, || Ok(())).with_kind(why).with_ignored_flag(true),
    };
    let trials = vec![
        trial(
            "pyjwt_and_this_verify_each_others_tokens",
            pyjwt().map(|at| ("python3", at)),
        ),
        trial("jose_and_this_verify_each_others_tokens", jose().map(|at| ("node", at))),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Installs PyJWT, unless it is there. Returns the directory to import it from, or why it cannot be used.
fn pyjwt() -> Result<PathBuf, String> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pyjwt");
    if directory.join("jwt/__init__.py").exists() {
        return Ok(directory);
    }
    let pip = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(["--retries=1", "--timeout=20", "--no-compile", "--upgrade", "--target"])
        .arg(&directory)
        .arg("PyJWT[crypto]==2.*")
        .stdin(Stdio::null())
        .output();
    let pip = pip.map_err(|e| format!("python3 cannot be run ({e})"))?;
    let errors = String::from_utf8_lossy(&pip.stderr).into_owned();
    let line = errors.lines().rfind(|line| !line.trim().is_empty());
    let line = line.unwrap_or("it gave no reason");
    pip.status
        .success()
        .then_some(directory)
        .ok_or_else(|| format!("pip could not install PyJWT: {line}"))
}

/// Installs jose, unless it is there. Returns the module to import, or why it cannot be used.
fn jose() -> Result<PathBuf, String> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("jose");
    npm::install("jose", 6, &directory)?;
    Ok(directory.join("node_modules/jose/dist/webapi/index.js"))
}

/// The program that stands for another implementation, which is in `modules`.
fn other(program: &str, modules: &Path) -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    let mut command = Command::new(program);
    if program == "node" {
        command.arg(script.join("jose.mjs")).arg(modules);
    } else {
        command.arg(script.join("pyjwt.py")).env("PYTHONPATH", modules);
    }
    command
}

fn run(mut command: Command, task: &Value) -> Value {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Where it ends without reading all of it, its output says why.
    let _ = child.stdin.take().unwrap().write_all(task.to_string().as_bytes());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{command:?} for {}: {}",
        task["algorithm"],
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Has both directions done by another implementation.
fn both_ways(other: impl Fn() -> Command) {
    let now = SystemTime::now();
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    for algorithm in Algorithm::ALL {
        let key = key(algorithm);
        let mut to_issue = claims(session());
        to_issue.iat = now;
        let token = mint(key, &to_issue);
        let token = token.expose_secret();
        let ours = verifier().verify(token, now).unwrap();
        let public = key.verifying_key();
        let secret = || serde_json::from_str(key.to_jwk().expose_secret()).unwrap();
        let theirs = with(payload(), json!({"iat": seconds, "nbf": seconds, "exp": seconds + 600}));
        let (start, signature) = token.rsplit_once('.').unwrap();
        let other_letter = if signature.starts_with('A') { "B" } else { "A" };
        let task = json!({
            "algorithm": algorithm.as_str(), "issuer": ISSUER, "audience": AUDIENCE, "kid": key.kid(), "token": token,
            "altered": format!("{start}.{other_letter}{}", &signature[1..]),
            "jwk": public.to_jwk().unwrap_or_else(secret), "pem": public.to_pem(),
            "jwks": KeySet::from(public).public_jwks(), "payload": serde_json::from_str::<Value>(&theirs).unwrap(),
        });
        let done = run(other(), &task);

        // Ours, verified there: with the JWK, the PEM and the JWKS.
        let there = done["claims"].as_array().unwrap();
        assert_eq!(there.len(), if algorithm.is_asymmetric() { 3 } else { 1 });
        for claims in there {
            assert_eq!(claims, &serde_json::from_str::<Value>(ours.as_json()).unwrap());
        }
        assert_eq!(done["altered"], "refused");
        if let Some(thumbprint) = done["thumbprint"].as_str() {
            assert_eq!(thumbprint, key.kid());
        }

        // Theirs, verified here: with each form of its key.
        let keys = &done["keys"];
        let text = |name: &str| keys[name].as_str().unwrap().to_owned();
        let mut verifying = Vec::new();
        let mut signing = Vec::new();
        if algorithm.is_asymmetric() {
            verifying.push(VerifyingKey::from_pem(text("public-pem").as_bytes()).unwrap());
            verifying.push(VerifyingKey::from_jwk(keys["public-jwk"].to_string().as_bytes()).unwrap());
            signing.push(SigningKey::from_jwk(keys["private-jwk"].to_string().as_bytes()).unwrap());
            for pem in keys["private-pem"].as_array().unwrap() {
                signing.push(SigningKey::from_pem(pem.as_str().unwrap().as_bytes()).unwrap());
            }
        } else {
            verifying.push(VerifyingKey::from_secret(&decode(&text("secret"))).unwrap());
        }
        verifying.extend(signing.iter().map(SigningKey::verifying_key));
        for key in &verifying {
            assert_eq!(
                (key.algorithm(), key.thumbprint()),
                (algorithm, verifying[0].thumbprint())
            );
            if let Some(thumbprint) = keys["thumbprint"].as_str() {
                assert_eq!(key.thumbprint(), thumbprint);
            }
            let verifier = verifier().with_keys(KeySet::from(key.clone()));
            let claims = verifier.verify(done["token"].as_str().unwrap(), now).unwrap();
            assert_eq!((claims.sub(), claims.job().unwrap().id), (Some("alice"), "f4dVSvb"));
        }
        assert!(verifier().verify(done["token"].as_str().unwrap(), now).is_err());
    }
}
