//! The `smelt` program: hands its arguments to the library of the same crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    smelt_cli::run(std::env::args_os())
}
