"""`protperf variants` and `Model.variants`: tables in, the same rows out with their scores; faults with their place."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import math
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
from commands import error_line, in_process, protperf, table
from conftest import LETTERS
from hypothesis import given, settings
from hypothesis import strategies as st
from tracer import KILL, trace

import protperf.lm as lm
from protperf import errors
from protperf import io as sequences
from protperf.lm.cli import main
from protperf.lm.tables import sink
from protperf.lm.tables.text_table import TextTable
from protperf.lm.variants.parse import is_variant

WILD = "MSIQHFRVALIPFFAAFCLPVFAHPETLVKVKDAEDQLGARVGY"
HEADER = "note,mutant,DMS_score,DMS_score_bin"


def write_table(path: Path, count: int = 40, seed: int = 1) -> list[str]:
    """A DMS table of singles and multi-mutants in no order; returns its variants."""
    rng = random.Random(seed)
    names = []
    for i in range(count):
        sites = sorted(rng.sample(range(len(WILD)), 1 + i % 3))
        pairs = [(site, rng.choice([x for x in LETTERS if x != WILD[site]])) for site in sites]
        names.append(":".join(f"{WILD[site]}{site + 1}{new}" for site, new in pairs))
    lines = [f'"kept, {i}",{name},{rng.gauss(0, 1):.3f}0,{i % 2}' for i, name in enumerate(names)]
    text = "\n".join([HEADER, *lines]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return names


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_variants_on_the_command_line(runs: dict[str, Path]) -> None:
    words = ["A9G", "p.Ala9Gly:Ser2Thr", "R7_A9del", "WT"]
    result = in_process("variants", "-q", runs["both"], *words, "--wt", WILD)
    assert (result.returncode, result.stderr) == (0, b"")
    rows = table(result.stdout)
    assert list(rows[0]) == ["variant", "normalized", "score", "score_per_residue", "num_mutations"]
    assert [row["variant"] for row in rows] == words
    assert [row["normalized"] for row in rows] == ["A9G", "S2T:A9G", "R7_A9del", "WT"]
    assert [row["num_mutations"] for row in rows] == ["1", "2", "1", "0"]
    assert float(rows[3]["score"]) == 0
    # As two scores of the command `score` give it.
    model = lm.load(runs["both"])
    mutant, wild = model.score([WILD[:8] + "G" + WILD[9:], WILD]).numpy("ll")
    assert float(rows[0]["score"]) == pytest.approx(mutant - wild, abs=1e-4)


@pytest.mark.parametrize("name", ["dms.csv", "dms.csv.gz", "dms.tsv"])
def test_other_columns_stay_as_they_are_and_where_they_are(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    names = write_table(tmp_path / "x.csv")
    text = (tmp_path / "x.csv").read_text()
    if name.endswith("tsv"):
        text = "".join("\t".join(cells) + "\n" for cells in csv.reader(text.splitlines()))
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    out = tmp_path / "out.csv"
    words = ["--wt", WILD, "--label-col", "DMS_score", "-o", out, "-q"]
    assert in_process("variants", runs["both"], tmp_path / name, *words).returncode == 0
    before, after = rows_of(tmp_path / "x.csv"), rows_of(out)
    assert list(after[0]) == [*HEADER.split(","), "score", "score_per_residue", "num_mutations"]
    assert [{key: row[key] for key in before[0]} for row in after] == before
    alone = in_process("variants", "-q", runs["both"], *names, "--wt", WILD)
    assert [float(row["score"]) for row in after] == pytest.approx(
        [float(row["score"]) for row in table(alone.stdout)], abs=1e-4
    )


def test_a_label_is_a_number_where_the_format_has_numbers(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "dms.csv"
    path.write_text("mutant,DMS_score\nA9G,0.50\nA9C,\nA9D,NA\n")
    for out in ("x.tsv", "x.jsonl", "x.parquet"):
        words = ["--wt", WILD, "--label-col", "DMS_score", "-o", tmp_path / out]
        assert in_process("variants", runs["both"], path, *words).returncode == 0
    assert [row["DMS_score"] for row in table((tmp_path / "x.tsv").read_bytes())] == ["0.50", "", "NA"]
    assert [json.loads(x)["DMS_score"] for x in (tmp_path / "x.jsonl").read_text().splitlines()] == [0.5, None, None]
    frame = pandas.read_parquet(tmp_path / "x.parquet")
    assert frame["DMS_score"].dtype == float
    assert frame["DMS_score"].isna().tolist() == [False, True, True]


def test_a_list_has_one_variant_per_line(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# mine\nA9G\n\nA9_I11del\nA9C,L10W\n")
    rows = table(in_process("variants", runs["both"], path, "--wt", WILD).stdout)
    assert [row["variant"] for row in rows] == ["A9G", "A9_I11del", "A9C,L10W"]
    piped = protperf("variants", "-q", runs["both"], "-", "--wt", WILD, stdin=path.read_bytes())
    assert table(piped.stdout) == rows


def test_mutated_sequences_are_scored_like_the_variants_that_they_are(runs: dict[str, Path], tmp_path: Path) -> None:
    names = write_table(tmp_path / "dms.csv")
    mutants = [lm_mutant(name) for name in names]
    (tmp_path / "seq.tsv").write_text("id\tmutated_sequence\n" + "".join(f"{i}\t{x}\n" for i, x in enumerate(mutants)))
    for run, strategy in (("both", "full"), ("masked", "masked"), ("masked", "masked-joint"), ("causal", "wt")):
        words = ["--wt", WILD, "--strategy", strategy, "-q"]
        named = table(in_process("variants", runs[run], tmp_path / "dms.csv", *words).stdout)
        spelled = in_process("variants", runs[run], tmp_path / "seq.tsv", "--seq-col", "mutated_sequence", *words)
        assert [row["score"] for row in table(spelled.stdout)] == [row["score"] for row in named]
    # Where there is nothing else, the column need not be named.
    found = in_process("variants", runs["both"], tmp_path / "seq.tsv", "--wt", WILD, "-q")
    assert len(table(found.stdout)) == len(names)
    (tmp_path / "seq.tsv").write_text(f"s\n{WILD[:20]}{WILD[25:]}\n")
    words = ["--seq-col", "s", "--wt", WILD]
    assert in_process("variants", runs["both"], tmp_path / "seq.tsv", *words).returncode == 0
    refused = in_process("variants", runs["masked"], tmp_path / "seq.tsv", *words)
    assert refused.returncode == 1
    assert f"{tmp_path}/seq.tsv:2: V21_T25del changes the length" in error_line(refused).replace(
        "V21_P25del", "V21_T25del"
    )


def lm_mutant(name: str) -> str:
    letters = list(WILD)
    for part in name.split(":"):
        letters[int(part[1:-1]) - 1] = part[-1]
    return "".join(letters)


def test_several_models_are_averaged(runs: dict[str, Path], tmp_path: Path) -> None:
    write_table(tmp_path / "dms.csv")
    words = [tmp_path / "dms.csv", "--wt", WILD, "-q"]
    both, masked = (table(in_process("variants", runs[name], *words).stdout) for name in ("both", "masked"))
    more = [*words, "--also", runs["masked"], "--per-model"]
    rows = table(in_process("variants", runs["both"], *more).stdout)
    assert [*rows[0]][-4:] == ["score", "num_mutations", "score_1", "score_2"]
    for row, one, two in zip(rows, both, masked, strict=True):
        assert (row["score_1"], row["score_2"]) == (one["score"], two["score"])
        assert float(row["score"]) == pytest.approx((float(one["score"]) + float(two["score"])) / 2, abs=1e-12)


FAULTS = {
    "contradicts.csv": ("mutant,x\nA9G,1\nS3G,2\n", [], "PATH:3: S3G: the wild type has I at position 3, not S"),
    "outside.csv": ("mutant\nA9G\nA99G\n", [], "PATH:3: A99G: position 99 lies outside of the wild type, which has 1"),
    "twice.csv": ("mutant\nA9G:A9W\n", [], "PATH:2: A9G and A9W change the same site"),
    "syntax.csv": ("mutant\nA9G\n9AG\n", [], "PATH:3: '9AG' is not a variant; write A24G,"),
    "empty_cell.csv": ("mutant,x\nA9G,1\n,2\n", [], "PATH:3: '' is not a variant"),
    "stop.csv": ("mutant\nA9*\n", [], "PATH:2: 'A9*' makes or moves a stop, which has no score"),
    "column_twice.csv": ("mutant,x,x\nA9G,1,2\n", [], "PATH:1: two columns are called 'x'; rename one"),
    "no_column.csv": ("name,x\nA9G,1\n", [], "hgvs_pro; the first row names 'name', 'x'; say"),
    "no_such_column.csv": ("name,x\nA9G,1\n", ["--col", "nam"], "no column 'nam'; did you mean name?"),
    "no_label.csv": ("mutant,x\nA9G,1\n", ["--label-col", "fit"], "no column 'fit'; the first row names 'mutant', 'x'"),
    "label_text.csv": ("mutant,x\nA9G,high\n", ["--label-col", "x"], "PATH:2: x is 'high'; it must be a number, or"),
    "label_inf.csv": ("mutant,x\nA9G,inf\n", ["--label-col", "x"], "PATH:2: x is 'inf'; it must be a number, or empty"),
    "bin.csv": ("mutant,x,b\nA9G,1,2\n", ["--label-col", "x", "--bin-col", "b"], "PATH:2: b is '2'; it must be 0 or 1"),
    "fields.csv": ("mutant,x\nA9G,1\nA9W\n", [], "PATH:3: 1 fields in a table of 2 columns"),
    "quote.csv": ('mutant,x\nA9G,"1\nA9W,2\n', [], "PATH:2: a quote is not closed, or is followed by text"),
    "after_quote.csv": ('mutant,x\nA9G,1\nA9W,"2"3\n', [], "PATH:3: a quote is not closed, or is followed by text"),
    "sequence.csv": ("s\nMK1\n", ["--seq-col", "s"], "PATH:2: s: digit '1' in the sequence"),
    "sequence_na.csv": ("s\nNA\n", ["--seq-col", "s"], "PATH:2: s is 'NA', which is not a sequence"),
    "score_there.csv": ("mutant,score\nA9G,1\n", [], "a column 'score' already; name the new one with --score-col"),
    "list.txt": ("A9G\nA9G:\n", [], "PATH:2: '' in 'A9G:' is not a variant"),
    "list_label.txt": ("A9G\n", ["--label-col", "x"], "PATH: no column 'x'; it is a list without columns"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("out", [[], ["-o", "out.tsv"]], ids=["stdout", "file"])
def test_a_faulty_table_is_one_line_with_its_place(
    name: str, out: list[str], runs: dict[str, Path], tmp_path: Path
) -> None:
    text, words, message = FAULTS[name]
    path = tmp_path / name
    path.write_text(text)
    result = in_process("variants", "-q", runs["both"], path, "--wt", WILD, *words, *out, cwd=tmp_path)
    assert message.replace("PATH", str(path)) in error_line(result)
    assert result.returncode == (2 if name == "score_there.csv" else 1)
    assert result.stdout == b""
    assert os.listdir(tmp_path) == [name]


def test_a_table_that_is_not_text_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    for data, message in (
        ("mutant\nA9G\n".encode("utf-16"), "x.csv: is UTF-16 after line 0; save it as UTF-8"),
        (b"mutant,x\nA9G,\xe9\n", "x.csv: is not UTF-8 after line"),
        (gzip.compress(b"mutant\n" + b"A9G\n" * 99)[:-9], "x.csv: "),
    ):
        path.write_bytes(data)
        result = in_process("variants", runs["both"], path, "--wt", WILD)
        assert result.returncode == 1
        assert message in error_line(result)


_BYTES = [b"mutant", b"A9G", *(bytes([byte]) for byte in b',\t;"\n\r\0\xff#'), b"\xef\xbb\xbf", b"sep=;"]


@given(st.lists(st.sampled_from(_BYTES), max_size=12).map(b"".join))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_table_or_an_error_with_its_file(data: bytes) -> None:
    said = None
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            found = TextTable(file.name, is_variant, "variant")
            rows = list(found)
        except errors.DataError as error:
            said = str(error)
    if said is None:
        assert all(len(row.cells) == len(found.columns) for row in rows)
    else:
        assert said.startswith(file.name)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["A9G"], 2, "missing option --wt"),
        (["--wt", WILD], 2, "missing argument VARIANTS..."),
        (["A9G", "--wt", "none.fa"], 3, "none.fa: "),
        (["none.csv", "--wt", WILD], 3, "none.csv: "),
        (["file", "--wt", WILD], 2, "'file' is not a variant; if the file is meant, write ./file"),
        (["A9G", "none.csv", "--wt", WILD], 2, "none.csv is a file and 'A9G' comes with it"),
        (["A9G", "--wt", WILD, "--strategy", "mask"], 2, "auto, wt, masked, masked-joint, full"),
        (["A9G", "--wt", WILD, "--direction", "both"], 2, "reads forward only and cannot score both; use --direction"),
        (["A9G", "--wt", WILD, "--col", "a", "--seq-col", "b"], 2, "--col and --seq-col exclude each other"),
        (["A9G", "--wt", WILD, "--bin-col", "a"], 2, "--bin-col needs --label-col"),
        (["A9G", "--wt", WILD, "--label-col", "a"], 2, "the variants are a list; name columns for a table only"),
        (["A9G", "--wt", WILD, "--also", "nowhere"], 3, "nowhere: "),
        (["A9G", "--wt", WILD, "--offset", "x"], 2, "--offset is 'x'"),
        (["A9G", "--wt", WILD, "--offset", "5"], 1, "variant 0: A9G: the wild type has H at position 9, not A"),
        (["A9G", "--wt", "MK-V"], 1, "wild type: "),
        (["A9G", "--wt", WILD, "--resume"], 2, "--resume continues a file; name it with --out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_plain_line(
    words: list[str], code: int, message: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mutant\nA9G\n")
    result = in_process("variants", runs["both"], *words, cwd=tmp_path)
    assert message in error_line(result)
    assert result.returncode == code
    assert result.stdout == b""


def test_the_offset_that_was_meant_is_suggested(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("H24C\nE26del\nK32W:D33A\nV42G\nY44F\n")
    words = ["variants", runs["both"], tmp_path / "list.txt", "--wt"]
    domain = "HPETLVKVKDAEDQLGARVGYIELDL"
    wrong = in_process(*words, domain)
    assert "variants fit with --offset 24" in error_line(wrong)
    assert wrong.returncode == 1
    # One of the variants fits nowhere.
    (tmp_path / "list.txt").write_text("H24C\nE26del\nK32W:D33A\nV42G\nW44F\n")
    assert error_line(in_process(*words, domain)).endswith("H24C: the wild type has L at position 24, not H")
    (tmp_path / "list.txt").write_text("H24C\nE26del\nK32W:D33A\nV42G\nY44F\n")
    assert in_process(*words, domain, "--offset", 24).returncode == 0


def test_variants_without_a_score_may_stay_in_the_table(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "dms.csv"
    path.write_text("mutant,y\nA9G,1\nA9*,2\nS3G,3\nA9W,4\n")
    words = ["variants", runs["both"], path, "--wt", WILD, "--invalid", "nan"]
    result = in_process(*words)
    assert result.returncode == 5
    assert [row["score"] == "NaN" for row in table(result.stdout)] == [False, True, True, False]
    warning = f"2 of 4 variants have no score; the first is {path}:3: 'A9*' makes or moves a stop"
    assert warning in result.stderr.decode()
    # An argument that a reason names is spelled as it is typed.
    far = in_process("variants", runs["both"], "A99G", "--wt", WILD, "--invalid", "nan").stderr.decode()
    assert "A99G: position 99 lies outside of the wild type, which has 1 to 44 with --offset 1" in far
    assert in_process(*words, "--allow-rejects", "--label-col", "y").returncode == 0
    with pytest.warns(UserWarning, match="2 of 4 variants have no score"):
        found = lm.load(runs["both"]).variants(WILD, path, invalid="nan", label_col="y")
    assert np.isnan(found.numpy("score")).tolist() == [False, True, True, False]
    assert (found.metrics.num_variants, found.metrics.num_missing) == (2, 2)


def test_an_empty_table_is_its_header_and_a_warning(runs: dict[str, Path], tmp_path: Path) -> None:
    for text in ("", "mutant,x\n"):
        (tmp_path / "x.csv").write_text(text)
        result = in_process("variants", runs["both"], tmp_path / "x.csv", "--wt", WILD)
        assert result.returncode == 0
        assert "warning: no variants" in result.stderr.decode()
        assert result.stdout.count(b"\n") == 1


def test_notes_name_what_was_left_out(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("sep=;\n# from a database\nmutant;num_mutations\nA9G;7\n")
    result = in_process("variants", runs["both"], tmp_path / "x.csv", "--wt", WILD)
    assert table(result.stdout)[0]["num_mutations"] == "7"
    for text in ("read as the separator", "1 lines that start with '#'", "has a column 'num_mutations' already"):
        assert text in result.stderr.decode()


# -- interruptions


@pytest.fixture
def score(runs: dict[str, Path], tmp_path: Path) -> Callable[..., dict[str, object]]:
    """Scores 120 variants in several batches into `folder/NAME`, with a journal after each batch."""
    path = tmp_path / "dms.csv"
    write_table(path, 120)

    def run(folder: Path, *words: str, name: str = "scores.tsv") -> dict[str, object]:
        sink.SYNC_S = 0.0
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                common = ["--wt", WILD, "--label-col", "DMS_score", "--batch-tokens", "8", "-q", "-j", "1"]
                code = main(["variants", str(runs["both"]), str(path), *common, "-o", str(folder / name), *words])
            except SystemExit as error:
                code = int(error.code or 0)
        return {"code": code, "said": said.getvalue()}

    return run


@pytest.mark.parametrize(
    ("strategy", "name"),
    [
        ("full", "scores.tsv"), ("full", "scores.parquet"), ("masked", "scores.jsonl"), ("masked-joint", "scores.tsv"),
    ],
)  # fmt: skip
def test_an_interrupted_table_is_continued_to_the_same_bytes_and_figures(
    strategy: str, name: str, score: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    whole = trace(lambda: score(folder, "--strategy", strategy, name=name), folder)
    golden = whole.report["result"]
    assert golden["code"] == 0
    assert "120 variants: Spearman" in golden["said"]
    data = (folder / name).read_bytes()
    appended = [at for at, call in enumerate(whole.calls, 1) if str(call).startswith(f"pwrite {name}.part ")]
    assert len(appended) >= 4
    for at in (appended[2], appended[-1], len(whole.calls) - 1):
        shutil.rmtree(folder)
        folder.mkdir()
        action = KILL if at % 2 else signal.SIGTERM
        trace(lambda: score(folder, "--strategy", strategy, name=name), folder, at, action)
        again = trace(lambda: score(folder, "--resume", "--strategy", strategy, name=name), folder).report["result"]
        assert again == golden
        assert (folder / name).read_bytes() == data
        assert sorted(os.listdir(folder)) == [name, f"{name}.meta.json"]


def test_a_finished_table_is_not_continued_with_other_options(
    score: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    done = score(tmp_path)
    assert done["code"] == 0
    # The figures of a finished table come from its rows.
    assert score(tmp_path, "--resume") == done
    for words, what in ((["--strategy", "wt"], "strategy"), (["--dtype", "float64"], "dtype")):
        refused = score(tmp_path, "--resume", *words)
        assert refused["code"] == 2
        assert f"is a finished table of another {what}" in str(refused["said"])
    (tmp_path / "dms.csv").write_text("mutant,DMS_score\nA9G,1\n")
    assert "another input sha256" in str(score(tmp_path, "--resume")["said"])


# -- Python


def test_python_gives_the_rows_of_the_command(runs: dict[str, Path], tmp_path: Path) -> None:
    names = write_table(tmp_path / "dms.csv")
    model = lm.load(runs["both"])
    found = model.variants(WILD, tmp_path / "dms.csv", label_col="DMS_score", also=[runs["masked"]])
    result = in_process(
        "variants",
        runs["both"],
        tmp_path / "dms.csv",
        "--wt",
        WILD,
        "--also",
        runs["masked"],
        "--label-col",
        "DMS_score",
    )
    assert [repr(x) for x in found.numpy("score").tolist()] == [row["score"] for row in table(result.stdout)]
    assert found.to_pandas()["DMS_score"].dtype == float
    assert found.to_polars()["mutant"].to_list() == names
    assert str(found.metrics) in result.stderr.decode()
    assert found[3]["mutant"] == names[3]
    # One variant, and any iterable of them; a generator is read once.
    assert len(model.variants(WILD, "A9G")) == 1
    given = (name for name in names)
    assert model.variants(WILD, given).numpy("variant").tolist() == names
    with pytest.raises(errors.DataError, match="variant 1: S3G: the wild type has I"):
        model.variants(("id", WILD), ["A9G", "S3G"])
    with pytest.raises(errors.DtypeError, match=r"give its column of variants, such as table\['mutant'\]"):
        model.variants(WILD, found.to_pandas())
    with pytest.raises(errors.DtypeError, match="variant 1 is a int"):
        model.variants(WILD, ["A9G", 3])
    assert lm.compare(found.numpy("score"), found.numpy("DMS_score"), found.numpy("DMS_score_bin")) == found.metrics
    with pytest.raises(errors.ConfigError, match="unknown option 'stratgy'; did you mean strategy"):
        model.variants(WILD, ["A9G"], stratgy="wt")


# -- public data


def test_a_table_of_proteingym_comes_back_with_its_columns(
    runs: dict[str, Path], shared_data: Path, tmp_path: Path
) -> None:
    folder, out = shared_data / "family_blat", tmp_path / "scored.csv"
    words = ["--wt", folder / "blat_wt.fasta", "--label-col", "DMS_score", "-o", out]
    result = in_process("variants", runs["both"], folder / "dms_stiffler_2015.csv.gz", *words)
    assert result.returncode == 0, result.stderr
    with gzip.open(folder / "dms_stiffler_2015.csv.gz", "rt") as stream:
        before = list(csv.reader(stream))
    with open(out, newline="") as stream:
        after = list(csv.reader(stream))
    assert [row[: len(before[0])] for row in after] == before
    assert b"4996 variants: Spearman " in result.stderr
    frame = pandas.read_csv(out)
    figure = frame[["score", "DMS_score"]].corr(method="spearman").iloc[0, 1]
    assert f"Spearman {figure:.3f}" in result.stderr.decode()
    # The sequences that the table spells out are those that its variants name.
    sample = frame.sample(40, random_state=1)
    model = lm.load(runs["both"])
    spelled = sample["mutated_sequence"].tolist()
    wild = model.score(folder / "blat_wt.fasta").numpy("ll")[0]
    np.testing.assert_allclose(sample["score"], model.score(spelled).numpy("ll") - wild, atol=1e-3)


def test_a_domain_is_numbered_as_in_the_whole_protein(runs: dict[str, Path], shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "family_blat"
    (record,) = sequences.scan(folder / "blat_wt.fasta")
    domain = record.sequence[23:286]
    words = ["variants", "-q", runs["masked"], folder / "dms_stiffler_2015.csv.gz", "--wt", domain, "--strategy", "wt"]
    assert len(table(in_process(*words, "--offset", 24).stdout)) == 4996
    assert error_line(in_process(*words)).endswith("this and the next variants fit with --offset 24")


def test_multi_mutants_of_a_large_table_are_read(runs: dict[str, Path], shared_data: Path, tmp_path: Path) -> None:
    with gzip.open(shared_data / "dms_gb1" / "dms_wu_2016.csv.gz", "rt") as stream:
        lines = [line for i, line in enumerate(stream) if i == 0 or i % 500 == 1]
    (tmp_path / "gb1.csv").write_text("".join(lines))
    wild = shared_data / "dms_gb1" / "gb1_wt.fasta"
    for run in ("both", "masked"):
        result = in_process("variants", "-q", runs[run], tmp_path / "gb1.csv", "--wt", wild)
        rows = table(result.stdout)
        assert len(rows) == len(lines) - 1
        assert {row["num_mutations"] for row in rows} == {"0", "2", "3", "4"}
        assert not any(math.isnan(float(row["score"])) for row in rows)
