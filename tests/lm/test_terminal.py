"""What a person at a terminal sees: progress, plain text, streams that are closed."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import COMMAND, environment, error_line, in_process, protperf, table, write_fasta
from machine import HANG_S, wait_until
from training import small_options

from protperf.lm.cli import progress
from protperf.lm.cli.common import plain
from protperf.lm.data.store import TokenStore
from protperf.lm.training.feed import Feed

COLUMNS = 80


def in_terminal(
    *words: object, command: Sequence[str] = COMMAND, size: tuple[int, int] = (24, COLUMNS), interrupt_at: bytes = b""
) -> tuple[int, list[str]]:
    """Exit code and the successive lines of a run whose standard error is a terminal of some rows and columns.

    Ctrl-C comes once the terminal has shown `interrupt_at`.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    with subprocess.Popen(
        [*command, *map(str, words)], stdout=subprocess.PIPE, stderr=theirs, env=environment()
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            seen += part
            if interrupt_at and interrupt_at in seen:
                process.send_signal(signal.SIGINT)
                interrupt_at = b""
    os.close(ours)
    return process.returncode, [line for line in re.split(r"[\r\n]+", seen.decode()) if line.strip()]


@pytest.mark.parametrize("end", [["--steps", "30"], ["--time", "4s"]], ids=lambda words: words[0])
def test_training_shows_loss_speed_and_time_left(end: list[str], fasta: Path, tmp_path: Path) -> None:
    words = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--batch-tokens", 200, *end]
    code, lines = in_terminal(*words)
    assert code == 0
    bars = [line for line in lines if "left" in line]
    assert all(len(line) <= COLUMNS for line in bars)
    pattern = r"\d+%\|.{6}\| step \d+(/\d+)?, \d\d:\d\d left, loss \d\.\d+, [\d.]+k? tokens/s"
    if end[0] == "--time":
        # On a busy machine these seconds may be over after the first step, which shows no speed.
        assert "first steps, 00:0" in bars[0]
    else:
        assert any(re.search(pattern, line) for line in bars), lines
    assert re.fullmatch(r"protperf: .*/run: \d+ steps; val_loss .*", lines[-1])


def test_a_terminal_that_does_not_tell_its_size_has_80_columns(fasta: Path, tmp_path: Path) -> None:
    words = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--batch-tokens", 200, "--steps", 30]
    code, lines = in_terminal(*words, size=(0, 0))
    assert code == 0
    bars = [line for line in lines if "left, loss" in line]
    assert bars
    assert all(len(line) <= COLUMNS for line in bars)


def test_ctrl_c_is_reported_with_what_was_kept(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {f"p{i}": "MKVACDEFGH" * 30 for i in range(1000)})
    words = ["score", runs["both"], path, "--method", "pll", "--batch-tokens", 300]
    at_once = "import sys; from protperf.lm.cli import main, progress; from protperf.lm.tables import sink;"
    at_once += "progress.DELAY_S = sink.SYNC_S = 0; sys.exit(main(sys.argv[1:]))"
    program = [sys.executable, "-c", at_once]
    code, lines = in_terminal(*words, "-o", tmp_path / "x.tsv", command=program, interrupt_at=b"proteins=3")
    assert code == 130
    assert re.fullmatch(r"protperf: \d+ rows are kept; continue with --resume", lines[-2])
    assert lines[-1] == "protperf: interrupted"
    code, lines = in_terminal(*words, command=program, interrupt_at=b"proteins=1")
    assert (code, lines[-1]) == (130, "protperf: interrupted")


def test_scoring_shows_how_far_it_is_and_how_long_still(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"long": "MKVACDEFGH" * 200, "short": "MKV"})
    # A bar waits for two seconds of work; here it must not.
    at_once = (
        "import sys; from protperf.lm.cli import main, progress; progress.DELAY_S = 0; sys.exit(main(sys.argv[1:]))"
    )
    words = ["score", runs["both"], path, path, "--batch-tokens", 1, "-o", tmp_path / "out.tsv"]
    code, lines = in_terminal(*words, command=[sys.executable, "-c", at_once])
    assert code == 0
    bars = [line for line in lines if line.startswith("scoring:")]
    assert all(len(line) <= COLUMNS for line in bars)
    assert any(re.search(r"\d+%\|.*/4.01k \[\d\d:\d\d<", line) for line in bars), lines
    assert re.search(r"100%\|.* 4.01k/4.01k \[.*proteins=4", bars[-1])
    code, lines = in_terminal("score", "-q", runs["both"], path, "-o", tmp_path / "out.tsv")
    assert (code, lines) == (0, [])


