"""Time whole training steps of 4,096 tokens by engine, next to a plain model of the same widths and to the bound.

A step is loss, gradients, clipping, AdamW. The bound is the arithmetic of a step over the multiply-add rate, measured
on one thread just before and multiplied by the number of threads. Before a time is taken, the loss and the gradients of
our engines must agree with each other, and the loss of the plain model must fall. Each case runs in a process of its
own, in which all models take turns.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import bounds
import numpy as np
import report
import torch
from plain_model import PlainModel
from torch.nn import functional

import protperf
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD, VOCAB_SIZE
from protperf.lm.engine import CAUSAL
from protperf.lm.model.config import ModelConfig
from protperf.lm.model.network import Network
from protperf.lm.training.optimizer import Optimizer, not_finite
from protperf.lm.training.options import TrainOptions

TOKENS = 4096
ENGINES = ("native", "torch")
"""Ours in float32, the fastest first. The last one, composed of torch's operations, judges the others."""
ROUNDED = "native bf16"
"""Ours with products of bf16, which the first one judges."""
PEERS = ("plain f32", "plain compiled", "plain bf16")
CASES = [(size, length) for size in ("nano", "tiny", "small") for length in (128, 256, 1024)] + [("tiny", 4096)]
QUICK = [("nano", 128), ("nano", 1024)]
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
"""Largest relative differences between two engines, of the loss and of all gradients together, both in f32."""
ROUNDED_TOLERANCE = 2e-2
"""The same with products of bf16, of which a unit is 0.4 %."""
_RATE = 1e-3
_SEED = 5


@dataclass(frozen=True)
class Result:
    """A case: tokens per step and the arithmetic per token, and the step times in milliseconds by name of the model."""

    size: str
    length: int
    tokens: int
    flops_per_token: int
    times_ms: dict[str, list[float]]


class DisagreementError(Exception):
    """A model computes something else than it should, so its time has no meaning."""


