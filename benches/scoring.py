"""Time what reads a model, by engine: one protein from the shell, a proteome, the mutants of a protein, a very long
protein, and one more residue.

The models have random weights: one training step made them. Each task runs in a process of its own, the engines in
turn; no time is printed unless the engines gave the same scores.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import report

import protperf
from protperf import io, lm
from protperf.lm.alphabet import BOS, FIRST_RESIDUE, NUM_STANDARD
from protperf.lm.engine import CAUSAL
from protperf.lm.loading import load_run

ENGINES = ("native", "torch")
TOLERANCE = 1e-5
"""Nats per residue by which the scores of two engines may differ."""
GLOBINS = report.ROOT / "examples" / "data" / "globins.fasta.gz"
COMMAND = [sys.executable, "-m", "protperf.lm.cli"]
TITIN, TEM1 = 34_350, 286
NUM_MUTANTS, FIRST_MUTATED = 4_996, 24
"""As many single mutants as the measured ones of TEM-1, and the position of the first of them."""
STATES = (1, 32)
"""Sequences that a decoding step continues at once."""
DECODED = 64


class DisagreementError(Exception):
    """Two engines give different scores, or a task failed, so that its time has no meaning."""


@dataclass(frozen=True)
class Task:
    """What is timed: a model, a function of it and of an engine, and what a result is counted in.

    Attributes:
        work: the name of a function of `WORK`.
        unit: `s`, or what there is a number of per second, or `us`.
    """

    name: str
    size: str
    work: str
    unit: str
    argument: str = ""


@dataclass(frozen=True)
class Outcome:
    """Seconds of a task, how much was done in them, scores by which engines are compared, and peak memory in bytes."""

    seconds: float
    amount: float
    scores: list[float]
    peak: int = 0


def protein(length: int) -> str:
    """Random residues, the same ones for a length every time."""
    drawn = np.random.default_rng(length).integers(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD, length)
    return io.decode(drawn.astype(np.uint8))


def command_of(run: str, argument: str, engine: str) -> list[str]:
    """`protperf score` of a file."""
    return [*COMMAND, "score", run, argument, "--method", "ll", "--engine", engine, "-q"]


def from_shell(run: str, argument: str, engine: str) -> Outcome:
    """A file by the command, from its start to its end."""
    started = time.perf_counter()
    done = subprocess.run(command_of(run, argument, engine), stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    return Outcome(seconds, 1, ll_per_residue(done.stdout))


def ll_per_residue(table: str) -> list[float]:
    """A column of a table of scores."""
    head, *rows = (line.split("\t") for line in table.splitlines())
    return [float(row[head.index("ll_per_residue")]) for row in rows]


def proteome(run: str, argument: str, engine: str) -> Outcome:
    """The residues of a file, once the model is loaded."""
    model = lm.load(run, engine=engine)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.tsv"
        started = time.perf_counter()
        summary = model.score_files(argument, out, method="ll")
        seconds = time.perf_counter() - started
        return Outcome(seconds, summary.reading.residues, ll_per_residue(out.read_text(encoding="utf-8")))


def mutants(run: str, argument: str, engine: str) -> Outcome:
    """Single substitutions of the first protein of a file, once the model is loaded."""
    wild = next(io.scan(argument)).sequence
    letters = "ACDEFGHIKLMNPQRSTVWY"
    places = range(FIRST_MUTATED, len(wild) + 1)
    every = (f"{wild[place - 1]}{place}{letter}" for place in places for letter in letters if letter != wild[place - 1])
    names = list(islice(every, NUM_MUTANTS))
    model = lm.load(run, engine=engine)
    started = time.perf_counter()
    table = model.variants(wild, names, strategy="full")
    seconds = time.perf_counter() - started
    return Outcome(seconds, len(names), [float(row["score"]) / len(wild) for row in table])


def decoding(run: str, argument: str, engine: str) -> Outcome:
    """Microseconds of one more token in one layer, for so many sequences at once."""
    network, count = load_run(run, engine=engine).engine, int(argument)
    tokens = np.concatenate([[BOS], io.encode(protein(DECODED))[0]]).astype(np.uint8)
    borders, rows = np.arange(count + 1), np.arange(count)
    state, seconds, found = network.empty_state(count), [], []
    for token in tokens:
        given = np.full(count, token, np.uint8)
        started = time.perf_counter()
        found.append(state.advance(given, borders, rows))
        seconds.append(time.perf_counter() - started)
    whole = network.log_probs(tokens, np.array([0, len(tokens)]), CAUSAL)
    if not np.abs(np.stack(found) - whole[:, None]).max() <= 1e-4:
        raise DisagreementError(f"{engine}: token by token is not what reading at once gives")
    # The first tokens allocate; the median of the others is a step in the middle of a text.
    median = float(np.median(seconds[8:]))
    return Outcome(median / network.config.num_layers, 1, [float(x) for x in whole[:, FIRST_RESIDUE]])


WORK: dict[str, Callable[[str, str, str], Outcome]] = {
    "shell": from_shell,
    "proteome": proteome,
    "mutants": mutants,
    "decoding": decoding,
}


def run_task(task: Task, run: Path, engine: str) -> Outcome:
    """A task in a process of its own.

    Raises:
        DisagreementError: it failed.
    """
    words = [sys.executable, __file__, "--work", task.work, str(run), task.argument, engine]
    with tempfile.TemporaryFile("w+") as stream:
        started = subprocess.Popen(words, stdout=stream)
        _, status, usage = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
        if started.returncode:
            raise DisagreementError(f"{task.name} with {engine} ended with exit code {started.returncode}")
        stream.seek(0)
        answer = json.loads(stream.read())
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Outcome(**{**answer, "peak": answer["peak"] or peak})


def serve(words: list[str]) -> int:
    """Do the work of a task and print its outcome."""
    work, run, argument, engine = words
    outcome = WORK[work](run, argument, engine)
    if work == "shell":
        import resource

        # Of the command alone, which is the only child.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        outcome = dataclasses.replace(outcome, peak=peak * (1 if sys.platform == "darwin" else 1024))
    print(json.dumps(dataclasses.asdict(outcome)))
    return 0


def compare(task: Task, found: dict[str, Outcome]) -> float:
    """The largest difference of scores between two engines.

    Raises:
        DisagreementError: it is too large, or a score is not finite.
    """
    scores = {engine: np.array(outcome.scores) for engine, outcome in found.items()}
    truth = scores[ENGINES[-1]]
    if not all(len(values) == len(truth) and np.isfinite(values).all() for values in scores.values()):
        raise DisagreementError(f"{task.name}: scores are missing or not finite")
    off = max(float(np.abs(values - truth).max()) for values in scores.values())
    if not off <= TOLERANCE:
        raise DisagreementError(f"{task.name}: scores of two engines differ by {off:.1e} nats per residue")
    return off


def write_fasta(path: Path, sequences: list[str]) -> str:
    """A file of sequences; returns its path."""
    path.write_text("".join(f">s{i}\n{sequence}\n" for i, sequence in enumerate(sequences)), encoding="utf-8")
    return str(path)


def tasks(folder: Path, data: Path | None, quick: bool) -> Iterator[Task]:
    """What is timed, with the files that it needs; random proteins stand for those of `data` where that is None."""
    source = GLOBINS if data is None else data / "proteome" / "ecoli_k12.fasta.gz"
    tem1 = protein(TEM1) if data is None else next(io.scan(data / "family_blat" / "blat_wt.fasta")).sequence
    one = write_fasta(folder / "one.fasta", [protein(300)])
    yield Task("one protein, shell", "nano", "shell", "s", one)
    records = [record.sequence for record in io.scan(source)]
    # Larger models read fewer proteins, so that each takes about as long.
    for size, part in [("nano", 20)] if quick else [("nano", 1), ("tiny", 5), ("small", 25)]:
        path = write_fasta(folder / f"part-{part}.fasta", records[::part])
        yield Task(f"proteome, 1/{part}", size, "proteome", "residues/s", path)
    yield Task(f"{NUM_MUTANTS:,} mutants of {len(tem1)}", "nano", "mutants", "s", write_fasta(folder / "wt.fa", [tem1]))
    if not quick:
        long = write_fasta(folder / "long.fasta", [protein(TITIN)])
        yield Task(f"{TITIN:,} residues, shell", "small", "shell", "s", long)
    for size in ("tiny",) if quick else ("tiny", "small"):
        for count in STATES:
            yield Task(f"decoding step of {count}, per layer", size, "decoding", "us", str(count))


def make_model(folder: Path, size: str) -> Path:
    """A run directory whose model has made one step."""
    run = folder / f"run-{size}"
    if not run.exists():
        words = [
            "train",
            "--fasta",
            str(GLOBINS),
            "-o",
            str(run),
            "--size",
            size,
            "--steps",
            "1",
            "--batch-tokens",
            "512",
            "--recipe",
            "plain",
        ]
        subprocess.run([*COMMAND, *words, "-q"], check=True)
    return run


def figure(task: Task, outcomes: list[Outcome]) -> tuple[float, float]:
    """Best and median of repeated outcomes in the unit of a task."""
    seconds = [outcome.seconds for outcome in outcomes]
    scale = {"s": lambda s: s, "us": lambda s: 1e6 * s}.get(task.unit, lambda s: outcomes[0].amount / s)
    return scale(min(seconds)), scale(float(np.median(seconds)))


def row(task: Task, found: dict[str, list[Outcome]], off: float) -> list[str]:
    """A row of the table."""
    digits = 0 if "/" in task.unit else 2
    cells, medians = [task.name, task.size, task.unit], []
    for engine in ENGINES:
        best, median = figure(task, found[engine])
        medians.append(float(np.median([outcome.seconds for outcome in found[engine]])))
        cells += [f"{median:,.{digits}f} ({best:,.{digits}f})", f"{found[engine][0].peak / 1e6:,.0f}"]
    return [*cells, f"{medians[1] / medians[0]:.2f}", f"{off:.0e}"]


HEADER = ["task", "model", "unit", ENGINES[0], "MB", ENGINES[1], "MB", "× slower", "difference"]


def measure(task: Task, run: Path, repeats: int) -> tuple[dict[str, list[Outcome]], float]:
    """Outcomes by engine, which take turns, and the largest difference of their scores."""
    found: dict[str, list[Outcome]] = {engine: [] for engine in ENGINES}
    for _ in range(repeats):
        for engine in ENGINES:
            found[engine].append(run_task(task, run, engine))
    return found, compare(task, {engine: outcomes[0] for engine, outcomes in found.items()})


def line(task: Task, found: dict[str, list[Outcome]], off: float) -> str:
    """A line of JSON: every measurement of a task."""
    facts: dict[str, object] = {"bench": "scoring", **dataclasses.asdict(task), "difference": off}
    facts["amount"] = found[ENGINES[0]][0].amount
    for engine, outcomes in found.items():
        facts[engine] = {"seconds": [each.seconds for each in outcomes], "peak": max(each.peak for each in outcomes)}
    return json.dumps(facts) + "\n"


def parse() -> argparse.Namespace:
    """The options of the bench."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    data = os.environ.get("PROTPERF_TEST_DATA")
    parser.add_argument("--data", type=Path, default=data and Path(data), help="folder of protein sets")
    parser.add_argument("--threads", type=int, default=protperf.build_info()["num_threads"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="the tasks whose name holds this text")
    parser.add_argument("--quick", action="store_true", help="small models, a twentieth of the proteome, one repeat")
    parser.add_argument("--json", type=Path, help="also append one line per task to this file")
    return parser.parse_args()


def main() -> int:
    """Parse, measure, and print only when everything agreed."""
    if sys.argv[1:2] == ["--work"]:
        return serve(sys.argv[2:])
    arguments = parse()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.update({name: str(arguments.threads) for name in ("PROTPERF_NUM_THREADS", "OMP_NUM_THREADS")})
    rows, lines = [], []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for task in tasks(Path(folder), arguments.data, arguments.quick):
                if arguments.only not in task.name:
                    continue
                print(f"{task.name}, {task.size}", file=sys.stderr, flush=True)
                run = make_model(Path(folder), task.size)
                found, off = measure(task, run, 1 if arguments.quick else arguments.repeats)
                rows.append(row(task, found, off))
                lines.append(line(task, found, off))
        except DisagreementError as error:
            print(f"no figures: {error}", file=sys.stderr)
            return 1
    print(f"{report.describe_machine()}, {arguments.threads} threads; median (best), peak memory\n")
    print(report.markdown(HEADER, rows))
    if arguments.json:
        with arguments.json.open("a", encoding="utf-8") as stream:
            stream.writelines(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
