"""An option is declared once: flags, keywords, files, help and checks follow from its field."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import error_line, in_process

from protperf import lm
from protperf.errors import ConfigError
from protperf.lm.cli import COMMANDS
from protperf.lm.cli.help import page
from protperf.lm.cli.parameters import declared_in, in_flags, read_words
from protperf.lm.model.config import ModelConfig
from protperf.lm.options import REQUIRED, check, from_keywords, from_mapping, option, options_of, pick, takes
from protperf.lm.shared_options import parse_duration
from protperf.lm.training.options import TrainOptions
from protperf.message import Argument, Message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Brewing:
    """Options of a command that does not exist."""

    beans: Path = option(REQUIRED, "Beans to grind.", positional=True, unit="BEANS")
    cups: tuple[str, ...] = option((), "Cups to fill.", unit="CUP")
    num_grams: int = option(18, "Grams of coffee.", short="-g", least=7, most=60)
    ratio: float = option(16.0, "Grams of water per gram of coffee.", least=1.0, below=40.0)
    wait_s: float | None = option(
        None, "How long to wait.", argument="wait", read=parse_duration, least=0.0, most=1e6, shown_default="by taste"
    )
    roast: str = option("light", "light or dark.", choices=("light", "dark"))
    iced: bool = option(False, "Over ice.")

    def __post_init__(self) -> None:
        check(self)


GROUPS = {"all": pick(Brewing)}


def test_a_command_line_gives_what_it_names_and_nothing_else() -> None:
    words = ["kenya", "-g20", "--cups", "a", "--iced", "--cups=b", "--wait", "1m30"]
    given = read_words(GROUPS, words)
    assert given == {"beans": Path("kenya"), "num_grams": 20, "cups": ("a", "b"), "iced": True, "wait_s": 90.0}
    made = Brewing(**given)
    assert (made.num_grams, made.ratio, made.roast, made.cups) == (20, 16.0, "light", ("a", "b"))
    assert read_words(GROUPS, ["--", "--iced"]) == {"beans": Path("--iced")}
    assert read_words(GROUPS, ["-"]) == {"beans": Path("-")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing argument BEANS"),
        (["a", "b"], "'b' is one argument too many"),
        (["a", "--grams", "9"], "unknown option --grams; did you mean --num-grams?"),
        (["a", "--num-gram=9"], "unknown option --num-gram; did you mean --num-grams?"),
        (["a", "-x"], "unknown option -x"),
        (["a", "-g"], "--num-grams needs a value"),
        (["a", "-g", "6"], "--num-grams is 6; it must be a whole number from 7 to 60"),
        (["a", "-g", "many"], "--num-grams is 'many'; it must be a whole number from 7 to 60"),
        (["a", "-g", "-3"], "--num-grams is -3; it must be a whole number from 7 to 60"),
        (["a", "--ratio", "40"], "--ratio is 40.0; it must be a number from 1 to less than 40"),
        (["a", "--ratio", "nan"], "--ratio is nan; it must be a number from 1 to less than 40"),
        (["a", "--roast", "burnt"], "--roast is 'burnt'; choose one of light, dark"),
        (["a", "--wait", "soon"], "--wait: 'soon' is not a duration; write it like 90s, 20m, 1h30m or 1:30:00"),
    ],
    ids=" ".join,
)
def test_a_wrong_word_is_reported_with_its_flag(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_words(GROUPS, words)
    assert in_flags(GROUPS, caught.value.args[0]).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_grams": 6}, "num_grams is 6; it must be a whole number from 7 to 60"),
        ({"num_grams": True}, "num_grams is True"),
        ({"num_grams": 10.0}, "num_grams is 10.0"),
        ({"num_grams": "10"}, "num_grams is '10'"),
        ({"num_grams": 10**6000}, "num_grams is a number of thousands of digits; it must be"),
        ({"ratio": math.inf}, "ratio is inf"),
        ({"ratio": 10**400}, "ratio is 1000"),
        ({"wait": -1}, "wait is -1; it must be a number"),
        ({"roast": "x" * 1000}, "roast is 'xxx"),
        ({"cups": "abc"}, "cups is 'abc'; it must be a list, each text"),
        ({"iced": 1}, "iced is 1; it must be True or False"),
        ({"bean": "a"}, "unknown option 'bean'; did you mean beans?"),
        ({"wait_s": 3}, "unknown option 'wait_s'; did you mean wait?"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_wrong_keyword_is_reported_with_its_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_keywords(given, pick(Brewing))
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 400


def test_numpy_numbers_are_numbers() -> None:
    made = Brewing(
        beans=Path("a"), num_grams=np.int64(9), ratio=np.float32(2.5), wait_s=np.int8(3), iced=np.bool_(True)
    )
    assert (made.num_grams, made.ratio, made.wait_s, made.iced) == (9, 2.5, 3.0, True)
    assert [type(value) for value in (made.num_grams, made.ratio, made.wait_s, made.iced)] == [int, float, float, bool]
    assert json.dumps(TrainOptions(steps=np.int64(2), lr=np.float64(0.1)).to_mapping())
    assert ModelConfig.from_size("nano", num_features=np.uint8(16)).num_features == 16


def test_a_table_of_a_file_is_the_same_options() -> None:
    options = TrainOptions(epochs=2.5, residues="strict")
    assert TrainOptions.from_mapping(options.to_mapping()) == options
    assert from_mapping(Brewing, {"beans": "a", "num_grams": 9}).num_grams == 9
    for values, message in (
        ({"beans": "a", "milk": 1}, "unknown key 'milk'"),
        ({}, "key 'beans' is missing"),
        ({"beans": "a", "num_grams": 1}, "num_grams is 1"),
        ([], "it is a list and not a table"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_mapping(Brewing, values)


def test_help_names_the_option_and_its_default() -> None:
    lines = page("brew", "Make coffee.", GROUPS, "protperf brew kenya").splitlines()
    assert lines[0] == "usage: protperf brew [OPTIONS] BEANS"
    for line in (
        "  BEANS                   Beans to grind.",
        "  -g, --num-grams N       Grams of coffee (default: 18).",
        "      --ratio X           Grams of water per gram of coffee (default: 16).",
        "      --wait X            How long to wait (default: by taste).",
        "      --iced              Over ice.",
    ):
        assert line in lines


def test_a_function_shows_the_options_that_it_takes() -> None:
    @takes(pick(Brewing, "num_grams", "wait_s"))
    def brew(beans: str, **options: Any) -> None:
        """Make coffee."""

    assert (
        str(inspect.signature(brew))
        == "(beans: 'str', *, num_grams: int = 18, wait: float | str | None = None) -> 'None'"
    )
    assert "    num_grams: Grams of coffee." in str(brew.__doc__).splitlines()
    for function in (lm.train, lm.load, lm.Model.score, lm.Model.score_files):
        assert "options" not in inspect.signature(function).parameters
    assert inspect.signature(lm.train).parameters["lr"].default == 1e-3
    assert {"time", "attention", "resume"} < set(inspect.signature(lm.train).parameters)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_line_is_a_sentence_and_every_flag_is_one_option(name: str) -> None:
    declared = list(declared_in(import_module(f"protperf.lm.cli.{name}").GROUPS).values())
    flags = [flag for each in declared for flag in each.flags]
    assert len(set(flags)) == len(flags)
    for each in declared:
        assert each.help[-1] == "."
        assert each.is_positional or each.flags[-1].startswith("--")


def test_a_message_is_spelled_for_whom_reads_it() -> None:
    inner = Message("give {out}", out=Argument("out"))
    message = Message("{option} is {value!r}; {inner}", option=Argument("steps", 3), value="{steps}", inner=inner)
    assert str(message) == "steps=3 is '{steps}'; give out"
    assert message.spelled(lambda a: f"--{a.name}") == "--steps is '{steps}'; give --out"
    # 1 equals True, and is not a flag without a value.
    for value, spelled in ((1, "--num-grams 1"), (True, "--num-grams"), (None, "--num-grams")):
        assert in_flags(GROUPS, Message("{option}", option=Argument("num_grams", value))) == spelled
    error = pickle.loads(pickle.dumps(ConfigError(message)))
    assert str(error) == str(message)


def test_the_same_mistake_is_reported_to_a_program_and_to_a_user(fasta: Path, tmp_path: Path) -> None:
    for words, given, message in (
        (["--steps", "0"], {"steps": 0}, "{steps} is 0; it must be a whole number of at least 1"),
        (["--steps", "1", "--time", "5"], {"steps": 1, "time": 5}, "exactly one of {steps}, {epochs} and {time}"),
        (["--batch-tokens", "-1"], {"batch_tokens": -1}, "{batch_tokens} is -1"),
        (["--steps", "1", "--size", "huge"], {"steps": 1, "size": "huge"}, "{size} is 'huge'"),
    ):
        names = ("steps", "epochs", "time", "batch_tokens", "size")
        with pytest.raises(ConfigError) as caught:
            lm.train(fasta, tmp_path / "run", **given)
        assert message.format(**{name: name for name in names}) in str(caught.value)
        result = in_process("train", "--fasta", fasta, "-o", tmp_path / "run", *words)
        assert result.returncode == 2
        assert message.format(**{name: f"--{name.replace('_', '-')}" for name in names}) in error_line(result)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90s", 90), ("1.5m", 90), ("20m", 1200), ("90m", 5400), ("1h30m", 5400), ("1h30", 5400),
        ("1:30:00", 5400), ("5m30", 330), ("1d12", 129_600), ("2d3h4m5s", 183_845), ("1h5s", 3605),
    ],
)  # fmt: skip
def test_a_duration_is_read_as_its_writer_means_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "1:30", "5s3", "m", "1m2h", "1h1h", "-5", "1h30x", "nan", "9 s", "1h30m5s2", "1e3"]
)
def test_what_may_be_another_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_duration(text)


def test_every_option_of_a_run_is_declared_with_its_bounds() -> None:
    for kind in (TrainOptions, ModelConfig):
        assert set(options_of(kind)) == {field.name for field in dataclasses.fields(kind)}
        for each in options_of(kind).values():
            assert each.kind in (int, float, str)
            assert each.choices or each.least is not None or each.judge is not None, each.name


def test_every_option_that_a_run_keeps_has_a_flag() -> None:
    """An option that Python takes and the command does not know is one that nobody finds."""
    flags = set(declared_in(import_module("protperf.lm.cli.train").GROUPS))
    assert {field.name for field in dataclasses.fields(TrainOptions)} <= flags
