"""Run Python code in a traced child, and kill it or fail it at any of the system calls that change a directory.

The child is a fork, so that it starts with everything imported. The parent stops it at each system call, follows its
threads, and counts those that write, create, rename, remove, sync or change modes below one directory, by path or by
descriptor. Libraries that make system calls without the C library are seen like all others. Needs Linux on x86-64 and
the right to trace an own child, which most systems and containers give; no root.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import platform
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

KILL = "KILL"
SHORT = "SHORT"
"""The call writes half of its data, which the system may do at any time."""

_TRACEME, _SYSCALL, _GETREGS, _SETREGS, _SETOPTIONS = 0, 24, 12, 13, 0x4200
# Mark system-call stops, follow threads and forks, kill all when the tracer ends.
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x100000
_WALL = 0x40000000
_AT_FDCWD = -100
_REGISTERS = 27
_RAX, _NUMBER = 10, 15
_ARGUMENTS = (14, 13, 12, 7, 9, 8)

# Number on x86-64: name, and where its paths and descriptors are. "p0": a path; "a0p1": a path below a descriptor.
CALLS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: ("write", ("f0",)), 2: ("open", ("p0",)), 18: ("pwrite", ("f0",)), 20: ("writev", ("f0",)),
    40: ("sendfile", ("f0",)), 73: ("flock", ("f0",)), 74: ("fsync", ("f0",)), 75: ("fsync", ("f0",)),
    76: ("truncate", ("p0",)), 77: ("ftruncate", ("f0",)), 82: ("rename", ("p0", "p1")), 83: ("mkdir", ("p0",)),
    84: ("rmdir", ("p0",)), 85: ("creat", ("p0",)), 86: ("link", ("p0", "p1")), 87: ("unlink", ("p0",)),
    88: ("symlink", ("p1",)), 90: ("chmod", ("p0",)), 91: ("fchmod", ("f0",)), 92: ("chown", ("p0",)),
    93: ("chown", ("f0",)), 133: ("mknod", ("p0",)), 257: ("open", ("a0p1",)), 258: ("mkdir", ("a0p1",)),
    259: ("mknod", ("a0p1",)), 260: ("chown", ("a0p1",)), 263: ("unlink", ("a0p1",)),
    264: ("rename", ("a0p1", "a2p3")), 265: ("link", ("a0p1", "a2p3")), 266: ("symlink", ("a1p2",)),
    268: ("chmod", ("a0p1",)), 280: ("utimens", ("a0p1",)), 285: ("fallocate", ("f0",)), 296: ("writev", ("f0",)),
    316: ("rename", ("a0p1", "a2p3")), 326: ("copy_file_range", ("f2",)), 328: ("writev", ("f0",)),
    437: ("openat2", ("a0p1",)), 452: ("chmod", ("a0p1",)),
}  # fmt: skip
_WRITES = ("write", "pwrite", "writev")
_CHANGES = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_RDWR


@dataclass
class Call:
    """One system call: its paths; for a write the bytes, and where they go (None: to the end)."""

    name: str
    paths: tuple[str, ...]
    flags: int = 0
    data: bytes = b""
    offset: int | None = 0
    result: int = 0

    def __str__(self) -> str:
        size = f" {len(self.data)} bytes" if self.name in _WRITES else ""
        return f"{self.name} {' -> '.join(os.path.basename(path) for path in self.paths)}{size}"


@dataclass
class Trace:
    """What a child did: the counted calls in order, how it ended, what it reported, its marks by number of calls."""

    calls: list[Call] = field(default_factory=list)
    code: int | None = None
    report: dict[str, Any] = field(default_factory=dict)
    marks: list[tuple[int, str]] = field(default_factory=list)

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


def mark(text: str) -> None:
    """Note, in a traced child, that something is done; the trace has it with the number of calls made before."""
    if _report_to is not None:
        os.write(_report_to, f"mark {text}\n".encode())


def trace(
    work: Callable[[], object],
    root: Path,
    at: int | None = None,
    action: str | int | signal.Signals = KILL,
    *,
    only: Callable[[Call], bool] = lambda call: call.name != "flock",
    before: Callable[[int, Call], None] = lambda number, call: None,
) -> Trace:
    """Run `work` in a child; at the `at`-th counted call below `root` (from 1), kill it, or make the call fail.

    Args:
        action: KILL, SHORT, a signal that arrives before the call, or an errno that the call fails with.
        only: which calls are counted; `before` is called when one is about to be made.
    """
    require_ptrace()
    return _Tracer(os.path.realpath(root), at, action, only, before).run(work)


@functools.cache
def _why_not() -> str | None:
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return f"the tracer knows Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _ptrace(_TRACEME, 0, 0, 0, check=False) == 0 else 1)
    return "this system forbids to trace a child (ptrace)" if os.waitpid(pid, 0)[1] else None


def require_ptrace() -> None:
    """Skip the test if this system cannot trace."""
    reason = _why_not()
    if reason is not None:
        pytest.skip(reason)


_report_to: int | None = None
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: int, data: Any, *, check: bool = True) -> int:
    result = _libc.ptrace(
        ctypes.c_long(request),
        ctypes.c_long(pid),
        ctypes.c_void_p(address),
        data if isinstance(data, ctypes.Array) else ctypes.c_void_p(data),
    )
    if result == -1 and check:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace {request}: {os.strerror(code)}")
    return int(result)


class _Tracer:
    def __init__(self, root: str, at: int | None, action: str | int, only: Any, before: Any) -> None:
        self._root, self._at, self._action, self._only, self._before = root, at, action, only, before
        self._trace = Trace()
        self._entered: dict[int, Call | None] = {}
        self._failing: set[int] = set()

    def run(self, work: Callable[[], object]) -> Trace:
        reader, writer = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(reader)
            _child(work, writer)
        os.close(writer)
        self._pipe = f"pipe:[{os.fstat(reader).st_ino}]"
        try:
            os.setpgid(self._pid, self._pid)
            os.waitpid(self._pid, 0)
            _ptrace(_SETOPTIONS, self._pid, 0, _OPTIONS)
            self._entered[self._pid] = None
            _ptrace(_SYSCALL, self._pid, 0, 0)
            while self._trace.code is None:
                self._stopped(*os.waitpid(-self._pid, _WALL))
            with os.fdopen(reader, closefd=False) as stream:
                for line in stream:
                    if not line.startswith("mark "):
                        self._trace.report = json.loads(line)
        finally:
            os.close(reader)
            if self._trace.code is None:
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, _WALL)
        return self._trace

    def _stopped(self, pid: int, status: int) -> None:
        if not os.WIFSTOPPED(status):
            if pid == self._pid:
                self._trace.code = os.waitstatus_to_exitcode(status)
            return
        passed = 0
        number = os.WSTOPSIG(status)
        try:
            if number == signal.SIGTRAP | 0x80:
                self._syscall(pid)
            elif number != signal.SIGTRAP and pid in self._entered:
                passed = number
            self._entered.setdefault(pid, None)
            _ptrace(_SYSCALL, pid, 0, passed)
        except OSError as error:
            # It was killed while it was stopped.
            if error.errno != errno.ESRCH:
                raise

    def _syscall(self, pid: int) -> None:
        registers = (ctypes.c_uint64 * _REGISTERS)()
        _ptrace(_GETREGS, pid, 0, registers)
        if pid in self._failing:
            self._failing.discard(pid)
            registers[_RAX] = ctypes.c_uint64(-int(self._action)).value
            _ptrace(_SETREGS, pid, 0, registers)
        if ctypes.c_int64(registers[_RAX]).value == -errno.ENOSYS and self._entered.get(pid) is None:
            self._enter(pid, registers)
            return
        call = self._entered.get(pid)
        if isinstance(call, Call):
            call.result = ctypes.c_int64(registers[_RAX]).value
        self._entered[pid] = None

    def _enter(self, pid: int, registers: Any) -> None:
        self._entered[pid] = _OTHER
        if registers[_NUMBER] not in CALLS:
            return
        call = _describe(pid, registers)
        if call.name == "write" and call.paths[0] == self._pipe and call.data.startswith(b"mark "):
            self._trace.marks.append((len(self._trace.calls), call.data.decode()[5:].strip()))
        if not any(path == self._root or path.startswith(self._root + "/") for path in call.paths):
            return
        if not self._only(call):
            return
        self._entered[pid] = call
        self._trace.calls.append(call)
        self._before(len(self._trace.calls), call)
        if len(self._trace.calls) == self._at:
            self._strike(pid, registers)

    def _strike(self, pid: int, registers: Any) -> None:
        if self._action == SHORT:
            registers[_ARGUMENTS[2]] = max(1, registers[_ARGUMENTS[2]] // 2)
            _ptrace(_SETREGS, pid, 0, registers)
            return
        if isinstance(self._action, signal.Signals):
            os.kill(self._pid, self._action)
            return
        registers[_NUMBER] = 2**64 - 1
        _ptrace(_SETREGS, pid, 0, registers)
        if self._action == KILL:
            os.kill(self._pid, signal.SIGKILL)
        else:
            self._failing.add(pid)


_OTHER = Call("other", ())


def _describe(pid: int, registers: Any) -> Call:
    arguments = [registers[i] for i in _ARGUMENTS]
    name, places = CALLS[registers[_NUMBER]]
    call = Call(name, tuple(_path(pid, place, arguments) for place in places))
    if name in ("open", "openat2", "creat"):
        call.flags = _open_flags(pid, registers[_NUMBER], arguments)
        if not call.flags & _CHANGES:
            call.paths = ()
        call.name = "open"
    elif name in ("write", "pwrite"):
        call.data = _memory(pid, arguments[1], arguments[2])
        call.offset = arguments[3] if name == "pwrite" else _offset(pid, arguments[0])
    elif name == "writev":
        parts = struct.iter_unpack("<QQ", _memory(pid, arguments[1], 16 * arguments[2]))
        call.data = b"".join(_memory(pid, address, size) for address, size in parts)
        call.offset = _offset(pid, arguments[0]) if registers[_NUMBER] == 20 else arguments[3]
    elif name in ("truncate", "ftruncate"):
        call.offset = arguments[1]
    elif name == "unlink" and len(places[0]) > 2 and arguments[2] & 0x200:
        call.name = "rmdir"
    return call


def _open_flags(pid: int, number: int, arguments: list[int]) -> int:
    if number == 85:
        return os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    if number == 437:
        return int(struct.unpack("<Q", _memory(pid, arguments[2], 8))[0])
    return int(arguments[2 if number == 257 else 1])


def _path(pid: int, place: str, arguments: list[int]) -> str:
    if place[0] == "f":
        return _descriptor(pid, arguments[int(place[1])])
    base = ctypes.c_int32(arguments[int(place[1])] & 0xFFFFFFFF).value if place[0] == "a" else _AT_FDCWD
    text = _string(pid, arguments[int(place[-1])])
    folder = os.readlink(f"/proc/{pid}/cwd") if base == _AT_FDCWD else _descriptor(pid, base)
    folder, name = os.path.split(os.path.join(folder, text))
    # The last part is the name that is made, renamed or removed, even where it is a link.
    return os.path.join(os.path.realpath(folder), name) if name else os.path.realpath(folder)


def _descriptor(pid: int, number: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/fd/{ctypes.c_int32(number & 0xFFFFFFFF).value}")
    except OSError:
        return ""


def _offset(pid: int, number: int) -> int | None:
    """Where the next write of a descriptor goes; None at the end of the file."""
    try:
        facts = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines())
    except OSError:
        return 0
    return None if int(facts["flags"], 8) & os.O_APPEND else int(facts["pos"])


def _memory(pid: int, address: int, size: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        memory.seek(address)
        return memory.read(size)


def _string(pid: int, address: int) -> str:
    text = b""
    while b"\0" not in text:
        # Not across the end of a page, after which no memory may be mapped.
        text += _memory(pid, address + len(text), min(256, 4096 - (address + len(text)) % 4096))
    return os.fsdecode(text.split(b"\0")[0])


def _child(work: Callable[[], object], writer: int) -> None:
    """Let the parent trace this process, do the work, report its result or error; does not return."""
    global _report_to
    _report_to, code = writer, 0
    try:
        os.setpgid(0, 0)
        _ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        report = {"result": work()}
    except BaseException as error:
        code = 1
        report = {
            "error": type(error).__name__,
            "is": [kind.__name__ for kind in type(error).__mro__],
            "text": str(error),
            "errno": getattr(error, "errno", None),
            "filename": str(getattr(error, "filename", "")),
            "trace": traceback.format_exc(),
        }
    os.write(writer, (json.dumps(report) + "\n").encode())
    os._exit(code)
