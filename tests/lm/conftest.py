"""Small models and synthetic sequences for the tests of the app."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from protperf.lm.model.config import ModelConfig

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


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
    rng = np.random.default_rng(5)
    lines = []
    for i in range(40):
        sequence = "".join(rng.choice(list(LETTERS), int(rng.integers(5, 61))))
        if i % 7 == 3:
            sequence = sequence[:2] + "XBU" + sequence[2:]
        lines.append(f">p{i} synthetic\n{sequence}\n")
    path = tmp_path / "proteins.fasta"
    path.write_text("".join(lines))
    return path
