"""Directions that are drawn once or anew, and maps, in training on long text; sines and cosines among them.

Figure 5 (right) of Choromanski et al. 2021 (arXiv:2009.14794) trains on PG-19: sines and cosines are unstable, positive
features that are never drawn anew level off early, and those that are come close to softmax. Here with text made by
rules, which has words that can only be known from far back. A column shows the loss with directions that the network
has never seen: what it has learned of the kernel, and not of one draw.
"""

import itertools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import stories
from learning import evaluate, train
from results import arguments, choose, print_cost, write_table
from small_model import SmallModel

ROWS = [
    ("exact", False),
    ("positive", False),
    ("positive", True),
    ("smreg", False),
    ("smreg", True),
    ("trigonometric", False),
    ("trigonometric", True),
]
NUM_FEATURES, NEVER_SEEN = 64, 10**6


def words_looked_up(model, batches):
    """The share of words of the story that are predicted; their first mentions, which nobody can know, are counted."""
    model.eval()
    right = total = 0
    with torch.no_grad():
        for batch in batches:
            asked = stories.RECALLED[batch.targets]
            right += int((model(batch.tokens).argmax(-1) == batch.targets)[asked].sum())
            total += int(asked.sum())
    return right / total


def run(name, redrawn, length, num_steps, interval):
    """Training losses, and the last cells of the row."""
    model = SmallModel(name, vocab_size=stories.VOCAB_SIZE, max_length=length, causal=True, num_features=NUM_FEATURES)
    # One story is about a third of a row, so what it is about was mentioned first some hundred words before.
    form = {"num_sentences": length // 24}
    losses = train(model, stories.batches(1, length, **form), num_steps, redraw_interval=interval if redrawn else 0)
    test = list(itertools.islice(stories.batches(1, length, seed=1_000_000, **form), 4))
    found, looked_up = evaluate(model, test).nats, words_looked_up(model, test)
    model.redraw(NEVER_SEEN)
    return losses, [found, looked_up, evaluate(model, test).nats]


def draw(path, curves):
    """Losses, as means over ten steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, losses in curves.items():
        width = max(1, min(10, len(losses)))
        means = torch.tensor(losses).unfold(0, width, 1).mean(1)
        panel.plot(range(width, len(losses) + 1), means, "--" if "drawn once" in label else "-", label=label)
    panel.set(xlabel="steps", ylabel="nats per word, mean of ten steps", yscale="log")
    panel.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main():
    """Run, and write the table and the picture."""
    options = arguments(__doc__.splitlines()[0])
    length = choose(options, quick=128, usual=2048, full=8192)
    num_steps = choose(options, quick=3, usual=120, full=2000)
    interval = choose(options, quick=1, usual=10, full=50)
    rows, curves = [], {}
    for name, redrawn in ROWS:
        losses, cells = run(name, redrawn, length, num_steps, interval)
        drawn = "–" if name == "exact" else f"every {interval} steps" if redrawn else "once"
        rows.append([name, drawn, f"{len(losses)}", f"{max(losses):.2f}", *(f"{x:.3f}" for x in cells)])
        curves[name if name == "exact" else f"{name}, drawn {drawn}"] = losses
        print(rows[-1], file=sys.stderr, flush=True)
    header = ["attention", "directions drawn", "steps", "largest loss", "nats per word", "words looked up"]
    write_table(options.out / "table.md", [*header, "nats with unseen directions"], rows)
    draw(options.out / "figure.png", curves)
    print_cost()


if __name__ == "__main__":
    main()
