"""Real processes that start at once: a process that has torch loaded forks one for each job.

Run as a program it is that process: it reads a job a line, answers with the number of the child, then with its status.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any


class Warm:
    """Jobs in processes of their own; statuses as `subprocess` gives them, -9 for one that was killed."""

    def __enter__(self) -> Warm:
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()

    def start(self, job: dict[str, Any]) -> int:
        """Start a job; returns the number of its process."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(job, default=os.fspath) + "\n")
        self._server.stdin.flush()
        return int(self._answer())

    def wait(self) -> int:
        """The status of the job that was started."""
        return int(self._answer())

    def run(self, job: dict[str, Any]) -> int:
        self.start(job)
        return self.wait()

    def command(self, errors: Path, *words: object) -> tuple[int, str]:
        """Status of `protperf WORDS` and what it wrote to its standard error."""
        status = self.run({"words": [str(word) for word in words], "errors": errors})
        return status, errors.read_text()

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


def work(job: dict[str, Any]) -> int:
    """Do a job: a command line, a training run that is started, or one that is resumed.

    With `tick_s`, time is what it takes to look at the clock: a run of a given time is the same on any machine.
    """
    if "words" in job:
        from protperf.lm.cli import main

        descriptor = os.open(job["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        return main(job["words"])
    from protperf.lm.model.config import ModelConfig
    from protperf.lm.training.clock import Clock
    from protperf.lm.training.options import TrainOptions
    from protperf.lm.training.resume import stored_choices
    from protperf.lm.training.run import train_run

    if job["kill_at"] is not None:
        _kill_at_pass(job["kill_at"])
    if job["resume"]:
        config, options = stored_choices(job["run"], {})
    else:
        config, options = ModelConfig.from_mapping(job["config"]), TrainOptions(**job["options"])
    clock = None
    if "tick_s" in job:
        ticks = itertools.count()
        clock = Clock(lambda: next(ticks) * float(job["tick_s"]))
    train_run(job["fasta"], job["run"], config, options, resume=job["resume"], clock=clock)
    return 0


def _kill_at_pass(number: int) -> None:
    """SIGKILL this process at the beginning of a forward pass of training, counted from 0."""
    from torch.nn import Embedding
    from torch.nn.modules.module import register_module_forward_pre_hook

    left = [number]

    def look(module: object, arguments: object) -> None:
        # Every pass embeds its tokens once.
        if isinstance(module, Embedding) and module.training:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    register_module_forward_pre_hook(look)


def _serve() -> None:
    import torch
    import torch._dynamo  # an optimizer loads it, which takes two seconds: here once, and not in each child

    import protperf.lm.cli.train
    import protperf.lm.training.run  # noqa: F401

    torch.set_num_threads(1)
    os.environ["PROTPERF_NUM_THREADS"] = "1"
    # Whoever runs the tests under nohup ignores it, and so would every job.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = work(json.loads(line))
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
