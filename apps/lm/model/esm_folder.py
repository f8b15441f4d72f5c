"""A Hugging Face folder with an ESM-2 model: what its files say, checked. torch is not needed here.

Such a folder holds `config.json`, the weights as `model.safetensors` or as shards with their index, and mostly
`vocab.txt`; its files may be links, as they are in the cache of Hugging Face's libraries. Weights in a pickle
(`pytorch_model.bin`) are not read: to unpickle is to run what the file says.

Source: Lin et al. 2023, Science 379:1123, and the names that the library transformers gives the tensors.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.model.config import ModelConfig
from protperf.lm.storage import tensor_file
from protperf.lm.storage.checkpoint import MANIFEST, Step
from protperf.lm.storage.plain_file import broken, opened, read_bytes, read_table, short

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_MAX_INDEX_BYTES = 1 << 24
_SPECIAL = {"<bos>": "<cls>", "<eos>": "<eos>", "<mask>": "<mask>", "J": "<unk>"}
"""What our tokens are called there; the vocabulary has no J."""
_ESM2_VOCABULARY = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
_SIZES = {
    "num_layers": "num_hidden_layers",
    "model_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
}


@dataclass(frozen=True, slots=True)
class EsmFolder:
    """What a folder says of its model.

    Attributes:
        config: the sizes, in our terms.
        token_ids: the id there of each token of our vocabulary.
        norm_epsilon, token_dropout, norms_embedding: how layers are normed, whether masked positions are embedded as
            zeros and the others rescaled, and whether embeddings are normed.
        files: the file of each tensor that is needed, by name there.
    """

    path: Path
    config: ModelConfig
    vocab_size: int
    token_ids: tuple[int, ...]
    norm_epsilon: float
    token_dropout: bool
    norms_embedding: bool
    files: dict[str, Path]

    def facts(self) -> dict[str, Any]:
        """What `protperf info` prints."""
        shapes = expected_shapes(self.config, self.vocab_size, self.norms_embedding)
        sizes = ("num_layers", "model_dim", "num_heads", "head_dim", "ffn_dim", "attention", "objective")
        return {
            "path": str(self.path),
            "model": "ESM-2",
            "parameters": sum(math.prod(shape) for shape in shapes.values()),
            **{name: getattr(self.config, name) for name in sizes},
            "model_sha256": self.step().manifest["files"][_WEIGHTS]["sha256"],
        }

    def step(self) -> Step:
        """The folder in the place of a step of training: the digest of its weights stands for the model."""
        digest = hashlib.sha256()
        for path in sorted(set(self.files.values())):
            with opened(path) as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return Step(self.path, 0, {"files": {_WEIGHTS: {"sha256": digest.hexdigest()}}})


def is_esm_folder(path: Path) -> bool:
    """Whether a directory is a Hugging Face folder of an ESM model, and not a step of a run.

    Raises:
        CheckpointError: its configuration cannot be read, or is of another kind of model.
    """
    if not (path / _CONFIG).is_file() or (path / MANIFEST).exists():
        return False
    kind = read_table((path / _CONFIG).resolve()).get("model_type")
    if kind is not None and kind != "esm":
        raise broken(path / _CONFIG, f"is of a model of type {short(kind)}; ESM-2 folders (type esm) are read")
    return kind == "esm"


def read_folder(path: Path) -> EsmFolder:
    """Read and check the configuration, the vocabulary and the headers of the weights.

    Raises:
        CheckpointError: a file is missing, malformed, or of an ESM model that is not ESM-2.
    """
    place = path / _CONFIG
    table = read_table(place.resolve())
    config = _sizes(place, table)
    if table.get("position_embedding_type") != "rotary":
        raise broken(place, "has learned positions, as ESM-1 models have; only rotary ones, of ESM-2, are read")
    epsilon, vocab_size = table.get("layer_norm_eps", 1e-12), table.get("vocab_size")
    if type(epsilon) is not float or not 0 < epsilon < 1:
        raise broken(place, f"has {short(epsilon)} as layer_norm_eps")
    if type(vocab_size) is not int or not 1 <= vocab_size <= 1 << 16:
        raise broken(place, f"has {short(vocab_size)} as vocab_size")
    norms_embedding = bool(table.get("emb_layer_norm_before"))
    files = _files(path, expected_shapes(config, vocab_size, norms_embedding))
    ids = _token_ids(path, vocab_size)
    return EsmFolder(path, config, vocab_size, ids, epsilon, bool(table.get("token_dropout")), norms_embedding, files)


def expected_shapes(config: ModelConfig, vocab_size: int, norms_embedding: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that a masked language model of these sizes needs, by their names there."""
    width, ffn = config.model_dim, config.ffn_dim
    shapes: dict[str, tuple[int, ...]] = {"esm.embeddings.word_embeddings.weight": (vocab_size, width)}
    norms = ["esm.encoder.emb_layer_norm_after", "lm_head.layer_norm"]
    norms += ["esm.embeddings.layer_norm"] if norms_embedding else []
    linears: dict[str, tuple[int, int]] = {"lm_head.dense": (width, width)}
    for layer in range(config.num_layers):
        prefix = f"esm.encoder.layer.{layer}"
        norms += [f"{prefix}.attention.LayerNorm", f"{prefix}.LayerNorm"]
        inner = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        linears |= {f"{prefix}.{name}": (width, width) for name in inner}
        linears |= {f"{prefix}.intermediate.dense": (ffn, width), f"{prefix}.output.dense": (width, ffn)}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {**shapes, "lm_head.bias": (vocab_size,)}


