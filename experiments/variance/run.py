"""The variance of estimates of exp(x . y) against the angle between x and y and their length.

Figure 2 of Choromanski et al. 2021 (arXiv:2009.14794): where sines and cosines are better, and where positive features
are. Closed forms for independent directions, in units of the square of the truth, with a Monte Carlo check of each.
"""

import math
import sys
from pathlib import Path

import numpy as np

import protperf

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results import arguments, choose, print_cost, write_table

ANGLES = (0.0, 0.25, 0.5, 0.75, 1.0)  # times pi
LENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0)
HEAD_DIM = 16


def closed_forms(length, angle):
    """Variance times M, relative to exp(x.y)^2, of |x| = |y| = length; the hyperbolic map with M / 2 pairs."""
    plus = 2 * length**2 * (1 + math.cos(angle))
    minus = 2 * length**2 * (1 - math.cos(angle))
    truth = math.exp(2 * length**2 * math.cos(angle))
    norms = math.exp(2 * length**2)
    return {
        "trigonometric": norms * (1 - math.exp(-minus)) ** 2 / 2 / truth,
        "positive": (math.exp(2 * plus) - math.exp(plus)) / norms / truth,
        "hyperbolic": (math.exp(plus) - 1) ** 2 / norms / truth,
    }


def monte_carlo(length, angle, num_draws):
    """The same from draws of one direction (a pair of opposite ones for the hyperbolic map)."""
    omega = protperf.draw_projection(num_draws, HEAD_DIM, sampler="iid", seed=1)
    x, y = np.zeros(HEAD_DIM), np.zeros(HEAD_DIM)
    x[0], y[:2] = length, (length * math.cos(angle), length * math.sin(angle))
    norms, truth = math.exp(length**2), math.exp(x @ y)
    estimates = {
        "trigonometric": norms * np.cos(omega @ (x - y)),
        "positive": np.exp(omega @ (x + y)) / norms,
        "hyperbolic": np.cosh(omega @ (x + y)) / norms,
    }
    pairs = {"trigonometric": 1, "positive": 1, "hyperbolic": 2}
    return {name: float(pairs[name] * np.mean((e / truth - 1) ** 2)) for name, e in estimates.items()}


def ratios(count):
    """log10 of the variance of sines and cosines over that of the best positive features, [lengths, angles]."""
    lengths, angles = np.linspace(0.05, 2.5, count), np.linspace(0.0, math.pi, count)
    grid = [[closed_forms(length, angle) for angle in angles] for length in lengths]
    floor = 1e-300
    return (
        lengths,
        angles,
        [
            [
                math.log10(max(x["trigonometric"], floor)) - math.log10(max(min(x["positive"], x["hyperbolic"]), floor))
                for x in row
            ]
            for row in grid
        ],
    )


def draw(path, count):
    """The map of ratios."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lengths, angles, found = ratios(count)
    figure, panel = plt.subplots(figsize=(6, 4.5), layout="constrained")
    image = panel.pcolormesh(angles / math.pi, lengths, np.clip(found, -6, 6), cmap="RdBu", vmin=-6, vmax=6)
    panel.contour(angles / math.pi, lengths, found, levels=[0.0], colors="black")
    panel.set(xlabel="angle / pi", ylabel="|x| = |y|", title="log10 variance, sines and cosines / positive")
    figure.colorbar(image)
    figure.savefig(path, dpi=120)


def main():
    """Run, and write the table and the picture."""
    options = arguments(__doc__.splitlines()[0])
    draws = choose(options, quick=2_000, usual=200_000, full=5_000_000)
    rows = []
    for length in LENGTHS:
        for share in ANGLES:
            exact, found = closed_forms(length, share * math.pi), monte_carlo(length, share * math.pi, draws)
            rows.append([f"{length}", f"{share} pi", *(f"{exact[name]:.1e} ({found[name]:.1e})" for name in exact)])
    write_table(options.out / "table.md", ["length", "angle", "sines and cosines", "positive", "hyperbolic"], rows)
    draw(options.out / "figure.png", 20 if options.quick else 120)
    print_cost()


if __name__ == "__main__":
    main()
