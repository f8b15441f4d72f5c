"""Scans: every single change against single scores, tables that go on where they stopped, pictures, structures."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas
import pytest
from Bio.PDB import MMCIFIO, PDBIO, MMCIFParser, PDBParser
from Bio.PDB.StructureBuilder import StructureBuilder
from Bio.SeqUtils import seq3
from commands import environment, error_line, in_process, table, write_fasta
from PIL import Image
from tracer import KILL, trace

import protperf.lm as lm
from protperf import errors
from protperf.lm.cli import main
from protperf.lm.scan.heatmap import MAX_POSITIONS, ORDER
from protperf.lm.tables import sink

WILD = "MSIQHFRVALIPFFAAFCLPVFAHPETLVKVKDAEDQLGARVGY"


@pytest.fixture(scope="module")
def model(runs: dict[str, Path]) -> lm.Model:
    return lm.load(runs["both"])


@pytest.mark.parametrize("strategy", ["full", "masked", "wt"])
def test_a_scan_is_the_scores_of_all_single_variants(strategy: str, model: lm.Model) -> None:
    scan = model.scan(WILD, strategy=strategy, region="5-12", offset=3)
    assert scan.matrix.shape == (8, 20)
    assert scan.sequence == WILD[2:10]
    assert scan.positions.tolist() == list(range(5, 13))
    names = [f"{row['wt']}{row['pos']}{row['mt']}" for row in scan.table]
    assert len(set(names)) == 8 * 19
    expected = model.variants(WILD, names, strategy=strategy, offset=3).numpy("score")
    np.testing.assert_allclose(scan.table.numpy("score"), expected, atol=1e-4)
    for row in scan.table:
        assert scan.matrix[row["pos"] - 5, scan.letters.index(row["mt"])] == row["score"]
    assert (scan.matrix == 0).sum() == 8
    np.testing.assert_allclose(scan.mean, scan.matrix.sum(1) / 19)
    frame = scan.table.to_pandas()
    assert [*frame.columns] == ["id", "pos", "wt", "mt", "score"]
    np.testing.assert_allclose(frame.groupby("pos")["score"].mean(), scan.mean)


def test_full_scans_equal_whole_sequences_scored_one_by_one(model: lm.Model) -> None:
    scan = model.scan(WILD)
    wild = model.score(WILD).numpy("ll")[0]
    rows = [row for i, row in enumerate(scan.table) if i % 17 == 0]
    mutants = [WILD[: row["pos"] - 1] + row["mt"] + WILD[row["pos"] :] for row in rows]
    found = model.score(mutants).numpy("ll") - wild
    np.testing.assert_allclose([row["score"] for row in rows], found, atol=1e-5 * len(WILD))


def test_deletions_are_a_column_of_their_own(model: lm.Model) -> None:
    scan = model.scan(WILD, region="9-12", dels=True)
    names = [f"{WILD[i - 1]}{i}del" for i in range(9, 13)]
    alone = model.variants(WILD, names)
    np.testing.assert_allclose(scan.deletions, alone.numpy("score"), atol=1e-4)
    rows = [row for row in scan.table if row["mt"] == "del"]
    per_residue = [row["score_per_residue"] for row in rows]
    np.testing.assert_allclose(per_residue, alone.numpy("score_per_residue"), atol=1e-6)
    assert model.scan(WILD, region="9-12").deletions is None
    with pytest.raises(errors.ConfigError, match="dels=True needs strategy='full'"):
        model.scan(WILD, dels=True, strategy="masked")


def test_residues_without_a_score_are_missing_and_the_others_are_not(model: lm.Model) -> None:
    scan = model.scan("MKXAU", dels=True)
    assert np.isnan(scan.matrix).all(1).tolist() == [False, False, True, False, False]
    assert np.isnan(scan.mean).tolist() == [False, False, True, False, False]
    assert len([row for row in scan.table if row["wt"] == "U"]) == 21
    np.testing.assert_allclose(scan.mean[4], scan.matrix[4].mean())


def test_several_models_are_averaged(model: lm.Model, runs: dict[str, Path]) -> None:
    other = lm.load(runs["masked"])
    found = model.scan(WILD, region="3-5", also=[runs["masked"]])
    assert found.strategies == ("full", "masked")
    ours, theirs = model.scan(WILD, region="3-5"), other.scan(WILD, region="3-5")
    np.testing.assert_allclose(found.matrix, (ours.matrix + theirs.matrix) / 2, atol=1e-6)


@pytest.mark.parametrize("name", ["x.tsv", "x.csv", "x.jsonl", "x.parquet"])
@pytest.mark.parametrize("words", [[], ["--matrix"]], ids=["long", "matrix"])
def test_the_command_writes_the_same_scan(
    name: str, words: list[str], model: lm.Model, runs: dict[str, Path], tmp_path: Path
) -> None:
    wt = write_fasta(tmp_path / "wt.fa", {"tem": WILD})
    result = in_process("scan", "-q", runs["both"], wt, "--region", "5-12", "-o", tmp_path / name, *words)
    assert (result.returncode, result.stderr, result.stdout) == (0, b"", b"")
    readers = {"tsv": lambda p: pandas.read_csv(p, sep="\t"), "csv": pandas.read_csv, "parquet": pandas.read_parquet}
    readers["jsonl"] = lambda p: pandas.read_json(p, lines=True)
    frame = readers[name.split(".")[1]](tmp_path / name)
    expected = model.scan(("tem", WILD), region="5-12")
    if words:
        assert [*frame.columns] == ["id", "pos", "wt", *expected.letters]
        np.testing.assert_allclose(frame[[*expected.letters]].to_numpy(), expected.matrix, atol=1e-12)
    else:
        np.testing.assert_allclose(frame["score"], expected.table.numpy("score"), atol=1e-12)
    assert set(frame["id"]) == {"tem"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([WILD, "--region", "5:9"], 2, "--region is '5:9'; write it like 24-286, in the numbering of --offset"),
        ([WILD, "--region", "9-5"], 2, "--region is 9-5, but the wild type has the positions 1 to 44 with --offset 1"),
        ([WILD, "--region", "40-50"], 2, "has the positions 1 to 44"),
        ([WILD, "--region", "5-9", "--offset", "24"], 2, "the positions 24 to 67 with --offset 24"),
        ([WILD, "--heatmap", "x.pdf"], 2, "--heatmap is x.pdf; name a file that ends in one of .png, .svg"),
        ([WILD, "--heatmap", "none/x.png"], 3, "none: there is no such directory; make it first"),
        ([WILD, "--structure", "x.pdb"], 2, "--structure and --structure-out belong together"),
        ([WILD, "--structure", "x.pdb", "--structure-out", "y.pdb"], 3, "x.pdb: "),
        ([WILD, "--chain", "A"], 2, "--chain needs --structure"),
        ([WILD, "--dels", "--strategy", "masked"], 2, "--dels needs --strategy full"),
        (["none.fa"], 3, "none.fa: "),
        (["M" * (MAX_POSITIONS + 1), "--heatmap", "x.png"], 2, "at most 3000 positions and this one has 3001"),
        ([WILD, "--direction", "reverse"], 2, "reads forward only"),
        ([], 2, "missing argument FASTA"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else None,
)
def test_a_mistake_is_one_plain_line(
    words: list[str], code: int, message: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    result = in_process("scan", runs["both"], *words, cwd=tmp_path)
    assert message in error_line(result)
    assert result.returncode == code
    assert result.stdout == b""
    assert os.listdir(tmp_path) == []


def test_a_wild_type_of_several_records_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": WILD, "b": WILD})
    assert "holds several records" in error_line(in_process("scan", runs["both"], path))


# -- interruptions


@pytest.fixture
def scanned(runs: dict[str, Path], tmp_path: Path) -> Callable[..., dict[str, object]]:
    """Scans a protein in several batches into `folder`, with a journal after each, and draws it."""

    def run(folder: Path, *words: str) -> dict[str, object]:
        sink.SYNC_S = 0.0
        said = io.StringIO()
        common = ["-q", "-j", "1", "--batch-tokens", "40", "--heatmap", str(folder / "x.svg")]
        with contextlib.redirect_stderr(said):
            try:
                code = main(["scan", str(runs["both"]), WILD, *common, "-o", str(folder / "x.tsv"), *words])
            except SystemExit as error:
                code = int(error.code or 0)
        return {"code": code, "said": said.getvalue()}

    return run


@pytest.mark.parametrize(
    "words", [["--dels"], ["--matrix", "--strategy", "masked"], ["--matrix", "--dels"]], ids=" ".join
)
def test_a_killed_scan_is_continued_to_the_same_table_and_picture(
    words: list[str], scanned: Callable[..., dict[str, object]], tmp_path: Path
) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    whole = trace(lambda: scanned(folder, *words), folder)
    assert whole.report["result"] == {"code": 0, "said": ""}
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "x.tsv.meta.json"}
    assert sorted(files) == ["x.svg", "x.tsv"]
    appended = [at for at, call in enumerate(whole.calls, 1) if str(call).startswith("pwrite x.tsv.part ")]
    assert len(appended) >= 4
    for at in (appended[2], appended[-1]):
        shutil.rmtree(folder)
        folder.mkdir()
        assert trace(lambda: scanned(folder, *words), folder, at, KILL).killed
        assert trace(lambda: scanned(folder, *words, "--resume"), folder).report["result"]["code"] == 0
        assert {name: (folder / name).read_bytes() for name in files} == files
    # A finished scan is drawn again from its rows.
    (folder / "x.svg").unlink()
    assert trace(lambda: scanned(folder, *words, "--resume"), folder).report["result"]["code"] == 0
    assert (folder / "x.svg").read_bytes() == files["x.svg"]
    refused = trace(lambda: scanned(folder, *words, "--resume", "--region", "2-9"), folder).report["result"]
    assert "is a finished table of another region" in refused["said"]


# -- pictures


def test_a_heat_map_is_drawn_as_png_and_svg(runs: dict[str, Path], tmp_path: Path) -> None:
    for name in ("x.png", "x.svg"):
        words = ["--strategy", "wt", "--heatmap", tmp_path / name, "-q"]
        # The same scan makes the same file, of which a small one says as much as a large one.
        files = []
        for wild_type in (WILD, WILD, WILD * 7):
            assert in_process("scan", runs["both"], wild_type, *words).returncode == 0
            files.append((tmp_path / name).read_bytes())
        assert files[0] == files[1] != files[2]
    with Image.open(tmp_path / "x.png") as image:
        width, height = image.size
    # 308 residues: four rows of 80 columns, wide enough for letters of which each is 19 pixels wide.
    assert 1500 < width < 2500
    assert 1500 < height < 3000
    text = "".join(xml.etree.ElementTree.parse(tmp_path / "x.svg").getroot().itertext())
    for word in ("score, nats (red: worse than the wild type, blue: better)", "wild type, positions above"):
        # matplotlib draws text as outlines and keeps it as comments.
        assert word in text or f"<!-- {word} -->" in (tmp_path / "x.svg").read_text()


def test_the_colours_are_centred_at_no_change_and_the_wild_type_is_marked(model: lm.Model) -> None:
    scan = model.scan(WILD, dels=True)
    figure = matplotlib.figure.Figure()
    axes = figure.subplots()
    assert scan.heatmap(ax=axes) is figure
    (image,) = axes.get_images()
    low, high = image.get_clim()
    assert low == -high < 0
    assert image.get_array().shape == (21, len(WILD))
    order = [scan.letters.index(letter) for letter in ORDER]
    np.testing.assert_allclose(image.get_array()[:20], scan.matrix[:, order].T)
    np.testing.assert_allclose(image.get_array()[20], scan.deletions_per_residue * len(WILD))
    marks = axes.collections[0].get_offsets()
    assert [(int(x), ORDER[int(y)]) for x, y in marks] == list(enumerate(WILD))
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [*ORDER, "del"]
    assert "".join(tick.get_text() for tick in axes.get_xticklabels()) == WILD
    # No change is white.
    assert image.cmap(image.norm(0.0))[:3] == pytest.approx((0.97, 0.97, 0.97), abs=0.01)


def test_without_matplotlib_the_package_to_install_is_named_before_any_work(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    program = (
        "import sys; sys.modules['matplotlib.figure'] = None; from protperf.lm.cli import main;"
        "code = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    words = ["scan", runs["both"], WILD, "--heatmap", tmp_path / "x.png"]
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, env=environment())
    assert done.returncode == 4, done.stderr
    assert "install it with pip install matplotlib" in error_line(done)


# -- structures


def test_a_notebook_shows_the_heat_map_or_else_the_first_rows(model: lm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = model.scan([("<b>x</b>", WILD)], region="3-7")
    drawn = xml.etree.ElementTree.fromstring(scan._repr_html_())
    assert drawn.tag.endswith("svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    listed = xml.etree.ElementTree.fromstring(f"<div>{scan._repr_html_()}</div>")
    assert [cell.text for cell in listed.iter("th")] == list(scan.table._columns)
    rows = [[cell.text for cell in row] for row in listed.iter("tr")][1:]
    shown = [[row["id"], str(row["pos"]), row["wt"], row["mt"], f"{row['score']:.4g}"] for row in scan.table]
    assert rows == shown[:20]
    assert listed.find("p").text == "Table of 95 rows, 75 not shown"


def write_structure(path: Path, chains: dict[str, list[tuple[int, str, str]]]) -> Path:
    """A structure of residues (number, insertion code, letter), two atoms each, with a water at the end."""
    builder = StructureBuilder()
    builder.init_structure("x")
    builder.init_model(0)
    for chain, residues in chains.items():
        builder.init_chain(chain)
        builder.init_seg(" ")
        for number, code, letter in residues:
            builder.init_residue(seq3(letter).upper(), " ", number, code)
            for name, element in (("CA", "C"), ("CB", "C")):
                builder.init_atom(name, np.array([number, 0.0, 0.0]), 50.0, 1.0, " ", f" {name} ", element=element)
        builder.init_residue("HOH", "W", 900, " ")
        builder.init_atom("O", np.array([0.0, 1.0, 2.0]), 50.0, 1.0, " ", " O  ", element="O")
    writer = MMCIFIO() if path.suffix == ".cif" else PDBIO()
    writer.set_structure(builder.get_structure())
    writer.save(str(path))
    return path


def residues(start: int, end: int, by: int = 0) -> list[tuple[int, str, str]]:
    """Residues of the wild type from position `start` to `end`, numbered with a shift."""
    return [(i + by, " ", WILD[i - 1]) for i in range(start, end + 1)]


def b_factors(path: Path, chain: str) -> dict[int, set[float]]:
    parser = MMCIFParser(QUIET=True) if path.suffix == ".cif" else PDBParser(QUIET=True)
    found = parser.get_structure("x", str(path))[0][chain]
    return {residue.id[1]: {atom.get_bfactor() for atom in residue} for residue in found}


@pytest.mark.parametrize(("name", "out"), [("x.pdb", "y.pdb"), ("x.cif", "y.cif"), ("x.pdb", "y.cif")])
def test_b_factors_are_the_mean_scores_of_the_positions(name: str, out: str, model: lm.Model, tmp_path: Path) -> None:
    path = write_structure(tmp_path / name, {"A": residues(5, 20), "B": residues(3, 9), "C": [(1, " ", "W")]})
    scan = model.scan(WILD, region="4-18")
    done = scan.color_structure(path, tmp_path / out)
    assert (done.chains, done.num_residues, done.by_alignment) == (("A", "B"), 14 + 6, ())
    means = dict(zip(scan.positions.tolist(), scan.mean, strict=True))
    for chain, (first, last) in {"A": (5, 20), "B": (3, 9)}.items():
        found = b_factors(tmp_path / out, chain)
        assert found.pop(900) == {0.0}
        assert sorted(found) == list(range(first, last + 1))
        for position, (factor,) in found.items():
            assert factor == pytest.approx(means.get(position, 0.0), abs=0.005)
    assert set().union(*b_factors(tmp_path / out, "C").values()) == {0.0}


def test_other_numbers_are_matched_by_the_sequence(model: lm.Model, runs: dict[str, Path], tmp_path: Path) -> None:
    """A shift, a part that the structure lacks, and a number that a family's scheme skips."""
    shown = [*residues(5, 12, 100), *residues(17, 20, 100), *residues(21, 30, 101)]
    path = write_structure(tmp_path / "x.pdb", {"A": shown})
    words = ["--structure", path, "--structure-out", tmp_path / "y.pdb", "-o", tmp_path / "scan.tsv"]
    result = in_process("scan", runs["both"], WILD, *words)
    assert result.returncode == 0
    assert "coloured 22 residues of chain A" in result.stderr.decode()
    assert "the numbers of chain A are not those of the wild type; its residues were aligned" in result.stderr.decode()
    means = model.scan(WILD).mean
    found = b_factors(tmp_path / "y.pdb", "A")
    for position, number in ((5, 105), (12, 112), (17, 117), (20, 120), (21, 122), (30, 131)):
        assert found[number].pop() == pytest.approx(means[position - 1], abs=0.005)


