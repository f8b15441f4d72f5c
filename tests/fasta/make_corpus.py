"""Write the FASTA corpus: small synthetic files and the outcome that each must have.

    python tests/fasta/make_corpus.py            # writes files/ and cases.tsv next to this script

Outcomes are written by hand from the residue policy and the verdicts on formats, never by running a reader.
`cases.tsv` has one line per record, rejection or error: file, policy, what, and

    record  id  description  sequence  flags
    reject  id  line:column  kind
    error   -   line:column  kind
    end

Fields escape backslash, tab, newline and control bytes as \\xHH. A field `UNIT*COUNT` stands for a repetition, and so
does `record*COUNT`; in `reject*COUNT` each rejection is one line below the one before. An error with `-` as its
place is a fault of the compressed data: the records above it come out as far as the decoder got.
The script needs the zstd tool for the few files of that format.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys

import corpus_archives
import corpus_formats
import corpus_layout
import corpus_residues
from corpus_case import POLICIES, Case

HERE = pathlib.Path(__file__).parent


def all_cases() -> list[Case]:
    cases = [*corpus_layout.CASES, *corpus_formats.CASES, *corpus_residues.CASES, *corpus_archives.cases(zstd)]
    names = [case.name for case in cases]
    assert len(names) == len(set(names)), "two files have the same name"
    return cases


def zstd(data: bytes, *options: str) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, capture_output=True, check=True).stdout


def table(cases: list[Case]) -> str:
    lines = ["file\tpolicy\twhat\tid\tdescription or place\tsequence or kind\tflags"]
    for case in cases:
        for policy in POLICIES:
            lines += ["\t".join((case.name, policy, *row)) for row in case.outcome(policy)]
    return "\n".join(lines) + "\n"


def main() -> None:
    cases = all_cases()
    files = HERE / "files"
    files.mkdir(exist_ok=True)
    for case in cases:
        (files / case.name).write_bytes(case.content)
    (HERE / "cases.tsv").write_text(table(cases), encoding="utf-8")
    print(f"{len(cases)} files", file=sys.stderr)


if __name__ == "__main__":
    main()
