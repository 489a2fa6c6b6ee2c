"""The draft's end: takes in messages, drafts, and tells what it has drafted.

`Worker` is the same in a process, in a thread, inline and in virtual time; `serve` runs one at the
end of a channel until that closes.
"""

import contextlib
import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

from doublespec.config import DraftStyle
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.base import DraftForward
from doublespec.drafting.channel import Channel, ChannelLost
from doublespec.drafting.messages import (
    Begin,
    Drafted,
    Failed,
    FromDraft,
    Lost,
    Ready,
    Rest,
    ToDraft,
)

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft in one style. `steps` bounds its forwards for each message (lock-step); None: as
    many as are of use."""

    ahead: DraftAhead
    steps: int | None


class Worker:
    """A draft under way. `make` is asked for one in each style that is told."""

    def __init__(self, make: Callable[[DraftStyle], Draft], clock: Clock = perf_counter) -> None:
        self._make = make
        self._drafts: dict[DraftStyle, Draft] = {}
        self._draft: Draft | None = None
        self._clock = clock
        self._number = 0
        self._text = 0
        self._left: float = 0  # forwards that may still be made
        self._forwards: list[DraftForward] = []  # those that the target may not have heard of
        self._heard = 0  # how many it has heard of before them
        self._owes_answer = False

    def take(self, message: ToDraft) -> list[FromDraft]:
        """Takes in a message; what must be answered at once."""
        if isinstance(message, Rest):
            self._left, self._owes_answer = 0, self._draft is not None
            return []
        if message.number <= self._number:
            return []  # it comes late, or again
        if isinstance(message, Begin):
            self._draft = self._in_style(message.style)
            tokens = list(array("i", message.tokens))
            self._draft.ahead.begin(tokens, message.limit, message.request)
            self._text = message.text
        elif self._draft is None or message.text != self._text:
            return [Lost(message.number)]
        else:
            known = self._draft.ahead.length
            if message.start > known:
                return [Lost(message.number)]
            self._draft.ahead.settle(message.tokens[known - message.start :], message.limit)
        self._number = message.number
        del self._forwards[: message.heard - self._heard]
        self._heard = message.heard
        self._left = math.inf if self._draft.steps is None else self._draft.steps
        self._owes_answer = True
        return []

    def _in_style(self, style: DraftStyle) -> Draft:
        if style not in self._drafts:
            self._drafts[style] = self._make(style)
        return self._drafts[style]

    def is_idle(self) -> bool:
        """Whether there is nothing to do until the next message."""
        return not self._owes_answer and not self._may_work()

    def work(self) -> FromDraft:
        """One forward, if there is something to draft; and all that is drafted."""
        assert self._draft is not None
        ahead, self._owes_answer = self._draft.ahead, False
        if self._may_work():
            self._forwards.append(self._forward(ahead))
        return Drafted(
            self._number,
            self._text,
            ahead.length,
            ahead.path,
            ahead.forks,
            not self._may_work(),
            self._heard,
            tuple(self._forwards),
        )

    def _forward(self, ahead: DraftAhead) -> DraftForward:
        begun = self._clock()
        progress = ahead.forward()
        self._left -= 1
        return DraftForward(
            begun,
            self._clock() - begun,
            progress.rows,
            progress.added_at,
            progress.tokens,
            progress.branches,
        )

    def _may_work(self) -> bool:
        return self._left > 0 and self._draft is not None and self._draft.ahead.has_work()


def serve(channel: Channel, make: Callable[[], Worker]) -> None:
    """Makes a worker and lets it work until the channel closes. What it raises is told."""
    with contextlib.suppress(ChannelLost):
        try:
            worker = make()
            channel.send(Ready())
            while True:
                for reply in _turn(channel, worker):
                    channel.send(reply)
        except ChannelLost:
            raise
        except Exception as error:
            channel.send(Failed(f"{type(error).__name__}: {error}"))


def _turn(channel: Channel, worker: Worker) -> Iterator[FromDraft]:
    """What there is to say after reading what has come and after one forward."""
    for message in channel.receive(None if worker.is_idle() else 0.0):
        yield from worker.take(message)
    if not worker.is_idle():
        yield worker.work()
