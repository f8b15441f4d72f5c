"""Kernels that are not softmax: which of them a small network of proteins learns with, and which fail.

The appendix of Choromanski et al. 2021 (arXiv:2009.14794) sweeps sigmoid, exp, ReLU, abs, gelu, cos, tanh and identity
on TrEMBL; some ended without a number. Here every activation map of protperf, next to softmax and its estimates, for
the same steps to predict the next residue; `--full` adds maps of the inputs themselves, without random directions.
"""

import math
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import proteins
from learning import evaluate, train
from results import arguments, choose, print_cost, write_table
from small_model import SmallModel

MAPS = ("relu", "relu2", "abs", "square", "elu1", "sigmoid", "exp", "gelu", "tanh", "cos", "identity")
SOFTMAX = ("exact", "positive", "smreg")
LENGTH, BATCH_SIZE, NUM_FEATURES = 256, 16, 64


def without_directions(model):
    """Features of the inputs themselves: directions are the axes."""
    for module in model.modules():
        if hasattr(module, "omega"):
            head_dim = module.omega.shape[-1]
            with torch.no_grad():
                module.omega.copy_(torch.eye(head_dim).expand_as(module.omega))
    return model


def run(name, split, num_steps, *, directions=True):
    """Losses of training, and what was learned."""
    options = {"vocab_size": proteins.VOCAB_SIZE, "max_length": LENGTH, "causal": True}
    head_dim = 16
    if directions:
        model = SmallModel(name, num_features=NUM_FEATURES, **options)
    else:
        model = without_directions(SmallModel(name, num_features=head_dim, **options))
    losses = train(model, proteins.batches(split.train, BATCH_SIZE, LENGTH, causal=True), num_steps)
    found = evaluate(model, proteins.once(split.near, BATCH_SIZE, LENGTH, causal=True))
    return losses, found


def draw(path, curves):
    """Losses, as means over ten steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(8, 5), layout="constrained")
    for at, (label, losses) in enumerate(curves.items()):
        width = max(1, min(10, len(losses)))
        means = torch.tensor(losses).unfold(0, width, 1).mean(1)
        panel.plot(range(width, len(losses) + 1), means, ("-", "--", ":")[at // 10], label=label)
    panel.set(xlabel="steps", ylabel="nats per residue, mean of ten steps")
    panel.legend(fontsize=6, ncols=2)
    figure.savefig(path, dpi=120)


def main():
    """Run, and write the table and the picture."""
    options = arguments(__doc__.splitlines()[0], fasta=True)
    num_steps = choose(options, quick=1, usual=60, full=1500)
    most = choose(options, quick=20_000, usual=200_000, full=20_000_000)
    split = proteins.split(proteins.read(options.fasta, most))
    kinds = choose(options, quick=(True,), usual=(True,), full=(True, False))
    runs = [(name, True) for name in SOFTMAX] + [(name, kind) for kind in kinds for name in MAPS]
    rows, curves = [], {}
    for name, directions in runs:
        losses, found = run(name, split, num_steps, directions=directions)
        kind = "–" if name == "exact" else f"{NUM_FEATURES} random" if directions else "axes"
        curves[name if directions else f"{name}, axes"] = losses
        ends = "yes" if len(losses) == num_steps and math.isfinite(losses[-1]) else f"stopped at {len(losses)}"
        cells = (f"{max(losses):.2f}", f"{found.accuracy:.3f}", f"{found.perplexity:.2f}")
        rows.append([name, kind, ends, *cells])
        print(rows[-1], file=sys.stderr, flush=True)
    header = ["kernel", "directions", "finite to the end", "largest loss", "accuracy", "perplexity"]
    write_table(options.out / "table.md", header, rows)
    draw(options.out / "figure.png", curves)
    print_cost()


if __name__ == "__main__":
    main()
