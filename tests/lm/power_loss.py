"""What may be on a disk after a power failure, from the trace of a process: a model of a journaling file system.

Names (made, renamed, removed) reach the disk in order, at any time, and no later than the sync of the directory that
they are in. Contents reach it at any time, in any part, and no later than the sync of the file. So after k calls any
number of the changes of names since the last one that is safe may be there, and each file that was not synced may be
whole, as it was synced last, empty, filled with zeros, or half written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from tracer import Call, Trace

Tree = dict[str, int | None]
"""Paths below the root: the number of a file, or None for a directory."""
_MAX_COMBINATIONS = 64


@dataclass
class _File:
    """Contents now, contents at the last sync, and whether it was truncated since."""

    now: bytes = b""
    synced: bytes | None = None
    was_cut: bool = False

    def write(self, data: bytes, offset: int | None) -> None:
        offset = len(self.now) if offset is None else offset
        self.now = self.now[:offset].ljust(offset, b"\0") + data + self.now[offset + len(data) :]

    def cut(self, size: int) -> None:
        self.now, self.was_cut = self.now[:size].ljust(size, b"\0"), True

    def possible(self) -> list[bytes]:
        if self.now == self.synced:
            return [self.now]
        before = self.synced or b""
        sure = before if self.now.startswith(before) and not self.was_cut else b""
        rest = self.now[len(sure) :]
        found = [self.now, before, sure, sure + b"\0" * len(rest), sure + rest[: len(rest) // 2]]
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class State:
    """One possible disk: after how many calls, with how many changes of names, and what the process had said."""

    calls: int
    names: int
    tree: dict[str, bytes | None] = field(repr=False)
    marks: tuple[str, ...]

    def materialise(self, root: Path) -> None:
        for path, data in sorted(self.tree.items()):
            if data is None:
                (root / path).mkdir(parents=True)
            else:
                (root / path).write_bytes(data)


def snapshot(root: Path) -> dict[str, bytes | None]:
    """A folder as it is, all of it synced."""
    return {
        path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def possible_states(root: Path, start: dict[str, bytes | None], trace: Trace) -> Iterator[State]:
    """Every distinct disk that a loss of power may leave, from `start`, at any moment of a trace below `root`."""
    disk, seen = _Disk(os.path.realpath(root), start), set()
    for calls in range(len(trace.calls) + 1):
        if calls:
            disk.apply(trace.calls[calls - 1])
        marks = tuple(text for count, text in trace.marks if count <= calls)
        for names, tree in disk.possible():
            key = (tuple(sorted(tree.items())), marks)
            if key not in seen:
                seen.add(key)
                yield State(calls, names, tree, marks)


class _Disk:
    def __init__(self, root: str, start: dict[str, bytes | None]) -> None:
        self._root = root
        self._files: list[_File] = []
        self._now: Tree = {}
        for path, data in start.items():
            self._now[path] = None if data is None else self._new(_File(data, data))
        # The trees that may be on the disk: the synced one, then one for each later change of names.
        self._trees: list[tuple[str, Tree]] = [("", dict(self._now))]
        self._first = 0

    def _new(self, file: _File) -> int:
        self._files.append(file)
        return len(self._files) - 1

    def apply(self, call: Call) -> None:
        paths = [self._inside(path) for path in call.paths]
        if call.result < 0 or paths[-1] is None:
            return
        path = paths[-1]
        number = self._now.get(path)
        if call.name == "fsync":
            self._sync(path, number)
        elif call.name in ("write", "pwrite", "writev") and number is not None:
            self._files[number].write(call.data[: call.result], call.offset)
        elif call.name == "ftruncate" and number is not None:
            self._files[number].cut(call.offset or 0)
        elif call.name == "open":
            self._open(path, number, call.flags)
        elif call.name == "mkdir":
            self._change(path, {**self._now, path: None})
        elif call.name in ("unlink", "rmdir"):
            self._change(path, {name: file for name, file in self._now.items() if name != path})
        elif call.name == "rename":
            self._rename(str(paths[0]), path)
        elif call.name not in ("chmod", "fchmod", "chown", "utimens", "flock", "ftruncate", *("write", "pwrite")):
            raise NotImplementedError(f"the model of the disk does not know {call.name}")

    def _inside(self, path: str) -> str | None:
        return os.path.relpath(path, self._root) if path.startswith(self._root) else None

    def _sync(self, path: str, number: int | None) -> None:
        if number is not None:
            file = self._files[number]
            file.synced, file.was_cut = file.now, False
            return
        folder = "" if path == "." else path
        for index, (where, _) in enumerate(self._trees):
            if index and where == folder:
                self._first = max(self._first, index)

    def _open(self, path: str, number: int | None, flags: int) -> None:
        if path not in self._now and flags & os.O_CREAT:
            self._change(path, {**self._now, path: self._new(_File())})
        elif number is not None and flags & os.O_TRUNC:
            self._files[number].cut(0)

    def _rename(self, old: str, new: str) -> None:
        moved = {}
        for name, file in self._now.items():
            if name == old or name.startswith(f"{old}/"):
                moved[new + name[len(old) :]] = file
        kept = {n: f for n, f in self._now.items() if n not in (old, new) and not n.startswith(f"{old}/")}
        self._change(new, {**kept, **moved})

    def _change(self, path: str, tree: Tree) -> None:
        self._now = tree
        self._trees.append((os.path.dirname(path), tree))

    def possible(self) -> Iterator[tuple[int, dict[str, bytes | None]]]:
        for names in range(self._first, len(self._trees)):
            tree = self._trees[names][1]
            numbers = sorted({number for number in tree.values() if number is not None})
            choices = [self._files[number].possible() for number in numbers]
            for chosen in _combinations(choices):
                contents = dict(zip(numbers, chosen, strict=True))
                yield names, {path: None if number is None else contents[number] for path, number in tree.items()}


def _combinations(choices: list[list[bytes]]) -> Iterator[tuple[bytes, ...]]:
    """All combinations; if there are many, only those in which all files are in the same condition."""
    if math.prod(map(len, choices)) <= _MAX_COMBINATIONS:
        yield from product(*choices)
        return
    for i in range(max(map(len, choices))):
        yield tuple(choice[min(i, len(choice) - 1)] for choice in choices)
