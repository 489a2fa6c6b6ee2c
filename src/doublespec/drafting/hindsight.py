"""What a method that only retrieves would have settled on a text that others have settled.

All methods give the same tokens, so a run that is found for any place of the text can be judged by
the text itself, without a forward. That compares prompt lookup with the method at work on the very
same text, where a few trials mostly compare texts.
"""

from collections import deque
from collections.abc import Callable

from doublespec.drafting.lookup import Helper
from doublespec.drafting.pauses import Pauses, Searches
from doublespec.sampling import Request
from doublespec.tokens import Tokens, common_prefix

_REMEMBERED = 64  # steps of the method, by which its time is known
_ENOUGH = 6
_PRIOR_STEPS = 8.0  # that take as long as expected, which count besides
_SHARE = 0.005  # of the time of all steps, which judging may cost


class Hindsight:
    """Judges the runs of the drafter of a `method`, of at most `most` tokens, by settled text.

    `expected` gives the seconds of so many forwards in a row of which the first shows so many
    tokens, as far as they depend on that; where a search finds nothing, as many follow as `pauses`
    say, of at most `at_once`. How long the method's own steps take in the midst of an answer is
    measured: delays of a busy machine included, as they are in the time of the method that it is
    compared with.
    """

    def __init__(
        self,
        method: str,
        drafter: Helper,
        most: int,
        expected: Callable[[int, int], float],
        pauses: Pauses,
        at_once: int,
        is_known: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_known`: whether the expected times were seen in the midst of answers, so that not
        even a few steps of the method itself are needed."""
        self._method = method
        self._drafter = drafter
        self._most = most
        self._expected = expected
        self._pauses = pauses
        self._at_once = at_once
        self._is_known = is_known
        self._measured: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)  # and expected
        self._worked = self._spent = 0.0

    def learn(self, method: str, shown: int, seconds: float, forwards: int = 1) -> None:
        """So many forwards in a row of some method, of which the first showed so many tokens, took
        that long in all."""
        self._worked += seconds
        if method == self._method:
            self._measured.append((seconds, self._expected(shown, forwards)))

    def count(self, seconds: float) -> None:
        """Steps from which there is nothing to learn took that long."""
        self._worked += seconds

    def spend(self, seconds: float) -> None:
        """To judge took that long, from the time of the answer."""
        self._spent += seconds

    @property
    def is_ready(self) -> bool:
        """Whether enough steps were measured to say how long they take, and judging has not cost
        more than its share of the time."""
        is_measured = len(self._measured) >= _ENOUGH or self._is_known()
        return is_measured and self._spent <= _SHARE * self._worked

    def seconds(self, tokens: Tokens, start: int, stop: int, request: Request) -> float:
        """In what time the method would have settled `tokens` from position `start` to `stop`. Of a
        step that goes on beyond `stop` the same share counts as of its tokens."""
        place, seconds, searches = start, 0.0, Searches(self._pauses)
        while place < stop:
            heard = 0
            run = self._drafter.propose(tokens[:place], self._most, request)
            if run:
                kept = common_prefix(run, tokens[place : place + len(run)])
                forwards, settled = 1, min(kept + 1, len(tokens) - place)
            else:
                pause = min(searches.pause(), self._at_once)
                heard, settled = self._heard(searches, tokens, place, pause, request)
                forwards = settled
            searches.learn(len(run), settled, heard)
            inside = min(settled, stop - place)
            seconds += self._expected(len(run), forwards) * inside / settled
            place += inside
        searches.are_over()
        return seconds * self._slowness

    def _heard(
        self, searches: Searches, tokens: Tokens, place: int, pause: int, request: Request
    ) -> tuple[int, int]:
        """What would have been heard in a pause of so many tokens, and after how many."""
        text = tokens[:place]
        recurrence = searches.listen(self._drafter, text, request) if pause > 1 else None
        if recurrence is not None:
            for count, token in enumerate(tokens[place : place + pause], start=1):
                if recurrence.hear(token):
                    return recurrence.heard, count
        return 0, pause

    @property
    def _slowness(self) -> float:
        """How many times as long as expected its steps take."""
        measured = sum(seconds for seconds, _ in self._measured)
        expected = sum(seconds for _, seconds in self._measured)
        if self._is_known():
            presumed = _PRIOR_STEPS * self._expected(0, 1)
            measured, expected = measured + presumed, expected + presumed
        return measured / expected
