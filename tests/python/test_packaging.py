"""What a checkout promises to a builder: one version, locks without an index, a live link, targets explained."""

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import protperf

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


def pins(lock: Path) -> dict[str, set[str]]:
    """Name -> pinned versions of a requirements file; several where markers choose between them."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==([^\s;]+)", lock.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", requirement)[0].lower() for requirement in requirements}


def test_every_place_states_the_same_version() -> None:
    cargo = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]["version"]
    changelog = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changelog is not None
    assert importlib.metadata.version("protperf") == cargo
    assert protperf.__version__ == cargo
    assert protperf.build_info()["version"] == cargo
    assert changelog[1] == cargo


def test_every_crate_takes_its_version_from_the_workspace() -> None:
    for manifest in sorted((ROOT / "rust").glob("*/Cargo.toml")):
        package = tomllib.loads(manifest.read_text(encoding="utf-8"))["package"]
        assert package["version"] == {"workspace": True}, manifest


def test_there_are_locks() -> None:
    assert [lock.name for lock in LOCKS] == ["bench.txt", "dev.txt", "fuzz.txt", "runtime.txt", "uv.txt"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_locks_name_no_index_and_hash_every_pin(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*(-i|-f|--index|--extra-index|--find-links|--trusted-host)", text, re.MULTILINE)
    for entry in re.split(r"\n(?=\S)", text.strip()):
        if not entry.startswith("#"):
            assert "==" in entry.splitlines()[0], entry
            assert "--hash=sha256:" in entry, entry


def test_locks_hold_every_declared_dependency() -> None:
    runtime, dev = pins(ROOT / "requirements/runtime.txt"), pins(ROOT / "requirements/dev.txt")
    assert names(PYPROJECT["project"]["dependencies"]) <= set(runtime)
    groups = PYPROJECT["dependency-groups"]
    wanted = [entry for name in ("test", "dev") for entry in groups[name] if isinstance(entry, str)]
    extras = [name for extra in PYPROJECT["project"]["optional-dependencies"].values() for name in extra]
    assert names(wanted) | names(extras) <= set(dev)
    for group in ("bench", "fuzz"):
        assert names(groups[group]) <= set(pins(ROOT / f"requirements/{group}.txt"))
    assert {name: dev[name] for name in runtime} == runtime


def test_the_app_is_linked_into_the_package() -> None:
    link = ROOT / "python" / "protperf" / "lm"
    assert link.is_symlink()
    assert link.readlink().as_posix() == "../../apps/lm"
    assert (link / "__init__.py").is_file()


def test_every_kind_of_file_of_the_app_has_a_pattern() -> None:
    patterns = [entry["path"] for entry in PYPROJECT["tool"]["maturin"]["include"]]
    assert all(pattern.startswith("protperf/lm/**/*.") for pattern in patterns)
    shipped = {Path(pattern).suffix for pattern in patterns}
    present = {
        path.suffix for path in (ROOT / "apps/lm").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    assert present <= shipped, "a suffix in apps/lm that tool.maturin.include does not name"


def test_the_command_resolves() -> None:
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="protperf")
    assert callable(entry.load())


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_explains_every_target() -> None:
    listing = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    assert re.findall(r"^  make (\S+) ", listing, re.MULTILINE) == phony[1].split()
