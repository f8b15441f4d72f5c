"""A loss of power at any moment leaves a run that resumes from the last step that was said to be saved, or a later one.

The model of the disk is put to the test as well: with a sync left out, or files written in place, it must find faults.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from power_loss import possible_states, snapshot
from test_atomic_save import NEW, contents, faults, save, save_and_prune
from tracer import mark, trace

from protperf.lm.storage import checkpoint, directory, durable

real_fsync, real_publish = os.fsync, checkpoint._publish


def without_syncing_files(run: Path) -> None:
    os.fsync = lambda fd: real_fsync(fd) if stat.S_ISDIR(os.fstat(fd).st_mode) else None
    save_and_prune(run)


def without_syncing_directories(run: Path) -> None:
    durable.sync_directory = lambda path: None
    save_and_prune(run)


def without_syncing_the_step(run: Path) -> None:
    durable.sync_directory = lambda path: None if path.name.startswith("step-") else real_fsync(os.open(path, 0))
    save_and_prune(run)


def renamed_before_synced(run: Path) -> None:
    late: list[int] = []
    os.fsync = lambda fd: late.append(os.dup(fd))
    save(run, NEW, "new")
    for fd in late:
        real_fsync(fd)
    mark("saved")
    directory.prune(run, {NEW, 3})


def in_place(run: Path) -> None:
    """Written where it belongs, over the newest step, each file synced: what many tools do."""

    def publish(final: Path, partial: Path, data: dict[str, bytes], manifest: Callable[[], bytes]) -> None:
        target = final.with_name("step-3")
        for name, part in {**data, checkpoint.MANIFEST: manifest()}.items():
            with open(target / name, "wb", 0) as stream:
                stream.write(part)
                os.fsync(stream.fileno())
        durable.sync_directory(target)

    checkpoint._publish = publish
    save(run, 3, "new")
    mark("saved")


def bad_states(scheme: Callable[[Path], object], tmp_path: Path, stale: bool = False) -> tuple[int, list[str]]:
    """Number of distinct disks, and what is wrong with them; `stale` puts leftovers of a killed save there first."""
    root = tmp_path / "disk"
    run = root / "run"
    run.mkdir(parents=True)
    save(run, 2)
    save(run, 3)
    (run / "notes.txt").write_text("mine")
    if stale:
        for name in (f".tmp-{NEW}", ".del-1"):
            (run / name).mkdir()
            (run / name / "model.safetensors").write_bytes(b"half")
    start, old = snapshot(root), contents(run / "step-3")
    whole = trace(lambda: scheme(run) and None, root)
    assert whole.code == 0, whole.report
    new = contents(run / ("step-3" if scheme is in_place else f"step-{NEW}"))
    assert new != old
    count, bad = 0, []
    for count, state in enumerate(possible_states(root, start, whole), 1):
        place = tmp_path / f"state-{count}"
        state.materialise(place)
        allowed = [new] if "saved" in state.marks else [old, new]
        bad += [f"{state}: {text}" for text in faults(place / "run", allowed)[:1]]
    return count, bad


@pytest.mark.parametrize("stale", [False, True], ids=["clean", "leftovers"])
def test_a_loss_of_power_during_a_save_leaves_the_old_step_or_the_new(tmp_path: Path, stale: bool) -> None:
    count, bad = bad_states(save_and_prune, tmp_path, stale)
    print(f"{count} states, {len(bad)} bad")
    assert not bad
    assert count >= 25


@pytest.mark.parametrize(
    "scheme",
    [without_syncing_files, without_syncing_directories, renamed_before_synced, in_place],
    ids=lambda scheme: scheme.__name__,
)
def test_the_model_finds_what_a_wrong_order_of_writing_loses(tmp_path: Path, scheme: Callable[[Path], object]) -> None:
    count, bad = bad_states(scheme, tmp_path)
    print(f"{scheme.__name__}: {count} states, {len(bad)} bad")
    assert bad
