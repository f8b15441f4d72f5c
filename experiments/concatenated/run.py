"""Proteins one after the other in rows of 8,192: a Performer against the exact Transformer that takes as long.

Figure 7 (right) of Choromanski et al. 2021 (arXiv:2009.14794): at this length the exact Transformer of the Performer's
size does not fit the accelerator, and one that does, of fewer layers, stays behind. On a processor it is time that has
to fit: the largest of some exact Transformers whose step takes no longer is trained for the same steps.
"""

import itertools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import proteins
from learning import evaluate, loss, processor_seconds, train
from results import arguments, choose, print_cost, write_table
from small_model import SmallModel

PERFORMER = {"model_dim": 64, "num_layers": 4}
EXACT = [{"model_dim": width, "num_layers": layers} for width, layers in ((64, 4), (64, 2), (64, 1), (32, 1), (16, 1))]
NUM_FEATURES = 64


def network(name, length, **size):
    """A small network of proteins."""
    options = {"max_length": length, "causal": True, "num_features": NUM_FEATURES}
    return SmallModel(name, vocab_size=proteins.VOCAB_SIZE, **options, **size)


def seconds_of_step(model, batch):
    """Processor time of a forward and a backward pass, the second of two."""
    return [processor_seconds(lambda: loss(model, batch).backward()) for _ in range(2)][1]


def largest_that_fits(batch, length, seconds):
    """The first of the exact Transformers, from large to small, whose step takes no longer; the last one otherwise."""
    for size in EXACT:
        found = seconds_of_step(network("exact", length, **size), batch)
        print("exact", size, f"{found:.2f} s, Performer {seconds:.2f} s", file=sys.stderr, flush=True)
        if found <= seconds:
            break
    return size, found


def apart(test, model, length):
    """What is learned of the test part when each protein stands alone, with nothing before it."""
    return evaluate(model, proteins.once(test, 16, length, causal=True))


def draw(path, curves):
    """Losses, as means over five steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, losses in curves.items():
        width = max(1, min(5, len(losses)))
        panel.plot(range(width, len(losses) + 1), torch.tensor(losses).unfold(0, width, 1).mean(1), label=label)
    panel.set(xlabel="steps", ylabel="nats per residue, mean of five steps")
    panel.legend()
    figure.savefig(path, dpi=120)


def main():
    """Run, and write the table and the picture."""
    options = arguments(__doc__.splitlines()[0], fasta=True)
    length = choose(options, quick=256, usual=8192, full=8192)
    num_steps = choose(options, quick=2, usual=90, full=1500)
    most = choose(options, quick=20_000, usual=200_000, full=20_000_000)
    split = proteins.split(proteins.read(options.fasta, most))
    rows_of_test = choose(options, quick=1, usual=2, full=4)
    test = list(itertools.islice(proteins.concatenated(split.near, length, seed=1), rows_of_test))
    performer = network("relu", length, **PERFORMER)
    seconds = seconds_of_step(performer, test[0])
    exact_size, exact_seconds = largest_that_fits(test[0], length, seconds)
    runs = {
        "Performer, ReLU": (performer, PERFORMER, seconds),
        "exact": (network("exact", length, **exact_size), exact_size, exact_seconds),
    }
    rows, curves = [], {}
    for name, (model, size, each) in runs.items():
        batches = proteins.concatenated(split.train, length)
        curves[name] = train(model, batches, num_steps)
        found, alone = evaluate(model, test), apart(split.near, model, 256)
        shape = f"{size['num_layers']} x {size['model_dim']}"
        cells = [f"{100 * found.accuracy:.1f}", f"{found.perplexity:.2f}", f"{100 * alone.accuracy:.1f}"]
        rows.append([name, shape, f"{model.num_parameters()}", f"{each:.2f}", *cells])
        print(rows[-1], file=sys.stderr, flush=True)
    header = ["network", "layers x width", "parameters", "processor s per step", "accuracy %", "perplexity"]
    write_table(options.out / "table.md", [*header, "accuracy % of proteins alone"], rows)
    draw(options.out / "figure.png", curves)
    print_cost()


if __name__ == "__main__":
    main()
