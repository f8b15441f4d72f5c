"""Proteins of a FASTA file for small models: families apart, and batches for both ways of learning from them."""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from learning import IGNORED, Batch

from protperf import io, relatives

BOS, EOS, MASK, FIRST_RESIDUE, NUM_RESIDUES = 0, 1, 2, 3, 20
VOCAB_SIZE = len(io.VOCABULARY)


class Split(NamedTuple):
    """Lists of token arrays: `near` are from the families of `train`, `far` from families that are held out."""

    train: list
    near: list
    far: list


def read(path, max_residues=200_000):
    """Token arrays of the records of a file, in its order, up to a number of residues."""
    records = itertools.chain.from_iterable(io.read_tokens(path))
    found, total = [], 0
    for record in records:
        total += len(record)
        if total > max_residues:
            break
        found.append(np.array(record.tokens))
    return found


def split(sequences, identity=0.4, seed=0):
    """Whole families, which are clusters at an identity, and sequences held out.

    Every second family is held out, from the second largest on; of the others a tenth of the sequences, for the test.
    """
    offsets = np.cumsum([0, *map(len, sequences)])
    families = relatives.cluster((np.concatenate(sequences), offsets), identity)
    ids, sizes = np.unique(families, return_counts=True)
    by_size = ids[np.argsort(-sizes, kind="stable")]
    held_out = set(by_size[1::2].tolist())
    far = [x for x, family in zip(sequences, families, strict=True) if family in held_out]
    rest = [x for x, family in zip(sequences, families, strict=True) if family not in held_out]
    order = np.random.default_rng(seed).permutation(len(rest))
    test = max(1, len(rest) // 10)
    return Split([rest[i] for i in order[test:]], [rest[i] for i in order[:test]], far)


def residue_frequencies(sequences):
    """The share of each token among the twenty residues, [V]."""
    counts = np.bincount(np.concatenate(sequences), minlength=VOCAB_SIZE).astype(float)
    counts[:FIRST_RESIDUE] = counts[FIRST_RESIDUE + NUM_RESIDUES :] = 0
    return counts / counts.sum()


def causal_batch(sequences, length):
    """Next-token prediction of BOS x; sequences are cut at `length`. The end is not predicted."""
    tokens, padding = _padded([np.concatenate([[BOS], x])[: length + 1] for x in sequences])
    targets = tokens[:, 1:].masked_fill(padding[:, 1:] | ~_is_residue(tokens[:, 1:]), IGNORED)
    return Batch(tokens[:, :-1], targets, padding[:, :-1])


def masked_batch(sequences, length, generator):
    """15 % of residues are predicted; of these 80 % are masked, 10 % are another residue and 10 % stay."""
    tokens, padding = _padded([np.concatenate([[BOS], x])[:length] for x in sequences])
    draw = torch.rand(tokens.shape, generator=generator)
    chosen = _is_residue(tokens) & ~padding & (draw < 0.15)
    other = torch.randint(FIRST_RESIDUE, FIRST_RESIDUE + NUM_RESIDUES, tokens.shape, generator=generator)
    targets = tokens.masked_fill(~chosen, IGNORED)
    tokens = torch.where(chosen & (draw < 0.135), torch.where(draw < 0.12, MASK, other), tokens)
    return Batch(tokens, targets, padding)


def batches(sequences, batch_size, length, *, causal, seed=0):
    """Endless batches in random order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(sequences), generator=generator).tolist()
        for at in range(0, len(order), batch_size):
            some = [sequences[i] for i in order[at : at + batch_size]]
            yield causal_batch(some, length) if causal else masked_batch(some, length, generator)


def once(sequences, batch_size, length, *, causal):
    """The same batches of all sequences at each call, for tests."""
    generator = torch.Generator().manual_seed(0)
    groups = [sequences[at : at + batch_size] for at in range(0, len(sequences), batch_size)]
    return [causal_batch(x, length) if causal else masked_batch(x, length, generator) for x in groups]


def concatenated(sequences, length, seed=0):
    """Endless batches of one row of `length` tokens: sequences in random order, one after the other, EOS between."""
    generator = np.random.default_rng(seed)
    kept = np.empty(0, np.int64)
    while True:
        while len(kept) <= length:
            order = generator.permutation(len(sequences))
            kept = np.concatenate([kept, *(np.append(sequences[i], EOS) for i in order)])
        row, kept = torch.from_numpy(kept[: length + 1].astype(np.int64)), kept[length:]
        yield Batch(row[None, :-1], row[None, 1:].masked_fill(~_is_residue(row[None, 1:]), IGNORED))


def _is_residue(tokens):
    return (tokens >= FIRST_RESIDUE) & (tokens < FIRST_RESIDUE + NUM_RESIDUES)


def _padded(rows):
    """Rows [B,L] filled up with EOS, and where that is."""
    tensors = [torch.from_numpy(x.astype(np.int64)) for x in rows]
    tokens = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=EOS)
    lengths = torch.tensor([len(x) for x in tensors])
    return tokens, torch.arange(tokens.shape[1]) >= lengths[:, None]
