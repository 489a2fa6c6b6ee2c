"""How fast a draft and its target go, how much of a draft is kept, and for how much of it a target
should wait. Knows no clock.

A step with nothing to judge settles one token, so after a mismatch it pays to wait for a short
draft first; waiting for a long one does not. With one token a draft forward and any agreement from
0.6 to 0.95, waiting for c / 4 tokens (c = t_T / t_D) is within 2 % of the best number, and up to
7 % faster at c = 10 (20 % at c = 16) than not to wait (docs/log.md). For a draft of which hardly
anything is kept, every wait is lost, and so is what it takes from a processor that both share: it
drafts in few steps only, in which it may show that it has become better.
"""

_WEIGHT = 0.1  # of the latest value in a running mean
_SHARE = 0.25  # of c
_KEPT = 0.2  # of the drafted tokens, below which a wait is lost
_PROBE_STEPS = 8  # of which such a draft drafts in one
_MEMORY = 0.98  # of what was learnt before a step


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
        self._kept = Share(0.8, 4.0)
        self._steps = 0

    def drafted(self, seconds: float) -> None:
        """A draft forward took that long."""
        self.draft_seconds = _mean(self.draft_seconds, seconds)

    def stepped(self, seconds: float) -> None:
        """The target was away for that long."""
        self._step_seconds = _mean(self._step_seconds, seconds)

    def judged(self, kept: int, judged: int) -> None:
        """The target kept so many of the drafted tokens that it came to judge."""
        self._kept.learn(kept, judged)

    def is_worth_drafting(self) -> bool:
        """Whether the draft should work in the next step."""
        self._steps += 1
        return self._kept.value >= _KEPT or self._steps % _PROBE_STEPS == 0

    @property
    def worth_waiting_for(self) -> int:
        """How many drafted tokens a step should have to judge."""
        if not self.draft_seconds or self._kept.value < _KEPT:
            return 0
        return round(_SHARE * self._step_seconds / self.draft_seconds)

    @property
    def longest_wait(self) -> float:
        """Seconds after which the draft is late."""
        return _SHARE * self._step_seconds


def _mean(mean: float, value: float) -> float:
    """The running mean; a single outlier (a prompt's own forward) moves it little."""
    if not mean:
        return value
    return mean + _WEIGHT * (min(value, 4 * mean) - mean)
