"""ESM-2 as an `Engine`: an encoder with exact attention, read at any length.

A block adds attention of the normed stream, then a feed-forward layer of the normed stream, each with biases. Queries
and keys are rotated by their positions, so that no table ends the length of a protein, and attention forms no matrix of
scores, so that memory grows with the length and not with its square. Where the folder says `token_dropout`, masked
positions are embedded as zeros and all others scaled by (1 - 0.12) / (1 - share of masked positions), as in training,
where 15 % of positions were drawn and 80 % of these masked.

Source: Lin et al. 2023, Science 379:1123; tests compare logits with those of the library transformers.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from protperf.errors import ConfigError
from protperf.lm.alphabet import MASK
from protperf.lm.device import chosen_device
from protperf.lm.engine import MASKED, Borders, Places, Targets, Tokens, of_targets
from protperf.lm.model.esm_folder import EsmFolder
from protperf.lm.model.network import places
from protperf.lm.model.torch_computing import TorchComputing
from protperf.lm.storage import tensor_file
from protperf.lm.storage.plain_file import broken
from protperf.torch import softmax_attention
from protperf.torch.nn.positions import rotate

_MASKED_IN_TRAINING = 0.15 * 0.8
_ROTARY_BASE = 10000.0


class EsmNetwork:
    """The encoder and its language-model head, over packed sequences in the ids of the folder.

    Args:
        tensors: by their names in the folder.
    """

    def __init__(self, folder: EsmFolder, tensors: dict[str, torch.Tensor]) -> None:
        self.folder, self._tensors = folder, tensors
        self.embedding = tensors["esm.embeddings.word_embeddings.weight"]

    def hidden(self, ids: torch.Tensor, cu_seqlens: torch.Tensor, layer: int = -1) -> torch.Tensor:
        """Hidden states [N, C]: 0 the embedding, i after block i, -1 the last, normed: what the head reads."""
        config = self.folder.config
        hidden = self._embed(ids, cu_seqlens)
        rotary = self._rotations(cu_seqlens, len(ids))
        for number in range(config.num_layers if layer < 0 else layer):
            hidden = self._block(f"esm.encoder.layer.{number}", hidden, rotary, cu_seqlens)
        return self._norm("esm.encoder.emb_layer_norm_after", hidden) if layer < 0 else hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [N, vocabulary of the folder] of normed hidden states."""
        features = functional.gelu(self._linear("lm_head.dense", hidden))
        return functional.linear(
            self._norm("lm_head.layer_norm", features), self.embedding, self._tensors["lm_head.bias"]
        )

    def _embed(self, ids: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding[ids]
        if self.folder.token_dropout:
            masked = ids == self.folder.token_ids[MASK]
            lengths = cu_seqlens.diff()
            segment = torch.repeat_interleave(lengths, output_size=len(ids))
            counts = torch.zeros_like(lengths).index_add_(0, segment, masked.to(lengths.dtype))
            kept = 1 - (counts.to(embedded.dtype) / lengths.to(embedded.dtype))[segment]
            embedded = embedded.masked_fill(masked[:, None], 0.0) * ((1 - _MASKED_IN_TRAINING) / kept)[:, None]
        return self._norm("esm.embeddings.layer_norm", embedded) if self.folder.norms_embedding else embedded

    def _block(
        self,
        name: str,
        hidden: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        cu_seqlens: torch.Tensor,
    ) -> torch.Tensor:
        config = self.folder.config
        normed = self._norm(f"{name}.attention.LayerNorm", hidden)
        q, k, v = (
            self._linear(f"{name}.attention.self.{part}", normed)
            .view(len(hidden), config.num_heads, config.head_dim)
            .transpose(0, 1)[None]
            for part in ("query", "key", "value")
        )
        attended = softmax_attention(rotate(q, rotary), rotate(k, rotary), v, cu_seqlens=cu_seqlens)
        hidden = hidden + self._linear(f"{name}.attention.output.dense", attended[0].transpose(0, 1).flatten(1))
        wide = functional.gelu(self._linear(f"{name}.intermediate.dense", self._norm(f"{name}.LayerNorm", hidden)))
        return hidden + self._linear(f"{name}.output.dense", wide)

    def _rotations(self, cu_seqlens: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [N, head_dim / 2] of each position's angles; angles are float32, as in training."""
        dim, device = self.folder.config.head_dim, cu_seqlens.device
        speeds = _ROTARY_BASE ** -(torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
        angles = places(cu_seqlens, count)[:, None].float() * speeds
        return angles.cos().to(self.embedding.dtype), angles.sin().to(self.embedding.dtype)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, self.folder.norm_epsilon)


class EsmEngine(TorchComputing):
    """An ESM-2 model; as `protperf.lm.engine.Engine`, in the mode MASKED alone.

    Probabilities are over the folder's whole vocabulary; a row holds those of our tokens. J is its unknown token.
    """

    def __init__(self, network: EsmNetwork) -> None:
        super().__init__(network.folder.config, network.embedding)
        self.network = network
        self._ids = torch.tensor(network.folder.token_ids, device=network.embedding.device)

    def log_probs(
        self, tokens: Tokens, borders: Borders, mode: int, rows: Places = None, targets: Targets = None
    ) -> NDArray[np.floating]:
        with torch.inference_mode():
            hidden = self._hidden(tokens, borders, mode)
            wanted = hidden if rows is None else hidden[self.tensor(rows)]
            # In parts: the folder's logits of a long sequence are not wanted at once.
            found = [functional.log_softmax(self.network.logits(part), -1)[:, self._ids] for part in wanted.split(4096)]
            return of_targets(np.asarray(torch.cat(found).cpu().numpy()), targets)

    def hidden(self, tokens: Tokens, borders: Borders, mode: int, layer: int = -1) -> NDArray[np.floating]:
        self.check_layer(layer)
        with torch.inference_mode():
            return np.asarray(self._hidden(tokens, borders, mode, layer).cpu().numpy())

    def empty_state(self, num_sequences: int = 1) -> NoReturn:
        raise ConfigError("ESM-2 reads sequences as a whole and has no state to carry on")

    def _hidden(self, tokens: Tokens, borders: Borders, mode: int, layer: int = -1) -> torch.Tensor:
        if mode != MASKED:
            raise ConfigError("ESM-2 was trained with masks only and does not read left to right")
        return self.network.hidden(self._ids[self.tensor(tokens).long()], self.tensor(borders), layer)


def esm_engine(folder: EsmFolder, dtype: str, device: str) -> EsmEngine:
    """The model of a folder on a device of torch.

    Raises:
        CheckpointError: a tensor holds a number that is not finite.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(folder.files.values())):
        for name, tensor in tensor_file.read_tensors(file, None).items():
            if folder.files.get(name) != file:
                continue
            if not bool(tensor.isfinite().all()):
                raise broken(file, f"tensor {name} holds a number that is not finite")
            tensors[name] = tensor.to(device=chosen_device(device), dtype=getattr(torch, dtype))
    return EsmEngine(EsmNetwork(folder, tensors))
