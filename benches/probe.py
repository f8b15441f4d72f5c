"""Linear probes on embeddings: what a logistic regression reads from the vectors of a model, next to composition.

    python benches/probe.py location RUN proteins.fa.gz          # a word label=... in each header
    python benches/probe.py structure RUN train.tsv valid.tsv    # columns id, sequence, ss3, resolved

`location` embeds proteins (mean over the residues) and divides them by clusters of relatives, a fifth to be judged by;
classes weigh alike. `structure` embeds residues, and judges H, E and C where `resolved` is 1. The baselines are the
frequencies of the twenty residues, and the residue itself. All are the same regression, by L-BFGS to convergence.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import re
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

import protperf.lm as lm
from protperf import io, relatives
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD

Features = NDArray[np.float32]
Labels = NDArray[np.int64]
_IDENTITY, _SHARE, _SEED = 0.5, 0.2, 42
"""Identity of relatives that stay together, share of the clusters to be judged by, and the seed of their choice."""
_DECAY = 1e-4
"""Of the squared weights, per mean loss."""
_STATES = "HEC"


def regression(features: Features, labels: Labels, asked: Features, *, balanced: bool) -> Labels:
    """Classes of the features that are asked about, by a logistic regression on standardized features."""
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    x, y = torch.from_numpy((features - mean) / deviation), torch.from_numpy(labels)
    counts = torch.bincount(y).float()
    weights = len(y) / (len(counts) * counts) if balanced else torch.ones_like(counts)
    layer = torch.nn.Linear(x.shape[1], len(counts))
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(layer(x), y, weight=weights) + _DECAY * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        found: Labels = layer(torch.from_numpy((asked - mean) / deviation)).argmax(1).numpy()
    return found


def macro_f1(found: Labels, labels: Labels) -> float:
    """The mean over the classes of the harmonic mean of precision and recall."""
    scores = []
    for one in np.unique(labels):
        right = float(((found == one) & (labels == one)).sum())
        scores.append(2 * right / float((found == one).sum() + (labels == one).sum()))
    return float(np.mean(scores))


def location(model: lm.Model, path: str) -> None:
    """Print macro F1 and accuracy of the places of proteins in the cell."""
    records = list(io.scan([path]))
    labelled = [re.search(r"label=(\S+)", record.description) for record in records]
    classes, labels = np.unique([match[1] for match in labelled if match], return_inverse=True)
    if len(labels) < len(records):
        raise SystemExit(f"{path}: a header has no label=...")
    offsets = np.cumsum([0, *map(len, records)])
    clusters = relatives.cluster((np.concatenate([record.tokens for record in records]), offsets), _IDENTITY)
    names = np.random.default_rng(_SEED).permutation(np.unique(clusters))
    judged = np.isin(clusters, names[: round(_SHARE * len(names))])
    print(f"{len(records)} proteins, {len(names)} clusters, {judged.sum()} proteins judged, {len(classes)} classes")
    composition = np.stack([_one_hot(record.tokens).mean(0) for record in records])
    for name, features in (("embeddings", model.embed(records).vectors), ("composition", composition)):
        found = regression(features[~judged], labels[~judged], features[judged], balanced=True)
        share = float((found == labels[judged]).mean())
        print(f"{name}: macro F1 {macro_f1(found, labels[judged]):.3f}, accuracy {share:.3f}")


def structure(model: lm.Model, train: str, valid: str, chains: int) -> None:
    """Print the share of residues whose secondary structure is right."""
    parts = [list(itertools.islice(_chains(path), count)) for path, count in ((train, chains), (valid, chains // 4))]
    for name in ("embeddings", "residue"):
        (known, labels), (asked, judged) = (_residues(model if name == "embeddings" else None, part) for part in parts)
        found = regression(known, labels, asked, balanced=False)
        print(
            f"{name}: Q3 {float((found == judged).mean()):.3f} of {len(judged):,} residues, {len(labels):,} learnt from"
        )


def _chains(path: str) -> Iterator[tuple[str, Labels, NDArray[np.bool_]]]:
    """Sequence, states and whether they are known, chain by chain."""
    lines = b"".join(io.read_bytes(path)).decode().splitlines()
    for row in csv.DictReader(lines, delimiter="\t"):
        states = np.array([_STATES.index(letter) for letter in row["ss3"]], np.int64)
        yield row["sequence"], states, np.array([letter == "1" for letter in row["resolved"]])


def _residues(model: lm.Model | None, chains: list[tuple[str, Labels, NDArray[np.bool_]]]) -> tuple[Features, Labels]:
    known = np.concatenate([resolved for _, _, resolved in chains])
    labels = np.concatenate([states for _, states, _ in chains])[known]
    sequences = [sequence for sequence, _, _ in chains]
    if model is None:
        return np.concatenate([_one_hot(io.encode(sequence)[0]) for sequence in sequences])[known], labels
    found = model.embed([(str(i), sequence) for i, sequence in enumerate(sequences)], per_residue=True)
    return found.vectors[known].astype(np.float32), labels


def _one_hot(tokens: NDArray[np.uint8]) -> Features:
    return (tokens[:, None] == np.arange(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("probe", choices=("location", "structure"))
    parser.add_argument("model")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--chains", type=int, default=1000, help="chains to learn from, four times as many as judged")
    asked = parser.parse_args()
    model = lm.load(asked.model)
    if asked.probe == "location":
        location(model, *asked.files)
    else:
        structure(model, *asked.files, asked.chains)


if __name__ == "__main__":
    main()
