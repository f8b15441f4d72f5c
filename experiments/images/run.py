"""Pictures of 64 x 64 x 3 values, predicted one by one: Performers and a Reformer-style network of twice the layers.

Figure 7 (left) of Choromanski et al. 2021 (arXiv:2009.14794): ImageNet64 in rows of 12,288 values, where a Performer of
6 layers does what a Reformer of 12 does. Here the pictures are cut from the photograph of Grace Hopper (in the public
domain) that matplotlib ships: the left part to train, the right part to test.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from learning import Batch, evaluate, processor_seconds, train
from results import arguments, choose, print_cost, write_table
from small_model import SmallModel

LEVELS, CHANNELS, START = 256, 3, 256
"""Tokens are levels of brightness, and one that a picture begins with."""
SCALES = (1.0, 0.5, 0.25)


def photograph():
    """[height,width,3], from 0 to 255."""
    with get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB").copy()


def tiles(side):
    """Pictures [N,side,side,3] of the left two thirds, at any place, and of the right third, next to each other."""
    train_part, test_part = [], []
    for scale in SCALES:
        image = photograph()
        image = np.asarray(image.resize([round(x * scale) for x in image.size], Image.Resampling.LANCZOS))
        border = image.shape[1] - max(side, image.shape[1] // 3)
        for top in range(0, image.shape[0] - side + 1, side // 2):
            train_part += [image[top : top + side, x : x + side] for x in range(0, border - side + 1, side // 4)]
        for top in range(0, image.shape[0] - side + 1, side):
            test_part += [image[top : top + side, x : x + side] for x in range(border, image.shape[1] - side + 1, side)]
    return np.stack(train_part), np.stack(test_part)


def batch(pictures):
    """Rows of values, predicted from those before: pixel by pixel, red, green and blue of each."""
    values = torch.from_numpy(pictures.reshape(len(pictures), -1).astype(np.int64))
    return Batch(torch.cat([torch.full((len(values), 1), START), values[:, :-1]], 1), values)


def batches(pictures, seed=0):
    """Endless batches of one picture."""
    generator = np.random.default_rng(seed)
    while True:
        yield batch(pictures[generator.integers(len(pictures), size=1)])


def levels_in_order(model):
    """Levels that are close begin with rows that are close, in what is read and in what is predicted."""
    dim = model.embedding.weight.shape[1]
    angles = torch.arange(LEVELS)[:, None] / LEVELS * torch.pi * torch.arange(dim // 2)
    with torch.no_grad():
        for rows in (model.embedding.weight, model.logits.weight):
            rows[:LEVELS] = 0.1 * torch.cat([angles.cos(), angles.sin()], 1)
    return model


def bits_by_left_neighbour(train_part, test_part):
    """Bits per value of a table of counts: how much a channel differs from that of the pixel to the left."""
    counts = np.ones((CHANNELS, 2 * LEVELS - 1))
    for channel in range(CHANNELS):
        steps = np.diff(train_part[..., channel].astype(int), axis=2)
        counts[channel] += np.bincount(steps.ravel() + LEVELS - 1, minlength=2 * LEVELS - 1)
    shares = counts / counts.sum(1, keepdims=True)
    steps = np.diff(test_part.astype(int), axis=2) + LEVELS - 1
    return float(np.mean([-np.log2(shares[c][steps[..., c]]).mean() for c in range(CHANNELS)]))


def bits_by_level(train_part, test_part):
    """Bits per value when each level has the share that it has in training."""
    counts = 1 + np.bincount(train_part.ravel(), minlength=LEVELS)
    return float(-np.log2(counts / counts.sum())[test_part.ravel()].mean())


def draw(path, curves):
    """Bits per value in training, as means over five steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, losses in curves.items():
        width = max(1, min(5, len(losses)))
        means = torch.tensor(losses).unfold(0, width, 1).mean(1) / np.log(2)
        panel.plot(range(width, len(losses) + 1), means, label=label)
    panel.set(xlabel="steps of one picture", ylabel="bits per value, mean of five steps")
    panel.legend()
    figure.savefig(path, dpi=120)


def main():
    """Run, and write the table and the picture."""
    options = arguments(__doc__.splitlines()[0])
    side = choose(options, quick=16, usual=64, full=64)
    num_steps = choose(options, quick=2, usual=60, full=3000)
    layers = choose(options, quick=1, usual=1, full=3)
    train_part, test_part = tiles(side)
    chosen = test_part[:: max(1, len(test_part) // choose(options, quick=1, usual=6, full=24))]
    rows = [
        ["shares of the levels", "–", "–", "–", f"{bits_by_level(train_part, chosen):.2f}"],
        ["difference to the pixel on the left", "–", "–", "–", f"{bits_by_left_neighbour(train_part, chosen):.2f}"],
    ]
    curves = {}
    for name, num_layers in (("relu", layers), ("positive", layers), ("smreg", layers), ("reformer", 2 * layers)):
        length = side * side * CHANNELS
        shape = {"num_layers": num_layers, "axes": (side, side, CHANNELS), "num_features": 64}
        model = levels_in_order(SmallModel(name, vocab_size=LEVELS + 1, max_length=length, causal=True, **shape))
        seconds = processor_seconds(
            lambda model=model, name=name: curves.update({name: train(model, batches(train_part), num_steps)})
        )
        bits = evaluate(model, [batch(x[None]) for x in chosen]).nats / np.log(2)
        each = f"{seconds / num_steps:.2f}"
        rows.append([name, f"{num_layers}", f"{model.num_parameters()}", each, f"{bits:.2f}"])
        print(rows[-1], file=sys.stderr, flush=True)
    header = ["attention", "layers", "parameters", "processor s per step", "bits per dimension"]
    write_table(options.out / "table.md", header, rows)
    draw(options.out / "figure.png", curves)
    print_cost()


if __name__ == "__main__":
    main()
