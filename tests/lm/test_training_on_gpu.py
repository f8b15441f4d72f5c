"""Training whose attention is computed on a GPU (`attention_backend="wgpu"`): the losses of the processor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import error_line, in_process
from conftest import small_config
from training import small_options, synthetic

from protperf import backends
from protperf.errors import ConfigError
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.run import train_run

pytestmark = pytest.mark.skipif("wgpu" not in backends(), reason="built without the feature wgpu")


def losses(folder: Path, attention: str, attention_backend: str) -> list[float]:
    options = small_options(steps=4, engine="torch", attention_backend=attention_backend, log_every=1)
    run = train_run(
        synthetic(folder / "in.fa"), folder / attention_backend, small_config(attention=attention), options
    ).run
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("loss", "val_loss") if name in line]


@pytest.mark.usefixtures("gpu_device")
@pytest.mark.parametrize("attention", ["relu", "softmax"])
def test_losses_are_those_of_the_processor(attention: str, tmp_path: Path) -> None:
    here, there = (losses(tmp_path, attention, backend) for backend in ("auto", "wgpu"))
    assert len(here) >= 5
    assert there == pytest.approx(here, abs=1e-4)
    assert there != here, "one device was used for both"


@pytest.mark.usefixtures("gpu_device")
def test_the_command_trains_and_resumes(tmp_path: Path, small_size: Path) -> None:
    fasta, run = synthetic(tmp_path / "in.fa"), tmp_path / "run"
    asked = ["train", "--fasta", fasta, "-o", run, "--size", small_size, "--attention", "relu"]
    chosen = ["--attention-backend", "wgpu", "--quiet"]
    assert in_process(*asked, *chosen, "--steps", "2").returncode == 0
    assert in_process(*asked, *chosen, "--steps", "3", "--resume").returncode == 0
    assert 'attention_backend = "wgpu"' in (run / "config.toml").read_text()
    assert in_process("score", run, fasta).returncode == 0


REFUSED = [
    (["--attention", "exact"], "--attention-backend wgpu computes linear attention alone; leave it out, or choose"),
    (
        ["--engine", "native"],
        "--engine native computes attention by itself; leave --engine out with --attention-backend",
    ),
    (["--precision", "bf16"], "which the native engine computes alone; leave --attention-backend out"),
    (["--attention-backend", "cuda"], "auto, wgpu"),
]


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_what_cannot_be_is_refused_by_name(more: list[str], message: str, tmp_path: Path, fasta: Path) -> None:
    asked = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--steps", "1", "--attention-backend", "wgpu"]
    refused = in_process(*asked, *more)
    assert refused.returncode == 2
    assert message in error_line(refused)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_no_gpu_is_refused_before_anything_is_written(
    tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROTPERF_GPU", "off")
    asked = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--steps", "1", "--attention-backend", "wgpu"]
    refused = in_process(*asked, "--attention", "relu")
    assert refused.returncode == 4
    assert "--attention-backend wgpu: the GPU is switched off by PROTPERF_GPU=off" in error_line(refused)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_auto_becomes_the_engine_that_it_means() -> None:
    assert TrainOptions(steps=1).engine == "native"
    assert TrainOptions(steps=1, attention_backend="wgpu").engine == "torch"
    with pytest.raises(ConfigError, match="engine='native' computes attention by itself"):
        TrainOptions(steps=1, engine="native", attention_backend="wgpu")
