"""Forms and names that must not come back: text that reads as translated, and words that only this project understood.

Each form has an example that it must find and one that it must leave alone. Whole lines are read, code and prose, for a
reader meets both. What is meant by a form is not always wrong English; it is banned where something plainer exists.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".rs", ".py", ".pyi", ".md", ".toml")
# A list of changes quotes what was.
EXEMPT = {"tests/python/test_plain_english.py", "CHANGELOG.md", "LICENSE"}

_COUNTS = (
    "one|two|three|once|twice|nats|bits|bytes|tokens|targets|features|rows|lines|times|calls|seconds|MB|GB|kB|residues|"
    "steps|lanes|entries|vectors|flags|trials|forks|records|executions|sequences|numbers|values|passes|rounds|threads|"
    "tasks|signals|kills|operations|directions|multiply-adds|exponentials|kept"
)
_EACH = (
    "row|residue|head|batch|second|minute|hour|feature|thread|record|rejection|line|token|sequence|call|pass|task|step|"
    "key|query|target|position|policy|run|case|file|byte|element|lane|block|chunk|layer|epoch|protein|segment|worker"
)
_VERBS = r"(is|has|was|may|can|must|does|takes|makes|needs|uses|reads|holds|gets)\b"
_KINDS = (
    "directory|model|file|run|table|number|text|sequence|residue|path|record|checkpoint|token|UTF-8|multiple|integer"
)


@dataclass(frozen=True)
class Form:
    """A pattern, what to write instead, a line that has it, a line that has not, and the files that it is for."""

    pattern: str
    instead: str
    wrong: str
    right: str
    suffixes: tuple[str, ...] = SUFFIXES

    def found_in(self, line: str) -> bool:
        return re.search(self.pattern, line) is not None


FORMS = (
    Form(rf"\b({_COUNTS}) an? ({_EACH})\b(?! {_VERBS})", "per", "nats a residue", "rows a call takes, one per row"),
    Form(rf"\bone (?!is|has|was)\w+ an? ({_EACH})\b", "per", "one pass a residue", "one is a row, one pass per row"),
    Form(r"\blest\b", "so that .. not", "checked lest it fail", "at least"),
    Form(r"\bbegun\b", "started", "a run that was begun", "a run that began"),
    Form(rf"(?<![Tt]here )\b(is|are) no ({_KINDS})\b", "is not a", "x.fa is no file", "there is no file"),
    Form(r"\b(told|tells)\b", "says, said, shown, messages", "what is told", "tell one from the other"),
    Form(r"\bof the size\b", "set by --size", "default of the size", "of this size"),
    Form(r"\b[Ww]hatever\b", "any, or what it is", "whatever the order", "in any order"),
    Form(r"\bbeside\b", "next to, in addition to", "written beside it", "besides"),
    Form(r"\b[Aa]nswers? (whether|what|how|true|false|None)\b", "returns", "Answers whether it fits", "an answer"),
    Form(r"\b(THETA|RHYTHM|ENDS)\b", "MAX_LOOKAHEAD_BITS, LOGGING_OPTIONS, DURATION_OPTIONS", "THETA = 3", "BACKENDS"),
    Form(r"\bMOST(_\w+)?\b", "MAX", "MOST_KB = 1", "at most, MAX_KB"),
    Form(r"\b(redo|redone|absorb)\b", "recompute, project_keys", "fn redo()", "undo"),
    Form(r"\b(Want|Widths)\b(?=[:;,<>({)]| \{)", "ReadOptions, Layout", "w: Widths,", "/// Widths", (".rs",)),
    Form(r"\bWeights\b", "PackedOmega", "let w = Weights::new()", "// Weighted means", (".rs",)),
    Form(r"\bturned\b(?= *[:(=,.])", "transposed", "turned: bool", "a loop turned inside out", (".rs",)),
    Form(r"(\.|\bfn )(commit|live)\b", "update_state, visible", "state.commit(keys)", "commits", (".rs",)),
    Form(r"=nobody\b|\bdef nobody\b", "no_progress", "progress=nobody", "nobody is here", (".py", ".pyi")),
    Form(r"\bstrangers?\b", "foreign_entry, or who is meant", "if stranger:", "strange", (".py", ".pyi", ".rs")),
    Form(r"\b(check_voice|tells_memory|end_at_once)\b", "check_verbosity and others", "check_voice(q)", "voices"),
    Form(r"\bdef unwind\b|\bunwind\(", "raise_on_signal", "unwind(2)", "catch_unwind(f)", (".py",)),
)  # fmt: skip


def sources() -> list[Path]:
    """Files of the repository that people read."""
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
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
    for number, line in enumerate(text.splitlines(), 1):
        # A page may quote the subject of an old commit: `area: what was done`.
        read = re.sub(r"`[a-z]+(, [a-z]+)*: [^`]*`", "", line) if name.endswith(".md") else line
        for form in FORMS:
            if name.endswith(form.suffixes) and form.found_in(read):
                yield f"{name}:{number}: {line.strip()[:100]} -> {form.instead}"


def test_no_retired_form_has_come_back() -> None:
    paths = sources()
    assert len(paths) > 200
    lines = [text for path in paths for text in offences(name_of(path), path.read_text(encoding="utf-8"))]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.wrong)
def test_each_form_is_found_where_it_is_and_only_there(form: Form) -> None:
    suffix = form.suffixes[0]
    (found,) = offences(f"x{suffix}", f"first\n    # {form.wrong}\n")
    assert found == f"x{suffix}:2: # {form.wrong} -> {form.instead}"
    assert list(offences(f"x{suffix}", f"// {form.right}\n")) == []
