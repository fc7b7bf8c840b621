//! `config.json`: its text, and its values for questions.

use serde_json::Value;

use super::json::JsonText;
use super::spelling::spell_out;
use crate::Result;

/// Name of the configuration in a checkpoint.
pub const CONFIG: &str = "config.json";

/// A parsed configuration.
#[derive(Clone, Debug)]
pub struct Config {
    text: JsonText,
    value: Value,
}

impl Config {
    /// Parses the bytes of the configuration called `file` (for messages).
    ///
    /// # Errors
    /// Those of [`JsonText::parse`].
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let text = JsonText::parse(file, bytes)?;
        let value = text.value();
        Ok(Self { text, value })
    }

    /// With the keys that the libraries read in places where transformers 5 no longer has them.
    #[must_use]
    pub(super) fn spelled_out(mut self) -> Self {
        spell_out(&mut self.text, &self.value);
        self.value = self.text.value();
        self
    }

    /// The value at a path of keys joined by dots, such as `text_config.hidden_size`.
    pub fn get(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.value, |value, key| value.get(key))
    }

    /// The family of the model, `model_type`.
    pub fn model_type(&self) -> Option<&str> {
        self.get("model_type").and_then(Value::as_str)
    }

    /// The whole as a value; see [`JsonText::value`] for numbers that JSON does not have.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The text: that of the file, with the keys that a checkpoint was given behind its own.
    pub fn text(&self) -> &str {
        self.text.text()
    }

    /// The text for editing.
    pub fn json(&self) -> &JsonText {
        &self.text
    }
}
