"""What can be made of a run besides its facts. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from protperf.errors import ConfigError
from protperf.lm.named_files import PAGES, PICTURES, check_suffix
from protperf.lm.options import check, option
from protperf.message import Argument, Message


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunReportOptions:
    """How a training is shown."""

    as_json: bool = option(False, "Print JSON.", flag="--json")
    curves: bool = option(False, "Also print loss and perplexity by step, drawn as text.")
    plot: Path | None = option(
        None, "Picture of loss and perplexity by step, .png or .svg; needs matplotlib.", unit="FILE"
    )
    report: Path | None = option(
        None, "Report of the training, .html: one page that needs no other file and no connection.", unit="FILE"
    )

    def __post_init__(self) -> None:
        check(self)
        check_suffix("plot", self.plot, PICTURES)
        check_suffix("report", self.report, PAGES)
        if self.as_json and self.curves:
            names = {"json": Argument("as_json"), "curves": Argument("curves")}
            raise ConfigError(Message("{curves} is text and {json} is not; give one", **names))

    def check_no_training(self) -> None:
        """Refuse what is made of a training where no model is named.

        Raises:
            ConfigError: naming the argument.
        """
        for name in ("curves", "plot", "report"):
            if getattr(self, name):
                text = "{given} shows the training of a model, and {model} is missing"
                raise ConfigError(Message(text, given=Argument(name), model=Argument("model")))
