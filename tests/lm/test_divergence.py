"""A loss, gradient or weight that is not finite ends a run at once; no such state is saved, resumed from or scored."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_config
from training import final_digests, losses, small_options, synthetic, trainer
from warm import Warm

from protperf.errors import CheckpointError, DataError, DivergenceError
from protperf.lm import load
from protperf.lm.loading import load_run
from protperf.lm.storage import checkpoint, tensor_file
from protperf.lm.training.optimizer import not_finite
from protperf.lm.training.resume import newest_step, stored_choices
from protperf.lm.training.run import train_run
from protperf.lm.training.trainer import Trainer

SICK_STEP = 5


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as server:
        yield server


def strict_lines(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics as a strict reader of JSON takes them."""

    def refuse(text: str) -> float:
        raise ValueError(f"{text} is not JSON")

    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def all_finite(step: Path) -> bool:
    files = ("model.safetensors", "trainer.safetensors")
    return all(tensor_file.first_not_finite(step / name) is None for name in files)


def poison_weights(one: Trainer) -> None:
    one.loop.network.norm.weight.data.fill_(math.nan)


def poison_gradient(one: Trainer) -> None:
    one.loop.network.norm.weight.register_hook(lambda gradient: gradient * math.inf)


def poison_moment(one: Trainer) -> None:
    """The loss and the gradient stay finite, and the update is too large for a number."""
    for key, value in (("exp_avg", 3e38), ("exp_avg_sq", 0.0)):
        one.loop.optimizer.state[one.loop.network.norm.weight][key].fill_(value)


