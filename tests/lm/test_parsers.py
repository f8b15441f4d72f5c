"""Every reader of stored files, on its corpus and thousands of small changes to it; `make fuzz` goes on for longer."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "fuzz" / "python"
sys.path.insert(0, str(FUZZ))
import targets  # noqa: E402

MUTATIONS = 6000


def words() -> list[bytes]:
    """The words of the fuzzer's dictionary."""
    lines = (FUZZ / "words.dict").read_text().splitlines()
    quoted = [line[1:-1] for line in lines if line.startswith('"')]
    return [text.encode("ascii").decode("unicode_escape").encode("latin-1") for text in quoted]


def mutated(seeds: list[bytes], rng: random.Random, dictionary: list[bytes]) -> bytes:
    """A seed with one to four bytes, words or pieces changed."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + rng.randint(0, 12)] = rng.choice(dictionary)
        elif kind == 2:
            del data[at : at + rng.randint(1, 12)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randint(1, 40)]
        elif kind == 4:
            other = rng.choice(seeds)
            start = rng.randint(0, len(other))
            data[at : at + rng.randint(0, 40)] = other[start : start + 40]
        elif at < len(data):
            data[at] = rng.randrange(256)
    return bytes(data)


def run(name: str, count: int = MUTATIONS) -> None:
    seeds, rng, dictionary = targets.seeds(name), random.Random(name), words()
    for data in [*seeds, b"", *(mutated(seeds, rng, dictionary) for _ in range(count))]:
        try:
            targets.TARGETS[name](data)
        except BaseException as error:
            raise AssertionError(f"{name} on {data!r}") from error


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_file_of_any_content_is_read_right_or_refused_with_its_name(name: str) -> None:
    assert len(targets.seeds(name)) >= 2
    run(name)


def trusting(path: Path, name: str, entry: dict) -> tuple[str, tuple[int, ...], int, int]:
    """An entry of a tensor file whose size is not compared with its shape."""
    try:
        return entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]
    except Exception as error:
        raise targets.plain_file.broken(path, "is malformed") from error


@pytest.mark.parametrize(
    ("name", "place", "fault"),
    [
        ("tensors", "tensor_file.parse_table", lambda path, data: json.loads(data)),
        ("tensors", "tensor_file._entry", trusting),
        ("manifest", "plain_file.parse_table", lambda path, data: json.loads(data)),
        ("config", "stored._shortened", lambda error: f"more than\none line: {error}"),
        ("corpus", "token_file.FIRST_RESIDUE", 0),
        ("journal", "plain_file.read_sealed", lambda path: json.loads(path.read_bytes())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_in_a_reader_is_found(name: str, place: str, fault: object, monkeypatch: pytest.MonkeyPatch) -> None:
    module, attribute = place.split(".")
    monkeypatch.setattr(getattr(targets, module), attribute, fault)
    with pytest.raises(AssertionError, match=f"^{name} on "):
        run(name)
