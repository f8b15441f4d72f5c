"""Lines, headers, blanks, comments, and what alignments hold in addition to their rows."""

from corpus_case import Case, err, mended, rec, refused, reject, same

A, B = "MKTAYIAKQR", "GSHWLEDVNC"
BOM = b"\xef\xbb\xbf"


def empty(
    name: str, content: bytes, *rows, line: int, who: str = "", flags: tuple[str, ...] = ("empty",), about=""
) -> Case:
    """One record, last in the file, has no residues."""
    row = rec(who, "", *flags, about=about)
    strict = (*rows, err(line, 1, "empty"))
    return mended(name, content, *rows, row, strict=strict, skip=(*rows, reject(who, line, 1, "empty")))


def latin1(name: str, header: bytes, who: str, *flags: str, about: str = "", at: int) -> Case:
    """A header that is not UTF-8: `map` and `skip` decode it."""
    row = rec(who, "MK", *flags, "latin1_header", about=about)
    return mended(name, header + b"MK\n", row, strict=(err(1, at, "header_encoding"),), skip=(row,))


LATIN1 = (rec("ok", "MK"), rec("bad", "MK", "latin1_header", about="caf\u00e9"), rec("c", "ML"))

LINES = [
    same("one_record.fasta", b">a first\nMKTAYIAKQR\n", rec("a", A, about="first")),
    same("two_records.fasta", b">a\nMKTAYIAKQR\n>b\nGSHWLEDVNC\n", rec("a", A), rec("b", B)),
    same("wrapped.fasta", b">a\nMKTA\nYIAK\nQR\n>b\nGSHW\nLEDVNC\n", rec("a", A), rec("b", B)),
    same("uneven_wrap.fasta", b">a\nM\nKTAYIAK\nQ\nR\n", rec("a", A)),
    same("no_final_newline.fasta", b">a\nMKTAYIAKQR\n>b\nGSHWLEDVNC", rec("a", A), rec("b", B)),
    same("crlf.fasta", b">a one\r\nMKTAY\r\nIAKQR\r\n>b\r\nGSHWLEDVNC\r\n", rec("a", A, about="one"), rec("b", B)),
    same("crlf_no_final.fasta", b">a\r\nMKTAY\r\nIAKQR", rec("a", A)),
    same("cr_only.fasta", b">a one\rMKTAY\rIAKQR\r>b\rGSHWLEDVNC\r", rec("a", A, about="one"), rec("b", B)),
    same("cr_no_final.fasta", b">a\rMKTAY\rIAKQR", rec("a", A)),
    same("cr_last_byte.fasta", b">a\r\nMKTAYIAKQR\r", rec("a", A)),
    same("cr_then_header.fasta", b">a\rMKTAYIAKQR\r>b\rGSHWLEDVNC\r\r", rec("a", A), rec("b", B)),
    same("cr_blank_inside.fasta", b">a\rMKTAY\r\rIAKQR\r", rec("a", A)),
    same("cr_comment.fasta", b";x\r>a\rMKTAY\r;y\rIAKQR\r", rec("a", A)),
    empty("cr_cut_after_header.fasta", b">a\r", line=1, who="a"),
    same("crlf_inside_only.fasta", b">a\nMKTAY\r\nIAKQR\n", rec("a", A)),
    same("crlf_header_only.fasta", b">a one\r\nMKTAYIAKQR\n", rec("a", A, about="one")),
    same("mixed_ends.fasta", b">a\r\nMKTAY\nIAKQR\r>b\nGSHWL\r\nEDVNC\n", rec("a", A), rec("b", B)),
    same("cr_cr_lf.fasta", b">a\r\r\nMKTAY\r\r\nIAKQR\r\r\n", rec("a", A)),
    same("lf_cr.fasta", b">a\n\rMKTAY\n\rIAKQR\n\r", rec("a", A)),
    refused("line_count_lf.fasta", b">bad\n\nMK\nM1K\n", err(4, 2, "invalid_byte")),
    refused("line_count_crlf.fasta", b">bad\r\n\r\nMK\r\nM1K\r\n", err(4, 2, "invalid_byte")),
    refused("line_count_cr.fasta", b">bad\r\rMK\rM1K\r", err(4, 2, "invalid_byte")),
    refused("line_count_mixed.fasta", b">bad\n\rMK\r\nM1K\r", err(4, 2, "invalid_byte")),
    same("blank_between.fasta", b">a\nMKTAYIAKQR\n\n\n>b\nGSHWLEDVNC\n", rec("a", A), rec("b", B)),
    same("blank_inside.fasta", b">a\nMKTAY\n\nIAKQR\n", rec("a", A)),
    same("blank_after_header.fasta", b">a\n\nMKTAYIAKQR\n", rec("a", A)),
    same("blank_first.fasta", b"\n\n>a\nMKTAYIAKQR\n", rec("a", A)),
    same("blank_last.fasta", b">a\nMKTAYIAKQR\n\n\n", rec("a", A)),
    same("spaces_first.fasta", b"   \n \n>a\nMKTAYIAKQR\n", rec("a", A)),
    same("spaces_line.fasta", b">a\nMKTAY\n    \nIAKQR\n", rec("a", A)),
    same("leading_space.fasta", b">a\n  MKTAY\n IAKQR\n", rec("a", A)),
    same("trailing_space.fasta", b">a\nMKTAY  \nIAKQR \n", rec("a", A)),
    same("tabs_first.fasta", b"\t\n \t\n>a\nMKTAYIAKQR\n", rec("a", A)),
    same("tabs_line.fasta", b">a\nMKTAY\n\t\t\nIAKQR\n", rec("a", A)),
    same("leading_tab.fasta", b">a\n\tMKTAY\n \tIAKQR\n", rec("a", A)),
    same("trailing_tab.fasta", b">a\nMKTAY\t\nIAKQR\t\t", rec("a", A)),
    same("trailing_tab_crlf.fasta", b">a\r\nMKTAY\t\r\nIAKQR\t\r\n>b\t\r\nGSHWLEDVNC\r\n", rec("a", A), rec("b", B)),
    same("tab_inside.fasta", b">a\nMKTAY\tIAKQR\n", rec("a", A)),
    same("grouped_by_five.fasta", b">a\nMKTAY IAKQR\n", rec("a", A)),
]

