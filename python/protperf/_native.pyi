"""The native module as Python sees it; private to the package, whose functions check what these take on trust.

Arrays cross as buffers. q, k, v, out and their gradients are all float32 or all float64, or uint16 that holds what
`stored` says, bfloat16 or float16. den and states have the type that is computed in: float64 for float64, else
float32. omega, parameters and their gradients are float64; cu_seqlens int64, key_padding_mask uint8. A test compares
this file with the module.
"""

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

Array = Any  # an object with a buffer; before Python 3.12 no type says so
# Those of `protperf.LogLinear`, in its order; or buffers for their gradients.
Parameters = tuple[Array | None, Array | None, Array | None, Array | None, Array | None]

__version__: str

def favor_forward(
    q: Array,
    k: Array,
    v: Array,
    omega: Array | None,
    out: Array,
    den: Array,
    *,
    feature_map: str = "positive",
    kernel_epsilon: float | None = None,
    parameters: Parameters | None = None,
    causal: bool = False,
    cu_seqlens: Array | None = None,
    key_padding_mask: Array | None = None,
    state_in: Array | None = None,
    state_out: Array | None = None,
    stored: str | None = None,
    backend: str = "auto",
    isa: str | None = None,
    num_threads: int = 1,
) -> None:
    """Fill out [B,H,L,E], den [B,H,L,2] and, where it is given, state_out [B or num_segments,H,F,2+E]."""

def favor_backward(
    q: Array,
    k: Array,
    v: Array,
    omega: Array | None,
    out: Array,
    den: Array,
    grad: Array,
    dq: Array,
    dk: Array,
    dv: Array,
    domega: Array | None,
    *,
    feature_map: str = "positive",
    kernel_epsilon: float | None = None,
    parameters: Parameters | None = None,
    dparameters: Parameters | None = None,
    causal: bool = False,
    cu_seqlens: Array | None = None,
    key_padding_mask: Array | None = None,
    state_in: Array | None = None,
    state_out: Array | None = None,
    grad_state: Array | None = None,
    dstate_in: Array | None = None,
    stored: str | None = None,
    backend: str = "auto",
    isa: str | None = None,
    num_threads: int = 1,
) -> None:
    """Fill dq, dk, dv and, where they are given, domega or dparameters and dstate_in.

    out, den and state_out are what the forward pass left; grad and grad_state are what arrives at out and state_out.
    """

def softmax_attention(
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    *,
    causal: bool = False,
    cu_seqlens: Array | None = None,
    key_padding_mask: Array | None = None,
    stored: str | None = None,
    isa: str | None = None,
    num_threads: int = 1,
) -> None:
    """Fill out [B,H,L,E] with exact attention."""

def block_trace_sizes(
    model_dim: int, num_heads: int, head_dim: int, ffn_dim: int
) -> tuple[int, int, int, int, int, int]:
    """Elements per token of each buffer of a trace."""

# Weights: attention_norm, qkv, log_temperature, omega, out, ffn_norm, gate_up, down; gradients leave omega out. Places:
# cosines, sines, cu_seqlens. A trace: qkv, inverses, attended, denominators, middle, gate_up.
Arrays = tuple[Array | None, ...]

def block_forward(
    output: Array,
    weights: Arrays,
    places: Arrays,
    trace: Arrays | None,
    *,
    num_heads: int,
    feature_map: str | None,
    causal: bool,
    dropout: float = 0.0,
    key: int = 0,
    precision: str = "f32",
    isa: str | None = None,
    num_threads: int = 1,
) -> None:
    """Apply a block to output [N,C], which holds the input, in place; fill the trace where there is one."""

def block_backward(
    grad: Array,
    hidden: Array,
    weights: Arrays,
    gradients: Arrays,
    places: Arrays,
    trace: Arrays,
    *,
    num_heads: int,
    feature_map: str | None,
    causal: bool,
    dropout: float = 0.0,
    key: int = 0,
    precision: str = "f32",
    isa: str | None = None,
    num_threads: int = 1,
) -> None:
    """Fill the gradients of the weights, and replace grad [N,C], which arrived at the output, by that of hidden."""

