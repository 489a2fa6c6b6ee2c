"""How fast a draft and its target go, how much of a draft is kept, and for how much of it a target
should wait. Knows no clock.

A step with nothing to judge settles one token, so after a mismatch it may pay to wait for a short
draft first. For how much of it follows from two kinds of steps: empty ones, which wait for w tokens
and judge these, and full ones, which judge all that was drafted during the step before. A drafted
token is kept with probability a, a correction foreseen with probability f. When m tokens were
judged, the next step is full with probability p(m) = a^(m+1) + f (1 - a^(m+1)): all were kept and
the target's own token is the draft's next one, too; or the correction was foreseen. The best w has
the most tokens per second. (With a = 0.82 and c = t_T / t_D = 10 it is 2 or 3; for a draft that is
always wrong it is 0.)
"""

import math

_WEIGHT = 0.1  # of the latest value in a running mean
_MEMORY = 0.98  # of what was learnt before a step
_MOST = 16  # tokens that are waited for
_LATE = 1.5  # times as long as expected
_GOOD = 0.99  # of the best rate
_STEPS = 8  # for which a decision holds


class Share:
    """How often something happens, of late; `prior` out of 1 before anything was seen."""

    def __init__(self, prior: float, weight: float) -> None:
        self._hits, self._cases = prior * weight, weight

    def learn(self, hits: int, cases: int) -> None:
        self._hits = _MEMORY * self._hits + hits
        self._cases = _MEMORY * self._cases + cases

    @property
    def value(self) -> float:
        return self._hits / self._cases


class Pace:
    """Running means of the seconds of draft forwards (0: none so far) and of steps, and what
    follows from them."""

    def __init__(self) -> None:
        self.draft_seconds = 0.0
        self._step_seconds = 0.0
        self._delay_seconds = 0.0  # from telling the draft to its next forward
        self._kept = Share(0.8, 4.0)
        self._foreseen = Share(0.3, 4.0)
        self._wait = 0
        self._age = _STEPS  # steps since that was decided

    def drafted(self, seconds: float) -> None:
        """A draft forward took that long."""
        self.draft_seconds = _mean(self.draft_seconds, seconds)

    def answered(self, seconds: float) -> None:
        """The draft began to work for a step that long after it was told."""
        self._delay_seconds = _mean(self._delay_seconds, max(seconds, 1e-9))

    def stepped(self, seconds: float) -> None:
        """The target was away for that long."""
        self._step_seconds = _mean(self._step_seconds, seconds)
        self._age += 1

    def judged(self, kept: int, judged: int) -> None:
        """The target kept so many of the drafted tokens that it came to judge."""
        self._kept.learn(kept, judged)

    def departed(self, foreseen: bool) -> None:
        """The target departed from the draft."""
        self._foreseen.learn(foreseen, 1)

    @property
    def worth_waiting_for(self) -> int:
        """How many drafted tokens a step should have to judge."""
        if self.draft_seconds and self._step_seconds and self._age >= _STEPS:
            self._age = 0
            self._wait = self._shortest_good_wait()
        return self._wait

    @property
    def longest_wait(self) -> float:
        """Seconds after which the draft is late."""
        return _LATE * self._wait_seconds(self._wait)

    def _shortest_good_wait(self) -> int:
        """The rate has a flat top, and a short wait leaves more to retrieved text."""
        rates = [self._rate(wait) for wait in range(self._most + 1)]
        return next(wait for wait, rate in enumerate(rates) if rate >= _GOOD * max(rates))

    @property
    def _most(self) -> int:
        return min(_MOST, round(self._drafted_meanwhile / 2))

    @property
    def _drafted_meanwhile(self) -> float:
        """Tokens that the draft makes during a step: c, if nothing is retrieved for it."""
        return self._step_seconds / self.draft_seconds

    def _rate(self, wait: int) -> float:
        """Tokens per second if empty steps wait for so many."""
        meanwhile = self._drafted_meanwhile
        to_empty, to_full = 1.0 - self._goes_on(meanwhile), self._goes_on(wait)
        empty = to_empty / max(to_empty + to_full, 1e-9)
        tokens = 1.0 + empty * self._accepted(wait) + (1.0 - empty) * self._accepted(meanwhile)
        return tokens / (self._step_seconds + empty * self._wait_seconds(wait))

    def _goes_on(self, judged: float) -> float:
        """p: the chance that the step after one that judges so many tokens is a full one."""
        right = math.pow(self._kept.value, judged + 1)
        return right + self._foreseen.value * (1.0 - right)

    def _accepted(self, judged: float) -> float:
        """How many of so many tokens are kept: a + a^2 + ..."""
        kept = min(self._kept.value, 0.999)
        return kept * (1.0 - math.pow(kept, judged)) / (1.0 - kept)

    def _wait_seconds(self, wait: int) -> float:
        """Until so many tokens are there. A message finds the draft in the middle of a forward; for
        what it takes longer than that, it is on its way, and so is the answer."""
        if not wait:
            return 0.0
        way_back = max(0.0, self._delay_seconds - self.draft_seconds / 2)
        return self._delay_seconds + wait * self.draft_seconds + way_back


def _mean(mean: float, value: float) -> float:
    """The running mean; a single outlier (a prompt's own forward) moves it little."""
    if not mean:
        return value
    return mean + _WEIGHT * (min(value, 4 * mean) - mean)
