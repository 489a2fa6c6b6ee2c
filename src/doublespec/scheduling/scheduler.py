"""Which method to decode with next: whichever is the fastest here, found by trying.

All methods give the same tokens, so one may change between them at any step. One of them leads: at
first the likely best. The others are tried now and then, for as long as what the trials cost stays
below a small share of the time. How much a few steps settle depends on the text far more than on
the method, so a trial is compared with what the leading method settled just before it, and another
one leads only when its trials agree. One method needs no trials: its steps can be judged by the
text that another one has settled (`drafting/hindsight.py`), which compares both on the same text.
And a draft in this process can be asked what it would have chosen there (`drafting/sounding.py`):
where that promises too little, it is left after a few steps and not tried again; where it promises
enough, one trial will do. Knows methods as names, and no clock.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import add
from statistics import median
from typing import NamedTuple

from doublespec.scheduling.promises import Promises
from doublespec.scheduling.records import Led, Record
from doublespec.scheduling.slowness import Slowness

TURN_STEPS = 16  # of the leading method, before it is asked again
_LONG_LED = 128  # by one method: then its turns are longer, so many times,
_LONG_TURN, _LONGEST_TURN = 2, 4  # or so many where retrieval finds next to nothing,
_SETTLED_LED, _SETTLED_TURN = 256, 8  # and so many once it has led for longer than that: less than
_NEXT_TO_NOTHING = 0.15  # tokens a step
TRIAL_STEPS = 6  # of another one, if it is compared with other text
MANY_STEPS = 1 << 30  # as many as one likes
SETTLING_STEPS = 2  # after a change: not measured, since the draft has to take in the text
_APART = 64  # steps between two trials of a method, unless it has gained
# Of plain decoding, after so many, beside retrieval; and times as many as turns are longer, where
# that finds next to nothing, and so does the same.
_WELL_KNOWN, _RARELY = 64, 1024
_FAR_APART = 4096  # and where plain decoding is far slower than the leading method
_BUDGET = 0.01  # share of the time that trials may cost
_GRANT = 32  # steps that they may cost besides while plain decoding leads, as it may do early
_GRANT_SOUNDED = 8  # or where soundings say which trials are worth their time
FIRST_STEPS = 8  # before the first sounding
_UNTRIED = 1.7  # times as fast as by the forwards of others: so fast plain decoding may be
_UNKNOWN_LOSS = 0.25  # share of its time that the first trial of a method is likely to cost
_LONGEST_STEP = 16  # times as long as the mean of all, and no longer counts a step
_MEMORY_STEPS = 512  # after which what was measured counts half
_LEAST_STEPS = 64  # of the leading method, after which plain decoding need not be surely faster
_SPREAD = 0.6  # of what a step with a draft settles, as a share of the mean
_SURELY_STEPS = 128  # of the one in hindsight, which loses less on any text than texts differ
_BADLY, _BADLY_STEPS = 0.75, 48  # of plain decoding, which are enough to leave it
# Of plain decoding: alike, for a method that is fast as soon as text repeats; and after so many
# steps, which most texts repeat something in.
_ALIKE, _ALIKE_LATER, _LONG_STEPS = 0.93, 0.96, 512
_DOUBTS = 4  # steps of a method that no trial compares, which say no more than not to know it
_JUDGED_EVERY = 4  # turns, of which one is compared where the other method has lost so far
_CLEARLY = 1.25  # times as fast as plain decoding: not in doubt, though new
_SURE = 1.6  # standard errors by which a method must have gained: three trials alike are enough
_JUDGED_TOKENS, _WORTH = 60, 0.03  # in hindsight, of which one must save so much of plain decoding
_PAYS = 1.05  # times as fast as the leading method by soundings: worth a trial, and then to lead
_HOPELESS = 0.9  # or less: not even worth a trial
_DISAPPOINTS = 0.95  # of plain decoding, after a few steps: left


class Between(NamedTuple):
    """Steps that showed no retrieved run alone: how many, and the tokens and seconds of them."""

    steps: int
    tokens: int
    seconds: float

    def and_those(self, other: "Between") -> "Between":
        return Between(*map(add, self, other))


_NO_STEPS = Between(0, 0, 0.0)


@dataclass(slots=True)
class Turn:
    """A method, for how many steps, how many of these, the first ones, are not measured, and up to
    which one they tell something. Where it is in doubt, what is learnt of a step may end it early.

    `at_once`: how many steps may come in one call, though the turn has fewer left. It is on trial
    if the method that leads could run as well. `judged`: whether to `compare` it, when it is over,
    with the method that can be judged in hindsight. `plain_rate`: tokens per second of plain
    decoding, as far as is known, if it is another one. Then what its `measured` steps have settled,
    and what the leading method would have settled `instead`, going by what it did before. Of those
    that were made `between` retrieved runs steps, tokens and seconds; also of those in earlier
    answers, if it was begun there.
    """

    name: str
    steps: int
    settling: int
    telling: int
    leader: str
    judged: bool
    in_doubt: bool
    plain_rate: float
    at_once: int
    on_trial: bool = False
    made: int = 0  # steps so far
    tokens: int = 0
    seconds: float = 0.0
    measured: int = 0
    instead: float = 0.0
    between: Between = _NO_STEPS


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a method: tokens per second as measured (None: never tried; of plain
    decoding, as expected from a single forward), from how many steps, and its share of all."""

    name: str
    tokens_per_second: float | None
    steps: int
    share: float


