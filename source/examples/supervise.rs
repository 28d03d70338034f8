//! The supervisor of commands, as `workflow-token-agent supervise`, for the tests of this crate: they cannot name the
//! program of another.

fn main() -> std::process::ExitCode {
    source::supervise::main()
}
