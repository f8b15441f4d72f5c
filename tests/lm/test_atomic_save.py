"""A save that is killed or fails at any of its system calls leaves the old step or the new one, and nothing in between.

Each test prints how many calls a save makes: a change that hides some from the tracer shows in that number.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tracer import KILL, SHORT, Trace, mark, trace
from training import small_options, synthetic, trainer

from protperf.errors import CheckpointError
from protperf.lm.storage import checkpoint, directory, durable
from protperf.lm.training.resume import newest_step

NEW = 4
# Steps that are there before step 4 is saved, and what an earlier interruption left.
SCENES = {"first": [], "one": [3], "two": [2, 3], "three": [1, 2, 3], "leftovers": [2, 3], "again": [3, 4]}
# What a full disk says is tried in every scene; what two others say, where it takes the fewest calls.
FAILURES = [*((scene, errno.ENOSPC) for scene in SCENES), ("first", errno.EIO), ("first", errno.EDQUOT)]


def save(run: Path, step: int, flavour: str = "old") -> None:
    model = {"weight": torch.full((40,), float(step)), "bias": torch.arange(step + 1.0)}
    trainer = {"weight.exp_avg": torch.full((40,), step + 0.5)}
    checkpoint.save(run, step, {"model_dim": step}, model, trainer, lambda: {"flavour": flavour})


def save_and_prune(run: Path) -> list[str]:
    """What training does at a checkpoint, from the start of the process on."""
    warnings = directory.recover(run)
    mark("recovered")
    save(run, NEW, "new")
    mark("saved")
    return warnings + directory.prune(run, {NEW, 3})


def contents(step: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in step.iterdir()}


@pytest.fixture(params=SCENES)
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Path]:
    """Makes the same run directory anew at each call."""
    made = tmp_path / "scene"
    made.mkdir()
    for step in SCENES[request.param]:
        save(made, step)
    (made / "notes.txt").write_text("mine")
    if request.param == "leftovers":
        shutil.copytree(made / "step-3", made / ".tmp-4" / "step-4")
        (made / ".tmp-4" / "step-4" / "manifest.json").write_bytes(b"{")
        shutil.copytree(made / "step-2", made / ".del-1")
        (made / ".del-1" / "config.json").unlink()
        shutil.copytree(made / "step-2", made / ".old-2")
        (made / ".tmp-config.toml").write_bytes(b"[mod")
    run = tmp_path / "run"

    def make() -> Path:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(made, run)
        return run

    return make


def faults(run: Path, allowed: list[dict[str, bytes]]) -> list[str]:
    """What is wrong with a run directory after an interruption; empty if nothing is."""
    messages: list[str] = []
    with directory.locked(run):
        messages += directory.recover(run)
        newest = newest_step(run, messages.append)
        found = None if newest is None else contents(newest.path)
    if found not in (allowed or [None]):
        messages.append(f"found {newest and newest.path.name}, neither the old nor the new step")
    messages += [f"left {path.name}" for path in run.iterdir() if path.name.startswith((".tmp", ".del", ".old"))]
    if (run / "notes.txt").read_text() != "mine":
        messages.append("a foreign file was changed")
    save(run, NEW + 1)
    newest = newest_step(run, messages.append)
    if newest is None or newest.number != NEW + 1:
        messages.append("a second save does not work")
    return messages


def states(make: Callable[[], Path]) -> tuple[dict[str, bytes] | None, dict[str, bytes], Trace]:
    """The newest step before and after a save that nothing disturbs, and its trace."""
    run = make()
    newest = newest_step(run, pytest.fail)
    old = None if newest is None else contents(newest.path)
    whole = trace(lambda: save_and_prune(run), run)
    assert whole.code == 0, whole.report
    assert whole.report["result"] == []
    return old, contents(run / f"step-{NEW}"), whole


def test_a_save_killed_at_any_call_leaves_the_old_step_or_the_new(scene: Callable[[], Path]) -> None:
    old, new, whole = states(scene)
    bad = []
    for at in range(1, len(whole.calls) + 1):
        run = scene()
        struck = trace(lambda run=run: save_and_prune(run), run, at, KILL)
        assert struck.killed
        saved = any(name == "saved" for _, name in struck.marks)
        bad += [f"{at} {whole.calls[at - 1]}: {text}" for text in faults(run, [new] if saved else [old, new])]
    print(f"N={len(whole.calls)} calls killed, {len(bad)} bad states")
    assert not bad
    assert len(whole.calls) >= 18


@pytest.mark.parametrize(("scene", "code"), FAILURES, indirect=["scene"], ids=lambda x: errno.errorcode.get(x, x))
def test_a_save_that_fails_at_any_call_names_the_path_and_keeps_the_old_step(
    scene: Callable[[], Path], code: int
) -> None:
    old, new, whole = states(scene)
    after = {name: count for count, name in whole.marks}
    bad, errors, warned = [], 0, 0
    for at, call in enumerate(whole.calls, 1):
        run = scene()
        struck = trace(lambda run=run: save_and_prune(run), run, at, code)
        assert struck.code in (0, 1), struck
        reason = os.strerror(code)
        if struck.code == 1:
            errors += 1
            named = struck.report["filename"].startswith(os.path.realpath(run)) and reason in struck.report["text"]
            if struck.report["error"] != "CheckpointError" or not named or struck.report["errno"] != code:
                bad.append(f"{at} {call}: said {struck.report['text']}")
            if at > after["saved"]:
                bad.append(f"{at} {call}: tidying stopped the training")
        elif at <= after["recovered"] or at > after["saved"]:
            warned += 1
            if not any(reason in text and str(run) in text for text in struck.report["result"]):
                bad.append(f"{at} {call}: there was no warning")
        allowed = [old, new] if struck.code else [new]
        bad += [f"{at} {call}: {text}" for text in faults(run, allowed)]
    print(f"N={len(whole.calls)} calls, {errors} errors, {warned} warnings, {len(bad)} bad states")
    assert not bad
    assert errors >= 16


def test_a_write_that_takes_half_is_continued(tmp_path: Path) -> None:
    whole = trace(lambda: save(tmp_path, 1), tmp_path)
    for at, call in enumerate(whole.calls, 1):
        if call.name == "pwrite":
            assert trace(lambda: save(tmp_path, 1), tmp_path, at, SHORT).code == 0
            checkpoint.verify(tmp_path / "step-1")


def test_nothing_is_renamed_before_it_is_synced(tmp_path: Path) -> None:
    calls = [str(call) for call in trace(lambda: save(tmp_path, 1), tmp_path).calls]
    renamed = calls.index("rename step-1 -> step-1")
    for name in (*checkpoint.FILES, checkpoint.MANIFEST):
        assert calls.index(f"fsync {name}") < renamed
    assert calls.index("fsync step-1") == renamed - 1
    assert calls[renamed + 1] == f"fsync {tmp_path.name}"


def test_a_step_is_named_only_after_the_metrics_that_led_to_it_are_safe(tmp_path: Path) -> None:
    run, fasta = tmp_path / "run", synthetic(tmp_path / "proteins.fasta")
    one = trainer(run, fasta, small_options(steps=2))
    calls = [str(call) for call in trace(lambda: one.fit(lambda line: None) and None, run).calls]
    for step in (1, 2):
        renamed = calls.index(f"rename step-{step} -> step-{step}")
        written = max(at for at, call in enumerate(calls[:renamed]) if call.startswith("write metrics.jsonl"))
        assert "fsync metrics.jsonl" in calls[written:renamed]


def test_a_limit_on_the_size_of_files_is_reported_with_the_name(tmp_path: Path) -> None:
    """Here the kernel itself refuses, without the tracer."""
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert "model.safetensors" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    checkpoint.verify(tmp_path / "step-1")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002], ids=oct)
def test_permissions_are_those_of_plain_files(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain" / "file").write_bytes(b"")
        save(tmp_path, 1)
        durable.replace_file(tmp_path / "config.toml", b"x")
        durable.append(tmp_path / "metrics.jsonl", b"x")
    finally:
        os.umask(before)
    plain = (tmp_path / "plain" / "file").stat().st_mode
    assert (tmp_path / "step-1").stat().st_mode == (tmp_path / "plain").stat().st_mode
    for path in [*(tmp_path / "step-1").iterdir(), tmp_path / "config.toml", tmp_path / "metrics.jsonl"]:
        assert path.stat().st_mode == plain


def test_a_group_that_a_directory_hands_down_is_kept(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o2775)
    if not tmp_path.stat().st_mode & 0o2000:
        pytest.skip("this user may not set the group bit here")
    (tmp_path / "plain").mkdir()
    save(tmp_path, 1)
    assert (tmp_path / "step-1").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "step-1").stat().st_mode & 0o2000


def test_what_is_half_written_stands_where_it_will_be_and_is_closed_to_others(tmp_path: Path) -> None:
    seen = []

    def before(number: int, call: object) -> None:
        seen.extend((path, path.stat()) for path in tmp_path.glob(".tmp-*"))

    trace(lambda: save(tmp_path, 1), tmp_path, before=before)
    assert {path.name for path, _ in seen} == {".tmp-1"}
    for _, status in seen:
        assert status.st_mode & 0o777 == 0o700
        assert status.st_dev == tmp_path.stat().st_dev
    made = trace(lambda: save(tmp_path, 2), tmp_path).calls
    assert all(call.flags & os.O_EXCL for call in made if call.name == "open")
