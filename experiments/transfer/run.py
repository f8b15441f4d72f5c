"""Weights that were trained with softmax, moved to FAVOR: how much is lost, and how soon it is regained.

Figure 5 (left) of Choromanski et al. 2021 (arXiv:2009.14794) does so with a model of LM1B, which keeps an accuracy of
0.07 and recovers in a small fraction of the steps. Here with proteins and with text, each with and without norms for
queries and keys, whose temperature decides what can be estimated; and with softmax itself and a network that starts
anew, trained for the same steps.
"""

import itertools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import proteins
import stories
from learning import evaluate, train
from results import arguments, choose, print_cost, write_table
from small_model import SmallModel

MAPS = {"positive": "positive", "smreg": "smreg", "saderf": "saderf, shifted", "exact": "softmax, trained on"}
ANEW = "positive, anew"
NORMS = {"none": None, "queries and keys": 1.0}
NUM_FEATURES = 128


def sources(fasta, max_residues):
    """Name -> vocabulary, endless training batches of a seed, batches for the test."""
    split = proteins.split(proteins.read(fasta, max_residues))
    return {
        "proteins": (
            proteins.VOCAB_SIZE,
            lambda seed: proteins.batches(split.train, 16, 256, causal=True, seed=seed),
            proteins.once(split.near, 16, 256, causal=True),
        ),
        "text": (
            stories.VOCAB_SIZE,
            lambda seed: stories.batches(8, 256, seed=seed),
            list(itertools.islice(stories.batches(8, 256, seed=1_000_000), 4)),
        ),
    }


def observe(model, batches, count=4):
    """Let fitted maps see some queries and keys; nothing else changes."""
    model.train()
    with torch.no_grad():
        for batch in itertools.islice(batches, count):
            model(batch.tokens, batch.padding)


def moved(softmax, name, temperature, vocab_size):
    """The network with another attention and the weights of `softmax`."""
    made = SmallModel(name, vocab_size=vocab_size, **network(temperature))
    made.load_state_dict({**made.state_dict(), **softmax.state_dict()})
    return made


def network(temperature):
    """What all networks have in common."""
    return {"max_length": 256, "causal": True, "num_features": NUM_FEATURES, "temperature": temperature}


def recovery(model, source, num_steps, checks):
    """Accuracy after 0 steps and after those in `checks`."""
    _, batches, test = source
    found = [evaluate(model, test).accuracy]

    def check(step, current):
        if step in checks:
            found.append(evaluate(current, test).accuracy)

    train(model, batches(1), num_steps, learning_rate=1e-3, after=check)
    return found


def rows_of(name, source, steps, further, checks):
    """Rows of the table for one source."""
    vocab_size, batches, test = source
    for norm, temperature in NORMS.items():
        softmax = SmallModel("exact", vocab_size=vocab_size, **network(temperature))
        train(softmax, batches(0), steps)
        start = evaluate(softmax, test).accuracy
        models = {shown: moved(softmax, of, temperature, vocab_size) for of, shown in MAPS.items()}
        models[ANEW] = SmallModel("positive", vocab_size=vocab_size, **network(temperature))
        for shown, model in models.items():
            observe(model, batches(2))
            found = recovery(model, source, further, checks)
            print(name, norm, shown, start, found, file=sys.stderr, flush=True)
            yield [name, norm, shown, f"{start:.3f}", *(f"{x:.3f}" for x in found)]


def draw(path, rows, checks):
    """Accuracy against the steps of training on, one panel for each source and norm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = list(dict.fromkeys((row[0], row[1]) for row in rows))
    figure, panels = plt.subplots(1, len(titles), figsize=(4 * len(titles), 4), layout="constrained")
    for panel, title in zip(panels, titles, strict=True):
        for row in rows:
            if (row[0], row[1]) == title:
                panel.plot([0, *checks], [float(x) for x in row[4:]], "o-", label=row[2])
        panel.axhline(float(next(row[3] for row in rows if (row[0], row[1]) == title)), color="black", ls="--")
        panel.set(title=f"{title[0]}, norm: {title[1]}", xlabel="steps after the move", ylabel="accuracy")
    panels[-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main():
    """Run, and write the table and the picture."""
    options = arguments(__doc__.splitlines()[0], fasta=True)
    steps = choose(options, quick=2, usual=200, full=2000)
    checks = choose(options, quick=(1, 2), usual=(3, 10, 30), full=(5, 20, 60, 200, 500))
    data = sources(options.fasta, choose(options, quick=20_000, usual=200_000, full=20_000_000))
    found = [rows_of(name, x, steps, checks[-1], checks) for name, x in data.items()]
    rows = [row for rows in found for row in rows]
    header = ["data", "norm", "attention", "accuracy with softmax", "after the move", *(f"{n} steps" for n in checks)]
    write_table(options.out / "table.md", header, rows)
    draw(options.out / "figure.png", rows, checks)
    print_cost()


if __name__ == "__main__":
    main()