HEADERS = [
    same("space_after_mark.fasta", b"> a first one\nMKTAYIAKQR\n", rec("a", A, about="first one")),
    same("tab_after_id.fasta", b">a\tfirst\tone\nMKTAYIAKQR\n", rec("a", A, about="first\tone")),
    same("spaces_in_header.fasta", b">a   first  one  \nMKTAYIAKQR\n", rec("a", A, about="first  one")),
    same("no_id.fasta", b">\nMKTAYIAKQR\n", rec("", A, "no_id")),
    same("blank_header.fasta", b">   \nMKTAYIAKQR\n", rec("", A, "no_id")),
    empty("cut_after_header.fasta", b">a first\n", line=1, who="a", about="first"),
    empty("cut_in_header.fasta", b">a fir", line=1, who="a", about="fir"),
    empty("cut_after_mark.fasta", b">", line=1, flags=("empty", "no_id")),
    empty("cut_at_second_mark.fasta", b">a\nMKTAYIAKQR\n>", rec("a", A), line=3, flags=("empty", "no_id")),
    empty("cut_in_second_header.fasta", b">a\nMKTAYIAKQR\n>b", rec("a", A), line=3, who="b"),
    mended(
        "empty_record.fasta",
        b">a\nMKTAYIAKQR\n>none\n>b\nGSHWLEDVNC\n",
        rec("a", A),
        rec("none", "", "empty"),
        rec("b", B),
        strict=(rec("a", A), err(3, 1, "empty")),
        skip=(rec("a", A), reject("none", 3, 1, "empty"), rec("b", B)),
    ),
    mended(
        "empty_record_first.fasta",
        b">none\n\n>b\nGSHWLEDVNC\n",
        rec("none", "", "empty"),
        rec("b", B),
        strict=(err(1, 1, "empty"),),
        skip=(reject("none", 1, 1, "empty"), rec("b", B)),
    ),
    mended(
        "empty_records_only.fasta",
        b">a\n>b\n>c\n",
        rec("a", "", "empty"),
        rec("b", "", "empty"),
        rec("c", "", "empty"),
        strict=(err(1, 1, "empty"),),
        skip=tuple(reject(n, i, 1, "empty") for i, n in enumerate("abc", 1)),
    ),
    same("duplicate_ids.fasta", b">a\nMKTAYIAKQR\n>a\nGSHWLEDVNC\n>a\nMK\n", rec("a", A), rec("a", B), rec("a", "MK")),
    same(
        "path_like_ids.fasta",
        b">../../etc/passwd x\nMK\n>/etc/shadow\nML\n>C:\\con\nMN\n>~/.ssh\nMP\n",
        rec("../../etc/passwd", "MK", about="x"),
        rec("/etc/shadow", "ML"),
        rec("C:\\con", "MN"),
        rec("~/.ssh", "MP"),
    ),
    same(
        "uniprot_header.fasta",
        b">sp|P1|A_B Some protein OS=X (s) PE=1 SV=2\nMK\n",
        rec("sp|P1|A_B", "MK", about="Some protein OS=X (s) PE=1 SV=2"),
    ),
    same("marks_in_header.fasta", b">a >b ;c *d\nMKTAYIAKQR\n", rec("a", A, about=">b ;c *d")),
    same("double_mark.fasta", b">>a b\nMKTAYIAKQR\n", rec(">a", A, about="b")),
    same("formula_id.fasta", b">=cmd()\nMKTAYIAKQR\n", rec("=cmd()", A)),
    same("control_a.fasta", b">a one\x01b two\nMKTAYIAKQR\n", rec("a", A, about="one\x01b two")),
    same("control_a_after_id.fasta", b">a\x01b two\nMKTAYIAKQR\n", rec("a", A, about="\x01b two")),
    same(
        "utf8_header.fasta",
        ">a \u00c5ngstr\u00f6m \u03b2-lactamase\nMKTAYIAKQR\n".encode(),
        rec("a", A, about="\u00c5ngstr\u00f6m \u03b2-lactamase"),
    ),
    same("line_separator_in_header.fasta", ">a one\u2028two\nMKTAYIAKQR\n".encode(), rec("a", A, about="one\u2028two")),
    same("next_line_in_header.fasta", ">a one\u0085two\nMKTAYIAKQR\n".encode(), rec("a", A, about="one\u0085two")),
    same("no_break_space_in_id.fasta", ">a\u00a0b c\nMKTAYIAKQR\n".encode(), rec("a\u00a0b", A, about="c")),
    mended(
        "latin1_header.fasta",
        b">ok\nMK\n>bad caf\xe9\nMK\n>c\nML\n",
        *LATIN1,
        strict=(rec("ok", "MK"), err(3, 9, "header_encoding")),
        skip=LATIN1,
    ),
    mended(
        "latin1_header_of_a_faulty_record.fasta",
        b">bad caf\xe9\nM1\n>c\nML\n",
        err(2, 2, "invalid_byte"),
        strict=(err(1, 9, "header_encoding"),),
        skip=(reject("bad", 2, 2, "invalid_byte"), rec("c", "ML")),
    ),
    latin1("latin1_id.fasta", b">\xc5ngstr\xf6m\n", "\u00c5ngstr\u00f6m", at=2),
    latin1("latin1_no_id.fasta", b"> \x01\xe9\n", "", "no_id", about="\x01\u00e9", at=4),
    latin1("latin1_c1_control.fasta", b">bad a\x85b\x80\n", "bad", about="a\x85b\x80", at=7),
    latin1("latin1_no_break_space.fasta", b">bad\xa0a b\n", "bad\u00a0a", about="b", at=5),
    latin1("cut_utf8_header.fasta", b">bad \xc3\n", "bad", about="\u00c3", at=6),
    latin1("utf8_and_latin1_header.fasta", b">bad \xc3\xa9 \xe9\n", "bad", about="\u00c3\u00a9 \u00e9", at=9),
    latin1("overlong_utf8_header.fasta", b">bad \xc0\xaf\n", "bad", about="\u00c0\u00af", at=6),
    latin1("surrogate_header.fasta", b">bad \xed\xa0\x80\n", "bad", about="\u00ed\u00a0\x80", at=6),
    Case(
        "latin1_and_control_header.fasta",
        b">bad \x1b\xe9\nMK\n",
        (err(1, 6, "header_control"),),
        (err(1, 7, "header_encoding"),),
        (reject("bad", 1, 6, "header_control"),),
    ),
    refused("nul_in_header.fasta", b">bad o\x00ne\nMK\n>c\nML\n", err(1, 7, "header_control"), after=(rec("c", "ML"),)),
    refused("escape_in_header.fasta", b">bad \x1b[31mred\nMK\n", err(1, 6, "header_control")),
    refused("delete_in_header.fasta", b">bad x\x7f\nMK\n", err(1, 7, "header_control")),
    refused("form_feed_in_header.fasta", b">bad x\x0cy\nMK\n", err(1, 7, "header_control")),
    refused("vertical_tab_in_header.fasta", b">bad x\x0by\nMK\n", err(1, 7, "header_control")),
]

