// SPDX-License-Identifier: MIT OR Apache-2.0

//! Compares the declarations of the crates `ffi` and `spank` with the headers of flux-core and Slurm, if installed.

use std::{env, fs, path::PathBuf, process::Command};

/// The header of SPANK plugins.
const SPANK_HEADER: &str = "/usr/include/slurm/spank.h";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // The tests depend on the software that this machine has, see `tests/needs`.
    println!("cargo:rerun-if-env-changed=FLUX_PREFIX");
    println!("cargo:rerun-if-env-changed=PATH");
    abi_check();
    spank_check();
}

/// Compares the declarations of `spank` with Slurm's header, if installed: bindgen writes its view to
/// `OUT_DIR/spank.rs`, for `tests/abi.rs`.
fn spank_check() {
    // If this named a missing file, cargo would run the script on each build.
    let is_there = std::path::Path::new(SPANK_HEADER).exists();
    println!(
        "cargo:rerun-if-changed={}",
        if is_there { SPANK_HEADER } else { "/usr/include" }
    );
    println!("cargo:rustc-check-cfg=cfg(slurm_headers)");
    if !is_there {
        return;
    }
    let builder = bindgen::Builder::default()
        .header_contents(
            "slurm.h",
            "#include <stdint.h>\n#include <slurm/slurm.h>\n#include <slurm/spank.h>\n",
        )
        .allowlist_function("spank_(context|get_item|getenv|setenv|option_register|job_control_(un)?setenv)|slurm_(spank_log|error|api_version)")
        .allowlist_type("spank_(item|context|err_t|option)")
        // The type is used only behind a pointer.
        .blocklist_type("spank_t|spank_handle")
        .prepend_enum_name(false)
        .layout_tests(false);
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| builder.generate())) {
        Ok(Ok(bindings)) => {
            let path = out_dir().join("spank.rs");
            bindings.write_to_file(path).expect("OUT_DIR is writable");
            println!("cargo:rustc-cfg=slurm_headers");
        }
        Ok(Err(e)) => panic!("bindgen cannot read the header of Slurm: {e}"),
        Err(_) => println!("cargo:warning=no libclang: our declarations are not compared with the header of Slurm"),
    }
}

/// Compares the declarations of the crate `ffi` with the headers of flux-core, if installed: bindgen writes its view of
/// the same functions to `OUT_DIR/abi.rs`, for `tests/abi.rs`.
fn abi_check() {
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
    println!("cargo:rerun-if-changed=ffi/src/raw.rs");
    println!("cargo:rustc-check-cfg=cfg(flux_headers)");
    let Some(cflags) = flux_cflags() else { return };
    let declarations = fs::read_to_string("ffi/src/raw.rs").expect("ffi/src/raw.rs exists");
    let functions = declarations
        .lines()
        .filter_map(|line| line.trim().strip_prefix("fn ")?.split('(').next());
    let header = "#define FLUX_SHELL_PLUGIN_NAME \"workflow-token\"\n\
                  #include <jansson.h>\n#include <flux/core.h>\n#include <flux/jobtap.h>\n#include <flux/shell.h>\n";
    let mut builder = bindgen::Builder::default()
        .header_contents("flux.h", header)
        .clang_args(cflags)
        .allowlist_type("flux_job_state_t")
        .allowlist_var("FLUX_(PLUGIN_ARG|JOB_STATE|SHELL)_.*|FLUX_POLL(IN|OUT)|FLUX_NODEID_ANY|JSON_.*")
        // Types used only behind a pointer come from `ffi`, so that the signatures can be compared.
        .blocklist_type(
            "flux_(t|future_t|kvs_txn_t|msg_handler_t|msg_t|plugin_arg_t|plugin_t|reactor_t|shell_t|watcher_t)",
        )
        .blocklist_type("json_(t|error_t)")
        .blocklist_type("flux_(handle|future|kvs_txn|msg_handler|msg|plugin_arg|plugin|reactor|shell|watcher)")
        .prepend_enum_name(false)
        .layout_tests(false);
    for function in functions {
        builder = builder.allowlist_function(function);
    }
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| builder.generate())) {
        Ok(Ok(bindings)) => {
            bindings
                .write_to_file(out_dir().join("abi.rs"))
                .expect("OUT_DIR is writable");
            println!("cargo:rustc-cfg=flux_headers");
        }
        Ok(Err(e)) => panic!("bindgen cannot read the headers of flux-core: {e}"),
        Err(_) => {
            println!("cargo:warning=no libclang: our declarations are not compared with the headers of flux-core")
        }
    }
}

/// Returns the compiler flags that find the headers, if they are installed.
fn flux_cflags() -> Option<Vec<String>> {
    let output = Command::new("pkg-config")
        .args(["--cflags", "flux-core"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output
        .status
        .success()
        .then(|| text.split_whitespace().map(str::to_owned).collect())
}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"))
}
