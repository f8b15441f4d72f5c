"""The native module as Python sees it; private to the package, whose functions check what these take on trust.

Arrays cross as buffers: float32 or float64 alike for q, k, v and what goes with them, omega and domega in float64.
"""

from collections.abc import Iterator
from os import PathLike
from typing import Any

Array = Any  # an object with a buffer; before Python 3.12 no type says so

__version__: str

def favor_forward(*arrays: Array | None, **options: Any) -> None:
    """q, k, v, omega, out, den: fill out [B,H,L,E] and den [B,H,L,2]; states continue a sequence."""

def favor_backward(*arrays: Array | None, **options: Any) -> None:
    """q, k, v, omega, out, den, grad, dq, dk, dv, domega: fill the last four, given what the forward pass left."""

def softmax_attention(*arrays: Array, **options: Any) -> None:
    """q, k, v, out: fill out [B,H,L,E] with exact attention."""

def merge_states(*arrays_and_value_dim: Any) -> None:
    """a, b, out, value_dim: fill out with the state of two stretches, one after the other; all [B,H,F,E+2]."""

def draw_projection(
    omega: Array, num_features: int, head_dim: int, sampler: str, norm: str, seed: int, stream: tuple[int, int, int]
) -> None:
    """Fill omega [M,D]."""

def _rehearse_panic(checks: int) -> None:
    """Let the checks-th look at the cancel flag from now panic, once; 0 takes it back. For tests."""

def cores_allowed() -> int:
    """Cores that affinity and the control group's quota allow this process."""

def feature_maps() -> tuple[str, ...]:
    """Names of the feature maps."""

def build_info() -> dict[str, Any]:
    """Version, profile, isa, isas, num_threads, target."""

def scan_sequence(sequence: bytes, *, residues: str = "map", name: str = "<sequence>") -> tuple[bytes, int]:
    """Token ids of one sequence, and its flags."""

def sequence_checksums(tokens: Array, offsets: Array, seed: int) -> bytes:
    """CRC-32 of each sequence of packed uint8 tokens with int64 offsets, as uint32."""

def fasta_flags() -> dict[str, int]:
    """Name and bit of each flag."""

def vocabulary() -> tuple[str, ...]:
    """How each token is written, by id."""

class FastaReader:
    """Batches of the records of FASTA inputs, or of tables where columns are named: of sequences, and of ids."""

    def __init__(
        self,
        paths: list[str | PathLike[str]],
        *,
        columns: tuple[str, str | None] | None = None,
        residues: str = "map",
        first_n: int = 0,
        batch_bytes: int = ...,
        memory_map: bool = False,
    ) -> None: ...
    def __iter__(self) -> Iterator[FastaBatch]: ...
    def __next__(self) -> FastaBatch: ...
    def summary(self) -> dict[str, Any]:
        """Counts over all inputs that were read to their end."""

class FastaBatch:
    """Records of one input; `protperf.io.Batch` says what the fields hold."""

    path: str
    ids: list[str]
    descriptions: list[str]
    tokens: bytes
    offsets: bytes
    ordinals: bytes
    lines: bytes
    flags: bytes
    rejected: list[tuple[int, str, int, int, str]]
