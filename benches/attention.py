"""Time FAVOR+ attention against its bound and its peers, with the memory that each needs, in one run.

The bound is flop / multiply-add rate + exp / exponential rate, both rates measured on one thread just before and
multiplied by the number of threads. A case, which is a shape, a form and a length, runs in a process of its own, in
which all methods take turns; each result is compared with f64 before it is timed. The allocator keeps what is freed,
which is worth up to twice the speed to peers with temporaries. Rows are printed as they come, in Markdown.
"""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import alone
import bounds
import peers
import pictures
import report
import torch

import protperf
import protperf.torch
from protperf.torch.team import share_threads

BATCH, HEADS = 1, 8
LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
QUICK = (512, 4096)
COMPILED = (1024, 4096)
"""Lengths for which a peer is compiled: that takes longer than all else."""
LONGEST_MS = 20_000.0
"""A method takes no part where its time at the length before says that one call would take longer."""
TOLERANCE = 1e-5
OURS, OURS_BF16 = "protperf", "protperf bf16"
COLUMNS = (OURS, OURS_BF16, *peers.NAMES)


@dataclass(frozen=True)
class Case:
    """What is computed: widths of a head, whether causal and with backward, and the length."""

    head_dim: int
    num_features: int
    causal: bool
    backward: bool
    length: int

    @property
    def form(self) -> str:
        return ("forward", "with backward")[self.backward] + (", causal" if self.causal else "")

    def bound_ms(self, flops: float, exps: float) -> float:
        """The least time of f32 arithmetic at these rates per second; the backward pass recomputes the features."""
        m, d = self.num_features, self.head_dim
        flop = bounds.favor_flops(m, d, causal=self.causal, backward=self.backward)
        exp = bounds.favor_exps(m, backward=self.backward)
        return 1e3 * BATCH * HEADS * self.length * (flop / flops + exp / exps)


@dataclass(frozen=True)
class Measured:
    """One method in one case: times, bytes beyond the inputs, and the relative error (rms over rms)."""

    timing: report.Timing
    peak: int
    error: float


