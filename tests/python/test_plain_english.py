"""Forms and names that must not come back: text that reads as translated, and words that only this project understood.

Each form has an example that it must find and one that it must leave alone. Whole lines are read, code and prose, for a
reader meets both, and names in lower case as the sentences that their words make. What is meant by a form is not always
wrong English; it is banned where something plainer exists.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".rs", ".py", ".pyi", ".md", ".toml", ".wgsl", ".sh", "Makefile", ".ci/run", ".ci/wheel-check")
# A list of changes quotes what was.
EXEMPT = {"tests/python/test_plain_english.py", "CHANGELOG.md", "LICENSE"}

_COUNTS = (
    "one|two|three|once|twice|nats|bits|bytes|elements|floats|doubles|tokens|targets|features|rows|lines|times|calls|seconds|MB|GB|kB|residues|"
    "steps|lanes|entries|vectors|flags|trials|forks|records|executions|sequences|numbers|values|passes|rounds|threads|"
    "tasks|signals|kills|operations|directions|multiply-adds|exponentials|kept"
)
_EACH = (
    "row|residue|head|batch|second|minute|hour|feature|thread|record|rejection|line|token|sequence|call|pass|task|step|"
    "key|query|target|position|policy|run|case|file|byte|element|lane|block|chunk|layer|epoch|protein|segment|worker|"
    "register|panel|tile"
)
_VERBS = r"(is|has|was|may|can|must|does|takes|makes|needs|uses|reads|holds|gets)\b"
# What may follow "is no": a comparison is plain English.
_COMPARED = (
    "longer|more|less|fewer|better|worse|faster|slower|shorter|larger|smaller|higher|lower|closer|nearer|other|wider|"
    "later|earlier|greater"
)
# Between lower-case words of a name.
_JOINT = re.compile(r"(?<=[a-z0-9])_(?=[a-z0-9])")


@functools.lru_cache(maxsize=2)
def _spaced(text: str) -> str:
    """The text with names as the words that they are made of; kept, for every form asks for the same one."""
    return _JOINT.sub(" ", text)


@dataclass(frozen=True, kw_only=True)
class Form:
    """What must not be written.

    Attributes:
        bad: a line that has the form; good: one that looks like it and has not.
        instead: what to write; pattern: what finds the form, in files of these suffixes.
    """

    bad: str
    good: str
    instead: str
    pattern: str
    suffixes: tuple[str, ...] = SUFFIXES

    def found_in(self, line: str) -> bool:
        # A form of every file is one of prose, which names have, too.
        texts = (line, _spaced(line)) if self.suffixes is SUFFIXES else (line,)
        return any(re.search(self.pattern, text) for text in texts)


FORMS = (
    # The examples of `bad` are bad on purpose: each is text that the pattern has to find.
    Form(
        bad="nats a residue",
        good="rows a call takes, one per row",
        instead="per",
        pattern=rf"\b({_COUNTS}) an? ({_EACH})\b(?! {_VERBS})",
    ),
    Form(
        bad="one pass a residue",
        good="one is a row, one pass per row",
        instead="per",
        pattern=rf"\bone (?!is|has|was)\w+ an? ({_EACH})\b",
    ),
    Form(
        bad="right to 1e-5 a residue",
        good="2 of 3; a residue",
        instead="per",
        pattern=rf"\d an? ({_EACH})\b(?! {_VERBS})",
    ),
    Form(
        bad="checked lest it fail",
        good="at least",
        instead="so that .. not",
        pattern=r"\blest\b",
    ),
    Form(
        bad="a run that was begun",
        good="a run that began",
        instead="started",
        pattern=r"\bbegun\b",
    ),
    Form(
        bad="x.fa is no file",
        good="there is no file, and one is no longer than the other",
        instead="is not a",
        pattern=rf"(?<![Tt]here )\b(is|are|was|were) no (?!({_COMPARED})\b)[a-zA-Z]",
    ),
    Form(
        bad="what is told",
        good="tell one from the other",
        instead="says, said, shown, messages",
        pattern=r"\b(told|tells)\b",
    ),
    Form(
        bad="default of the size",
        good="of this size",
        instead="set by --size",
        pattern=r"\bof the size\b",
    ),
    Form(
        bad="whatever the order",
        good="in any order",
        instead="any, or what it is",
        pattern=r"\b[Ww]hatever\b",
    ),
    Form(
        bad="written beside it",
        good="besides",
        instead="next to, in addition to",
        pattern=r"\bbeside\b",
    ),
    Form(
        bad="Answers whether it fits",
        good="an answer",
        instead="returns",
        pattern=r"\b[Aa]nswers? (whether|what|how|true|false|None)\b",
    ),
    Form(
        bad="THETA = 3",
        good="BACKENDS",
        instead="MAX_LOOKAHEAD_BITS, LOGGING_OPTIONS, DURATION_OPTIONS",
        pattern=r"\b(THETA|RHYTHM|ENDS)\b",
    ),
    Form(
        bad="_MOST_KB = 1",
        good="at most, MAX_KB",
        instead="MAX",
        pattern=r"\b_?MOST(_\w+)?\b",
    ),
    Form(
        bad="fn redo()",
        good="undo",
        instead="recompute, project_keys",
        pattern=r"\b(redo|redone|absorb)\b",
    ),
    Form(
        bad="w: Widths,",
        good="/// Widths",
        instead="ReadOptions, Layout",
        pattern=r"\b(Want|Widths)\b(?=[:;,<>({)]| \{)",
        suffixes=(".rs",),
    ),
    Form(
        bad="let w = Weights::new()",
        good="// Weighted means",
        instead="PackedOmega",
        pattern=r"\bWeights\b",
        suffixes=(".rs",),
    ),
    Form(
        bad="turned: bool",
        good="a loop turned inside out",
        instead="transposed",
        pattern=r"\bturned\b(?= *[:(=,.])",
        suffixes=(".rs",),
    ),
    Form(
        bad="state.commit(keys)",
        good="commits",
        instead="update_state, visible",
        pattern=r"(\.|\bfn )(commit|live)\b",
        suffixes=(".rs",),
    ),
    Form(
        bad="progress=nobody",
        good="nobody is here",
        instead="no_progress, or what nobody does",
        pattern=r"=nobody\b|\bdef nobody\b|_nobody(_|\b)|\bnobody_",
        suffixes=(".py", ".pyi", ".rs"),
    ),
    Form(
        bad="if stranger:",
        good="strange",
        instead="foreign_entry, or who is meant",
        pattern=r"\bstrangers?\b",
        suffixes=(".py", ".pyi", ".rs"),
    ),
    Form(
        bad="check_voice(q)",
        good="voices",
        instead="check_verbosity and others",
        pattern=r"\b(check_voice|tells_memory|end_at_once)\b",
    ),
    Form(
        bad="unwind(2)",
        good="catch_unwind(f)",
        instead="raise_on_signal",
        pattern=r"\bdef unwind\b|\bunwind\(",
        suffixes=(".py",),
    ),
    Form(
        bad="keys.payload",
        good="payloads",
        instead="values_and_one, or what is held",
        pattern=r"\bpayload\b",
        suffixes=(".py", ".pyi"),
    ),
)


def sources() -> list[Path]:
    """Files of the repository that people read."""
    patterns = [suffix if "/" in suffix else f"*{suffix}" for suffix in SUFFIXES]
    try:
        listing = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, check=True, text=True)
        paths = [ROOT / name for name in listing.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):
        skipped = {".git", ".venv", "target", "runs", "dist"}
        found = (path for pattern in patterns for path in ROOT.rglob(pattern))
        paths = [path for path in found if not skipped & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file() and name_of(path) not in EXEMPT]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def offences(name: str, text: str) -> Iterator[str]:
    """Each line with a form, its place and what to write instead."""
    # Most files have none, and lines are slow to read one by one.
    forms = [form for form in FORMS if name.endswith(form.suffixes) and form.found_in(text)]
    for number, line in enumerate(text.splitlines() if forms else [], 1):
        # A page may quote the subject of an old commit: `area: what was done`.
        read = re.sub(r"`[a-z]+(, [a-z]+)*: [^`]*`", "", line) if name.endswith(".md") else line
        for form in forms:
            if form.found_in(read):
                yield f"{name}:{number}: {line.strip()[:100]} -> {form.instead}"


def test_no_retired_form_has_come_back() -> None:
    paths = sources()
    assert len(paths) > 200
    lines = [text for path in paths for text in offences(name_of(path), path.read_text(encoding="utf-8"))]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize(
    "name", ["test_a_fault_is_told", "rows_whatever_the_order", "one_pass_a_residue", "x_is_no_file"]
)
def test_the_words_of_a_name_are_read(name: str) -> None:
    assert len(list(offences("x.py", f"def {name}() -> None:\n"))) == 1


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.bad)
def test_each_form_is_found_where_it_is_and_only_there(form: Form) -> None:
    suffix = form.suffixes[0]
    (found,) = offences(f"x{suffix}", f"first\n    # {form.bad}\n")
    assert found == f"x{suffix}:2: # {form.bad} -> {form.instead}"
    assert list(offences(f"x{suffix}", f"// {form.good}\n")) == []
