"""The examples of the documentation run as they stand, one page from top to bottom."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = ["comparison.md", "estimating-softmax.md"]


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    code = "\n".join(line[4:] if line.startswith("    ") else "" for line in text.splitlines())
    # Continuation lines of lists are indented too, by less.
    assert re.search(r"^import ", code, re.MULTILINE), f"{page} has no example"
    exec(compile(code, str(DOCS / page), "exec"), {})


def test_tests_that_are_named_exist():
    named = re.findall(
        r"`((?:test_)?[a-z0-9]+(?:_[a-z0-9]+){3,})`", (DOCS / "comparison.md").read_text(encoding="utf-8")
    )
    sources = [*ROOT.glob("tests/python/*.py"), *ROOT.glob("tests/kernels/*.rs")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert len(named) > 15
    assert not [name for name in named if f"def {name}(" not in text and f"fn {name}(" not in text]
