"""The tutorials run from top to bottom, and what they show is what is printed, unless a block says that it varies.

A block `console` has commands after `$ ` and what they print: messages first, then the table. A line `...` stands for
any number of lines. A block `python` is run, and a block `text` after it is what it prints. Figures that depend on the
processor, or on how training improves, are in blocks whose first line says `varies`; these are run and not compared.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import in_process

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
_BLOCK = re.compile(r"^```(\w+)( varies)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of a page: its kind, whether its output is compared, and its lines."""

    kind: str
    varies: bool
    lines: list[str]


def blocks(page: Path) -> list[Block]:
    return [Block(m[1], bool(m[2]), m[3].splitlines()) for m in _BLOCK.finditer(page.read_text(encoding="utf-8"))]


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command of a block with the lines that it prints."""
    command: str | None = None
    printed: list[str] = []
    for line in block.lines:
        if line.startswith("$ "):
            if command is not None:
                yield command, printed
            command, printed = line[2:], []
        else:
            printed.append(line)
    assert command is not None
    yield command, printed


def output(command: str, folder: Path) -> list[str]:
    """What a command prints, messages first."""
    words = shlex.split(command, comments=True)
    if words[0] != "protperf" or "|" in words:
        done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, check=True, text=True)
        return (done.stderr + done.stdout).splitlines()
    target = words[words.index(">") + 1] if ">" in words else None
    found = in_process(*(words[1 : words.index(">")] if target else words[1:]), cwd=folder)
    assert found.returncode == 0, f"{command}\n{found.stderr.decode()}"
    if target is not None:
        (folder / target).write_bytes(found.stdout)
    return (found.stderr + (b"" if target else found.stdout)).decode().splitlines()


def matches(shown: list[str], printed: list[str]) -> bool:
    pattern = "".join("(?:.*\n)*?" if line == "..." else re.escape(line) + "\n" for line in shown)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_and_prints_what_it_shows(page: Path, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    names: dict[str, object] = {}
    printed: list[str] = []
    for block in blocks(page):
        if block.kind == "console":
            for command, shown in commands(block):
                printed = output(command, tmp_path)
                assert block.varies or matches(shown, printed), f"{command}\n" + "\n".join(printed)
        elif block.kind == "python":
            with contextlib.chdir(tmp_path), contextlib.redirect_stdout(io.StringIO()) as stream:
                exec(compile("\n".join(block.lines), str(page), "exec"), names)
            printed = stream.getvalue().splitlines()
        elif block.kind == "text":
            assert block.varies or matches(block.lines, printed), "\n".join(printed)
            assert bool(block.lines) == bool(printed)


def test_every_tutorial_is_listed() -> None:
    listed = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(TUTORIALS) == 4
    assert [page.name for page in TUTORIALS if f"docs/tutorials/{page.name}" not in listed] == []


def test_a_line_that_is_not_printed_is_noticed() -> None:
    assert matches(["a", "...", "c"], ["a", "b", "b", "c"])
    assert matches(["a", "..."], ["a"])
    assert not matches(["a", "c"], ["a", "b", "c"])
    assert not matches(["a", "...", "d"], ["a", "b", "c"])
