"""How many tokens to settle before the next search for a run, where the last one found nothing."""

import math
from collections.abc import Callable

from doublespec.drafting.lookup import Helper
from doublespec.ratio import Ratio
from doublespec.retrieval.recurrence import NGRAMS, Recurrence
from doublespec.sampling import Request
from doublespec.tokens import Tokens

# The chance at each token that a run begins, and that one begins that cannot be heard, before
# anything is known, and how many tokens' worth that is; what was seen counts half after seventy
# searches (docs/log.md).
_LIKELY, _LIKELY_UNHEARD, _CASES, _MEMORY = 0.25, 0.06, 4.0, 0.99
_LEAST = 1e-4  # chance
_LIKELY_SAVED, _SAVED_TOKENS = 1.0, 32.0  # of a forward by each token of a run, before any is known
_LEAST_SAVED = 0.05
_CLASSES = 6  # by how long nothing was found: 0 tokens, 1, 2 or 3, 4 to 7, 8 to 15, more
# What a run gains that a search in time finds, and how many runs' worth that is; the same of what
# is heard by n-grams, less what it costs, the surest ones first. In one of so many pauses less sure
# ones are listened for, to learn of them.
_LIKELY_GAINED, _RUNS = 4.0, 4.0
_LIKELY_WORTH, _HEARD = (1.0, 0.4), 16.0
_CURIOUS = 8
_NEVER = 1 << 30  # tokens


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
        hears: bool = True,
    ) -> None:
        """`of_showing` is what so many tokens, when they are shown, add to a forward, as a share of
        one; `hears`: whether most runs can be heard (`Searches.listen`), as those of the text can,
        of earlier answers and datastores not: these are rare, but may be whole answers."""
        self._cost = cost
        self._of_showing = of_showing
        self._saved = Ratio(_LIKELY_SAVED, _SAVED_TOKENS)
        self._worth = {n: Ratio(w, _HEARD) for n, w in zip(NGRAMS, _LIKELY_WORTH, strict=True)}
        self._listened = 0  # times
        likely = _LIKELY_UNHEARD if hears else _LIKELY
        self._gained = Ratio(_LIKELY_GAINED, _RUNS)
        self._hears = hears
        self._chances = [Ratio(likely, _CASES, _MEMORY) for _ in range(_CLASSES)]

    def tokens(self, fruitless: int) -> int:
        """How many tokens to settle before the next search, where so many were settled since one
        found something: 1 or more."""
        chance = max(_LEAST, self._chances[_class(fruitless)].value)
        saved = max(_LEAST_SAVED, self._saved.value)
        cost = self._cost()
        is_worth_it = chance * self._gained.value >= math.sqrt(2.0 * cost * chance * saved)
        if self._hears and not is_worth_it:
            return _NEVER
        return max(1, int(math.sqrt(2.0 * cost / (chance * saved))))

    def least(self) -> int:
        """How many tokens must stand in the text before for a search to be worth it (0: whatever
        stands there, it is not): those to listen for in a pause."""
        self._listened += 1
        sure = 0
        while sure < len(NGRAMS) and self._worth[NGRAMS[sure]].value > 0.0:
            sure += 1
        sure += self._listened % _CURIOUS == 0
        return NGRAMS[min(sure, len(NGRAMS)) - 1] if sure else 0

    def learn(self, fruitless: int, passed: int, gained: float | None) -> None:
        """Where so many tokens were settled since something was found, a search was followed by
        `passed` more; the next one, which was made in time, has saved so many forwards by the runs
        that it began (None: it found none of use)."""
        self._chances[_class(fruitless)].learn(float(gained is not None), passed)
        if gained is not None:
            self._gained.learn(gained, 1.0)

    def learn_run(self, shown: int, settled: int) -> float:
        """A run of which so many tokens were shown settled so many, the target's own choice with
        them; how many forwards it saved, the search that follows it taken off."""
        saved = settled - 1.0 - self._of_showing(shown)
        self._saved.learn(saved, settled)
        return saved - self._cost()

    def learn_heard(self, heard: int, gained: float) -> None:
        """A search that was made because n-grams of so many tokens were heard has saved so many
        forwards by the runs that it began (0.0: it found none). Longer n-grams would have been
        heard soon after the shorter ones: what these are worth is to come sooner."""
        if heard not in self._worth:
            return
        worth, place = gained - self._cost(), NGRAMS.index(heard)
        if place and gained > 0.0:
            sooner = NGRAMS[place - 1] - heard
            worth = min(gained, sooner * self._saved.value)
        self._worth[heard].learn(worth, 1.0)


def _class(fruitless: int) -> int:
    return min(fruitless.bit_length(), _CLASSES - 1)


class Searches:
    """Those of one answer."""

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._fruitless = 0  # tokens since something was found, or since the answer began
        self._passed = 0  # of them, since the last search
        self._heard = 0  # tokens of the n-gram by which the next one is made
        # The search after a pause that began the latest runs: what is kept of the pause until they
        # are over; and what these have saved, and whether one was of use.
        self._begun: tuple[int, int, int] | None = None
        self._gained, self._is_found = 0.0, False

    def pause(self) -> int:
        """For how many tokens nothing need be looked for, where a search has found nothing."""
        return self._pauses.tokens(self._fruitless)

    def listen(self, helper: Helper, tokens: Tokens, request: Request) -> Recurrence | None:
        """In a pause after such a text, for what ends it early."""
        least = self._pauses.least()
        return helper.listen(tokens, least, request) if least else None

    def learn(self, shown: int, settled: int, heard: int = 0) -> None:
        """A search has found a run of which so many tokens were `shown` (0: none), and forwards
        have settled so many before the next one, which follows at once if one was `heard`."""
        if self._passed:
            self._begun = self._fruitless - self._passed, self._passed, self._heard
        if shown:
            self._gained += self._pauses.learn_run(shown, settled)
            self._is_found |= settled > 1
        else:
            self.are_over()
        self._heard = heard
        self._passed = 0 if shown else settled
        self._fruitless = 0 if shown else self._fruitless + settled

    def are_over(self) -> None:
        """Nothing more is found, or the answer has ended: what the last pause was good for is
        known."""
        if self._begun is not None:
            fruitless, passed, heard = self._begun
            of_use = self._gained if self._is_found and not heard else None
            self._pauses.learn(fruitless, passed, of_use)
            if heard:
                self._pauses.learn_heard(heard, self._gained)
        self._begun, self._gained, self._is_found = None, 0.0, False
