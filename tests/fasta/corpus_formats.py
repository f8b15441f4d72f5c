"""Files that are not FASTA, or empty."""

import struct

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
    other("tab_before_mark.fasta", b"\t>a\nMKTAYIAKQR\n", TEXT, 1, 2),
    other("tab_before_table.fasta", b"\tid\tseq\n1\ta\tMK\n", "format:a CSV or TSV table", 1, 2),
    other("raw_sequence.fasta", b"MKTAYIAKQR\nGSHWLEDVNC\n", TEXT),
    other("raw_sequence_no_newline.fasta", b"M", TEXT),
    other("prose_with_commas.fasta", b"Proteins, mostly small, of today\n>a\nMK\n", TEXT),
    other("one_number.fasta", b"  12 \n>a\nMK\n", TEXT, column=3),
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
    other("html_comment.fasta", b"<!-- saved -->\n", "format:HTML or XML"),
    other("html_head.fasta", b"<head>\n", "format:HTML"),
    other("html_body.fasta", b"<body>502 Bad Gateway</body>", "format:HTML"),
    other("xml_bare.fasta", b"<BlastOutput>\n", "format:HTML or XML"),
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
    other("sam_sequences.fasta", b"@SQ\tSN:1\tLN:9\n", "format:SAM"),
    other("pdf.fasta", b"%PDF-1.7\n", "format:PDF"),
    other("table.fasta", b"id,sequence\na,MKTAYIAKQR\n", "format:a CSV or TSV table"),
    other("table_crlf.fasta", b"id,sequence\r\na,MKTAYIAKQR\r\n", "format:a CSV or TSV table"),
    other("table_by_tabs.fasta", b"a\tMKTAYIAKQR\nb\tMK\n", "format:a CSV or TSV table"),
    other("table_quoted.fasta", b'"id","sequence"\n"a","MK"\n', "format:a CSV or TSV table"),
    other("table_wide.fasta", b"x" * 300 + b",y\n", TEXT),
    other("json_list.fasta", b'[{"id": "a"}]\n', "format:JSON"),
    other("json_names.fasta", b'["a", "b"]\n', "format:JSON"),
    other("rtf.fasta", b"{\\rtf1\\ansi >a\\par MK}", "format:RTF"),
    other("pdb_atoms.fasta", b"ATOM      1  N   MET A   1\n", "format:PDB"),
    other("pdb_remark.fasta", b"REMARK   1 CREATED\n", "format:PDB"),
    other("pdb_model.fasta", b"MODEL        1\n", "format:PDB"),
    other("prose_like_pdb.fasta", b"Model of the header, an atom\n>a\nMK\n", TEXT),
    other("embl.fasta", b"ID   X56734; SV 1; linear; mRNA; STD; PLN; 1859 BP.\n", "format:a UniProt or EMBL flat file"),
    other("blast_report.fasta", b"BLASTP 2.14.0+\n\n\nReference: x\n", "format:a BLAST report"),
    other("blast_table.fasta", b"# BLASTP 2.14.0+\n# Query: a\n", "format:a BLAST report"),
    other("msf.fasta", b"!!AA_MULTIPLE_ALIGNMENT 1.0\n", "format:an MSF alignment"),
    other("phylip.fasta", b" 2 10\na  MKTAYIAKQR\n", "format:a PHYLIP alignment", column=2),
    other("hmm.fasta", b"HMMER3/f [3.3 | Nov 2019]\nNAME  x\n", "format:a HMMER profile"),
    other("safetensors.fasta", struct.pack("<Q", 64) + b'{"x":{"dtype":"F32"}}', "format:safetensors"),
    other("safetensors_blank.fasta", struct.pack("<Q", 32) + b'{"x":{"dtype":"F32"}}', "format:safetensors", column=2),
    other("tokens.fasta", b"protperf tokens\n\x01\x00\x00\x00", "format:a token file of protperf"),
    other("array.fasta", b"\x93NUMPY\x01\x00v\x00{'descr'", "format:a NumPy array"),
    other("hdf5.fasta", b"\x89HDF\r\n\x1a\n\x00", "format:HDF5"),
    other("parquet.fasta", b"PAR1\x15\x04", "format:Parquet"),
    other("sqlite.fasta", b"SQLite format 3\x00", "format:SQLite"),
    other("office.fasta", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "format:an Office document"),
    other("picture.fasta", b"\x89PNG\r\n\x1a\n", "format:PNG"),
    other("pickle.fasta", b"\x80\x02}q\x00.", "format:binary data"),
    other("archive.tar", b"x.fasta".ljust(257, b"\0") + b"ustar\x0000", "format:a tar archive"),
    other("archive_old.tar", b"x.fasta".ljust(100, b"\0") + b"0000644\0", "format:binary data"),
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
