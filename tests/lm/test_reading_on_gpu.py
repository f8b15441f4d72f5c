"""Models read on a GPU (`device="wgpu"`): scores, variants, vectors and new sequences are those of the processor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import environment, error_line, in_process, protperf
from conftest import small_config
from training import small_options, synthetic

import protperf.lm as lm
from protperf import backends, gpu
from protperf.errors import OutOfMemory
from protperf.lm.training.run import train_run

pytestmark = pytest.mark.skipif("wgpu" not in backends(), reason="built without the feature wgpu")
PROTEINS = ["MKVLAAGIC", "ACDEFGHIKLMNPQRSTVWY" * 8, "M", "MKXBVW" * 11]
NEAR = 1e-4
"""Nats per residue."""


@pytest.fixture(scope="module", params=["relu", "softmax", "exact"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    options = small_options(steps=3)
    return train_run(synthetic(folder / "in.fa"), folder / "run", small_config(attention=request.param), options).run


@pytest.fixture
def models(gpu_device: None, run: Path) -> list[lm.Model]:
    return [lm.load(run, device=device) for device in ("cpu", "wgpu")]


def test_scores_of_both_modes_are_those_of_the_processor(models: list[lm.Model]) -> None:
    for method in ("ll", "pll"):
        here, there = (model.score(PROTEINS, method=method).rows for model in models)
        for a, b in zip(here, there, strict=True):
            assert b.ll == pytest.approx(a.ll, abs=NEAR * max(1, a.scored))
        assert [row.ll for row in here] != [row.ll for row in there], "one device was used for both"


def test_a_long_protein_read_in_parts_is_scored_as_on_the_processor(
    models: list[lm.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protperf.lm.inference.CHUNK", 100)
    monkeypatch.setattr("protperf.lm.inference.EXACT_CHUNK", 100)
    here, there = (model.score(PROTEINS[1] * 3, method="ll", batch_tokens=150).rows[0] for model in models)
    assert there.ll == pytest.approx(here.ll, abs=NEAR * here.scored)


def test_proteins_of_two_thousand_residues_and_more_are_scored_as_on_the_processor(models: list[lm.Model]) -> None:
    letters = list(PROTEINS[1][:20])
    long = ["".join(np.random.default_rng(length).choice(letters, length)) for length in (2000, 2341)]
    # Exact attention needs a minute here for what a GPU does in no time.
    is_exact = models[0].config.attention == "exact"
    for method in ("ll",) if is_exact else ("ll", "pll-fast"):
        here, there = (model.score(long[:1] if is_exact else long, method=method).rows for model in models)
        for a, b in zip(here, there, strict=True):
            assert b.ll_per_residue == pytest.approx(a.ll_per_residue, abs=NEAR)


def test_variants_scans_and_evaluations_are_those_of_the_processor(models: list[lm.Model], tmp_path: Path) -> None:
    protein = PROTEINS[1][:40]
    here, there = (model.variants(protein, ["C2A:D3W", "F5del", "K9R"]).rows for model in models)
    assert [row["score"] for row in there] == pytest.approx([row["score"] for row in here], abs=NEAR * len(protein))
    here, there = (model.scan(protein).matrix for model in models)
    np.testing.assert_allclose(there, here, atol=NEAR * len(protein))
    proteins = synthetic(tmp_path / "eval.fa")
    here, there = (model.eval(proteins, by=["length"]).rows for model in models)
    for a, b in zip(here, there, strict=True):
        assert (b.mode, b.group, b.residues) == (a.mode, a.group, a.residues)
        assert b.ppl == pytest.approx(a.ppl, rel=NEAR)


def test_vectors_and_new_sequences_are_those_of_the_processor(models: list[lm.Model]) -> None:
    for layer in (0, 1, -1):
        here, there = (model.embed(PROTEINS, layer=layer).vectors for model in models)
        np.testing.assert_allclose(there, here, atol=1e-4)
    drawn = [[str(record.seq) for record in model.generate(n=3, seed=4, max_len=30)] for model in models]
    assert drawn[0] == drawn[1]


@pytest.mark.usefixtures("gpu_device")
def test_scores_and_pooled_states_come_back_and_nothing_else(run: Path) -> None:
    model, tokens, small = lm.load(run, device="wgpu"), sum(len(protein) + 2 for protein in PROTEINS), 100
    model.score(PROTEINS[:1])

    def carried(call: Callable[[], object]) -> tuple[int, int]:
        before = gpu.traffic()
        call()
        after = gpu.traffic()
        # A batch is handed over at once.
        assert after.submissions - before.submissions == after.read_backs - before.read_backs
        return after.read_backs - before.read_backs, after.read_back_bytes - before.read_back_bytes

    trips, size = carried(lambda: model.score(PROTEINS, method="ll"))
    assert trips == 1
    assert 4 * (tokens - 2 * len(PROTEINS)) <= size <= 4 * tokens + small
    trips, size = carried(lambda: model.embed(PROTEINS, pool="mean,max,attention"))
    assert trips == 1
    vectors = 4 * 3 * len(PROTEINS) * model.config.model_dim
    assert vectors <= size <= vectors + small
    # The states themselves are more.
    assert carried(lambda: model.embed(PROTEINS, per_residue=True))[1] > 5 * size


def test_pooled_states_are_those_of_the_processor(models: list[lm.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    def check(proteins: list[str], mode: str, pool: str) -> None:
        here, there = (model.embed(proteins, pool=pool, mode=mode).arrays for model in models)
        for name, vectors in here.items():
            np.testing.assert_allclose(there[name], vectors, atol=1e-4, err_msg=name)

    long = PROTEINS[1] * 3
    check([*PROTEINS, long], "masked", "mean,max,bos,eos,attention")
    check([*PROTEINS, long], "causal", "mean,max,eos,attention")
    monkeypatch.setattr("protperf.lm.inference.CHUNK", 100)
    monkeypatch.setattr("protperf.lm.inference.EXACT_CHUNK", 100)
    check([long], "causal", "mean,max,eos")


def test_a_batch_that_the_gpu_has_no_room_for_is_read_in_smaller_ones(
    gpu_device: None, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lm.load(run, device="wgpu")

    def read() -> tuple[list[float], np.ndarray, int]:
        before = gpu.traffic().read_backs
        scores = [row.ll for row in model.score(PROTEINS * 4, method="ll").rows]
        vectors = model.embed(PROTEINS * 4).vectors
        return scores, vectors, gpu.traffic().read_backs - before

    scores, vectors, trips = read()
    held = gpu.traffic().used_bytes
    for room in (1 << power for power in range(10, 30)):
        monkeypatch.setenv("PROTPERF_GPU_MEMORY", str(held + room))
        try:
            found = read()
        except OutOfMemory:
            assert room < 1 << 28
        else:
            break
    assert room > 1 << 10
    assert found[0] == scores
    np.testing.assert_array_equal(found[1], vectors)
    assert found[2] > trips


@pytest.mark.usefixtures("gpu_device")
@pytest.mark.parametrize("command", ["score", "generate", "embed"])
def test_a_gpu_without_room_is_named_and_no_option_that_would_not_help(
    command: str, runs: dict[str, Path], fasta: Path, tmp_path: Path
) -> None:
    words = {"score": [fasta], "generate": ["-n", "1"], "embed": [fasta, "-o", tmp_path / "x.npz"]}[command]
    result = in_process(command, runs["both"], *words, "--device", "wgpu", env={"PROTPERF_GPU_MEMORY": "1"})
    assert result.returncode == 4
    (used,) = (adapter.name for adapter in gpu.adapters() if adapter.is_chosen)
    message = error_line(result)
    assert message.startswith(f"out of memory: the GPU {used} has no room for ")
    assert "that PROTPERF_GPU_MEMORY allows; allow more, or compute on the CPU" in message
    assert "--batch-tokens" not in message


@pytest.mark.parametrize(("command", "is_named"), [("score", True), ("generate", False)])
def test_batch_tokens_is_a_remedy_only_where_it_is_an_option(
    command: str, is_named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(given: object) -> int:
        raise OutOfMemory("could not allocate 8 bytes")

    monkeypatch.setattr(f"protperf.lm.cli.{command}.run", run)
    result = in_process(command, "run", *(["x.fa"] if command == "score" else []))
    assert result.returncode == 4
    remedy = "; try a smaller --batch-tokens" if is_named else ""
    assert error_line(result) == f"out of memory: could not allocate 8 bytes{remedy}"


@pytest.mark.usefixtures("gpu_device")
def test_verbose_names_the_adapter(runs: dict[str, Path], fasta: Path) -> None:
    (used,) = (adapter.name for adapter in gpu.adapters() if adapter.is_chosen)
    said = in_process("score", "-v", runs["both"], fasta, "--device", "wgpu").stderr.decode()
    assert f"device wgpu ({used}), " in said
    assert "device cpu, " in in_process("score", "-v", runs["both"], fasta).stderr.decode()


FORKED = """
import os, sys, protperf.lm as lm
from protperf.errors import DeviceError
model = lm.load(sys.argv[1], device="wgpu")
expected = model.score("MKV").rows
child = os.fork()
if child == 0:
    try:
        model.score("MKV")
    except DeviceError as error:
        assert "before it was forked; load the model again" in str(error)
        del model
        os._exit(0 if lm.load(sys.argv[1], device="wgpu").score("MKV").rows == expected else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert model.score("MKV").rows == expected
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.usefixtures("gpu_device")
def test_a_forked_child_is_asked_to_load_anew(runs: dict[str, Path]) -> None:
    subprocess.run([sys.executable, "-c", FORKED, runs["both"]], check=True, timeout=120)


@pytest.mark.usefixtures("gpu_device")
def test_the_command_scores_on_the_gpu(runs: dict[str, Path], fasta: Path) -> None:
    here, there = (protperf("score", runs["both"], fasta, "--device", name).stdout.decode() for name in ("cpu", "wgpu"))
    rows = [[line.split("\t") for line in text.splitlines()] for text in (here, there)]
    assert len(rows[0]) == len(rows[1]) == 41
    column = rows[0][0].index("ll_per_residue")
    for a, b in zip(rows[0][1:], rows[1][1:], strict=True):
        assert float(b[column]) == pytest.approx(float(a[column]), abs=NEAR)


@pytest.mark.usefixtures("gpu_device")
@pytest.mark.parametrize("command", ["variants", "scan", "embed", "eval", "generate"])
def test_every_command_that_reads_a_model_takes_the_device(
    command: str, runs: dict[str, Path], fasta: Path, tmp_path: Path
) -> None:
    protein = tmp_path / "wt.fa"
    protein.write_text(">wt\nMKVLAAGIC\n")
    words = {
        "variants": ["K2A", "--wt", protein], "scan": [protein], "embed": [fasta, "-o", tmp_path / "x.npz"],
        "eval": [fasta], "generate": ["-n", "2", "--max-len", "20"],
    }  # fmt: skip
    before = gpu.traffic().read_backs
    result = in_process(command, runs["both"], *words[command], "--device", "wgpu")
    assert result.returncode == 0, result.stderr.decode()
    assert gpu.traffic().read_backs > before, "computed elsewhere"


def test_the_command_says_why_there_is_no_gpu(runs: dict[str, Path], fasta: Path) -> None:
    result = protperf("score", runs["both"], fasta, "--device", "wgpu", env=environment(PROTPERF_GPU="off"))
    assert result.returncode == 4
    assert "switched off by PROTPERF_GPU=off" in result.stderr.decode()


def test_what_is_timed_on_a_gpu_is_reading(gpu_device: None, small_size: Path) -> None:
    rows = lm.bench(size=str(small_size), device="wgpu", lengths="4094", own=True, repeats=1).rows
    assert [(row.task, row.length) for row in rows] == [("score", 4094)]
