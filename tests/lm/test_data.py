"""`protperf data`: splits that leak nothing, reports that count right, and their Python twins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import in_process
from conftest import LETTERS

import protperf.lm as lm
from protperf import io
from protperf.errors import ConfigError, DataError, FastaError
from protperf.lm.data.records import read_records
from protperf.lm.data.store import read_store


@pytest.fixture
def families(tmp_path: Path) -> Path:
    """Twenty families of one to six proteins of 120 residues, related at 80 %, shuffled; three proteins twice."""
    rng = np.random.default_rng(4)
    records = []
    for family in range(20):
        ancestor = rng.choice(list(LETTERS), 120)
        for member in range(1 + family % 6):
            child = np.where(rng.random(120) < 0.9, ancestor, rng.choice(list(LETTERS), 120))
            records.append(f">f{family}_{member} family {family}\n{''.join(child)}\n")
    records += [record.replace(">", ">again_") for record in records[:3]]
    path = tmp_path / "families.fasta"
    path.write_text("".join(records[i] for i in rng.permutation(len(records))))
    return path


def family_of(name: str) -> str:
    return name.removeprefix("again_").split("_")[0]


def ids(path: Path) -> list[str]:
    return [record.id for record in io.scan([path])]


def test_a_split_by_cluster_divides_no_family_and_loses_nothing(families: Path, tmp_path: Path) -> None:
    out = tmp_path / "split"
    result = in_process("data", "split", families, "-o", out, "--identity", "0.6")
    assert result.returncode == 0
    parts = {name: ids(out / f"{name}.fasta") for name in ("train", "valid", "test")}
    assert sorted(name for part in parts.values() for name in part) == sorted(ids(families))
    found = [{family_of(name) for name in part} for part in parts.values()]
    assert len(set.union(*found)) == sum(map(len, found)) == 20
    manifest = json.loads((out / "split.json").read_text())
    assert manifest["groups"] == 20
    assert {name: part["sequences"] for name, part in manifest["parts"].items()} == {
        name: len(part) for name, part in parts.items()
    }
    assert len(parts["train"]) / len(ids(families)) == pytest.approx(0.8, abs=0.05)
    rows = lm.data_check(out / "train.fasta", out / "test.fasta", identities=[0.6])
    assert [row.sequences for row in rows] == [0, 0]
    original = {record.id: bytes(record.tokens) for record in io.scan([families])}
    assert all(bytes(record.tokens) == original[record.id] for record in io.scan([out / "train.fasta"]))


def test_a_split_is_a_function_of_the_seed_and_replaces_nothing_unasked(families: Path, tmp_path: Path) -> None:
    first = lm.data_split(families, tmp_path / "a", fractions=[0.7, 0.3], seed=1, by="random")
    lm.data_split(families, tmp_path / "b", fractions=[0.7, 0.3], seed=1, by="random")
    assert (tmp_path / "a/valid.fasta").read_bytes() == (tmp_path / "b/valid.fasta").read_bytes()
    assert list(first["parts"]) == ["train", "valid"]
    # Equal sequences stay together in a random split, too.
    again = {name.removeprefix("again_") for name in ids(tmp_path / "a/valid.fasta") if name.startswith("again_")}
    assert again <= set(ids(tmp_path / "a/valid.fasta"))
    with pytest.raises(ConfigError, match="exists already"):
        lm.data_split(families, tmp_path / "a", fractions=[0.7, 0.3], seed=2, by="random")
    lm.data_split(families, tmp_path / "a", fractions=[0.7, 0.3], seed=2, by="random", force=True)
    assert (tmp_path / "a/valid.fasta").read_bytes() != (tmp_path / "b/valid.fasta").read_bytes()


def test_clusters_of_a_table_are_kept_whole(families: Path, tmp_path: Path) -> None:
    names = ids(families)
    table = tmp_path / "clu.tsv"
    table.write_text("".join(f"{family_of(name)}\t{name}\n" for name in names))
    lm.data_split(families, tmp_path / "split", clusters=table)
    parts = [{family_of(name) for name in ids(tmp_path / f"split/{part}.fasta")} for part in ("train", "valid", "test")]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 20
    table.write_text(table.read_text().split("\n", 1)[1])
    with pytest.raises(DataError, match="has no cluster of"):
        lm.data_split(families, tmp_path / "other", clusters=table)


def test_groups_of_a_column_are_kept_whole_and_equal_sequences_join_them(families: Path, tmp_path: Path) -> None:
    records = list(io.scan([families]))
    table = tmp_path / "families.csv"
    rows = [f"{one.id},{io.decode(one.tokens)},family {family_of(one.id)}" for one in records]
    # Two groups have a sequence in common, and a record that is left out does not shift the names of the others.
    rows.insert(3, "odd,AC-DE,family x")
    rows.append(f"twin,{io.decode(records[0].tokens)},family f99")
    table.write_text("\n".join(["id,seq,family", *rows]) + "\n")
    words = [
        "data",
        "split",
        table,
        "--seq-col",
        "seq",
        "--by",
        "column",
        "--group-col",
        "family",
        "-o",
        tmp_path / "s",
    ]
    assert in_process(*words, "--residues", "skip").returncode == 0
    parts = [ids(tmp_path / f"s/{part}.fasta") for part in ("train", "valid", "test")]
    found = [{family_of(name) for name in part if name != "twin"} for part in parts]
    assert len(set.union(*found)) == sum(map(len, found)) == 20
    assert sum(map(len, parts)) == len(records) + 1
    (own,) = [part for part in parts if "twin" in part]
    assert records[0].id in own
    kept = lm.data_split(table, tmp_path / "d", seq_col="seq", by="column", group_col="family", dedup=True)
    assert sum(part["sequences"] for part in kept["parts"].values()) == len(records) - 3 + 1
    assert lm.data_stats(table, seq_col="seq")["sequences"] == len(rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "column"}, "name its columns with seq_col and group_col"),
        ({"by": "column", "group_col": "family"}, "name its columns with seq_col and group_col"),
        ({"group_col": "family"}, "names groups for by='column' alone"),
        ({"by": "column", "seq_col": "seq", "group_col": "none"}, "none"),
    ],
)
def test_a_column_that_is_not_there_is_an_error(given: dict[str, str], message: str, tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    table.write_text("id,seq,family\na,ACD,x\nb,ACE,y\n")
    with pytest.raises((ConfigError, DataError, FastaError), match=message):
        lm.data_split(table, tmp_path / "out", **given)


def test_one_family_cannot_be_divided(tmp_path: Path) -> None:
    path = tmp_path / "one.fasta"
    path.write_text("".join(f">p{i}\n{'ACDEFGHIKLMNPQRSTVWY' * 5}{'A' * i}\n" for i in range(6)))
    with pytest.raises(
        DataError, match="would be empty: the 6 sequences are 1 group, the largest of 6; raise identity"
    ):
        lm.data_split(path, tmp_path / "split")


def test_check_counts_equals_exactly_and_fails_above_a_share(families: Path, tmp_path: Path) -> None:
    records = read_records([str(families)])
    asked = tmp_path / "asked.fasta"
    unrelated = "".join(np.random.default_rng(9).choice(list(LETTERS), 100))
    asked.write_text(f">a\n{io.decode(records.sequence(0))}\n>b\n{unrelated}\n>c\n{io.decode(records.sequence(5))}\n")
    rows = {row.relation: (row.sequences, row.total) for row in lm.data_check(families, asked)}
    assert rows == {"equal": (2, 3), "0.5": (2, 3), "0.7": (2, 3), "0.9": (2, 3)}
    result = in_process("data", "check", families, asked, "--fail-above", "0.5", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)[0]["sequences"] == 2
    assert in_process("data", "check", families, asked, "--fail-above", "0.7").returncode == 0
    assert in_process("data", "check", families).returncode == 2


def test_stats_and_build_describe_what_is_there(families: Path, tmp_path: Path) -> None:
    found = lm.data_stats(families)
    assert (found["sequences"], found["duplicates"], found["length_median"]) == (len(ids(families)), 3, 120)
    assert sum(value for name, value in found.items() if name.startswith("share_")) == pytest.approx(1)
    out = tmp_path / "families.tokens"
    assert in_process("data", "build", families, "-o", out, "-q").returncode == 0
    assert out.read_bytes().startswith(b"protperf tokens\n")
    assert in_process("data", "build", families).returncode == 2


def test_of_equal_sequences_the_first_is_kept(families: Path, tmp_path: Path) -> None:
    """In a split with its name, and in a token file in its place."""
    records = list(io.scan([families]))
    by_residues: dict[bytes, io.Record] = {}
    for record in records:
        by_residues.setdefault(bytes(record.tokens), record)
    firsts = list(by_residues.values())
    assert len(firsts) == len(records) - 3
    lm.data_split(families, tmp_path / "split", dedup=True, fractions=(0.5, 0.5))
    parts = [record.id for name in ("train", "valid") for record in io.scan([tmp_path / "split" / f"{name}.fasta"])]
    assert sorted(parts) == sorted(record.id for record in firsts)
    messages: list[str] = []
    assert lm.write_tokens(families, tmp_path / "x.tokens", dedup=True, warn=messages.append) == len(firsts)
    assert messages == ["note: left out 3 sequences that were there before"]
    store = read_store(tmp_path / "x.tokens")
    assert [store.sequence(i).tobytes() for i in range(len(store))] == [bytes(one.tokens) for one in firsts]
    # The set of a file that was written twice is the set of one.
    result = in_process("data", "build", families, families, "-o", tmp_path / "y.tokens", "--dedup", "--json")
    assert json.loads(result.stdout) == {"sequences": len(firsts)}
    assert read_store(tmp_path / "y.tokens").fingerprint == store.fingerprint
