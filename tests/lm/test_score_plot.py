"""`score --per-residue --plot`: the picture has the numbers of the table, also where an earlier run wrote some."""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from commands import error_line, in_process

from protperf.lm.scoring import plot
from protperf.lm.scoring.plot import Profile, running_mean

pytest.importorskip("matplotlib")
SEQUENCES = {f"p{i}": "ACDXEFGHIKLMNPQRSTVWY"[: 3 + 2 * i] for i in range(9)} | {"none": ""}


@pytest.fixture
def short(tmp_path: Path) -> Path:
    path = tmp_path / "in.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in {"none": "", **SEQUENCES}.items()))
    return path


def drawn(*words: object) -> tuple[list[Profile], bytes]:
    """The profiles that a command draws, which really are drawn, and what it says."""
    with mock.patch.object(plot, "draw", wraps=plot.draw) as draw:
        result = in_process(*words)
    assert result.returncode == 0, result.stderr
    return list(draw.call_args.args[0]), result.stderr


def check(profiles: list[Profile], table: list[float]) -> None:
    lengths = [0, *(len(sequence) for sequence in list(SEQUENCES.values())[:7])]
    assert [profile.name for profile in profiles] == ["none", *(f"p{i}" for i in range(7))]
    assert [len(profile.values) for profile in profiles] == lengths
    found = [value for profile in profiles for value in profile.values]
    # A sequence without residues has a row all the same, which is not drawn.
    np.testing.assert_array_equal(found, table[1 : len(found) + 1])
    assert any(map(math.isnan, found))


@pytest.mark.parametrize("name", ["x.png", "x.svg"])
def test_a_picture_has_the_numbers_of_the_table(name: str, short: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["score", runs["causal"], short, "--per-residue", "--plot", tmp_path / name]
    profiles, said = drawn(*words, "-o", tmp_path / "out.tsv")
    table = np.genfromtxt(tmp_path / "out.tsv", names=True, delimiter="\t", dtype=None, encoding="utf-8")["ll"]
    check(profiles, table.tolist())
    assert b"shows the first 8 of 10 sequences" in said
    data = (tmp_path / name).read_bytes()
    assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")


def test_a_stream_and_a_resumed_table_have_the_same(short: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["score", runs["causal"], short, "--per-residue", "--plot", tmp_path / "x.png", "-q"]
    streamed, _ = drawn(*words, "--format", "jsonl")
    whole, _ = drawn(*words, "-o", tmp_path / "whole.jsonl")
    again, _ = drawn(*words, "-o", tmp_path / "whole.jsonl", "--resume")
    rows = [json.loads(line)["ll"] for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    for profiles in (streamed, whole, again):
        check(profiles, [math.nan if value is None else value for value in rows])


def test_a_running_mean_passes_over_what_has_no_score() -> None:
    values = [1.0, math.nan, 3.0, *[0.0] * 20]
    found = running_mean(values)
    expected = [np.nanmean(values[max(0, i - 4) : i + 5]) for i in range(len(values))]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.isnan(running_mean([math.nan])).all()
    assert len(running_mean([])) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plot", "x.png"], "--plot draws the scores of residues; add --per-residue"),
        (["--per-residue", "--plot", "x.pdf"], "--plot is x.pdf"),
        (["--per-residue", "--plot", "none/x.png"], "no such directory"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_the_work(
    words: list[str], message: str, short: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    assert message in error_line(in_process("score", runs["causal"], short, *words, cwd=tmp_path))
