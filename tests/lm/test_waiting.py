"""How torch's workers wait in a command: the library itself shows what it has read by the time it is loaded."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from commands import environment, protperf

from protperf.lm.cli.waiting import VARIABLES, sleep_when_idle

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP library shows its settings")


def settings(command: list[object], **variables: str) -> dict[str, str]:
    """What OpenMP's library goes by in a command, by name of the variable. The first time it shows all of them."""
    clean = {name: value for name, value in environment().items() if name not in VARIABLES}
    result = protperf(*command, env={**clean, **variables, "OMP_DISPLAY_ENV": "verbose"})
    assert result.returncode == 0, result.stderr.decode()
    return dict(re.findall(r"(\w+) = '([^']*)'", result.stderr.decode()))


def training(folder: Path) -> list[object]:
    """A command that trains for one step."""
    (folder / "x.fa").write_text(">a\nMKVAWLKHG\n>b\nACDEFGHIKLMN\n>c\nWYRRGHKKL\n")
    return ["train", "--fasta", folder / "x.fa", "-o", folder / "run", "--steps", "1", "--validate", "0.5", "-q"]


def spin_count(command: list[object], **variables: str) -> int:
    """How often a worker looks for new work before it sleeps."""
    return int(settings(command, **variables)["GOMP_SPINCOUNT"])


@linux
def test_workers_of_a_training_sleep_when_idle(tmp_path: Path) -> None:
    assert spin_count(training(tmp_path)) == 0


@linux
def test_the_environment_decides_how_workers_wait(tmp_path: Path) -> None:
    assert spin_count(training(tmp_path), GOMP_SPINCOUNT="1234") == 1234


@pytest.mark.parametrize(
    ("variable", "value", "policy"),
    [
        (None, "", "passive"),
        ("OMP_WAIT_POLICY", "", "passive"),
        ("OMP_WAIT_POLICY", "active", "active"),
        ("GOMP_SPINCOUNT", "1234", None),
        ("KMP_BLOCKTIME", "7", None),
    ],
)
def test_one_variable_that_is_set_leaves_all_as_they_are(
    variable: str | None, value: str, policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        # Set first, so that it is put back at the end.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if variable is not None:
        monkeypatch.setenv(variable, value)
    sleep_when_idle()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
