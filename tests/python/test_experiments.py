"""The experiments run in their quick form, and the closed forms that they draw are what is found."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
from machine import HANG_S

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
NAMES = sorted(path.parent.name for path in EXPERIMENTS.glob("*/run.py"))
LONG = ("families", "length", "transfer")
"""Their quick form takes a quarter of a minute and more; `test_experiment_parts.py` tests what they are made of."""
RUNS = [pytest.param(name, marks=pytest.mark.soak) if name in LONG else name for name in NAMES]


@pytest.mark.parametrize("name", RUNS)
def test_runs_and_writes_a_table_and_a_picture(name, tmp_path):
    command = [sys.executable, str(EXPERIMENTS / name / "run.py"), "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=HANG_S)
    assert (tmp_path / "table.md").read_text().startswith("| ")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (EXPERIMENTS / name / "README.md").is_file()


def test_make_runs_every_experiment():
    makefile = (EXPERIMENTS.parent / "Makefile").read_text(encoding="utf-8")
    listed = next(line for line in makefile.splitlines() if line.startswith("EXPERIMENTS := "))
    assert sorted(listed.split()[2:]) == NAMES


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / name / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sampler", ["iid", "orthogonal"])
@pytest.mark.parametrize(("feature_map", "num_features"), [("trigonometric", 64), ("positive", 32), ("hyperbolic", 16)])
def test_closed_forms_of_weights_are_those_of_draws(feature_map, num_features, sampler):
    module = load("approximation")
    x, y = module.pair(0.4)
    exact = module.closed_form(feature_map, sampler, num_features, x, y)
    assert abs(module.measured(feature_map, sampler, num_features, x, y, 3000) / exact - 1) < 0.15


def test_the_series_of_kummer_is_right_on_both_sides_of_0():
    module = load("approximation")
    assert math.isclose(module.kummer(3.0, 3.0, 1.7), math.exp(1.7), rel_tol=1e-12)
    assert math.isclose(module.kummer(3.0, 3.0, -1.7), math.exp(-1.7), rel_tol=1e-12)
    # 1F1(1; 2; z) = (exp(z) - 1) / z
    assert math.isclose(module.kummer(1.0, 2.0, -0.9), (1 - math.exp(-0.9)) / 0.9, rel_tol=1e-12)


def test_closed_forms_of_variances_are_those_of_draws():
    module = load("variance")
    found, needed = module.monte_carlo(0.5, math.pi / 3, 100_000), module.closed_forms(0.5, math.pi / 3)
    assert all(abs(found[name] / needed[name] - 1) < 0.1 for name in needed)
