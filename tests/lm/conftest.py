"""Small models and synthetic sequences for the tests of the app."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from protperf.lm.model.config import ATTENTIONS, ModelConfig
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.run import train_run

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
STEADY = tuple(name for name in ATTENTIONS if name not in ("identity", "tanh", "gelu"))
"""Attentions whose float32 has correct digits. Features of either sign sum to denominators near 0, which have none in
any evaluation; `test_attentions.py` compares those models in float64."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small_config(**choices: object) -> ModelConfig:
    """A network of a few thousand parameters."""
    sizes = {"num_layers": 2, "model_dim": 16, "num_heads": 2, "head_dim": 8, "ffn_dim": 24, "num_features": 12}
    return ModelConfig.from_mapping({**sizes, **choices})


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """Forty synthetic proteins of 5 to 60 residues, with a few odd ones."""
    return write_proteins(tmp_path / "proteins.fasta")


def write_proteins(path: Path) -> Path:
    """Write the proteins of `fasta`, the same ones every time."""
    rng = np.random.default_rng(5)
    lines = []
    for i in range(40):
        sequence = "".join(rng.choice(list(LETTERS), int(rng.integers(5, 61))))
        if i % 7 == 3:
            sequence = sequence[:2] + "XBU" + sequence[2:]
        lines.append(f">p{i} synthetic\n{sequence}\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="session")
def small_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `train --size` takes for the network of `small_config`, where it does not matter which one trains."""
    path = tmp_path_factory.mktemp("size") / "small.toml"
    sizes = {k: v for k, v in small_config().to_mapping().items() if type(v) is int and k != "seed"}
    path.write_text("".join(f"{name} = {value}\n" for name, value in sizes.items()))
    return path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories of models that two steps made, by objective."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(11)
    sequences = ["".join(rng.choice(list(LETTERS), int(n))) for n in rng.integers(20, 60, 30)]
    (folder / "train.fasta").write_text("".join(f">t{i}\n{x}\n" for i, x in enumerate(sequences)))
    made = {}
    for objective in ("both", "masked", "causal"):
        options = TrainOptions(steps=2, batch_tokens=200, validate=0.1, warmup=1)
        outcome = train_run(folder / "train.fasta", folder / objective, small_config(objective=objective), options)
        made[objective] = outcome.run
    return made
