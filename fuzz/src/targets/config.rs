//! The JSON of a checkpoint and the configuration in it: what is read has a text of its own that is read back, and
//! sizes that a network can have; what is refused is so in one short line.

use protperf::model::config::Config;
use protperf::model::json::{Json, Table, to_text};

use super::{Target, Verdict, equal};
use crate::random::digest;

pub const TARGET: Target =
    Target { name: "config", limit: 1024, quick: 2000, head: 0, words: &WORDS, uses_fasta_files: false, run };

const WORDS: [&[u8]; 30] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b": ",
    b"\"num_layers\": 1",
    b"\"num_layers\"",
    b"\"model_dim\": 2",
    b"\"num_heads\": 3",
    b"\"head_dim\": 4",
    b"\"ffn_dim\": 5",
    b"\"num_features\": 6",
    b"\"attention\"",
    b"\"exact\"",
    b"\"relu\"",
    b"\"objective\"",
    b"\"masked\"",
    b"\"directions\": \"both\"",
    b"\"dropout\"",
    b"\"seed\"",
    b"-0",
    b"1e-05",
    b"1E400",
    b"9223372036854775808",
    b"0.1",
    b"null",
    b"true",
    b"\"\\ud800\"",
    b"\"\\u007f\xc3\xa9\"",
];

/// Largest size in a configuration, and longest message.
const MAX_SIZE: usize = 1 << 20;
const MAX_MESSAGE: usize = 300;

fn run(input: &[u8]) -> Result<Verdict, String> {
    let table = match Json::parse_table(input) {
        Ok(table) => table,
        Err(what) => return short_line(&what, 0),
    };
    let text = to_text(&table);
    equal("the text of a table, read again", &Json::parse_table(text.as_bytes()), &Ok(table.clone()))?;
    match Config::from_table(&table) {
        Ok(config) => configured(&table, &config),
        Err(what) => short_line(&what, 1),
    }
}

/// Sizes that were read are those of the table and of the tensors.
fn configured(table: &Table, config: &Config) -> Result<Verdict, String> {
    equal("layers", &table.get("num_layers"), &Some(&Json::Int(config.num_layers as i64)))?;
    let sizes = config.tensors().into_iter().flat_map(|(_, shape)| shape);
    if !sizes.clone().all(|size| (1..=MAX_SIZE).contains(&size)) || !config.work_per_token(1.0).is_normal() {
        return Err(format!("a configuration of {table:?}"));
    }
    let kind = [2, config.feature_dim().min(2) as u64, table.len() as u64];
    Ok(Verdict { traits: vec![digest(&kind.map(u64::to_le_bytes).concat())] })
}

/// A message is one short line of printable ASCII. Its letters before the first thing that it shows are the trait.
pub fn short_line(what: &str, kind: u64) -> Result<Verdict, String> {
    if what.is_empty() || what.len() > MAX_MESSAGE || !what.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(format!("the message is not one short line: {what:?}"));
    }
    let own = what.bytes().take_while(|byte| !matches!(byte, b'\'' | b'"' | b'`' | b'[' | b'{' | b'0'..=b'9'));
    Ok(Verdict { traits: vec![digest(&kind.to_le_bytes().into_iter().chain(own).collect::<Vec<u8>>())] })
}
