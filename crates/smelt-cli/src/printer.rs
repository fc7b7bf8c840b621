//! Where words go: data to standard output, talk to standard error, colour only on a terminal.
//!
//! Names come from files of strangers; a control character in one is written out, not sent to the terminal.

use std::borrow::Cow;

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
        anstream::eprintln!("{ERROR}error:{ERROR:#} {}", shown(&error.to_string()));
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        for cause in &causes {
            anstream::eprintln!("  caused by: {}", shown(cause));
        }
        self.event("error", &json!({ "message": error.to_string(), "causes": causes }));
    }
}

/// Prints a text that the user asked for.
pub(crate) fn data(text: &str) {
    anstream::print!("{}", shown(text));
}

/// Tells of something that did not go as asked.
pub(crate) fn warning(text: &str) {
    anstream::eprintln!("{WARNING}warning:{WARNING:#} {}", shown(text));
}

/// Tells of something that is good to know.
pub(crate) fn note(text: &str) {
    anstream::eprintln!("{}", shown(text));
}

/// Tells of something that did go as asked.
pub(crate) fn done(text: &str) {
    anstream::eprintln!("{GOOD}done:{GOOD:#} {}", shown(text));
}

/// A text without control characters but the ends of its lines.
fn shown(text: &str) -> Cow<'_, str> {
    let raw = |character: char| character.is_control() && !matches!(character, '\n' | '\t');
    if !text.contains(raw) {
        return Cow::Borrowed(text);
    }
    let escaped = |character: char| {
        if raw(character) { character.escape_default().to_string() } else { character.to_string() }
    };
    text.chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn a_name_cannot_write_to_the_terminal() {
        assert_eq!(shown("`a\u{1b}[2Jb\u{9b}31m`\n\tc"), "`a\\u{1b}[2Jb\\u{9b}31m`\n\tc");
        assert!(matches!(shown("größe\n"), std::borrow::Cow::Borrowed(_)));
    }
}
