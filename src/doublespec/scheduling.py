"""Which method to decode with next: whichever is the fastest here, found by trying.

All methods give the same tokens, so one may change between them at any step. One of them leads: at
first the likely best. The others are tried now and then, for as long as what the trials cost stays
below a small share of the time. How much a few steps settle depends on the text far more than on
the method, so a trial is compared with what the leading method settled just before it, and another
one leads only when its trials agree. One method needs no trials: its steps can be judged by the
text that another one has settled (`drafting/hindsight.py`), which compares both on the same text.
Knows methods as names, and no clock.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

TURN_STEPS = 16  # of the leading method, before it is asked again
_LONG_LED = 256  # by plain decoding: then its turns are longer, so many times,
_LONG_TURN, _LONGEST_TURN = 2, 4  # or so many where retrieval finds next to nothing: less than
_NEXT_TO_NOTHING = 0.15  # tokens a step
TRIAL_STEPS = 6  # of another one, if it is compared with other text
SETTLING_STEPS = 2  # after a change: not measured, since the draft has to take in the text
_APART = 64  # steps between two trials of a method, unless it has gained
_BUDGET = 0.01  # share of the time that trials may cost
_GRANT = 32  # steps that they may cost besides while plain decoding leads, as it may do early
_UNTRIED = 1.7  # times as fast as by the forwards of others: so fast plain decoding may be
_UNKNOWN_LOSS = 0.25  # share of its time that the first trial of a method is likely to cost
_LONGEST_STEP = 16  # times as long as the mean of all, and no longer counts a step
_MEMORY_STEPS = 512  # after which what was measured counts half
_NEAR_STEPS = 32  # the latest of a method; of the leading one, a trial is compared with them
_FEW_STEPS = 48  # of a method, which is new so far
_BESIDE_STEPS = 16  # of plain decoding, by which it is known what they take beside their forwards
_SLOWNESS_STEPS = 128  # whose forwards say how long one takes
_LONGEST_FORWARD = 8  # times as long as their mean, and no longer counts one of them
_COMPARED, _COMPARED_STEPS = 32, 4  # forwards before a change to or from plain decoding, and after
_LEAST_STEPS = 64  # of the leading method, after which plain decoding need not be surely faster
_SPREAD = 0.6  # of what a step with a draft settles, as a share of the mean
_SURELY_STEPS = 128  # of the one in hindsight, which loses less on any text than texts differ
_ALIKE = 0.99  # of plain decoding: worth it, for a method that is fast as soon as text repeats
_DOUBTS = 4  # steps of a method that no trial compares, which say no more than not to know it
_LONG_STEPS = 32  # of the leading method, compared with what one in hindsight would have settled
_JUDGED_EVERY = 4  # turns, of which one is compared where the other method has lost so far
_CLEARLY = 1.25  # times as fast as plain decoding: not in doubt, though new
_SURE = 1.6  # standard errors by which a method must have gained: three trials alike are enough,
_LIKELY = 1.0  # are enough for the method in hindsight, instead of plain decoding
_SURELY_SLOWER = 3.0  # or by which its latest steps must lose to plain decoding: nine alike


@dataclass(slots=True)
class Turn:
    """A method, for how many steps, how many of these, the first ones, are not measured, and up to
    which one they tell something. Where it is in doubt, what is learnt of a step may end it early.

    It is on trial if the method that leads could run as well. `judged`: whether to `compare` it,
    when it is over, with the method that can be judged in hindsight. `plain_rate`: tokens per
    second of plain decoding, as far as is known. Then what its `measured` steps have settled, and
    what the leading method would have settled `instead`, going by what it did before.
    """

    name: str
    steps: int
    settling: int
    telling: int
    leader: str
    judged: bool
    in_doubt: bool
    plain_rate: float
    on_trial: bool = False
    made: int = 0  # steps so far
    tokens: int = 0
    seconds: float = 0.0
    measured: int = 0
    instead: float = 0.0


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
    """Tokens and seconds of a method, the later ones counting more. Of its trials: how much they
    `gained` over the leading method, the sum of their squares, and what it is to be compared with.
    That is tokens, and what the leading method would have settled in the same time; or, where both
    are known for the same text, seconds that were saved, and what it took. `part` is of a trial
    that is not long enough yet."""

    tokens: float = 0.0
    seconds: float = 0.0
    gained: float = 0.0
    squares: float = 0.0
    base: float = 0.0
    part: tuple[float, float, int] = (0.0, 0.0, 0)  # amount, base and steps
    steps: int = 0
    tried_at: int = -1  # step of the scheduler at its last turn
    near: deque[tuple[int, float]] = field(default_factory=deque)
    near_tokens: int = 0
    near_seconds: float = 0.0
    changing: float = 0.0  # seconds that were lost by turning to it, all `changes` together
    changes: float = 0.0
    # Since it leads, or did: tokens, what plain decoding would have settled meanwhile, and steps.
    led: tuple[int, float, int] = (0, 0.0, 0)
    # How many times as long its latest steps took as their forwards alone let expect.
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
        self.near.extend([(tokens // steps, seconds / steps)] * steps)
        self.near_tokens += tokens
        self.near_seconds += seconds
        while len(self.near) > _NEAR_STEPS:
            tokens, seconds = self.near.popleft()
            self.near_tokens -= tokens
            self.near_seconds -= seconds

    def forget_near(self) -> None:
        self.near.clear()
        self.near_tokens, self.near_seconds = 0, 0.0

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
        """Tokens that it settled and that the leading method would have settled, or seconds that
        the leading method took and that it took itself."""
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
        self.gained, self.squares = self.gained / 2, self.squares / 2
        self.base /= 2
        self.changing, self.changes = self.changing / 2, self.changes / 2


class _Slowness:
    """How many times as long forwards take here and now as was to be expected beforehand.

    What was expected need not be wrong alike for all methods: one may make several forwards at
    once, and another one's follow those of a draft. The machine is the same just before and just
    after a change of methods, so that each change tells; in the end all is told as it would be of
    the methods whose rate is known.
    """

    def __init__(self, known: Collection[str]) -> None:
        self._known = known
        self._latest: deque[tuple[str, float]] = deque([("", 1.0)])  # steps, as they were told,
        self._sums = {"": 1.0}  # and their sums by name
        self._sum = 1.0  # and in all
        self._told: dict[str, deque[float]] = {}  # since a method began last
        self._name = self._before = ""  # the one at work, and the one before it
        # Of what is told of a method, what it is for those known.
        self._share: dict[str, float] = {}

    def add(self, name: str, slowness: float, steps: int) -> None:
        """Forwards of so many steps in a row. None counts as longer than `_LONGEST_FORWARD` times
        what they take on average."""
        if name != self._name:
            self._before, self._name = self._name, name
            self._told[name] = deque(maxlen=_COMPARED)
            self._sums.setdefault(name, 0.0)
        told, latest = self._told[name], self._latest
        before = len(told)
        told.extend([slowness] * steps)
        if before < _COMPARED_STEPS <= len(told):
            self._compare(name, self._before)
        slowness = min(slowness, _LONGEST_FORWARD * self._sum / len(latest))
        latest.extend([(name, slowness)] * steps)
        self._sums[name] += steps * slowness
        self._sum += steps * slowness
        while len(latest) > _SLOWNESS_STEPS:
            left, slowness = latest.popleft()
            self._sums[left] -= slowness
            self._sum -= slowness

    @property
    def of_known(self) -> float:
        """Of the latest steps, as if the methods whose rate is known had made them."""
        total = sum(self._of(name) * told for name, told in self._sums.items())
        return total / len(self._latest)

    def _of(self, name: str) -> float:
        return 1.0 if name in self._known else self._share.get(name, 1.0)

    def _compare(self, name: str, before: str) -> None:
        """A method with the one before it. Of two whose rate is not known the last one may tell of
        the next."""
        if len(self._told.get(before, ())) < _COMPARED_STEPS:
            return
        told, other = median(self._told[name]), median(self._told[before])
        if not told or not other:  # no time passes, by this clock
            return
        share = other / told
        if name in self._known:
            name, share = before, 1.0 / share
        elif before not in self._known:
            if before in self._share:
                self._share.setdefault(name, share * self._share[before])
            return
        known = self._share.get(name)
        self._share[name] = share if known is None else math.sqrt(known * share)


class Scheduler:
    """Chooses among methods by what they have settled per second.

    `names` begin with the likely best, which leads at first; `expected` are rates known beforehand,
    which do not depend on the text (of plain decoding: from the time of a forward). What the method
    `in_hindsight` would have settled, `compare` is told.
    """

    def __init__(
        self, names: Sequence[str], expected: Mapping[str, float], in_hindsight: str = ""
    ) -> None:
        assert names
        self._records = {name: _Record() for name in names}
        self._expected = dict(expected)
        self._leader = names[0]
        self._in_hindsight = in_hindsight
        self._led = 0  # turns of the leading method, other than that one
        self._steps = 0
        self._seconds = 0.0  # in all
        self._lost = 0.0  # of them, by trials
        self._latest: Turn | None = None
        self._slowness = _Slowness(self._expected)
        self._known: dict[str, float] = {}  # what `_rate` has made of them

    def choose(self, can_run: Callable[[str], bool] = lambda name: True) -> Turn:
        """The next turn, with a method that can run now (plain decoding always can)."""
        self._latest = self._chosen(can_run)
        return self._latest

    def _chosen(self, can_run: Callable[[str], bool]) -> Turn:
        last = self._latest
        if last and self._goes_on(last) and can_run(last.name):
            left, telling = last.steps - last.made, max(0, last.telling - last.made)
            return self._turn(last.name, left, 0, telling, judged=last.judged)
        names = [name for name in self._records if can_run(name)]
        trial = last if last and last.on_trial else None
        if trial and trial.instead and not self._tells_in_hindsight(trial):
            self._records[trial.name].add_trial(trial.tokens, trial.instead)
        best = self._best(names)
        other = None if trial else self._worth_a_trial(names, best)
        name = other or best
        steps = self._trial_steps(other) if other else self._turn_steps
        settling = SETTLING_STEPS if last and self._has_to_settle(last.name, name) else 0
        judged = self._is_judged(name, is_trial=other is not None)
        turn = self._turn(name, steps, settling, settling + TURN_STEPS, judged=judged)
        turn.on_trial = other is not None
        return turn

    def _has_to_settle(self, last: str, name: str) -> bool:
        """Whether a method that follows another one is not measured at first: a draft takes in the
        text, or lets go of cores that plain decoding would use."""
        if name in (last, self._in_hindsight):
            return False
        return name not in self._expected or last not in (*self._expected, self._in_hindsight)

    def _goes_on(self, turn: Turn) -> bool:
        """Whether there is nothing to choose yet: of a turn of the leading method the answer has
        ended first. Answers may be short, and what is done before the first token delays it."""
        return turn.made < turn.steps and turn.name == self._leader and not turn.on_trial

    def _turn(self, name: str, steps: int, settling: int, telling: int, *, judged: bool) -> Turn:
        plain_rate = max((self._rate(known) for known in self._expected), default=0.0)
        record = self._records[name]
        in_doubt = record.is_new and record.near_rate < _CLEARLY * plain_rate
        in_doubt = in_doubt and name != self._in_hindsight
        return Turn(name, steps, settling, telling, self._leader, judged, in_doubt, plain_rate)

    def affords(self, name: str, seconds: float) -> bool:
        """Whether it may take so many seconds, once, to get ready what a method needs: as trials,
        no more than a small share of the time; if that method is to lead, at once."""
        return name == self._leader or seconds <= _BUDGET * self._seconds

    def learn(
        self,
        turn: Turn,
        place: int,
        tokens: int,
        seconds: float,
        slowness: float = 1.0,
        steps: int = 1,
    ) -> None:
        """Step number `place` of a turn has settled so many tokens in so many seconds; or so many
        `steps` from that one on together, each the same, as those that were computed at once.
        `slowness` is how many times as long a forward took as was to be expected beforehand."""
        self._known.clear()
        record, near = self._records[turn.name], self._records[self._leader].near_rate
        before = self._steps
        if before >= TURN_STEPS:  # a longer one was stopped, or its machine was
            seconds = min(seconds, steps * _LONGEST_STEP * self._seconds / before)
        self._steps += steps
        self._seconds += seconds
        turn.made = place + steps
        record.tried_at = self._steps
        record.steps += steps
        if near and (place < turn.settling or (turn.on_trial and not turn.judged)):
            lost = max(0.0, seconds - tokens / near)
            self._lost += lost
            if place < turn.settling:
                record.changing += lost
                record.changes += steps / turn.settling
        if place >= turn.settling:
            self._slowness.add(turn.name, slowness, steps)
            record.tokens += tokens
            record.seconds += seconds
            turn.measured += steps
            turn.tokens += tokens
            turn.seconds += seconds
            turn.instead += near * seconds
            record.add_near(tokens, seconds, steps)
            if turn.name in self._expected and tokens:
                took = seconds * self._expected[turn.name] / tokens / slowness
                record.beside.extend([took] * steps)
            if turn.name == self._leader:
                led, plain, led_steps = record.led
                record.led = led + tokens, plain + turn.plain_rate * seconds, led_steps + steps
            if turn.in_doubt and self._lags(turn.name):
                turn.steps = place + steps
        self._fade(before)

    def _fade(self, before: int) -> None:
        if self._steps // _MEMORY_STEPS > before // _MEMORY_STEPS:
            for each in self._records.values():
                each.fade()

    def count(self, turn: Turn, steps: int, seconds: float) -> None:
        """So many more steps of a turn, which do not tell any more, took that long."""
        before = self._steps
        self._steps += steps
        self._seconds += seconds
        turn.made += steps
        self._records[turn.name].steps += steps
        self._records[turn.name].tried_at = self._steps
        self._fade(before)

    def compare(self, turn: Turn, seconds: float) -> None:
        """The method that can be judged in hindsight would have settled in so many seconds what was
        measured of a turn."""
        if turn.leader != self._leader or not turn.measured:
            return
        if turn.on_trial:
            self._lost = max(0.0, self._lost + turn.seconds - seconds)
            self._records[turn.name].add_trial(seconds, turn.seconds)
        else:
            self._records[self._in_hindsight].add_part(turn.seconds, seconds, turn.measured)

    def explain(self) -> list[Measured]:
        """What has been measured, the fastest first."""
        found = [
            Measured(
                name, self._rate(name) or None, record.steps, record.steps / max(self._steps, 1)
            )
            for name, record in self._records.items()
        ]
        return sorted(found, key=lambda measured: -(measured.tokens_per_second or 0.0))

    @property
    def _turn_steps(self) -> int:
        """Where plain decoding has led for long, little is to be learnt of it, and choosing costs
        time."""
        return TURN_STEPS * self._times_as_rare

    @property
    def _times_as_rare(self) -> int:
        """As usual are turns and trials while plain decoding leads, or retrieval that finds next to
        nothing."""
        if self._records[self._leader].led[2] < _LONG_LED:
            return 1
        other = self._records.get(self._in_hindsight)
        found = other.near_tokens / len(other.near) - 1.0 if other and other.near else None
        finds = found is None or found > _NEXT_TO_NOTHING
        if self._leader not in self._expected:
            return 1 if finds or self._leader != self._in_hindsight else _LONGEST_TURN
        if other and other.near and other.gained > 0:  # what is learnt now may change the method
            return 1
        return _LONG_TURN if finds else _LONGEST_TURN

    def _trial_steps(self, name: str) -> int:
        """A trial that is judged by its own text says more the longer it is, as does one beside
        plain decoding, which is always as fast; but not of what is judged in hindsight anyway. Of
        plain decoding itself a few steps say too little: alone, they take longer than many in one
        call."""
        is_told = self._leader == self._in_hindsight or name in self._expected
        if self._leader in self._expected:
            is_told = name != self._in_hindsight
        return TURN_STEPS if is_told else TRIAL_STEPS

    def _is_judged(self, name: str, *, is_trial: bool) -> bool:
        """Whether to judge a turn in hindsight: a trial, if that tells how it compares with the
        leading method; the leading method's own turns, but only every few where these gain."""
        if is_trial or self._leader == self._in_hindsight:
            return is_trial and self._leader == self._in_hindsight
        if name != self._leader or self._in_hindsight not in self._records:
            return False
        self._led += 1
        return self._records[self._in_hindsight].gained >= 0 or self._led % _JUDGED_EVERY == 0

    def _tells_in_hindsight(self, trial: Turn) -> bool:
        """Whether `compare` says how it did. Beside plain decoding, which is always as fast, the
        trial itself says enough."""
        is_one = self._in_hindsight in (trial.name, trial.leader)
        return is_one and trial.leader not in self._expected

    def _best(self, names: Sequence[str]) -> str:
        """The leading method, which may be another one from now on; while it cannot run, the
        likely best of those that do not lag behind plain decoding."""
        if self._leader not in names:
            return next((name for name in names if not self._lags(name)), names[0])
        faster = [name for name in names if name != self._leader and self._is_faster(name)]
        if faster:
            self._leader = self._or_in_hindsight(max(faster, key=self._speed), names)
            self._records[self._leader].forget_near()
            self._records[self._leader].led = (0, 0.0, 0)
            for record in self._records.values():  # they were compared with the last one
                record.forget_trials()
        return self._leader

    def _or_in_hindsight(self, name: str, names: Sequence[str]) -> str:
        """Instead of plain decoding the method that can be judged in hindsight, unless it was
        slower: where retrieval does not pay, it leaves itself out."""
        other = self._in_hindsight
        if name not in self._expected or other not in names or other == self._leader:
            return name
        return name if self._was_slower(other, self._rate(name)) else other

    def _was_slower(self, name: str, rate: float) -> bool:
        record = self._records[name]
        if name != self._in_hindsight:
            error = _SPREAD / math.sqrt(max(1, min(record.steps, _MEMORY_STEPS)))
            return record.steps >= _LEAST_STEPS and (1.0 + error) * record.rate < rate
        tokens, plain, steps = record.led
        return steps >= _SURELY_STEPS and tokens < _ALIKE * plain

    def _is_faster(self, name: str) -> bool:
        record, leader = self._records[name], self._records[self._leader]
        if name in self._expected:
            rate = self._rate(name)
            if self._was_slower(self._leader, rate):
                return True
            return self._leader != self._in_hindsight and leader.lags_behind(rate)
        if self._leader not in self._expected:
            return record.gains(_SURE)
        known = max(self._rate(self._leader), leader.rate)
        was_faster = record.steps >= _LEAST_STEPS and record.rate > known
        if name != self._in_hindsight:
            return was_faster or record.gains(_SURE)
        was_slower = self._was_slower(name, self._rate(self._leader))
        return was_faster or record.gains(_LIKELY) or not was_slower

    def _lags(self, name: str) -> bool:
        """Whether a method is surely slower than one whose rate is known."""
        record = self._records[name]
        known = [self._rate(other) for other in self._expected if other != name]
        return any(record.lags_behind(rate) for rate in known)

    def _rate(self, name: str) -> float:
        """Tokens per second of a method (0.0: nothing is known). Of one that does not depend on the
        text, here and now, whenever it ran last: that a text is longer, or the machine slower,
        shows in the forwards of all methods, and what its steps take beside these was measured."""
        record = self._records[name]
        if name not in self._expected:
            return record.rate
        if name not in self._known:
            beside = median(record.beside or (1.0,))
            self._known[name] = self._expected[name] / (self._slowness.of_known * beside)
        return self._known[name]

    def _speed(self, name: str) -> float:
        """How many times as fast as the leading method one is, as far as is known."""
        record = self._records[name]
        leading = self._records[self._leader].rate
        if name in self._expected:
            return self._rate(name) / leading if leading else 1.0
        if record.base:
            return 1.0 + record.gained / record.base
        if not record.rate or not leading:
            return 1.0
        weight = record.steps / (record.steps + _DOUBTS)
        return 1.0 - weight * max(0.0, 1.0 - record.rate / leading)

    def _worth_a_trial(self, names: Sequence[str], best: str) -> str | None:
        """Another method, if trials have not cost too much: one that is promising, or was not
        tried for long. First what is known to be about as fast as the leading method, then the one
        that a trial teaches to judge in hindsight."""
        if best != self._leader or not self._records[best].near:
            return None
        others = [name for name in names if name != best and not self._rests(name)]
        if self._lost <= self._allowance:
            likely = max(others, key=self._promises, default=None)
            if likely and self._lost + self._likely_loss(likely) <= self._allowance:
                return likely
        little = [name for name in others if self._costs_little(name)]
        if self._in_hindsight in little:
            return self._in_hindsight
        return max(little, key=self._promises, default=None)

    def _promises(self, name: str) -> tuple[float, bool, bool]:
        return self._promise(name), *self._costs_least(name)

    def _costs_little(self, name: str) -> bool:
        """Whether a trial beside plain decoding, which tells much since that is always as fast, or
        of plain decoding where it may be as fast as the leading method, costs no more than its
        share of the time since the last one, whatever others have cost. Those with a draft have one
        share together."""
        is_known = name in self._expected and self._is_near(name)
        if not is_known and self._leader not in self._expected:
            return False
        share = self._share
        if name not in self._expected and name != self._in_hindsight:
            share /= max(1, len(self._records) - 2)
        passed = (self._steps - self._records[name].tried_at) * self._seconds / self._steps
        return self._likely_loss(name) <= share * passed

    def _rests(self, name: str) -> bool:
        """Whether trials would say nothing new of a method: it was tried just now, and did not
        gain; or its rate is known, not for long, and far lower than the leading method's."""
        record, apart = self._records[name], max(_APART, 2 * self._turn_steps)
        if record.tried_at >= 0 and self._steps - record.tried_at < apart and record.gained <= 0:
            return True
        is_fresh = record.steps > 0 and self._steps - record.tried_at < _MEMORY_STEPS
        return name in self._expected and is_fresh and not self._is_near(name)

    @property
    def _allowance(self) -> float:
        """Seconds that trials may cost."""
        grant = _GRANT / self._rate(self._leader) if self._leader in self._expected else 0.0
        return self._share * self._seconds + grant

    @property
    def _share(self) -> float:
        """Of the time, that trials may cost."""
        return _BUDGET / self._times_as_rare

    def _costs_least(self, name: str) -> tuple[bool, bool]:
        return name in self._expected, name == self._in_hindsight

    def _likely_loss(self, name: str) -> float:
        """Seconds that a trial is likely to cost: of a method that was never tried, as much as of
        the worst one that was, whose draft it may share."""
        record = self._records[name]
        if record.steps or record.base or name in self._expected:
            return self._loss(name)
        lost = _UNKNOWN_LOSS * self._trial_steps(name)
        lost += SETTLING_STEPS if self._has_to_settle(self._leader, name) else 0
        unknown = lost * self._seconds / self._steps
        if name == self._in_hindsight:  # it has no draft
            return unknown
        return max(unknown, *(self._loss(other) for other, r in self._records.items() if r.near))

    def _loss(self, name: str) -> float:
        """Seconds that a trial of a method costs that is as fast as is known, and what it costs to
        turn to it."""
        record = self._records[name]
        short = record.is_new and name not in self._expected  # it ends early if slow
        steps = TRIAL_STEPS if short else self._trial_steps(name)
        changing = record.changing / record.changes if record.changes else 0.0
        slower = max(0.0, 1.0 - self._likely_speed(name))
        return slower * steps * self._step_seconds(name) + changing

    def _step_seconds(self, name: str) -> float:
        """What one takes of a method lately, or of all where it has not run."""
        record = self._records[name]
        if record.near:
            return record.near_seconds / len(record.near)
        return 1.0 / self._rate(name) if name in self._expected else self._seconds / self._steps

    def _promise(self, name: str) -> float:
        record = self._records[name]
        if not record.steps and (name not in self._expected or self._is_near(name)):
            return math.inf
        return max(0.0, self._speed(name)) * math.sqrt(self._steps - record.tried_at)

    def _is_near(self, name: str) -> bool:
        """Whether a method is about as fast as the leading one, or faster, as far as is known."""
        return self._likely_speed(name) > 1.0 - _UNKNOWN_LOSS

    def _likely_speed(self, name: str) -> float:
        """How many times as fast as the leading method one is, at best: one that was never tried is
        known by what is said of the forwards of others, which may err by as much."""
        is_untried = name in self._expected and not self._records[name].steps
        return self._speed(name) * (_UNTRIED if is_untried else 1.0)
