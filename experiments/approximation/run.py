"""The error of the attention output against the number of features, by map, sampler and size of the inputs.

Figure 4 of Choromanski et al. 2021 (arXiv:2009.14794), at L = 1024 and D = 16, with what it leaves out: the error of
weighing all keys alike, the closed forms for single weights, and features whose directions are normalised a second time
by sqrt(D / M), which circulate as a reproduction.
"""

import math
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
UNIFORM, TWICE = "uniform average", "{}, normalised twice"


def directions(feature_map, num_features):
    """How many rows omega has: all but the positive map make two features of each."""
    return num_features if feature_map == "positive" else num_features // 2


def estimate(feature_map, sampler, num_features, seed, qkv):
    """The output of one draw."""
    omega = protperf.draw_projection(directions(feature_map, num_features), HEAD_DIM, sampler=sampler, seed=seed)
    return protperf.favor_attention(*qkv, omega, feature_map=feature_map)


def normalised_twice(feature_map, num_features, seed, qkv):
    """The output of features that estimate another kernel for every number of them.

    Their sines and cosines are of 2 pi times the projections, too.
    """
    rows = directions(feature_map, num_features)
    factor = (HEAD_DIM / rows) ** 0.5 * (2 * math.pi if feature_map == "trigonometric" else 1)
    omega = protperf.draw_projection(rows, HEAD_DIM, sampler="iid", seed=seed)
    return protperf.favor_attention(*qkv, omega * factor, feature_map=feature_map)


def errors(sigma, num_samples, length=LENGTH):
    """The median over samples of the mean squared error, by name of the estimate and number of features."""
    found = {}
    for sample in range(num_samples):
        rng = np.random.default_rng(sample)
        q, k = (sigma * rng.standard_normal((1, 1, length, HEAD_DIM)) for _ in range(2))
        qkv = (q, k, rng.standard_normal((1, 1, length, HEAD_DIM)))
        exact = protperf.softmax_attention(*qkv)
        for num_features in FEATURES:
            outs = {f"{m} {s}": estimate(m, s, num_features, sample, qkv) for m in MAPS for s in SAMPLERS}
            for name in MAPS[:2]:
                outs[TWICE.format(name)] = normalised_twice(name, num_features, sample, qkv)
            outs[UNIFORM] = qkv[2].mean(2, keepdims=True)
            for name, out in outs.items():
                found.setdefault((name, num_features), []).append(float(np.mean((out - exact) ** 2)))
    return {key: statistics.median(values) for key, values in found.items()}


def kummer(a, b, z):
    """The confluent hypergeometric function 1F1(a; b; z), by its series; for z < 0 by Kummer's transformation."""
    if z < 0:
        return math.exp(z) * kummer(b - a, b, -z)
    total = term = 1.0
    step = 0
    while abs(term) > 1e-17 * abs(total):
        term *= (a + step) / (b + step) * z / (step + 1)
        total += term
        step += 1
    return total


def closed_form(feature_map, sampler, num_features, x, y):
    """The mean squared error of one weight, in units of the square of exp(x . y), |x| and |y| being scaled inputs."""
    rows = directions(feature_map, num_features)
    # Orthogonal directions come in blocks of D that are independent of each other.
    block = 1 if sampler == "iid" else min(rows, HEAD_DIM)
    plus, minus = float(np.sum((x + y) ** 2)), float(np.sum((x - y) ** 2))
    norms, truth = float(x @ x + y @ y), math.exp(2 * float(x @ y))
    size = -minus if feature_map == "trigonometric" else plus
    shared = (block - 1) * (kummer(HEAD_DIM, HEAD_DIM / 2, size / 2) - math.exp(size))
    if feature_map == "positive":
        own, scale = math.exp(2 * plus) - math.exp(plus), math.exp(-norms)
    else:
        own = (1 - math.exp(size)) ** 2 / 2
        scale = math.exp(norms if feature_map == "trigonometric" else -norms)
    return scale * (own + shared) / rows / truth


def measured(feature_map, sampler, num_features, x, y, num_draws):
    """The same from draws of the library's directions."""
    rows = directions(feature_map, num_features)
    half = float(x @ x + y @ y) / 2
    truth, squares = math.exp(float(x @ y)), []
    for seed in range(num_draws):
        omega = protperf.draw_projection(rows, HEAD_DIM, sampler=sampler, seed=seed)
        weights = {
            "trigonometric": lambda omega=omega: math.exp(half) * np.cos(omega @ (x - y)),
            "positive": lambda omega=omega: math.exp(-half) * np.exp(omega @ (x + y)),
            "hyperbolic": lambda omega=omega: math.exp(-half) * np.cosh(omega @ (x + y)),
        }[feature_map]()
        squares.append((float(weights.mean()) / truth - 1) ** 2)
    return statistics.fmean(squares)


def pair(sigma):
    """Scaled inputs x and y as random rows are on average: of the norm that sigma makes, at a right angle."""
    norm = sigma * HEAD_DIM**0.25
    return norm * np.eye(HEAD_DIM)[0], norm * np.eye(HEAD_DIM)[1]


def of_weights(sigma, num_draws):
    """Rows of the second table: the closed form for each map and sampler that has one, and what is measured."""
    x, y = pair(sigma)
    rows = []
    for feature_map in MAPS:
        for sampler in SAMPLERS[:2]:
            cells = [
                f"{closed_form(feature_map, sampler, m, x, y):.1e} "
                f"({measured(feature_map, sampler, m, x, y, num_draws):.1e})"
                for m in FEATURES
            ]
            rows.append([f"{sigma}", f"{feature_map} {sampler}", *cells])
    return rows


def draw(path, found):
    """One panel for each size of the inputs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(11, 4.5), layout="constrained")
    for panel, (sigma, medians) in zip(panels, found.items(), strict=True):
        for name in dict.fromkeys(name for name, _ in medians):
            dashed = name == UNIFORM or name.endswith("twice")
            panel.loglog(FEATURES, [medians[name, m] for m in FEATURES], "--" if dashed else "-", label=name)
        panel.set(title=f"inputs {sigma} N(0, 1)", xlabel="features M", ylabel="mean squared error of the output")
    panels[-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main():
    """Run, and write the tables and the picture."""
    options = arguments(__doc__.splitlines()[0])
    samples, length = choose(options, quick=(2, 64), usual=(15, LENGTH), full=(15, 4 * LENGTH))
    draws = choose(options, quick=20, usual=10_000, full=100_000)
    found = {sigma: errors(sigma, samples, length) for sigma in SIGMAS}
    names = dict.fromkeys(name for name, _ in found[SIGMAS[0]])
    header = ["sigma", "estimate", *(f"M = {m}" for m in FEATURES)]
    rows = [[f"{sigma}", name, *(found[sigma][name, m] for m in FEATURES)] for sigma in SIGMAS for name in names]
    write_table(options.out / "table.md", header, rows)
    write_table(options.out / "weights.md", header, [row for sigma in SIGMAS for row in of_weights(sigma, draws)])
    draw(options.out / "figure.png", found)
    print_cost()


if __name__ == "__main__":
    main()
