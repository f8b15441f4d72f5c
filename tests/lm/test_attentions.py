"""Every feature map of the registry is an attention of a model: trained, saved, read by name, natively and by torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import in_process
from conftest import small_config
from training import losses, small_options, synthetic

import protperf
from protperf.lm.loading import load_run
from protperf.lm.model.config import ATTENTIONS
from protperf.lm.scoring.likelihood import log_likelihoods
from protperf.lm.training.run import train_run

SCORED = [np.arange(3, 23, dtype=np.uint8), np.full(70, 7, np.uint8)]


def test_attentions_are_the_maps_of_the_registry_another_name_and_exact() -> None:
    assert sorted(ATTENTIONS) == sorted([*protperf.feature_maps(), "softmax", "exact"])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_model_of_each_map_trains_and_scores_the_same_by_both_engines(attention: str, tmp_path: Path) -> None:
    options = small_options(steps=2, checkpoint_every=2)
    run = train_run([synthetic(tmp_path / "in.fa")], tmp_path / "run", small_config(attention=attention), options).run
    assert len(losses(run)) == 2
    native, composed = (
        log_likelihoods(load_run(run, dtype="float64", engine=engine).engine, SCORED) for engine in ("native", "torch")
    )
    for ours, theirs in zip(native, composed, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=0)


def test_the_command_takes_any_map_and_says_which_there_are(fasta: Path, small_size: Path, tmp_path: Path) -> None:
    words = ["train", "--fasta", fasta, "--size", small_size, "--steps", "1", "--quiet", "-o"]
    assert in_process(*words, tmp_path / "run", "--attention", "gelu").returncode == 0
    refused = in_process(*words, tmp_path / "other", "--attention", "gelo")
    assert refused.returncode == 2
    assert ", ".join(ATTENTIONS) in refused.stderr.decode()
