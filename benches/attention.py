"""Time FAVOR+ attention against its bound, exact attention and the same estimator in plain torch, all in one run.

The bound is flop / multiply-add rate + exp / exponential rate, both rates measured on one thread just before and
multiplied by the number of threads. Every result is first compared with f64; if one disagrees, no times are printed.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import bounds
import peers
import report
import torch

import protperf
import protperf.torch

BATCH, HEADS, HEAD_DIM, NUM_FEATURES = 1, 8, 64, 256
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
QUICK = (512, 4096)
TOLERANCE = 1e-5

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Form:
    """One way of calling attention."""

    causal: bool
    backward: bool

    def __str__(self) -> str:
        return ("causal" if self.causal else "noncausal") + (" fwd+bwd" if self.backward else " fwd")

    def bound_ms(self, length: int, flops: float, exps: float) -> float:
        """The least time of f32 arithmetic at these rates per second; the backward pass recomputes the features."""
        flop = bounds.favor_flops(NUM_FEATURES, HEAD_DIM, causal=self.causal, backward=self.backward)
        exp = bounds.favor_exps(NUM_FEATURES, backward=self.backward)
        return 1e3 * BATCH * HEADS * length * (flop / flops + exp / exps)


FORMS = [Form(causal, backward) for backward in (False, True) for causal in (False, True)]


class DisagreementError(Exception):
    """A result disagrees with f64, so its time has no meaning."""


def inputs(length: int) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, all ~ N(0,1), [B,H,L,D]."""
    generator = torch.Generator().manual_seed(length)
    shape = (BATCH, HEADS, length, HEAD_DIM)
    return [torch.randn(shape, generator=generator) for _ in range(4)]


def call(attention: Attention, tensors: list[torch.Tensor], backward: bool) -> list[torch.Tensor]:
    """The output, and with `backward` the gradients of q, k and v."""
    q, k, v, grad = tensors
    if not backward:
        with torch.no_grad():
            return [attention(q, k, v)]
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def compare(name: str, form: Form, found: list[torch.Tensor], truth: list[torch.Tensor], limit: float) -> float:
    """The largest relative error (rms over rms) of output and gradients.

    Raises:
        DisagreementError: it is larger than `limit`.
    """
    errors = [((x.double() - y).norm() / y.norm()).item() for x, y in zip(found, truth, strict=True)]
    if not max(errors) <= limit:
        raise DisagreementError(
            f"{name}, {form}, L={found[0].shape[2]}: relative error {max(errors):.1e} > {limit:.0e}"
        )
    return max(errors)


def methods(form: Form, omega: torch.Tensor) -> dict[str, Attention]:
    """Ours and the peers, as functions of q, k and v."""
    return {
        "protperf": lambda q, k, v: protperf.torch.favor_attention(q, k, v, omega, causal=form.causal),
        "torch linear": lambda q, k, v: peers.chunked_linear(q, k, v, omega, causal=form.causal),
        "torch SDPA": lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=form.causal),
    }


def check(form: Form, tensors: list[torch.Tensor], omega: torch.Tensor) -> float:
    """Compare ours and both peers with f64; return our error."""
    found = {name: call(attention, tensors, form.backward) for name, attention in methods(form, omega).items()}
    doubles = [x.double() for x in tensors]
    truth = call(lambda q, k, v: peers.favor_f64(q, k, v, omega, causal=form.causal), doubles, form.backward)
    compare("torch linear", form, found["torch linear"], truth, 100 * TOLERANCE)
    rows = peers.softmax_rows_f64(*doubles[:3], causal=form.causal)
    compare("torch SDPA", form, [found["torch SDPA"][0][:, :, peers.sampled_rows(doubles[0])]], [rows], TOLERANCE)
    return compare("protperf", form, found["protperf"], truth, TOLERANCE)


def measure(form: Form, length: int, omega: torch.Tensor, rates: dict[str, float], threads: int) -> list[str]:
    """One row of the table."""
    tensors = inputs(length)
    error = check(form, tensors, omega)
    times = report.interleave(
        {
            name: lambda attention=attention: call(attention, tensors, form.backward)
            for name, attention in methods(form, omega).items()
        }
    )
    ours, linear, exact = times["protperf"], times["torch linear"], times["torch SDPA"]
    bound = form.bound_ms(length, threads * rates["flops_one"], threads * rates["exps_one"])
    return [
        str(form),
        str(length),
        f"{bound:.2f}",
        str(ours),
        f"{ours.best / bound:.2f}–{ours.median / bound:.2f}",
        str(linear),
        f"{linear.median / ours.median:.1f}",
        str(exact),
        f"{exact.median / ours.median:.1f}",
        f"{error:.1e}",
    ]


HEADER = ["form", "L", "bound", "protperf", "/ bound", "torch linear", "× ours", "torch SDPA", "× ours", "rel. error"]


def main() -> int:
    """Parse, measure, and print only when everything agreed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--quick", action="store_true", help="two lengths")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    info = protperf.build_info()
    if info["profile"] != "release":
        print("protperf was not built for release; run `make setup`", file=sys.stderr)
        return 1
    torch.set_num_threads(arguments.threads)
    omega = torch.from_numpy(protperf.draw_projection(NUM_FEATURES, HEAD_DIM)).float()
    rates = report.ceilings(arguments.threads)
    rows = []
    try:
        for form in FORMS:
            for length in arguments.lengths or (QUICK if arguments.quick else LENGTHS):
                print(f"{form}, L={length}", file=sys.stderr, flush=True)
                rows.append(measure(form, length, omega, rates, arguments.threads))
    except DisagreementError as error:
        print(f"no figures, because a result disagrees with f64: {error}", file=sys.stderr)
        return 1
    after = report.ceilings(arguments.threads)
    print(f"{report.describe_machine()}, {rates['isa']}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"B={BATCH} H={HEADS} D={HEAD_DIM} M={NUM_FEATURES} f32, q, k, v ~ N(0,1); ms, best–median")
    for when, found in [("before", rates), ("after", after)]:
        print(
            f"ceilings {when}: 1 thread {found['flops_one'] / 1e9:.0f} GFLOP/s, {found['exps_one'] / 1e9:.1f} Gexp/s;"
            f" {arguments.threads} threads together {found['flops_all'] / 1e9:.0f} and {found['exps_all'] / 1e9:.1f}"
        )
    print("\n" + report.markdown(HEADER, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