COMMENTS = [
    same("comment_first.fasta", b";made by hand\n>a\nMKTAYIAKQR\n", rec("a", A)),
    same("comment_between.fasta", b">a\nMKTAYIAKQR\n;next\n>b\nGSHWLEDVNC\n", rec("a", A), rec("b", B)),
    same("comment_inside.fasta", b">a\nMKTAY\n; half of it\nIAKQR\n", rec("a", A)),
    same("comment_with_mark.fasta", b">a\nMKTAY\n;>b\nIAKQR\n", rec("a", A)),
    same("comment_any_bytes.fasta", b">a\n;\x00\x1b\xff1\nMKTAYIAKQR\n", rec("a", A)),
    same("comment_last.fasta", b">a\nMKTAYIAKQR\n;end", rec("a", A)),
    same("comment_crlf.fasta", b";one\r\n;two\r\n>a\r\nMKTAYIAKQR\r\n", rec("a", A)),
    refused("comment_indented.fasta", b">bad\nMK\n ;no\nMK\n", err(3, 2, "invalid_byte")),
    refused("semicolon_inside.fasta", b">bad\nMK;L\n", err(2, 3, "invalid_byte")),
    same("comment_indented_first.fasta", b" ;no\n>a\nMK\n", err(1, 2, "text_before_header")),
]

