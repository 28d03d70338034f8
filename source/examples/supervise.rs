//! The helper that runs commands, as `flux-workflow-token supervise` does, for the tests of this crate: they cannot name
//! the program of another.

fn main() -> std::process::ExitCode {
    source::supervise::main()
}
