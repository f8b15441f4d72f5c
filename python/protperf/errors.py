"""The exceptions of protperf: each derives from `Error` and from the built-in exception of its kind."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "DivergenceError",
    "DtypeError",
    "Error",
    "FastaError",
    "FileError",
    "FileIsDirectoryError",
    "FilePermissionError",
    "InternalError",
    "MissingFileError",
    "MissingPackageError",
    "OutOfMemory",
    "ShapeError",
]


class Error(Exception):
    """The base of everything that protperf raises itself."""


class ShapeError(Error, ValueError):
    """Two arguments disagree on an axis, or a size is impossible."""


class ConfigError(Error, ValueError):
    """A value is outside of its range, or two options contradict each other."""


class DtypeError(Error, TypeError):
    """A type that the operation does not take."""


class DeviceError(Error, RuntimeError):
    """A backend, device or instruction set that this machine lacks."""


class MissingPackageError(Error, ImportError):
    """A package that only one call needs is not installed."""


class OutOfMemory(Error, MemoryError):
    """An allocation failed."""


class InternalError(Error, RuntimeError):
    """A fault of protperf itself; please report it."""


class DataError(Error, ValueError):
    """Input data that cannot be used: nothing to train on, a table without its column."""


class FastaError(DataError):
    """A sequence file that cannot be read exactly.

    Attributes: path (str), line and column (int, from 1; 0 where unknown).
    """

    def __init__(self, message: str, path: str = "", line: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.path, self.line, self.column = path, line, column


class FileError(Error, OSError):
    """A file that cannot be opened or read."""

    def __str__(self) -> str:
        # The system has no number for what is wrong with the contents.
        return super().__str__() if self.errno is not None or not self.filename else f"{self.filename}: {self.strerror}"


class MissingFileError(FileError, FileNotFoundError):
    """A file that does not exist."""


class FilePermissionError(FileError, PermissionError):
    """A file that may not be read."""


class FileIsDirectoryError(FileError, IsADirectoryError):
    """A directory where a file was expected."""


class CheckpointError(FileError):
    """A checkpoint that is damaged, incomplete or hostile; the message names the file."""


class DivergenceError(Error, ArithmeticError):
    """A training met a loss, a gradient or a weight that is not a finite number."""
