"""Write a trained model for others: a Hugging Face folder, one safetensors file, or a step whose training has ended.

What is written holds weights and configuration alone, no state of the optimizer. It is put in its place as a whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError, FileError
from protperf.lm.alphabet import BOS, EOS, MASK, VOCAB_SIZE, VOCABULARY
from protperf.lm.baselines.manifest import is_baseline
from protperf.lm.export.options import ConvertOptions
from protperf.lm.model.config import ModelConfig
from protperf.lm.storage import checkpoint, durable, manifest
from protperf.lm.storage.plain_file import seal, to_json

_MODELING = "modeling_protperf"
_SHAPES = ("num_layers", "model_dim", "num_heads", "head_dim", "ffn_dim", "num_features", "attention", "objective")
"""What the exported code computes by."""
_OF_TRAINING = ("dropout", "seed", "sampler", "norm", "directions")
"""What decided the weights and is of no consequence to who reads them."""


def convert(options: ConvertOptions) -> Path:
    """Convert a model; returns the step that was taken.

    Raises:
        ConfigError: the model has parts that the exported code does not compute; FileError: the target exists or
        cannot be written; CheckpointError, MissingFileError: the model cannot be read.
    """
    if is_baseline(options.model):
        raise ConfigError(f"{options.model}: is a baseline, which no other library knows; its tensors are NumPy's")
    if os.path.lexists(options.out):
        raise FileError(None, "exists already; remove it or choose another name", str(options.out))
    if not options.out.absolute().parent.is_dir():
        raise FileError(None, "there is no such directory; make it first", str(options.out.parent))
    return checkpoint.read(options.model, lambda step: _write(step, options))


def _write(step: checkpoint.Step, options: ConvertOptions) -> Path:
    config = manifest.read_config(step)
    if options.to == "model":
        durable.write_folder(options.out, _ended(step))
        return step.path
    _check_known(config)
    if options.to == "safetensors":
        facts = {"config": json.dumps(config.to_mapping()), "vocabulary": json.dumps(VOCABULARY)}
        durable.replace_file(options.out, _weights(step, config, facts))
    else:
        durable.write_folder(options.out, _folder(step, config))
    return step.path


def _ended(step: checkpoint.Step) -> dict[str, bytes]:
    """The files of a step with an empty state of the training; all else stays to the letter."""
    from safetensors.numpy import save

    kept = ("config.json", checkpoint.MODEL)
    contents = {**{name: (step.path / name).read_bytes() for name in kept}, "trainer.safetensors": save({})}
    files = {name: checkpoint.entry_of(data) for name, data in contents.items()}
    return {**contents, checkpoint.MANIFEST: seal({**step.manifest, "files": files})}


def _check_known(config: ModelConfig) -> None:
    """Refuse a network that has more to it than the exported code knows."""
    plain = {name: getattr(config, name) for name in _SHAPES}
    default = ModelConfig.from_mapping(plain).to_mapping()
    for name, value in config.to_mapping().items():
        if name not in (*_SHAPES, *_OF_TRAINING) and value != default[name]:
            raise ConfigError(f"this model has {name} {value!r}, which a converted model cannot compute")


def _weights(step: checkpoint.Step, config: ModelConfig, metadata: Mapping[str, str]) -> bytes:
    from protperf.lm.model.torch_loading import verified_bytes

    return verified_bytes(step, config, metadata)


def _folder(step: checkpoint.Step, config: ModelConfig) -> dict[str, bytes]:
    """The files of a Hugging Face folder by name."""
    special = {"cls_token": BOS, "eos_token": EOS, "mask_token": MASK, "pad_token": EOS, "unk_token": VOCAB_SIZE - 1}
    tokens = {name: VOCABULARY[token] for name, token in special.items()}
    return {
        "config.json": to_json(_hf_config(config)),
        "model.safetensors": _weights(step, config, {"format": "pt"}),
        f"{_MODELING}.py": resources.files("protperf.lm.export").joinpath(f"{_MODELING}.py").read_bytes(),
        "vocab.txt": ("\n".join(VOCABULARY) + "\n").encode(),
        "tokenizer_config.json": to_json({"tokenizer_class": "EsmTokenizer", **tokens}),
        "special_tokens_map.json": to_json(tokens),
    }


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    kinds = {"MaskedLM": config.objective != "causal", "CausalLM": config.objective != "masked"}
    auto = {f"AutoModelFor{kind}": f"{_MODELING}.ProtperfFor{kind}" for kind, has in kinds.items() if has}
    return {
        "model_type": "protperf",
        "architectures": [f"ProtperfFor{kind}" for kind, has in kinds.items() if has],
        "auto_map": {"AutoConfig": f"{_MODELING}.ProtperfConfig", **auto},
        "vocab_size": VOCAB_SIZE,
        "torch_dtype": "float32",
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "mask_token_id": MASK,
        # The output weights are those of the embedding, inside the code: there is no second tensor to tie.
        "tie_word_embeddings": False,
        **{name: getattr(config, name) for name in _SHAPES},
    }
