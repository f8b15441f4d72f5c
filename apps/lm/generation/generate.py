"""The sequences that the options describe, in their order: prompt after prompt, number after number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import ConfigError, DataError
from protperf.lm.engine import Engine
from protperf.lm.generation.causal import MAX_ATTEMPTS, write_sequences
from protperf.lm.generation.novelty import KnownSequences
from protperf.lm.generation.options import GenerateOptions
from protperf.lm.generation.sampling import Draws
from protperf.lm.generation.sequence import Generated
from protperf.lm.generation.template import Template, drawn_from, read_template, score_of
from protperf.lm.source import is_path, one_line
from protperf.message import Argument, Message


@dataclass(frozen=True, slots=True)
class Item:
    """What identifies a sequence: the place of its prompt, and its number."""

    prompt: int
    index: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What the options name, read from its files: prompts (one that is empty for none), or a template."""

    options: GenerateOptions
    prompts: list[io.Record]
    template: Template | None
    known: KnownSequences | None

    def items(self) -> Iterator[Item]:
        """All sequences, in their order."""
        numbers = range(self.options.start, self.options.start + self.options.number)
        return (Item(prompt, index) for prompt in range(len(self.prompts)) for index in numbers)


def read_plan(options: GenerateOptions, residues: str = "map") -> Plan:
    """Read the files that options name.

    Args:
        residues: the policy for odd residues.

    Raises:
        ConfigError: a prompt that is as long as a sequence may be, or a template that has nothing to draw; DataError:
        no prompts, or no sequence to exclude; DtypeError: text with line breaks; FastaError, FileError.
    """
    template, prompts = None, _prompts(options, residues)
    if options.template is not None:
        text = options.template
        if is_path(text):
            text = _only_sequence(text, residues)
        else:
            text = one_line(text.strip(), Argument("template"), "give one template, the lines joined, or a path")
        template = read_template(text, options, residues)
    for record in prompts:
        if len(record) >= options.max_len:
            text = "prompt {n} has {length} residues; {most} must be larger"
            raise ConfigError(Message(text, n=record.n, length=len(record), most=Argument("max_len")))
    known = None if options.exclude is None else KnownSequences([options.exclude], residues)
    if known is not None and not len(known):
        raise DataError(f"{options.exclude}: has no sequences to exclude")
    return Plan(options, prompts, template, known)


def input_files(options: GenerateOptions) -> list[str]:
    """The files that options name."""
    found = [str(path) for path in (options.prompts, options.exclude) if path is not None]
    return [*found, options.template] if options.template is not None and is_path(options.template) else found


def _prompts(options: GenerateOptions, residues: str) -> list[io.Record]:
    if options.prompts is not None:
        found = [record for batch in io.read_tokens(options.prompts, residues=residues) for record in batch]
        if not found:
            raise DataError(f"{options.prompts}: has no prompts")
        return found
    # `strict` and `skip` refuse an empty sequence, which a prompt may be.
    several = Message("give one prompt, the lines joined, or a file as {prompts}", prompts=Argument("prompts"))
    prompt = one_line(options.prompt or "", Argument("prompt"), several)
    tokens, flags = io.encode(prompt, residues=residues if prompt else "map", name="<prompt>")
    return [io.Record(0, "", "", tokens, flags, "", 0)]


def _only_sequence(path: str, residues: str) -> str:
    records = list(
        itertools.islice((record for batch in io.read_tokens(path, residues=residues) for record in batch), 2)
    )
    if len(records) != 1:
        count = "no sequence" if not records else "more than one sequence"
        raise ConfigError(Message("{name}: {path} has {count}", name=Argument("template"), path=path, count=count))
    return records[0].sequence


def generate(engine: Engine, plan: Plan, items: Iterator[Item]) -> Iterator[Generated]:
    """Generate lazily the sequences that some items of a plan stand for, in their order.

    Raises:
        DataError: a sequence was one of the excluded ones again and again.
    """
    for prompt, group in itertools.groupby(items, key=lambda item: item.prompt):
        indices = (item.index for item in group)
        if plan.template is None:
            yield from _written(engine, plan, prompt, indices)
        else:
            yield from (_filled(engine, plan, plan.template, index) for index in indices)


def _written(engine: Engine, plan: Plan, prompt: int, indices: Iterator[int]) -> Iterator[Generated]:
    record = plan.prompts[prompt]
    refuse = (lambda tokens: False) if plan.known is None else plan.known.__contains__
    for each in write_sequences(engine, record.tokens, prompt, indices, plan.options, refuse):
        facts: dict[str, str | int | float] = {"end": "eos" if each.has_end else "max_len"}
        if len(record):
            facts["prompt_len"] = len(record)
        name = f"{record.id}/{each.index}" if plan.options.prompts is not None else f"g{each.index}"
        facts |= _novelty(plan, each.tokens)
        yield Generated(prompt, each.index, name, each.tokens, "ll", each.score, each.scored, facts)


def _filled(engine: Engine, plan: Plan, template: Template, index: int) -> Generated:
    tokens = _not_excluded(engine, plan, template, index)
    with engine.computing(True):
        score = score_of(engine, tokens, template)
    changed = int((tokens != template.tokens).sum())
    facts = {"drawn": len(template.drawn), "changed": changed, **_novelty(plan, tokens)}
    return Generated(0, index, f"g{index}", tokens, "pll", score, len(template.drawn), facts)


def _not_excluded(engine: Engine, plan: Plan, template: Template, index: int) -> NDArray[np.uint8]:
    for attempt in range(MAX_ATTEMPTS):
        with engine.computing(True):
            tokens = drawn_from(engine, template, plan.options, Draws(plan.options.seed, 0, index, attempt))
        if plan.known is None or tokens not in plan.known:
            return tokens
    text = f"sequence {index} was one of the excluded sequences {MAX_ATTEMPTS} times in a row; raise the temperature, "
    raise DataError(text + "or exclude fewer")


def _novelty(plan: Plan, tokens: NDArray[np.uint8]) -> dict[str, str | int | float]:
    if plan.known is None:
        return {}
    name, identity = plan.known.nearest(tokens) or ("none", math.nan)
    return {"identity": identity, "nearest": name}
