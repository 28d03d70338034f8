// SPDX-License-Identifier: MIT OR Apache-2.0

//! The benchmarks that print a rate share this.

use std::{env, error::Error, process::ExitCode};

/// Prints the rate that `run` returns for the arguments of the process, or why there is none.
pub fn print_rate(program: &str, usage: &str, run: impl FnOnce(&[String]) -> Result<f64, Box<dyn Error>>) -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    match run(&args) {
        Ok(rate) => {
            println!("{rate:.0}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{program}: {why}: usage: {program} {usage}");
            ExitCode::FAILURE
        }
    }
}
