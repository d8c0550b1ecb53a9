//! Just enough JSON to write: the broker's status and its log lines. No parser, no dependency.

use std::fmt::{Display, Write};

/// A JSON object under construction.
pub struct Object(String);

impl Object {
    /// An empty object.
    pub fn new() -> Self {
        Self("{".to_owned())
    }

    fn key(&mut self, key: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        push_string(&mut self.0, key);
        self.0.push(':');
    }

    /// A number, boolean or other value that is JSON as it prints.
    pub fn raw(mut self, key: &str, value: impl Display) -> Self {
        self.key(key);
        write!(self.0, "{value}").expect("writing to a string cannot fail");
        self
    }

    /// A number, or null.
    pub fn optional(self, key: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.raw(key, value),
            None => self.raw(key, "null"),
        }
    }

    /// A string.
    pub fn string(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        push_string(&mut self.0, value);
        self
    }

    /// An array of values that are JSON already.
    pub fn array(self, key: &str, values: impl IntoIterator<Item = String>) -> Self {
        let values: Vec<String> = values.into_iter().collect();
        self.raw(key, format_args!("[{}]", values.join(",")))
    }

    /// The text.
    pub fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            character if u32::from(character) < 0x20 => {
                write!(out, "\\u{:04x}", u32::from(character))
                    .expect("writing to a string cannot fail");
            }
            character => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_parser_reads_it_back() {
        let nasty = "quote \" backslash \\ newline \n bell \u{7} ü";
        let inner = Object::new().raw("n", 1).end();
        let text = Object::new()
            .string(nasty, nasty)
            .optional("none", None::<u8>)
            .array("list", [inner.clone(), inner])
            .end();
        let parsed: serde_json::Value = serde_json::from_str(&text).expect("valid JSON");
        assert_eq!(parsed[nasty], nasty);
        assert_eq!(parsed["list"][1]["n"], 1);
        assert!(parsed["none"].is_null());
    }
}
