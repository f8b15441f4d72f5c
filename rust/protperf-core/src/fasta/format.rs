//! Names for what is not FASTA.

/// Bytes of the first text that are looked at.
pub(super) const SNIFFED: usize = 64;

/// First words of other formats, in upper case. Order matters: the first match names the format.
const BEGINNINGS: [(&[u8], &str); 22] = [
    (b"# STOCKHOLM", "a Stockholm alignment"),
    (b"#NEXUS", "NEXUS"),
    (b"##GFF", "GFF"),
    (b"##FILEFORMAT=VCF", "VCF"),
    (b"@HD\t", "SAM"),
    (b"@SQ\t", "SAM"),
    (b"@", "FASTQ"),
    (b"<?XML", "XML"),
    (b"<", "HTML"),
    (b"CLUSTAL", "a Clustal alignment"),
    (b"MUSCLE (", "a Clustal alignment"),
    (b"LOCUS ", "GenBank"),
    (b"ID  ", "a UniProt or EMBL flat file"),
    (b"HEADER ", "PDB"),
    (b"ATOM ", "PDB"),
    (b"DATA_", "mmCIF"),
    (b"%PDF", "PDF"),
    (b"{", "JSON"),
    (b"\x1f\x8b", "gzip inside of another compression"),
    (b"\x28\xb5\x2f\xfd", "zstd inside of another compression"),
    (b"\xfd7ZXZ", "xz inside of another compression"),
    (b"BZH", "bzip2 inside of another compression"),
];

/// The format whose files begin with this text, as far as it is known.
pub(super) fn name_of_text(text: &[u8]) -> Option<&'static str> {
    let upper = text.to_ascii_uppercase();
    let known = BEGINNINGS.iter().find(|(beginning, _)| upper.starts_with(&beginning.to_ascii_uppercase()));
    let is_binary = text.iter().any(|byte| matches!(byte, 0..=8 | 0x0e..=0x1a));
    known.map(|(_, name)| *name).or(is_binary.then_some("binary data"))
}

/// The encoding, where the first four bytes of the input tell that it is none that FASTA uses.
pub(super) fn name_of_encoding(head: &[u8]) -> Option<&'static str> {
    match head {
        [0xff, 0xfe, 0, 0] | [0, 0, 0xfe, 0xff] | [b'>', 0, 0, 0] | [0, 0, 0, b'>'] => Some("UTF-32 text"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'>', 0, ..] | [0, b'>', ..] => Some("UTF-16 text"),
        _ => None,
    }
}

/// Whether the header is one of NBRF/PIR, whose next line is a title and would be read as residues.
pub(super) fn is_pir_header(header: &[u8]) -> bool {
    const CODES: [&[u8]; 9] = [b"P1;", b"F1;", b"DL;", b"DC;", b"RL;", b"RC;", b"N3;", b"N1;", b"XX;"];
    CODES.iter().any(|code| header.starts_with(code))
}
