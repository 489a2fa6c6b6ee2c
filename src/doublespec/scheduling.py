"""Which method to decode with next: whichever is the fastest here, found by trying.

All methods give the same tokens, so one may change between them at any step. The one that has been
fastest is used; the others are tried now and then, for as long as what the trials cost stays below
a small share of the time. Knows methods as names, and no clock.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TURN_STEPS = 16  # of the fastest, before it is asked again
TRIAL_STEPS = 6  # of another one
SETTLING_STEPS = 2  # after a change: not measured, since the draft has to take in the text
_BUDGET = 0.01  # share of the time that trials may cost
_FIRST_TRIALS = 4.0  # forwards of plain decoding that they may cost besides, at the start
_MEMORY_STEPS = 128.0  # after which what was measured counts half


@dataclass(frozen=True, slots=True)
class Turn:
    """A method, for how many steps, and how many of these, the first ones, are not measured."""

    name: str
    steps: int
    settling: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a method: tokens per second as measured (None: never tried; of plain
    decoding, as expected from a single forward), from how many steps, and its share of all."""

    name: str
    tokens_per_second: float | None
    steps: int
    share: float


@dataclass(slots=True)
class _Record:
    """Tokens and seconds of a method, the later ones counting more."""

    tokens: float = 0.0
    seconds: float = 0.0
    weight: float = 0.0
    steps: int = 0
    tried_at: int = -1  # step of the scheduler at its last turn

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def add(self, tokens: int, seconds: float) -> None:
        if self.weight >= _MEMORY_STEPS:
            self.tokens, self.seconds, self.weight = (
                self.tokens / 2,
                self.seconds / 2,
                self.weight / 2,
            )
        self.tokens += tokens
        self.seconds += seconds
        self.weight += 1.0


class Scheduler:
    """Chooses among methods by what they have settled per second.

    `names` are in the order in which they are tried, the likely best first; `expected` are rates
    known beforehand (of plain decoding: from the time of a forward).
    """

    def __init__(self, names: Sequence[str], expected: Mapping[str, float]) -> None:
        assert names
        self._records = {name: _Record() for name in names}
        for name, rate in expected.items():
            self._records[name] = _Record(1.0, 1.0 / rate, 1.0)
        self._first_trials = _FIRST_TRIALS / max(expected.values(), default=math.inf)
        self._steps = 0
        self._seconds = 0.0  # in all
        self._lost = 0.0  # of them, by trials
        self._latest = ""  # method of the last turn
        self._on_trial = False

    def choose(self, can_run: Callable[[str], bool] = lambda name: True) -> Turn:
        """The next turn, with a method that can run now (plain decoding always can)."""
        names = [name for name in self._records if can_run(name)]
        best = self._best(names)
        other = None if self._on_trial else self._worth_a_trial(names, best)
        name = other or best
        settling = SETTLING_STEPS if name != self._latest and self._latest else 0
        self._latest, self._on_trial = name, other is not None
        return Turn(name, TRIAL_STEPS if other else TURN_STEPS, settling)

    def learn(self, turn: Turn, place: int, tokens: int, seconds: float) -> None:
        """Step number `place` of a turn has settled so many tokens in so many seconds."""
        record = self._records[turn.name]
        self._steps += 1
        self._seconds += seconds
        if self._on_trial or place < turn.settling:
            rate = self._records[self._best(list(self._records))].rate
            self._lost += max(0.0, seconds - tokens / rate) if rate else 0.0
        record.tried_at = self._steps
        record.steps += 1
        if place >= turn.settling:
            record.add(tokens, seconds)

    def explain(self) -> list[Measured]:
        """What has been measured, the fastest first."""
        found = [
            Measured(name, record.rate or None, record.steps, record.steps / max(self._steps, 1))
            for name, record in self._records.items()
        ]
        return sorted(found, key=lambda measured: -(measured.tokens_per_second or 0.0))

    def _best(self, names: Sequence[str]) -> str:
        """The fastest so far; before anything was measured, the likely best."""
        if not self._records[names[0]].seconds:
            return names[0]
        return max(names, key=lambda name: self._records[name].rate)

    def _worth_a_trial(self, names: Sequence[str], best: str) -> str | None:
        """Another method, if trials have not cost too much: one that is promising, or was not
        tried for long."""
        others = [name for name in names if name != best]
        too_dear = self._lost > _BUDGET * self._seconds + self._first_trials
        if not others or too_dear or not self._records[best].steps:
            return None
        return max(others, key=self._promise)

    def _promise(self, name: str) -> float:
        record = self._records[name]
        if not record.seconds:
            return math.inf
        return record.rate * math.sqrt(self._steps - record.tried_at)
