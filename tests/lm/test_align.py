"""A family that is aligned here: against an alignment that is known because the family was made from it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from commands import protperf

from protperf import lm
from protperf.errors import ConfigError, DataError, FileError
from protperf.lm.alignment.align import align
from protperf.lm.alignment.alignment import GAP, LETTERS, read_alignment

LENGTH = 90


def planted(count: int, change: float, seed: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """A query, members of which a share of the residues is another one, and the columns that they were made of.

    Each column has three residues to change to. Every other member lacks five residues, every third has three that the
    query has not, and every fourth begins late.
    """
    rng = np.random.default_rng(seed)
    query = rng.integers(0, 20, LENGTH).astype(np.uint8)
    others = rng.integers(0, 20, (LENGTH, 3)).astype(np.uint8)
    members, rows = [], np.full((count, LENGTH), GAP, np.uint8)
    for member in range(count):
        drawn = others[np.arange(LENGTH), rng.integers(0, 3, LENGTH)]
        row = np.where(rng.random(LENGTH) < change, drawn, query)
        if member % 2:
            row[40:45] = GAP
        if member % 4 == 3:
            row[:12] = GAP
        rows[member] = row
        residues = row.tolist()
        if member % 3 == 0:
            residues[60:60] = rng.integers(0, 20, 3).tolist()
        members.append(np.array([x for x in residues if x != GAP], np.uint8))
    return query, members, rows


def codes_of(columns: np.ndarray, member: np.ndarray) -> np.ndarray:
    row = np.full(LENGTH, GAP, np.uint8)
    row[columns[columns >= 0]] = member[columns >= 0]
    return row


def test_members_are_put_into_the_columns_that_they_were_made_of() -> None:
    query, members, rows = planted(40, 0.3, 1)
    found = align(query, members, 2)
    assert found.fits.all()
    aligned = np.array([codes_of(*pair) for pair in zip(found.columns, members, strict=True)])
    # At a gap the residues next to it may stand on either side.
    assert (aligned == rows).mean() > 0.98


def test_a_profile_of_the_near_ones_finds_the_distant_ones() -> None:
    near = planted(30, 0.4, 2)
    distant = planted(30, 0.9, 2)
    assert (near[0] == distant[0]).all()
    members, rows = near[1] + distant[1], np.vstack([near[2], distant[2]])
    first, last = (align(near[0], members, rounds) for rounds in (0, 2))
    assert first.fits[:30].all()
    assert first.fits[30:].sum() < 15
    assert last.fits.all()
    columns = iter(last.columns)
    right = [(codes_of(next(columns), members[at]) == rows[at]).mean() for at in range(60) if last.fits[at]]
    assert np.mean(right) > 0.9


def test_unrelated_ones_are_left_out_and_the_size_of_a_part_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, members, _ = planted(20, 0.3, 3)
    rng = np.random.default_rng(4)
    unrelated = [rng.integers(0, 20, int(n)).astype(np.uint8) for n in rng.integers(20, 200, 60)]
    unknown = np.full(50, GAP, np.uint8)
    found = align(query, [*members, *unrelated, unknown, np.empty(0, np.uint8)], 2)
    assert found.fits.tolist() == [True] * 20 + [False] * 62
    monkeypatch.setattr("protperf.lm.alignment.align._AT_ONCE", 3)
    again = align(query, [*members, *unrelated, unknown, np.empty(0, np.uint8)], 2)
    assert all((a == b).all() for a, b in zip(found.columns, again.columns, strict=True))


def write_family(folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    query, members, rows = planted(40, 0.3, 5)
    path = folder / "family.fa"
    names = ["query", *(f"member{n}" for n in range(len(members)))]
    sequences = ("".join(LETTERS[x] for x in member) for member in [query, *members])
    path.write_text("".join(f">{name} of a family\n{text}\n" for name, text in zip(names, sequences, strict=True)))
    return path, query, rows


def test_chance_does_not_grow_with_length_nor_with_few_kinds_of_residues() -> None:
    rng = np.random.default_rng(5)
    few = np.array([LETTERS.index(letter) for letter in "AEKLQ"], np.uint8)
    query = np.concatenate([rng.integers(0, 20, 500), rng.choice(few, 150), rng.integers(0, 20, 350)]).astype(np.uint8)
    members = [np.where(rng.random(1000) < 0.6, rng.integers(0, 20, 1000), query).astype(np.uint8) for _ in range(3)]
    # Each shares with the query that it is long, or that a part of it is of five kinds of residues.
    long = [rng.integers(0, 20, 1500).astype(np.uint8) for _ in range(100)]
    poor = [rng.choice(few, 400).astype(np.uint8) for _ in range(100)]
    found = align(query, [*members, *long, *poor], 2)
    assert found.fits.tolist() == [True] * 3 + [False] * 200
    # A part of a member fits by itself, read forwards.
    part = members[0][100:300]
    assert align(query, [part, part[::-1].copy()], 0).fits.tolist() == [True, False]


def test_the_command_writes_what_baselines_read(tmp_path: Path) -> None:
    path, query, rows = write_family(tmp_path)
    done = protperf("align", path, "-o", tmp_path / "family.a3m")
    assert done.returncode == 0, done.stderr
    assert b"40 sequences aligned to the query" in done.stderr
    found = read_alignment(tmp_path / "family.a3m")
    assert found.ids == ["query", *(f"member{n}" for n in range(40))]
    assert (found.codes[0] == query).all()
    assert (found.codes[1:] == rows).mean() > 0.98
    # No residue is lost: insertions stand between the columns in lower case.
    texts = [part.partition("\n")[2].replace("\n", "") for part in (tmp_path / "family.a3m").read_text().split(">")[1:]]
    given = [part.partition("\n")[2].replace("\n", "") for part in path.read_text().split(">")[1:]]
    assert [text.replace("-", "").upper() for text in texts] == given
    lm.baseline(tmp_path / "family.a3m", tmp_path / "site", kind="site")


def test_the_query_may_be_another_file_and_the_output_compressed(tmp_path: Path) -> None:
    path, query, _ = write_family(tmp_path)
    wild_type = tmp_path / "query.fa"
    wild_type.write_text(">wt\n" + "MK" + "".join(LETTERS[x] for x in query) + "\n")
    out = lm.align(path, tmp_path / "family.a3m.gz", query=wild_type, rounds=1)
    assert gzip.decompress(out.read_bytes()).startswith(b">wt\nMK")
    found = read_alignment(out)
    assert len(found) == 42
    # The members have nothing that stands in the first two columns.
    assert (found.codes[1:, :2] == GAP).mean() > 0.9


def test_what_is_in_the_way_stays_and_what_is_wrong_is_named(tmp_path: Path) -> None:
    path, _, _ = write_family(tmp_path)
    there = tmp_path / "there.a3m"
    there.write_text("mine")
    done = protperf("align", path, "-o", there)
    assert done.returncode == 3
    assert b"exists; replace it with --force" in done.stderr
    assert there.read_text() == "mine"
    with pytest.raises(FileError, match="exists; replace it with force=True"):
        lm.align(path, there)
    with pytest.raises(FileError, match="no such directory"):
        lm.align(path, tmp_path / "none" / "x.a3m")
    with pytest.raises(DataError, match="query holds several records"):
        lm.align(path, tmp_path / "x.a3m", query=path)
    empty = tmp_path / "empty.fa"
    empty.write_text("")
    unrelated = tmp_path / "unrelated.fa"
    unrelated.write_text(">s\n" + "WCWHPWCWHP" * 9 + "\n")
    with pytest.raises(DataError, match="none of 41 sequences fits the query 's'"):
        lm.align(path, tmp_path / "x.a3m", query=unrelated)
    with pytest.raises(DataError, match="no "):
        lm.align(empty, tmp_path / "x.a3m")
    with pytest.raises(ConfigError, match="would overwrite the input file"):
        lm.align(path, path, force=True)
    assert not (tmp_path / "x.a3m").exists()
    assert lm.align(path, there, force=True).read_text().startswith(">query\n")


def test_records_that_are_left_out_are_said(tmp_path: Path) -> None:
    path, _, _ = write_family(tmp_path)
    path.write_text(path.read_text() + ">odd\nMK1V\n")
    done = protperf("align", path, "-o", tmp_path / "x.a3m", "--residues", "skip")
    assert done.returncode == 0, done.stderr
    assert b"rejected 1 of 42 records; the first is " in done.stderr
    assert len(read_alignment(tmp_path / "x.a3m")) == 41
