"""`train --init`: a run that starts with the weights of another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import error_line, in_process
from conftest import small_config
from training import final_digests, small_options, synthetic

from protperf.errors import ConfigError
from protperf.lm.storage import checkpoint, tensor_file
from protperf.lm.storage.expected import ExpectedTensors
from protperf.lm.training.request import read_request
from protperf.lm.training.run import train_run

GIVEN: dict[str, Any] = {"steps": 3, "batch_tokens": 150, "validate": 0.1, "checkpoint_every": 1, "lr": 1e-12}


def weights(step: Path) -> dict[str, torch.Tensor]:
    config = small_config()
    return tensor_file.read_tensors(step / "model.safetensors", ExpectedTensors(config).network)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A run of two steps, whose directions were drawn again."""
    options = small_options(steps=2, redraw_interval=1, validate=0.1)
    train_run(synthetic(tmp_path / "base.fa"), tmp_path / "base", small_config(objective="both", seed=5), options)
    return tmp_path / "base"


def test_a_run_starts_with_weights_and_directions_and_trains_for_its_own_objective(base: Path, tmp_path: Path) -> None:
    request = read_request(tmp_path / "tuned", {**GIVEN, "init": str(base), "objective": "causal", "seed": 9})
    assert (request.config.objective, request.config.seed, request.options.seed) == ("causal", 5, 9)
    request.train(synthetic(tmp_path / "in.fa"), tmp_path / "tuned")
    before, after = weights(base / "step-2"), weights(tmp_path / "tuned" / "step-3")
    for name, tensor in before.items():
        # A learning rate of next to nothing: what is found is what it began with.
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-8)
        assert torch.equal(after[name], tensor) or not name.endswith("omega")
    origin = checkpoint.verify(tmp_path / "tuned" / "step-3").manifest["origin"]
    assert origin["init"].startswith(f"{base}, step 2, model SHA-256 ")


def test_it_goes_on_bit_for_bit_without_the_checkpoint_it_began_with(base: Path, tmp_path: Path) -> None:
    fasta = synthetic(tmp_path / "in.fa")
    given = {**GIVEN, "init": str(base), "lr": 1e-3, "ema": 0.5}
    read_request(tmp_path / "whole", given).train(fasta, tmp_path / "whole")
    request = read_request(tmp_path / "cut", given)
    with pytest.raises(_Stopped):
        request.train(fasta, tmp_path / "cut", report=lambda line: _stop("val_loss" in line and line["step"] == 2))
    base.rename(tmp_path / "gone")
    read_request(tmp_path / "cut", {"resume": True}).train(fasta, tmp_path / "cut")
    assert final_digests(tmp_path / "cut") == final_digests(tmp_path / "whole")


def test_the_request_that_started_it_resumes_it(base: Path, tmp_path: Path) -> None:
    fasta = synthetic(tmp_path / "in.fa")
    given = {**GIVEN, "init": str(base), "seed": 9}
    read_request(tmp_path / "run", given).train(fasta, tmp_path / "run")
    request = read_request(tmp_path / "run", {**given, "steps": 4, "resume": True})
    assert (request.config.seed, request.options.seed) == (5, 9)
    request.train(fasta, tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run")[0] == 4
    with pytest.raises(ConfigError, match="seed contradicts the run, whose seed is 9 and not 10"):
        read_request(tmp_path / "run", {**given, "steps": 4, "seed": 10, "resume": True})


class _Stopped(Exception):
    """As if the process had been killed."""


def _stop(now: bool) -> None:
    if now:
        raise _Stopped


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--size", "tiny"], "--size tiny contradicts --init BASE, which has num_layers"),
        (["--attention", "exact"], "--attention exact contradicts --init BASE, which has relu; leave it out"),
        (["--init", "nowhere"], "nowhere: no such run directory"),
    ],
)
def test_another_network_is_refused_by_name(words: list[str], expected: str, base: Path, tmp_path: Path) -> None:
    start = ["train", "--fasta", tmp_path / "base.fa", "-o", tmp_path / "run", "--steps", 1, "--init", base]
    assert error_line(in_process(*start, *words)).startswith(expected.replace("BASE", str(base)))
    assert not (tmp_path / "run").exists()


def test_a_run_may_be_replaced_by_one_that_starts_with_it(base: Path, tmp_path: Path) -> None:
    start = [
        "train",
        "--fasta",
        tmp_path / "base.fa",
        "-o",
        base,
        "--init",
        base,
        "--batch-tokens",
        100,
        "--force",
        "-q",
    ]
    assert in_process(*start, "--steps", 1).returncode == 0
    facts = json.loads(in_process("info", base, "--json").stdout)
    assert (facts["step"], facts["init"].split(",")[1]) == (1, " step 2")


def test_a_recipe_leaves_the_network_to_the_checkpoint(base: Path, tmp_path: Path) -> None:
    assert read_request(tmp_path / "run", {"steps": 1, "init": str(base), "recipe": "corpus"}).config.model_dim == 16
    family = read_request(
        tmp_path / "run", {"steps": 1, "init": str(base), "recipe": "family", "directions": "forward"}
    )
    assert family.config.attention == "relu"
    with pytest.raises(ConfigError, match="characters that cannot be kept"):
        read_request(tmp_path / "run", {"steps": 1, "init": "a\nb"})
