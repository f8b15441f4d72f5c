"""What `protperf doctor` finds in a machine and in a model, and that it finds faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import error_line, in_process
from conftest import small_config

from protperf.lm.model.config import ATTENTIONS
from protperf.lm.model.network import CAUSAL, Network
from protperf.lm.model.torch_checks import model_checks


@pytest.mark.parametrize("objective", ["both", "masked", "causal"])
def test_a_sound_model_passes_the_checks_of_what_it_was_trained_for(objective: str, runs: dict[str, Path]) -> None:
    result = in_process("doctor", "--model", runs[objective], "--json")
    assert (result.returncode, result.stderr) == (0, b"")
    checks = json.loads(result.stdout)["checks"]
    assert all(check["ok"] for check in checks)
    names = " ".join(check["name"] for check in checks)
    assert "native against torch" in names
    assert ("ll, batched" in names, "pll, batched" in names) == (True, objective != "causal")
    assert ("ll, whole" in names) == (objective != "masked")


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_only_an_estimate_is_compared_with_exact_attention(attention: str) -> None:
    checks = list(model_checks(Network(small_config(attention=attention)).eval()))
    assert all(check["ok"] for check in checks), checks
    assert any("exact attention" in check["name"] for check in checks) == (attention == "softmax")


def test_more_features_come_closer_to_exact_attention() -> None:
    def distance(num_features: int) -> float:
        config = small_config(attention="softmax", num_features=num_features)
        net = Network(config).eval()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(4)
        return float(list(model_checks(net))[-1]["found"].split()[0])

    assert distance(512) < 0.5 * distance(8)


class Leaking(Network):
    """Every sequence of a batch moves the logits of all others; a state that is carried on does not."""

    def hidden(self, tokens: torch.Tensor, cu_seqlens: torch.Tensor, mode: int, layer: int = -1) -> torch.Tensor:
        hidden = super().hidden(tokens, cu_seqlens, mode, layer)
        return hidden * (1 + 1e-3 * len(cu_seqlens)) if mode == CAUSAL else hidden * (1 + 1e-3 * len(tokens))


def test_a_model_whose_batch_mates_matter_is_found() -> None:
    failed = [check["name"] for check in model_checks(Leaking(small_config()).eval()) if not check["ok"]]
    assert failed == ["ll, batched against alone", "ll, whole against chunks of 37", "pll, batched against alone"]


def test_a_damaged_model_is_an_error_that_names_the_file(runs: dict[str, Path], tmp_path: Path) -> None:
    assert "missing" in error_line(result := in_process("doctor", "--model", tmp_path / "missing"))
    assert result.returncode == 3
    step = max(runs["both"].glob("step-*"))
    copy = shutil.copytree(step, tmp_path / "run" / step.name)
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert "model.safetensors" in error_line(result := in_process("doctor", "--model", copy))
    assert result.returncode == 3
