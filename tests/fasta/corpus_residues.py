"""Letters and signs in sequence lines."""

from corpus_case import Case, err, mended, rec, refused, reject, same

A = "MKTAYIAKQR"
DNA = "ACGT" * 12


def narrow(name: str, content: bytes, *flags: str, sequence: str, at: tuple[int, int], kind: str) -> Case:
    """One record `a` that `map` mends and the others refuse."""
    return mended(name, content, rec("a", sequence, *flags), strict=(err(*at, kind),), skip=(reject("a", *at, kind),))


CASE = [
    same("lower.fasta", b">a\nmktayiakqr\n", rec("a", A, "lower_case")),
    same("mixed_case.fasta", b">a\nMKTayiAKQR\n", rec("a", A, "lower_case")),
    same("selenocysteine_pyrrolysine.fasta", b">a\nMKUTO\n", rec("a", "MKUTO")),
    same("lower_u_o.fasta", b">a\nMKuTo\n", rec("a", "MKUTO", "lower_case")),
    same("unknown.fasta", b">a\nMKXXT\n", rec("a", "MKXXT", "ambiguous")),
    same("lower_unknown.fasta", b">a\nMKxT\n", rec("a", "MKXT", "lower_case", "ambiguous")),
    same("all_letters.fasta", b">a\nACDEFGHIKLMNPQRSTVWYUOX\n", rec("a", "ACDEFGHIKLMNPQRSTVWYUOX", "ambiguous")),
    narrow("asx.fasta", b">a\nMKBT\n", "ambiguous", sequence="MKBT", at=(2, 3), kind="ambiguous"),
    narrow("glx.fasta", b">a\nMKZT\n", "ambiguous", sequence="MKZT", at=(2, 3), kind="ambiguous"),
    narrow("leu_or_ile.fasta", b">a\nMKJT\n", "ambiguous", sequence="MKJT", at=(2, 3), kind="ambiguous"),
    narrow("lower_b.fasta", b">a\nMK\nTbA\n", "lower_case", "ambiguous", sequence="MKTBA", at=(3, 2), kind="ambiguous"),
]

STOPS = [
    same("trailing_stop.fasta", b">a\nMKTAYIAKQR*\n", rec("a", A, "trailing_stop")),
    same("trailing_stop_no_newline.fasta", b">a\nMKTAYIAKQR*", rec("a", A, "trailing_stop")),
    same("two_trailing_stops.fasta", b">a\nMKTAYIAKQR**\n", rec("a", A, "trailing_stop")),
    same("stop_on_own_line.fasta", b">a\nMKTAYIAKQR\n*\n>b\nMK\n", rec("a", A, "trailing_stop"), rec("b", "MK")),
    same("stop_then_blanks.fasta", b">a\nMKTAYIAKQR*  \n\n \t\n", rec("a", A, "trailing_stop")),
    same("stop_then_comment.fasta", b">a\nMKTAYIAKQR*\n;x\n", rec("a", A, "trailing_stop")),
    narrow(
        "internal_stop.fasta",
        b">a\nMK*TA\n",
        "internal_stop",
        "ambiguous",
        sequence="MKXTA",
        at=(2, 3),
        kind="internal_stop",
    ),
    narrow(
        "leading_stop.fasta",
        b">a\n*MKTA\n",
        "internal_stop",
        "ambiguous",
        sequence="XMKTA",
        at=(2, 1),
        kind="internal_stop",
    ),
    narrow(
        "stop_at_line_end.fasta",
        b">a\nMK*\nTA\n",
        "internal_stop",
        "ambiguous",
        sequence="MKXTA",
        at=(2, 3),
        kind="internal_stop",
    ),
    narrow(
        "stop_before_comment.fasta",
        b">a\nMK*\n;x\n\nTA\n",
        "internal_stop",
        "ambiguous",
        sequence="MKXTA",
        at=(2, 3),
        kind="internal_stop",
    ),
    narrow(
        "stops_inside_and_last.fasta",
        b">a\nMK**TA*\n",
        "trailing_stop",
        "internal_stop",
        "ambiguous",
        sequence="MKXXTA",
        at=(2, 3),
        kind="internal_stop",
    ),
    mended(
        "only_stop.fasta",
        b">a\n*\n",
        rec("a", "", "trailing_stop", "empty"),
        strict=(err(1, 1, "empty"),),
        skip=(reject("a", 1, 1, "empty"),),
    ),
]

