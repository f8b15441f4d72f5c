"""The examples of the documentation run as they stand, one page from top to bottom."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = ["estimating-softmax.md", "from-performer-pytorch.md", "seeing.md"]
TABLES = {"comparison.md": 25, "traps.md": 40}
"""Pages whose cells name tests, and the least number of names."""


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    code = "\n".join(line[4:] if line.startswith("    ") else "" for line in text.splitlines())
    # Continuation lines of lists are indented too, by less.
    assert re.search(r"^import ", code, re.MULTILINE), f"{page} has no example"
    exec(compile(code, str(DOCS / page), "exec"), {})


@pytest.mark.parametrize("page", TABLES)
def test_tests_that_are_named_exist(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:test_)?[a-z0-9]+(?:_[a-z0-9]+){2,})`", text)
    sources = [*ROOT.glob("tests/python/*.py"), *ROOT.glob("tests/kernels/*.rs")]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert len(named) >= TABLES[page]
    assert not [name for name in named if f"def {name}(" not in code and f"fn {name}(" not in code]


def test_every_test_of_a_trap_is_in_the_table():
    table = (DOCS / "traps.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/python/test_traps_*.py"))
    assert not [name for name in re.findall(r"def (test_trap_\w+)", code) if f"`{name}`" not in table]


def test_the_reference_is_that_of_the_docstrings():
    made = runpy.run_path(str(DOCS / "api.py"))["page"]()
    assert made == (DOCS / "api.md").read_text(encoding="utf-8"), "run python docs/api.py"
    for name in ("favor_attention", "WindowedHeads", "rollout", "measure", "fit"):
        assert f"### {name}\n" in made
