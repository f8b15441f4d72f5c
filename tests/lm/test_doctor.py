"""What `protperf doctor` finds in a machine and in a model, and that it finds faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import error_line, in_process
from conftest import small_config

from protperf import gpu
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


ADAPTERS = (
    gpu.Adapter(0, "llvmpipe (LLVM 15)", "processor", "vulkan", "llvmpipe", 2**27, False),
    gpu.Adapter(1, "RTX 4060", "discrete", "vulkan", "NVIDIA", 2**31, True),
)


@pytest.mark.parametrize("command", ["doctor", "info"])
def test_every_adapter_is_listed_and_the_one_that_is_used_is_marked(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "adapters", lambda: ADAPTERS)
    monkeypatch.setattr(gpu, "fault", lambda: None)
    lines = ["0 llvmpipe (LLVM 15) (processor, vulkan)", "1 RTX 4060 (discrete, vulkan, used)"]
    result = in_process(command)
    assert result.returncode == 0
    assert f"gpus         {lines[0]}\n             {lines[1]}\n" in result.stdout.decode()
    facts = json.loads(in_process(command, "--json").stdout)
    assert facts["gpus"] == lines
    assert {"version", "profile", "isa", "torch"} <= set(facts)


@pytest.mark.parametrize("command", ["doctor", "info"])
def test_where_no_gpu_is_used_the_reason_follows_the_list(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "adapters", lambda: ADAPTERS[:1])
    monkeypatch.setattr(gpu, "fault", lambda: "no GPU was found")
    text = in_process(command).stdout.decode()
    assert "gpus         0 llvmpipe (LLVM 15) (processor, vulkan)\n             no GPU was found\n" in text
    monkeypatch.setattr(gpu, "adapters", lambda: ())
    assert "gpus         no GPU was found\n" in in_process(command).stdout.decode()


@pytest.mark.parametrize("words", [["--curves"], ["--plot", "x.png"], ["--report", "x.html"]], ids=" ".join)
def test_what_shows_a_training_needs_a_model(words: list[str]) -> None:
    result = in_process("info", *words)
    assert result.returncode == 2
    assert error_line(result) == f"{words[0]} shows the training of a model, and MODEL is missing"