def inputs(case: Case) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, all ~ N(0,1), [B,H,L,D]."""
    generator = torch.Generator().manual_seed(case.length)
    shape = (BATCH, HEADS, case.length, case.head_dim)
    return [torch.randn(shape, generator=generator) for _ in range(4)]


def method(name: str, case: Case, omega: torch.Tensor) -> tuple[peers.Attention, torch.dtype]:
    """Attention of q, k and v, and the type of its tensors."""
    if name in (OURS, OURS_BF16):
        dtype = torch.float32 if name == OURS else torch.bfloat16
        return lambda q, k, v: protperf.torch.favor_attention(q, k, v, omega, causal=case.causal), dtype
    return peers.method(name, omega, causal=case.causal)


def call(attention: peers.Attention, tensors: list[torch.Tensor], backward: bool) -> list[torch.Tensor]:
    """The output, and with `backward` the gradients of q, k and v."""
    q, k, v, grad = tensors
    if not backward:
        with torch.no_grad():
            return [attention(q, k, v)]
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def truth(case: Case, tensors: list[torch.Tensor], omega: torch.Tensor, exact: bool) -> list[torch.Tensor]:
    """In f64, one head at a time: what the estimator gives, or some rows of exact attention."""
    heads = zip(*(x.double().split(1, dim=1) for x in tensors), strict=True)
    if exact:
        return [torch.cat([peers.softmax_rows(*head[:3], causal=case.causal) for head in heads], 1)]
    estimate = peers.estimate_f64(omega, causal=case.causal)
    found = [call(estimate, list(head), case.backward) for head in heads]
    return [torch.cat(parts, 1) for parts in zip(*found, strict=True)]


def errors(case: Case, names: list[str], tensors: list[torch.Tensor], omega: torch.Tensor) -> dict[str, float]:
    """The largest relative error of output and gradients of each method."""
    truths = {exact: truth(case, tensors, omega, exact) for exact in {name in peers.EXACT for name in names}}
    largest = {}
    for name in names:
        attention, dtype = method(name, case, omega)
        found = call(attention, [x.to(dtype) for x in tensors], case.backward)
        if name in peers.EXACT:
            found = [found[0][:, :, peers.sampled_rows(found[0])]]
        pairs = zip(found, truths[name in peers.EXACT], strict=True)
        largest[name] = max(((x.double() - y).norm() / y.norm()).item() for x, y in pairs)
    return largest


def measure(case: Case, names: list[str], threads: int, seconds: float) -> dict[str, Measured]:
    """All methods of a case."""
    peaks = {name: alone.alone(lambda name=name: _peak(case, name, threads)) for name in names}
    times, largest = alone.alone(lambda: _times(case, names, threads, seconds))
    return {name: Measured(times[name], peaks[name], largest[name]) for name in names}


def _peak(case: Case, name: str, threads: int) -> int:
    """The bytes that one call needs beyond its inputs; what libraries load at their first call does not count."""
    if name in peers.COMPILED:
        return 0
    _calls(dataclasses.replace(case, length=min(LENGTHS)), [name], threads)[0][name]()
    return alone.peak_bytes(_calls(case, [name], threads)[0][name])


def _times(
    case: Case, names: list[str], threads: int, seconds: float
) -> tuple[dict[str, report.Timing], dict[str, float]]:
    """The methods in turn, and their errors."""
    alone.keep_memory()
    calls, omega = _calls(case, names, threads)
    found = errors(case, names, inputs(case), omega)
    return report.interleave(calls, seconds=seconds), found


def _calls(
    case: Case, names: list[str], threads: int
) -> tuple[dict[str, Callable[[], list[torch.Tensor]]], torch.Tensor]:
    """Of each method a call, and the directions."""
    torch.set_num_threads(threads)
    # As in a program that was not forked: the parent has computed nothing.
    share_threads()
    omega = torch.from_numpy(protperf.draw_projection(case.num_features, case.head_dim)).float()
    calls = {}
    for name in names:
        attention, dtype = method(name, case, omega)
        tensors = [x.to(dtype) for x in inputs(case)]
        calls[name] = lambda attention=attention, tensors=tensors: call(attention, tensors, case.backward)
    return calls, omega


def takes_part(name: str, case: Case, before: dict[str, Measured]) -> bool:
    """Whether a method is measured in a case, from what it took at half the length."""
    if name in peers.COMPILED and case.length not in COMPILED:
        return False
    if name not in before:
        # It was too slow before, unless this is the first length, or the first for which it is compiled.
        return name in peers.COMPILED or not before
    growth = 4 if name in peers.EXACT else 2
    return before[name].timing.median * growth <= LONGEST_MS


def row(case: Case, bound: float, found: dict[str, Measured]) -> list[str]:
    """A row of the table: medians, the smallest time of ours over the bound, our error and memory."""
    ours = found[OURS]
    plain = max((found[name].peak for name in peers.LINEAR if name in found), default=0)
    shown = [f"{found[name].timing.median:,.1f}" if name in found else "–" for name in COLUMNS]
    return [
        f"{case.length:,}",
        f"{bound:.1f}",
        f"{ours.timing.best / bound:.2f}–{ours.timing.median / bound:.2f}",
        *shown,
        " / ".join(f"{found[name].error:.0e}" if name in found else "–" for name in (OURS, OURS_BF16, peers.OTHER)),
        f"{ours.peak / 2**20:,.0f} / {plain / 2**20:,.0f}",
    ]


HEADER = [
    "L",
    "bound",
    "ours / bound",
    *COLUMNS,
    "error: protperf / bf16 / performer-pytorch",
    "MiB: protperf / linear",
]


def main() -> int:
    """Measure and print; 1 if a result of ours disagreed with f64."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--quick", action="store_true", help="two lengths, nothing compiled")
    parser.add_argument("--threads", type=int, default=len(report.allowed_cores()))
    parser.add_argument("--seconds", type=float, default=1.5, help="per method and case")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of time and memory against length")
    arguments = parser.parse_args()
    if protperf.build_info()["profile"] != "release":
        print("protperf was not built for release; run `make setup`", file=sys.stderr)
        return 1
    rates = report.ceilings(arguments.threads)
    print(f"{report.describe_machine()}, {rates['isa']}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"\nB={BATCH} H={HEADS}, q, k, v ~ N(0,1), f32 unless said; medians in ms. {report.describe(rates)}")
    lengths = arguments.lengths or (QUICK if arguments.quick else LENGTHS)
    names = [name for name in COLUMNS if peers.is_installed(name) and not (arguments.quick and name in peers.COMPILED)]
    drawn: dict[Case, dict[str, Measured]] = {}
    disagreeing = []
    for (d, m), backward, causal in itertools.product([(64, 256), (32, 64)], [False, True], [False, True]):
        print(f"\n### {Case(d, m, causal, backward, 0).form}, D={d}, M={m}\n\n{report.row(HEADER)}")
        print(report.row(["---:"] * len(HEADER)), flush=True)
        before: dict[str, Measured] = {}
        for length in lengths:
            case = Case(d, m, causal, backward, length)
            taking = [name for name in names if takes_part(name, case, before)]
            found = measure(case, taking, arguments.threads, arguments.seconds)
            bound = case.bound_ms(arguments.threads * rates["flops_one"], arguments.threads * rates["exps_one"])
            if not found[OURS].error <= TOLERANCE:
                disagreeing.append(f"{case}: relative error {found[OURS].error:.1e}")
            print(report.row(row(case, bound, found)), flush=True)
            drawn[case], before = found, found
    print(f"\nAfter it: {report.describe(report.ceilings(arguments.threads))}")
    if arguments.pictures:
        pictures.against_length(drawn, COLUMNS, arguments.pictures)
    for case in disagreeing:
        print(f"disagrees with f64: {case}", file=sys.stderr)
    return 1 if disagreeing else 0


if __name__ == "__main__":
    sys.exit(main())
