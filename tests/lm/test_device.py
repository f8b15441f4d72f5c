"""A training computes where its network is, and leaves no tensor of a step on the CPU. `meta` is the other device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_config
from torch.nn import functional
from training import metrics, small_options, synthetic, trainer

import protperf.lm as lm
from protperf.errors import ConfigError, DeviceError
from protperf.lm.data.store import read_store, split
from protperf.lm.device import check_device
from protperf.lm.model.network import CAUSAL, MASKED, ChunkState, Network
from protperf.lm.storage import checkpoint
from protperf.lm.training.feed import Feed
from protperf.lm.training.loop import _forked_generator
from protperf.lm.training.optimizer import Optimizer
from protperf.lm.training.progress import Progress
from protperf.lm.training.run import train_run
from protperf.lm.training.validation import Validation

META = torch.device("meta")


# Exact attention reads the borders of the sequences, and a meta tensor holds no numbers.
@pytest.mark.parametrize("attention", ["relu", "softmax"])
@pytest.mark.parametrize("mode", [MASKED, CAUSAL], ids=["masked", "causal"])
def test_a_step_leaves_the_device_of_the_network_nowhere(attention: str, mode: int, tmp_path: Path) -> None:
    train, held = split(read_store(synthetic(tmp_path / "in.fa")), 0.1, 42)
    options = small_options()
    network = Network(small_config(attention=attention, dropout=0.1)).to(META)
    feed = Feed(train, options, "both", META)
    part = feed.next(Progress(), mode, 0)
    assert {x.device for x in (part.tokens, part.cu_seqlens, part.positions, part.targets)} == {META}
    logits = network(part.tokens, part.cu_seqlens, mode)
    assert (logits.device, logits.shape) == (META, (len(part.tokens), 29))
    loss = functional.cross_entropy(logits[part.positions], part.targets, reduction="sum")
    loss.backward()
    optimizer = Optimizer(network.named_parameters(), options)
    optimizer.step(1e-3)
    kinds = {name.rsplit(".", 1)[1]: tensor.device for name, tensor in optimizer.tensors().items()}
    assert kinds == {"step": torch.device("cpu"), "exp_avg": META, "exp_avg_sq": META, "momentum": META}
    for one in Validation(held, train.unigram(), "both", 100, 100, META)._passes:
        assert one.batch.tokens.device == META
        assert network(one.batch.tokens, one.batch.cu_seqlens, one.mode).device == META


def test_hidden_states_and_chunks_are_on_the_device_of_the_tokens() -> None:
    network = Network(small_config()).to(META)
    tokens = torch.zeros(7, dtype=torch.uint8, device=META)
    assert network.hidden(tokens, torch.tensor([0, 7], device=META), CAUSAL).shape == (7, 16)
    assert network.continued(tokens, torch.tensor([0, 7], device=META), ChunkState()).device == META


def test_logits_are_read_off_the_hidden_states() -> None:
    network = Network(small_config()).eval()
    tokens = torch.from_numpy(np.arange(3, 20).astype(np.uint8))
    borders = torch.tensor([0, 6, 17])
    with torch.no_grad():
        hidden = network.hidden(tokens, borders, CAUSAL)
        assert torch.equal(network.logits(hidden), network(tokens, borders, CAUSAL))
    # Normalized: the mean square of each is that of the weights of the norm, which are 1 at the start.
    assert hidden.square().mean(-1).numpy() == pytest.approx(np.ones(17), rel=1e-3)


def test_a_checkpoint_says_where_it_was_made_and_one_that_does_not_was_made_on_the_cpu(
    tmp_path: Path, fasta: Path
) -> None:
    from test_corruption import resign

    options = small_options(steps=2)
    messages: list[str] = []

    def go_on(steps: int, name: str) -> None:
        train_run(
            fasta, tmp_path / name, small_config(dropout=0.1), small_options(steps=steps), resume=True,
            device="cpu", warn=messages.append,
        )  # fmt: skip

    train_run(fasta, tmp_path / "run", small_config(dropout=0.1), options, device="cpu")
    manifest = checkpoint.find(tmp_path / "run").manifest
    assert manifest["device"] == "cpu"
    newest = tmp_path / "run" / "step-2"

    def forget(manifest: dict[str, Any]) -> None:
        del manifest["device"]

    resign(newest, forget)
    go_on(3, "run")
    assert not [text for text in messages if "last bits" in text]
    resign(tmp_path / "run" / "step-3", lambda manifest: manifest.update(device="cuda"))
    go_on(4, "run")
    assert "device cuda then, cpu now: the continued run may differ in the last bits" in messages[-1]
    assert checkpoint.find(tmp_path / "run" / "step-4").manifest["device"] == "cpu"


def test_dropout_gives_back_the_random_numbers_of_the_caller() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with _forked_generator(torch.device("cpu")):
        torch.manual_seed(9)
        torch.rand(3)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("attention", ["relu", "softmax", "exact"])
def test_a_run_on_cuda_is_that_of_the_cpu_to_rounding(attention: str, tmp_path: Path) -> None:
    fasta = synthetic(tmp_path / "in.fa")
    found = {}
    for device in ("cpu", "cuda"):
        one = trainer(tmp_path / device, fasta, small_options(steps=6), attention=attention, dropout=0.0, device=device)
        one.fit(lambda line: None)
        assert one.loop.network.embedding.weight.device.type == device
        found[device] = [float.fromhex(line["loss"]) for line in metrics(tmp_path / device) if "loss" in line]
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-4)
    # What was saved on one device goes on upon the other.
    again = trainer(tmp_path / "cuda", fasta, small_options(steps=8), attention=attention, dropout=0.0)
    again.restore(checkpoint.verify(tmp_path / "cuda" / "step-6"))
    again.fit(lambda line: None)


def test_python_trains_on_the_device_that_is_named(tmp_path: Path, fasta: Path) -> None:
    given: dict[str, Any] = {"steps": 1, "batch_tokens": 150, "validate": 0.1}
    lm.train(fasta, tmp_path / "run", device="cpu", **given)
    assert checkpoint.find(tmp_path / "run").manifest["device"] == "cpu"
    with pytest.raises(ConfigError, match="device is 'cqu'"):
        lm.train(fasta, tmp_path / "other", device="cqu", **given)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="cuda"):
            lm.train(fasta, tmp_path / "other", device="cuda", **given)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("attention", ["elu1", "hyperbolic", "trigonometric"])
def test_a_run_through_the_form_of_other_devices_is_that_of_the_kernels(
    attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cuda and mps compute, on a CPU: training, validation, saving, resuming and every way of scoring.

    One map of each family: how the chunked form computes every map is compared below the app.
    """
    fasta = synthetic(tmp_path / "in.fa")
    losses, scores = {}, {}
    for form in ("native", "chunked"):
        monkeypatch.setenv("PROTPERF_TORCH_FORM", form)
        choices = {"attention": attention, "sampler": "iid", "norm": "sqrt_dim", "dropout": 0.0}
        one = trainer(tmp_path / form, fasta, small_options(steps=4, redraw_interval=2), **choices)
        one.fit(lambda line: None)
        again = trainer(tmp_path / form, fasta, small_options(steps=6, redraw_interval=2), **choices)
        again.restore(checkpoint.verify(tmp_path / form / "step-4"))
        again.fit(lambda line: None)
        losses[form] = [float.fromhex(line["loss"]) for line in metrics(tmp_path / form) if "loss" in line]
        model = lm.load(tmp_path / form)
        scores[form] = [
            row.ll for method in ("ll", "pll") for row in model.score(["MKVLAAGIC", "ACDEFGHIKL" * 40], method=method)
        ]
    assert len(losses["native"]) > 4
    assert losses["chunked"] == pytest.approx(losses["native"], rel=1e-4)
    assert scores["chunked"] == pytest.approx(scores["native"], rel=1e-3)


def test_devices_that_torch_lacks_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device in ("cuda", "mps"):
        with pytest.raises(DeviceError, match=rf"device {device} is not available.*use cpu"):
            check_device(device)
    with pytest.raises(DeviceError, match="device wgpu reads models and does not train them; use cpu"):
        check_device("wgpu")
    with pytest.raises(ConfigError, match="choose one of auto, cpu, cuda, mps"):
        check_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device("cuda")
