//! JSON as people and Python write it: read leniently, edited as text.
//!
//! A configuration that goes through a parser and a writer comes out with other spellings
//! (`1e-06` or `1e-6`), sometimes another order, and loaders have tripped over both. So an edit
//! changes the bytes of its own member and no others; what is added takes over the file's
//! indentation, separators and line ends.
//!
//! Python's `json` writes `NaN`, `Infinity` and `-Infinity`, which no JSON parser reads. They are
//! kept in the text; as a value each becomes `{"__float__": "Infinity"}`, the notation that
//! transformers and mlx-lm use for them.

use std::borrow::Cow;
use std::ops::Range;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

use crate::{CheckpointError, Result};

/// The text of a JSON object that can be edited in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonText {
    text: String,
}

impl JsonText {
    /// Takes the bytes of `file` (for messages) if they are a JSON object, non-finite numbers
    /// allowed.
    ///
    /// # Errors
    /// [`CheckpointError::Utf8`], [`CheckpointError::Json`] and [`CheckpointError::NotAnObject`].
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes)
            .map_err(|source| CheckpointError::Utf8 { file: file.to_owned(), source })?;
        let value =
            parse_value(text).map_err(|source| CheckpointError::Json { file: file.to_owned(), source })?;
        // A bare `Infinity` becomes an object as a value, and is none as a text.
        if !value.is_object() || !text.trim_start().starts_with('{') {
            return Err(CheckpointError::NotAnObject { file: file.to_owned() }.into());
        }
        Ok(Self { text: text.to_owned() })
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The values, non-finite numbers as `{"__float__": "NaN"}` and so on; of two members with
    /// the same key the last one.
    pub fn value(&self) -> Value {
        parse_value(&self.text).unwrap_or_default()
    }

    /// Removes the member at `path` and whatever separated it from its neighbours; says whether
    /// there was one.
    ///
    /// ```
    /// use smelt_core::checkpoint::JsonText;
    ///
    /// let mut json = JsonText::parse("x", br#"{"a": 1.50, "b": {"c": 1e-06, "d": 2}}"#).unwrap();
    /// assert!(json.remove(&["b", "d"]));
    /// assert_eq!(json.text(), r#"{"a": 1.50, "b": {"c": 1e-06}}"#);
    /// ```
    pub fn remove(&mut self, path: &[&str]) -> bool {
        let mut found = false;
        // A loop, because a file may hold the same key twice.
        while let Some(range) = self.cut(path) {
            self.text.replace_range(range, "");
            found = true;
        }
        found
    }

    /// Gives the member at `path` this value: in its place if there is one, else behind the last
    /// member. Says whether it could: every key but the last must lead to an object.
    ///
    /// ```
    /// use smelt_core::checkpoint::JsonText;
    ///
    /// let mut json = JsonText::parse("x", b"{\n  \"a\": 1.50\n}\n").unwrap();
    /// assert!(json.set(&["b"], &serde_json::json!({"c": 2})));
    /// assert_eq!(json.text(), "{\n  \"a\": 1.50,\n  \"b\": {\n    \"c\": 2\n  }\n}\n");
    /// ```
    pub fn set(&mut self, path: &[&str], value: &Value) -> bool {
        let Some((key, parents)) = path.split_last() else {
            return false;
        };
        let Some(object) = self.object(parents) else {
            return false;
        };
        let style = Style::of(&self.text);
        match object.find(&self.text, key) {
            Some(member) => {
                let lead = style.line(object.lead(&self.text, member));
                let range = object.members[member].value.clone();
                self.text.replace_range(range, &style.render(value, lead));
            }
            None => self.append(&object, &style, key, value),
        }
        true
    }

    fn append(&mut self, object: &Object, style: &Style, key: &str, value: &Value) {
        let key = Value::from(key);
        let Some(last) = object.members.last() else {
            // Nothing to copy from: one step deeper than the line on which the object opens.
            let outer = indent_at(&self.text, object.inner.start);
            let lead = style.lead(outer);
            let body = style.render(value, style.line(&lead));
            let close = style.close(outer);
            let member = format!("{lead}{key}{colon}{body}{close}", colon = style.colon);
            return self.text.replace_range(object.inner.clone(), &member);
        };
        let lead = object.lead(&self.text, object.members.len() - 1);
        let colon = &self.text[last.key.end..last.value.start];
        let body = style.render(value, style.line(lead));
        // A first member that follows its brace at once says nothing of the space after a comma.
        let lead = if lead.is_empty() && object.members.len() == 1 { style.space } else { lead };
        let member = format!(",{lead}{key}{colon}{body}");
        self.text.insert_str(last.value.end, &member);
    }

    /// The range to delete for the last member at `path`.
    fn cut(&self, path: &[&str]) -> Option<Range<usize>> {
        let (key, parents) = path.split_last()?;
        let object = self.object(parents)?;
        let place = object.find(&self.text, key)?;
        let member = &object.members[place];
        Some(match (place.checked_sub(1), object.members.get(place + 1)) {
            // What stood before it then stands before its successor.
            (_, Some(next)) => member.key.start..next.key.start,
            (Some(before), None) => object.members[before].value.end..member.value.end,
            (None, None) => object.inner.clone(),
        })
    }

    /// The object that a path of keys leads to.
    fn object(&self, path: &[&str]) -> Option<Object> {
        let mut scan = Scan { text: self.text.as_bytes(), at: 0 };
        scan.space();
        let mut object = Object::scan(&self.text, scan.at)?;
        for key in path {
            let member = object.find(&self.text, key)?;
            object = Object::scan(&self.text, object.members[member].value.start)?;
        }
        Some(object)
    }
}

