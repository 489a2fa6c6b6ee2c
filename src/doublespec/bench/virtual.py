"""Virtual time: target and draft on clocks of their own, and a link between them with a delay.

The loops, the drafter and its worker are the ones that run for real; here their forwards take as
long as a machine's numbers say, and nothing waits. Deterministic to the last bit.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor

from doublespec.bench.replay import ReplayedModel
from doublespec.drafting.base import Drafter, Guess
from doublespec.drafting.lookup import Helper
from doublespec.drafting.messages import FromDraft, Ready, Rest, ToDraft
from doublespec.drafting.worker import Worker
from doublespec.models.base import Branch
from doublespec.retrieval.recurrence import Recurrence
from doublespec.sampling import Request
from doublespec.tokens import Tokens

M = TypeVar("M")
Seconds = Callable[[int], float]  # of a forward over so many rows


class VirtualClock:
    """Seconds that pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedModel:
    """A replayed model whose forwards take virtual time, by their rows, and `branch_seconds` more
    for each branch. `after` is called when one
    is over."""

    can_branch = True

    def __init__(
        self,
        model: ReplayedModel,
        seconds: Seconds,
        clock: VirtualClock,
        after: Callable[[], None] | None = None,
        branch_seconds: float = 0.0,
    ) -> None:
        self._model = model
        self._seconds = seconds
        self._clock = clock
        self._after = after
        self._branch_seconds = branch_seconds
        self.vocab_size = model.vocab_size
        self.max_length = model.max_length
        self.forwards = 0

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        logits = self._model.logits(tokens, last, prompt_length)
        self._pass_time()
        return logits

    def branch_logits(
        self, tokens: Tokens, last: int, branches: Sequence[Branch], prompt_length: int
    ) -> tuple[Tensor, Tensor]:
        logits = self._model.branch_logits(tokens, last, branches, prompt_length)
        self._clock.now += self._branch_seconds * len(branches)
        self._pass_time()
        return logits

    def _pass_time(self) -> None:
        self._clock.now += self._seconds(self._model.rows)
        self.forwards += 1
        if self._after is not None:
            self._after()


class TimedDrafter:
    """A drafter whose every proposal takes virtual time."""

    def __init__(self, drafter: Drafter, seconds: float, clock: VirtualClock) -> None:
        self._drafter = drafter
        self._seconds = seconds
        self._clock = clock

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        self._clock.now += self._seconds
        return self._drafter.propose(tokens, limit, request)


class TimedCompleter:
    """The same for what completes a draft."""

    def __init__(self, helper: Helper, seconds: float, clock: VirtualClock) -> None:
        self._helper = helper
        self._seconds = seconds
        self._clock = clock

    def complete(self, tokens: Tokens, drafted: list[int], limit: int, request: Request) -> Guess:
        self._clock.now += self._seconds
        return self._helper.complete(tokens, drafted, limit, request)

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        return self.complete(tokens, [], limit, request).tokens

    def guess_ahead(self, tokens: Tokens, most: int, request: Request) -> Recurrence | None:
        return self._helper.guess_ahead(tokens, most, request)


class VirtualLink:
    """A link to a worker on a clock of its own; messages take `delay` seconds each way, and
    `follow_seconds` of the time of the one who tells the worker what the text has become."""

    def __init__(
        self,
        worker: Worker,
        clock: VirtualClock,
        worker_clock: VirtualClock,
        delay: float = 0.0,
        follow_seconds: float = 0.0,
    ) -> None:
        self._worker = worker
        self._clock = clock
        self._worker_clock = worker_clock
        self._delay = delay
        self._follow_seconds = follow_seconds
        self._inbox: list[tuple[float, ToDraft]] = []  # by arrival
        self._outbox: list[tuple[float, FromDraft]] = []
        self._worker_clock.now = max(self._worker_clock.now, clock.now)
        self._post(self._outbox, clock.now, Ready())

    def send(self, message: ToDraft) -> None:
        if not isinstance(message, Rest):
            self._clock.now += self._follow_seconds
        self._post(self._inbox, self._clock.now, message)

    def receive(self, seconds: float) -> list[FromDraft]:
        self.run_until(self._clock.now)
        if seconds > 0 and not self._arrived(self._clock.now):
            self._wait(self._clock.now + seconds)
        messages = self._arrived(self._clock.now)
        del self._outbox[: len(messages)]
        return messages

    def close(self) -> None:
        self._inbox.clear()
        self._outbox.clear()

    def run_until(self, time: float) -> float:
        """Lets the worker begin all that it would begin before `time`; its busy seconds."""
        busy = 0.0
        while True:
            self._deliver()
            if self._worker.is_idle():
                if not self._inbox or self._inbox[0][0] > time:
                    return busy
                self._worker_clock.now = max(self._worker_clock.now, self._inbox[0][0])
            elif self._worker_clock.now >= time:
                return busy
            else:
                busy += self._work()

    def busy_within(self, seconds: float) -> float:
        """For how many of the next `seconds` the worker works, if it is sent nothing more."""
        begun = max(0.0, self._worker_clock.now - self._clock.now)
        return min(seconds, begun + self.run_until(self._clock.now + seconds))

    def share_device(self) -> None:
        """The target has computed on the worker's own device: what the worker did meanwhile has
        delayed the target, and what the target did has delayed the worker."""
        self._clock.now += self.run_until(self._clock.now)
        self._worker_clock.now = max(self._worker_clock.now, self._clock.now)

    def _deliver(self) -> None:
        """Hands the worker the messages that have reached it."""
        while self._inbox and self._inbox[0][0] <= self._worker_clock.now:
            _, message = self._inbox.pop(0)
            self._say(self._worker.take(message))

    def _work(self) -> float:
        begun = self._worker_clock.now
        self._say([self._worker.work()])
        return self._worker_clock.now - begun

    def _say(self, messages: list[FromDraft]) -> None:
        for message in messages:
            self._post(self._outbox, self._worker_clock.now, message)

    def _post(self, box: list[tuple[float, M]], time: float, message: M) -> None:
        """Sends a message at a time: it arrives when its delay is over."""
        box.append((time + self._delay, message))

    def _arrived(self, time: float) -> list[FromDraft]:
        return [message for arrival, message in self._outbox if arrival <= time]

    def _wait(self, stop: float) -> None:
        """Time passes until something arrives, or until `stop`."""
        while not self._outbox and not (self._worker.is_idle() and not self._inbox):
            if self._worker.is_idle():
                self._worker_clock.now = max(self._worker_clock.now, self._inbox[0][0])
            self._deliver()
            if not self._worker.is_idle():
                self._work()
        arrival = self._outbox[0][0] if self._outbox else stop
        self._clock.now = min(max(self._clock.now, arrival), stop)