@pytest.mark.parametrize(
    ("chains", "words", "message"),
    [
        ({"A": [*residues(5, 9), (10, " ", "W"), *residues(11, 20)]}, [], "has W at 10, where the wild type has L"),
        ({"A": [*residues(5, 9), (9, "A", "L"), *residues(10, 20)]}, [], "chain A has L at 9A"),
        ({"A": residues(5, 20), "B": [(1, " ", "W")]}, ["--chain", "B"], "has W at 1, where the wild type has M"),
        ({"A": residues(5, 20)}, ["--chain", "Q"], "no chain 'Q'; it has A"),
        ({"A": [*residues(40, 41, 30), (99, " ", "W")]}, [], "where the wild type has nothing"),
    ],
)  # fmt: skip
def test_a_structure_of_another_protein_is_refused(
    chains: dict[str, list[tuple[int, str, str]]],
    words: list[str],
    message: str,
    runs: dict[str, Path],
    tmp_path: Path,
) -> None:
    path = write_structure(tmp_path / "x.pdb", chains)
    result = in_process(
        "scan", "-q", runs["both"], WILD, "--structure", path, "--structure-out", tmp_path / "y.pdb", *words
    )
    assert result.returncode == 1
    assert f"{path}: " in error_line(result)
    assert message in error_line(result)
    # Before any work: not even the header of the table was written.
    assert result.stdout == b""
    assert not (tmp_path / "y.pdb").exists()


def test_a_file_that_holds_no_structure_is_named(model: lm.Model, tmp_path: Path) -> None:
    for name, text in (("x.pdb", "hello\n"), ("x.cif", "hello\n"), ("y.cif", "")):
        (tmp_path / name).write_text(text)
        with pytest.raises(errors.DataError, match=name):
            model.scan(WILD, region="2-3").color_structure(tmp_path / name, tmp_path / "out.pdb")


# -- public data


def test_a_scan_of_a_long_protein_reads_its_region_only(
    runs: dict[str, Path], shared_data: Path, tmp_path: Path
) -> None:
    """Beyond 8,000 residues, each change would be a pass of its own."""
    from protperf import io as sequences

    longest = max(sequences.scan(shared_data / "long" / "long_proteins.fasta.gz"), key=len)
    path = write_fasta(tmp_path / "long.fa", {"long": longest.sequence})
    last = len(longest)
    words = ["--region", f"{last - 30}-{last - 28}", "-q"]
    rows = table(in_process("scan", runs["causal"], path, *words).stdout)
    assert len(rows) == 57
    assert {row["pos"] for row in rows} == {str(last - 30 + i) for i in range(3)}
    assert not any(row["score"] == "NaN" for row in rows)