MARKS = [
    same("bom.fasta", BOM + b">a\nMKTAYIAKQR\n", rec("a", A)),
    same("bom_crlf.fasta", BOM + b">a\r\nMKTAYIAKQR\r\n", rec("a", A)),
    same("bom_cr.fasta", BOM + b">a\rMKTAYIAKQR\r>b\rGSHWLEDVNC\r", rec("a", A), rec("b", B)),
    same("bom_blank.fasta", BOM + b"\n>a\nMKTAYIAKQR\n", rec("a", A)),
    same("bom_no_header.fasta", BOM + b"MKTAYIAKQR\n", err(1, 1, "text_before_header")),
    same("bom_comment.fasta", BOM + b";x\n>a\nMKTAYIAKQR\n", rec("a", A)),
    same("bom_only.fasta", BOM, err(1, 1, "no_record")),
    same("bom_twice.fasta", BOM + BOM + b">a\nMK\n", err(1, 1, "text_before_header")),
    same("bom_cut.fasta", BOM[:2], err(1, 1, "text_before_header")),
    refused("bom_then_fault.fasta", BOM + b">bad \x1b\nMK\n", err(1, 6, "header_control")),
    latin1("bom_then_latin1.fasta", BOM + b">bad \xe9\n", "bad", about="\u00e9", at=6),
    refused("bom_of_second_file.fasta", b">bad\nMK\n" + BOM + b">b\nML\n", err(3, 1, "invalid_byte")),
]

A3M = b">a\nMK-v\n"
ROW = rec("a", "MKV", "gaps", "lower_case")
FAULT = (err(3, 3, "gap"),)
LEFT_OUT = (reject("a", 3, 3, "gap"),)
ALIKE = (rec("ss_predicted", "MK"), rec("ss_", "ML"), rec("SS_PRED", "MN"))
ANNOTATION = b">ss_pred PSIPRED\nCCHHE\n>ss_conf\n98765\n"

