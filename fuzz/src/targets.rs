//! The targets: each passes one input to a parser and judges the answer.

mod archive;
mod attention;
#[path = "../../tests/common/mod.rs"]
mod common;
mod config;
mod fasta;
#[path = "../../tests/fasta/oracle.rs"]
mod oracle;
mod reader;
mod roundtrip;
mod sequence;
mod table;
#[path = "../../tests/fasta/table_oracle.rs"]
mod table_oracle;
mod tensors;

/// One parser with its oracles.
pub struct Target {
    pub name: &'static str,
    /// Longest input in bytes.
    pub limit: usize,
    /// How many first bytes mutations mostly leave alone, so that not only the magic number is tested.
    pub head: usize,
    /// Executions of the short run among the tests.
    #[cfg_attr(not(test), expect(dead_code))]
    pub quick: u64,
    /// What mutations insert.
    pub words: &'static [&'static [u8]],
    /// Whether the files of `tests/fasta` are seeds too.
    pub uses_fasta_files: bool,
    /// Returns what is wrong, if anything is.
    pub run: fn(&[u8]) -> Result<Verdict, String>,
}

/// How the parser behaved, to distinguish new behaviour from known.
#[derive(Default)]
pub struct Verdict {
    pub traits: Vec<u64>,
}

pub const TARGETS: [Target; 9] = [
    fasta::TARGET,
    sequence::TARGET,
    table::TARGET,
    reader::TARGET,
    archive::TARGET,
    roundtrip::TARGET,
    attention::TARGET,
    config::TARGET,
    tensors::TARGET,
];

/// An error where two answers differ.
fn equal<T: PartialEq + std::fmt::Debug>(what: &str, left: &T, right: &T) -> Result<(), String> {
    if left == right { Ok(()) } else { Err(format!("{what}:\n  {left:?}\n  {right:?}")) }
}
