"""Checkpoints made to break their reader: each case changes a good step, then seals it again so that it is read at all.

`CASES` has by name what to do to the step, and whether only resuming reads what was changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protperf.lm.storage import checkpoint, plain_file

Change = Callable[[Path], None]
CASES: dict[str, tuple[Change, bool]] = {}
_DEEP = 10**6
_NETWORK, _TRAINER, _CONFIG = "model.safetensors", "trainer.safetensors", "config.json"


def resign(step: Path, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
    """Make a manifest that fits what the files of a step hold now, with a change of its own."""
    manifest = json.loads((step / checkpoint.MANIFEST).read_bytes())
    for name in checkpoint.FILES:
        with_size = (step / name).read_bytes()
        manifest["files"][name] = {"size": len(with_size), "sha256": hashlib.sha256(with_size).hexdigest()}
    del manifest["sha256"]
    change(manifest)
    (step / checkpoint.MANIFEST).write_bytes(plain_file.seal(manifest))


def _add(name: str, change: Change, *, resume_only: bool = False) -> None:
    assert name not in CASES
    CASES[name] = change, resume_only


def _bytes(file: str, data: bytes) -> Change:
    """Replace a file; the manifest agrees with it."""

    def change(step: Path) -> None:
        (step / file).write_bytes(data)
        if file != checkpoint.MANIFEST:
            resign(step)

    return change


def _manifest(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda step: resign(step, change)


def _config(**changes: Any) -> Change:
    def change(step: Path) -> None:
        values = {**json.loads((step / _CONFIG).read_bytes()), **changes}
        (step / _CONFIG).write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
        resign(step)

    return change


def _renamed_file(name: str) -> Change:
    return _manifest(lambda m: m["files"].update({name: m["files"].pop(_CONFIG)}))


def _in_file(name: str, value: Any) -> Change:
    return _manifest(lambda m: m["files"][_CONFIG].update({name: value}))


def _in(table: str, name: str, value: Any) -> Change:
    return _manifest(lambda m: m[table].update({name: value}))


def _manifests() -> None:
    for name in ("../config.json", "/etc/passwd", "a\0b", "file:///etc/passwd", "config.json/", "..", ""):
        _add(f"manifest names {name!r}", _renamed_file(name))
    _add("manifest names a file more", _manifest(lambda m: m["files"].update({"../../x": m["files"][_CONFIG]})))
    for value in ([], None, "config.json", {}, 1e308):
        _add(f"manifest has {value!r} as files", _manifest(lambda m, v=value: m.update(files=v)))  # type: ignore[misc]
    for value in (-1, 1e308, True, "300", 10**4000, None, [1], 2**63):
        _add(f"size {str(value)[:9]} {type(value).__name__}", _in_file("size", value))
    for value in (7, None, "", "A" * 64, "0" * 10**5, {"a": 1}):
        _add(f"digest {str(value)[:9]} {type(value).__name__}", _in_file("sha256", value))
    for value in (-3, 3.0, True, "3", 10**400, None, [3], 4):
        _add(f"step {str(value)[:9]} {type(value).__name__}", _manifest(lambda m, v=value: m.update(step=v)))  # type: ignore[misc]
    _add("manifest without its own digest", lambda step: _unsealed(step))


def _unsealed(step: Path) -> None:
    manifest = json.loads((step / checkpoint.MANIFEST).read_bytes())
    del manifest["sha256"]
    (step / checkpoint.MANIFEST).write_text(json.dumps(manifest))


def _texts() -> None:
    texts = {
        "empty": b"",
        "a list": b"[]",
        "a number": b"7",
        "a million lists deep": b"[" * _DEEP + b"]" * _DEEP,
        "a million tables deep": b'{"a":' * _DEEP + b"1" + b"}" * _DEEP,
        "a thousand tables deep": b'{"a":' * 1000 + b"1" + b"}" * 1000,
        "300 lists deep": b'{"a":' + b"[" * 300 + b"]" * 300 + b"}",
        "a key twice": b'{"step": 3, "step": 4}',
        "NaN": b'{"step": NaN}',
        "Infinity": b'{"step": -Infinity}',
        "1e400": b'{"step": 1e400}',
        "UTF-16": '{"step": 3}'.encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf{}",
        "bytes that are not text": b'{"\xff\xfe": 1}',
        "NUL": b'{"a": 1}\0',
        "ten megabytes of blanks": b" " * 10**7 + b"{}",
        "a number of 200,000 digits": b'{"a": ' + b"9" * 200_000 + b"}",
        "a million empty lists": b'{"a": [' + b"[]," * 10**6 + b"[]]}",
        "half a surrogate": b'{"\\ud800": "\\udfff"}',
    }
    for file in (checkpoint.MANIFEST, _CONFIG):
        for name, data in texts.items():
            _add(f"{file} is {name}", _bytes(file, data))


def _tables() -> None:
    for name, value in {
        "model_dim": 10**12, "num_layers": -1, "num_heads": True, "head_dim": 7, "ffn_dim": 1e308, "num_features": 16.0,
        "dropout": 1e308, "seed": 2**64, "attention": ["relu"], "objective": "x" * 10**5, "__class__": "os.system",
    }.items():  # fmt: skip
        _add(f"config has {name} {str(value)[:12]}", _config(**{name: value}))
    _add("config lacks model_dim", _config(model_dim=None))
    _add("config has an integer of 4000 digits", _config(dropout=10**4000))
    widest = {"num_layers": 256, "model_dim": 16384, "num_heads": 256, "head_dim": 1024, "ffn_dim": 65536}
    _add("config implies 10^12 parameters", _config(**widest, num_features=4096))
    _add("config implies one layer more", _config(num_layers=3))
    for table, name, value in (
        ("progress", "epoch", -1), ("progress", "tokens", 1.5), ("progress", "wall_s", -1.0), ("progress", "step", 2),
        ("progress", "wall_s", 10**400), ("progress", "best_step", 99), ("progress", "best_loss", "0"),
        ("progress", "total_steps", 0), ("progress", "more", 1), ("progress", "batch", True),
        ("options", "more", 1), ("options", "batch_tokens", 0), ("options", "lr", 1e308), ("options", "seed", -1),
        ("options", "epochs", 2.0), ("options", "steps", 10**400), ("options", "residues", "../x"),
        ("options", "accumulate", 10**9), ("options", "warmup", None), ("options", "clip", [1.0]),
    ):  # fmt: skip
        _add(f"{table} has {name} {str(value)[:9]}", _in(table, name, value))
    for name, value in (
        ("progress", []), ("progress", None), ("options", "x"), ("options", {}), ("threads", -1), ("torch", "\x1b[2J"),
        ("version", "x" * 10**5), ("isa", None), ("data_sha256", 7), ("validation_sha256", "0"),
    ):  # fmt: skip
        _add(f"manifest has {name} {ascii(value)[:12]}", _manifest(lambda m, n=name, v=value: m.update({n: v})))  # type: ignore[misc]
    _add("a batch that no epoch has", _in("progress", "batch", 10**9), resume_only=True)


def _tensor_file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _entries(**entries: Any) -> bytes:
    return json.dumps(entries).encode()


def _entry(kind: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets, **more}


def _headers() -> dict[str, bytes]:
    one, four = _entry(), bytes(4)
    many = {f"t{i}": _entry(shape=[0], offsets=[0, 0]) for i in range(20_001)}
    return {
        "empty": b"",
        "seven bytes": b"\0" * 7,
        "a pickle": pickle.dumps({"a": 1}),
        "a zip file": b"PK\3\4" + bytes(100),
        "a header of 2^63 bytes": _tensor_file(_entries(a=one), four, 2**63),
        "a header of 2^64 - 1 bytes": _tensor_file(_entries(a=one), four, 2**64 - 1),
        "a header longer than the file": _tensor_file(_entries(a=one), four, 10**6),
        "a header of nine megabytes": _tensor_file(_entries(a=one) + b" " * (9 << 20), four),
        "a header that is a list": _tensor_file(b"[]"),
        "a header a million deep": _tensor_file(b'{"a":' * _DEEP + b"1" + b"}" * _DEEP),
        "a header of empty lists": _tensor_file(b'{"a": [' + b"[]," * 2 * 10**6 + b"[]]}"),
        "a header of empty tables": _tensor_file(b'{"a": [' + b"{}," * 2 * 10**6 + b"{}]}"),
        "a header that is not ASCII": _tensor_file('{"é": 1}'.encode()),
        "a tensor twice": _tensor_file(b'{"a": 1, "a": 2}'),
        "20,001 tensors": _tensor_file(_entries(**many)),
        "nine axes": _tensor_file(_entries(a=_entry(shape=[1] * 9)), four),
        "an unknown type": _tensor_file(_entries(a=_entry("F128")), four),
        "a type that is a list": _tensor_file(_entries(a=_entry(["F32"])), four),
        "half precision": _tensor_file(_entries(a=_entry("F16", [2])), four),
        "a product of 2^64": _tensor_file(_entries(a=_entry(shape=[2**32, 2**32], offsets=[0, 0]))),
        "a product of 2^66 bytes": _tensor_file(_entries(a=_entry(shape=[2**61, 8], offsets=[0, 0]))),
        "an axis of 2^64": _tensor_file(_entries(a=_entry(shape=[2**64], offsets=[0, 0]))),
        "an axis of 10^400": _tensor_file(_entries(a=_entry(shape=[10**400])), four),
        "a negative axis": _tensor_file(_entries(a=_entry(shape=[-1, -1])), four),
        "an axis that is a truth value": _tensor_file(_entries(a=_entry(shape=[True])), four),
        "a fractional axis": _tensor_file(_entries(a=_entry(shape=[1.0])), four),
        "no list of axes": _tensor_file(_entries(a=_entry(shape=1)), four),
        "overlapping tensors": _tensor_file(_entries(a=one, b=one), four),
        "tensors that overlap by half": _tensor_file(_entries(a=one, b=_entry(offsets=[2, 6])), bytes(6)),
        "a gap": _tensor_file(_entries(a=_entry(offsets=[4, 8])), bytes(8)),
        "data behind the last tensor": _tensor_file(_entries(a=one), bytes(8)),
        "data that ends early": _tensor_file(_entries(a=one), bytes(3)),
        "offsets beyond the file": _tensor_file(_entries(a=_entry(shape=[2**40], offsets=[0, 2**42])), four),
        "offsets in reverse": _tensor_file(_entries(a=_entry(offsets=[4, 0])), four),
        "negative offsets": _tensor_file(_entries(a=_entry(offsets=[-4, 0])), four),
        "one offset": _tensor_file(_entries(a=_entry(offsets=[4])), four),
        "an entry of more": _tensor_file(_entries(a=_entry(more=1)), four),
        "an entry that is null": _tensor_file(_entries(a=None)),
        "a name with a path": _tensor_file(_entries(**{"../a": one}), four),
        "a name with NUL": _tensor_file(_entries(**{"a\0b": one}), four),
        "an empty name": _tensor_file(_entries(**{"": one}), four),
        "a name of 300 letters": _tensor_file(_entries(**{"a" * 300: one}), four),
        "metadata that is not text": _tensor_file(_entries(a=one, __metadata__={"x": [1]}), four),
        "no tensors": _tensor_file(b"{}"),
        "one tensor of terabytes": _tensor_file(_entries(a=_entry(shape=[2**42], offsets=[0, 2**44]))),
    }


def _optimizer_steps() -> None:
    for text, bits in (("-1", -1.0), ("NaN", float("nan")), ("infinity", float("inf")), ("beyond the run", 99.0)):

        def change(step: Path, bits: float = bits) -> None:
            path = step / _TRAINER
            data = bytearray(path.read_bytes())
            (length,) = struct.unpack("<Q", data[:8])
            header = json.loads(data[8 : 8 + length])
            begin = 8 + length + next(e["data_offsets"][0] for n, e in header.items() if n.endswith(".step"))
            data[begin : begin + 4] = struct.pack("<f", bits)
            path.write_bytes(data)
            resign(step)

        _add(f"a step of the optimizer that is {text}", change, resume_only=True)


def _kinds_of_file() -> None:
    def replaced(name: str, make: Callable[[Path], None]) -> Change:
        def change(step: Path) -> None:
            (step / name).rename(step.with_name("aside"))
            make(step / name)

        return change

    def listen(path: Path) -> None:
        here = os.getcwd()
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
        os.chdir(here)

    makers: dict[str, Callable[[Path], None]] = {
        "a pipe": os.mkfifo,
        "a directory": Path.mkdir,
        "a link to the file": lambda path: path.symlink_to(path.parent.with_name("aside")),
        "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "a link to nowhere": lambda path: path.symlink_to("nowhere"),
        "a link to itself": lambda path: path.symlink_to(path.name),
    }
    for name in (*checkpoint.FILES, checkpoint.MANIFEST):
        for kind, make in makers.items():
            _add(f"{name} is {kind}", replaced(name, make))
    _add("config.json is a socket", replaced(_CONFIG, listen))
    if os.geteuid() == 0:
        _add("config.json is a device", replaced(_CONFIG, lambda path: os.mknod(path, 0o20666, os.makedev(1, 5))))


def build(step: Path, folder: Path) -> dict[str, Path]:
    """A copy of a step for every case, by name: a run directory with this step alone."""
    made = {}
    for number, (name, (change, _)) in enumerate(CASES.items()):
        made[name] = folder / f"{number:03}" / "run"
        shutil.copytree(step, made[name] / step.name)
        change(made[name] / step.name)
    return made


_manifests()
_texts()
_tables()
for _name, _data in _headers().items():
    _add(f"model file: {_name}", _bytes(_NETWORK, _data))
    _add(f"trainer file: {_name}", _bytes(_TRAINER, _data), resume_only=True)
_optimizer_steps()
_kinds_of_file()