@pytest.mark.parametrize(
    ("poison", "named"),
    [
        (poison_weights, f"the loss of step {SICK_STEP} is nan"),
        (poison_gradient, f"the gradient norm of step {SICK_STEP} is nan"),
        (poison_moment, f"step {SICK_STEP} made norm.weight not finite"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_run_stops_at_the_step_that_is_not_finite_and_keeps_the_one_before(
    poison: Callable[[Trainer], None], named: str, tmp_path: Path, fasta: Path
) -> None:
    one = trainer(tmp_path / "run", fasta, small_options(steps=12))

    def report(line: dict[str, Any]) -> None:
        if line["step"] == SICK_STEP - 1 and "val_loss" in line:
            # After the state of this step was checked, before the next one is made.
            later.append(one)

    later: list[Trainer] = []
    save = one._save

    def saving(event: Any) -> None:
        save(event)
        if later:
            poison(later.pop())

    one._save = saving  # type: ignore[method-assign]
    with pytest.raises(DivergenceError) as caught:
        one.fit(report)
    text = str(caught.value)
    assert named in text
    assert "try a lower lr (it is 0.001)" in text
    assert f"step-{SICK_STEP - 1}, the last healthy checkpoint, is kept" in text
    assert isinstance(caught.value, ArithmeticError)
    steps = checkpoint.steps(tmp_path / "run")
    assert steps[0] == SICK_STEP - 1
    assert all(all_finite(checkpoint.verify(tmp_path / "run" / f"step-{step}").path) for step in steps)
    assert strict_lines(tmp_path / "run")[-1]["step"] == SICK_STEP - 1
    # What is kept is the run as it would have been: it goes on from there.
    again = trainer(tmp_path / "run", fasta, small_options(steps=12))
    again.restore(checkpoint.verify(tmp_path / "run" / f"step-{steps[0]}"))
    again.fit(lambda line: None)
    golden = trainer(tmp_path / "golden", fasta, small_options(steps=12))
    golden.fit(lambda line: None)
    assert losses(tmp_path / "run") == losses(tmp_path / "golden")
    assert final_digests(tmp_path / "run") == final_digests(tmp_path / "golden")


def test_a_state_that_is_not_finite_is_never_saved_even_when_a_signal_asks_for_it(tmp_path: Path, fasta: Path) -> None:
    one = trainer(tmp_path / "run", fasta, small_options(steps=12))
    one.loop.optimizer.state[one.loop.network.norm.weight]["exp_avg_sq"].fill_(math.inf)
    one.stop_signal = 15
    with pytest.raises(DivergenceError, match=r"norm\.weight\.exp_avg_sq is not finite after step 0.*no checkpoint"):
        one.fit(lambda line: None)
    assert checkpoint.steps(tmp_path / "run") == []


def test_a_perplexity_beyond_every_number_is_null_and_the_run_goes_on(tmp_path: Path, fasta: Path) -> None:
    """Its logarithm, the loss, is finite. It was a traceback before the save."""
    one = trainer(tmp_path / "run", fasta, small_options(steps=1))
    one.loop.network.embedding.weight.data.mul_(1e5)
    figures = one.fit(lambda line: None)
    assert 710 < figures["val_loss"] < math.inf
    assert figures["val_perplexity"] == math.inf
    line = strict_lines(tmp_path / "run")[-1]
    assert line["val_loss"] == figures["val_loss"]
    assert (line["val_perplexity"], line["val_perplexity_masked"]) == (None, None)
    assert checkpoint.steps(tmp_path / "run") == [1]


def test_a_validation_that_is_not_finite_stops_the_run_before_the_save(tmp_path: Path, fasta: Path) -> None:
    one = trainer(tmp_path / "run", fasta, small_options(steps=9))
    measure = one.loop.validation.measure

    def overflowing(network: Any) -> dict[str, float]:
        figures = measure(network)
        return {**figures, "val_loss": math.inf} if one.loop.progress.step == 3 else figures

    one.loop.validation.measure = overflowing  # type: ignore[method-assign]
    with pytest.raises(DivergenceError, match=r"validation loss after step 3 is inf; .*step-2, the last healthy"):
        one.fit(lambda line: None)
    assert checkpoint.steps(tmp_path / "run")[0] == 2


def test_the_command_ends_in_1_with_one_line_that_names_step_and_remedy(
    warm: Warm, tmp_path: Path, fasta: Path, small_size: Path
) -> None:
    words = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--size", small_size, "--steps", 50]
    words += ["--batch-tokens", 150, "--lr", 1000, "--weight-decay", 1000, "--warmup", 0, "--log-every", 1, "-q"]
    status, errors = warm.command(tmp_path / "errors", *words)
    assert status == 1
    assert len(errors.splitlines()) == 1
    assert errors.startswith(f"protperf: error: {tmp_path}/run: ")
    assert "of step " in errors or "after step " in errors
    assert "try a lower --lr (it is 1000), a longer --warmup (0) or a smaller --clip (1)" in errors
    assert not list((tmp_path / "run").glob("step-*"))
    for line in strict_lines(tmp_path / "run"):
        assert all(value is not None for value in line.values())


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as an earlier version left it: with step 3, the newest, not finite."""
    from safetensors.torch import save_file
    from test_corruption import resign

    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("sick") / "run"
    trainer(run, synthetic(run.with_name("proteins.fasta")), small_options(steps=3)).fit(lambda line: None)
    path = run / "step-3" / "model.safetensors"
    tensors = tensor_file.read_tensors(path, None)
    tensors["blocks.1.down.weight"][3, 4] = math.nan
    save_file(tensors, path)
    resign(path.parent)
    checkpoint.verify(path.parent)
    return run


def test_resuming_passes_over_a_step_that_is_not_finite(sick: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sick, tmp_path / "run"))
    messages: list[str] = []
    fasta = sick.with_name("proteins.fasta")
    outcome = train_run(
        fasta, run, small_config(dropout=0.1), small_options(steps=4), resume=True, warn=messages.append
    )
    assert outcome.steps == 4
    (warning,) = [text for text in messages if "not finite" in text]
    assert f"{run}/step-3/model.safetensors: tensor blocks.1.down.weight holds a number that is not finite" in warning
    assert all(all_finite(step) for step in run.glob("step-*"))


def test_a_run_without_a_healthy_step_is_neither_resumed_nor_replaced(sick: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sick, tmp_path / "run"))
    shutil.rmtree(run / "step-2")
    before = {path.name for path in run.rglob("*")}
    with pytest.raises(CheckpointError, match="no checkpoint to resume from that can be used"):
        train_run(
            sick.with_name("proteins.fasta"), run, small_config(), small_options(), resume=True, warn=lambda text: None
        )
    assert {path.name for path in run.rglob("*")} - {".lock"} == before


def test_force_starts_a_run_anew_that_has_no_healthy_step_and_resumes_any_other(sick: Path, tmp_path: Path) -> None:
    fasta, config, options = sick.with_name("proteins.fasta"), small_config(dropout=0.1), small_options(steps=4)
    fresh = train_run(fasta, tmp_path / "fresh", config, options, warn=lambda text: None)
    found = {}
    for name, removed in (("healthy", ()), ("none healthy", ("step-2",))):
        run = Path(shutil.copytree(sick, tmp_path / name))
        for step in removed:
            shutil.rmtree(run / step)
        messages: list[str] = []
        # A run without checkpoints and without config.toml leaves the choice to its data again.
        assert (stored_choices(run, {"steps": 4}, force=True) is None) == bool(removed)
        train_run(fasta, run, config, options, resume=True, force=True, warn=messages.append)
        found[name] = any("no checkpoint can be used; the run starts from the beginning" in x for x in messages)
        # The healthy run goes on with a schedule that it began for three steps, and so to other weights.
        assert (final_digests(run) == final_digests(fresh.run)) == found[name]
        assert all(all_finite(step) for step in run.glob("step-*"))
    assert found == {"healthy": False, "none healthy": True}


def test_a_model_that_overflows_is_not_scored_as_not_a_number(
    warm: Warm, sick: Path, fasta: Path, tmp_path: Path
) -> None:
    """Every weight is finite, and yet what they make of a sequence is not."""
    from safetensors.torch import save_file
    from test_corruption import resign

    step = Path(shutil.copytree(sick / "step-2", tmp_path / "run" / "step-2"))
    tensors = tensor_file.read_tensors(step / "model.safetensors", None)
    tensors["blocks.1.down.weight"].fill_(3e38)
    save_file(tensors, step / "model.safetensors")
    resign(step)
    loaded = load(step)
    for method in ("ll", "pll"):
        with pytest.raises(
            DataError, match=r"record 0 \('0'\) has a likelihood that is not finite.*; try dtype='float64'"
        ):
            loaded.score("MKVLAWDE", method=method)
    out = tmp_path / "scores.tsv"
    status, errors = warm.command(tmp_path / "errors", "score", step, fasta, "-o", out, "-q")
    assert status == 1
    assert "error: record 0 ('p0') has a likelihood that is not finite" in errors
    assert "try --dtype float64" in errors
    assert not any(tmp_path.glob("scores.tsv*"))
    assert warm.command(tmp_path / "errors", "score", step, fasta, "-o", out, "-q", "--dtype", "float64")[0] == 0


def test_a_step_that_is_not_finite_is_not_scored_without_an_error(warm: Warm, sick: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"blocks\.1\.down\.weight holds a number that is not finite"):
        load_run(sick / "step-3")
    status, errors = warm.command(tmp_path / "errors", "score", sick / "step-3", sick.with_name("proteins.fasta"))
    assert status == 3
    assert "not finite" in errors
    assert len(errors.splitlines()) == 1


def test_large_numbers_are_finite_and_one_that_is_not_is_named() -> None:
    """The norm of large numbers overflows; that alone is not a fault."""
    tensors = {"a": torch.full((3, 4), 3e38), "b": torch.ones(5), "count": torch.ones(2, dtype=torch.int64)}
    assert not_finite(tensors.items()) is None
    for value in (math.nan, math.inf, -math.inf):
        tensors["b"] = torch.tensor([1.0, value])
        assert not_finite(tensors.items()) == "b"


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.safetensors"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_of_any_tensor_is_found(name: str, value: float, sick: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from test_corruption import resign

    whole = tensor_file.read_tensors(sick / "step-2" / name, None)
    for tensor in whole:
        step = Path(shutil.copytree(sick / "step-2", tmp_path / "run" / "step-2", dirs_exist_ok=True))
        changed = {**whole, tensor: whole[tensor].clone()}
        changed[tensor].reshape(-1)[-1] = value
        save_file(changed, step / name)
        resign(step)
        messages: list[str] = []
        assert newest_step(tmp_path / "run", messages.append) is None
        assert f"tensor {tensor} " in messages[0]
