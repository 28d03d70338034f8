// SPDX-License-Identifier: MIT OR Apache-2.0

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use super::*;

#[test]
fn a_pod_uses_the_credential_that_kubernetes_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    // The layout of the kubelet: links through one link that is replaced atomically, readable by all users of the pod.
    fs::create_dir(dir.path().join("..1")).unwrap();
    for (name, content) in [("ca.crt", "authority"), ("token", "first\n")] {
        let path = dir.path().join("..1").join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        symlink(format!("..data/{name}"), dir.path().join(name)).unwrap();
    }
    symlink("..1", dir.path().join("..data")).unwrap();
    let variable = |name: &str| {
        Some(match name {
            "KUBERNETES_SERVICE_HOST" => "fd00::1".to_owned(),
            "KUBERNETES_SERVICE_PORT" => "443".to_owned(),
            _ => return None,
        })
    };
    let access = of_pod(variable, dir.path()).map_err(|e| e.to_string()).unwrap();
    assert_eq!(access.server, "https://[fd00::1]:443");
    assert_eq!(access.authorities.as_deref(), Some(b"authority".as_slice()));
    assert_eq!(secret(&access.token), Some("first"));
    assert!(!access.files.iter().any(Stamp::is_stale));

    fs::create_dir(dir.path().join("..2")).unwrap();
    fs::copy(dir.path().join("..1/ca.crt"), dir.path().join("..2/ca.crt")).unwrap();
    fs::write(dir.path().join("..2/token"), "second").unwrap();
    fs::remove_file(dir.path().join("..data")).unwrap();
    symlink("..2", dir.path().join("..data")).unwrap();
    assert!(access.files.iter().any(Stamp::is_stale));
    let access = of_pod(variable, dir.path()).map_err(|e| e.to_string()).unwrap();
    assert_eq!(secret(&access.token), Some("second"));
}

#[test]
fn a_file_is_not_read_over_a_link_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::write(dir.path().join("config"), "content").unwrap();
    symlink("../config", theirs.join("config")).unwrap();
    let read = || read_file(&theirs.join("config"), "kubeconfig", Readers::Any);
    assert_eq!(read().map_err(|e| e.to_string()).unwrap().0.as_slice(), b"content");
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
    let error = read().unwrap_err().to_string();
    assert!(error.contains("others can write to the directory"), "{error}");
}

#[test]
fn outside_of_a_pod_a_kubeconfig_file_is_asked_for() {
    let error = of_pod(|_| None, Path::new("/nonexistent")).map(drop).unwrap_err();
    assert!(error.to_string().contains("set the key kubeconfig"), "{error}");
}
