"""The native engine against torch's: the same answers for every model, in any piece, and without torch at all."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import environment
from conftest import STEADY, small_config
from machine import HANG_S
from training import small_options, synthetic, trainer

from protperf import build_info, lm
from protperf.errors import CheckpointError, ConfigError, OutOfMemory, ShapeError
from protperf.lm.engine import CAUSAL, MASKED
from protperf.lm.loading import load_run
from protperf.lm.model.config import ATTENTIONS, ModelConfig
from protperf.lm.model.native_engine import NativeEngine
from protperf.lm.model.network import Network
from protperf.lm.model.torch_engine import TorchEngine
from protperf.lm.storage import checkpoint
from protperf.lm.storage.expected import OPTIMIZER_STATE, ExpectedTensors
from protperf.network import Network as NativeNetwork

PROMISED = 1e-5
LENGTHS = (1, 2, 63, 64, 65, 130)
ODD = {"num_layers": 2, "model_dim": 19, "num_heads": 3, "head_dim": 6, "ffn_dim": 29, "num_features": 12}


def saved(folder: Path, config: ModelConfig) -> tuple[Path, Network]:
    """A step of a network whose weights are far from where training starts, and the network."""
    network = Network(config, engine="torch").eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("norm.weight", "log_temperature")):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            elif "embedding" in name:
                parameter *= 20
            else:
                parameter *= 1.5
    folder.mkdir(exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return checkpoint.save(folder, 3, config.to_mapping(), tensors, {}, dict), network


def pair(folder: Path, dtype: str = "float32", **choices: object) -> tuple[NativeEngine, TorchEngine]:
    config = ModelConfig.from_mapping({**ODD, **choices})
    step, network = saved(folder, config)
    return NativeEngine(step, config, dtype), TorchEngine(network.to(getattr(torch, dtype)))


def batch(lengths: tuple[int, ...] = LENGTHS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 29, sum(lengths)).astype(np.uint8), np.cumsum([0, *lengths])


def nats(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    return float(np.abs(ours.astype(np.float64) - theirs).max(initial=0.0))


def allowed(theirs: np.ndarray, exact: np.ndarray) -> float:
    """How far from float64 an answer in float32 may be: twice as far as torch's, and four units in the last place."""
    return float(2 * np.abs(theirs - exact).max() + 4 * np.spacing(np.float32(np.abs(exact).max())))


@pytest.mark.parametrize("attention", STEADY)
@pytest.mark.parametrize("mode", [MASKED, CAUSAL])
def test_answers_are_those_of_torch_and_as_near_to_float64(attention: str, mode: int, tmp_path: Path) -> None:
    choices = {"attention": attention}
    if attention in ("trigonometric", "fourier"):
        # Sums of cosines that nearly cancel have no correct digits in float32: more of them cancel less.
        choices["num_features"] = 200  # type: ignore[assignment]
    native, composed = pair(tmp_path / "f32", **choices)
    double, truth = pair(tmp_path / "f64", "float64", **choices)
    tokens, borders = batch()
    exact = truth.log_probs(tokens, borders, mode)
    assert nats(double.log_probs(tokens, borders, mode), exact) < 1e-12
    ours, theirs = native.log_probs(tokens, borders, mode), composed.log_probs(tokens, borders, mode)
    assert np.abs(ours - exact).max() <= allowed(theirs, exact)
    for layer in range(-1, native.config.num_layers + 1):
        expected = truth.hidden(tokens, borders, mode, layer)
        ours, theirs = native.hidden(tokens, borders, mode, layer), composed.hidden(tokens, borders, mode, layer)
        assert np.abs(ours - expected).max() <= allowed(theirs, expected), layer
        assert nats(double.hidden(tokens, borders, mode, layer), expected) < 1e-11, layer


ANSWERS = """
import json, sys
import numpy as np
from pathlib import Path
from protperf.lm.engine import CAUSAL, MASKED
from protperf.lm.model.config import ModelConfig
from protperf.lm.model.native_engine import NativeEngine
engine = NativeEngine(Path(sys.argv[1]), ModelConfig.from_mapping(json.loads(sys.argv[2])))
borders = np.array(json.loads(sys.argv[3]))
tokens = np.frombuffer(bytes(json.loads(sys.argv[4])), np.uint8)
answers = [engine.log_probs(tokens, borders, mode) for mode in (MASKED, CAUSAL)]
answers.append(engine.empty_state(len(borders) - 1).advance(tokens, borders))
sys.stdout.buffer.write(np.concatenate(answers).tobytes())
"""


