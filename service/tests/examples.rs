// SPDX-License-Identifier: MIT OR Apache-2.0

//! The example of a configuration that the package installs is accepted by `workflow-tokend --check`.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

#[test]
fn the_example_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    let signed = rcgen::generate_simple_self_signed(["tokens.example.org".to_owned()]).unwrap();
    write("tls/cert.pem", &signed.cert.pem());
    write("tls/key.pem", &signed.signing_key.serialize_pem());
    write("clients/copy-offload", &"0123456789abcdef".repeat(4));
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/examples/tokend.toml");
    let text = fs::read_to_string(example).unwrap();
    let user = nix::unistd::geteuid().to_string();
    let text = text
        .replace("/etc/workflow-token", directory.path().to_str().unwrap())
        .replace("\"slurm\"", &user);
    let config = write("tokend.toml", &text);

    let mut check = Command::new(env!("CARGO_BIN_EXE_workflow-tokend"));
    let ran = check.arg("--check").arg("--config").arg(config).output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert!(ran.status.success(), "{err}");
    assert!(
        out.contains("https://tokens.example.org: ok (tables: 1 listen, 1 client"),
        "{out}"
    );
}
