"""Time and memory of a network against the length, with FAVOR, with exact attention, and with attention that returns v.

Figure 3 of Choromanski et al. 2021 (arXiv:2009.14794): the article's two sizes of network, one sequence, bidirectional,
forward alone and with backward. The network whose attention returns its values (the article's line "X") is what no
attention can be faster than. Times are of the processor, all threads together, which other work disturbs less than the
time on the clock; a peak of memory is that of a process of its own, above what the process had before.
"""

import multiprocessing
import resource
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results import arguments, choose, print_cost, write_table
from small_model import SmallModel

VOCAB_SIZE, NUM_FEATURES = 256, 256
NAMES = {"none": "X", "positive": "FAVOR", "exact": "exact"}
SMALL = {"num_heads": 1, "num_layers": 6, "ff_dim": 64, "model_dim": 64}
REGULAR = {"num_heads": 8, "num_layers": 1, "ff_dim": 2048, "model_dim": 512}


def model_of(size, name):
    """The network and the inputs of a length."""
    return SmallModel(name, vocab_size=VOCAB_SIZE, max_length=0, num_features=NUM_FEATURES, **size)


def step(model, length, backward):
    """One forward pass, and one backward."""
    tokens = torch.arange(length)[None] % VOCAB_SIZE
    with torch.set_grad_enabled(backward):
        loss = model(tokens).logsumexp(-1).mean()
    if backward:
        loss.backward()


def times(size, length, backward, num_turns):
    """The least processor time of some turns in seconds, by name; the three take turns, so noise affects them all."""
    models = {name: model_of(size, name) for name in NAMES}
    found = {name: [] for name in NAMES}
    for _ in range(num_turns + 1):
        for name, model in models.items():
            start = time.process_time()
            step(model, length, backward)
            found[name].append(time.process_time() - start)
    return {name: min(turns[1:]) for name, turns in found.items()}


def peak(size, name, length, backward, answer):
    """Send the MiB by which the peak of this process rises in a step; what a first, short step takes is not counted."""
    model = model_of(size, name)
    step(model, 64, backward)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(model, length, backward)
    answer.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit)


def peak_of_process(context, *what):
    """`peak` in a process of its own, forked from one that has only imported torch."""
    here, there = context.Pipe()
    process = context.Process(target=peak, args=(*what, there))
    process.start()
    found = here.recv()
    process.join()
    return found


def measure(sizes, num_turns):
    """(size, L, backward) -> (seconds, MiB) by name."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["protperf.torch.nn"])
    found = {}
    for label, (size, lengths) in sizes.items():
        for length in lengths:
            for backward in (False, True):
                memory = {name: peak_of_process(context, size, name, length, backward) for name in NAMES}
                found[label, length, backward] = (times(size, length, backward, num_turns), memory)
                print(label, length, backward, found[label, length, backward], file=sys.stderr, flush=True)
    return found


def draw(path, found):
    """Time and memory with backward, a row for each size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = dict.fromkeys(label for label, _, _ in found)
    figure, panels = plt.subplots(len(labels), 2, figsize=(9, 4 * len(labels)), layout="constrained", squeeze=False)
    for row, label in zip(panels, labels, strict=True):
        own = {length: pair for (of, length, backward), pair in found.items() if of == label and backward}
        for at, (panel, what) in enumerate(zip(row, ("processor seconds", "MiB"), strict=True)):
            for name, shown in NAMES.items():
                panel.loglog(list(own), [max(pair[at][name], 1e-3) for pair in own.values()], "o-", label=shown)
            panel.set_xscale("log", base=2)
            panel.set(title=f"{label}, forward and backward", xlabel="length L", ylabel=what)
            panel.legend()
    figure.savefig(path, dpi=120)


def main():
    """Run, and write the table and the picture."""
    options = arguments(__doc__.splitlines()[0])
    small = choose(options, quick=(64, 128), usual=(512, 1024, 2048, 4096, 8192), full=[2**n for n in range(9, 16)])
    regular = choose(options, quick=(64,), usual=(512, 1024, 2048, 4096), full=[2**n for n in range(9, 15)])
    sizes = {"small": (SMALL, small), "regular, one layer": (REGULAR, regular)}
    found = measure(sizes, choose(options, quick=1, usual=2, full=5))
    rows = []
    for (label, length, backward), (seconds, memory) in found.items():
        row = [label, length, "forward and backward" if backward else "forward"]
        row += [f"{1e3 * seconds[name]:.0f}" for name in NAMES]
        row += [f"{seconds['positive'] / seconds['none']:.1f}", f"{seconds['exact'] / seconds['positive']:.1f}"]
        rows.append(row + [f"{memory[name]:.0f}" for name in NAMES])
    header = ["network", "L", "pass", *(f"{x}, ms" for x in NAMES.values()), "FAVOR / X", "exact / FAVOR"]
    write_table(options.out / "table.md", header + [f"{x}, MiB" for x in NAMES.values()], rows)
    draw(options.out / "figure.png", found)
    print_cost()


if __name__ == "__main__":
    main()
