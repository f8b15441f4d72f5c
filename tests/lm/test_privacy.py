"""Sequences go nowhere but into the outputs that were asked for; ids are never paths; nothing opens a connection."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import COMMAND, environment, in_process, table, write_fasta
from machine import HANG_S

CANARY = "MWCYHWWCMYHWPCWYHMCW"
"""A sequence that turns up by chance nowhere."""


def holds_canary(data: bytes) -> bool:
    """Whether ten residues in a row of the canary stand somewhere, in either case."""
    return any(CANARY[i : i + 10].encode() in data.upper() for i in range(len(CANARY) - 9))


def written(folder: Path, *, but: tuple[str, ...]) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name not in but}


@pytest.mark.parametrize("fault", ["", "1", "é", "\x00", ">"])
@pytest.mark.parametrize("residues", ["map", "strict", "skip"])
def test_a_sequence_never_reaches_messages_or_files(
    fault: str, residues: str, runs: dict[str, Path], small_size: Path, tmp_path: Path
) -> None:
    path = write_fasta(tmp_path / "in.fa", {"a": CANARY, "b": CANARY + fault + CANARY, "c": CANARY[::-1] * 40})
    training = ["train", "--fasta", path, "-o", tmp_path / "run", "--size", small_size, "--steps", 1, "--force"]
    for words in (
        ["score", runs["both"], path, "-o", tmp_path / "s.tsv", "--residues", residues],
        ["score", runs["masked"], path, "--residues", residues],
        ["embed", runs["both"], path, "-o", tmp_path / "e.npz", "--residues", residues],
        [*training, "--residues", residues],
    ):
        result = in_process(*words, cwd=tmp_path)
        assert b"Traceback" not in result.stderr
        assert not holds_canary(result.stdout + result.stderr)
    assert not [name for name, data in written(tmp_path, but=("in.fa",)).items() if holds_canary(data)]


def test_a_canary_in_a_file_would_be_found(tmp_path: Path) -> None:
    """The search above can fail."""
    (tmp_path / "log").write_bytes(b"bad residue in " + CANARY[3:15].lower().encode())
    assert [name for name, data in written(tmp_path, but=()).items() if holds_canary(data)] == ["log"]


def test_an_interrupted_scoring_leaves_no_sequence_behind(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "in.fa", {f"p{i}": CANARY * 30 for i in range(400)})
    words = [*COMMAND, "score", runs["masked"], path, "-o", tmp_path / "s.tsv"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, env=environment(TMPDIR=str(tmp_path))) as process:
        assert process.stderr is not None
        message = process.stderr.readline()
        process.kill()
        message += process.stderr.read()
    assert not holds_canary(message)
    assert not [name for name, data in written(tmp_path, but=("in.fa",)).items() if holds_canary(data)]


def hostile_ids() -> list[str]:
    paths = [
        "/etc/x",
        "../../x",
        "..",
        ".",
        "/",
        "~/x",
        "-o",
        "--out=x",
        "C:\\x",
        "\\\\host\\x",
        "file:///etc/x",
        "a/../../b",
    ]
    signs = [
        "=1+1",
        "@SUM(A1)",
        "+1",
        "-1",
        "a,b",
        '"',
        'a"b',
        "'",
        "''",
        "a;b",
        "|id",
        "$(id)",
        "`id`",
        "%s%n",
        "{}",
        "<b>",
    ]
    names = ["nan", "NULL", "None", "n", "id", "con", "nul", "x" * 10_000, "\\t", "\\n", "#", "\\u001b[2J", "a\\", "\\"]
    plain = [f"{'../' * i}etc/{i}" for i in range(1, 80)] + [f"/tmp/escape-{i}" for i in range(79)]
    return paths + signs + names + plain


@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl"])
def test_ids_never_become_paths_and_never_break_a_table(form: str, runs: dict[str, Path], tmp_path: Path) -> None:
    ids = hostile_ids()
    assert len(ids) >= 200
    folder = tmp_path / "deep" / "below"
    folder.mkdir(parents=True)
    path = folder / "in.fa"
    path.write_text("".join(f">{name} the rest\nMKVA\n" for name in ids))
    before = set(os.listdir("/tmp")) if os.path.isdir("/tmp") else set()
    result = in_process("score", runs["both"], path, "-o", folder / f"out.{form}", cwd=folder)
    assert result.returncode == 0, result.stderr
    made = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert made == sorted(["deep/below/in.fa", f"deep/below/out.{form}", f"deep/below/out.{form}.meta.json"])
    assert not [name for name in set(os.listdir("/tmp")) - before if name.startswith("escape-")]
    data = (folder / f"out.{form}").read_bytes()
    if form == "jsonl":
        found = [json.loads(line)["id"] for line in data.decode().splitlines()]
    elif form == "csv":
        found = [row["id"] for row in csv.DictReader(io.StringIO(data.decode(), newline=""))]
    else:
        found = [row["id"] for row in table(data)]
    assert found == ids


COMMANDS_IN_TURN = """
import json, socket, sys
def refuse(*args, **kwargs):
    raise SystemExit("a socket was opened")
way, commands = json.loads(sys.argv[1])
if way == "no socket":
    socket.socket.__init__ = refuse
from protperf.lm.cli import main
for words in commands:
    if code := main(words):
        raise SystemExit(code)
"""


@pytest.mark.parametrize("way", ["no socket", "no network"])
def test_the_commands_work_without_a_network(way: str, runs: dict[str, Path], fasta: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sized = tmp_path / "small.toml"
    sized.write_text((runs["both"] / "config.toml").read_text().split("[training]")[0].replace("[model]", ""))
    words = [
        ["train", "--fasta", fasta, "-o", run, "--size", sized, "--steps", "2", "--validate", "0.1", "-q"],
        ["info", run],
        ["score", run, fasta, "-q", "-o", tmp_path / "scores.tsv"],
    ]
    commands = json.dumps([way, [[str(word) for word in command] for command in words]])
    prefix: list[str] = []
    if way == "no network":
        prefix = ["unshare", "-rn"]
        probe = [*prefix, "true"]
        if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
            pytest.skip("this system gives no network namespace")
    result = subprocess.run(
        [*prefix, sys.executable, "-c", COMMANDS_IN_TURN, commands],
        capture_output=True, env=environment(), timeout=HANG_S, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert in_process("score", run, fasta, "-q").stdout == (tmp_path / "scores.tsv").read_bytes()
