"""A table that was killed, interrupted or met a full disk at any moment is continued to the undisturbed bytes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from commands import COMMAND, environment, error_line, in_process, protperf, table, write_fasta
from conftest import LETTERS
from machine import HANG_S
from pyarrow import parquet
from tracer import KILL, Call, Trace, trace

from protperf.errors import DataError
from protperf.lm.cli import main
from protperf.lm.scoring.row import ScoreRow
from protperf.lm.tables import sink
from protperf.lm.tables.formats import Encoder

FAILURES = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
RECORDS = 8
"""Batches in the middle make the same calls each, so a first, some in the middle and a last are enough of them."""
Score = Callable[..., dict[str, object]]


@pytest.fixture
def score(runs: dict[str, Path], tmp_path: Path) -> Score:
    """Scores the records in about five batches into `folder/NAME`, with a journal after each batch."""
    rng = random.Random(3)
    proteins = {f"p{i}": "".join(rng.choices(LETTERS, k=rng.randint(5, 40))) for i in range(RECORDS)}
    path = write_fasta(tmp_path / "proteins.fa", proteins)

    def run(folder: Path, *words: str, name: str = "scores.tsv") -> dict[str, object]:
        sink.SYNC_S = 0.0
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                arguments = ["score", "-q", "-j", "1", "--batch-tokens", "70", str(runs["both"]), str(path)]
                code = main([*arguments, "-o", str(folder / name), *words])
            except SystemExit as error:
                code = int(error.code or 0)
        return {"code": code, "said": said.getvalue()}

    return run


def new(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def in_child(work: Callable[[], dict[str, object]]) -> int:
    """The exit code of some work in a fork: the command changes handlers of signals."""
    pid = os.fork()
    if pid == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
        os._exit(int(work()["code"]))  # type: ignore[call-overload]
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def golden(score: Score, tmp_path: Path) -> tuple[bytes, Trace]:
    """The bytes of an undisturbed table, and the calls that it took."""
    folder = new(tmp_path / "golden")
    whole = trace(lambda: score(folder), folder)
    assert whole.report["result"] == {"code": 0, "said": ""}
    data = (folder / "scores.tsv").read_bytes()
    assert [row["n"] for row in table(data)] == [str(i) for i in range(RECORDS)]
    return data, whole


def faults(folder: Path, score: Score, golden: bytes, name: str = "scores.tsv") -> list[str]:
    """What is wrong after an interruption was resumed: nothing should be."""
    message = []
    code = in_child(lambda: score(folder, "--resume", name=name))
    if code:
        message.append(f"--resume ended in {code}")
    if (folder / name).read_bytes() != golden:
        message.append("the table differs")
    if sorted(os.listdir(folder)) != [name, f"{name}.meta.json"]:
        message.append(f"left {sorted(os.listdir(folder))}")
    elif json.loads((folder / f"{name}.meta.json").read_bytes())["rows"] != RECORDS:
        message.append("the sidecar counts other rows")
    return message


def refusal(folder: Path, journal: bytes) -> str | None:
    """Why `--resume` will not continue the partial file of a folder; None where it would."""
    fingerprint = json.loads(journal)["fingerprint"]
    try:
        sink.FileSink(folder / "scores.tsv", Encoder(ScoreRow, "tsv"), fingerprint, resume=True)._close()
    except DataError as error:
        return str(error)
    return None


def test_a_table_killed_at_any_call_is_continued_to_the_same_bytes(
    score: Score, golden: tuple[bytes, Trace], tmp_path: Path
) -> None:
    data, whole = golden
    bad = []
    for at, call in enumerate(whole.calls, 1):
        folder = new(tmp_path / "killed")
        (folder / "scores.tsv").write_bytes(b"an older table\n")
        assert trace(lambda folder=folder: score(folder), folder, at, KILL).killed
        if (folder / "scores.tsv").read_bytes() not in (b"an older table\n", data):
            bad.append(f"{at} {call}: half a table stands under its name")
        bad += [f"{at} {call}: {text}" for text in faults(folder, score, data)]
    print(f"N={len(whole.calls)} calls killed, {len(bad)} bad states")
    assert not bad
    assert len(whole.calls) > 40


def test_a_parquet_table_struck_while_it_is_made_is_continued_to_the_same_bytes(
    score: Score, golden: tuple[bytes, Trace], tmp_path: Path
) -> None:
    """Until its rows are complete it is a table like any other; from there on, every call is struck."""
    name = "scores.parquet"
    pyarrow.array([1])  # loads what would take a second in each child
    folder = new(tmp_path / "whole")
    calls = trace(lambda: score(folder, name=name), folder).calls
    data = (folder / name).read_bytes()
    read = parquet.read_table(folder / name).to_pylist()
    assert [{key: str(value) for key, value in row.items()} for row in read] == table(golden[0])
    first = next(at for at, call in enumerate(calls, 1) if str(call) == "unlink .tmp-scores.parquet")
    bad = []
    for at in range(first, len(calls) + 1):
        for action in (KILL, errno.ENOSPC):
            folder = new(tmp_path / "struck")
            (folder / name).write_bytes(b"an older table")
            struck = trace(lambda folder=folder: score(folder, name=name), folder, at, action)
            if (folder / name).read_bytes() not in (b"an older table", data):
                bad.append(f"{at} {calls[at - 1]}: half a table stands under its name")
            if action != KILL and struck.report["result"]["code"] not in (0, 3):
                bad.append(f"{at} {calls[at - 1]}: {struck.report['result']}")
            bad += [f"{at} {calls[at - 1]}: {text}" for text in faults(folder, score, data, name)]
    assert not bad
    assert len(calls) - first > 6


def test_a_table_is_not_continued_in_another_format(score: Score, golden: tuple[bytes, Trace], tmp_path: Path) -> None:
    folder = new(tmp_path / "killed")
    assert trace(lambda: score(folder), folder, len(golden[1].calls) // 2, KILL).killed
    said = str(score(folder, "--resume", "--format", "csv")["said"])
    assert "was started with another format" in said
    assert faults(folder, score, golden[0]) == []


def test_a_finished_table_is_left_as_it_is_and_that_of_other_records_is_kept(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    one = write_fasta(tmp_path / "one.fa", {"a": "MKV", "b": "MWC"})
    other = write_fasta(tmp_path / "other.fa", {"a": "MKV"})
    for name in ("t.tsv", "t.parquet"):
        out = tmp_path / name
        assert in_process("score", runs["both"], one, "-o", out).returncode == 0
        files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("t.*")}
        again = in_process("score", runs["both"], one, "-o", out, "--resume")
        assert again.returncode == 0
        assert f"note: {out}: was finished before, nothing was done" in again.stderr.decode()
        refused = in_process("score", runs["both"], other, "-o", out, "--resume")
        assert refused.returncode == 2
        kept = f"{out}: is a finished table of another input sha256; choose another --out"
        assert error_line(refused).startswith(kept)
        assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("t.*")} == files
    with (tmp_path / "t.parquet").open("ab") as table_file:
        table_file.write(b"more")
    changed = in_process("score", runs["both"], one, "-o", tmp_path / "t.parquet", "--resume")
    assert changed.returncode == 2
    assert "t.parquet: was changed after it was finished; choose another --out" in error_line(changed)
    for text, code in ((one.read_bytes(), 0), (other.read_bytes(), 2)):
        words = ["score", "-q", runs["both"], "-", "-o", tmp_path / "piped.tsv"]
        assert protperf(*words, *(["--resume"] if code else []), stdin=text).returncode == code
    assert in_process("score", "-q", runs["both"], other, "-o", tmp_path / "t.tsv").returncode == 0
    assert len(table((tmp_path / "t.tsv").read_bytes())) == 1


def test_rows_of_an_interrupted_table_are_thrown_away_only_when_asked(
    score: Score, golden: tuple[bytes, Trace], tmp_path: Path
) -> None:
    folder = new(tmp_path / "killed")
    assert trace(lambda: score(folder), folder, len(golden[1].calls) // 2, KILL).killed
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    refused = score(folder)
    assert refused["code"] == 2
    assert "rows of an interrupted table; continue it with --resume, or start over with --force" in str(refused["said"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert score(folder, "--force") == {"code": 0, "said": ""}
    assert (folder / "scores.tsv").read_bytes() == golden[0]


@pytest.mark.parametrize("suffix", ["tsv.gz", "json", "xlsx"])
def test_no_table_takes_the_name_of_what_it_is_not(runs: dict[str, Path], tmp_path: Path, suffix: str) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKV"})
    result = protperf("score", runs["both"], path, "-o", tmp_path / f"x.{suffix}")
    assert result.returncode == 2
    assert "name a file that ends in one of .tsv, .csv, .jsonl, .parquet" in error_line(result)
    assert os.listdir(tmp_path) == ["x.fa"]


SOME = pytest.param(9, id="each-ninth")
EVERY = pytest.param(1, id="each", marks=pytest.mark.soak)


@pytest.mark.parametrize("code", FAILURES, ids=errno.errorcode.get)
@pytest.mark.parametrize("stride", [SOME, EVERY])
def test_a_table_that_fails_at_any_call_names_the_file_and_is_continued(
    score: Score, golden: tuple[bytes, Trace], tmp_path: Path, code: int, stride: int
) -> None:
    data, whole = golden
    bad = []
    # The three errors together strike each third call.
    first = 3 * FAILURES.index(code) if stride > 1 else 0
    struck_calls = list(enumerate(whole.calls, 1))[first::stride]
    for at, call in struck_calls:
        folder = new(tmp_path / "failed")
        struck = trace(lambda folder=folder: score(folder), folder, at, code)
        result = struck.report["result"]
        if result["code"] == 3:
            line = next(text for text in result["said"].splitlines() if "error" in text)
            if str(folder) not in line or os.strerror(code) not in line or "Traceback" in result["said"]:
                bad.append(f"{at} {call}: said {result['said']}")
        elif result["code"] or call.name != "unlink" or (folder / "scores.tsv").read_bytes() != data:
            bad.append(f"{at} {call}: ended in {result}")
        bad += [f"{at} {call}: {text}" for text in faults(folder, score, data)]
    print(f"N={len(struck_calls)} of {len(whole.calls)} calls failed, {len(bad)} bad states")
    assert not bad


@pytest.mark.parametrize("stride", [SOME, EVERY])
def test_a_table_interrupted_at_any_call_has_no_row_twice(
    score: Score, golden: tuple[bytes, Trace], tmp_path: Path, stride: int
) -> None:
    data, whole = golden
    bad = []
    for at, call in list(enumerate(whole.calls, 1))[::stride]:
        folder = new(tmp_path / "stopped")
        number = (signal.SIGINT, signal.SIGTERM)[at % 2]
        result = trace(lambda folder=folder: score(folder), folder, at, number).report["result"]
        if result["code"] != 128 + number or "Traceback" in result["said"]:
            bad.append(f"{at} {call}: ended in {result}")
        bad += [f"{at} {call}: {text}" for text in faults(folder, score, data)]
    assert not bad


@pytest.mark.parametrize("kills", [24, pytest.param(500, marks=pytest.mark.soak)])
def test_a_table_killed_at_random_moments_is_continued_to_the_same_bytes(
    score: Score, golden: tuple[bytes, Trace], tmp_path: Path, kills: int
) -> None:
    """Resumed runs are killed too: each chain ends when one gets to its end."""
    data, _ = golden
    started = time.monotonic()
    assert in_child(lambda: score(new(tmp_path / "timed"))) == 0
    usual_s = time.monotonic() - started
    rng, done = random.Random(1), 0
    folder = new(tmp_path / "random")
    while done < kills:
        pid = os.fork()
        if pid == 0:
            os._exit(int(score(folder, "--resume")["code"]))  # type: ignore[call-overload]
        time.sleep(rng.uniform(0, usual_s))
        os.kill(pid, signal.SIGKILL)
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert ended in (0, -signal.SIGKILL)
        done += ended != 0
        if ended == 0:
            assert faults(folder, score, data) == []
            new(folder)
    assert faults(folder, score, data) == []


def test_the_rows_are_synced_before_the_table_takes_its_name(golden: tuple[bytes, Trace]) -> None:
    calls = [str(call) for call in golden[1].calls]
    renamed = calls.index("rename scores.tsv.part -> scores.tsv")
    last_row = max(i for i, call in enumerate(calls) if call.startswith("pwrite scores.tsv.part "))
    assert "fsync scores.tsv.part" in calls[last_row:renamed]
    assert "fsync golden" in calls[renamed:]


def test_a_table_finished_by_another_process_in_between_is_not_cut(
    score: Score, golden: tuple[bytes, Trace], tmp_path: Path
) -> None:
    """The partial file is opened, then finished and released by its writer, then locked."""
    folder = new(tmp_path / "race")
    part, out = folder / "scores.tsv.part", folder / "scores.tsv"
    part.write_bytes(golden[0])
    (folder / "scores.tsv.part.json").write_text("{}")

    def finish(number: int, call: Call) -> None:
        if call.name == "flock" and not out.exists():
            os.rename(part, out)

    def counted(call: Call) -> bool:
        return call.name in ("flock", "pwrite")

    struck = trace(lambda: score(folder), folder, 4, KILL, only=counted, before=finish)
    assert struck.killed
    assert [call.name for call in struck.calls].count("flock") == 2
    assert out.read_bytes() == golden[0]


def test_a_second_process_on_the_same_table_is_refused(score: Score, tmp_path: Path) -> None:
    folder = new(tmp_path / "twice")
    tried: list[int] = []

    def second(number: int, call: Call) -> None:
        if number == 30:
            tried.append(in_child(lambda: score(folder)))

    assert trace(lambda: score(folder), folder, before=second).report["result"]["code"] == 0
    assert tried == [2]


@pytest.mark.parametrize(
    "name", ["x.tsv", "x.tsv.part", "x.tsv.part.json", "x.tsv.meta.json", ".tmp-x.tsv", ".tmp-x.tsv.meta.json"]
)
def test_no_input_is_overwritten(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = write_fasta(tmp_path / name, {"a": "MKV"})
    result = protperf("score", runs["both"], path, "-o", tmp_path / "x.tsv")
    assert result.returncode == 2
    assert str(path) in error_line(result)
    assert path.read_text() == ">a\nMKV\n"
    assert os.listdir(tmp_path) == [path.name]


def test_a_foreign_partial_file_is_not_overwritten(score: Score, tmp_path: Path) -> None:
    folder = new(tmp_path / "foreign")
    (folder / "scores.tsv.part").write_text("half a download")
    assert in_child(lambda: score(folder)) == 2
    assert in_child(lambda: score(folder, "--resume")) == 2
    assert (folder / "scores.tsv.part").read_text() == "half a download"
    assert os.listdir(folder) == ["scores.tsv.part"]


def test_an_existing_table_is_replaced_and_keeps_its_permissions(
    score: Score, golden: tuple[bytes, Trace], tmp_path: Path
) -> None:
    folder = new(tmp_path / "private")
    (folder / "private.tsv").write_text("old")
    os.chmod(folder / "private.tsv", 0o640)
    (folder / "scores.tsv").symlink_to("private.tsv")
    assert in_child(lambda: score(folder)) == 0
    assert (folder / "scores.tsv").is_symlink()
    assert (folder / "private.tsv").read_bytes() == golden[0]
    assert (folder / "private.tsv").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077], ids=oct)
def test_a_new_table_has_the_permissions_of_a_plain_file(score: Score, tmp_path: Path, mask: int) -> None:
    folder = new(tmp_path / "masked")
    before = os.umask(mask)
    try:
        (tmp_path / "plain").write_bytes(b"")
        assert in_child(lambda: score(folder)) == 0
    finally:
        os.umask(before)
    for name in os.listdir(folder):
        assert (folder / name).stat().st_mode == (tmp_path / "plain").stat().st_mode, name


def test_a_folder_in_the_way_is_reported_and_stays(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / ".tmp-x.tsv.meta.json").mkdir()
    path = write_fasta(tmp_path / "x.fa", {"a": "MKV"})
    result = in_process("score", runs["both"], path, "-o", tmp_path / "x.tsv")
    assert result.returncode == 3
    assert ".tmp-x.tsv.meta.json" in error_line(result)
    assert (tmp_path / ".tmp-x.tsv.meta.json").is_dir()


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="no /dev/stdout here")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "-"])
def test_what_else_goes_to_standard_output_is_kept(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKV"})
    words = " ".join([*COMMAND, "score", "-q", str(runs["both"]), str(path), "-o", name])
    done = subprocess.run(["bash", "-c", f"(echo before; {words}; echo after) > {tmp_path}/all"], timeout=HANG_S)
    assert done.returncode == 0
    first, head, row, last = (tmp_path / "all").read_text().splitlines()
    assert (first, last) == ("before", "after")
    assert head.startswith("n\tid")
    assert row.startswith("0\ta\t3")
    assert sorted(os.listdir(tmp_path)) == ["all", "x.fa"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_device_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    result = protperf("score", runs["both"], write_fasta(tmp_path / "x.fa", {"a": "MKV"}), "-o", "/dev/full")
    assert result.returncode == 3
    assert error_line(result) == "/dev/full: No space left on device; free some space and run again"


def test_a_limit_on_the_size_of_files_is_reported_and_the_rows_are_kept(runs: dict[str, Path], tmp_path: Path) -> None:
    """The kernel itself refuses here, no tracer."""
    path = write_fasta(tmp_path / "x.fa", {f"p{i}": LETTERS * 3 for i in range(400)})
    out = tmp_path / "out.tsv"
    words = ["score", "-j", "1", str(runs["both"]), str(path), "-o", str(out)]

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    result = subprocess.run(
        [*COMMAND, *words], capture_output=True, env=environment(), preexec_fn=limited, timeout=HANG_S
    )
    assert result.returncode == 3
    assert f"{out}.part: File too large" in error_line(result)
    assert b"rows are kept; continue with --resume" in result.stderr
    assert not out.exists()
    assert in_process(*words, "--resume").returncode == 0
    whole = out.read_bytes()
    assert in_process(*words).returncode == 0
    assert out.read_bytes() == whole
    assert [row["n"] for row in table(whole)] == [str(i) for i in range(400)]


def test_a_changed_bit_in_what_an_interruption_left_is_refused_and_named(
    score: Score, golden: tuple[bytes, Trace], tmp_path: Path
) -> None:
    """Every bit of the journal and of the rows that it vouches for; what stands behind these rows is cut off anyway."""
    folder = new(tmp_path / "flipped")
    middle = len(golden[1].calls) // 2
    assert trace(lambda: score(folder), folder, middle, KILL).killed
    part, journal = folder / "scores.tsv.part", folder / "scores.tsv.part.json"
    kept = {path: path.read_bytes() for path in (part, journal)}
    vouched = {part: json.loads(kept[journal])["bytes"], journal: len(kept[journal])}
    assert vouched[part] > 100
    rng, unseen = random.Random(8), []
    for path, size in vouched.items():
        for bit in rng.sample(range(8 * size), 40):
            changed = bytearray(kept[path])
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            if (answer := refusal(folder, kept[journal])) is None or str(path) not in answer:
                unseen.append(f"{path.name}, bit {bit}: {answer}")
            for other, data in kept.items():
                other.write_bytes(data)
    assert not unseen, unseen
    assert faults(folder, score, golden[0]) == []


def test_a_journal_that_names_thousands_of_inputs_is_read_again(tmp_path: Path) -> None:
    fingerprint = {"input_sha256": [f"{n:064x}" for n in range(5000)]}
    encoder = Encoder(ScoreRow, "tsv")
    sink.FileSink(tmp_path / "x.tsv", encoder, fingerprint, resume=False).interrupt()
    sink.FileSink(tmp_path / "x.tsv", encoder, fingerprint, resume=True).interrupt()


def test_a_table_of_residues_is_continued_within_its_records(score: Score, tmp_path: Path) -> None:
    """Killed at any write, it has the bytes of an undisturbed one in the end; an empty record keeps its row."""
    assert score(tmp_path, "--per-residue", name="whole.tsv")["code"] == 0
    whole = (tmp_path / "whole.tsv").read_bytes()
    assert whole.startswith(b"n\tid\tpos\tresidue\tll\tmethod\n0\tp0\t1\t")
    for stop in (0, 2):
        with pytest.MonkeyPatch.context() as patch:
            write, calls = sink.FileSink.write, iter(range(stop))

            def interrupted(self: sink.FileSink, *given: object, write=write, calls=calls) -> None:  # type: ignore[no-untyped-def]
                if next(calls, None) is None:
                    raise OSError(errno.EIO, "no more")
                write(self, *given)

            patch.setattr(sink.FileSink, "write", interrupted)
            assert score(tmp_path, "--per-residue", name=f"{stop}.tsv")["code"] == 3
        assert score(tmp_path, "--per-residue", "--resume", name=f"{stop}.tsv")["code"] == 0
        assert (tmp_path / f"{stop}.tsv").read_bytes() == whole
