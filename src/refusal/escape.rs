//! Escapes text for JSON strings and for HTML.

use std::fmt::{self, Write as _};

/// Writes `text` as a JSON string, with its quotes (RFC 8259, section 7).
pub(super) fn json(out: &mut String, text: &str) -> fmt::Result {
    out.write_char('"')?;
    for char in text.chars() {
        match char {
            '"' | '\\' => write!(out, "\\{char}")?,
            '\0'..' ' => write!(out, "\\u{:04x}", u32::from(char))?,
            _ => out.write_char(char)?,
        }
    }
    out.write_char('"')
}

/// Writes `text` escaped for an HTML element or a quoted attribute.
pub(super) fn html(out: &mut String, text: &str) -> fmt::Result {
    for char in text.chars() {
        match char {
            '&' => out.write_str("&amp;")?,
            '<' => out.write_str("&lt;")?,
            '>' => out.write_str("&gt;")?,
            '"' => out.write_str("&quot;")?,
            '\'' => out.write_str("&#39;")?,
            _ => out.write_char(char)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(escape: fn(&mut String, &str) -> fmt::Result, text: &str) -> String {
        let mut out = String::new();
        escape(&mut out, text).unwrap();
        out
    }

    #[test]
    fn json_escapes_what_it_must() {
        assert_eq!(escaped(json, "plain – ✓"), "\"plain – ✓\"");
        assert_eq!(
            escaped(json, "\"\\\n\0\x1f\x7f"),
            "\"\\\"\\\\\\u000a\\u0000\\u001f\x7f\""
        );
    }

    #[test]
    fn html_escapes_what_it_must() {
        assert_eq!(
            escaped(html, "I'm a <b>\"teapot\"</b> & more"),
            "I&#39;m a &lt;b&gt;&quot;teapot&quot;&lt;/b&gt; &amp; more"
        );
    }

    proptest! {
        #[test]
        fn json_round_trips(text in any::<String>()) {
            let parsed: String = serde_json::from_str(&escaped(json, &text)).unwrap();
            prop_assert_eq!(parsed, text);
        }

        #[test]
        fn html_round_trips_and_holds_no_markup(text in any::<String>()) {
            let html = escaped(html, &text);
            prop_assert!(!html.contains(['<', '>', '"', '\'']));
            let text_again = html
                .replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&quot;", "\"")
                .replace("&#39;", "'")
                .replace("&amp;", "&");
            prop_assert_eq!(text_again, text);
        }
    }
}
