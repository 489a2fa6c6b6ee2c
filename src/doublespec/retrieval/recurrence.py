"""Where a text goes on as it did before: guessed while a model goes on by itself, so that a run
costs no more than its rows."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeGuard

from doublespec.compiled.guesser import Guesser
from doublespec.retrieval.base import Match, TokenIndex
from doublespec.retrieval.chains import Chains
from doublespec.retrieval.expectation import Expectation
from doublespec.retrieval.guessing import DEPTHS, GUESSED, STATE, guessing
from doublespec.tokens import Tokens

MOST_GUESSED = 31  # tokens at once,
MOST_AHEAD = 2 * MOST_GUESSED  # and in a call, besides one for each forward
_ROOM, _MOST_ENTRIES = 4096, 256  # of what one call guesses
# After so many guesses, or a quarter of all, what they teach is reckoned with.
_LOT, _LARGEST_LOT = 16, 512
_WELL_KNOWN, _SELDOM = 1024, 4  # guesses, after which one of so many calls is learnt of
# Suffixes for which that is done: of others as of the next shorter one.
_MEASURED = (*range(2, 13), 14, 16, 20, 24, 28, 32, 48, 64, 96, 127)
_GUESSED_TOKENS = (0,) * MOST_GUESSED
_AT = {name: place for place, name in enumerate(STATE)}


class Judged(NamedTuple):
    """A guess whose forward has come after so many tokens of a call: the tokens that it was shown
    (none: it was only watched), and the seconds that it took."""

    place: int
    shown: tuple[int, ...]
    seconds: float


class Foresight(Protocol):
    """What guesses while a text grows (`Recurrence`)."""

    @property
    def guesser(self) -> Guesser: ...

    def shorten(self, most: int) -> None: ...

    def guess(self) -> list[int]: ...

    def hear(self, token: int, *, more: bool = False) -> list[int]: ...

    def over(self, new: Tokens) -> list[Judged]: ...


class Recurrence:
    """Guesses what followed the longest suffix of a text that stood in it before, or among the
    tokens told since: as many tokens as settle most in the time of their forward, by what is learnt
    of how many hold."""

    def __init__(self) -> None:
        self._state = array("q", [0] * len(STATE))
        self._lengths = array("q", [0] * DEPTHS)
        self._runs = array("q", [0] * _ROOM)
        self._log = array("q", [0] * (len(GUESSED) * _MOST_ENTRIES))
        self._guess, self._hear, address, _ = guessing()
        self.guesser = Guesser(address, self._state.buffer_info()[0], MOST_GUESSED)
        self._chains: Chains | None = None  # whose tables the state names
        self._expectation = Expectation()
        self._costs: Sequence[float] = ()  # by which the lengths were found,
        self._learnt = self._all_learnt = 0  # and guesses learnt of since, and before
        self._calls = 0

    def begin(self, chains: Chains, costs: Sequence[float], most: int) -> "Recurrence":
        """After the text of those chains, which must not change until `most` tokens were told or it
        is `over`. `costs[n]` is the time of a forward that shows n tokens, of which it shows as
        many as there are costs of."""
        chains.reserve(most)
        known = len(chains.tokens)
        told = {
            "tables": chains.place,
            "known": known,
            "mask": chains.mask,
            "length": known,
            "stop": known + most,
            "lengths": self._lengths.buffer_info()[0],
            "runs": self._runs.buffer_info()[0],
            "room": _ROOM,
            "log": self._log.buffer_info()[0],
            "most_entries": _MOST_ENTRIES,
            "unshown": self._state[_AT["unshown"]],
        }
        self._state[:] = array("q", [told.get(name, 0) for name in STATE])
        self._chains = chains
        if self._learnt >= min(max(_LOT, self._all_learnt // 4), _LARGEST_LOT) or (
            costs is not self._costs
        ):
            self._reckon(costs)
        return self

    def shorten(self, most: int) -> None:
        """No more than so many tokens are told."""
        self._state[_AT["stop"]] = self._state[_AT["known"]] + most

    def guess(self) -> list[int]:
        """What is guessed at first: once, before any token is told."""
        self._guess(self.guesser.state)
        return self._guessed()

    def hear(self, token: int, *, more: bool = False) -> list[int]:
        """What is guessed behind another token; nothing if `more` of the same forward follow."""
        self._hear(self.guesser.state, token, more)
        return self._guessed()

    def over(self, new: Tokens) -> list[Judged]:
        """What was shown of the guesses, when the text has become longer by `new`, which was told;
        what became of them is learnt."""
        entries, judged, start = self._state[_AT["entries"]], list[Judged](), 0
        width, self._calls = len(GUESSED), self._calls + 1
        learns = self._all_learnt < _WELL_KNOWN or self._calls % _SELDOM == 0
        for first in range(0, entries * width, width):
            place, depth, length, shown, nanoseconds = self._log[first : first + width]
            run = tuple(self._runs[start : start + length])
            start += length
            if learns:
                self._expectation.learn(_match(run, depth), new[place:])
            judged.append(Judged(place, run[:shown], nanoseconds * 1e-9))
        self._learnt += entries if learns else 0
        return judged

    def _guessed(self) -> list[int]:
        count, used = self._state[_AT["guessed"]], self._state[_AT["used"]]
        return self._runs[used - count : used].tolist()

    def _reckon(self, costs: Sequence[float]) -> None:
        """Finds how many tokens to show behind suffixes of all lengths."""
        self._all_learnt, self._learnt = self._all_learnt + self._learnt, 0
        run, stops = _GUESSED_TOKENS[: len(costs) - 1], (*_MEASURED[1:], DEPTHS)
        for depth, stop in zip(_MEASURED, stops, strict=True):
            length = self._expectation.best_run(_match(run, depth), costs).length
            self._lengths[depth:stop] = array("q", [length] * (stop - depth))
        self._costs = costs


class GuessingIndex(TokenIndex, Protocol):
    """One that guesses while the text grows."""

    def guess_ahead(self, tokens: Tokens, costs: Sequence[float], most: int) -> Recurrence:
        """Behind a text of which `most` tokens are still to come (`Recurrence.begin`). It holds
        until the index is asked again."""
        ...


def can_guess_ahead(index: TokenIndex) -> TypeGuard[GuessingIndex]:
    return hasattr(index, "guess_ahead")


def _match(run: tuple[int, ...], depth: int) -> Match:
    return Match(run, depth, "recurrence", likeness=0.0)