def head_loss(
    hidden: Array,
    norm: Array,
    embedding: Array,
    positions: Array,
    targets: Array,
    weight: float,
    gradients: Arrays | None,
    *,
    precision: str = "f32",
    isa: str | None = None,
    num_threads: int = 1,
) -> float:
    """`weight * sum of -log p(target)` in nats; fills the gradients of hidden, norm and embedding."""

def merge_states(a: Array, b: Array, out: Array, value_dim: int) -> None:
    """Fill out with the state of both sets of keys; all [..,2+E]."""

def draw_projection(
    omega: Array, num_features: int, head_dim: int, sampler: str, norm: str, seed: int, stream: tuple[int, int, int]
) -> None:
    """Fill omega [M,D]."""

def _rehearse_panic(checks: int) -> None:
    """Make the checks-th look at the cancel flag from now panic, once; 0 cancels it.

    For tests: only where the module was built with the cargo feature `rehearse-panic`.
    """

def cores_allowed() -> int:
    """Cores that affinity and the control group's quota allow this process."""

class FeatureMap:
    """A row of the registry of feature maps; `protperf._feature_maps` says what the fields are."""

    name: str
    family: str
    default_epsilon: float
    projections_per_row: int
    features_per_row: int

def feature_maps() -> tuple[FeatureMap, ...]:
    """The registry, one record per map."""

def samplers() -> tuple[str, ...]:
    """Names of the ways to draw directions, the usual one first."""

def norms() -> tuple[str, ...]:
    """Names of the kinds of norms that directions have, the usual one first."""

def backends() -> tuple[str, ...]:
    """Names of the backends, `auto` first."""

def chosen_backend(name: str, isa: str | None = None, stored: str | None = None) -> str:
    """The name of the backend that a name chooses: that of another one for `auto` alone."""

class GpuAdapter:
    """An adapter of this machine; `protperf.gpu.Adapter` describes the fields."""

    index: int
    name: str
    kind: str
    interface: str
    driver: str
    max_binding: int
    is_chosen: bool

def gpu_adapters() -> tuple[tuple[GpuAdapter, ...], str | None]:
    """Every adapter, and why none of them would be used, if so."""

def gpu_traffic() -> tuple[int, int, int, int, int]:
    """Bytes carried to the open GPU, how often numbers were read back, how many bytes, and the bytes that it holds."""

class GpuTensor:
    """A tensor on the GPU; `elements` are their bytes, uint8, row by row."""

    shape: tuple[int, ...]

    def __init__(self, elements: Array, shape: Sequence[int], dtype: str) -> None: ...
    def read(self, out: Array) -> None:
        """Fill the bytes of the elements, uint8, row by row."""

def gpu_draw_projection(
    num_features: int, head_dim: int, sampler: str, norm: str, seed: int, stream: tuple[int, int, int]
) -> GpuTensor:
    """Omega [num_features, head_dim], float32, which stays on the GPU."""

def gpu_favor(
    q: GpuTensor,
    k: GpuTensor,
    v: GpuTensor,
    omega: Array | None,
    *,
    feature_map: str = "positive",
    kernel_epsilon: float | None = None,
    parameters: Parameters | None = None,
    causal: bool = False,
    cu_seqlens: Array | None = None,
    key_padding_mask: Array | None = None,
    state: GpuTensor | None = None,
    with_state: bool = False,
) -> tuple[GpuTensor, GpuTensor | None]:
    """Output and, where it is wanted, final state, which stay on the GPU."""

def gpu_merge_states(a: GpuTensor, b: GpuTensor) -> GpuTensor:
    """The state of the keys of two states [B,H,F,2+E], float32, which stays on the GPU."""

def use_team(parallel: int, max_threads: int) -> None:
    """Lets short calls of this thread run on the workers of an OpenMP library, by the addresses of two functions."""

def build_info() -> dict[str, Any]:
    """Version, profile, isa, isas, bf16, num_threads, target."""

def scan_sequence(sequence: bytes, *, residues: str = "map", name: str = "<sequence>") -> tuple[bytes, int]:
    """Token ids of one sequence, and its flags."""

