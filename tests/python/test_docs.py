"""The examples of the documentation run as they stand, one page from top to bottom."""

import gzip
import itertools
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import protperf
import protperf.io

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GLOBINS = ROOT / "examples/data/globins.fasta.gz"
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


def section(page: Path, title: str) -> str:
    return page.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def code_of(text: str, start: str) -> str:
    """The indented block that begins with a line, with the blocks that follow it up to other text."""
    lines = text.splitlines()
    first = lines.index(f"    {start}")
    block = itertools.takewhile(lambda line: not line.strip() or line.startswith("    "), lines[first:])
    return "\n".join(line[4:] for line in block)


def test_the_errors_that_the_readme_prints_are_those_of_its_example():
    text = section(ROOT / "README.md", "Attention alone")
    names = {}
    exec(compile(code_of(text, "import numpy, protperf"), "README.md", "exec"), names)
    # The example ends with tensors.
    q, k, v = (names[name].numpy() for name in "qkv")
    exact = protperf.softmax_attention(q, k, v).astype(np.float64)
    more = protperf.draw_projection(1024, 64, seed=0)
    found = [
        names["out"],
        protperf.favor_attention(q, k, v, more, feature_map="hyperbolic"),
        v.mean(-2, keepdims=True, dtype=np.float64),
    ]
    printed = re.search(r"`out` is (\S+) away .*? and (\S+) with 1,024 .*? is (\S+) away", text.replace("\n", " "))
    assert printed is not None
    for estimate, figure in zip(found, printed.groups(), strict=True):
        error = np.linalg.norm(estimate - exact) / np.linalg.norm(exact)
        # Half a unit of the last digit that is printed, and what processors round differently.
        assert abs(error - float(figure)) <= 0.5 * 10.0 ** -len(figure.partition(".")[2]) + 1e-4, (figure, error)


def test_the_python_of_the_quick_start_runs(tmp_path, monkeypatch):
    code = code_of(section(ROOT / "README.md", "Quick start"), "import protperf.lm as lm")
    monkeypatch.chdir(tmp_path)
    proteins = [record.sequence for batch in protperf.io.read_tokens(GLOBINS) for record in batch][:60]
    fasta = "".join(f">p{i}\n{sequence}\n" for i, sequence in enumerate(proteins))
    (tmp_path / "ecoli_k12.fasta.gz").write_bytes(gzip.compress(fasta.encode()))
    (tmp_path / "proteins.fasta").write_text(fasta)
    # Two steps instead of five minutes, of sequences that end early.
    for printed, short in (('time="5m"', "steps=2"), ("n=10, top_p", "n=2, max_len=30, top_p")):
        assert code.count(printed) == 1
        code = code.replace(printed, short)
    wild_type = "M" + "A" * 22 + "A" + "A" * 25 + "D" + "GG"
    names = {"wild_type": wild_type}
    exec(compile(code, "README.md", "exec"), names)
    assert len(names["table"].numpy("ll")) == len(proteins)
    assert names["model"].scan(wild_type).matrix.shape == (len(wild_type), 20)


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
