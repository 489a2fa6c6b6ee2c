"""Several sources as one: whose run to show, and how much of it. Knows no models."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from doublespec.retrieval.base import Match, TokenIndex
from doublespec.retrieval.expectation import NOTHING, Ahead, Expectation
from doublespec.tokens import Tokens

LONGEST_RUN = 96
ROW_COST = 0.015  # of a forward, where no profile says better: 2.7 rows a token on the traces
TAIL = 16  # tokens by which a text is known again


class Asked(NamedTuple):
    """What the sources found for a text of `length` tokens that ended with `tail`."""

    length: int
    tail: Tokens
    matches: list[Match]


class LayeredIndex:
    """Asks all sources and shows the run that settles most per unit of time, if that is more than
    showing none.

    How far runs hold it learns from the texts themselves, source by source: the next text it is
    handed says what followed the last one, also where the run was not shown.
    """

    def __init__(self, sources: Sequence[TokenIndex], row_costs: Sequence[float] = ()) -> None:
        """`row_costs[n]` is the time of a target forward that shows n tokens."""
        self._sources = sources
        self._costs = list(row_costs) or [1.0 + ROW_COST * n for n in range(LONGEST_RUN + 1)]
        self._expectations: defaultdict[str, Expectation] = defaultdict(Expectation)
        self._asked = Asked(0, [], [])

    def lookup(self, tokens: Tokens, limit: int, ahead: Ahead = NOTHING) -> Match | None:
        """The run of the best source, as much of it as pays behind what is shown `ahead` of it
        (the last of `tokens`)."""
        self._learn(tokens)
        most = min(limit, len(self._costs) - 1 - ahead.shown)
        found = [source.lookup(tokens, most) for source in self._sources]
        matches = [match for match in found if match is not None]
        self._asked = Asked(len(tokens), tokens[-TAIL:], matches)
        best, length, rate = None, 0, 0.0
        for match in matches:
            run = self._expectations[match.source].best_run(match, self._costs, ahead)
            if run.rate > rate:
                best, (length, rate) = match, run
        if best is None or length == 0:
            return None
        return replace(best, tokens=best.tokens[:length], rate=rate)

    def _learn(self, tokens: Tokens) -> None:
        """Compare what was found last with what the text has become."""
        length, tail, matches = self._asked
        if tokens[max(0, length - TAIL) : length] == tail:
            after = tokens[length : length + LONGEST_RUN]
            for match in matches:
                self._expectations[match.source].learn(match, after)
