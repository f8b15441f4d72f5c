"""`protperf generate`: FASTA with scores, to a stream or a file that is whole; interrupted runs are continued."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from commands import COMMAND, environment, error_line, in_process, protperf, table, write_fasta
from test_score_resume import in_child, new
from tracer import KILL, trace

import protperf.lm as lm
from protperf.io import read_tokens
from protperf.lm.cli import main
from protperf.lm.tables import sink


def records(data: bytes, folder: Path) -> list[tuple[str, dict[str, str], str]]:
    """Id, fields of the description and sequence of each record, as our reader sees them."""
    path = folder / "read.fasta"
    path.write_bytes(data)
    found = [record for batch in read_tokens(path, residues="strict") for record in batch]
    path.unlink()
    fields = [dict(part.split("=", 1) for part in record.description.split()) for record in found]
    return [(record.id, each, record.sequence) for record, each in zip(found, fields, strict=True)]


def test_the_command_writes_what_python_draws(runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["generate", runs["both"], "-n", 7, "--prompt", "MKV", "--max-len", 90, "--top-p", 0.9, "--seed", 3]
    result = in_process(*words)
    assert result.returncode == 0
    asked = {"n": 7, "prompt": "MKV", "max_len": 90, "top_p": 0.9, "seed": 3}
    wanted = list(lm.load(runs["both"]).generate(**asked))
    found = records(result.stdout, tmp_path)
    assert [(name, text) for name, _, text in found] == [(record.id, str(record.seq)) for record in wanted]
    assert max(map(len, result.stdout.splitlines())) < 120
    out = tmp_path / "new.fasta"
    assert in_process(*words, "-o", out, "-j", 2).returncode == 0
    assert out.read_bytes() == result.stdout
    facts = json.loads((tmp_path / "new.fasta.meta.json").read_bytes())
    assert (facts["rows"], facts["sampling_seed"], facts["prompt"]) == (7, 3, "MKV")
    scores = table(in_process("score", "-q", runs["both"], out).stdout)
    for (_, fields, _), row in zip(found, scores, strict=True):
        assert float(fields["ll"]) == pytest.approx(float(row["ll"]), abs=1e-4)
        assert (fields["len"], fields["end"]) == (row["len"], "max_len" if row["len"] == "90" else "eos")


def test_a_template_is_filled(runs: dict[str, Path], tmp_path: Path) -> None:
    result = in_process("generate", runs["masked"], "-n", 3, "--infill", "--template", "MKV__WW", "--order", "certain")
    assert result.returncode == 0, result.stderr
    for name, fields, text in records(result.stdout, tmp_path):
        assert (text[:3], text[5:]) == ("MKV", "WW")
        assert name.startswith("g")
        assert (fields["drawn"], fields["len"]) == ("2", "7")
        assert float(fields["pll"]) < 0


def test_the_end_of_the_reader_is_quiet(runs: dict[str, Path]) -> None:
    import subprocess

    words = [*COMMAND, "generate", str(runs["both"]), "-n", "1000000", "-q", "--max-len", "30"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b">g0 ")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == -signal.SIGPIPE


@pytest.fixture
def generate(runs: dict[str, Path], tmp_path: Path) -> Callable[..., dict[str, object]]:
    """Writes sequences for two prompts into `folder/new.fasta`, with a journal after each."""
    prompts = write_fasta(tmp_path / "prompts.fa", {"a": "MKV", "b": "WW"})

    def run(folder: Path, *words: str) -> dict[str, object]:
        sink.SYNC_S = 0.0
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                arguments = ["generate", "-q", "-j", "1", "-n", "5", "--max-len", "20", str(runs["both"])]
                code = main([*arguments, "--prompts", str(prompts), "-o", str(folder / "new.fasta"), *words])
            except SystemExit as error:
                code = int(error.code or 0)
        return {"code": code, "said": said.getvalue()}

    return run


def test_sequences_killed_at_any_call_are_continued_to_the_same_bytes(generate, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    # What would take seconds to load in each child.
    for name in ("cli.generate", "cli.progress", "generation.job", "loading"):
        import_module(f"protperf.lm.{name}")
    folder = new(tmp_path / "killed")
    whole = trace(lambda: generate(folder), folder)
    assert whole.report["result"] == {"code": 0, "said": ""}
    data = (folder / "new.fasta").read_bytes()
    assert data.count(b">") == 10
    bad = []
    for at, call in list(enumerate(whole.calls, 1))[::4]:
        for action in (KILL, errno.ENOSPC) if at % 3 == 0 else (KILL,):
            (new(folder) / "new.fasta").write_bytes(b"older sequences")
            trace(lambda: generate(folder), folder, at, action)
            if (folder / "new.fasta").read_bytes() not in (b"older sequences", data):
                bad.append(f"{at} {call}: half a file stands under its name")
            if in_child(lambda: generate(folder, "--resume")) or (folder / "new.fasta").read_bytes() != data:
                bad.append(f"{at} {call}: it was not continued to the same bytes")
            if sorted(os.listdir(folder)) != ["new.fasta", "new.fasta.meta.json"]:
                bad.append(f"{at} {call}: left {sorted(os.listdir(folder))}")
    assert not bad
    assert len(whole.calls) > 50
    said = generate(folder, "--resume", "--seed", "7")
    assert (said["code"], "is a finished table of another sampling seed" in str(said["said"])) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["generate", "RUN", "-n", "0"], 2, "--num is 0"),
        (["generate", "RUN", "--top-p", "1.5"], 2, "--top-p is 1.5"),
        (["generate", "RUN", "--temperature", "-1"], 2, "--temperature is -1"),
        (["generate", "RUN", "--infill"], 2, "--infill needs a template; give it with --template"),
        (["generate", "RUN", "--template", "MK_"], 2, "add --infill or --fix-positions"),
        (["generate", "RUN", "--template", "MK_", "--fix-positions", "x"], 2, "--fix-positions: 'x' is not a position"),
        (["generate", "CAUSAL", "--template", "MK_", "--infill"], 2, "or start with --prompt"),
        (["generate", "MASKED"], 2, "use --infill or --fix-positions with --template"),
        (["generate", "RUN", "--prompt", "MK1"], 1, "<prompt>:1:3: digit '1'"),
        (["generate", "RUN", "--template", "MK1_", "--infill"], 1, "<template>:1:3: digit '1'"),
        (["generate", "RUN", "--prompt", "MK\nTA"], 1, "or a file as --prompts"),
        (["generate", "RUN", "--template", "MK\n_A", "--infill"], 1, "--template has line breaks"),
        (["generate", "RUN", "--prompts", "missing.fa"], 3, "missing.fa: "),
        (["generate", "RUN", "--exclude", "missing.fa"], 3, "missing.fa: "),
        (["generate", "RUN", "--exclude", "GOOD", "-o", "GOOD"], 2, "input file"),
        (["generate", "RUN", "--prompt", "MKV", "--max-len", "3"], 2, "--max-len must be larger"),
        (["generate", "RUN", "--min-len", "9", "--max-len", "3"], 2, "--min-len is larger than --max-len"),
        (["generate", "RUN", "--prompt", "M", "--prompts", "GOOD"], 2, "--prompt and --prompts exclude each other"),
        (["generate", "RUN", "--resume"], 2, "--out"),
        (["generate", "missing-run"], 3, "missing-run: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_plain_line(
    words: list[str], code: int, message: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    good = write_fasta(tmp_path / "good.fa", {"a": "MKV"})
    named = {"RUN": "both", "CAUSAL": "causal", "MASKED": "masked"}
    paths = {word: str(runs[name]) for word, name in named.items()} | {"GOOD": str(good)}
    result = in_process(*[paths.get(word, word) for word in words], cwd=tmp_path)
    assert message in error_line(result)
    assert result.returncode == code
    assert result.stdout == b""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.fa"]


def test_excluded_sequences_do_not_come_back(runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["generate", runs["both"], "-n", 4, "--max-len", 25, "-q"]
    first = records(protperf(*words).stdout, tmp_path)
    known = write_fasta(tmp_path / "known.fa", {name: text for name, _, text in first[:2]})
    again = records(protperf(*words, "--exclude", known).stdout, tmp_path)
    assert {text for _, _, text in again}.isdisjoint(text for _, _, text in first[:2])
    assert [text for _, _, text in again[2:]] == [text for _, _, text in first[2:]]
    assert all({"identity", "nearest"} <= set(fields) for _, fields, _ in again)
