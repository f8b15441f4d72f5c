"""How long work shows how far it is: it reports to a `Watch`, and whoever wants to show progress gives it one."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

Progress = Callable[[int], None]
"""Called now and then with how much was done since the last call."""


def no_progress(count: int) -> None:
    """Progress that is shown nowhere."""


class Stage:
    """One stage of some work, as a context. This one shows nothing."""

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, count: int) -> None:
        """So much more is done, in the unit of the stage."""

    def skip(self, count: int) -> None:
        """So much of the total was done by an earlier run."""

    def complete(self, count: int) -> None:
        """So many more items are done."""

    def close(self) -> None:
        """Leave what is shown as it is; messages from now on stand below it."""


class Watch:
    """Takes notes and shows stages. This one does neither."""

    shows_progress = False
    """Whether it is worth finding out how much there is to do."""
    takes_notes = False
    """Whether it is worth finding out how long it will take."""

    def note(self, text: str) -> None:
        """Something worth knowing that is not wrong."""

    def warn(self, text: str) -> None:
        """Something that deserves attention."""

    def waiting(self, what: str, unit: str) -> Stage:
        """A stage that comes before the work itself."""
        return Stage()

    def working(self, what: str, unit: str, total: int | None, items: str) -> Stage:
        """The work itself: `total` units if their number is known, and `items` that are done one after another."""
        return Stage()
