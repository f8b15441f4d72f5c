"""What a training holds out: whole clusters of relatives, any sequences, or none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import in_process, write_fasta
from conftest import LETTERS, small_config
from training import OPTIONS, final_digests, metrics, synthetic

from protperf.lm.data import hold_out as module
from protperf.lm.data.cluster import nearest
from protperf.lm.data.hold_out import hold_out
from protperf.lm.data.store import TokenStore, checksums, read_store, split
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.run import train_run


def families(path: Path, sizes: list[int]) -> Path:
    """Families of some sizes; two members of one are 80 % identical or more."""
    rng = np.random.default_rng(4)
    records = {}
    for family, size in enumerate(sizes):
        ancestor = rng.choice(list(LETTERS), 100)
        for member in range(size):
            changed = np.where(rng.random(100) < 0.9, ancestor, rng.choice(list(LETTERS), 100))
            records[f"f{family}_{member}"] = "".join(changed)
    return write_fasta(path, records)


def residues(store: TokenStore) -> list[bytes]:
    return [store.sequence(i).tobytes() for i in range(len(store))]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_relatives_stay_in_one_part_and_the_share_is_kept(seed: int, tmp_path: Path) -> None:
    store = read_store(families(tmp_path / "in.fa", [1, 2, 3, 4] * 10))
    parts = hold_out(store, 0.1, seed, "clusters")
    assert sorted(residues(parts.train) + residues(parts.held)) == sorted(residues(store))
    assert (nearest(parts.held, parts.train, 0.5)[0] < 0).all()
    assert 5 <= len(parts.held) <= 10
    assert parts.identity == 0.5
    assert (
        residues(hold_out(store, 0.1, seed, "clusters").held)
        == residues(parts.held)
        != residues(hold_out(store, 0.1, 9, "clusters").held)
    )
    leaky = hold_out(store, 0.1, seed, "random")
    assert residues(leaky.held) == residues(split(store, 0.1, seed)[1])
    assert (nearest(leaky.held, leaky.train, 0.5)[0] >= 0).any()


def test_large_and_small_clusters_are_held_out_alike(tmp_path: Path) -> None:
    store = read_store(families(tmp_path / "in.fa", [1] * 12 + [4] * 12))
    held = [
        len(parts.held) / parts.clusters for parts in (hold_out(store, 0.3, seed, "clusters") for seed in range(20))
    ]
    # The mean size of all clusters is 2.5; four standard deviations of the mean of 20 draws of about 7.
    assert abs(np.mean(held) - 2.5) < 4 * 1.5 / np.sqrt(20 * 7)


def test_one_family_is_divided_at_a_higher_identity_or_at_random(tmp_path: Path) -> None:
    ancestor, rng = np.array(list("MKVLDE" * 20)), np.random.default_rng(1)
    letters = rng.choice(list(LETTERS), 120)
    members = {f"p{i}": "".join(np.where(rng.random(120) < 0.2, rng.permutation(letters), ancestor)) for i in range(30)}
    store = read_store(write_fasta(tmp_path / "family.fa", members))
    parts = hold_out(store, 0.1, 1, "clusters")
    assert parts.identity in (0.7, 0.9)
    assert len(parts.held) in (2, 3)
    twins = hold_out(
        read_store(write_fasta(tmp_path / "twins.fa", {"a": "MKVLDE" * 20, "b": "MKVLDE" * 19})), 0.5, 1, "clusters"
    )
    assert (twins.identity, len(twins.held)) == (None, 1)


def test_equal_sequences_that_are_too_short_to_have_relatives_stay_together(tmp_path: Path) -> None:
    store = read_store(write_fasta(tmp_path / "in.fa", {f"p{i}": "ACDEF"[: 2 + i % 3] for i in range(12)}))
    for seed in range(5):
        parts = hold_out(store, 0.3, seed, "clusters")
        assert not set(residues(parts.train)) & set(residues(parts.held))
    assert len(np.unique(checksums(store, 0))) == 3


def test_a_large_set_is_divided_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = read_store(families(tmp_path / "in.fa", [3] * 10))
    monkeypatch.setattr(module, "MAX_RESIDUES", 100)
    parts = hold_out(store, 0.1, 1, "clusters")
    assert parts.identity is None
    assert residues(parts.held) == residues(split(store, 0.1, 1)[1])


def test_a_run_trains_on_all_and_goes_on(tmp_path: Path) -> None:
    fasta = synthetic(tmp_path / "in.fa")
    options = {**OPTIONS, "validate": 0.0, "steps": 4, "checkpoint_every": 2}
    messages: list[str] = []
    whole = train_run(fasta, tmp_path / "whole", small_config(), TrainOptions(**options), warn=messages.append)
    assert (whole.figures, whole.remark, messages) == ({}, None, [])
    assert all("val_loss" not in line for line in metrics(tmp_path / "whole"))
    for steps in (2, 4):
        train_run(fasta, tmp_path / "cut", small_config(), TrainOptions(**{**options, "steps": steps}),
                  resume=True, warn=messages.append)  # fmt: skip
    assert final_digests(tmp_path / "cut").keys() == final_digests(tmp_path / "whole").keys()
    facts = json.loads(in_process("info", tmp_path / "whole", "--json").stdout)
    assert (facts["validation"], facts["overlap"], facts["best_validation_loss"]) == ("none", None, None)


def test_the_checkpoint_says_where_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fasta = families(tmp_path / "in\n.fa", [1, 2, 3, 4] * 6)
    words = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--steps", 1, "--batch-tokens", 64, "--validate", 0.2]
    words += ["--hold-out", "clusters"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/protperf", *map(str, words)])
    messages = in_process(*words).stderr.decode()
    assert "whole clusters of at least 50% identity" in messages
    assert in_process(*words, "--force", "-q").stderr.decode().count("note: ") == 0
    facts = json.loads(in_process("info", tmp_path / "run", "--json").stdout)
    assert facts["command"].startswith("protperf train --fasta ")
    assert facts["data"] == str(fasta).replace("\n", "\\n")
    assert "whole clusters of relatives at 50% identity" in facts["validation"]
    assert facts["overlap"]["related_50%"] == 0 < facts["overlap"]["looked_up"]
    lines = in_process("info", tmp_path / "run").stdout.decode().splitlines()
    counts = ", ".join(f"{name} {count}" for name, count in facts["overlap"].items())
    assert [line for line in lines if line.startswith("overlap")] == [f"{'overlap':<20} {counts}"]
    monkeypatch.setattr("sys.argv", ["protperf", "train", "--resume"])
    in_process(*words[:5], "--resume", "--steps", 2)
    again = json.loads(in_process("info", tmp_path / "run" / "step-2", "--json").stdout)
    assert {name: again[name] for name in ("command", "started")} == {
        name: facts[name] for name in ("command", "started")
    }
