//! Names of the formats that are not FASTA, and what the scanner recognises of FASTA's relatives.

/// How many bytes of the first line of text decide: enough to reach the magic of a tar archive.
pub(super) const SNIFFED: usize = 264;

/// UTF-8's byte order mark.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How messages name a file of rows and fields.
pub(super) const TABLE: &str = "a CSV or TSV table";

/// How messages name a file of tokens, which training reads instead of sequences.
pub(super) const TOKENS: &str = "a token file of protperf";

/// First words of other formats, in upper case. Order matters: the first match names the format.
const BEGINNINGS: [(&[u8], &str); 55] = [
    (b"PROTPERF TOKENS", TOKENS),
    (b"# STOCKHOLM", "a Stockholm alignment"),
    (b"#NEXUS", "NEXUS"),
    (b"##GFF", "GFF"),
    (b"##FILEFORMAT=VCF", "VCF"),
    (b"# BLAST", "a BLAST report"),
    (b"@HD\t", "SAM"),
    (b"@SQ\t", "SAM"),
    (b"@RG\t", "SAM"),
    (b"@PG\t", "SAM"),
    (b"@CO\t", "SAM"),
    (b"@", "FASTQ"),
    (b"<?XML", "XML"),
    (b"<!DOCTYPE HTML", "HTML"),
    (b"<HTML", "HTML"),
    (b"<HEAD", "HTML"),
    (b"<BODY", "HTML"),
    (b"<", "HTML or XML"),
    (b"CLUSTAL", "a Clustal alignment"),
    (b"MUSCLE (", "a Clustal alignment"),
    (b"!!AA_MULTIPLE_ALIGNMENT", "an MSF alignment"),
    (b"!!NA_MULTIPLE_ALIGNMENT", "an MSF alignment"),
    (b"PILEUP", "an MSF alignment"),
    (b"HMMER3/", "a HMMER profile"),
    (b"HMMER2.", "a HMMER profile"),
    (b"BLASTP ", "a BLAST report"),
    (b"BLASTX ", "a BLAST report"),
    (b"LOCUS ", "GenBank"),
    (b"ID  ", "a UniProt or EMBL flat file"),
    (b"HEADER  ", "PDB"),
    (b"ATOM  ", "PDB"),
    (b"HETATM", "PDB"),
    (b"REMARK  ", "PDB"),
    (b"CRYST1 ", "PDB"),
    (b"MODEL    ", "PDB"),
    (b"TITLE    ", "PDB"),
    (b"DATA_", "mmCIF"),
    (b"%PDF", "PDF"),
    (b"{\\RTF", "RTF"),
    (b"{", "JSON"),
    (b"[{", "JSON"),
    (b"[\"", "JSON"),
    (b"BAM\x01", "BAM"),
    (b"CRAM", "CRAM"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "HDF5"),
    (b"\x89PNG", "PNG"),
    (b"PAR1", "Parquet"),
    (b"SQLITE FORMAT 3", "SQLite"),
    (b"\xd0\xcf\x11\xe0", "an Office document"),
    (b"PK\x03\x04", "a zip archive inside of another compression"),
    (b"\x1f\x8b", "gzip inside of another compression"),
    (b"\x28\xb5\x2f\xfd", "zstd inside of another compression"),
    (b"\xfd7ZXZ", "xz inside of another compression"),
    (b"BZH", "bzip2 inside of another compression"),
];

/// The format whose files begin with this text, a first line or its first [`SNIFFED`] bytes, as far as it is known.
pub(super) fn name_of_text(text: &[u8]) -> Option<&'static str> {
    let begins =
        |beginning: &[u8]| text.get(..beginning.len()).is_some_and(|start| start.eq_ignore_ascii_case(beginning));
    // Checked first: its first byte is part of a number and may be any letter ('@' for a header of 64 bytes).
    if is_safetensors(text) {
        return Some("safetensors");
    }
    if let Some((_, name)) = BEGINNINGS.iter().find(|(beginning, _)| begins(beginning)) {
        return Some(name);
    }
    if text.get(257..262) == Some(b"ustar") {
        return Some("a tar archive");
    }
    if text.iter().any(|byte| matches!(byte, 0..=8 | 0x0e..=0x1a)) {
        return Some("binary data");
    }
    if is_phylip(text) {
        return Some("a PHYLIP alignment");
    }
    is_table(text).then_some(TABLE)
}

/// Eight bytes of a length, little-endian and far below 2^32, then a JSON object. `text` lacks a first byte that is a
/// blank.
fn is_safetensors(text: &[u8]) -> bool {
    let beginning = text.get(..10).unwrap_or(text);
    beginning.windows(6).any(|window| window == b"\0\0\0\0{\"")
}

/// A line of two numbers: of sequences and of columns.
fn is_phylip(text: &[u8]) -> bool {
    let mut fields = text.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    let mut is_number = || fields.next().is_some_and(|field| field.iter().all(u8::is_ascii_digit));
    is_number() && is_number() && fields.next().is_none()
}

/// Fields with a tab or a comma between them, unlike the commas of prose. Some programs write comments that start with
/// `#`.
fn is_table(text: &[u8]) -> bool {
    let joins = |pair: &[u8]| match pair {
        [before, b'\t', ..] => *before != b'\t',
        [_, b',', after] => *after != b' ',
        _ => false,
    };
    !text.starts_with(b"#") && text.windows(3).any(joins)
}

/// The encoding, where the first four bytes of the input show one that FASTA does not use.
pub(super) fn name_of_encoding(head: &[u8]) -> Option<&'static str> {
    match head {
        [0xff, 0xfe, 0, 0] | [0, 0, 0xfe, 0xff] | [b'>', 0, 0, 0] | [0, 0, 0, b'>'] => Some("UTF-32 text"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'>', 0, ..] | [0, b'>', ..] => Some("UTF-16 text"),
        _ => None,
    }
}

/// Whether the header is one of NBRF/PIR, where the next line is a title and would be read as residues.
pub(super) fn is_pir_header(header: &[u8]) -> bool {
    const CODES: [&[u8]; 9] = [b"P1;", b"F1;", b"DL;", b"DC;", b"RL;", b"RC;", b"N3;", b"N1;", b"XX;"];
    CODES.iter().any(|code| header.starts_with(code))
}

/// Whether a record of this id holds annotation in letters that would pass for residues: HH-suite's secondary structure
/// and solvent accessibility (observed, predicted, and the confidence of the prediction).
pub(super) fn is_annotation(id: &str) -> bool {
    matches!(id, "ss_dssp" | "ss_pred" | "ss_conf" | "sa_dssp" | "sa_pred" | "sa_conf")
}

/// Whether the id begins as HH-suite's annotation does. A protein may be called that too (`sa_0001`), so this decides
/// only where HH-suite writes annotation: above the first sequence of a file that shows itself to be an alignment.
pub(super) fn may_be_annotation(id: &str) -> bool {
    id.starts_with("ss_") || id.starts_with("sa_")
}