@dataclass(frozen=True)
class Batch:
    """Sequences of one length, shapes tokens and targets [B, L]; every position has a target."""

    tokens: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def random(cls, length: int) -> "Batch":
        """Random residues, the same ones every time."""
        rng = np.random.default_rng(_SEED)
        shape = (TOKENS // length, length)
        drawn = [rng.integers(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD, shape) for _ in range(2)]
        return cls(*map(torch.from_numpy, drawn))


class OurStep:
    """A step as `protperf train` makes it."""

    def __init__(self, config: ModelConfig, engine: str, batch: Batch, precision: str = "f32") -> None:
        self.network = Network(config, engine, precision).train()
        self._optimizer = Optimizer(self.network.named_parameters(), TrainOptions(steps=1))
        count, length = batch.tokens.shape
        borders = torch.arange(0, count * length + 1, length)
        tokens = batch.tokens.flatten().to(torch.uint8)
        self._arguments = (tokens, borders, CAUSAL, torch.arange(count * length), batch.targets.flatten())
        self._weight = 1 / (count * length)

    def gradients(self) -> float:
        """Compute them; returns the loss, nats per target."""
        loss = self.network.loss(*self._arguments, self._weight)
        loss.backward()
        return loss.item()

    def __call__(self) -> float:
        loss = self.gradients()
        self._optimizer.clip()
        self._optimizer.step(_RATE)
        if (name := not_finite(self.network.named_parameters())) is not None:
            raise DisagreementError(f"{name} is not finite")
        return loss


class PlainStep:
    """A step of the plain model."""

    def __init__(self, config: ModelConfig, name: str, batch: Batch) -> None:
        torch.manual_seed(_SEED)
        c, length = config, batch.tokens.shape[1]
        self._model = PlainModel(VOCAB_SIZE, length, c.num_layers, c.model_dim, c.num_heads, c.ffn_dim)
        self._adamw = torch.optim.AdamW(self._model.parameters(), lr=_RATE, fused=True)
        self._forward = torch.compile(self._model) if name == "plain compiled" else self._model
        self._is_bf16, self._batch = name == "plain bf16", batch

    def __call__(self) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._is_bf16):
            logits = self._forward(self._batch.tokens)
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), self._batch.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return loss.item()


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Difference over size."""
    return float((found.double() - truth.double()).norm() / truth.double().norm())


def check_engines(steps: dict[str, OurStep]) -> None:
    """Compare loss and gradients of every engine with those of the last, and of bf16 with those of the first.

    Raises:
        DisagreementError: they differ by more than rounding.
    """
    losses, gradients = {}, {}
    for name, step in steps.items():
        losses[name] = torch.tensor(step.gradients())
        gradients[name] = torch.cat([p.grad.flatten() for p in step.network.parameters() if p.grad is not None])
        step.network.zero_grad()
    exact = [(name, ENGINES[-1], LOSS_TOLERANCE, GRADIENT_TOLERANCE) for name in ENGINES[:-1]]
    for name, judge, of_loss, of_gradient in [*exact, (ROUNDED, ENGINES[0], ROUNDED_TOLERANCE, ROUNDED_TOLERANCE)]:
        off = relative(losses[name], losses[judge]), relative(gradients[name], gradients[judge])
        if not (off[0] <= of_loss and off[1] <= of_gradient):
            raise DisagreementError(f"{name}: loss differs by {off[0]:.1e} of itself, gradients by {off[1]:.1e}")


def check_falling(name: str, step: Callable[[], float]) -> None:
    """Make some steps.

    Raises:
        DisagreementError: the loss is not finite or has not fallen.
    """
    losses = [step() for _ in range(4)]
    if not (np.isfinite(losses).all() and losses[-1] < losses[0]):
        raise DisagreementError(f"{name}: the loss goes {', '.join(f'{loss:.4f}' for loss in losses)}")


def measure(size: str, length: int, threads: int, seconds: float, peers: list[str]) -> Result:
    """One case, in this process."""
    torch.set_num_threads(threads)
    config = ModelConfig.from_size(size, objective="causal")
    batch = Batch.random(length)
    ours = {name: OurStep(config, name, batch) for name in ENGINES}
    ours[ROUNDED] = OurStep(config, ENGINES[0], batch, "bf16")
    check_engines(ours)
    steps: dict[str, Callable[[], float]] = {**ours, **{name: PlainStep(config, name, batch) for name in peers}}
    for name, step in steps.items():
        check_falling(name, step)
    parameters = sum(p.numel() for p in ours[ENGINES[0]].network.parameters())
    heads = config.num_layers * config.num_heads
    flops = bounds.training_flops(parameters, heads, config.num_features, config.head_dim)
    times = report.interleave(steps, seconds=seconds)
    return Result(size, length, batch.tokens.numel(), flops, {name: [*each.times_ms] for name, each in times.items()})


def row(result: Result, flops: float) -> list[str]:
    """A row of the table; `flops` is the rate that bounds."""
    timings = {name: report.Timing(tuple(times)) for name, times in result.times_ms.items()}
    ours = timings[ENGINES[0]]
    bound_ms = 1e3 * result.tokens * result.flops_per_token / flops

    def speed(timing: report.Timing) -> str:
        return f"{1e3 * result.tokens / timing.median:,.0f} ({1e3 * result.tokens / timing.best:,.0f})"

    cells = [f"{result.size} L={result.length:,}", f"{1e3 * result.tokens / bound_ms:,.0f}", speed(ours)]
    cells.append(f"{bound_ms / ours.median:.0%} ({bound_ms / ours.best:.0%})")
    for name in (ROUNDED, *ENGINES[1:], *PEERS):
        timing = timings.get(name)
        cells += ["–", "–"] if timing is None else [speed(timing), f"{timing.median / ours.median:.2f}"]
    return cells


HEADER = ["case", "bound", ENGINES[0], "of bound"]
HEADER += [cell for name in (ROUNDED, *ENGINES[1:], *PEERS) for cell in (name, "× slower")]


def in_fresh_processes(cases: list[tuple[str, int]], arguments: argparse.Namespace) -> Iterator[Result]:
    """Results of the cases, one after another.

    Raises:
        DisagreementError: from a case.
    """
    # As the command sets it: workers that spin would take the cores from whichever model has its turn.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    for size, length in cases:
        print(f"{size}, L={length}", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--threads", str(arguments.threads), "--seconds", str(arguments.seconds)]
        command += ["--case", f"{size}:{length}", *(["--quick"] if arguments.quick else [])]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise DisagreementError(f"{size}, L={length} ended with exit code {done.returncode}")
        yield Result(**json.loads(done.stdout))


def read_case(text: str) -> tuple[str, int]:
    """A size and a length, such as `nano:128`."""
    size, length = text.split(":")
    return size, int(length)


def main() -> int:
    """Parse, measure, and print only when everything agreed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=read_case, nargs="+", metavar="SIZE:LENGTH")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=6.0, help="time of the steps of one model in a case")
    parser.add_argument("--quick", action="store_true", help="two cases with nano, without the compiled model")
    parser.add_argument("--json", type=Path, help="also append one line per case to this file")
    parser.add_argument("--case", type=read_case, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        peers = [name for name in PEERS if not (arguments.quick and name == "plain compiled")]
        result = measure(*arguments.case, arguments.threads, arguments.seconds, peers)
        print(json.dumps(asdict(result)))
        return 0
    if protperf.build_info()["profile"] != "release":
        print("protperf was not built for release; run `make setup`", file=sys.stderr)
        return 1
    rates = report.ceilings(arguments.threads)
    flops = arguments.threads * rates["flops_one"]
    try:
        results = list(in_fresh_processes(arguments.cases or (QUICK if arguments.quick else CASES), arguments))
    except DisagreementError as error:
        print(f"no figures: {error}", file=sys.stderr)
        return 1
    after = arguments.threads * report.ceilings(arguments.threads)["flops_one"]
    machine = f"{report.describe_machine()}, {rates['isa']}, {arguments.threads} threads, torch {torch.__version__}"
    print(f"{machine}\ntokens/s of a causal training step of {TOKENS:,} tokens, relu; median (best)")
    print(f"products of bf16: {protperf.build_info()['bf16']}")
    print(f"f32 rate that bounds: {flops / 1e9:.0f} GFLOP/s before, {after / 1e9:.0f} after\n")
    print(report.markdown(HEADER, [row(result, flops) for result in results]))
    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as stream:
            for result in results:
                facts = {"bench": "training", "machine": machine, "flops": flops, "flops_after": after}
                stream.write(json.dumps({**facts, **asdict(result)}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
