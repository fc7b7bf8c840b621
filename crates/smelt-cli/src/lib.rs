//! The command line of smelt, as a library, so that other front ends run the same program.
//!
//! Standard output carries data (tables, JSON) and standard error carries talk (warnings, progress,
//! the summary). The exit code is 0 when the work is done, 1 when something is the user's matter,
//! 2 for a bug of smelt.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod format;
mod printer;
mod progress;
mod python;
mod system;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};
use printer::Printer;

/// The exit code for what the user can mend.
const USER: u8 = 1;

/// The exit code for a bug.
const BUG: i32 = 2;

/// Runs smelt with these arguments, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    exit_with_bug_code_on_panic();
    let typed: Vec<OsString> = args.into_iter().collect();
    let mut args = match Args::try_parse_from(&typed) {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    if let Command::Quantize(args) = &mut args.command {
        args.typed = typed.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    }
    let printer = Printer::new(args.command.wants_json());
    match dispatch(&args.command, &printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            printer.error(&error);
            ExitCode::from(USER)
        }
    }
}

fn dispatch(command: &Command, printer: &Printer) -> anyhow::Result<()> {
    match command {
        Command::Quantize(args) => commands::quantize::run(args, printer),
        Command::Plan(args) => commands::plan::run(args, printer),
        Command::Inspect(args) => commands::inspect::run(args, printer),
        Command::Verify(args) => commands::verify::run(args, printer),
        Command::Diff(args) => commands::diff::run(args, printer),
        Command::Report(args) => commands::report::run(args),
        Command::Discover(args) => commands::discover::run(args),
        Command::Families(args) => commands::families::run(args, printer),
        Command::Recipes(_) => {
            commands::recipes::run(printer);
            Ok(())
        }
    }
}

/// Prints what clap has to say: help to standard output, mistakes to standard error.
fn usage(error: &clap::Error) -> ExitCode {
    // A closed pipe is no reason to fail: `smelt --help | head`.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USER) } else { ExitCode::SUCCESS }
}

/// A panic anywhere ends the process as a bug, not as a crash that looks like anything else.
fn exit_with_bug_code_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        anstream::eprintln!("this is a bug in smelt {}: please report it", env!("CARGO_PKG_VERSION"));
        #[expect(clippy::exit, reason = "a worker that panics must not leave the others running")]
        std::process::exit(BUG);
    }));
}