STOPS += [
    mended(
        "stop_before_asx.fasta",
        b">a\nMK*BT\n",
        rec("a", "MKXBT", "internal_stop", "ambiguous"),
        strict=(err(2, 3, "internal_stop"),),
        skip=(reject("a", 2, 3, "internal_stop"),),
    )
]

GAPS = [
    narrow("dashes.fasta", b">a\nMK--TA\n", "gaps", sequence="MKTA", at=(2, 3), kind="gap"),
    narrow("dots.fasta", b">a\n..MKTA\n", "gaps", sequence="MKTA", at=(2, 1), kind="gap"),
    narrow("a2m_row.fasta", b">a\nMK.-tTA..\n", "gaps", "lower_case", sequence="MKTTA", at=(2, 3), kind="gap"),
    narrow("only_gaps.fasta", b">a\n----\n", "gaps", "empty", sequence="", at=(2, 1), kind="gap"),
    narrow("stop_then_gap.fasta", b">a\nMKTA*--\n", "trailing_stop", "gaps", sequence="MKTA", at=(2, 6), kind="gap"),
    mended(
        "alignment.fasta",
        b">a\nMK-TA\n>b\nMKWTA\n>c\nM-W-A\n",
        rec("a", "MKTA", "gaps"),
        rec("b", "MKWTA"),
        rec("c", "MWA", "gaps"),
        strict=(err(2, 3, "gap"),),
        skip=(reject("a", 2, 3, "gap"), rec("b", "MKWTA"), reject("c", 6, 2, "gap")),
    ),
    same("a3m_without_gaps.fasta", b">a\nMKTA\n>b\nMKttTA\n", rec("a", "MKTA"), rec("b", "MKTTTA", "lower_case")),
]

BAD = b">ok\nMK\n>bad\nMKT\nAY%bIA\n>c\nML\n"


def bad(name: str, what: bytes, kind: str = "invalid_byte") -> Case:
    """The bytes `what` in the fifth line, third column."""
    return refused(name, BAD.replace(b"%b", what), err(5, 3, kind), before=(rec("ok", "MK"),), after=(rec("c", "ML"),))


BYTES = [
    bad("digit.fasta", b"7"),
    refused("fault_after_tab.fasta", b">bad\n\tMKT\t?\n", err(2, 6, "invalid_byte")),
    refused("numbered_lines.fasta", b">bad\n        1 MKTAY IAKQR\n       61 GSHW\n", err(2, 9, "invalid_byte")),
    bad("nul.fasta", b"\x00"),
    bad("escape.fasta", b"\x1b"),
    bad("form_feed.fasta", b"\x0c"),
    bad("vertical_tab.fasta", b"\x0b"),
    bad("delete.fasta", b"\x7f"),
    bad("byte_ff.fasta", b"\xff"),
    bad("latin1.fasta", b"\xe9"),
    bad("utf8.fasta", "\u00e9".encode()),
    bad("line_separator.fasta", "\u2028".encode()),
    bad("paragraph_separator.fasta", "\u2029".encode()),
    bad("next_line.fasta", "\u0085".encode()),
    bad("next_line_latin1.fasta", b"\x85"),
    bad("no_break_space.fasta", "\u00a0".encode()),
    bad("zero_width_space.fasta", "\u200b".encode()),
    bad("soft_hyphen.fasta", "\u00ad".encode()),
    bad("fullwidth_letter.fasta", "\uff21".encode()),
    bad("minus_sign.fasta", "\u2212".encode()),
    bad("mark_of_order_inside.fasta", "\ufeff".encode()),
    bad("control_z.fasta", b"\x1a"),
    bad("backspace.fasta", b"\x08"),
    bad("control_a_in_sequence.fasta", b"\x01"),
    bad("cyrillic_a.fasta", "\u0410".encode()),
    bad("mark_inside.fasta", b">b ", "header_inside_line"),
    refused(
        "mark_at_line_end.fasta", b">bad\nMKT>\nAY\n>c\nML\n", err(2, 4, "header_inside_line"), after=(rec("c", "ML"),)
    ),
    refused("mark_after_space.fasta", b">bad\nMKT\n >c\nML\n", err(3, 2, "header_inside_line")),
    bad("bracket.fasta", b"("),
    bad("underscore.fasta", b"_"),
    bad("question_mark.fasta", b"?"),
    bad("quote.fasta", b'"'),
    bad("comma.fasta", b","),
    bad("at_sign.fasta", b"@"),
    bad("slash.fasta", b"/"),
    refused("fastq_tail.fasta", b">bad\nMKT\n+\nIII\n", err(3, 1, "invalid_byte")),
    refused("two_faults.fasta", b">bad\nMK1\n2T\n>c\nML\n", err(2, 3, "invalid_byte"), after=(rec("c", "ML"),)),
    refused("control_z_last.fasta", b">bad\nMKT\n\x1a", err(3, 1, "invalid_byte")),
    refused("nul_padding.fasta", b">bad\nMKT\n" + bytes(512), err(3, 1, "invalid_byte")),
    refused("genbank_origin.fasta", b">bad\nORIGIN\n        1 mktay\n//\n", err(3, 9, "invalid_byte")),
    refused("a_lot_later.fasta", b">bad\n" + b"MKTAYIAKQR\n" * 400 + b"MK_\n", err(402, 3, "invalid_byte")),
    refused("fault_in_last_byte.fasta", b">bad\nMK1", err(2, 3, "invalid_byte")),
]