def test_an_error_moves_no_cursor_and_is_one_line(tmp_path: Path) -> None:
    name = "a\x1b[2Jb\nc\x9b\u202ed\x07"
    result = protperf("score", name, "nowhere", cwd=tmp_path)
    assert result.returncode == 3
    assert error_line(result).startswith(r"a\x1b[2Jb\nc\x9b\u202ed\x07: ")
    assert result.stderr.decode().rstrip("\n").isprintable()


def test_steps_measure_a_run_of_a_given_time_once_their_number_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine became busy: the time given is over, and a quarter of the steps is left."""
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with progress.TrainProgress({}, False, 150.0) as bar:
        bar.report({"step": 10, "loss": 2.0, "tokens_per_s": 5.0, "wall_s": 4.5, "total_steps": None})
        bar.report({"step": 300, "loss": 2.0, "tokens_per_s": 5.0, "wall_s": 151.5, "total_steps": 400})
    before, after = [part for part in said.getvalue().split("\r") if "step " in part][:2]
    # A machine that is busy may take seconds from the report to the drawing.
    assert re.search("02:[12][0-9] left", before)
    assert " 75%" in after
    assert re.search("step 300/400, 00:(50|[34][0-9]) left", after)


def test_a_log_gets_a_line_now_and_then(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is a file: no bar, and not silence until the end either."""
    path = write_fasta(tmp_path / "x.fa", {f"p{i}": "MKVACDEFGH" * 20 for i in range(30)})
    words = ["score", runs["both"], path, "--batch-tokens", 500]
    assert len(in_process(*words).stderr.splitlines()) == 1
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.0)
    lines = in_process(*words).stderr.decode().splitlines()
    pattern = r"protperf: scoring: \d+%, [\d.]+k? tokens, \d\d:\d\d left, \d+ proteins"
    scoring = [line for line in lines if "scoring" in line]
    assert len(scoring) > 10
    assert all(re.fullmatch(pattern, line) for line in scoring), scoring
    assert "scoring: 100%, 6.06k tokens, 00:00 left" in scoring[-1]
    assert in_process(*words, "-q").stderr == b""
    piped = in_process("score", runs["both"], path, "-o", tmp_path / "x.tsv").stderr.decode()
    assert "protperf: checksum: " in piped
    assert "\r" not in piped


def test_a_training_in_a_log_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL_S", 0.02)
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with progress.TrainProgress({}, False, None) as shown:
        shown.report({"step": 10, "loss": 2.0, "tokens_per_s": 5.0, "wall_s": 400.0, "total_steps": 40})
        shown.report({"step": 10, "val_loss": 2.1, "val_perplexity": 8.25})
        assert wait_until(lambda: written.getvalue().count("ppl") >= 2)
    lines = written.getvalue().splitlines()
    assert re.fullmatch(r"protperf: step 10/40, [12]\d:\d\d left, loss 2.000, 5.00 tokens/s, ppl 8.2", lines[-1])
    ended = written.getvalue()
    time.sleep(0.1)
    assert written.getvalue() == ended
    with progress.TrainProgress({}, True, None):
        time.sleep(0.1)
    assert written.getvalue() == ended


@pytest.mark.parametrize("terminal", [True, False])
def test_a_training_says_what_it_waits_for_before_its_first_step(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "is_terminal", lambda: terminal)
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    store = TokenStore.packed(np.full(40, 9, np.uint8), np.array([0, 20, 40]))
    options = small_options(weights="relatives")
    for quiet in (True, False):
        with progress.TrainProgress({}, quiet, None) as shown:
            Feed(store, options, "causal", torch.device("cpu"), watch=shown)
            assert ("counting the relatives of 2 sequences" in said.getvalue()) == (not quiet)
    if terminal:
        drawn = [text.strip() for text in said.getvalue().split("\r")]
        assert drawn.index("first steps") < drawn.index("counting the relatives of 2 sequences")
        assert drawn.count("first steps") >= 2
    else:
        assert said.getvalue() == "protperf: counting the relatives of 2 sequences\n"


