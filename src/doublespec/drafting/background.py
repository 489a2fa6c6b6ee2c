"""The draft beside the target: what it has drafted so far, and what becomes of it when it fails.

`RemoteDrafter` speaks with a `Worker` over a link: one in a process (`links.py`), in a thread, in
this very call, or in virtual time. It never waits for a draft that may not answer: a draft that is
lost is left out and begun again behind the scenes, and the answer's tokens stay the same.
"""

import os
import warnings
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, ParamSpec, Protocol

from doublespec.config import DraftStyle
from doublespec.drafting.alternation import Alternation
from doublespec.drafting.base import DraftForward, Pending
from doublespec.drafting.channel import ChannelLost
from doublespec.drafting.messages import (
    Begin,
    Drafted,
    FromDraft,
    Lost,
    Ready,
    Rest,
    Settled,
    ToDraft,
)
from doublespec.drafting.pace import Pace
from doublespec.drafting.tree import DraftTree
from doublespec.sampling import Request
from doublespec.tokens import Tokens, as_list

P = ParamSpec("P")

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 60.0  # before a lost draft is begun again
_SILENT_CALLS = 8  # besides the time: a target may be slow, too


class DraftWarning(UserWarning):
    """The draft failed; the answer goes on without it, slower and the same."""


class Link(Protocol):
    """The way to a worker. `send` and `receive` raise ChannelLost when it is gone."""

    def send(self, message: ToDraft) -> None:
        """Never waits."""
        ...

    def receive(self, seconds: float) -> list[FromDraft]:
        """What has come; if nothing has, waits that long for the first."""
        ...

    def close(self) -> None:
        """Ends the worker; may be called again."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a draft is waited for: at the very first, to be loaded; and how long it may take to
    load, and to say anything at all, before it is given up and begun again."""

    start_seconds: float = 60.0
    load_seconds: float = 600.0
    answer_seconds: float = 30.0


