// SPDX-License-Identifier: MIT OR Apache-2.0

//! Compiles the C-variadic functions that the simulator exports, and exports all symbols of the simulator to the
//! plugins that it loads.

use std::{env, fs, path::Path};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=shim.c");
    let probe = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("probe.c");
    fs::write(&probe, "#include <jansson.h>\n").expect("OUT_DIR is writable");
    if cc::Build::new()
        .file(&probe)
        .cargo_metadata(false)
        .cargo_warnings(false)
        .try_expand()
        .is_err()
    {
        panic!("<jansson.h> is missing, which the Flux simulator needs: install the Debian package libjansson-dev");
    }
    cc::Build::new()
        .file("shim.c")
        .std("c11")
        .warnings_into_errors(true)
        .compile("flux_sim_shim");
    println!("cargo:rustc-link-lib=jansson");
    println!("cargo:rustc-link-arg-bins=-rdynamic");
}
