//! Where words go: data to standard output, talk to standard error, colour only on a terminal.

use anstyle::{AnsiColor, Style};
use serde_json::{Value, json};

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const GOOD: Style = AnsiColor::Green.on_default().bold();

/// Prints for people, or events for programs.
#[derive(Debug)]
pub(crate) struct Printer {
    json: bool,
}

impl Printer {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// An event: one line of JSON, where JSON was asked for.
    pub(crate) fn event(&self, kind: &str, data: &Value) {
        if self.json {
            anstream::println!("{}", json!({ "type": kind, "data": data }));
        }
    }

    /// What ended the program, with everything that led to it.
    pub(crate) fn error(&self, error: &anyhow::Error) {
        anstream::eprintln!("{ERROR}error:{ERROR:#} {error}");
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        for cause in &causes {
            anstream::eprintln!("  caused by: {cause}");
        }
        self.event("error", &json!({ "message": error.to_string(), "causes": causes }));
    }
}

/// Prints a text that the user asked for.
pub(crate) fn data(text: &str) {
    anstream::print!("{text}");
}

/// Tells of something that did not go as asked.
pub(crate) fn warning(text: &str) {
    anstream::eprintln!("{WARNING}warning:{WARNING:#} {text}");
}

/// Tells of something that is good to know.
pub(crate) fn note(text: &str) {
    anstream::eprintln!("{text}");
}

/// Tells of something that did go as asked.
pub(crate) fn done(text: &str) {
    anstream::eprintln!("{GOOD}done:{GOOD:#} {text}");
}
