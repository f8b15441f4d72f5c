"""Tables that every reader understands: UTF-8 wherever they go, and one spelling of a missing number."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import pandas
import polars
import pytest
from commands import environment, in_process, protperf, table

from protperf import lm
from protperf.errors import DataError
from protperf.lm.scoring.row import COLUMNS
from protperf.lm.tables.formats import MISSING, Encoder

ID = "prot\u00e9ine\u2013\u86cb\u767d\u8cea"
NUMBERS = ["ll", "ll_per_residue", "ppl"]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A record with an id outside of ASCII, and one with nothing to score: its numbers are missing."""
    path = tmp_path / "odd.fa"
    path.write_text(f">{ID}\nMKVAC\n>nothing\nXX\n>empty\n\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_standard_output_is_utf8_in_any_locale(encoding: str, runs: dict[str, Path], odd: Path) -> None:
    env = environment(PYTHONIOENCODING=encoding, LC_ALL="C", PYTHONUTF8="0")
    result = protperf("score", runs["both"], odd, env=env)
    assert result.returncode == 0, result.stderr
    assert [row["id"] for row in table(result.stdout)] == [ID, "nothing", "empty"]
    assert b"Traceback" not in result.stderr


def test_a_message_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    result = protperf("score", f"{ID}-run", "x.fa", cwd=tmp_path, env=environment(PYTHONIOENCODING="ascii"))
    assert result.returncode == 3
    assert b"prot\\xe9ine\\u2013" in result.stderr


@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_a_missing_number_is_missing_to_pandas_and_nan_to_polars(
    suffix: str, runs: dict[str, Path], odd: Path, tmp_path: Path
) -> None:
    out = tmp_path / f"out.{suffix}"
    assert in_process("score", "-q", runs["both"], odd, "-o", out).returncode == 0
    separator = "\t" if suffix == "tsv" else ","
    by_pandas, by_polars = pandas.read_csv(out, sep=separator), polars.read_csv(out, separator=separator)
    for name in NUMBERS:
        assert by_pandas[name].dtype == "float64"
        assert by_pandas[name].isna().tolist() == [False, True, True]
        assert by_polars[name].dtype == polars.Float64
        assert by_polars[name].is_nan().to_list() == [False, True, True]
        assert by_polars[name].fill_nan(None).is_null().to_list() == [False, True, True]
    # A column without a single number is one of numbers still.
    out.write_text("\n".join(line for line in out.read_text(encoding="utf-8").splitlines() if ID not in line))
    assert pandas.read_csv(out, sep=separator)["ll"].dtype == "float64"
    assert polars.read_csv(out, separator=separator)["ll"].dtype == polars.Float64


@pytest.mark.parametrize("spelling", ["", "nan", "NA", "null"])
def test_no_other_spelling_leaves_polars_a_column_of_numbers(spelling: str) -> None:
    """Why a missing number is not written as polars would have it: the type of a column would depend on its rows."""
    assert polars.read_csv(io.StringIO(f"id,ll\na,{MISSING}\n"))["ll"].dtype == polars.Float64
    assert polars.read_csv(io.StringIO(f"id,ll\na,{spelling}\n"))["ll"].dtype == polars.String


def test_a_missing_number_is_null_in_json_and_parquet(runs: dict[str, Path], odd: Path, tmp_path: Path) -> None:
    for suffix in ("jsonl", "parquet"):
        assert in_process("score", "-q", runs["both"], odd, "-o", tmp_path / f"out.{suffix}").returncode == 0

    def refused(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refused) for line in lines]
    frame = polars.read_parquet(tmp_path / "out.parquet")
    assert frame.columns == list(COLUMNS)
    for name in NUMBERS:
        assert [row[name] is None for row in rows] == [False, True, True]
        assert frame[name].is_null().to_list() == [False, True, True]
        assert frame[name].dtype == polars.Float64
    assert rows[0]["id"] == frame["id"][0] == ID


def test_python_writes_the_table_that_the_command_writes(runs: dict[str, Path], odd: Path, tmp_path: Path) -> None:
    model = lm.load(runs["both"])
    summary = model.score_files(odd, tmp_path / "python.csv")
    assert (summary.reading.records, summary.reading.flagged["ambiguous"]) == (3, 1)
    assert in_process("score", "-q", runs["both"], odd, "-o", tmp_path / "command.csv").returncode == 0
    assert (tmp_path / "python.csv").read_bytes() == (tmp_path / "command.csv").read_bytes()
    facts = [json.loads((tmp_path / f"{name}.csv.meta.json").read_text()) for name in ("python", "command")]
    own = ("command", "model", "input", "threads")
    assert {key: value for key, value in facts[0].items() if key not in own} == {
        key: value for key, value in facts[1].items() if key not in own
    }
    assert model.score_files([odd], tmp_path / "python.csv", resume=True) == summary


def test_python_writes_to_standard_output_too(
    runs: dict[str, Path], odd: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    lm.load(runs["both"]).score_files(odd, None, format="tsv")
    assert [row["id"] for row in table(capfdbinary.readouterr().out)] == [ID, "nothing", "empty"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row of another table."""

    name: str
    count: int
    value: float | None
    remark: str | None = None


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("tsv", ["name\tcount\tvalue\tremark\n", "a, b\t1\t0.1\tok\n", "c\t2\tNaN\t\n"]),
        ("csv", ["name,count,value,remark\n", '"a, b",1,0.1,ok\n', "c,2,NaN,\n"]),
        (
            "jsonl",
            [
                "",
                '{"name": "a, b", "count": 1, "value": 0.1, "remark": "ok"}\n',
                '{"name": "c", "count": 2, "value": null, "remark": null}\n',
            ],
        ),
    ],
)
def test_any_dataclass_is_a_row(name: str, lines: list[str]) -> None:
    encoder = Encoder(Measured, name)
    rows = [Measured("a, b", 1, 0.1, "ok"), Measured("c", 2, None)]
    assert [encoder.header(), *map(encoder.row, rows)] == lines
    assert encoder.row(Measured("c", 2, math.nan)) == encoder.row(rows[1])


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "a\rb"])
def test_no_cell_breaks_a_line(text: str) -> None:
    with pytest.raises(DataError, match="holds a tab or the end of a line"):
        Encoder(Measured, "tsv").row(Measured(text, 1, 1.0))
