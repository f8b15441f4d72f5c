"""What all commands share: messages, signals, and the options that all of them have."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterable
from typing import Any, NoReturn

from protperf.errors import ConfigError
from protperf.lm.cli.parameters import Groups, in_flags
from protperf.lm.device import chosen_device
from protperf.lm.options import check, option
from protperf.message import Argument, Message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MessageOptions:
    """How much a command says on standard error."""

    quiet: bool = option(False, "No progress and no notes.", short="-q")
    verbose: bool = option(False, "Also say what is computed where, how fast, and what was found.", short="-v")

    def __post_init__(self) -> None:
        check(self)
        if self.quiet and self.verbose:
            names = {"quiet": Argument("quiet"), "verbose": Argument("verbose")}
            raise ConfigError(Message("{quiet} and {verbose} exclude each other; give one", **names))


def typed() -> str:
    """The command line as it was typed."""
    import shlex

    return shlex.join(["protperf", *sys.argv[1:]])


def say(text: str) -> None:
    """Print one line to standard error; if that is full or gone, the work continues without messages."""
    try:
        print(f"protperf: {plain(text)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        # The line stays in the buffer, and Python would exit with code 120 for failing to write it at the end.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def say_all(groups: Groups, texts: Iterable[str], before: str = "") -> None:
    """Print texts of the library in the words of a command, a line each."""
    for text in texts:
        say(f"{before}{in_flags(groups, text)}")


def plain(text: str) -> str:
    """Text that moves no cursor and breaks no line: names come from files, and files from anywhere."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def open_closed_streams() -> None:
    """Give each standard stream that is closed a descriptor, or the next file opened would become that stream.

    Reading from, and writing to, a stream that was closed fails; what is written to a closed standard error is lost.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number free is given, and all below are open.
            os.open(os.devnull, flags)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115


def write_utf8() -> None:
    """Write UTF-8 to standard output in any locale, for tables hold ids as files have them.

    Messages keep the encoding of the terminal, and what it cannot show is escaped, as Python does by itself.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def exit_on_signal() -> None:
    """From now on SIGINT and SIGTERM end the process where it stands.

    While libraries load, an exception raised inside an import may come out as another one, or be swallowed; and nothing
    that is written by then needs more care than after a kill. A signal that is ignored stays ignored.
    """

    def leave(number: int, frame: object) -> NoReturn:
        # Below a progress bar, if there is one.
        with contextlib.suppress(OSError):
            os.write(2, b"\n" * os.isatty(2) + b"protperf: interrupted\n")
        os._exit(128 + number)

    _handle(leave, leave)


def raise_on_signal() -> None:
    """From now on SIGINT and SIGTERM are exceptions, so that what is being written stays whole."""

    def terminate(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    _handle(signal.default_int_handler, terminate)


def _handle(interrupt: Any, terminate: Any) -> None:
    for number, handler in ((signal.SIGINT, interrupt), (signal.SIGTERM, terminate)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def environment(num_threads: int, dtype: str, device: str) -> str:
    """What the last bits of a result depend on, in one line."""
    from protperf.functional import build_info

    info, torch = build_info(), sys.modules.get("torch")
    threads = f"{num_threads} thread{'s' if num_threads > 1 else ''}"
    where = f"device {_with_adapter(chosen_device(device))}, {info['isa']}, {threads}, {dtype}"
    engine = f"torch {torch.__version__}" if torch else "native"
    return f"protperf {info['version']}, {engine}, {where}"


def _with_adapter(device: str) -> str:
    """A device, and which GPU it is where there may be several."""
    if device != "wgpu":
        return device
    from protperf import gpu

    return f"{device} ({', '.join(each.name for each in gpu.adapters() if each.is_chosen)})"


def spent(since: float) -> str:
    """The time since `time.monotonic()` was `since`, and the most memory that this process has held."""
    import resource

    # In bytes on macOS, in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"{time.monotonic() - since:.1f} s, peak memory {peak / 1e6:.0f} MB"