class RemoteDrafter:
    """A draft at the other end of a link, for all styles of drafting; `StyledDrafter` gives it one.

    In a style of lock-step it is waited for in every step until it has made its forwards, as the
    paper does; else what is there is taken."""

    def __init__(
        self,
        open_link: Callable[[], Link],
        patience: Patience | None = None,
        clock: Callable[[], float] = perf_counter,
        loads: Callable[[bool], None] = lambda is_loading: None,
    ) -> None:
        """`loads` is told when the draft begins to load, and when that is over; perhaps again."""
        self._open_link = open_link
        self._loads = loads
        self._patience = patience or Patience()
        self._clock = clock
        self._link: Link | None = None
        self._owner = os.getpid()
        self.was_begun = False  # a draft, ever
        self._ready = self._waited = False
        self._given: list[int] = []  # the list that was followed last,
        self._text: list[int] = []  # its tokens then, as the tree follows,
        self._known = 0  # and how much of it the worker was told
        self._text_number = 0
        self._alternation = Alternation()
        self._is_resting = True  # no answer is under way
        self._order: _Order | None = None
        self._limit = 0
        self._heard = 0  # how many forwards of this worker were told
        self._told = 0  # number of the last message, and
        self._answered = 0  # of the last one that the worker took in,
        self._done = 0  # and of the last one for which it has made its forwards
        self._told_at = self._opened_at = 0.0
        self._silent_calls = 0
        self._tree = DraftTree()
        self.pace = Pace()
        self._left_at: float | None = None  # when the loop was last told what is pending
        self._forwards: list[DraftForward] = []
        self._pause = 0.0
        self._retry_at = 0.0
        self._warned = False

    # -- what the loops ask ----------------------------------------------------------------------

    def launch(self) -> None:
        """Begins the draft, so that it is loaded when it is needed."""
        with self._whole():
            self._drop_if_forked()
            if self._link is None and self._clock() >= self._retry_at:
                self._guarded(self._open)

    def is_ready(self) -> bool:
        """Whether the draft is loaded. If there is none, begins one."""
        if self._ready and self._owner == os.getpid():
            return True
        self.launch()
        self.hear_if_loading()
        return self._ready

    def hear_if_loading(self) -> None:
        """Notices that the draft is loaded, also while no method asks for it."""
        if self._link is None or self._ready:
            return
        with self._whole():
            self._drop_if_forked()
            self._guarded(self._hear)
            self._guarded(self._check_silence)

    def wait_until_ready(self) -> bool:
        """Waits until the draft is loaded, has failed, or has taken too long; whether it is."""
        stop = self._clock() + self._patience.start_seconds
        self.launch()
        with self._whole():
            while self._link is not None and not self._ready and self._clock() < stop:
                self._guarded(self._hear, min(1.0, stop - self._clock()))
                self._guarded(self._check_silence)
        return self._ready

    def follow(self, tokens: Tokens, limit: int, request: Request, style: DraftStyle) -> Pending:
        """As `BackgroundDrafter.follow`."""
        with self._whole():
            return self._follow(as_list(tokens), limit, _Order(request, style))

    def _follow(self, tokens: list[int], limit: int, order: "_Order") -> Pending:
        if not self._waited:
            self._waited = True
            self.wait_until_ready()
        if self._alternation.is_likely and self._must_stand_aside(tokens, order):
            return Pending([])
        if self._left_at is not None:
            self.pace.stepped(self._clock() - self._left_at)
        self.launch()
        if order.style.lockstep:
            self._await_forwards()
        if self._done < self._told or not self._ready:
            self._guarded(self._catch_up)
        foreseen = self._tell(tokens, limit, order)
        forwards, self._forwards = tuple(self._forwards), []
        self._left_at = self._clock()
        return Pending(self._tree.best(limit), foreseen, forwards, self._text_number)

    def wait(self, pending: Pending, shown: int, limit: int) -> list[int]:
        """As `BackgroundDrafter.wait`."""
        with self._whole():
            return self._wait(pending, shown, limit)

    def _wait(self, pending: Pending, shown: int, limit: int) -> list[int]:
        self._drop_if_forked()
        if pending.text != self._text_number:  # another text has been followed since
            return pending.tokens[:limit]
        if self._is_drafting_on and shown < limit and self.pace.may_wait(shown):
            before, begun = len(pending.tokens), self._clock()
            self._await_tokens(min(limit, self.pace.wanted), begun + self.pace.longest_wait)
            self._left_at = self._clock()
            self.pace.waited(self._left_at - begun, before, len(self._tree.best(limit)))
        return self._tree.best(limit)

    @property
    def _is_drafting_on(self) -> bool:
        """Whether the draft is at work, for as long as it is left to."""
        is_at_work = self._link is not None and self._ready and self._done < self._told
        return is_at_work and self._order is not None and not self._order.style.lockstep

    def rest(self) -> None:
        with self._whole():
            self._drop_if_forked()
            self._left_at = None
            self._alternation.end()
            self._is_resting = True
            if self._link is not None and self._ready:
                self._guarded(self._send, Rest())

    def close(self) -> None:
        """Ends the worker; the next `follow` begins another one."""
        link, self._link = self._link, None
        self._ready = False
        self._loads(False)
        self._tree.clear()
        self._order = None  # what is told next begins a text
        if link is not None:
            link.close()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What is broken off within, by an interrupt anywhere, leaves no worker of which it is not
        known what it was told and has said."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    # -- telling ---------------------------------------------------------------------------------

    def _tell(self, tokens: list[int], limit: int, order: "_Order") -> bool | None:
        """Tells the worker what the text has become, if it had better draft; whether it had
        foreseen a correction."""
        foreseen = None
        if self._goes_on(tokens, order):
            new = tokens[len(self._text) :]
            foreseen = self._settle(new)
            self._text += new
        else:
            if not self._is_resting:
                self._alternation.owner_loses(self._order, self._text)
            self._tree.clear()
            self.pace.begins()
            self._text_number += 1
            self._text, self._order, self._known = list(tokens), order, 0
        self._given = tokens
        self._is_resting = False
        if self.pace.is_worth_drafting():
            self._guarded(self._send_text, limit)
        return foreseen

    def _goes_on(self, tokens: list[int], order: "_Order") -> bool:
        """Whether this is the text that was followed last, or how it goes on; in the same list it
        is, as the loops' only grow: to compare 32,000 tokens takes as long as a small draft."""
        if order != self._order:
            return False
        return tokens is self._given or tokens[: len(self._text)] == self._text

    def _must_stand_aside(self, tokens: list[int], order: "_Order") -> bool:
        """Whether another answer under way keeps the draft."""
        if self._order is None:
            return False
        if self._goes_on(tokens, order):
            self._alternation.owner_goes_on()
            return False
        return self._alternation.must_stand_aside(order, tokens)

    def _settle(self, new: list[int]) -> bool | None:
        """The text has grown by `new`: what is kept of the draft, and learnt of it."""
        kept, foreseen = self._tree.settle(new)
        self.pace.judged(kept, kept if foreseen is None else kept + 1, len(new))
        return foreseen

    def _send_text(self, limit: int) -> None:
        """What the worker does not know of the text."""
        link = self._link
        if link is None or not self._ready or self._order is None:
            return
        self._told += 1
        number, text = self._told, self._text_number
        if self._known:
            new = tuple(self._text[self._known :])
            link.send(Settled(number, text, self._known, new, limit, self._heard))
        else:
            whole = array("i", self._text).tobytes()
            request, style = self._order.request, self._order.style
            link.send(Begin(number, text, whole, limit, self._heard, request, style))
        self._known, self._limit = len(self._text), limit
        if self._answered == number - 1:
            self._told_at, self._silent_calls = self._clock(), 0

    def _send(self, message: ToDraft) -> None:
        if self._link is not None:
            self._link.send(message)

    # -- hearing ---------------------------------------------------------------------------------

    def _catch_up(self) -> None:
        """Takes in what has come; if nothing has, that may have lasted too long."""
        told = self._answered, self._ready
        self._hear()
        if told == (self._answered, self._ready):
            self._check_silence()

    def _hear(self, seconds: float = 0.0) -> None:
        """Takes in what has come; waits that long for it if nothing has."""
        if self._link is not None:
            for message in self._link.receive(max(seconds, 0.0)):
                self._take(message)

    def _take(self, message: FromDraft) -> None:
        if isinstance(message, Drafted):
            self._take_drafted(message)
        elif isinstance(message, Lost):
            if message.number == self._told:
                self._known = 0
                self._send_text(self._limit)
        elif isinstance(message, Ready):
            self._ready, self._order = True, None
            self._loads(False)
        else:
            raise ChannelLost(message.reason)

    def _take_drafted(self, message: Drafted) -> None:
        """Takes in what is drafted after the text as the worker had it, as far as it holds now."""
        heard = message.first + len(message.forwards)
        if heard < self._heard:
            return  # it comes late: another one has said more
        for forward in message.forwards[self._heard - message.first :]:
            self._forwards.append(forward)
            self.pace.drafted(forward.seconds)
        self._heard = heard
        self._answered = max(self._answered, message.number)
        self._done = max(self._done, message.number if message.done else 0)
        self._pause = 0.0
        if message.text == self._text_number:
            self._tree.replace(message.path, message.forks)
            self._tree.settle(self._text[message.start :])

    def _await_tokens(self, wanted: int, stop: float) -> None:
        """Waits until so many tokens are drafted, or nothing more is to come."""
        while self._link is not None and self._ready and self._done < self._told:
            seconds = stop - self._clock()
            if seconds <= 0 or len(self._tree.best(wanted)) >= wanted:
                return
            self._guarded(self._hear, seconds)

    def _await_forwards(self) -> None:
        """Lock-step: waits until the worker has made the forwards that it was told to."""
        stop = self._clock() + self._patience.answer_seconds
        while self._link is not None and self._ready and self._done < self._told:
            if self._clock() >= stop:
                self._fail("it does not answer")
            else:
                self._guarded(self._hear, stop - self._clock())

    def _check_silence(self) -> None:
        """Gives up a worker that has not answered for long, or not begun to work."""
        if self._link is None:
            return
        if not self._ready:
            if self._clock() - self._opened_at > self._patience.load_seconds:
                raise ChannelLost("it does not start")
            return
        if self._answered >= self._told:
            return
        self._silent_calls += 1
        silent = self._clock() - self._told_at > self._patience.answer_seconds
        if silent and self._silent_calls > _SILENT_CALLS:
            raise ChannelLost("it does not answer")

    # -- failing ---------------------------------------------------------------------------------

    def _open(self) -> None:
        self._owner, self.was_begun = os.getpid(), True
        self._heard, self._answered, self._done = 0, self._told, self._told
        self._loads(True)
        self._link = self._open_link()
        self._opened_at = self._clock()

    def _guarded(self, action: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        try:
            action(*arguments, **named)
        except (ChannelLost, OSError) as error:
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        """Leaves the draft out for now; warns the first time."""
        self.close()
        self._pause = min(max(2 * self._pause, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        self._retry_at = self._clock() + self._pause
        if not self._warned:
            self._warned = True
            text = f"the draft failed and is left out for now ({reason}); the answer stays the same"
            warnings.warn(text, DraftWarning, stacklevel=5)

    def _drop_if_forked(self) -> None:
        """A process that was forked leaves the worker to its parent and begins one of its own."""
        if self._link is not None and self._owner != os.getpid():
            self.close()


class _Order(NamedTuple):
    """What makes a text another one, besides its tokens."""

    request: Request
    style: DraftStyle


@dataclass(frozen=True, slots=True)
class StyledDrafter:
    """A background drafter (`drafting/base.py`): a remote one in a style."""

    remote: RemoteDrafter
    style: DraftStyle

    def follow(self, tokens: Tokens, limit: int, request: Request) -> Pending:
        return self.remote.follow(tokens, limit, request, self.style)

    def rest(self) -> None:
        self.remote.rest()

    def wait(self, pending: Pending, shown: int, limit: int) -> list[int]:
        return self.remote.wait(pending, shown, limit)

    def close(self) -> None:
        self.remote.close()
