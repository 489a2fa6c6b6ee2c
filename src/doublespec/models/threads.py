"""How many threads the products of a target on the CPU use: all cores, while that is faster.

A draft beside the target needs a core of its own, and so may other programs: threads wait for each
other at every product, and one that waits for a busy core holds up all (a forward took 930 ms
instead of 3.5 on 2 cores beside a busy program; 2026-11-24). So the usual number leaves one core
free. While no draft is at work, all are used if that was shown to change no bit, and for as long as
it is measured to be faster. What is late in the middle of a forward ends it at once, for a while.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median_low
from time import perf_counter

import torch
from torch import Tensor, equal

from doublespec.models.devices import end_idle_threads

Compute = Callable[[], Tensor]  # gives the same bits with every number of threads, or not

_SAMPLES = 5  # blocks of a trial, with each number
_FEWEST_SAMPLES = 2  # are enough where one number is clearly faster, as of real models
_CLEARLY = 1.1
_SAMPLES_OF_MANY = 2  # where they have many rows: a prompt's, which take long and are few
_HOLDS = 20  # times as many blocks later it is tried again
# And twice as many each time that trials agree, up to so many; or so many while all cores are
# faster, which are left at once when they are not: a trial takes a small model's calls apart.
_HOLDS_LONGEST, _HOLDS_EVERY = 320, 1280
# So many times as long as what was lost is the pause after it, twice as long each time, up to so
# many times: to try again costs a hundredth then. All cores may be much faster.
_PAUSE_TIMES, _MOST_PAUSE_TIMES = 3, 100
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 30.0  # seconds
_CALM = 0.05  # and short again after so many seconds of forwards on all cores
# Seconds that delays may lose without a pause: at first, and at most of what forwards on all cores
# have saved, by the gain of the last trial or by a likely one before any.
_FIRST_CREDIT, _MOST_CREDIT = 0.1, 0.25
_LIKELY_GAIN = 1.1
_LATE_SECONDS, _LATE_TIMES = 1.5e-3, 3  # a layer is late after so long, beyond its usual time
_SLOW = 1.5  # a block that took so many times as long as with the usual number was disturbed
_DRAFT_SHARE = 0.2  # of a forward over one row: what one of a draft takes, or less
_PROOF_SECONDS = 1e-3  # for which a proof that was put off goes on before a forward
_TRIES = 2  # of a computation that may have been slowish since it was the first of its shape


@dataclass(slots=True)
class _Blocks:
    """What is known of blocks with about as many rows; seconds are for each row."""

    rows: int  # of the first one
    usual_seconds: float  # the latest with the usual number
    samples: int  # of a trial, with each number
    usual: list[float] = field(default_factory=list)  # the trial under way
    every: list[float] = field(default_factory=list)  # and with all cores
    gain: float | None = None  # how many times as fast all cores were in trials, later ones first
    holds: int = 0  # for how many blocks more that is believed
    held: int = 0

    def add(self, seconds: float, *, uses_every: bool) -> None:
        """A block of the trial under way, which ends when it has enough of them."""
        (self.every if uses_every else self.usual).append(seconds)
        number = min(len(self.every), len(self.usual))
        if number == self.samples or (number >= _FEWEST_SAMPLES and self._is_clear):
            self._decide()

    @property
    def _is_clear(self) -> bool:
        """Whether each block with one number took longer than all with the other."""
        slower, faster = sorted((self.usual, self.every), key=min, reverse=True)
        return min(slower) > _CLEARLY * max(faster)

    def _decide(self) -> None:
        """Each trial weighs as much as all before it: a few blocks of a busy moment decide nothing
        against them, a machine that has changed soon does. Of two blocks the faster one counts: the
        first of all finds nothing in caches."""
        before, found = self.gain, median_low(self.usual) / median_low(self.every)
        self.gain = found if before is None else math.sqrt(before * found)
        agrees = before is not None and (before > 1.0) == (self.gain > 1.0)
        longest = (_HOLDS_EVERY if self.gain > 1.0 else _HOLDS_LONGEST) * self.samples
        self.held = min(2 * self.held, longest) if agrees else _HOLDS * self.samples
        self.holds = self.held
        self.forget_trial()

    def believe(self, gain: float) -> None:
        """Until a trial, which comes as late as if one had found that."""
        self.gain = gain
        self.held = self.holds = _HOLDS * self.samples
        self.forget_trial()

    def forget_trial(self) -> None:
        self.usual, self.every = [], []


class Threads:
    """Sets the number of threads for each block of rows of one model; between its forwards it is
    the usual one.

    `proof` are computations in which the bits of the model would show a difference; `expected`
    gives seconds of a block of so many rows with the usual number, until that is measured.
    """

    def __init__(
        self,
        usual: int,
        every: int,
        proof: Iterable[Compute],
        expected: Callable[[int], float],
        layers: int,
        *,
        few_rows: int = 8,
        clock: Callable[[], float] = perf_counter,
        set_threads: Callable[[int], None] = torch.set_num_threads,
        end_threads: Callable[[], None] = end_idle_threads,
    ) -> None:
        """`every`: with all cores; `layers` is how often a forward calls `check`; on at most
        `few_rows`, fewer than prompts come in, all cores are tried after something was late."""
        self._few_rows = few_rows
        self.usual = usual
        self.every = every
        self._proof: Iterator[Compute] = iter(proof)
        self._unproven: Compute | None = next(self._proof, None)
        self._is_same: bool | None = True if self._unproven is None else None
        self._expected = expected
        self._layers = layers
        self._clock = clock
        self._set_threads = set_threads
        self._end_threads = end_threads
        self._blocks: dict[int, _Blocks] = {}
        self._known: dict[int, _Blocks] = {}  # the same by rows
        self._drafting = 0  # answers with a draft at work
        self.is_loading = False  # a draft beside the target
        self._free_from = 0.0  # when the last of these had rested for long enough, and no pause is
        self._number: int | None = None  # set from outside
        self._rows = 0  # of the block under way; 0: none is
        self._block: _Blocks | None = None  # it is one of these
        self._begun = self._checked = self._ended = 0.0
        self._passes = 1  # of the block that has ended
        self._uses_every = self._is_on_trial = False
        self.patience = 0.0  # seconds after which a layer is late (0.0: none is)
        self._pause = _SHORTEST_PAUSE
        self._paused_until = 0.0
        self._calm_seconds = _CALM  # of forwards on all cores since something was late
        self._credit = _FIRST_CREDIT

    # -- what the model says ---------------------------------------------------------------------

    def begin(self, rows: int) -> None:
        """A block of so many rows begins, and the one before it has ended."""
        now = self._clock()  # here and below few calls: with cold caches each takes a microsecond
        if self._rows:
            self._close(self._ended or now)
        self._ended = 0.0
        self._uses_every, self._is_on_trial, self.patience = False, False, 0.0
        if self._number is not None:
            self._set_threads(self._number)
            return
        is_free = not (self._drafting or self.is_loading) and now >= self._free_from
        if is_free and (rows <= self._few_rows or not self._is_risky(now)):
            if self._is_same is None:
                self._prove_until(now + _PROOF_SECONDS)
                now = self._clock()
            blocks = self._known.get(rows) or self._blocks_of(rows)
            self._rows, self._block = rows, blocks
            if self._is_same and self._choose(rows, blocks):
                seconds = rows * blocks.usual_seconds
                self.patience = _LATE_SECONDS + _LATE_TIMES * seconds / self._layers
                self._uses_every = True
        self._set_threads(self.every if self._uses_every else self.usual)
        self._begun = self._checked = now

    def _is_risky(self, now: float) -> bool:
        """Whether all cores may hold up a block: while that is not proven yet, or for a while after
        something was late, only one of few rows may try; a prompt's would delay the first token."""
        was_late = not self._calm_seconds and now < self._paused_until + self._pause
        return self._is_same is None or was_late

    def check(self) -> None:
        """A layer is done. If it is late, the rest of the block goes on with the usual number. (A
        last one need not be told of: the end of the block tells.)"""
        if not self._uses_every:
            return
        now = self._clock()
        self.took(now - self._checked)
        self._checked = now

    def took(self, seconds: float) -> None:
        """The same, where others have looked at the clock."""
        if self._uses_every and seconds > self.patience:
            self._fall_back(self._clock(), seconds)

    def end(self, passes: int = 1) -> None:
        """The forward is over, or was interrupted; or so many in a row, which count as one block.
        What is learnt of it can wait for the next one: right now, all that is touched has to come
        from memory."""
        self._ended, self._passes = self._clock(), passes
        self._set_threads(self.usual)

    # -- what others say -------------------------------------------------------------------------

    def draft_loads(self, is_loading: bool) -> None:
        """A draft is being loaded from now on, or not any more: seconds of work for a core."""
        if is_loading and self.usual == 1:
            self._end_threads()
        self.is_loading = is_loading

    def draft_begins(self) -> None:
        """A draft is at work beside the target from now on. Threads that nobody will give work to
        go on looking for it for milliseconds, on the draft's core."""
        if not self._drafting and self.usual == 1:
            self._end_threads()
        self._drafting += 1

    def draft_rests(self) -> None:
        """It is not any more, once the forward that it is in the middle of has ended: a prompt that
        comes right after it would be read by fewer cores as a whole."""
        self._drafting -= 1
        resting = _DRAFT_SHARE * self._blocks_of(1).usual_seconds
        self._free_from = max(self._paused_until, self._clock() + resting)

    @contextmanager
    def fixed(self, number: int) -> Iterator[None]:
        """Exactly so many threads, whatever is faster and whether bits are the same or not."""
        before, self._number = self._number, number
        try:
            yield
        finally:
            self._number = before

    # -- the proof -------------------------------------------------------------------------------

    def prove(self) -> None:
        """Goes through the proof, unless the cores are busy: then the rest is done later, a little
        before each forward."""
        self._prove_until(math.inf)
        self._set_threads(self.usual)

    def _prove_until(self, stop: float) -> None:
        now = self._clock()
        while self._is_same is None and self._paused_until <= now < stop:
            self._prove_next()
            now = self._clock()

    def _prove_next(self) -> None:
        assert self._unproven is not None
        begun = self._clock()
        found = self._agree(self._unproven)
        if found is None:
            self._fall_back(self._clock(), self._clock() - begun)
        elif not found:
            self._is_same, self._unproven = False, None
        else:
            self._go_on()

    def _go_on(self) -> None:
        """To the next computation. One whose making is interrupted is the last that can be had, so
        that nothing is proven."""
        is_whole = False
        try:
            self._unproven = next(self._proof, None)
            is_whole = True
        finally:
            if not is_whole:
                self._is_same, self._unproven = False, None
        self._is_same = True if self._unproven is None else None

    def _agree(self, compute: Compute) -> bool | None:
        """Whether both numbers give the same bits; None if all cores took far too long."""
        wanted, seconds = self._timed(compute, self.usual)
        limit = 2 * _LATE_SECONDS + _LATE_TIMES * seconds
        for _ in range(_TRIES):
            found, seconds = self._timed(compute, self.every)
            if not equal(found, wanted):
                return False
            if seconds <= limit:
                return True
            if seconds > 4 * limit:
                break
        return None

    def _timed(self, compute: Compute, number: int) -> tuple[Tensor, float]:
        self._set_threads(number)
        begun = self._clock()
        found = compute()
        return found, self._clock() - begun

    # -- what is faster --------------------------------------------------------------------------

    def _choose(self, rows: int, blocks: _Blocks) -> bool:
        """Whether a block takes all cores: by the last trial, or for a trial, in turns."""
        if not blocks.holds and rows > self._few_rows:
            lone = self._blocks_of(1).gain
            if lone is not None and lone > 1.0:
                blocks.believe(lone)  # a prompt divides even better
        if blocks.holds:
            blocks.holds -= 1
            return blocks.gain is not None and blocks.gain > 1.0
        self._is_on_trial = True
        if blocks.gain is None:  # all cores first: a method may be tried for a few steps only
            return len(blocks.every) < blocks.samples
        return len(blocks.every) <= len(blocks.usual)

    def _close(self, now: float) -> None:
        """Learns from the block that has ended."""
        blocks = self._block
        assert blocks is not None
        rows, seconds = self._rows, (now - self._begun) / self._passes
        blocks.holds = max(0, blocks.holds - self._passes + 1)
        self._rows, self._passes = 0, 1
        if not self._uses_every:
            blocks.usual_seconds = seconds / rows
        elif seconds > _SLOW * rows * blocks.usual_seconds + _LATE_SECONDS:
            self._fall_back(now, seconds - rows * blocks.usual_seconds)
            return
        else:
            whole = now - self._begun
            self._calm_seconds += whole
            saved = whole * ((blocks.gain or _LIKELY_GAIN) - 1)
            self._credit = min(self._credit + saved, _MOST_CREDIT)
        if self._is_on_trial:
            blocks.add(seconds / rows, uses_every=self._uses_every)

    def _fall_back(self, now: float, lost: float) -> None:
        """The usual number at once; and for a while if all cores have not saved as much as that
        lost, longer each time until they have been calm."""
        self._credit -= lost
        self._paused_until = now
        if self._credit >= 0:
            self._pause = _SHORTEST_PAUSE
        else:
            longer = 0.0 if self._calm_seconds >= _CALM else 2 * self._pause
            longest = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, _MOST_PAUSE_TIMES * lost))
            self._pause = min(max(_SHORTEST_PAUSE, _PAUSE_TIMES * lost, longer), longest)
            self._paused_until += self._pause
            self._credit = 0.0
        self._free_from = max(self._free_from, self._paused_until)
        self._calm_seconds = 0.0
        self._uses_every, self.patience = False, 0.0
        self._rows = 0  # a block with both numbers says nothing of either
        self._set_threads(self.usual)

    def _blocks_of(self, rows: int) -> _Blocks:
        size = (rows - 1).bit_length()  # 1, 2, 3 to 4, 5 to 8 rows, and so on
        found = self._blocks.get(size)
        if found is None:
            samples = _SAMPLES if rows <= self._few_rows else _SAMPLES_OF_MANY
            found = self._blocks[size] = _Blocks(rows, self._expected(rows) / rows, samples)
        self._known[rows] = found
        return found

    @property
    def is_on_trial(self) -> bool:
        """Whether the block under way is one of a trial of both numbers."""
        return self._rows > 0 and self._is_on_trial

    @property
    def may_change(self) -> bool:
        """Whether another number was shown to change no bit."""
        return self._is_same is True

    def explain(self) -> str:
        """Which number is used and why, in one line."""
        found = f"{self.usual} of {self.every} threads"
        if self._is_same is False:
            return f"{found}, since bits depend on the number"
        if self._is_same is None:
            return f"{found}, since it is not known yet whether bits depend on the number"
        if self._clock() < self._paused_until:
            return f"{found} at the moment, since other programs need the cores"
        known = {blocks.rows: blocks.gain for blocks in self._blocks.values() if blocks.gain}
        if not known:
            return f"{found} beside a draft, else {self.every}, if that is faster: not tried yet"
        rows = min(known)
        percent = f"{abs(known[rows] - 1):.0%} {'faster' if known[rows] > 1 else 'slower'}"
        return f"{found} beside a draft; {self.every} are {percent} for {rows} rows"
