"""How fast a draft and its target go, how much of a draft is kept, and for how much of it a target
should wait. Knows no clock.

A step with nothing to judge settles one token, so after a mismatch it pays to wait for a short
draft first; waiting for a long one does not. With one token a draft forward and any agreement from
0.6 to 0.95, waiting for c / 4 tokens (c = t_T / t_D) is within 2 % of the best number, and up to
7 % faster at c = 10 (20 % at c = 16) than not to wait (docs/log.md). That holds while the draft is
as fast as it is on average. So what waits cost and what they gain is measured, too: while a second
of waiting settles fewer tokens than a second of decoding, few steps wait. Of a draft of which
hardly anything is kept, what it takes from a processor that both share is lost besides: it drafts
in few steps only, in which it may show that it has become better.
"""

from doublespec.ratio import Ratio, running_mean

_SHARE = 0.25  # of c
_KEPT = 0.2  # of the drafted tokens, below which a wait is lost, and drafting, too
_PROBE_STEPS = 8  # in one of which is done what has not paid so far


class Pace:
    """Running means of the seconds of draft forwards (0: none so far) and of steps, and what
    follows from them."""

    def __init__(self) -> None:
        self.draft_seconds = 0.0
        self._step_seconds = 0.0
        self._kept = Ratio(0.8, 4.0)
        self._settled = Ratio(2.0, 4.0)  # tokens a step
        self._waits = Ratio(8.0, 0.25)  # tokens gained in the time of a step
        self._wait: tuple[float, int, int] | None = None  # the latest one, not judged yet
        self._steps = self._lacking = 0

    def drafted(self, seconds: float) -> None:
        """A draft forward took that long."""
        self.draft_seconds = running_mean(self.draft_seconds, seconds)

    def stepped(self, seconds: float) -> None:
        """The target was away for that long."""
        self._step_seconds = running_mean(self._step_seconds, seconds)

    def waited(self, seconds: float, before: int, after: int) -> None:
        """A step has waited; so many tokens were drafted before and after."""
        self._wait = seconds, before, after

    def begins(self) -> None:
        """There is another text, which does not judge what was waited for in the last one."""
        self._wait = None

    def judged(self, kept: int, judged: int, settled: int) -> None:
        """The target kept so many of the drafted tokens that it came to judge, and settled so many
        tokens in this step."""
        self._kept.learn(kept, judged)
        self._settled.learn(settled, 1)
        if self._wait is not None and self._step_seconds:
            seconds, before, after = self._wait
            self._waits.learn(min(kept, after) - min(kept, before), seconds / self._step_seconds)
        self._wait = None

    def is_worth_drafting(self) -> bool:
        """Whether the draft should work in the next step."""
        self._steps += 1
        return self._kept.value >= _KEPT or self._steps % _PROBE_STEPS == 0

    @property
    def worth_waiting_for(self) -> int:
        """How many drafted tokens a step should have to judge."""
        return self.wanted if self._waits.value >= self._settled.value else 0

    def may_wait(self, shown: int) -> bool:
        """Whether a step that has `shown` of them should wait for more, which may be for the sake
        of finding out."""
        if shown >= self.wanted:
            return False
        self._lacking += 1
        return self.worth_waiting_for > 0 or self._lacking % _PROBE_STEPS == 0

    @property
    def wanted(self) -> int:
        """How many a step is to wait for, if it waits."""
        if not self.draft_seconds or self._kept.value < _KEPT:
            return 0
        return round(_SHARE * self._step_seconds / self.draft_seconds)

    @property
    def longest_wait(self) -> float:
        """Seconds after which the draft is late."""
        return _SHARE * self._step_seconds
