"""Guesses from retrieved text: alone, and behind a draft."""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from doublespec.drafting.base import Completer, Drafter, Guess
from doublespec.drafting.departures import Departure, Departures
from doublespec.ratio import Ratio
from doublespec.retrieval.base import Match, TokenIndex
from doublespec.retrieval.expectation import Ahead, drafted_ahead, evidence_at
from doublespec.retrieval.layered import LayeredIndex
from doublespec.retrieval.recurrence import Foresight, Recurrence
from doublespec.sampling import Request
from doublespec.tokens import Tokens, common_prefix

_TAIL = 16  # tokens by which a text is known again
_MARGIN = 1.15  # by which a run must be better than a draft from which it departs
# Where searches cost something, one of so many is made while none of the latest was of use.
_BARREN, _SELDOM = 8, 8


class LookupDrafter:
    """Proposes the run that an index finds for the text, of at most `most` tokens."""

    def __init__(self, index: TokenIndex, most: int) -> None:
        self._index = index
        self._most = most

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        limit = min(limit, self._most)
        match = self._index.lookup(tokens, limit) if limit > 0 else None
        return list(match.tokens[:limit]) if match is not None else []

    def complete(self, tokens: Tokens, drafted: list[int], limit: int, request: Request) -> Guess:
        """The draft with the run behind it."""
        run = self.propose([*tokens, *drafted], limit - len(drafted), request)
        return Guess([*drafted, *run], len(drafted))

    def guess_ahead(self, tokens: Tokens, most: int, request: Request) -> Recurrence | None:
        """See `Helper`: a published search is made after every token, or after so many."""
        return None


class WeighingDrafter(LookupDrafter):
    """The same with an index that knows what runs are worth, and with what is learnt of the draft.

    Of a draft as much is shown as is worth its rows. The run behind it is of use only if all of
    that holds, so it is as long as pays then. A run that is found `alone`, for the text itself, may
    depart from the draft, whose first mistake would hide it: then what promises more is shown, by
    what is learnt of who is right at such places.
    """

    def __init__(
        self,
        index: LayeredIndex,
        most: int,
        row_cost: float = 0.0,
        alone: LayeredIndex | None = None,
    ) -> None:
        """`row_cost` is what each token that the target is shown adds to its forward, as a share
        of one. Without an index of runs `alone`, no draft is left out."""
        super().__init__(index, most)
        self._layered = index
        self._alone = alone
        self._row_cost = row_cost
        self._barren = 0  # searches for a run alone that could have been made since one was shown
        self._kept = Ratio(0.8, 4.0)
        self._length = 0  # of the text that was drafted after last,
        self._tail: Tokens = []  # its last tokens,
        self._drafted: list[int] = []  # the draft,
        self._departure: Departure | None = None  # and where a run alone said otherwise
        self._departures = Departures()

    def complete(self, tokens: Tokens, drafted: list[int], limit: int, request: Request) -> Guess:
        if not drafted and not self._drafted:
            return Guess(self.propose(tokens, limit, request), 0)
        self._learn(tokens)
        self._length, self._tail, self._drafted = len(tokens), tokens[-_TAIL:], drafted
        drafted = drafted[: worth_showing(len(drafted), self._kept.value, self._row_cost)]
        other = self._departing(tokens, drafted, min(limit, self._most))
        room = min(limit - len(drafted), self._most)
        ahead = drafted_ahead(len(drafted), self._kept.value)
        match = self._layered.lookup([*tokens, *drafted], room, ahead) if room > 0 else None
        if other is not None and self._promises_more(other, ahead, match):
            self._barren = 0
            return Guess(list(other.tokens), 0)
        return Guess([*drafted, *(match.tokens if match is not None else ())], len(drafted))

    def guess_ahead(self, tokens: Tokens, most: int, request: Request) -> Recurrence | None:
        return self._layered.guess_ahead(tokens, most)

    def _departing(self, tokens: Tokens, drafted: list[int], limit: int) -> Match | None:
        """The run for the text itself, where it says another thing than the draft."""
        self._departure = None
        if self._alone is None or not drafted or limit <= 0:
            return None
        self._barren += 1
        if self._alone.is_costly and self._barren > _BARREN and self._barren % _SELDOM:
            return None
        found = self._alone.lookup(tokens, limit)
        place = common_prefix(found.tokens, drafted) if found is not None else 0
        if found is None or place == min(len(found.tokens), len(drafted)):
            return None
        self._departure = Departure(place, found.tokens[place], evidence_at(found, place))
        return found

    def _promises_more(self, run: Match, ahead: Ahead, behind: Match | None) -> bool:
        """Whether that run is likely to settle more in its time than the draft `ahead`, with what
        was found `behind` it. What both have in common counts as certain: it is so for both."""
        departure = self._departure
        assert self._alone is not None and departure is not None
        shown = ahead.shown + (len(behind.tokens) if behind is not None else 0)
        cost = 1.0 + self._row_cost * shown
        more = (behind.rate * cost - ahead.settled) / ahead.reach if behind is not None else 0.0
        rest = drafted_ahead(ahead.shown - departure.place - 1, self._kept.value)
        of_draft = self._departures.of_draft(departure) * (rest.settled + rest.reach * more)
        of_run = self._alone.holds_on(run, departure.place + 1)
        of_run = self._departures.of_run(departure) * (1.0 + of_run)
        common = departure.place + 1.0  # with the target's own choice
        run_cost = 1.0 + self._row_cost * len(run.tokens)
        return (common + of_run) / run_cost > _MARGIN * (common + of_draft) / cost

    def _learn(self, tokens: Tokens) -> None:
        """Takes in what the text became after the last draft."""
        stop, drafted, departure = self._length, self._drafted, self._departure
        new = tokens[stop : stop + len(drafted)]
        if new and tokens[max(0, stop - _TAIL) : stop] == self._tail:
            kept = common_prefix(drafted, new)
            self._kept.learn(kept, min(kept + 1, len(new)))
            if departure is not None and departure.place < min(kept + 1, len(new)):
                place = departure.place
                self._departures.learn(departure, drafted[place], new[place])


def worth_showing(count: int, kept: float, row_cost: float) -> int:
    """How many of `count` drafted tokens settle most in the time of the forward that judges them,
    each holding with chance `kept` where those before it do: one at least, to go on learning."""
    settled = reach = best = 1.0
    for shown in range(1, count + 1):
        reach *= kept
        settled += reach
        rate = settled / (1.0 + row_cost * shown)
        if rate < best and shown > 1:
            return shown - 1
        best = rate
    return count


class Helper(Drafter, Completer, Protocol):
    """Proposes runs, and completes drafts by them."""

    def guess_ahead(self, tokens: Tokens, most: int, request: Request) -> Foresight | None:
        """Guesses by itself while a model goes on by itself, for `most` tokens behind a text. None:
        there is nothing that could."""
        ...


class TenantDrafter:
    """A drafter for each tenant, so that nothing of one is offered to another; the `most` that were
    asked last are kept."""

    def __init__(self, make: Callable[[int], Helper], most: int) -> None:
        self._drafter_of = lru_cache(maxsize=most)(make)

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        return self._drafter_of(request.tenant).propose(tokens, limit, request)

    def complete(self, tokens: Tokens, drafted: list[int], limit: int, request: Request) -> Guess:
        return self._drafter_of(request.tenant).complete(tokens, drafted, limit, request)

    def guess_ahead(self, tokens: Tokens, most: int, request: Request) -> Foresight | None:
        return self._drafter_of(request.tenant).guess_ahead(tokens, most, request)
