"""The tensors that a configuration implies, found without allocating any. torch is not needed here."""

from __future__ import annotations

from protperf.lm.alphabet import VOCAB_SIZE
from protperf.lm.model.config import ModelConfig
from protperf.lm.storage.checkpoint import Step
from protperf.lm.storage.tensor_file import check_layout

OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW stores for each parameter: its number of steps, and two moments of the parameter's shape."""

MUON_STATE = ("momentum",)
"""What Muon stores for each weight that it changes, of the weight's shape."""
_MUON_PARTS = {"attention.qkv.weight": 3, "attention.out.weight": 1, "gate_up.weight": 2, "down.weight": 1}
"""The weights of a block that Muon changes, and how many matrices each holds, one below the other."""

TRAINED = "trained"
"""The key of a parameter in the trainer's file where the network's file holds an average of it."""

LOW_RANK_A, LOW_RANK_B, UNCHANGED = "lora_a", "lora_b", "unchanged"
"""The keys of a weight in the trainer's file where the network's file holds the sum of `unchanged` and B A."""

_KIND = "F32"
"""Parameters are trained and stored in float32."""


class ExpectedTensors:
    """Type and shape by name of the tensors in the network's file and in the trainer's file."""

    def __init__(self, config: ModelConfig, optimizer: str = "adamw", *, averages: bool = False, lora: int = 0) -> None:
        parameters, buffers = _parameters(config), _buffers(config)
        self.network = {name: (_KIND, shape) for name, shape in {**parameters, **buffers}.items()}
        self.trainer: dict[str, tuple[str, tuple[int, ...]]] = {}
        trained = _adapters(parameters, lora) if lora else parameters
        for name, shape in trained.items():
            for key in optimizer_state(name, optimizer):
                self.trainer[f"{name}.{key}"] = (_KIND, () if key == "step" else shape)
            if lora:
                self.trainer[name] = (_KIND, shape)
        for name, shape in parameters.items():
            if lora and low_rank_shapes(name, shape, lora):
                self.trainer[f"{name}.{UNCHANGED}"] = (_KIND, shape)
            if averages:
                self.trainer[f"{name}.{TRAINED}"] = (_KIND, shape)


def muon_parts(name: str, optimizer: str) -> int:
    """How many matrices of a parameter Muon changes; 0 where AdamW does: embeddings, vectors, or everything."""
    if optimizer != "muon" or not name.startswith("blocks."):
        return 0
    within = name.split(".", 2)[2]
    if within.endswith(f".{LOW_RANK_A}"):
        return 1
    return _MUON_PARTS.get(within.removesuffix(f".{LOW_RANK_B}"), 0)


def low_rank_shapes(name: str, shape: tuple[int, ...], rank: int) -> dict[str, tuple[int, int]] | None:
    """The shapes of the adapter of a weight by key; None for a weight that has none: it is not a matrix of a block."""
    if not name.startswith("blocks.") or len(shape) != 2:
        return None
    return {LOW_RANK_A: (rank, shape[1]), LOW_RANK_B: (shape[0], rank)}


def optimizer_state(name: str, optimizer: str) -> tuple[str, ...]:
    """The tensors that the optimizer of a run stores for a parameter."""
    return MUON_STATE if muon_parts(name, optimizer) else OPTIMIZER_STATE


def check_tensors(step: Step, expected: ExpectedTensors) -> None:
    """Check that the tensors of a step are those of its configuration.

    Raises:
        CheckpointError: naming the file.
    """
    check_layout(step.path / "model.safetensors", expected.network)
    check_layout(step.path / "trainer.safetensors", expected.trainer)


def _parameters(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of what is trained."""
    width, inner, ffn = config.model_dim, config.num_heads * config.head_dim, config.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (VOCAB_SIZE, width), "mode.weight": (2, width)}
    for layer in range(config.num_layers):
        shapes |= {
            f"blocks.{layer}.attention.log_temperature": (config.num_heads,),
            f"blocks.{layer}.attention.qkv.weight": (3 * inner, width),
            f"blocks.{layer}.attention.out.weight": (width, inner),
            f"blocks.{layer}.attention_norm.weight": (width,),
            f"blocks.{layer}.ffn_norm.weight": (width,),
            f"blocks.{layer}.gate_up.weight": (2 * ffn, width),
            f"blocks.{layer}.down.weight": (width, ffn),
        }
    return {**shapes, "norm.weight": (width,)}


def _adapters(parameters: dict[str, tuple[int, ...]], rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the adapters of a network."""
    shapes = {name: low_rank_shapes(name, shape, rank) or {} for name, shape in parameters.items()}
    return {f"{name}.{key}": shape for name, both in shapes.items() for key, shape in both.items()}


def _buffers(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the random directions."""
    if config.attention == "exact":
        return {}
    shape = (config.num_heads, config.num_features, config.head_dim)
    return {f"blocks.{layer}.attention.omega": shape for layer in range(config.num_layers)}
