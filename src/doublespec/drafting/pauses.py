"""How many tokens to settle before the next search for a run, where the last one found nothing."""

import math
from collections.abc import Callable

from doublespec.ratio import Ratio

# The chance at each token that a run begins, and that one begins where most are guessed ahead,
# before anything is known, and how many tokens' worth that is; what was seen counts half after
# seventy searches (docs/log.md).
_LIKELY, _LIKELY_UNFORESEEN, _CASES, _MEMORY = 0.25, 0.06, 4.0, 0.99
_LEAST = 1e-4  # chance
_LIKELY_SAVED, _SAVED_TOKENS = 1.0, 32.0  # of a forward by each token of a run, before any is known
_LEAST_SAVED = 0.05
_CLASSES = 6  # by how long nothing was found: 0 tokens, 1, 2 or 3, 4 to 7, 8 to 15, more
# What a run gains that a search finds, and how many runs' worth that is.
_LIKELY_GAINED, _RUNS = 4.0, 4.0
_NEVER = 128  # tokens: to learn whether it would be


class Pauses:
    """Learns where runs begin, from one answer to the next.

    A model that goes on by itself settles tokens in less time each than one that is asked after
    every token, so a search costs more than its own time: `cost` in all, in forwards. What begins
    in a pause is found at its end, (n - 1) / 2 tokens late on average in a pause of n, and each
    late token costs what one of a run saves, s of a forward. If a run begins at each token with a
    chance of p, a token costs cost / n + p s n / 2 of a forward, least at n = sqrt(2 cost / (p s)):
    F. W. Harris, "How Many Parts to Make at Once", 1913. The chance is the lower the longer nothing
    was found.
    """

    def __init__(
        self,
        cost: Callable[[], float],
        of_showing: Callable[[int], float] = lambda shown: 0.0,
        *,
        foreseen: bool = True,
    ) -> None:
        """`of_showing` is what so many tokens, when they are shown, add to a forward, as a share of
        one; `foreseen`: whether most runs are guessed ahead (`retrieval/recurrence.py`), as those
        of the text are, of earlier answers and datastores not: these are rare, but may be whole
        answers."""
        self._cost = cost
        self._of_showing = of_showing
        self._saved = Ratio(_LIKELY_SAVED, _SAVED_TOKENS)
        likely = _LIKELY_UNFORESEEN if foreseen else _LIKELY
        self._gained = Ratio(_LIKELY_GAINED, _RUNS)
        self._foreseen = foreseen
        self._chances = [Ratio(likely, _CASES, _MEMORY) for _ in range(_CLASSES)]

    def tokens(self, fruitless: int) -> int:
        """How many tokens to settle before the next search, where so many were settled since one
        found something: 1 or more."""
        chance = max(_LEAST, self._chances[_class(fruitless)].value)
        saved = max(_LEAST_SAVED, self._saved.value)
        cost = self._cost()
        is_worth_it = chance * self._gained.value >= math.sqrt(2.0 * cost * chance * saved)
        if self._foreseen and not is_worth_it:
            return _NEVER
        return max(1, int(math.sqrt(2.0 * cost / (chance * saved))))

    def learn(self, fruitless: int, passed: int, gained: float | None) -> None:
        """Where so many tokens were settled since something was found, a search was followed by
        `passed` more; the next one has saved so many forwards by the runs that it began (None: it
        found none of use)."""
        self._chances[_class(fruitless)].learn(float(gained is not None), passed)
        if gained is not None:
            self._gained.learn(gained, 1.0)

    def learn_run(self, shown: int, settled: int) -> float:
        """A run of which so many tokens were shown settled so many, the target's own choice with
        them; how many forwards it saved, the search that follows it taken off."""
        saved = settled - 1.0 - self._of_showing(shown)
        self._saved.learn(saved, settled)
        return saved - self._cost()


def _class(fruitless: int) -> int:
    return min(fruitless.bit_length(), _CLASSES - 1)


class Searches:
    """Those of one answer."""

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._fruitless = 0  # tokens since something was found, or since the answer began
        self._passed = 0  # of them, since the last search,
        self._pause = 0  # until the next one
        self._shown = 0  # tokens of the run that the last one has found, just now
        # The search after a pause that began the latest runs: what is kept of the pause until they
        # are over; and what these have saved, and whether one was of use.
        self._begun: tuple[int, int] | None = None
        self._gained, self._is_found = 0.0, False

    @property
    def left(self) -> int:
        """How many tokens it is until the next one: 0 or less, if it is due."""
        return self._pause - self._passed

    def learn(self, shown: int) -> None:
        """One has found a run of which so many tokens are shown (0: none)."""
        if self._passed:
            self._begun = self._fruitless - self._passed, self._passed
        if not shown:
            self.are_over()
        self._shown, self._passed = shown, 0
        self._pause = 0 if shown else self._pauses.tokens(self._fruitless)

    def go_on(self, settled: int) -> None:
        """So many tokens were settled, by what was found just now or without a search."""
        if self._shown:
            self._gained += self._pauses.learn_run(self._shown, settled)
            self._is_found |= settled > 1
            self._shown = self._fruitless = 0
        else:
            self._passed += settled
            self._fruitless += settled

    def are_over(self) -> None:
        """Nothing more is found, or the answer has ended: what the last pause was good for is
        known."""
        if self._begun is not None:
            self._pauses.learn(*self._begun, self._gained if self._is_found else None)
        self._begun, self._gained, self._is_found = None, 0.0, False