def nucleotides(name: str, content: bytes, sequence: str, *flags: str) -> Case:
    return narrow(name, content, *flags, "nucleotides", sequence=sequence, at=(1, 1), kind="nucleotides")


NUCLEOTIDES = [
    nucleotides("dna_51.fasta", f">a\n{DNA}ACG\n".encode(), f"{DNA}ACG"),
    same("dna_50.fasta", f">a\n{DNA}AC\n".encode(), rec("a", f"{DNA}AC")),
    nucleotides("dna_wrapped.fasta", f">a\n{DNA}\n{DNA}\n".encode(), f"{DNA}{DNA}"),
    nucleotides("rna_lower.fasta", f">a\n{DNA}ugn\n".lower().encode(), f"{DNA}UGN", "lower_case"),
    same("dna_but_one.fasta", f">a\n{DNA}ACGW\n".encode(), rec("a", f"{DNA}ACGW")),
    same("dna_with_x.fasta", f">a\n{DNA}ACGX\n".encode(), rec("a", f"{DNA}ACGX", "ambiguous")),
    mended(
        "dna_50_and_gaps.fasta",
        f">a\n{DNA}AC----\n".encode(),
        rec("a", f"{DNA}AC", "gaps"),
        strict=(err(2, 51, "gap"),),
        skip=(reject("a", 2, 51, "gap"),),
    ),
    mended(
        "dna_then_protein.fasta",
        f">a\n{DNA}{DNA}\n>b\nMK\n".encode(),
        rec("a", DNA * 2, "nucleotides"),
        rec("b", "MK"),
        strict=(err(1, 1, "nucleotides"),),
        skip=(reject("a", 1, 1, "nucleotides"), rec("b", "MK")),
    ),
]

SKIPPED = [
    refused(
        "refused_header_then_header.fasta", b">bad \x00\n>c\nML\n", err(1, 6, "header_control"), after=(rec("c", "ML"),)
    ),
    Case(
        "many_rejected.fasta",
        b">a\nM1\n>b\nMK\n>c\n\n>d\nM-K\n>e\nM*K\n>f\nML*\n",
        (err(2, 2, "invalid_byte"),),
        (err(2, 2, "invalid_byte"),),
        (
            reject("a", 2, 2, "invalid_byte"),
            rec("b", "MK"),
            reject("c", 5, 1, "empty"),
            reject("d", 8, 2, "gap"),
            reject("e", 10, 2, "internal_stop"),
            rec("f", "ML", "trailing_stop"),
        ),
    ),
    Case(
        "rejected_then_lines.fasta",
        b">a\nM1\nMK\n;x\n\x00\n>b\nMK\n",
        (err(2, 2, "invalid_byte"),),
        (err(2, 2, "invalid_byte"),),
        (reject("a", 2, 2, "invalid_byte"), rec("b", "MK")),
    ),
]

CASES = [*CASE, *STOPS, *GAPS, *BYTES, *NUCLEOTIDES, *SKIPPED]
