"""Who is right where a draft departs from a retrieved run, by what speaks for the run there.

How often drafts hold says little of such a place, nor how often runs do: at most one of the two is
right there. A run that a deep match speaks for beats most drafts, one of a few tokens hardly any,
and in a text that repeats itself but for a number the same one is right every time.
"""

from typing import NamedTuple

from doublespec.retrieval.expectation import CLASSES

_DRAFT, _RUN = 0.55, 0.15  # of such places, where it is right, before anything was learnt
_PRIOR_WEIGHT = 4.0  # places that this counts for
_MEMORY = 256.0  # places after which what was learnt counts half


class Departure(NamedTuple):
    """After `place` tokens that draft and run have in common the run goes on with `token`, and the
    draft with another one. `evidence` is the class of what speaks for the run there."""

    place: int
    token: int
    evidence: int


class Departures:
    """Learns from every place where the text says who was right, by what spoke for the run."""

    def __init__(self) -> None:
        self._places = [_PRIOR_WEIGHT] * CLASSES
        self._draft = [_PRIOR_WEIGHT * _DRAFT] * CLASSES
        self._run = [_PRIOR_WEIGHT * _RUN] * CLASSES

    def of_draft(self, departure: Departure) -> float:
        """The chance that the draft is right there, if what both have in common is."""
        return self._draft[departure.evidence] / self._places[departure.evidence]

    def of_run(self, departure: Departure) -> float:
        """The same of the run."""
        return self._run[departure.evidence] / self._places[departure.evidence]

    def learn(self, departure: Departure, drafted: int, token: int) -> None:
        """The text went on with `token` there, where `drafted` was the draft's."""
        known = departure.evidence
        self._places[known] += 1.0
        self._draft[known] += token == drafted
        self._run[known] += token == departure.token
        if self._places[known] > _MEMORY:
            for counts in (self._places, self._draft, self._run):
                counts[known] /= 2
