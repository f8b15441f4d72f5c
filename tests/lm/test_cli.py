"""The command as a new user meets it: help, one plain line for every mistake, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import machine
import pytest
from commands import COMMAND, environment, error_line, in_process, protperf, table, write_fasta

from protperf.lm.cli.commands import COMMANDS

HEADER = b"n\tid\tlen\tscored\tll\tll_per_residue\tppl\tmethod\tflags\n"


QUICK = 7.0
"""How many times as long as a bare interpreter a quick command takes to start; 4 to 6, and over 50 with torch."""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["info"]], ids=" ".join)
def test_quick_commands_start_almost_as_fast_as_the_interpreter(words: list[str], runs: dict[str, Path]) -> None:
    if words == ["info"]:
        words = ["info", str(runs["both"])]

    def cost() -> float:
        return machine.cpu_s([*COMMAND, *words], env=environment())

    # Few ratios are a matter of luck where others use the processor.
    assert machine.times_the_cost(cost, machine.start_of(), rounds=30) < QUICK


def test_a_command_that_loads_torch_is_seen_not_to_be_quick() -> None:
    slow = "import torch, sys; from protperf.lm.cli import main; sys.exit(main(['--version']))"
    assert machine.start_of(slow)() > QUICK * machine.start_of()()


def test_quick_commands_import_neither_torch_nor_numpy(runs: dict[str, Path]) -> None:
    """One after another in one process: what the first of them loads is seen, and named, there."""
    calls = [["--help"], ["--version"], ["info", str(runs["both"])], *([name, "--help"] for name in COMMANDS)]
    code = (
        "import sys; from protperf.lm.cli import main\n"
        "for words in eval(sys.argv[1]):\n"
        "    code = main(words)\n"
        "    bad = {'torch', 'numpy', 'rich', 'Bio'} & set(sys.modules)\n"
        "    if code or bad: sys.exit(f'{words} ended in {code} and loaded {bad}')\n"
    )
    result = subprocess.run([sys.executable, "-c", code, repr(calls)], capture_output=True, env=environment())
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.count(b"protperf") >= len(calls)


def test_help_of_a_command_may_be_asked_for_in_two_ways() -> None:
    assert protperf("help", "score").stdout == protperf("score", "--help").stdout
    assert protperf("help").stdout == protperf("--help").stdout


def test_files_to_train_on_may_follow_one_another(fasta: Path, small_size: Path, tmp_path: Path) -> None:
    """As a pattern of the shell gives them."""
    other = write_fasta(tmp_path / "other.fa", {"x": "MKVAWC" * 5})
    common = ["--size", small_size, "--steps", 1, "--batch-tokens", 100, "-q"]
    assert in_process("train", "-o", tmp_path / "a", "--fasta", fasta, other, *common).returncode == 0
    assert in_process("train", "-o", tmp_path / "b", "--fasta", fasta, "--fasta", other, *common).returncode == 0
    facts = [json.loads(in_process("info", tmp_path / run, "--json").stdout) for run in "ab"]
    assert facts[0]["data_sha256"] == facts[1]["data_sha256"]
    assert facts[0]["best_validation_loss"] == pytest.approx(3.0, abs=1.0)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_its_declarations_and_its_work(name: str) -> None:
    """What every command needs lies below them: parsing, help, completion, errors."""
    source = Path(str(import_module(f"protperf.lm.cli.{name}").__file__)).read_text(encoding="utf-8")
    assert len(source.splitlines()) < 80
    assert "argparse" not in source


@pytest.mark.parametrize("variable", ["PROTPERF_NUM_THREADS", "OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"])
def test_the_number_of_threads_may_be_set_where_other_programs_look(
    variable: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKVA"})
    env = {name: value for name, value in environment().items() if not name.endswith(("NUM_THREADS", "PER_TASK"))}
    result = protperf("score", "-v", runs["both"], path, env={**env, variable: "1"})
    assert " 1 thread, " in result.stderr.decode()
    if variable == "PROTPERF_NUM_THREADS":
        # What is typed counts more than the first of them.
        result = protperf("score", "-v", runs["both"], path, "-j", 3, env={**env, variable: "1"})
        assert " 3 threads, " in result.stderr.decode()


def test_help_lists_every_command() -> None:
    text = protperf("--help").stdout.decode()
    assert all(name in text and summary in text for name, summary in COMMANDS.items())
    assert protperf().stdout.decode() == text


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("name", ["train", "score", "doctor"])
def test_a_help_page_fits_the_terminal_and_shows_every_option_once(name: str, columns: int) -> None:
    module = import_module(f"protperf.lm.cli.{name}")
    result = protperf(name, "-h", env=environment(COLUMNS=str(columns)))
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode().splitlines()
    assert max(map(len, lines)) <= max(columns, 73)
    declared = [each for group in module.GROUPS.values() for each in group]
    assert len({each.name for each in declared}) == len(declared)
    spelled = [flag for each in declared for flag in each.flags] + ["-h", "--help"]
    heads = [line[:26].replace(",", " ").split() for line in lines if line.lstrip().startswith("-")]
    for flag in spelled:
        assert sum(flag in head for head in heads) == 1, flag
    for line in module.EXAMPLES.strip().splitlines():
        assert f"  {line}" in lines


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["scroe"], 2, "did you mean score?"),
        (["--verson"], 2, "did you mean --version?"),
        (["train", "--stps", "3"], 2, "did you mean --steps?"),
        (["train", "--fasta", "x.fa", "-o", "r", "--steps", "many"], 2, "--steps"),
        (["train", "--fasta", "x.fa"], 2, "--out"),
        (["train", "--fasta", "missing.fa", "-o", "r", "--steps", "1"], 3, "missing.fa: "),
        (["train", "--fasta", "x.fa", "-o", "r", "--steps", "1", "--epochs", "1"], 2, "--steps, --epochs and --time"),
        (["score", "RUN", "missing.fa"], 3, "missing.fa: "),
        (["score", "missing-run", "GOOD"], 3, "missing-run: "),
        (["score", "RUN", "."], 3, ".: "),
        (["score", "GOOD", "RUN"], 3, "good.fa: is a file, not a model; name the run directory before any other file"),
        (["score", "RUN", "GOOD", "-j", "many"], 2, "--threads is 'many'; it must be a whole number from 1 to 4096"),
        (["train", "-o", "r", "--steps", "1"], 2, "name a file with --fasta"),
        (["train", "--fasta", "GOOD", "-o", "GOOD", "--steps", "1"], 2, "good.fa: is a file; name a directory"),
        (["train", "--fasta", "GOOD", "-o", ".", "--steps", "1"], 2, ".: holds good.fa and no run"),
        (["train", "--fasta", "GOOD", "-o", "r", "--steps", "-1"], 2, "it must be a whole number of at least 1"),
        (["train", "--fasta", "GOOD", "-o", "r", "--lr", "high"], 2, "--lr is 'high'; it must be a number"),
        (["help", "scor"], 2, "did you mean score?"),
        (["score", ".", "GOOD"], 3, ".: holds no checkpoint; train one with protperf train"),
        (["info", "."], 3, ".: holds no checkpoint"),
        (["score", "RUN"], 2, "missing argument FASTA..."),
        (["score", "RUN", "GOOD", "--method", "lll"], 2, "auto, ll, pll"),
        (["score", "RUN", "GOOD", "--format", "xml"], 2, "tsv, csv, jsonl, parquet"),
        (["score", "RUN", "GOOD", "--format", "parquet"], 2, "name one with --out"),
        (["score", "RUN", "GOOD", "-o", "/dev/null", "--format", "parquet"], 2, "name one with --out"),
        (["score", "RUN", "GOOD", "--id-col", "id"], 2, "--seq-col is missing"),
        (["score", "RUN", "GOOD", "--dtype", "bfloat16"], 4, "use float32 or float64"),
        (["score", "RUN", "GOOD", "--dtype", "double"], 2, "use float32 or float64"),
        (["score", "RUN", "GOOD", "-q", "-v"], 2, "--quiet and --verbose"),
        (["train", "--fasta", "GOOD", "-o", "r", "--steps", "1", "--dtype", "float64"], 4, "use float32"),
        (["train", "--fasta", "GOOD", "-o", "r", "--steps", "1", "--device", "wgpu"], 4, "use cpu"),
        (["train", "--fasta", "GOOD", "-o", "r", "--steps", "1", "-q", "-v"], 2, "--quiet and --verbose"),
        (["score", "RUN", "GOOD", "--direction", "reverse"], 2, "forward"),
        (["score", "RUN", "GOOD", "--residues", "loose"], 2, "map"),
        (["score", "RUN", "GOOD", "--batch-tokens", "0"], 2, "--batch-tokens is 0"),
        (["score", "RUN", "GOOD", "--threads", "0"], 2, "--threads"),
        (["score", "RUN", "GOOD", "--device", "gpu"], 2, "auto, cpu, cuda, mps, wgpu"),
        (["score", "RUN", "GOOD", "--device", "wgpu", "--dtype", "float64"], 2, "computes in float32"),
        (
            ["score", "RUN", "GOOD", "--device", "wgpu", "--engine", "torch"],
            2,
            "--engine torch does not compute on wgpu",
        ),
        (["score", "RUN", "GOOD", "--resume"], 2, "-o"),
        (["score", "RUN", "GOOD", "-o", "GOOD"], 2, "input file"),
        (["score", "RUN", "GOOD", "-o", "none/there.tsv"], 3, "none: there is no such directory; make it first"),
        (["info", "missing-run"], 3, "missing-run: "),
        (["info", "RUN", "--jsn"], 2, "--json"),
        (["info", "RUN", "RUN"], 2, "one argument too many"),
        (["info", "--curves"], 2, "--curves shows the training of a model, and MODEL is missing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_plain_line(
    words: list[str], code: int, message: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    good = write_fasta(tmp_path / "good.fa", {"a": "MKV"})
    named = {"RUN": str(runs["both"]), "GOOD": str(good)}
    result = in_process(*[named.get(word, word) for word in words], cwd=tmp_path)
    assert message in error_line(result)
    assert result.returncode == code
    assert result.stdout == b""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.fa"]
    assert good.read_text() == ">a\nMKV\n"


# Exit codes of score and of train, and what they say of the file.
BROKEN = {
    "empty_file.fasta": (0, 1, "warning: PATH: ", "error: PATH: "),
    "sequence_before_header.fasta": (1, 1, "error: PATH:1:", None),
    "empty_record.fasta": (0, 0, "", None),
    "digits_in_sequence.fasta": (1, 1, "error: PATH:2:9: ", None),
    "gaps_in_sequence.fasta": (0, 0, "", None),
    "truncated.fasta.gz": (1, 1, "error: PATH", None),
    "not_fasta.fasta": (1, 1, "error: PATH:1:1: not FASTA", None),
}


def test_every_broken_file_has_a_row(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "smoke" / "broken").iterdir()} == {*BROKEN, "cases.tsv"}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_ends_as_its_table_says(name: str, runs: dict[str, Path], shared_data: Path) -> None:
    path = shared_data / "smoke" / "broken" / name
    code, _, message, _ = BROKEN[name]
    result = in_process("score", "-q", runs["both"], path)
    assert result.returncode == code
    said = result.stderr.decode().splitlines()
    assert len(said) == bool(message)
    assert all(line.startswith(f"protperf: {message}".replace("PATH", str(path))) for line in said)
    assert result.stdout.startswith(HEADER)
    rows = table(result.stdout)
    if name == "empty_record.fasta":
        assert [(row["len"], row["ll"] == "NaN") for row in rows] == [("153", False), ("0", True), ("147", False)]
    elif name == "gaps_in_sequence.fasta":
        assert [row["flags"] for row in rows] == ["gaps", ""]
    else:
        assert rows == []


@pytest.mark.parametrize("name", BROKEN)
def test_train_takes_or_refuses_a_broken_file_as_score_does(
    name: str, shared_data: Path, small_size: Path, tmp_path: Path
) -> None:
    path = shared_data / "smoke" / "broken" / name
    _, code, message, of_train = BROKEN[name]
    words = ["train", "-q", "--fasta", path, "-o", tmp_path / "run", "--size", small_size, "--steps", 1]
    result = in_process(*words, "--batch-tokens", 100)
    assert result.returncode == code
    if code:
        assert f"error: {error_line(result)}".startswith((of_train or message).replace("PATH", str(path)))
        assert not (tmp_path / "run").exists()
    else:
        assert result.stderr == b""
        assert (tmp_path / "run" / "step-1").is_dir()


def test_rejected_records_have_no_row_and_end_in_5(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"good": "MKVA", "bad": "MK1V", "fine": "MWC"})
    result = in_process("score", runs["both"], path, "--residues", "skip")
    assert result.returncode == 5
    assert [(row["n"], row["id"]) for row in table(result.stdout)] == [("0", "good"), ("2", "fine")]
    message = f"warning: rejected 1 of 3 records; the first is {path}:4:3: digit '1' in the sequence"
    assert message in result.stderr.decode()
    assert "(record 'bad')" in result.stderr.decode()
    assert in_process("score", runs["both"], path, "--residues", "skip", "--allow-rejects").returncode == 0


@pytest.mark.parametrize(("objective", "asked", "other"), [("masked", "ll", "pll"), ("causal", "pll", "ll")])
def test_a_method_that_the_model_lacks_names_the_other(
    objective: str, asked: str, other: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKVA"})
    result = in_process("score", runs[objective], path, "--method", asked)
    assert result.returncode == 2
    assert f"--method {other}" in error_line(result)


def test_several_inputs_and_standard_input_count_on(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"same": "MKVA", "b": "MWC"})
    result = protperf("score", runs["both"], path, "-", stdin=b">same\nMKVA\n")
    rows = table(result.stdout)
    assert [(row["n"], row["id"]) for row in rows] == [("0", "same"), ("1", "b"), ("2", "same")]
    assert b"step-" in result.stderr
    assert b"method ll" in result.stderr


def test_pll_says_how_long_it_will_take_before_it_begins(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKVA", "b": "MWC"})
    message = in_process("score", runs["masked"], path).stderr.decode()
    assert "7 passes, about 1 s" in message


def test_info_gives_the_same_facts_as_text_and_json(runs: dict[str, Path]) -> None:
    facts = json.loads(in_process("info", runs["both"], "--json").stdout)
    text = in_process("info", runs["both"]).stdout.decode()
    assert facts["objective"] == "both"
    assert facts["step"] == 2
    assert facts["parameters"] > 1000
    for name in ("data_sha256", "model_sha256"):
        assert len(facts[name]) == 64
        assert facts[name] in text


def test_info_names_a_damaged_file(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs["both"], tmp_path / "run")
    damaged = copy / "step-2" / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 1
    damaged.write_bytes(data)
    for command in ("info", "score"):
        words = [command, copy] if command == "info" else [command, copy, write_fasta(tmp_path / "x.fa", {"a": "MK"})]
        result = in_process(*words)
        assert result.returncode == 3
        assert str(damaged) in error_line(result)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["--help"], ["info", "RUN"], ["score", "RUN", "GOOD"], ["train", "--help"]])
def test_a_full_disk_behind_standard_output_is_reported(
    words: list[str], runs: dict[str, Path], tmp_path: Path
) -> None:
    good = write_fasta(tmp_path / "good.fa", {"a": "MKV"})
    named = {"RUN": str(runs["both"]), "GOOD": str(good)}
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*COMMAND, *[named.get(word, word) for word in words]],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=machine.HANG_S,
        )
    assert result.returncode == 3
    assert "No space left" in error_line(result)


def test_a_closed_pipe_is_quiet(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {f"p{i}": "MKVACDEF" * 8 for i in range(2000)})
    words = " ".join([*COMMAND, "score", "-q", str(runs["both"]), str(path)])
    result = subprocess.run(
        ["bash", "-c", f"{words} | head -3; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=machine.HANG_S
    )
    assert result.stdout.count(b"\n") == 3
    assert result.stderr == b""
    assert result.returncode == 141


def test_one_protein_needs_another_to_validate_on(tmp_path: Path) -> None:
    one = write_fasta(tmp_path / "one.fa", {"a": "MKVAMKVA", "again": "MKVAMKVA"})
    words = ["train", "--fasta", one, "-o", tmp_path / "run", "--steps", 1, "--batch-tokens", 64]
    result = in_process(*words)
    assert result.returncode == 1
    assert error_line(result).startswith(f"{one}: has fewer than two distinct sequences")
    assert "--validate" in error_line(result)
    assert not (tmp_path / "run").exists()
    assert in_process(*words, "--validate", one).returncode == 0


def test_verbose_says_what_is_computed_where_and_what_was_mended(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKVA", "b": "mk-v"})
    plain = in_process("score", runs["both"], path)
    message = in_process("score", "-v", runs["both"], path, "--dtype", "float64")
    assert len(plain.stderr.splitlines()) == 1
    for text in ("device cpu, ", ", 1 thread, float64", "read 2 records with 7 residues", "took ", "peak memory ", "MB",
                 "flagged 1 gaps, 1 lower_case"):  # fmt: skip
        assert text in message.stderr.decode()
    ours, exact = ([float(row["ll"]) for row in table(result.stdout)] for result in (plain, message))
    assert ours != exact
    assert ours == pytest.approx(exact, abs=1e-5)


def test_verbose_training_names_data_model_and_checkpoints(fasta: Path, tmp_path: Path) -> None:
    words = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--steps", 2, "--batch-tokens", 100, "-v"]
    message = in_process(*words, "--checkpoint-every", 1).stderr.decode()
    lines = [line.removeprefix("protperf: ") for line in message.splitlines()]
    assert "device cpu, " in lines[0]
    assert "sequences (" in lines[1]
    assert "residues) to validate on" in lines[1]
    assert "parameters, attention relu" in lines[2]
    assert [line.split(" saved after")[0] for line in lines if "saved after" in line] == ["step 1", "step 2"]
    assert lines[-1].startswith("took ")


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no /proc here")
@pytest.mark.parametrize("command", ["train", "score", "doctor"])
def test_an_interruption_while_libraries_load_ends_the_command(
    command: str, runs: dict[str, Path], fasta: Path, tmp_path: Path
) -> None:
    """Thrown into an import it came out as an AttributeError of numpy, or not at all."""
    words = {
        "train": ["--fasta", fasta, "-o", tmp_path / "run", "--steps", 100_000, "-q"],
        "score": [runs["both"], fasta, "-q"],
        "doctor": ["--model", runs["both"]],
    }
    # They load the same libraries; what they do after that differs.
    for delay_s in (0.0, 0.1, 0.2, 0.4, 0.6) if command == "score" else (0.1, 0.6):
        process = subprocess.Popen(
            [*COMMAND, command, *map(str, words[command])], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        maps = Path(f"/proc/{process.pid}/maps")
        while process.poll() is None and "_multiarray_umath" not in maps.read_text():
            time.sleep(0.005)
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=machine.HANG_S)
        assert process.returncode in (130, -signal.SIGINT) or (command != "train" and process.returncode == 0), message
        assert "Traceback" not in message
