"""What has been measured of a method."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

_NEAR_STEPS = 32  # the latest of a method; of the leading one, a trial is compared with them
_FEW_STEPS = 48  # of a method, which is new so far
_BESIDE_STEPS = 16  # of plain decoding, by which it is known what they take beside their forwards
_LONG_STEPS = 32  # of the leading method, compared with what one in hindsight would have settled
_SURELY_SLOWER = 3.0  # standard errors by which its latest steps must lose: nine alike


class Led(NamedTuple):
    """What a method has settled since it leads, or did: tokens, what plain decoding would have
    settled meanwhile by what was believed of it then, in so many seconds and steps."""

    tokens: int = 0
    plain: float = 0.0
    seconds: float = 0.0
    steps: int = 0


@dataclass(slots=True)
class Record:
    """Tokens and seconds of a method, the later ones counting more. Of its trials: how many seconds
    were `gained` over the leading method, for the same text or by what that settled just before,
    the sum of their squares, and the seconds that they took. `part` is of a trial that is not long
    enough yet."""

    tokens: float = 0.0
    seconds: float = 0.0
    between: float = 0.0  # of them, in steps that showed no retrieved run alone
    gained: float = 0.0
    squares: float = 0.0
    base: float = 0.0
    part: tuple[float, float, int] = (0.0, 0.0, 0)  # amount, base and steps
    steps: int = 0
    tried_at: int = -1  # step of the scheduler at its last turn
    near: deque[tuple[float, float]] = field(default_factory=deque)
    near_tokens: float = 0.0
    near_seconds: float = 0.0
    changing: float = 0.0  # seconds that were lost by turning to it, all `changes` together
    changes: float = 0.0
    led: Led = field(default_factory=Led)
    # How many times as long as their forwards alone its latest steps took.
    beside: deque[float] = field(default_factory=lambda: deque(maxlen=_BESIDE_STEPS))

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def near_rate(self) -> float:
        """Tokens per second lately (0.0: it has not run)."""
        return self.near_tokens / self.near_seconds if self.near else 0.0

    def add_near(self, tokens: int, seconds: float, steps: int) -> None:
        """So many steps settled so many tokens in all, each the same."""
        self.near.extend([(tokens / steps, seconds / steps)] * steps)
        self.near_tokens += tokens
        self.near_seconds += seconds
        while len(self.near) > _NEAR_STEPS:
            settled, took = self.near.popleft()
            self.near_tokens -= settled
            self.near_seconds -= took

    def forget_near(self) -> None:
        self.near.clear()
        self.near_tokens, self.near_seconds = 0.0, 0.0

    def count_latest(self) -> None:
        """From now on its rate is that of its latest steps, if they were slower than all."""
        if self.near and self.near_rate < self.rate:
            self.between *= self.near_seconds / self.seconds
            self.tokens, self.seconds = self.near_tokens, self.near_seconds

    def lags_behind(self, rate: float) -> bool:
        """Whether its latest steps were surely slower, each for what it settled. (To leave one by
        mistake costs more than a few steps: trials, which may cost little, bring it back late.)"""
        gained = [tokens - rate * seconds for tokens, seconds in self.near]
        return -sum(gained) >= _SURELY_SLOWER * math.sqrt(sum(gain**2 for gain in gained)) > 0.0

    @property
    def is_new(self) -> bool:
        return self.steps < _FEW_STEPS

    def gains(self, errors: float) -> bool:
        """Whether its trials agree, by so many standard errors, that it is faster than the leading
        method."""
        return self.gained > errors * math.sqrt(self.squares)

    def add_trial(self, amount: float, base: float) -> None:
        """Seconds that the leading method takes for what was settled, and that it takes itself."""
        self.gained += amount - base
        self.squares += (amount - base) ** 2
        self.base += base

    def add_part(self, amount: float, base: float, steps: int) -> None:
        """Adds a part of a trial, which counts when it is long enough."""
        before = self.part
        self.part = before[0] + amount, before[1] + base, before[2] + steps
        if self.part[2] >= _LONG_STEPS:
            self.add_trial(*self.part[:2])
            self.part = 0.0, 0.0, 0

    def forget_trials(self) -> None:
        self.gained = self.squares = self.base = 0.0
        self.part = 0.0, 0.0, 0

    def fade(self) -> None:
        """What was measured counts half from now on."""
        self.tokens, self.seconds = self.tokens / 2, self.seconds / 2
        self.between /= 2
        self.gained, self.squares = self.gained / 2, self.squares / 2
        self.base /= 2
        self.changing, self.changes = self.changing / 2, self.changes / 2
