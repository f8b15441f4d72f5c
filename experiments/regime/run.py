"""The error of every estimate of softmax by the kind of data and the temperature, and what is foretold of it.

No figure of an article: it says which of their estimates is worth having, and where. Relative error of the attention
output against exact softmax, D = 64, L = 128, M = 256.
"""

import math
import sys
from pathlib import Path

import torch

from protperf.torch import softmax_attention
from protperf.torch.nn import attention_core
from protperf.torch.regime import measure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results import arguments, choose, print_cost, write_table

HEAD_DIM, LENGTH, NUM_FEATURES = 64, 128, 256
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
KINDS = ("random", "peaked", "skewed", "shifted")
ESTIMATES = {
    "positive, iid": {"feature_map": "positive", "sampler": "iid"},
    "positive": {"feature_map": "positive"},
    "positive, simplex": {"feature_map": "positive", "sampler": "simplex"},
    "smreg": {"feature_map": "smreg"},
    # Each direction gives two features, so the other maps have as many.
    "trigonometric": {"feature_map": "trigonometric", "num_features": NUM_FEATURES // 2},
    "oprf": {"feature_map": "oprf", "shift": False},
    "saderf": {"feature_map": "saderf", "shift": False},
    "oprf, shifted": {"feature_map": "oprf"},
    "saderf, shifted": {"feature_map": "saderf"},
    "aderf, shifted": {"feature_map": "aderf"},
}


def data(kind, temperature, seed):
    """q, k, v [1,1,L,D] whose scaled rows have squared norms of about the temperature, before axes or means change."""
    gen = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 1, LENGTH, HEAD_DIM, generator=gen, dtype=torch.float64) for _ in range(3))
    if kind == "peaked":
        q = k + 0.5 * torch.randn(1, 1, LENGTH, HEAD_DIM, generator=gen, dtype=torch.float64)
        q = q / 1.25**0.5
    if kind == "skewed":
        axes = torch.linspace(-1, 1, HEAD_DIM, dtype=torch.float64).exp()
        q, k = q * axes, k / axes
    scale = math.sqrt(temperature / HEAD_DIM)
    if kind == "shifted":
        axes = torch.eye(HEAD_DIM, dtype=torch.float64)
        q, k = q + 2 / scale * axes[0], k + 2 / scale * axes[1]
    return q * (scale * HEAD_DIM**0.25), k * (scale * HEAD_DIM**0.25), v


def relative_error(options, temperature, kind, draws):
    """The root of the mean squared error over draws of data and directions, relative to softmax."""
    squares = norms = 0.0
    for seed in range(draws):
        q, k, v = data(kind, temperature, seed)
        exact = softmax_attention(q, k, v)
        options = {"num_features": NUM_FEATURES, **options}
        core = attention_core(HEAD_DIM, 1, seed=seed, dtype=torch.float64, **options)
        if hasattr(core, "observe"):
            core.observe(q, k)
        squares += float((core(q, k, v) - exact).square().sum())
        norms += float(exact.square().sum())
    return math.sqrt(squares / norms)


def table(draws):
    """Rows of the table: what is foretold, then what is found."""
    rows = []
    for kind in KINDS:
        for temperature in TEMPERATURES:
            q, k, _ = data(kind, temperature, 0)
            foretold = measure(q, k, shift=False)
            found = [relative_error(options, temperature, kind, draws) for options in ESTIMATES.values()]
            known = (foretold.size, foretold.uniform_error, foretold.error)
            rows.append([kind, f"{temperature:g}", *(f"{float(x):.2f}" for x in known), *(f"{x:.2f}" for x in found)])
    return rows


def draw(path, rows):
    """One panel for each kind of data."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(KINDS), figsize=(14, 4), layout="constrained", sharey=True)
    for panel, kind in zip(panels, KINDS, strict=True):
        own = [row for row in rows if row[0] == kind]
        panel.loglog(TEMPERATURES, [float(row[3]) for row in own], "k--", label="uniform average")
        for at, name in enumerate(ESTIMATES):
            panel.loglog(TEMPERATURES, [float(row[5 + at]) for row in own], label=name)
        panel.set(title=kind, xlabel="temperature", ylim=(0.03, 10))
    panels[0].set_ylabel("relative error of the output")
    panels[-1].legend(fontsize=6)
    figure.savefig(path, dpi=120)


def main():
    """Run, and write the table and the picture."""
    options = arguments(__doc__.splitlines()[0])
    rows = table(choose(options, quick=1, usual=6, full=40))
    header = ["data", "temperature", "E\\|x+y\\|^2", "uniform average", "foretold for positive", *ESTIMATES]
    write_table(options.out / "table.md", header, rows)
    draw(options.out / "figure.png", rows)
    print_cost()


if __name__ == "__main__":
    main()