class Scheduler:
    """Chooses among methods by what they have settled per second.

    `names` begin with the likely best, which leads at first; `expected` are rates known beforehand,
    which do not depend on the text (of plain decoding: from the time of a forward). What the method
    `in_hindsight` would have settled, `compare` is told; if the draft can be `sounded`, what that
    says of the others is told to `sound`.
    """

    def __init__(
        self,
        names: Sequence[str],
        expected: Mapping[str, float],
        in_hindsight: str = "",
        *,
        sounded: bool = False,
    ) -> None:
        assert names
        self._records = {name: Record() for name in names}
        self._expected = dict(expected)
        with_draft = {*names} - {in_hindsight, *expected}
        self._soundings = Promises(with_draft if sounded else ())
        self._leader = names[0]
        self._in_hindsight = in_hindsight
        self._retrieved_at = -_MEMORY_STEPS  # step at which it was left for plain decoding
        self._led = 0  # turns of the leading method, other than that one
        self._steps = 0
        self._seconds = 0.0  # in all
        self._lost = 0.0  # of them, by trials
        self._latest: Turn | None = None
        self._slowness = Slowness(self._expected)
        self._known: dict[str, float] = {}  # what `_rate` has made of them

    def choose(self, can_run: Callable[[str], bool] = lambda name: True) -> Turn:
        """The next turn, with a method that can run now (plain decoding always can)."""
        self._latest = self._chosen(can_run)
        return self._latest

    def _chosen(self, can_run: Callable[[str], bool]) -> Turn:
        last = self._latest
        if last and self._goes_on(last) and can_run(last.name):
            return self._rest_of(last)
        names = [name for name in self._records if can_run(name)]
        trial = last if last and last.on_trial else None
        if last:
            self._learn_promise(last)
        if trial and trial.instead and not self._tells_in_hindsight(trial):
            instead = trial.seconds * trial.tokens / trial.instead
            self._records[trial.name].add_trial(instead, trial.seconds)
        best = self._best(names)
        other = None if trial else self._worth_a_trial(names, best)
        name = other or best
        steps = self._trial_steps(other) if other else self._turn_steps
        settling = SETTLING_STEPS if last and self._has_to_settle(last.name, name) else 0
        judged = self._is_judged(name, is_trial=other is not None)
        if not other and self._soundings.are_open:
            steps = FIRST_STEPS
        goes_on = name in (*self._expected, self._in_hindsight)
        is_long = goes_on and (steps > TURN_STEPS or name == self._in_hindsight == best)
        at_once = MANY_STEPS if is_long else TURN_STEPS
        turn = self._turn(name, steps, settling, settling + TURN_STEPS, at_once, judged=judged)
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

    def _rest_of(self, last: Turn) -> Turn:
        """The same turn in the next answer, whose first token waits for this."""
        return Turn(
            name=last.name,
            steps=last.steps - last.made,
            settling=0,
            telling=max(0, last.telling - last.made),
            leader=last.leader,
            judged=last.judged,
            in_doubt=last.in_doubt and self._records[last.name].is_new,
            plain_rate=last.plain_rate,
            at_once=last.at_once,
            between=last.between,
        )

    def _turn(
        self, name: str, steps: int, settling: int, telling: int, at_once: int, *, judged: bool
    ) -> Turn:
        plain_rate, in_doubt = 0.0, False
        if name not in self._expected:
            plain_rate = max(map(self._rate, self._expected), default=0.0)
            record = self._records[name]
            in_doubt = record.is_new and record.near_rate < _CLEARLY * plain_rate
            in_doubt = in_doubt and name != self._in_hindsight
        return Turn(
            name, steps, settling, telling, self._leader, judged, in_doubt, plain_rate, at_once
        )

    def affords(self, name: str, seconds: float) -> bool:
        """Whether it may take so many seconds, once, to get ready what a method needs: as trials,
        no more than a small share of the time; if that method is to lead, at once."""
        is_likely = name == self._leader or self._soundings.speed(name) > _PAYS
        return is_likely or seconds <= _BUDGET * self._seconds

    def learn(
        self,
        turn: Turn,
        place: int,
        tokens: int,
        seconds: float,
        slowness: float = 1.0,
        steps: int = 1,
        beside: float | None = None,
        between: Between | None = None,
    ) -> None:
        """Step number `place` of a turn has settled so many tokens in so many seconds; or so many
        `steps` from that one on together, each the same, as those that were computed at once.
        `slowness` is how many times as long a forward took as was to be expected beforehand, and
        `beside` how many times as long as that the step took in all (None: of plain decoding, what
        it took longer than by the rate that is known and by that slowness). Those `between`
        retrieved runs were no runs alone (None: all)."""
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
            between = between or Between(steps, tokens, seconds)
            record.between += min(between.seconds, seconds)
            turn.between = turn.between.and_those(between)
            turn.measured += steps
            turn.tokens += tokens
            turn.seconds += seconds
            turn.instead += near * seconds
            record.add_near(tokens, seconds, steps)
            if turn.name in self._expected and tokens:
                took = seconds * self._expected[turn.name] / tokens / slowness
                record.beside.extend([beside or took] * steps)
            if turn.name == self._leader:
                led = record.led
                plain = led.plain + turn.plain_rate * seconds
                record.led = Led(
                    led.tokens + tokens, plain, led.seconds + seconds, led.steps + steps
                )
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

    def wants_sounding(self, unread: Callable[[], int]) -> bool:
        """Whether to `sound`: at first, and while no draft leads, as far as that costs little, by
        how many tokens the draft would have to read."""
        soundings = self._soundings
        if not soundings.are_due(self._steps):
            return False
        if self._leader in soundings and not soundings.are_open:
            return False
        step = self._seconds / max(self._steps, 1)
        return soundings.are_affordable(unread, self._seconds, step)

    def sound(self, speeds: Mapping[str, float], read: int, seconds: float) -> None:
        """Methods with a draft would be so many times as fast as plain decoding on the latest text,
        if that depended on nothing but forwards and how often the draft is right. To find out took
        so many seconds, in which the draft had to read so many tokens."""
        self._seconds += seconds
        self._soundings.add(speeds, read, seconds, self._steps)

    def _learn_promise(self, turn: Turn) -> None:
        """What became of a promise, by a turn of that method: by its steps between retrieved runs,
        which the method that only retrieves has as well."""
        steps, tokens, seconds = turn.between
        if steps and seconds > 0 and turn.plain_rate > 0:
            speed = tokens / (seconds * turn.plain_rate)
            self._soundings.learn(turn.name, speed, steps, self._steps)

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
        """Where a method has led for long, little is to be learnt of it, and choosing costs time.
        (One with a draft is looked at as often as ever where retrieval has begun to gain.)"""
        times, led = self._times_as_rare, self._records[self._leader].led.steps
        if self._leader == self._in_hindsight and times == _LONGEST_TURN and led >= _SETTLED_LED:
            return TURN_STEPS * _SETTLED_TURN
        if self._leader in (*self._expected, self._in_hindsight) or not self._has_led_long:
            return TURN_STEPS * times
        other = self._records.get(self._in_hindsight)
        return TURN_STEPS * (1 if other and other.gained > 0 else _LONG_TURN)

    @property
    def _has_led_long(self) -> bool:
        return self._records[self._leader].led.steps >= _LONG_LED

    @property
    def _times_as_rare(self) -> int:
        """As usual are turns and trials while plain decoding leads, or retrieval: most where that
        finds next to nothing."""
        if not self._has_led_long:
            return 1
        other = self._records.get(self._in_hindsight)
        found = other.near_tokens / len(other.near) - 1.0 if other and other.near else None
        finds = found is None or found > _NEXT_TO_NOTHING
        if self._leader not in self._expected:
            rare = _LONG_TURN if finds else _LONGEST_TURN
            return rare if self._leader == self._in_hindsight else 1
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
        if self._leader not in names and not self._disappoints(self._leader):
            likely = (n for n in names if not self._lags(n) and not self._disappoints(n))
            return next(likely, names[0])
        faster = [name for name in names if name != self._leader and self._is_faster(name)]
        if faster:
            last, self._leader = self._leader, max(faster, key=self._speed)
            if self._leader in self._expected and last == self._in_hindsight:
                self._retrieved_at = self._steps
            elif self._leader in self._expected:
                self._records[last].count_latest()  # else it would lead again at once
                if self._may_retrieve(names):
                    self._leader = self._in_hindsight
            if self._leader in self._soundings:
                self._soundings.have_led()
            self._records[self._leader].forget_near()
            self._records[self._leader].led = Led()
            for record in self._records.values():  # they were compared with the last one
                record.forget_trials()
        return self._leader

    def _may_retrieve(self, names: Sequence[str]) -> bool:
        """Whether retrieval leads where plain decoding would: it goes on alike where it finds
        nothing, and has not been left just now."""
        is_left = self._steps - self._retrieved_at < _MEMORY_STEPS
        return self._in_hindsight in names and not is_left

    def _was_slower(self, name: str, rate: float) -> bool:
        record = self._records[name]
        if name != self._in_hindsight:
            error = _SPREAD / math.sqrt(max(1, min(record.steps, _MEMORY_STEPS)))
            return record.steps >= _LEAST_STEPS and (1.0 + error) * record.rate < rate
        tokens, plain, seconds, steps = record.led
        plain = min(plain, seconds * rate)  # what was believed of it at first may be too much
        if steps < _SURELY_STEPS:
            return steps >= _BADLY_STEPS and tokens < _BADLY * plain
        return tokens < (_ALIKE if steps < _LONG_STEPS else _ALIKE_LATER) * plain

    def _is_faster(self, name: str) -> bool:
        record, leader = self._records[name], self._records[self._leader]
        if name in self._expected:
            rate = self._rate(name)
            if self._was_slower(self._leader, rate) or self._disappoints(self._leader):
                return True
            return self._leader != self._in_hindsight and leader.lags_behind(rate)
        if self._is_promising(name) and not self._soundings.were_made_since(record.tried_at):
            return True
        if self._leader not in self._expected:
            return record.gains(_SURE)
        if name == self._in_hindsight:  # judged by the same text: no luck
            is_worth_it = record.gained > _WORTH * record.base
            return is_worth_it and record.base * self._rate(self._leader) >= _JUDGED_TOKENS
        if record.gains(_SURE):
            return True
        is_known = record.steps >= _LEAST_STEPS
        return is_known and record.rate > max(self._rate(self._leader), leader.rate)

    def _is_promising(self, name: str) -> bool:
        """Whether a method with a draft is likely faster than the leading one, which has none, by
        soundings. It leads as soon as a trial leaves it promising, which a promise made long ago
        cannot: steps do not tell of it any more."""
        if self._leader in self._soundings or self._soundings.speed(name) <= _PAYS:
            return False
        if not self._soundings.is_fresh(self._steps):
            return False
        return self._promised_speed(name) > _PAYS

    def _is_hopeless(self, name: str) -> bool:
        """Whether it is surely slower. (The leading method is as fast as plain decoding, or faster:
        where a method is too slow beside that, no rate need be looked up.)"""
        return self._soundings.speed(name) < _HOPELESS or self._promised_speed(name) < _HOPELESS

    def _disappoints(self, name: str) -> bool:
        """Whether a method is likely slower than plain decoding, by what a sounding said just now
        and by its steps since then."""
        if name not in self._soundings or not self._soundings.is_fresh(self._steps):
            return False
        return self._soundings.speed(name) < _DISAPPOINTS

    def _promised_speed(self, name: str) -> float:
        """How many times as fast as the leading method, which has no draft, one with a draft is by
        soundings (0.0: unknown): it shows the same runs as retrieval alone, and is faster between
        them."""
        speed = self._soundings.speed(name)
        if not speed:
            return 0.0
        leading = self._records[self._leader]
        if self._leader == self._in_hindsight and leading.seconds:
            share = leading.between / leading.seconds
            return 1.0 / (1.0 - share + share / speed)
        plain = max(map(self._rate, self._expected))
        return speed * plain / max(plain, leading.rate)

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
        if self._is_promising(name):
            return self._promised_speed(name)
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
        promising = [name for name in names if self._is_promising(name)]
        if promising:
            return max(promising, key=self._promised_speed)
        others = [name for name in names if name != best and not self._rests(name)]
        if not others:
            return None
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
        if (
            name in self._expected
            and self._leader == self._in_hindsight
            and record.steps >= _WELL_KNOWN
        ):
            apart = _RARELY * self._times_as_rare
        is_sounded = name in self._soundings and self._leader not in self._soundings
        if is_sounded and self._is_hopeless(name):
            return True
        if record.tried_at >= 0 and self._steps - record.tried_at < apart and record.gained <= 0:
            return True
        if name == self._in_hindsight and self._leader in self._expected and record.gained < 0:
            return self._steps - record.tried_at < _MEMORY_STEPS
        is_fresh = record.steps > 0 and self._steps - record.tried_at < _FAR_APART
        return name in self._expected and is_fresh and not self._is_near(name)

    @property
    def _allowance(self) -> float:
        """Seconds that trials may cost."""
        grant = 0.0
        if self._leader in self._expected:
            steps = _GRANT_SOUNDED if self._soundings else _GRANT
            grant = steps / self._rate(self._leader)
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
