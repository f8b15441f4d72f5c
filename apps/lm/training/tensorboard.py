"""Metrics of a run for TensorBoard, next to `metrics.jsonl`, which has all of them in any case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protperf.errors import MissingPackageError
from protperf.lm.storage.directory import TENSORBOARD


def require() -> None:
    """Check for the package before any work is done.

    Raises:
        MissingPackageError: it is not installed, or cannot be imported.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        text = (
            f"the logger tensorboard needs the package tensorboard ({error}); install it with pip install tensorboard"
        )
        raise MissingPackageError(text) from error


class TensorBoardLog:
    """Writes each number of a line of metrics as a scalar of its step."""

    def __init__(self, run: Path, step: int) -> None:
        """Go on after `step`: what an earlier session wrote of later steps is not shown.

        Raises:
            MissingPackageError: as `require`.
        """
        require()
        from torch.utils.tensorboard import SummaryWriter

        # torch gives its methods no types.
        self._writer: Any = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1 if step else None)

    def add(self, line: Mapping[str, Any]) -> None:
        """Take a line of metrics."""
        for name, value in line.items():
            if name != "step" and value is not None and math.isfinite(value):
                self._writer.add_scalar(name, value, line["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
