// SPDX-License-Identifier: MIT OR Apache-2.0

//! The supervisor of commands, like `workflow-token-agent supervise`. The tests of this crate use it, because they
//! cannot depend on programs of other crates.

fn main() -> std::process::ExitCode {
    source::supervise::main()
}
