"""Generated sequences as FASTA: what the command runs. A job is checked when it is made, before a model is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from protperf.lm.generation.generate import Item, generate, input_files, read_plan
from protperf.lm.generation.options import GenerateOptions, GenerateOutput, check_trained
from protperf.lm.generation.sequence import FastaEncoder, Generated
from protperf.lm.tables.destination import check_inputs
from protperf.lm.tables.fill import fill, fingerprint, input_digests
from protperf.lm.tables.sink import open_sink
from protperf.lm.watch import Stage, Watch

if TYPE_CHECKING:
    from protperf.lm.loading import LoadedModel


class GenerateJob:
    """Generate the sequences that the options describe.

    Raises:
        ConfigError, DataError, FastaError, FileError: as for `read_plan`; or a file that would overwrite an input.
    """

    def __init__(self, options: GenerateOptions, output: GenerateOutput, residues: str = "map") -> None:
        self._options, self._output, self._residues = options, output, residues
        self._inputs = input_files(options)
        check_inputs(output.out, self._inputs)
        self._plan = read_plan(options, residues)

    def write(self, loaded: LoadedModel, watch: Watch | None = None) -> None:
        """Write the sequences.

        Raises:
            ConfigError: the model was not trained for this, or sequences of an interrupted run are neither continued
            nor given up; DataError: sequences that are excluded were drawn again and again; OSError: the file cannot be
            written.
        """
        watch, plan, engine = watch or Watch(), self._plan, loaded.engine
        check_trained(engine.config, self._options)
        watch.note(loaded.step.name)
        facts = self._fingerprint(loaded, watch)
        output = self._output
        with watch.working("generating", "residues", None, "sequences") as stage:
            items = plan.items()
            sink = open_sink(
                output.out,
                FastaEncoder(),
                facts,
                identify=_identify,
                resume=output.resume,
                force=output.force,
            )
            provenance = {"command": sys.argv, "model": loaded.step.name, "input": self._inputs}
            note = fill(sink, items, _batches(generate(engine, plan, items), stage), stage, watch, lambda: provenance)
        if note is not None:
            watch.note(f"note: {note}")

    def _fingerprint(self, loaded: LoadedModel, watch: Watch) -> dict[str, Any]:
        # Where files lie changes nothing of what they hold.
        asked = {
            name: value for name, value in self._options.to_mapping().items() if name not in ("prompts", "exclude")
        }
        asked["sampling_seed"] = asked.pop("seed")
        asked |= {"residues": self._residues, "computed": loaded.engine.dtype}
        digests = input_digests(self._inputs, self._output.out, watch)
        return fingerprint(loaded, digests, asked, deterministic=True)


def _identify(item: Item) -> Iterator[bytes]:
    yield f"{item.prompt}\t{item.index}\n".encode()


def _batches(sequences: Iterator[Generated], stage: Stage) -> Iterator[tuple[list[Item], list[Generated]]]:
    for each in sequences:
        stage.update(len(each.tokens))
        yield [Item(each.prompt, each.index)], [each]
