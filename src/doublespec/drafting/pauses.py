"""How many tokens to settle before the next search for a run, where the last one found nothing."""

import math
from collections.abc import Callable

from doublespec.ratio import Ratio

# The chance at each token that a run begins, before anything is known, and how many tokens' worth
# that is; what was seen counts half after seventy searches (docs/log.md).
_LIKELY, _CASES, _MEMORY = 0.25, 4.0, 0.99
_LEAST = 1e-4  # chance
_LIKELY_SAVED, _SAVED_TOKENS = 1.0, 32.0  # of a forward by each token of a run, before any is known
_LEAST_SAVED = 0.05
_CLASSES = 6  # by how long nothing was found: 0 tokens, 1, 2 or 3, 4 to 7, 8 to 15, more


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
        self, cost: Callable[[], float], of_showing: Callable[[int], float] = lambda shown: 0.0
    ) -> None:
        """`of_showing` is what so many tokens, when they are shown, add to a forward, as a share of
        one."""
        self._cost = cost
        self._of_showing = of_showing
        self._saved = Ratio(_LIKELY_SAVED, _SAVED_TOKENS)
        self._chances = [Ratio(_LIKELY, _CASES, _MEMORY) for _ in range(_CLASSES)]

    def tokens(self, fruitless: int) -> int:
        """How many tokens to settle before the next search, where so many were settled since one
        found something: 1 or more."""
        chance = max(_LEAST, self._chances[_class(fruitless)].value)
        saved = max(_LEAST_SAVED, self._saved.value)
        return max(1, int(math.sqrt(2.0 * self._cost() / (chance * saved))))

    def learn(self, fruitless: int, passed: int, *, found: bool) -> None:
        """Where so many tokens were settled since something was found, a search was followed by
        `passed` more; whether what the next one `found` was of use."""
        self._chances[_class(fruitless)].learn(float(found), passed)

    def learn_run(self, shown: int, settled: int) -> None:
        """A run of which so many tokens were shown settled so many, the target's own choice with
        them."""
        self._saved.learn(settled - 1.0 - self._of_showing(shown), settled)


def _class(fruitless: int) -> int:
    return min(fruitless.bit_length(), _CLASSES - 1)


class Searches:
    """Those of one answer."""

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._fruitless = 0  # tokens since something was found, or since the answer began
        self._passed = 0  # of them, since the last search

    def pause(self) -> int:
        """For how many tokens nothing need be looked for, where a search has found nothing."""
        return self._pauses.tokens(self._fruitless)

    def learn(self, shown: int, settled: int) -> None:
        """A search has found a run of which so many tokens were `shown` (0: none), and forwards
        have settled so many before the next one."""
        if self._passed:
            before = self._fruitless - self._passed
            self._pauses.learn(before, self._passed, found=shown > 0 and settled > 1)
        if shown:
            self._pauses.learn_run(shown, settled)
        self._passed = 0 if shown else settled
        self._fruitless = 0 if shown else self._fruitless + settled
