"""The error of the attention output against the number of features, by map, sampler and size of the inputs.

Figure 4 of Choromanski et al. 2021 (arXiv:2009.14794), at L = 1024 and D = 16, with what it leaves out: the error of
weighing all keys alike, and that of features whose directions are normalised a second time by sqrt(D / M), which
circulates as a reproduction.
"""

import statistics
import sys
from pathlib import Path

import numpy as np

import protperf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results import arguments, choose, print_cost, write_table

LENGTH, HEAD_DIM = 1024, 16
SIGMAS = (0.5, 1.0)
FEATURES = (16, 32, 64, 128, 256)
MAPS = ("trigonometric", "positive", "hyperbolic")
SAMPLERS = ("iid", "orthogonal", "simplex")
UNIFORM, TWICE = "uniform average", "positive, normalised twice"


def estimate(feature_map, sampler, num_features, seed, qkv):
    """The output of one draw; the hyperbolic map makes two features of each direction, so it has half of those."""
    rows = num_features // 2 if feature_map == "hyperbolic" else num_features
    omega = protperf.draw_projection(rows, HEAD_DIM, sampler=sampler, seed=seed)
    return protperf.favor_attention(*qkv, omega, feature_map=feature_map)


def normalised_twice(num_features, seed, qkv):
    """The output of features that estimate another kernel for every number of them."""
    omega = protperf.draw_projection(num_features, HEAD_DIM, sampler="iid", seed=seed)
    return protperf.favor_attention(*qkv, omega * (HEAD_DIM / num_features) ** 0.5)


def errors(sigma, num_samples, length=LENGTH):
    """The median over samples of the mean squared error, by name of the estimate and number of features."""
    found = {}
    for sample in range(num_samples):
        rng = np.random.default_rng(sample)
        q, k = (sigma * rng.standard_normal((1, 1, length, HEAD_DIM)) for _ in range(2))
        qkv = (q, k, rng.standard_normal((1, 1, length, HEAD_DIM)))
        exact = protperf.softmax_attention(*qkv)
        for num_features in FEATURES:
            outs = {(m, s): estimate(m, s, num_features, sample, qkv) for m in MAPS for s in SAMPLERS}
            outs = {f"{m} {s}": out for (m, s), out in outs.items()}
            outs |= {TWICE: normalised_twice(num_features, sample, qkv), UNIFORM: qkv[2].mean(2, keepdims=True)}
            for name, out in outs.items():
                found.setdefault((name, num_features), []).append(float(np.mean((out - exact) ** 2)))
    return {key: statistics.median(values) for key, values in found.items()}


def draw(path, found):
    """One panel for each size of the inputs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(11, 4.5), layout="constrained")
    for panel, (sigma, medians) in zip(panels, found.items(), strict=True):
        for name in dict.fromkeys(name for name, _ in medians):
            dashed = name in (UNIFORM, TWICE)
            panel.loglog(FEATURES, [medians[name, m] for m in FEATURES], "--" if dashed else "-", label=name)
        panel.set(title=f"inputs {sigma} N(0, 1)", xlabel="features M", ylabel="mean squared error of the output")
    panels[-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main():
    """Run, and write the table and the picture."""
    options = arguments(__doc__.splitlines()[0])
    samples, length = choose(options, quick=(2, 64), usual=(15, LENGTH), full=(15, 4 * LENGTH))
    found = {sigma: errors(sigma, samples, length) for sigma in SIGMAS}
    names = dict.fromkeys(name for name, _ in found[SIGMAS[0]])
    rows = [[f"{sigma}", name, *(found[sigma][name, m] for m in FEATURES)] for sigma in SIGMAS for name in names]
    write_table(options.out / "table.md", ["sigma", "estimate", *(f"M = {m}" for m in FEATURES)], rows)
    draw(options.out / "figure.png", found)
    print_cost()


if __name__ == "__main__":
    main()
