"""Damage to a checkpoint: found to the last bit, reported with the name of the file, passed over on resuming."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import small_config
from training import final_digests, small_options, synthetic, trainer
from warm import Warm

from protperf.errors import CheckpointError, ConfigError
from protperf.lm.loading import load_run
from protperf.lm.storage import checkpoint, directory, plain_file, tensor_file
from protperf.lm.training.run import train_run

FLIPS = 1000
FILES = (*checkpoint.FILES, checkpoint.MANIFEST)


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as server:
        yield server


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two steps, 2 and 3; no test changes it."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("saved") / "run"
    trainer(run, synthetic(run.with_name("proteins.fasta")), small_options(steps=3)).fit(lambda line: None)
    assert checkpoint.steps(run)[:2] == [3, 2]
    return run


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """What the run was trained on."""
    return synthetic(tmp_path / "proteins.fasta")


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def named_in(step: Path) -> Path:
    """The file that the error of verifying a step names."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.verify(step)
    assert caught.value.strerror
    return Path(os.fspath(caught.value.filename))


def resign(step: Path, change: Callable[[dict[str, object]], None] = lambda manifest: None) -> None:
    """Make a manifest that fits what the files of a step hold now."""
    manifest = json.loads((step / checkpoint.MANIFEST).read_bytes())
    for name in checkpoint.FILES:
        data = (step / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del manifest["sha256"]
    change(manifest)
    (step / checkpoint.MANIFEST).write_bytes(plain_file.seal(manifest))


def test_1000_of_1000_flipped_bits_are_found_and_named(run: Path) -> None:
    step = run / "step-3"
    checkpoint.verify(step)
    rng = np.random.default_rng(0)
    found = 0
    for trial in range(FLIPS):
        path = step / FILES[trial % len(FILES)]
        good = path.read_bytes()
        data = bytearray(good)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        found += named_in(step) == path
        path.write_bytes(good)
    checkpoint.verify(step)
    assert found == FLIPS


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_loading_hashes_the_weights_once(engine: str, run: Path) -> None:
    hashed: list[str] = []

    def counting(stream: Any, name: str) -> Any:
        hashed.append(Path(stream.name if isinstance(stream.name, str) else f"/dev/fd/{stream.name}").resolve().name)
        return digest(stream, name)

    digest = hashlib.file_digest
    with mock.patch.object(hashlib, "file_digest", counting):
        load_run(run / "step-3", engine=engine)
    # The native engine hashes what it maps, in Rust.
    assert sorted(hashed) == sorted(set(checkpoint.FILES) - ({checkpoint.MODEL} if engine == "native" else set()))
    weights = run / "step-3" / checkpoint.MODEL
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256 differs") as caught:
        load_run(run, engine=engine)
    assert os.fspath(caught.value.filename) == os.fspath(weights)


def test_every_byte_of_the_manifest_counts(run: Path) -> None:
    """By one bit of each, and by the bit that makes a letter a capital, as in 1e-3 and 1E-3, which are equal."""
    path = run / "step-3" / checkpoint.MANIFEST
    good = path.read_bytes()
    for place, bit in itertools.product(range(len(good)), (5, None)):
        data = bytearray(good)
        data[place] ^= 1 << (place % 8 if bit is None else bit)
        path.write_bytes(data)
        assert named_in(path.parent) == path


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_found_and_named(name: str, run: Path) -> None:
    """By its size alone; `read_tensors`, below, does not know that."""
    path = run / "step-3" / name
    good = path.read_bytes()
    for cut in np.linspace(0, len(good) - 1, 200).astype(int).tolist():
        path.write_bytes(good[:cut])
        assert named_in(path.parent) == path


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors"])
def test_a_cut_tensor_file_is_found_without_its_manifest_too(name: str, run: Path) -> None:
    path = run / "step-3" / name
    good = path.read_bytes()
    (header,) = struct.unpack("<Q", good[:8])
    for cut in {*range(8 + header), *np.linspace(8 + header, len(good) - 1, 200).astype(int).tolist()}:
        path.write_bytes(good[:cut])
        with pytest.raises(CheckpointError) as caught:
            tensor_file.read_tensors(path, None)
        assert Path(os.fspath(caught.value.filename)) == path


@pytest.mark.parametrize("name", FILES)
def test_files_of_another_step_are_found_and_named(name: str, run: Path) -> None:
    one, two = run / "step-3" / name, run / "step-2" / name
    if one.read_bytes() == two.read_bytes():
        assert name == "config.json"
        return
    shutil.copy(two, one)
    # A manifest of another step is wrong about the step; any other file is wrong about its manifest.
    assert named_in(run / "step-3") == one


def test_a_step_under_the_name_of_another_is_found(run: Path) -> None:
    shutil.rmtree(run / "step-3")
    (run / "step-2").rename(run / "step-3")
    assert named_in(run / "step-3") == run / "step-3" / checkpoint.MANIFEST


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, run: Path) -> None:
    (run / "step-3" / name).unlink()
    assert named_in(run / "step-3").name == name


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a file and sign its step anew: what is left to find is that they do not fit."""
    from safetensors.torch import save_file

    tensors = tensor_file.read_tensors(path, None)
    change(tensors)
    save_file(tensors, path)
    resign(path.parent)


CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "missing": lambda tensors: tensors.popitem(),
    "extra": lambda tensors: tensors.update({"one.more": torch.zeros(2)}),
    "renamed": lambda tensors: tensors.update({"other.name": tensors.popitem()[1]}),
    "wider type": lambda tensors: tensors.update({k: v.double() for k, v in list(tensors.items())[:1]}),
    "another type": lambda tensors: tensors.update({k: v.int() for k, v in list(tensors.items())[:1]}),
    "flattened": lambda tensors: tensors.update({k: v.flatten() for k, v in tensors.items() if v.dim() > 1}),
    "one row less": lambda tensors: tensors.update({k: v[1:].clone() for k, v in tensors.items() if v.dim() > 0}),
    "one axis more": lambda tensors: tensors.update({k: v[None] for k, v in tensors.items()}),
    "empty": lambda tensors: tensors.clear(),
}


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors"])
@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_do_not_fit_the_configuration_are_named(name: str, change: str, run: Path, fasta: Path) -> None:
    path = run / "step-3" / name
    rewritten(path, CHANGES[change])
    checkpoint.verify(path.parent)
    again = trainer(run, fasta, small_options(steps=9))
    with pytest.raises(CheckpointError) as caught:
        again.restore(checkpoint.verify(path.parent))
    assert Path(os.fspath(caught.value.filename)) == path
    if name == "model.safetensors":
        with pytest.raises(CheckpointError) as caught:
            load_run(path.parent)
        assert Path(os.fspath(caught.value.filename)) == path


def test_resuming_passes_over_damage_with_a_warning_and_reading_ends_in_3(
    run: Path, fasta: Path, warm: Warm, tmp_path: Path
) -> None:
    damaged = run / "step-3" / "trainer.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    for words in (["info", run], ["score", run, fasta], ["score", run / "step-3", fasta], ["info", run / "step-3"]):
        status, message = warm.command(tmp_path / "errors", *words)
        assert status == 3
        assert message.startswith(f"protperf: error: {damaged}: does not have the contents that were saved")
        assert len(message.splitlines()) == 1
    words = ["train", "--fasta", fasta, "-o", run, "--resume", "--steps", 5, "-q"]
    status, message = warm.command(tmp_path / "errors", *words)
    assert status == 0
    assert f"warning: {damaged}: does not have the contents that were saved" in message
    assert "trying an older step" in message
    # The run went on from step 2 as if step 3 had never been there.
    golden = trainer(tmp_path / "golden", fasta, small_options(steps=3))
    golden.fit(lambda line: None)
    again = trainer(tmp_path / "golden", fasta, small_options(steps=5))
    again.restore(checkpoint.verify(tmp_path / "golden" / "step-2"))
    again.fit(lambda line: None)
    assert final_digests(run) == final_digests(tmp_path / "golden")


def test_a_run_without_one_whole_step_cannot_be_resumed(run: Path, fasta: Path) -> None:
    message: list[str] = []
    for number in checkpoint.steps(run):
        (run / f"step-{number}" / checkpoint.MANIFEST).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        train_run(fasta, run, small_config(dropout=0.1), small_options(steps=5), resume=True, warn=message.append)
    assert len(message) == len(checkpoint.steps(run))


def test_an_existing_run_is_neither_overwritten_nor_shared(run: Path, fasta: Path) -> None:
    options = small_options(steps=3)
    with pytest.raises(ConfigError, match="resume=True"):
        train_run(fasta, run, small_config(), options)
    with directory.locked(run), pytest.raises(ConfigError, match="another process"):
        train_run(fasta, run, small_config(), options, force=True)
