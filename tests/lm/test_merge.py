"""Shards become the table that one job would have written, or are refused with what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import error_line, in_process

import protperf.lm as lm
from protperf import errors


@pytest.fixture(scope="module")
def model(runs: dict[str, Path]) -> lm.Model:
    return lm.load(runs["both"])


def made(model: lm.Model, fasta: Path, folder: Path, count: int, suffix: str = "tsv", **options: object) -> list[Path]:
    """The tables of all shards."""
    paths = [folder / f"part{i}.{suffix}" for i in range(1, count + 1)]
    for i, path in enumerate(paths, 1):
        model.score_files(fasta, path, deterministic=True, shard=f"{i}/{count}", **options)
    return paths


@pytest.mark.parametrize("suffix", ["tsv", "csv", "jsonl", "parquet"])
def test_merged_shards_are_the_bytes_of_one_table(suffix: str, model: lm.Model, fasta: Path, tmp_path: Path) -> None:
    whole, merged = tmp_path / f"whole.{suffix}", tmp_path / f"merged.{suffix}"
    model.score_files(fasta, whole, deterministic=True)
    parts = made(model, fasta, tmp_path, 3, suffix)
    result = in_process("merge", *parts[::-1], "-o", merged)
    assert result.returncode == 0
    assert f"{merged}: 3 shards, 40 records, 40 rows: complete" in result.stderr.decode()
    if suffix == "parquet":
        import pandas

        pandas.testing.assert_frame_equal(pandas.read_parquet(merged), pandas.read_parquet(whole))
    else:
        assert merged.read_bytes() == whole.read_bytes()
    facts = json.loads(merged.with_name(f"{merged.name}.meta.json").read_text())
    assert facts["rows"] == 40
    assert facts["model_sha256"] == lm.info(model._loaded.step.path)["model_sha256"]


@pytest.mark.filterwarnings("ignore:rejected 6 of 40")
def test_rows_per_residue_and_rejected_records_are_merged_too(model: lm.Model, fasta: Path, tmp_path: Path) -> None:
    given = {"per_residue": True, "residues": "skip"}
    model.score_files(fasta, tmp_path / "whole.tsv", deterministic=True, **given)
    parts = made(model, fasta, tmp_path, 4, **given)
    found = lm.merge(parts, tmp_path / "merged.tsv")
    assert (tmp_path / "merged.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    assert found.records == 34
    assert found.rows == len((tmp_path / "whole.tsv").read_text().splitlines()) - 1


def test_vectors_in_parquet_are_merged(model: lm.Model, fasta: Path, tmp_path: Path) -> None:
    import pandas

    for name, shard in (("whole", None), ("a", "1/2"), ("b", "2/2")):
        model.embed_files(
            fasta, tmp_path / f"{name}.parquet", deterministic=True, **({"shard": shard} if shard else {})
        )
    lm.merge([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "merged.parquet")
    merged, whole = (pandas.read_parquet(tmp_path / f"{name}.parquet") for name in ("merged", "whole"))
    pandas.testing.assert_frame_equal(merged, whole)
    model.embed_files(fasta, tmp_path / "x.npz", shard="1/1")
    with pytest.raises(errors.ConfigError, match="a file of npz, which is not merged"):
        lm.merge([tmp_path / "x.npz"], tmp_path / "y.npz")


def test_what_is_not_the_whole_is_refused_and_nothing_is_written(
    model: lm.Model, runs: dict[str, Path], fasta: Path, tmp_path: Path
) -> None:
    parts, out = made(model, fasta, tmp_path, 3), tmp_path / "merged.tsv"

    def refusal(*paths: Path) -> str:
        result = in_process("merge", *paths, "-o", out)
        assert result.returncode in (1, 2, 3)
        assert sorted(path.name for path in tmp_path.glob("*merged*")) == []
        return error_line(result)

    assert "shard 2/3 is missing" in refusal(parts[0], parts[2])
    assert f"{parts[0]}: is shard 1/3, as {parts[0]} is" in refusal(*parts, parts[0])
    model.score_files(fasta, tmp_path / "alone.tsv")
    assert "is not a table that was written with --shard" in refusal(*parts, tmp_path / "alone.tsv")
    other = tmp_path / "other.tsv"
    lm.load(runs["causal"], dtype="float64").score_files(fasta, other, deterministic=True, shard="3/3")
    assert f"{other}: is of another dtype than" in refusal(*parts[:2], other)
    model.score_files(fasta, other, deterministic=True, shard="3/3", method="pll")
    assert f"{other}: is of another method than" in refusal(*parts[:2], other)
    text = parts[1].read_text()
    parts[1].write_text(text[:-1])
    assert f"{parts[1]}: was changed after it was finished" in refusal(*parts)
    # A row of another shard, in a file of the right size.
    parts[1].write_text(text.replace("\n4\t", "\n5\t"))
    assert f"{parts[1]}:3: is not a row of shard 2/3" in refusal(*parts)
    # A row that was put in the place of another one of this shard.
    parts[1].write_text(text.replace("\n4\t", "\n1\t"))
    assert "39 of the 40 records of the input have rows" in refusal(*parts)
    parts[1].unlink()
    assert "no such file; a shard is a finished table" in refusal(*parts)