ALIGNMENTS = [
    mended("a3m_line.a3m", b"#A3M#\n" + A3M, ROW, strict=FAULT, skip=LEFT_OUT),
    mended("colabfold.a3m", b"#101,98\t1,2\n" + A3M, ROW, strict=FAULT, skip=LEFT_OUT),
    same("hh_suite_name.a3m", b"#cl|A0A|1 Some cluster\r\n>a\r\nMK\r\n", rec("a", "MK")),
    same("hash_alone.a3m", b"#\n>a\nMK\n", rec("a", "MK")),
    same("hash_and_tab.fasta", b"#a\tb\n>a\nMK\n", rec("a", "MK")),
    same("hash_after_blank.a3m", b"\n  \n;x\n#A3M#\n>a\nMK\n", rec("a", "MK")),
    same("hash_after_mark.a3m", BOM + b"#A3M#\n>a\nMK\n", rec("a", "MK")),
    same("hash_long.a3m", b"#" + b"12,34;" * 2000 + b"\t1,1\n>a\nMK\n", rec("a", "MK")),
    same("hash_twice.a3m", b"#A3M#\n#more\n>a\nMK\n", err(2, 1, "text_before_header")),
    same("hash_then_text.a3m", b"#A3M#\nMK\n>a\nMK\n", err(2, 1, "text_before_header")),
    same("hash_indented.a3m", b" #A3M#\n>a\nMK\n", err(1, 2, "text_before_header")),
    same("hash_only.a3m", b"#A3M#\n", err(1, 1, "no_record")),
    same("hash_binary.a3m", b"#A3M#\x00\n>a\nMK\n", err(1, 1, "format:binary data")),
    refused("hash_later.a3m", b">bad\nMK\n#A3M#\n>b\nML\n", err(3, 1, "invalid_byte"), after=(rec("b", "ML"),)),
    same(
        "annotation_first.a3m", b">ss_dssp\nC-HE\n" + ANNOTATION + b">a\nMK\n>b\nML\n", rec("a", "MK"), rec("b", "ML")
    ),
    same(
        "annotation_between.a3m",
        b">a\nMK\n" + ANNOTATION + b">sa_dssp\nABCDE\n>b\nML\n",
        rec("a", "MK"),
        rec("b", "ML"),
    ),
    same("annotation_last.a3m", b">a\nMK\n>ss_conf\n0123", rec("a", "MK")),
    same("annotation_empty.a3m", b">ss_pred\n>a\nMK\n", rec("a", "MK")),
    same("annotation_only.a3m", b">ss_pred\nHHH\n"),
    same("annotation_any_bytes.a3m", b">ss_pred\n\x00\xff>x\n;y\n\n>a\nMK\n", rec("a", "MK")),
    same("annotation_after_space.a3m", b"> \tss_pred x\nHHH\n>a\nMK\n", rec("a", "MK")),
    same("annotation_crlf.a3m", b">ss_pred\r\nHHH\r\n>a\r\nMK\r\n", rec("a", "MK")),
    same("annotation_of_accessibility.a3m", b">sa_pred\nABCDE\n>sa_conf\n98765\n>a\nMK\n", rec("a", "MK")),
    same("annotation_named_otherwise.a3m", b"#A3M#\n>ss_stride\nCC~~ 09\n>sa_x y\nAB\n>a\nMK\n", rec("a", "MK")),
    same("annotation_after_annotation.a3m", ANNOTATION + b">ss_\nHH\n>sa_1\nAB\n>a\nMK\n", rec("a", "MK")),
    same("annotation_named_otherwise_later.a3m", b"#A3M#\n>a\nMK\n>sa_1\nML\n", rec("a", "MK"), rec("sa_1", "ML")),
    same("proteins_called_like_annotation.fasta", b">sa_1\nMK\n>ss_2\nML\n", rec("sa_1", "MK"), rec("ss_2", "ML")),
    same("annotation_alike.a3m", b">ss_predicted\nMK\n>ss_\nML\n>SS_PRED\nMN\n", *ALIKE),
    refused("annotation_then_fault.a3m", ANNOTATION + b">bad\nM1\n", err(6, 2, "invalid_byte")),
    mended(
        "annotation_latin1.a3m",
        b">ok\nMK\n>ss_pred \xe9\nHHH\n",
        rec("ok", "MK"),
        strict=(rec("ok", "MK"), err(3, 10, "header_encoding")),
        skip=(rec("ok", "MK"),),
    ),
    refused("colabfold_nul.a3m", b"#5\t1\n>bad\nMKTAY\n\x00", err(4, 1, "invalid_byte")),
]

CASES = [*LINES, *HEADERS, *COMMENTS, *MARKS, *ALIGNMENTS]
