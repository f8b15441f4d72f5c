"""Models of a family as `Engine`: what stands in a column of its alignment, given what stands in the others.

A sequence is placed in the columns first, masked residues as unknown ones: by the query, the first row of the
alignment, if it is nearly that protein, so that the query stands where the alignment has it; else by the profile of all
rows. Then each residue is predicted from the column where it stands and, if the model has pairs, from the residues in
the others. A residue in no column has the frequencies of any protein. Nothing is read left to right, so these models
answer in the mode MASKED.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from protperf.errors import ConfigError, DataError
from protperf.lm.alignment.alignment import GAP, codes_of
from protperf.lm.alignment.placement import LEAST_FIT, fit_of, place
from protperf.lm.alignment.profile import conservation, log_odds
from protperf.lm.alignment.substitution import substitution
from protperf.lm.alphabet import BOS, EOS, FIRST_RESIDUE, NUM_STANDARD, VOCAB_SIZE
from protperf.lm.baselines.engine import BaselineEngine
from protperf.lm.engine import MASKED, Borders, Places, Targets, Tokens, of_targets
from protperf.pairwise import Given

_NEARLY = 0.7
"""Share of residues that are those of the query from which a protein is placed by the query alone."""
_RARE = math.log(1e-4)
"""Log-probability of each token that is none of the twenty residues."""


class Odds(Protocol):
    """One protein, and what substitutions change."""

    def of(self, sites: Sequence[int], tokens: Tokens) -> float:
        """Log-odds in nats of new residues at these indices against the protein as it is."""
        ...


class SubstitutionEngine(BaselineEngine):
    """A model that says what a substitution changes, in the mode MASKED and by `odds`."""

    def __init__(self, kind: str, dtype: str) -> None:
        super().__init__(kind, "masked", dtype)

    def odds(self, tokens: Tokens) -> Odds:
        """The protein of these residues, ready for substitutions."""
        raise NotImplementedError

    def log_probs(
        self, tokens: Tokens, borders: Borders, mode: int, rows: Places = None, targets: Targets = None
    ) -> NDArray[Any]:
        if mode != MASKED:
            raise ConfigError(f"a baseline ({self.kind}) knows columns and does not read left to right")
        sequences = [tokens[start:end] for start, end in itertools.pairwise(borders.tolist())]
        found = np.concatenate(self._predicted(sequences)).astype(self.dtype)
        return of_targets(found if rows is None else found[rows], targets)

    def empty_state(self, num_sequences: int = 1) -> NoReturn:
        raise ConfigError(f"a baseline ({self.kind}) does not read left to right and has no state to carry on")

    def _predicted(self, sequences: list[Tokens]) -> list[NDArray[np.float64]]:
        """Log-probabilities over the vocabulary of each token of each sequence, special ones among them."""
        raise NotImplementedError


class BlosumEngine(SubstitutionEngine):
    """BLOSUM62: each residue is predicted from the one that stands there, or as in any protein where it is masked."""

    def __init__(self, dtype: str) -> None:
        super().__init__("blosum", dtype)
        self._table, self._background = _replacements(), over_vocabulary(np.log(substitution().background))

    def odds(self, tokens: Tokens) -> Odds:
        # Entries of the matrix: against the frequency in any protein.
        return _Independent(self._table[tokens] - self._background)

    def _predicted(self, sequences: list[Tokens]) -> list[NDArray[np.float64]]:
        return [self._table[tokens] for tokens in sequences]


class FamilyModel(Protocol):
    """What an alignment says of its columns, when it is known what stands in the others."""

    def conditionals(self, codes: NDArray[np.uint8], given: Given = "others") -> NDArray[np.float64]:
        """Log-probabilities of the twenty residues in each column, given the codes in others [L, 20]."""
        ...

    def energy_difference(self, codes: NDArray[np.uint8], columns: NDArray[np.int64], new: NDArray[np.int64]) -> float:
        """Log-odds in nats of new residues in columns, against the codes [L] as they are."""
        ...


class FamilyEngine(SubstitutionEngine):
    """A model of the columns of an alignment; as `protperf.lm.engine.Engine`, in the mode MASKED alone.

    Attributes:
        members: some rows of the alignment [M, L], by which the family is compared with other models.
        without_members: a model of the rest of the alignment, for such a comparison, or of the rest's columns alone.
    """

    def __init__(
        self,
        kind: str,
        profile: NDArray[np.floating],
        models: tuple[FamilyModel, FamilyModel],
        query: NDArray[np.uint8],
        members: NDArray[np.uint8],
        dtype: str,
    ) -> None:
        """Take a model apart.

        Args:
            profile: log-probabilities of the twenty residues in each column on its own [L, 20], for placing sequences.
            models: `model` and `without_members`, which may be one.
            query: the row whose residues are the columns [L].
        """
        super().__init__(kind, dtype)
        (self.model, self.without_members), self.members = models, members
        self._elsewhere = over_vocabulary(np.log(substitution().background))
        self._scores, self._conservation = log_odds(profile), conservation(profile)
        known = substitution()
        self._query, by_residue = query, np.log(np.vstack([known.conditional, known.background]))
        self._query_scores = log_odds(by_residue[query])

    def odds(self, tokens: Tokens) -> Member:
        """The protein in the columns of the family.

        Raises:
            DataError: it is not a member.
        """
        codes = codes_of(tokens)
        (columns,) = self._columns_of([codes])
        fit = fit_of(codes, columns, self._scores)
        if fit < LEAST_FIT:
            text = f"the wild type does not fit the columns of the {self.kind} model ({fit:.2f} nats per residue)"
            raise DataError(f"{text}; give the alignment of its own family")
        return Member(self.model, self._conservation, columns, tokens)

    def _predicted(self, sequences: list[Tokens]) -> list[NDArray[np.float64]]:
        # The frame does not belong to the sequence.
        letters = [np.flatnonzero((tokens != BOS) & (tokens != EOS)) for tokens in sequences]
        inside = [codes_of(tokens[at]) for tokens, at in zip(sequences, letters, strict=True)]
        found = []
        for tokens, at, codes, columns in zip(sequences, letters, inside, self._columns_of(inside), strict=True):
            rows = np.tile(self._elsewhere, (len(tokens), 1))
            known = columns >= 0
            if known.any():
                row = np.full(len(self._scores), GAP, np.uint8)
                row[columns[known]] = codes[known]
                rows[at[known]] = over_vocabulary(self.model.conditionals(row)[columns[known]])
            found.append(rows)
        return found

    def _columns_of(self, sequences: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.int32]]:
        """The column of each residue of each sequence; -1 where it stands in none."""
        found = [placed.columns for placed in place(sequences, self._query_scores)]
        others = [i for i, pair in enumerate(zip(sequences, found, strict=True)) if not self._is_nearly_query(*pair)]
        for i, placed in zip(others, place([sequences[i] for i in others], self._scores), strict=True):
            found[i] = placed.columns
        return found

    def _is_nearly_query(self, codes: NDArray[np.uint8], columns: NDArray[np.int32]) -> bool:
        inside = (columns >= 0) & (codes != GAP)
        is_same = codes[inside] == self._query[columns[inside]]
        return bool(is_same.sum() >= _NEARLY * max(1, min((codes != GAP).sum(), (self._query != GAP).sum())))


class _Independent:
    """Odds that add up: one row of log-odds over the vocabulary for each residue."""

    def __init__(self, rows: NDArray[np.float64]) -> None:
        self._rows = rows

    def of(self, sites: Sequence[int], tokens: Tokens) -> float:
        return math.fsum(self._rows[list(sites), tokens].tolist())


class Member:
    """A protein in the columns of a family, as `Odds`; residues in none of them have the odds of BLOSUM62.

    Attributes:
        weights: how conserved the place of each residue is [len]: the root of the relative entropy of its column, 1 on
            average. A residue in no column has that of a column where nothing but this residue was seen.
    """

    def __init__(
        self, model: FamilyModel, by_column: NDArray[np.float64], columns: NDArray[np.int32], tokens: Tokens
    ) -> None:
        """Place a protein.

        Args:
            by_column: how conserved each column is, in nats; columns: of each residue.
        """
        self._model, self._columns, self._tokens = model, columns.astype(np.int64), tokens
        self._table = _replacements()
        codes, inside = codes_of(tokens), columns >= 0
        self._codes = np.full(len(by_column), GAP, np.uint8)
        self._codes[columns[inside]] = codes[inside]
        alone = conservation(np.log(substitution().conditional))
        roots = np.sqrt(np.append(alone, alone.mean()))[codes]
        roots[inside] = np.sqrt(by_column[columns[inside]])
        self.weights = roots / roots.mean() if roots.any() else np.ones(len(roots))

    def of(self, sites: Sequence[int], tokens: Tokens) -> float:
        places, old = np.array(sites, np.int64), self._tokens[list(sites)]
        # The columns know the twenty residues alone.
        inside = (self._columns[places] >= 0) & _is_standard(old) & _is_standard(tokens)
        outside = self._table[old[~inside], tokens[~inside]] - self._table[old[~inside], old[~inside]]
        new = tokens[inside].astype(np.int64) - FIRST_RESIDUE
        found = self._model.energy_difference(self._codes, self._columns[places[inside]], new)
        return math.fsum([found, *outside.tolist()])


class SiteModel:
    """Columns that know nothing of each other; as `FamilyModel`.

    Args:
        log_probs: of the twenty residues in each column [L, 20].
    """

    def __init__(self, log_probs: NDArray[np.floating]) -> None:
        self._log_probs = log_probs.astype(np.float64)

    def conditionals(self, codes: NDArray[np.uint8], given: Given = "others") -> NDArray[np.float64]:
        return self._log_probs

    def energy_difference(self, codes: NDArray[np.uint8], columns: NDArray[np.int64], new: NDArray[np.int64]) -> float:
        rows = self._log_probs[columns]
        places = np.arange(len(columns))
        return math.fsum((rows[places, new] - rows[places, codes[columns]]).tolist())


def _replacements() -> NDArray[np.float64]:
    """Log-probabilities of what stands in the place of each token by BLOSUM62 [V, V]."""
    known = substitution()
    found = np.tile(over_vocabulary(np.log(known.background)), (VOCAB_SIZE, 1))
    found[FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD] = over_vocabulary(np.log(known.conditional))
    return found


def over_vocabulary(log_probs: NDArray[np.floating]) -> NDArray[np.float64]:
    """Log-probabilities over the vocabulary [.., V] from those of the twenty residues [.., 20]."""
    found = np.full((*log_probs.shape[:-1], VOCAB_SIZE), _RARE)
    found[..., FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD] = log_probs
    return found


def _is_standard(tokens: Tokens) -> NDArray[np.bool_]:
    return (tokens >= FIRST_RESIDUE) & (tokens < FIRST_RESIDUE + NUM_STANDARD)