def sequence_checksums(tokens: Array, offsets: Array, seed: int) -> bytes:
    """CRC-32 of each sequence of packed uint8 tokens with int64 offsets, as uint32."""

def count_alignment_neighbours(codes: Array, identity: float, num_threads: int) -> bytes:
    """The number of rows that resemble each row of codes [N,L] uint8, as uint32."""

def place_in_profile(
    sequences: tuple[Array, Array], scores: Array, gaps: tuple[float, float], num_threads: int
) -> tuple[bytes, bytes]:
    """The column of each residue (int32, -1: none) and the score of each sequence (float32).

    Packed uint8 letters and int64 offsets, scores [L,K] float32, costs of a gap's first residue and of each other.
    """

def fit_pairwise_columns(
    codes: Array,
    weights: Array,
    first: int,
    fields: Array,
    couplings: Array,
    penalties: tuple[float, float],
    num_threads: int,
) -> None:
    """Fill fields [C,20] and couplings [C,L,20,20] float32 of the columns from `first` on, which is a multiple of 3.

    Codes [N,L] uint8, of which 20 and more are gaps, weights [N] float32; penalties of fields and of couplings.
    """

def cluster_sequences(sequences: tuple[Array, Array], identity: float, num_threads: int) -> bytes:
    """The cluster of each sequence of packed tokens and offsets, as uint32."""

def count_sequence_relatives(sequences: tuple[Array, Array], identity: float, num_threads: int) -> bytes:
    """The number of relatives of each sequence, as uint32."""

def nearest_sequences(
    queries: tuple[Array, Array], targets: tuple[Array, Array], identity: float, num_threads: int
) -> tuple[bytes, bytes]:
    """Index (int64, -1 without one) and identity (float64) of the nearest target of each query."""

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

class FileBytes:
    """The bytes of one input after decompression, in pieces."""

    def __init__(self, path: str | PathLike[str]) -> None: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def __next__(self) -> bytes: ...

class Network:
    """A network of one verified step; `protperf.network` says what its methods take and fill."""

    def __init__(
        self,
        step: str | PathLike[str],
        dtype: str = "float32",
        device: str = "cpu",
        *,
        isa: str | None = None,
        num_threads: int = 1,
    ) -> None: ...
    def log_probs(
        self,
        tokens: Array,
        borders: Array,
        causal: bool,
        rows: Array | None,
        targets: Array | None,
        out: Array,
        *,
        num_threads: int = 1,
    ) -> None:
        """Fill out [num_rows, vocabulary], or [num_rows] with what the targets have."""

    def hidden(
        self, tokens: Array, borders: Array, causal: bool, layer: int, out: Array, *, num_threads: int = 1
    ) -> None:
        """Fill out [N, model_dim]."""

    def pooled(
        self,
        tokens: Array,
        borders: Array,
        causal: bool,
        layer: int,
        pools: Array,
        out: Array,
        *,
        num_threads: int = 1,
    ) -> None:
        """Fill out [num_pools, model_dim], float64; pools [num_pools, 5] are those of `protperf.network.Pool`."""

    def empty_state(self, num_sequences: int) -> NetworkState:
        """The state of sequences of which nothing has been read."""

class NetworkState:
    """What left-to-right reading carries on."""

    def positions(self) -> bytes:
        """Tokens that each sequence has read, as int64."""

    def select(self, indices: Array) -> NetworkState:
        """Copies of the states of some sequences."""

    def advance(
        self,
        tokens: Array,
        borders: Array,
        rows: Array | None,
        targets: Array | None,
        out: Array,
        *,
        num_threads: int = 1,
    ) -> None:
        """Read on; fill out as `Network.log_probs` does."""

    def advance_hidden(self, tokens: Array, borders: Array, layer: int, out: Array, *, num_threads: int = 1) -> None:
        """Read on; fill out [N, model_dim]."""

    def advance_pooled(
        self, tokens: Array, borders: Array, layer: int, pools: Array, out: Array, *, num_threads: int = 1
    ) -> None:
        """Read on; fill out as `Network.pooled` does."""