/// Parses with non-finite numbers replaced by their markers.
fn parse_value(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(&strict(text))
}

/// The text with every `NaN`, `Infinity` and `-Infinity` outside of strings as a marker object.
///
/// Whatever else these letters stand in (`xNaN`, `1-Infinity`) stays as wrong as it was, since an
/// object is not allowed there either.
fn strict(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut copied = 0;
    let mut scan = Scan { text: text.as_bytes(), at: 0 };
    while let Some(byte) = scan.peek() {
        let rest = &text.as_bytes()[scan.at..];
        let token = ["NaN", "Infinity", "-Infinity"];
        if byte == b'"' {
            scan.string();
        } else if let Some(token) = token.into_iter().find(|t| rest.starts_with(t.as_bytes())) {
            out.push_str(&text[copied..scan.at]);
            out.extend(["{\"__float__\":\"", token, "\"}"]);
            scan.at += token.len();
            copied = scan.at;
        } else {
            scan.at += 1;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// Places of a member in the text.
struct Member {
    /// Key with its quotes.
    key: Range<usize>,
    value: Range<usize>,
}

/// An object in the text: what stands between its braces.
struct Object {
    inner: Range<usize>,
    members: Vec<Member>,
}

impl Object {
    /// The object whose brace is at `start`, or `None` if another value is there.
    fn scan(text: &str, start: usize) -> Option<Self> {
        let mut scan = Scan { text: text.as_bytes(), at: start };
        if scan.peek()? != b'{' {
            return None;
        }
        scan.at += 1;
        let mut members = Vec::new();
        loop {
            scan.space();
            match scan.peek()? {
                b'}' => break,
                b',' => scan.at += 1,
                _ => members.push(scan.member()),
            }
        }
        Some(Self { inner: start + 1..scan.at, members })
    }

    /// The last member of this key: the one that counts.
    fn find(&self, text: &str, key: &str) -> Option<usize> {
        self.members.iter().rposition(|member| {
            let raw = &text[member.key.clone()];
            serde_json::from_str::<String>(raw).is_ok_and(|decoded| decoded == key)
        })
    }

    /// The white space before a member: behind the comma or the brace.
    fn lead<'t>(&self, text: &'t str, place: usize) -> &'t str {
        let end = self.members[place].key.start;
        let before = &text[self.inner.start..end];
        &before[before.trim_end_matches([' ', '\t', '\r', '\n']).len()..]
    }
}

/// A walk over JSON that a parser has already accepted.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Steps over a string; the quote is at the current place.
    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.peek() {
            // A backslash takes the next byte with it, whatever that is.
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == b'"' {
                break;
            }
        }
        self.at = self.at.min(self.text.len());
    }

    fn member(&mut self) -> Member {
        let start = self.at;
        self.string();
        let key = start..self.at;
        self.space();
        self.at += 1; // the colon
        self.space();
        let start = self.at;
        self.value();
        Member { key, value: start..self.at }
    }

    /// Steps over a value: brackets are counted, everything else ends where it must.
    fn value(&mut self) {
        let mut depth = 0_usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => break,
                _ => {
                    self.at += 1;
                    continue;
                }
            }
            if depth == 0 {
                break;
            }
        }
    }
}

/// How a file lays out its members.
struct Style {
    /// Line end and one step of indentation, if members have lines of their own.
    lines: Option<(&'static str, String)>,
    /// Between key and value.
    colon: &'static str,
    /// After a comma on one line.
    space: &'static str,
}

impl Style {
    /// The style of the file's outermost object.
    fn of(text: &str) -> Self {
        // Up to the first key; an object without members shows no style.
        let lead = text.find('"').map_or("", |quote| &text[..quote]);
        let lead = lead.split_once('{').map_or("", |(_, lead)| lead);
        let end = if lead.contains("\r\n") { "\r\n" } else { "\n" };
        let lines = lead.rsplit_once('\n').map(|(_, indent)| (end, indent.to_owned()));
        let tight = lines.is_none() && text.contains("\":") && !text.contains("\": ");
        let (colon, space) = if tight { (":", "") } else { (": ", " ") };
        Self { lines, colon, space }
    }

    /// The indentation of a member on its own line, given the white space before it.
    fn line<'t>(&self, lead: &'t str) -> Option<&'t str> {
        self.lines.as_ref()?;
        lead.rsplit_once('\n').map(|(_, indent)| indent)
    }

    /// White space before the first member of an object that stands on a line indented by `outer`.
    fn lead(&self, outer: &str) -> String {
        self.lines.as_ref().map_or_else(String::new, |(end, step)| format!("{end}{outer}{step}"))
    }

    /// White space before that object's closing brace.
    fn close(&self, outer: &str) -> String {
        self.lines.as_ref().map_or_else(String::new, |(end, _)| format!("{end}{outer}"))
    }

    /// `value` as text: over several lines behind the indentation `indent`, or on one line.
    fn render(&self, value: &Value, indent: Option<&str>) -> String {
        let (Some((end, step)), Some(indent)) = (&self.lines, indent) else {
            return value.to_string();
        };
        let mut out = Vec::new();
        let pretty = PrettyFormatter::with_indent(step.as_bytes());
        let written = value.serialize(&mut Serializer::with_formatter(&mut out, pretty));
        written.expect("a value with string keys can be written to memory");
        // Line feeds inside strings are escaped, so these are all of the layout.
        String::from_utf8_lossy(&out).replace('\n', &format!("{end}{indent}"))
    }
}

/// The indentation of the line that holds the byte `at`.
fn indent_at(text: &str, at: usize) -> &str {
    let line = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line = &text[line..at];
    &line[..line.len() - line.trim_start_matches([' ', '\t']).len()]
}
