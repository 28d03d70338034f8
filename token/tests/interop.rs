//! Other implementations verify our tokens, and we verify theirs: PyJWT (Python) and jose (JavaScript).
//!
//! Both are installed into the target directory, from their registries.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use common::{AUDIENCE, ISSUER, claims, decode, key, payload, session, verifier, with};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use token::{Algorithm, KeySet, SigningKey, VerifyingKey, mint};

/// A package and its version, where it is installed, and whether that failed, in words.
fn installed(directory: &str, done: &str, install: impl FnOnce(&Path) -> Command) -> Result<PathBuf, String> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(directory);
    let done = directory.join(done);
    if done.exists() {
        return Ok(done);
    }
    std::fs::create_dir_all(&directory).unwrap();
    let mut command = install(&directory);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{:?} does not run: {error}", command.get_program()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = errors
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("no message");
        return Err(format!("it could not be installed: {line}"));
    }
    if done.exists() {
        Ok(done)
    } else {
        Err(format!("it was installed, and {} is not there", done.display()))
    }
}

fn run(mut command: Command, task: &Value) -> Value {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(task.to_string().as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?} for {}", task["algorithm"]);
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

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name)
}

#[test]
fn pyjwt_and_this_verify_each_others_tokens() {
    let jwt = installed("pyjwt", "jwt/__init__.py", |directory| {
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--retries=1",
            "--timeout=20",
        ]);
        pip.args(["--no-compile", "--upgrade", "--target"])
            .arg(directory)
            .arg("PyJWT[crypto]==2.*");
        pip
    });
    let jwt = match jwt {
        Ok(jwt) => jwt,
        Err(why) => return common::skip("pyjwt_and_this_verify_each_others_tokens", &format!("PyJWT: {why}")),
    };
    both_ways(|| {
        let mut python = Command::new("python3");
        python
            .arg(script("pyjwt.py"))
            .env("PYTHONPATH", jwt.parent().and_then(Path::parent).unwrap());
        python
    });
}

#[test]
fn jose_and_this_verify_each_others_tokens() {
    // Older ones lack the cryptography that it uses.
    let version = Command::new("node").arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok());
    let major = version.and_then(|version| version.trim_start_matches('v').split('.').next()?.parse().ok());
    if major.is_none_or(|major: u32| major < 20) {
        return common::skip(
            "jose_and_this_verify_each_others_tokens",
            "jose needs Node.js 20 or newer: install it",
        );
    }
    let jose = installed("jose", "node_modules/jose/dist/webapi/index.js", |directory| {
        // npm by itself waits for many minutes for a registry that does not answer.
        let mut npm = Command::new("timeout");
        npm.args([
            "-k",
            "5",
            "120",
            "npm",
            "install",
            "--loglevel=error",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--fetch-retries=1",
            "--prefix",
        ]);
        npm.arg(directory).arg("jose@6");
        npm
    });
    let jose = match jose {
        Ok(jose) => jose,
        Err(why) => return common::skip("jose_and_this_verify_each_others_tokens", &format!("jose: {why}")),
    };
    both_ways(|| {
        let mut node = Command::new("node");
        node.arg(script("jose.mjs")).arg(&jose);
        node
    });
}
