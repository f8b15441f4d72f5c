"""Time and memory against length, a curve per method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def against_length(found: Mapping[Any, Mapping[str, Any]], names: Sequence[str], folder: Path) -> None:
    """Draw `time.svg` and `memory.svg`: a panel for each form with the widest head, both axes logarithmic."""
    widest = max(case.head_dim for case in found)
    cases = [case for case in found if case.head_dim == widest]
    forms = list(dict.fromkeys(case.form for case in cases))
    quantities = {
        "time": ("milliseconds", lambda x: x.timing.median),
        "memory": ("MiB beyond the inputs", lambda x: x.peak / 2**20),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, (label, value) in quantities.items():
        figure = Figure(figsize=(4 * len(forms), 3.6), layout="constrained")
        for axes, form in zip(figure.subplots(1, len(forms), sharey=True, squeeze=False)[0], forms, strict=True):
            for name in names:
                points = [(c.length, value(found[c][name])) for c in cases if c.form == form and name in found[c]]
                points = [(length, y) for length, y in points if y > 0]
                ours = name.startswith("protperf")
                axes.plot(
                    *zip(*points, strict=True), "-o" if ours else "--.", label=name, lw=2 if ours else 1
                ) if points else None
            axes.set(title=form, xlabel="length", xscale="log", yscale="log")
            axes.set_xscale("log", base=2)
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel(label)
        figure.axes[-1].legend(fontsize="small")
        figure.savefig(folder / f"{file}.svg")
