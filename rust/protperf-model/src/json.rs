//! The JSON of checkpoints: read strictly, and written as Python's `json.dumps(table, indent=1, sort_keys=True)` does.
//!
//! serde_json takes the text apart. What it would let pass is refused here: a key that appears twice, an integer
//! beyond 64 bits or written as -0. Lists and tables are nested 127 deep at most. A manifest is sealed by the SHA-256 of
//! its own text, so the text that Python writes for a table has to be known here to the byte.

use serde_core::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// A table; the order of its keys is Python's, by code points.
pub type Table = BTreeMap<String, Json>;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without point and exponent.
    Int(i64),
    /// Any other number; finite.
    Float(f64),
    /// Text.
    Text(String),
    /// `[..]`.
    List(Vec<Json>),
    /// `{..}`.
    Table(Table),
}

/// Characters of a reason or value that a message shows.
const MAX_SHOWN: usize = 80;

impl Json {
    /// The table in a text.
    ///
    /// # Errors
    /// What is wrong with the text, in one short line.
    pub fn parse_table(text: &[u8]) -> Result<Table, String> {
        match serde_json::from_slice(text) {
            Ok(Json::Table(table)) => Ok(table),
            Ok(_) => Err("is not a table".into()),
            Err(error) => Err(format!("is not valid JSON: {}", shortened(&error.to_string(), MAX_SHOWN))),
        }
    }

    /// The value as it appears in a message: one short line of printable ASCII.
    pub fn shown(&self) -> String {
        let mut text = String::new();
        match self {
            Json::List(_) | Json::Table(_) => write_value(&mut text, self, None),
            _ => write_value(&mut text, self, Some(0)),
        }
        shortened(&text, MAX_SHOWN)
    }
}

/// The start of a text, in printable ASCII.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    let mut short = String::new();
    for character in text.chars().take(most) {
        match character {
            ' '..='~' => short.push(character),
            _ => short.extend(character.escape_default()),
        }
    }
    if text.chars().nth(most).is_some() {
        short.push_str("...");
    }
    short
}

/// The text of a table as Python writes it. Equal tables give equal bytes.
pub fn to_text(table: &Table) -> String {
    let mut text = String::new();
    write_table(&mut text, table, Some(0));
    text.push('\n');
    text
}

/// Writes a value, on one line where there is no indent.
fn write_value(text: &mut String, value: &Json, indent: Option<usize>) {
    match value {
        Json::Null => text.push_str("null"),
        Json::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Json::Int(value) => text.push_str(&value.to_string()),
        Json::Float(value) => text.push_str(&float_text(*value)),
        Json::Text(value) => write_string(text, value),
        Json::List(values) => write_items(text, ['[', ']'], values, indent, |text, value, indent| {
            write_value(text, value, indent);
        }),
        Json::Table(table) => write_table(text, table, indent),
    }
}

fn write_table(text: &mut String, table: &Table, indent: Option<usize>) {
    write_items(text, ['{', '}'], table, indent, |text, (key, value), indent| {
        write_string(text, key);
        text.push_str(": ");
        write_value(text, value, indent);
    });
}

fn write_items<I: IntoIterator>(
    text: &mut String,
    [open, close]: [char; 2],
    items: I,
    indent: Option<usize>,
    write: impl Fn(&mut String, I::Item, Option<usize>),
) {
    text.push(open);
    let inner = indent.map(|indent| indent + 1);
    let mut is_empty = true;
    for item in items {
        if !is_empty {
            text.push_str(if indent.is_some() { "," } else { ", " });
        }
        is_empty = false;
        start_line(text, inner);
        write(text, item, inner);
    }
    if !is_empty {
        start_line(text, indent);
    }
    text.push(close);
}

fn start_line(text: &mut String, indent: Option<usize>) {
    if let Some(indent) = indent {
        text.push('\n');
        text.extend(std::iter::repeat_n(' ', indent));
    }
}

fn write_string(text: &mut String, value: &str) {
    text.push('"');
    for character in value.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            ' '..='~' => text.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
    text.push('"');
}

/// A number as `repr(float)` of Python writes it: the shortest digits that name it.
fn float_text(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let fixed = value.to_string();
    if fixed.contains('.') { fixed } else { format!("{fixed}.0") }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Int(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Json, E> {
        i64::try_from(value).map(Json::Int).map_err(|_| E::custom("an integer is beyond 64 bits"))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Json, E> {
        // serde_json reads the integer -0 as this number; no file of ours holds either.
        if value == 0.0 && value.is_sign_negative() {
            return Err(E::custom("an integer is written as -0"));
        }
        Ok(Json::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = access.next_element()? {
            values.push(value);
        }
        Ok(Json::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut table = Table::new();
        while let Some((key, value)) = access.next_entry()? {
            if table.insert(key, value).is_some() {
                return Err(de::Error::custom("a key appears twice"));
            }
        }
        Ok(Json::Table(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_that_of_python() {
        // json.dumps(.., indent=1, sort_keys=True) of CPython 3.11.
        let python = concat!(
            "{\n \"a\": {},\n \"b\": [],\n \"c\": [\n  1,\n  -2.5,\n  null,\n  true\n ],\n \"d\": {\n  \"x\": 1e-05,\n",
            "  \"y\": 0.0001\n },\n \"e\": 1e+16,\n \"f\": 1234567890123456.8,\n \"g\": 3.0,\n",
            " \"h\": \"\\u00e9\\ud83d\\ude00\\u007f\\u0001\\n\\\"\\\\/\",\n \"i\": 1.7976931348623157e+308,\n",
            " \"j\": 5e-324,\n \"k\": 9223372036854775807,\n \"l\": 100000.0,\n \"m\": 1.5e-07\n}\n"
        );
        let table = Json::parse_table(python.as_bytes()).unwrap();
        assert_eq!(to_text(&table), python);
    }

    #[test]
    fn what_serde_json_lets_pass_is_refused() {
        for text in [
            "{\"a\": 1, \"a\": 2}",
            "{\"a\": [{\"b\": 1, \"b\": 1}]}",
            "{\"a\": -0}",
            "{\"a\": 9223372036854775808}",
            "{\"a\": 1e400}",
            "{\"a\": NaN}",
            "{\"a\": \"\\ud800\"}",
            "{} ,",
            "[]",
            "",
        ] {
            let fault = Json::parse_table(text.as_bytes()).unwrap_err();
            assert!(fault.len() < 200 && fault.is_ascii(), "{text}: {fault}");
        }
        let deep = [b"{\"a\":".repeat(100_000), b"1".to_vec(), b"}".repeat(100_000)].concat();
        assert!(Json::parse_table(&deep).unwrap_err().contains("recursion limit"));
    }

    #[test]
    fn values_are_shown_in_one_short_line() {
        let long = Json::Text("\u{1b}\n".repeat(1000));
        assert!(long.shown().len() < 500 && long.shown().is_ascii() && !long.shown().contains('\n'));
        let list = Json::List(vec![Json::Int(-1), Json::Table(Table::from([("a".into(), Json::Null)]))]);
        assert_eq!(list.shown(), "[-1, {\"a\": null}]");
    }
}
