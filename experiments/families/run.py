"""Proteins read left to right and with gaps, from families that were trained on and from others, by attention.

Figure 6 of Choromanski et al. 2021 (arXiv:2009.14794) and its table for TrEMBL: frequencies alone, the Transformer, the
Performer with ReLU and with softmax features, and methods like Linformer and Reformer, all with the same number of
parameters and of steps. Here on a small set: the globins of the demo, or any proteins given by `--fasta`.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import proteins
from learning import IGNORED, Learned, evaluate, train
from results import arguments, choose, print_cost, write_table
from small_model import SmallModel

FREQUENCIES = "frequencies"
NAMES = {
    FREQUENCIES: "frequencies",
    "exact": "Transformer (exact)",
    "relu": "Performer, ReLU",
    "positive": "Performer, softmax",
    "linformer": "Linformer-style",
    "reformer": "Reformer-style",
}
LENGTH, BATCH_SIZE, NUM_FEATURES = 256, 16, 64
READINGS = {"unidirectional": True, "bidirectional": False}


def network(name, causal, **size):
    """A network with as many parameters as the exact one has: what a method adds or saves, its linear layers give."""
    made, other = (_network(x, causal, 4, **size) for x in (name, "exact"))
    more = other.num_parameters() - made.num_parameters()
    wide = more / (2 * size["model_dim"] + 1) / size["num_layers"]
    return _network(name, causal, 4 + wide / size["model_dim"], **size)


def _network(name, causal, times, *, model_dim, num_layers):
    return SmallModel(
        name,
        vocab_size=proteins.VOCAB_SIZE,
        max_length=LENGTH,
        causal=causal,
        num_features=NUM_FEATURES,
        model_dim=model_dim,
        num_layers=num_layers,
        ff_dim=round(times * model_dim),
    )


def by_frequencies(frequencies, batches):
    """What the shares of the residues in the training part say about some batches."""
    targets = np.concatenate([x.targets[x.targets != IGNORED].numpy() for x in batches])
    return Learned(float((targets == frequencies.argmax()).mean()), float(-np.log(frequencies[targets]).mean()))


def rows_of(split, reading, num_steps, **size):
    """One row for each method."""
    causal = READINGS[reading]
    tests = [proteins.once(part, BATCH_SIZE, LENGTH, causal=causal) for part in (split.near, split.far)]
    for name, shown in NAMES.items():
        if name == FREQUENCIES:
            frequencies, count = proteins.residue_frequencies(split.train), 0
            found = [by_frequencies(frequencies, test) for test in tests]
        else:
            model = network(name, causal, **size)
            count = model.num_parameters()
            train(model, proteins.batches(split.train, BATCH_SIZE, LENGTH, causal=causal), num_steps)
            found = [evaluate(model, test) for test in tests]
        cells = [cell for x in found for cell in (f"{100 * x.accuracy:.1f}", f"{x.perplexity:.2f}")]
        yield [reading, shown, f"{count}", *cells]
        print(reading, shown, count, cells, file=sys.stderr, flush=True)


def draw(path, rows):
    """Accuracy by reading, method and families."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(READINGS), figsize=(11, 4), layout="constrained", sharey=True)
    for panel, reading in zip(panels, READINGS, strict=True):
        own = [row for row in rows if row[0] == reading]
        places = np.arange(len(own))
        panel.bar(places - 0.2, [float(row[3]) for row in own], 0.4, label="families of the training")
        panel.bar(places + 0.2, [float(row[5]) for row in own], 0.4, label="held-out families")
        panel.set(title=reading, xticks=places)
        panel.set_xticklabels([row[1] for row in own], rotation=30, ha="right")
    panels[0].set_ylabel("accuracy, %")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main():
    """Run, and write the table and the picture."""
    options = arguments(__doc__.splitlines()[0], fasta=True)
    num_steps = choose(options, quick=1, usual=100, full=3000)
    small, large = {"model_dim": 64, "num_layers": 2}, {"model_dim": 128, "num_layers": 4}
    size = choose(options, quick=small, usual=small, full=large)
    most = choose(options, quick=40_000, usual=200_000, full=20_000_000)
    split = proteins.split(proteins.read(options.fasta, most))
    print("sequences: train, near, far:", *map(len, split), file=sys.stderr)
    rows = [row for reading in READINGS for row in rows_of(split, reading, num_steps, **size)]
    header = ["reading", "method", "parameters", "accuracy %", "perplexity"]
    write_table(options.out / "table.md", [*header, "held-out accuracy %", "held-out perplexity"], rows)
    draw(options.out / "figure.png", rows)
    print_cost()


if __name__ == "__main__":
    main()
