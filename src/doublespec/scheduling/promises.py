"""What soundings promise of methods with a draft, and how much of it has held so far.

A sounding (`drafting/sounding.py`) says how fast they would be by forwards alone and by how often
the draft would have been right on the latest text. Steps take longer than that, for each pair of
models and on each machine otherwise, and what begins a text is easier or harder than the rest: how
much holds is learnt from the steps that are made soon after.
"""

from collections.abc import Callable, Collection, Mapping

from doublespec.ratio import Ratio

_APART = 16  # steps between two soundings, at first: each time twice as many
_BUDGET = 0.0025  # share of the time that they may cost,
_GRANT = 4  # and steps besides
_HOLDS, _HOLDS_STEPS = 0.85, 8.0  # of what one says, before any step; it counts for some
_AGAIN = 4.0  # and for some more with each sounding since: a few steps need not speak for all times
_MEMORY = 0.8  # of what was said before, with each one: a single one says little
_FRESH_STEPS = 128  # after one, in which steps tell how much of it holds


class Promises:
    def __init__(self, names: Collection[str]) -> None:
        """Of the methods with such `names`, if there are any."""
        self._said = {name: Ratio(0.0, 0.0, _MEMORY) for name in names}
        self._holds = {name: Ratio(_HOLDS, _HOLDS_STEPS) for name in names}
        self._speeds: dict[str, float] = {}  # what both make of it, once something was said
        self.are_open = bool(names)  # are there any of which nothing has been said yet?
        self._said_at = -1  # step
        self._apart = _APART
        self._spent = 0.0
        self._per_token = 0.0  # seconds, of those that a draft had to read

    def __bool__(self) -> bool:
        return bool(self._said)

    def __contains__(self, name: str) -> bool:
        return name in self._said

    def are_due(self, steps: int) -> bool:
        """Whether it is time for the next sounding, after so many steps in all."""
        return bool(self._said) and (self.are_open or steps - self._said_at >= self._apart)

    def are_affordable(self, unread: Callable[[], int], seconds: float, step: float) -> bool:
        """Whether the next one costs no more than its share of so many seconds, where the draft has
        to read so many tokens for it (not asked where that says nothing); a `step` takes so many
        seconds."""
        if self.are_open:
            return True
        left = _BUDGET * seconds + _GRANT * step - self._spent
        return left > 0.0 and self._per_token * unread() <= left

    def add(self, speeds: Mapping[str, float], read: int, seconds: float, steps: int) -> None:
        """A sounding of a text of which so many tokens had to be read took so many seconds, after
        so many steps. It says how many times as fast as plain decoding methods are (nothing: not at
        all)."""
        is_first = self.are_open
        self._apart = _APART if is_first else 2 * self._apart
        self._said_at, self.are_open = steps, False
        self._spent += seconds
        self._per_token = max(self._per_token, seconds / read)
        for name, said in self._said.items():
            said.learn(speeds.get(name, 0.0), 1.0)
            holds = self._holds[name]
            if not is_first:
                holds.learn(_HOLDS * _AGAIN, _AGAIN)
            self._speeds[name] = said.value * holds.value

    def learn(self, name: str, speed: float, measured: int, steps: int) -> None:
        """So many steps of a method were so many times as fast as plain decoding; all together have
        made so many steps by now."""
        if name in self._speeds and self.is_fresh(steps) and self._said[name].value:
            said, holds = self._said[name].value, self._holds[name]
            holds.learn(speed / said * measured, measured)
            self._speeds[name] = said * holds.value

    def have_led(self) -> None:
        """A method leads by what was said, or did: soundings are soon of use again."""
        self._apart = _APART

    def is_fresh(self, steps: int) -> bool:
        """Whether something was said just now."""
        return not self.are_open and steps - self._said_at <= _FRESH_STEPS

    def speed(self, name: str) -> float:
        """How many times as fast as plain decoding a method is likely to be (0.0: unknown)."""
        return self._speeds.get(name, 0.0)

    def were_made_since(self, step: int) -> bool:
        """Whether something was said at that step, or after it."""
        return self._said_at >= step
