"""What is no FASTA, or nothing."""

from corpus_case import err, same


def other(name: str, content: bytes, what: str, line: int = 1, column: int = 1):
    return same(name, content, err(line, column, what))


TEXT = "text_before_header"

NOTHING = [
    same("empty.fasta", b""),
    other("one_newline.fasta", b"\n", "no_record"),
    other("only_newlines.fasta", b"\n\r\n\r\n\n", "no_record"),
    other("only_spaces.fasta", b"     ", "no_record"),
    other("only_comments.fasta", b";one\n;two\n", "no_record"),
]

BEFORE = [
    other("text_first.fasta", b"Results of today\n>a\nMKTAYIAKQR\n", TEXT),
    other("text_second_line.fasta", b"\n  my proteins\n>a\nMKTAYIAKQR\n", TEXT, 2, 3),
    other("text_after_comment.fasta", b";x\nMK\n>a\nMKTAYIAKQR\n", TEXT, 2),
    other("space_before_mark.fasta", b" >a\nMKTAYIAKQR\n", TEXT, 1, 2),
    other("tab_before_mark.fasta", b"\t>a\nMKTAYIAKQR\n", TEXT),
    other("raw_sequence.fasta", b"MKTAYIAKQR\nGSHWLEDVNC\n", TEXT),
    other("raw_sequence_no_newline.fasta", b"M", TEXT),
    other("table.fasta", b"id,sequence\na,MKTAYIAKQR\n", TEXT),
    other("quoted_mark.fasta", b'">a"\n"MK"\n', TEXT),
    other("long_text.fasta", b"x" * 70000, TEXT),
]

NAMED = [
    other("fastq.fasta", b"@read1\nMKTAY\n+\nIIIII\n", "format:FASTQ"),
    other("fastq_crlf.fasta", b"@read1\r\nMKTAY\r\n+\r\nIIIII\r\n", "format:FASTQ"),
    other("fastq_late.fasta", b"\n\n@read1\nMKTAY\n+\nIIIII\n", "format:FASTQ", 3),
    other("fastq_cut.fasta", b"@", "format:FASTQ"),
    other("stockholm.fasta", b"# STOCKHOLM 1.0\n#=GF ID x\na MKTAY\n//\n", "format:a Stockholm alignment"),
    other("html.fasta", b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n", "format:HTML"),
    other("html_upper.fasta", b"<HTML><HEAD><TITLE>Error</TITLE>\n>a\nMK\n", "format:HTML"),
    other("html_indented.fasta", b"\n   <html>\n", "format:HTML", 2, 4),
    other("xml.fasta", b'<?xml version="1.0"?>\n<uniprot/>\n', "format:XML"),
    other("json.fasta", b'{"error": "no such entry"}\n', "format:JSON"),
    other("clustal.fasta", b"CLUSTAL W (1.83)\n\na MKTAY\n", "format:a Clustal alignment"),
    other("nexus.fasta", b"#NEXUS\nbegin data;\n", "format:NEXUS"),
    other("genbank.fasta", b"LOCUS       AB1 10 aa\n", "format:GenBank"),
    other("uniprot_flat.fasta", b"ID   A_B  Reviewed;  10 AA.\nAC   P1;\n", "format:a UniProt or EMBL flat file"),
    other("pdb.fasta", b"HEADER    HYDROLASE\n", "format:PDB"),
    other("mmcif.fasta", b"data_1ABC\n#\n", "format:mmCIF"),
    other("gff.fasta", b"##gff-version 3\n", "format:GFF"),
    other("vcf.fasta", b"##fileformat=VCFv4.2\n", "format:VCF"),
    other("sam.fasta", b"@HD\tVN:1.6\n", "format:SAM"),
    other("pdf.fasta", b"%PDF-1.7\n", "format:PDF"),
    other("pir.fasta", b">P1;CRAB\nALPHA CRYSTALLIN\nMDITIHNPLI*\n", "format:NBRF/PIR"),
    other("executable.fasta", b"\x7fELF\x02\x01\x01\x00\x00\x00\x00", "format:binary data"),
    other("nuls.fasta", b"\x00" * 40, "format:binary data"),
    other("utf16le.fasta", "\ufeff>a\nMKTAY\n".encode("utf-16-le"), "format:UTF-16 text"),
    other("utf16be.fasta", "\ufeff>a\nMKTAY\n".encode("utf-16-be"), "format:UTF-16 text"),
    other("utf16le_no_bom.fasta", ">a\nMKTAY\n".encode("utf-16-le"), "format:UTF-16 text"),
    other("utf16be_no_bom.fasta", ">a\nMKTAY\n".encode("utf-16-be"), "format:UTF-16 text"),
    other("utf16_bom_only.fasta", b"\xff\xfe", "format:UTF-16 text"),
    other("utf32le.fasta", "\ufeff>a\nMK\n".encode("utf-32-le"), "format:UTF-32 text"),
    other("utf32be_no_bom.fasta", ">a\nMK\n".encode("utf-32-be"), "format:UTF-32 text"),
]

CASES = [*NOTHING, *BEFORE, *NAMED]