def _sizes(place: Path, table: dict[str, Any]) -> ModelConfig:
    sizes = {ours: table.get(theirs) for ours, theirs in _SIZES.items()}
    width, heads = sizes["model_dim"], sizes["num_heads"]
    if type(width) is not int or type(heads) is not int or heads < 1 or width % heads:
        raise broken(place, f"has hidden_size {short(width)} and num_attention_heads {short(heads)}")
    try:
        # Exact attention draws no features.
        return ModelConfig.from_mapping(
            {**sizes, "head_dim": width // heads, "num_features": 1, "attention": "exact", "objective": "masked"}
        )
    except ConfigError as error:
        raise broken(place, short(str(error))) from error


def _token_ids(path: Path, vocab_size: int) -> tuple[int, ...]:
    """The id there of each token of ours, by `vocab.txt` or as every ESM-2 model has them."""
    # Imported here: every command asks whether a folder is one of these, and only one that is needs our alphabet.
    from protperf.lm.alphabet import VOCABULARY

    names: tuple[str, ...] = _ESM2_VOCABULARY
    place = path / "vocab.txt"
    if place.exists():
        names = tuple(read_bytes(place.resolve()).decode("utf-8", "replace").split("\n"))
    ids = {name.strip(): index for index, name in enumerate(names[:vocab_size])}
    wanted = [_SPECIAL.get(name, name) for name in VOCABULARY]
    missing = [name for name in wanted if name not in ids]
    if missing:
        raise broken(
            place if place.exists() else path / _CONFIG, f"has no token {missing[0]}; is it of a protein model?"
        )
    return tuple(ids[name] for name in wanted)


def _files(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Path]:
    """The file of each tensor, whose type and shape are checked by its header."""
    files = [path / _WEIGHTS]
    if not (path / _WEIGHTS).exists() and (path / _INDEX).exists():
        index = read_table((path / _INDEX).resolve(), _MAX_INDEX_BYTES).get("weight_map")
        names = sorted(set(index.values())) if isinstance(index, dict) else []
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise broken(path / _INDEX, "does not map tensors to files of its folder")
        files = [path / name for name in names]
    elif not (path / _WEIGHTS).exists():
        remedy = "save it again with save_pretrained(folder, safe_serialization=True)"
        raise broken(path, f"has no {_WEIGHTS}; weights in a pickle are not read: {remedy}")
    found: dict[str, Path] = {}
    for file in map(Path.resolve, files):
        for name, (kind, shape) in tensor_file.read_layout(file).items():
            if name not in shapes:
                continue
            if shape != shapes[name] or kind not in ("F32", "F64"):
                raise broken(file, f"tensor {name} is {kind} {list(shape)}; F32 {list(shapes[name])} is needed")
            found[name] = file
    missing = sorted(set(shapes) - set(found))
    if missing:
        raise broken(
            path, f"has no tensor {missing[0]}; a model with its language-model head is needed (EsmForMaskedLM)"
        )
    return found
