"""What commands share that compute or read records: threads, and what they end with where records were left out.

Apart from `common`, so that commands which only ask start at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys

from protperf.lm.cli.commands import EXIT_REJECTED
from protperf.lm.options import check, option


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ThreadOptions:
    """How many threads compute."""

    threads: int | None = option(
        None,
        "Threads to compute with.",
        short="-j",
        least=1,
        most=4096,
        shown_default="PROTPERF_NUM_THREADS, OMP_NUM_THREADS or SLURM_CPUS_PER_TASK, else the cores allowed",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExitOptions:
    """What a command that reads records ends with."""

    allow_rejects: bool = option(False, "Exit with 0 instead of 5 if records were left out.")

    def __post_init__(self) -> None:
        check(self)

    def code(self, num_rejected: int) -> int:
        """The exit code where so many records were left out."""
        return EXIT_REJECTED if num_rejected and not self.allow_rejects else 0


def set_threads(threads: int | None) -> int:
    """Set the threads of torch and of the kernels: `-j`, else what the environment says, else all cores allowed.

    torch is not loaded for it: where it is loaded later, it reads the number from the environment.
    """
    from protperf.functional import build_info

    if threads is not None:
        os.environ["PROTPERF_NUM_THREADS"] = str(threads)
    chosen = int(build_info()["num_threads"])
    # torch asks MKL, which has a variable of its own, and which takes no more than there are cores unless that is
    # switched off.
    os.environ.update(OMP_NUM_THREADS=str(chosen), MKL_NUM_THREADS=str(chosen), MKL_DYNAMIC="FALSE")
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(chosen)
    return chosen