def in_a_process(step: Path, config: ModelConfig, **variables: str) -> np.ndarray:
    """Masked and causal answers for a batch, and those of a state, computed in a process of its own."""
    words = [json.dumps(value) for value in (config.to_mapping(), *(part.tolist() for part in reversed(batch())))]
    result = subprocess.run(
        [sys.executable, "-c", ANSWERS, step, *words],
        capture_output=True,
        env={**environment(), **variables},
        timeout=HANG_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    return np.frombuffer(result.stdout, np.float32).reshape(3 * sum(LENGTHS), 29)


@pytest.mark.parametrize("attention", ["relu", "softmax", "exact"])
def test_every_instruction_set_and_number_of_threads(attention: str, tmp_path: Path) -> None:
    config = small_config(attention=attention)
    step, network = saved(tmp_path, config)
    tokens, borders = batch()
    modes = (MASKED, CAUSAL, CAUSAL)
    theirs, exact = (
        np.concatenate([TorchEngine(net).log_probs(tokens, borders, mode) for mode in modes])
        for net in (network, copy.deepcopy(network).double())
    )
    for isa in build_info()["isas"]:
        one = in_a_process(step, config, PROTPERF_ISA=isa, PROTPERF_NUM_THREADS="1")
        assert np.abs(one - exact).max() <= allowed(theirs, exact), isa
    for threads in ("2", "3", "4"):
        found = in_a_process(step, config, PROTPERF_ISA=isa, PROTPERF_NUM_THREADS=threads)
        assert found.tobytes() == one.tobytes(), threads


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_pieces_and_single_tokens_give_what_the_whole_gives(attention: str, tmp_path: Path) -> None:
    native, composed = pair(tmp_path, "float64", attention=attention)
    tokens, borders = batch((50, 71))
    whole = composed.log_probs(tokens, borders, CAUSAL)
    streams = [native.hidden(tokens, borders, CAUSAL, layer) for layer in (-1, 1)]
    first, second = tokens[:50], tokens[50:]
    for sizes in ((1, 1), (7, 64), (50, 3)):
        state, at = native.empty_state(2), [0, 0]
        hidden_state = native.empty_state(2)
        while at != [50, 71]:
            ends = [min(50, at[0] + sizes[0]), min(71, at[1] + sizes[1])]
            parts = [first[at[0] : ends[0]], second[at[1] : ends[1]]]
            part, cuts = np.concatenate(parts), np.array([0, len(parts[0]), len(parts[0]) + len(parts[1])])
            places = np.r_[at[0] : ends[0], 50 + at[1] : 50 + ends[1]]
            layer = 1 if len(part) % 2 else -1
            hidden = hidden_state.advance_hidden(part, cuts, layer)
            assert nats(hidden, streams[layer == 1][places]) < 1e-10
            rows = np.arange(len(part))[::-1].copy()
            assert nats(state.advance(part, cuts, rows)[::-1], whole[places]) < 1e-10
            at = ends
            assert state.positions.tolist() == at
    # Sequence 1 twice, in front of sequence 0.
    chosen = state.select([1, 1, 0])
    found = chosen.advance(np.r_[first[:5], second[:5]], np.array([0, 5, 10, 10]))
    alone = composed.log_probs(np.r_[second, first[:5]], np.array([0, 76]), CAUSAL)
    assert nats(found[:5], alone[71:]) < 1e-10
    assert chosen.positions.tolist() == [76, 76, 50]
    assert state.positions.tolist() == [50, 71]


def test_arguments_are_refused_and_leave_the_engine_usable(tmp_path: Path) -> None:
    native, _ = pair(tmp_path)
    tokens, borders = batch()
    before = native.log_probs(tokens, borders, MASKED)
    for bad in (np.r_[tokens[:-1], np.uint8(29)], np.full(len(tokens), 255, np.uint8)):
        with pytest.raises(ConfigError, match="tokens hold"):
            native.log_probs(bad, borders, MASKED)
    for cuts in ([0], [0, 3], [1, len(tokens)], [0, 5, 4, len(tokens)], [0, len(tokens), 2**62], []):
        with pytest.raises(ShapeError, match="borders"):
            native.log_probs(tokens, np.array(cuts, np.int64), MASKED)
    for row in (-1, len(tokens), 2**62):
        with pytest.raises(ConfigError, match="rows hold"):
            native.log_probs(tokens, borders, MASKED, np.array([row]))
    for layer in (-2, 3, 2**40):
        with pytest.raises(ConfigError, match="layer is"):
            native.hidden(tokens, borders, MASKED, layer)
    with pytest.raises(ConfigError, match="indices hold"):
        native.empty_state(2).select([2])
    assert native.log_probs(tokens[:0], borders[:1], MASKED).shape == (0, 29)
    assert native.log_probs(tokens, borders, MASKED).tobytes() == before.tobytes()


def test_more_states_than_memory_holds_are_an_error(tmp_path: Path) -> None:
    native, _ = pair(tmp_path, attention="exact")
    with pytest.raises(OutOfMemory):
        native.empty_state(2**58)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_tensors_that_a_configuration_implies_are_those_of_its_network(attention: str) -> None:
    config = small_config(attention=attention)
    network, expected = Network(config), ExpectedTensors(config)
    assert expected.network == {name: ("F32", tuple(t.shape)) for name, t in network.state_dict().items()}
    moments = {f"{name}.{key}" for name, _ in network.named_parameters() for key in OPTIMIZER_STATE}
    assert set(expected.trainer) == moments
    for name, parameter in network.named_parameters():
        assert expected.trainer[f"{name}.step"] == ("F32", ())
        assert expected.trainer[f"{name}.exp_avg"] == ("F32", tuple(parameter.shape))


# -- Loading


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("native")
    trainer(folder / "run", synthetic(folder / "proteins.fasta"), small_options(steps=3)).fit(lambda line: None)
    return folder / "run"


def test_the_engine_is_native_on_a_cpu_and_torch_where_it_is_asked_for(run: Path) -> None:
    assert [load_run(run).engine.name, load_run(run, device="cpu").engine.name] == ["native", "native"]
    assert load_run(run, engine="torch").engine.name == "torch"
    assert load_run(run, "float64").engine.dtype == "float64"
    with pytest.raises(ConfigError, match="native"):
        load_run(run, device="cuda", engine="native")
    with pytest.raises(ConfigError, match="choose one of auto, native, torch"):
        lm.load(run, engine="numpy")


def test_scores_of_both_engines_agree(run: Path, fasta: Path) -> None:
    native, composed = lm.load(run), lm.load(run, engine="torch")
    for method in ("ll", "pll"):
        for deterministic in (False, True):
            rows = zip(
                native.score(fasta, method=method, deterministic=deterministic),
                composed.score(fasta, method=method, deterministic=deterministic),
                strict=True,
            )
            for ours, theirs in rows:
                assert dataclasses.astuple(ours)[:4] == dataclasses.astuple(theirs)[:4]
                assert abs(ours.ll_per_residue - theirs.ll_per_residue) <= PROMISED


def test_a_step_whose_file_disappears_is_named(run: Path, tmp_path: Path) -> None:
    config = load_run(run).engine.config
    for name in ("manifest.json", "config.json", "model.safetensors", "trainer.safetensors"):
        step = tmp_path / name / "step-3"
        step.mkdir(parents=True)
        for each in (run / "step-3").iterdir():
            if each.name != name:
                (step / each.name).write_bytes(each.read_bytes())
        with pytest.raises(CheckpointError) as caught:
            NativeNetwork(step, config.model_dim, config.num_layers)
        assert Path(os.fspath(caught.value.filename)) == step / name
        assert caught.value.strerror == "No such file or directory"


# -- Without torch

HIDDEN = """
import sys
sys.modules["torch"] = None
"""


def without_torch(code: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDDEN + code, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANG_S,
    )


def test_reading_a_model_needs_no_torch(run: Path, fasta: Path, tmp_path: Path) -> None:
    code = "from protperf.lm.cli import main; sys.exit(main(sys.argv[1:]))"
    for words in (
        ["score", run, fasta],
        ["score", run, fasta, "--method", "pll", "-v"],
        ["variants", run, "K2A", "K2del", "--wt", "MKVA"],
        ["scan", run, "MKVA", "--strategy", "masked", "--heatmap", tmp_path / "x.png"],
        ["info", run],
        ["embed", run, fasta, "-o", tmp_path / "x.npz", "--mode", "causal"],
        ["generate", run, "-n", 2, "--max-len", 20, "--exclude", fasta],
        ["generate", run, "--template", "MKV__", "--infill"],
    ):
        result = without_torch(code, *words)
        assert result.returncode == 0, result.stderr
    code = "from protperf import lm; print(*[row.ll for row in lm.load(sys.argv[1]).score(sys.argv[2])])"
    result = without_torch(code, run, fasta)
    assert result.returncode == 0, result.stderr
    here = [row.ll for row in lm.load(run).score(fasta)]
    assert np.allclose(np.array(result.stdout.split(), float), here, rtol=0, atol=1e-4)


def test_doctor_checks_a_model_without_torch(run: Path) -> None:
    result = without_torch("from protperf.lm.cli import main; sys.exit(main(sys.argv[1:]))", "doctor", "--model", run)
    assert result.returncode == 0, result.stderr
    assert "not installed" in result.stdout
    assert "ll, float32 against float64" in result.stdout


def test_asking_for_torch_without_it_says_so(run: Path, fasta: Path) -> None:
    code = "from protperf.lm.cli import main; sys.exit(main(sys.argv[1:]))"
    result = without_torch(code, "score", run, fasta, "--engine", "torch")
    assert result.returncode != 0
    assert "--engine torch needs torch, which is not installed" in result.stderr


def test_scoring_does_not_load_torch_where_it_is_installed(run: Path, fasta: Path) -> None:
    code = (
        "import sys; from protperf import lm; lm.load(sys.argv[1]).score(sys.argv[2]); sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, run, fasta], env=environment(), timeout=HANG_S, check=False)
    assert result.returncode == 0


# -- Processes and signals

FORKED = """
import os, signal, sys, warnings
import torch
torch.set_num_threads(2)
torch.randn(512, 512) @ torch.randn(512, 512)
os.environ["PROTPERF_NUM_THREADS"] = "2"
from protperf import lm
model = lm.load(sys.argv[1])
before = [row.ll for row in model.score(sys.argv[2])]
child = os.fork()
if child == 0:
    signal.alarm(120)
    warnings.simplefilter("error")
    found = [[row.ll for row in each.score(sys.argv[2])] for each in (model, lm.load(sys.argv[1]))]
    os._exit(0 if found == [before, before] else 3)
_, status = os.waitpid(child, 0)
after = [row.ll for row in model.score(sys.argv[2])]
sys.exit(os.waitstatus_to_exitcode(status) or int(after != before))
"""


def test_a_forked_child_scores_the_same_bits(run: Path, fasta: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FORKED, run, fasta],
        env=environment(),
        timeout=HANG_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


INTERRUPTED = """
import signal, sys, time
import numpy as np
from protperf import lm
from protperf.lm.engine import CAUSAL
# Seconds of the processor: a machine that becomes busy, or quiet, changes neither the alarm nor the wait.
signal.signal(signal.SIGPROF, signal.default_int_handler)
engine = lm.load(sys.argv[1])._loaded.engine
tokens, borders = np.full(400_000, 5, np.uint8), np.array([0, 400_000])
state = engine.empty_state()
start = time.process_time()
engine.log_probs(tokens, borders, CAUSAL)
whole = time.process_time() - start
print(whole)
for call in (lambda: engine.log_probs(tokens, borders, CAUSAL), lambda: state.advance(tokens, borders)):
    due = time.process_time() + 0.2 * whole
    signal.setitimer(signal.ITIMER_PROF, 0.2 * whole)
    try:
        call()
        sys.exit("the call was over before the signal")
    except KeyboardInterrupt:
        print(time.process_time() - due)
try:
    state.advance(tokens[:1], borders[:1])
    sys.exit("half a state was accepted")
except ValueError as error:
    assert "start again" in str(error) or "borders" in str(error), error
engine.log_probs(tokens[:1000], np.array([0, 1000]), CAUSAL)
"""


def test_an_interrupt_is_answered_inside_of_a_call(run: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, run],
        env=environment(),
        timeout=HANG_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    whole, *waits = [float(word) for word in result.stdout.split()]
    print(f"\nanswered within {', '.join(f'{1000 * wait:.0f} ms' for wait in waits)}")
    assert len(waits) == 2
    # Compared with the same call left alone.
    assert max(waits) < whole / 2, (whole, waits)
