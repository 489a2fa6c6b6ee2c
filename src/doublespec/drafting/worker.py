"""The draft's end: takes in messages, drafts, and tells what it has drafted.

`Worker` is the same in a process, in a thread, inline and in virtual time; `serve` runs one at the
end of a channel until that closes.
"""

import contextlib
from array import array
from collections.abc import Callable, Iterator
from time import perf_counter

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


class Worker:
    """A draft under way. `steps` bounds the forwards for each message (lock-step); None: as many
    as are of use."""

    def __init__(self, ahead: DraftAhead, steps: int | None, clock: Clock = perf_counter) -> None:
        self._ahead = ahead
        self._steps = steps
        self._clock = clock
        self._number = 0
        self._text = 0
        self._left: float = 0  # forwards that may still be made
        self._owes_answer = False

    def take(self, message: ToDraft) -> list[FromDraft]:
        """Takes in a message; what must be answered at once."""
        if isinstance(message, Rest):
            self._ahead.rest()
            return []
        if message.number <= self._number:
            return []  # it comes late, or again
        if isinstance(message, Begin):
            tokens = list(array("i", message.tokens))
            self._ahead.begin(tokens, message.limit, message.request)
            self._text = message.text
        else:
            known = self._ahead.length
            if message.text != self._text or message.start > known:
                return [Lost(message.number)]
            self._ahead.settle(message.tokens[known - message.start :], message.limit)
        self._number = message.number
        self._left = float("inf") if self._steps is None else self._steps
        self._owes_answer = True
        return []

    def is_idle(self) -> bool:
        """Whether there is nothing to do until the next message."""
        return not self._owes_answer and not self._may_work()

    def work(self) -> FromDraft:
        """One forward, or the word that there is nothing more to draft."""
        self._owes_answer = False
        if not self._may_work():
            return Drafted(self._number, self._text, self._ahead.length, (), None, done=True)
        begun = self._clock()
        progress = self._ahead.forward()
        self._left -= 1
        forward = DraftForward(
            begun,
            self._clock() - begun,
            progress.rows,
            progress.added_at,
            progress.tokens,
            progress.branches,
        )
        done = not self._may_work()
        return Drafted(self._number, self._text, progress.start, progress.paths, forward, done)

    def _may_work(self) -> bool:
        return self._left > 0 and self._ahead.has_work()


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
