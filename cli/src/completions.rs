// SPDX-License-Identifier: MIT OR Apache-2.0

use std::{io, process::ExitCode};

use clap_complete::Shell;

use crate::print;

/// The command that the completions are for.
const COMMAND: &str = "workflow-token";

/// Print the completions of `workflow-token` for a shell
///
/// `make install` and the packages install them.
#[derive(clap::Args)]
pub struct Args {
    /// The shell: bash, zsh or fish
    #[arg(value_name = "SHELL", value_parser = parse)]
    shell: Shell,
}

/// Prints the completions.
///
/// # Errors
/// Of writing.
pub fn run(args: &Args, command: clap::Command) -> Result<ExitCode, io::Error> {
    print::out(&script(args.shell, command))?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the completions. They offer no hidden subcommand, which clap_complete would.
fn script(shell: Shell, command: clap::Command) -> String {
    let visible = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    let mut offered = clap::Command::new(COMMAND).version(env!("CARGO_PKG_VERSION"));
    offered = offered.subcommands(visible.cloned());
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut offered, COMMAND, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Returns the shell of that name, of those that `make install` has a directory for.
fn parse(name: &str) -> Result<Shell, &'static str> {
    match name {
        "bash" => Ok(Shell::Bash),
        "zsh" => Ok(Shell::Zsh),
        "fish" => Ok(Shell::Fish),
        _ => Err("the shell must be bash, zsh or fish"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn completions_offer_what_the_help_does() {
        for shell in ["bash", "zsh", "fish"] {
            let script = script(parse(shell).unwrap(), crate::Cli::command());
            for offered in ["doctor", "munge-socket", COMMAND] {
                assert!(script.contains(offered), "{shell}: {offered}");
            }
            assert!(!script.contains("supervise"), "{shell}: a hidden subcommand");
        }
        assert!(parse("powershell").is_err());
    }
}
