//! A JSON writer with the subset that this crate needs.

use std::fmt::{self, Write as _};

use super::escape;

/// A JSON object, compact, with its members in the order of writing. The names are this crate's and need no escaping.
#[derive(Default)]
pub(crate) struct Object(String);

impl Object {
    pub(crate) fn text(&mut self, name: &str, text: &str) -> fmt::Result {
        self.name(name)?;
        escape::json(&mut self.0, text)
    }

    /// A value whose `Display` is valid JSON: a number, a boolean, JSON itself.
    pub(crate) fn value(&mut self, name: &str, value: impl fmt::Display) -> fmt::Result {
        self.name(name)?;
        write!(self.0, "{value}")
    }

    /// A value as above, or null.
    pub(crate) fn optional(&mut self, name: &str, value: Option<impl fmt::Display>) -> fmt::Result {
        match value {
            Some(value) => self.value(name, value),
            None => self.value(name, "null"),
        }
    }

    fn name(&mut self, name: &str) -> fmt::Result {
        let before = if self.0.is_empty() { '{' } else { ',' };
        write!(self.0, "{before}\"{name}\":")
    }

    pub(crate) fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// A JSON array of values that are JSON.
pub(crate) fn array(values: impl IntoIterator<Item = String>) -> String {
    let values: Vec<_> = values.into_iter().collect();
    format!("[{}]", values.join(","))
}
