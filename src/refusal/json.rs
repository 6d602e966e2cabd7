//! A JSON writer with the subset that refusals need.

use std::fmt::{self, Write as _};

use super::escape;

/// A JSON object, compact, with its members in the order of writing. The names are this crate's and need no escaping.
#[derive(Default)]
pub(super) struct Object(String);

impl Object {
    pub(super) fn text(&mut self, name: &str, text: &str) -> fmt::Result {
        self.name(name)?;
        escape::json(&mut self.0, text)
    }

    /// A value whose `Display` is valid JSON: a number, a boolean, JSON itself.
    pub(super) fn value(&mut self, name: &str, value: impl fmt::Display) -> fmt::Result {
        self.name(name)?;
        write!(self.0, "{value}")
    }

    fn name(&mut self, name: &str) -> fmt::Result {
        let before = if self.0.is_empty() { '{' } else { ',' };
        write!(self.0, "{before}\"{name}\":")
    }

    pub(super) fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}
