"""Several sources as one: whose run to show, and how much of it. Knows no models."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from doublespec.ratio import Ratio
from doublespec.retrieval.base import Match, TokenIndex
from doublespec.retrieval.expectation import NOTHING, Ahead, Expectation, Run
from doublespec.tokens import Tokens, common_prefix

LONGEST_RUN = 96
ROW_COST = 0.015  # of a forward, where no profile says better: 2.7 rows a token on the traces
TAIL = 16  # tokens by which a text is known again
# Where lookups do not pay, one of so many is made, and of twice as many while that finds nothing,
# until they take a negligible share of the time.
_SPACING = 8
_MEMORY = 0.9  # of what lookups have gained, with each
_NEGLIGIBLE = 0.01  # of a forward: what takes less is always done, as a run may begin anywhere


class Asked(NamedTuple):
    """What the sources found for a text of `length` tokens that ended with `tail`; and what was
    shown of it (`run`), whose every token is `worth` so much time, and which `costs` some."""

    length: int
    tail: Tokens
    matches: list[Match]
    run: Tokens = ()
    worth: float = 0.0
    costs: float = 0.0


_NOTHING_ASKED = Asked(0, [], [])


_NEVER: tuple[Tokens, int, int] = ((), 0, 0)


class Sources:
    """Several sources, each asked once for what several indexes want to know. A list that only ever
    grows is known again by its length."""

    def __init__(self, sources: Sequence[TokenIndex]) -> None:
        self._sources = sources
        self._asked = _NEVER
        self._found: list[Match] = []

    def find(self, tokens: Tokens, limit: int) -> list[Match]:
        """A run of at most `limit` tokens from each that has one."""
        text, length, most = self._asked
        if text is tokens and length == len(tokens) and 0 < limit <= most:
            return [_cut(match, limit) for match in self._found]
        self._asked = _NEVER  # should what follows be interrupted
        found = [source.lookup(tokens, limit) for source in self._sources]
        self._found = [match for match in found if match is not None]
        self._asked = tokens, len(tokens), limit
        return self._found


def _cut(match: Match, limit: int) -> Match:
    return match if len(match.tokens) <= limit else match._replace(tokens=match.tokens[:limit])


class LayeredIndex:
    """Asks all sources and shows the run that settles most per unit of time, if that is more than
    showing none.

    How far runs hold it learns from the texts themselves, source by source: the next text it is
    handed says what followed the last one, also where the run was not shown. So it learns, too, how
    much time runs gain: while that is less than it takes to look for them, it seldom does.
    """

    def __init__(
        self,
        sources: Sources | Sequence[TokenIndex],
        row_costs: Sequence[float] = (),
        asking_cost: float = 0.0,
    ) -> None:
        """`row_costs[n]` is the time of a forward that shows n tokens, `asking_cost` that of a
        lookup; the unit is a forward that shows none."""
        self._sources = sources if isinstance(sources, Sources) else Sources(sources)
        self._asking_cost = asking_cost
        self._gained = Ratio(max(1.0, 2 * asking_cost), 4.0, _MEMORY)  # by a lookup
        self._left_out, self._spacing = 0, _SPACING
        self._costs = list(row_costs) or [1.0 + ROW_COST * n for n in range(LONGEST_RUN + 1)]
        self._expectations: defaultdict[str, Expectation] = defaultdict(Expectation)
        self._asked = _NOTHING_ASKED

    def lookup(self, tokens: Tokens, limit: int, ahead: Ahead = NOTHING) -> Match | None:
        """The run of the best source, as much of it as pays behind what is shown `ahead` of it
        (the last of `tokens`)."""
        self._learn(tokens)
        self._asked = _NOTHING_ASKED
        if not self._is_worth_asking():
            return None
        most = min(limit, len(self._costs) - 1 - ahead.shown)
        matches = self._sources.find(tokens, most)
        best, (length, rate) = None, Run(0, 0.0)
        for match in matches:
            run = self._expectations[match.source].best_run(match, self._costs, ahead)
            if run.rate > rate:
                best, (length, rate) = match, run
        shown = best.tokens[:length] if best is not None else ()
        costs = self._costs[ahead.shown + length] - self._costs[ahead.shown]
        worth = self._costs[ahead.shown] / ahead.settled  # the time in which as much is settled
        self._asked = Asked(len(tokens), tokens[-TAIL:], matches, shown, worth, costs)
        return best._replace(tokens=shown, rate=rate) if best is not None and shown else None

    def _is_worth_asking(self) -> bool:
        if self._asking_cost <= max(self._gained.value, _NEGLIGIBLE):
            self._left_out, self._spacing = 0, _SPACING
            return True
        self._left_out += 1
        if self._left_out < self._spacing:
            return False
        largest = max(_SPACING, round(self._asking_cost / _NEGLIGIBLE))
        self._left_out, self._spacing = 0, min(2 * self._spacing, largest)
        return True

    def _learn(self, tokens: Tokens) -> None:
        """Compare what was found last with what the text has become."""
        asked = self._asked
        length, goes_on = asked.length, len(tokens) > asked.length
        if not length:
            return
        if tokens[max(0, length - TAIL) : length] != asked.tail:
            self._gained.learn(-asked.costs, 1)
        elif goes_on:
            after = tokens[length : length + LONGEST_RUN]
            kept = common_prefix(asked.run, after)
            self._gained.learn(kept * asked.worth - asked.costs, 1)
            for match in asked.matches:
                self._expectations[match.source].learn(match, after)
