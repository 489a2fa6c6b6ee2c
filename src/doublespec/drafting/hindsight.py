"""What a method that only retrieves would have settled on a text that others have settled.

All methods give the same tokens, so a run that is found for any place of the text can be judged by
the text itself, without a forward. That compares prompt lookup with the method at work on the very
same text, where a few trials mostly compare texts.
"""

from collections import deque
from collections.abc import Callable, Sequence

from doublespec.drafting.lookup import Helper
from doublespec.drafting.pauses import Pauses, Searches
from doublespec.retrieval.recurrence import MOST_AHEAD, Foresight
from doublespec.sampling import Request
from doublespec.tokens import Tokens, common_prefix

_REMEMBERED = 64  # steps of the method, by which its time is known
_ENOUGH = 6
_PRIOR_STEPS = 8.0  # that take as long as expected, which count besides
_SHARE = 0.003  # of the time of all steps, which judging may cost


class Hindsight:
    """Judges the runs of the drafter of a `method`, of at most `most` tokens, by settled text.

    `expected` gives the seconds of forwards in one call that show so many tokens each, possibly
    behind a search, as far as they depend on that; there are at most `at_once`, which settle no
    more tokens than there are until `pauses` say that the next search is due. How long the method's
    own steps take in the midst of an answer is measured: delays of a busy machine included, as they
    are in the time of the method that it is compared with.
    """

    def __init__(
        self,
        method: str,
        drafter: Helper,
        most: int,
        expected: Callable[[Sequence[int], bool], float],
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

    def learn(
        self, method: str, shown: Sequence[int], seconds: float, *, searched: bool = False
    ) -> None:
        """Forwards of some method in one call, which showed so many tokens each, possibly behind a
        search, took that long in all."""
        self._worked += seconds
        if method == self._method:
            self._measured.append((seconds, self._expected(shown, searched)))

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
            text, count, is_due = tokens[:place], self._at_once, searches.left <= 0
            most = count + MOST_AHEAD
            room = most if is_due else min(most, searches.left)
            ahead = self._drafter.guess_ahead(text, room, request) if count > 1 else None
            guess, shown, settled = list[int](), list[int](), 0
            if ahead is not None:
                guess = ahead.guess()
            searched = not guess and (ahead is None or is_due)
            if searched:
                run = self._drafter.propose(text, self._most, request)
                searches.learn(len(run))
                if run:
                    kept = common_prefix(run, tokens[place : place + len(run)])
                    shown, settled = [len(run)], min(kept + 1, len(tokens) - place)
                else:
                    room = min(most, searches.left)
                    if ahead is not None:
                        ahead.shorten(room)
            if not settled:
                room = room if ahead is not None else min(room, count)
                new = tokens[place : place + room]
                shown, settled = _shown(ahead, guess, new, count, room)
            searches.go_on(settled)
            inside = min(settled, stop - place)
            seconds += self._expected(shown, searched) * inside / settled
            place += inside
        searches.are_over()
        return seconds * self._slowness

    @property
    def _slowness(self) -> float:
        """How many times as long as expected its steps take."""
        measured = sum(seconds for seconds, _ in self._measured)
        expected = sum(seconds for _, seconds in self._measured)
        if self._is_known():
            presumed = _PRIOR_STEPS * self._expected([0], True)
            measured, expected = measured + presumed, expected + presumed
        return measured / expected


def _shown(
    ahead: Foresight | None, guess: list[int], new: Tokens, forwards: int, most: int
) -> tuple[list[int], int]:
    """How many tokens each of so many forwards shows, or of fewer that settle `most`, and how many
    all settle, where the text is known as far as `new`; one each behind it. The first one shows a
    guess."""
    shown, place = list[int](), 0
    while place < len(new) and len(shown) < forwards:
        shown.append(len(guess))
        settled = new[place : place + common_prefix(guess, new[place:]) + 1]
        place += len(settled)
        for left, token in zip(reversed(range(len(settled))), settled, strict=True):
            guess = [] if ahead is None else ahead.hear(token, more=left > 0)
    if ahead is not None:
        ahead.over(new[:place])
    more = min(forwards - len(shown), most - place) if place == len(new) else 0
    return shown + [0] * more, place + more