def test_a_training_that_is_refused_leaves_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    with progress.TrainProgress({}, False, None):
        pass
    assert "first steps" in said.getvalue()
    assert said.getvalue().endswith("\r")
    assert said.getvalue().split("\r")[-2].strip() == ""


@pytest.mark.parametrize("text", ["plain", "é 蛋白質", "a b"])
def test_ordinary_text_is_printed_as_it_is(text: str) -> None:
    assert plain(text) == text


def shell(text: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", text], capture_output=True, env=environment(), timeout=HANG_S, **options)  # type: ignore[call-overload]


def command(*words: object) -> str:
    return " ".join(f"'{word}'" for word in [*COMMAND, *words])


def test_a_closed_standard_error_costs_no_row_and_takes_in_no_message(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKVA", "b": ""})
    out = tmp_path / "out.tsv"
    first = shell(f"{command('score', runs['both'], path, '-o', out)} 2>&-")
    assert (first.returncode, first.stdout) == (0, b"")
    assert [row["id"] for row in table(out.read_bytes())] == ["a", "b"]
    message = shell(f"{command('score', runs['both'], tmp_path / 'missing.fa')} 2>&-")
    assert (message.returncode, message.stdout) == (3, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_standard_error_costs_no_row(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKVA", "b": ""})
    result = shell(f"{command('score', runs['both'], path)} 2>/dev/full")
    assert result.returncode == 0
    assert [row["id"] for row in table(result.stdout)] == ["a", "b"]


@pytest.mark.parametrize("words", [["--help"], ["score", "RUN", "GOOD"]], ids=lambda words: words[0])
def test_a_closed_standard_output_is_an_error(words: list[str], runs: dict[str, Path], tmp_path: Path) -> None:
    good = write_fasta(tmp_path / "x.fa", {"a": "MKVA"})
    named = {"RUN": str(runs["both"]), "GOOD": str(good)}
    result = shell(f"{command(*[named.get(word, word) for word in words])} >&-")
    assert result.returncode == 3
    assert "standard output: " in error_line(result)


def test_standard_input_that_is_empty_has_no_records_and_a_closed_one_is_an_error(runs: dict[str, Path]) -> None:
    result = shell(f"{command('score', '-q', runs['both'], '-')} </dev/null")
    assert (result.returncode, len(table(result.stdout))) == (0, 0)
    assert result.stderr.startswith(b"protperf: warning: ")
    assert result.stderr.count(b"\n") == 1
    result = shell(f"{command('score', '-q', runs['both'], '-')} <&-")
    assert result.returncode == 3
    assert error_line(result).startswith("<stdin>: ")


def test_standard_input_cannot_be_named_twice(runs: dict[str, Path]) -> None:
    result = protperf("score", runs["both"], "-", "-", stdin=b">a\nMK\n")
    assert result.returncode == 2
    assert "standard input" in error_line(result)


def test_a_file_given_twice_is_scored_twice(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKVA"})
    rows = table(in_process("score", runs["both"], path, path).stdout)
    assert [(row["n"], row["id"]) for row in rows] == [("0", "a"), ("1", "a")]
    assert rows[0]["ll"] == rows[1]["ll"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_reported(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKVA"})
    path.chmod(0)
    for words in (["score", runs["both"], path], ["train", "--fasta", path, "-o", tmp_path / "run", "--steps", 1]):
        result = protperf(*words)
        assert result.returncode == 3
        assert error_line(result).startswith(f"{path}: ")


def test_python_optimized_refuses_the_same(runs: dict[str, Path]) -> None:
    """No check is an assert statement."""
    words = ["-O", "-m", "protperf.lm.cli", "score", str(runs["both"]), "missing.fa"]
    result = subprocess.run([sys.executable, *words], capture_output=True, env=environment(), timeout=HANG_S)
    assert result.returncode == 3
    assert "missing.fa" in error_line(result)
