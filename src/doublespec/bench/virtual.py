"""Virtual time: target and draft on clocks of their own, and a link between them with a delay.

The loops, the drafter and its worker are the ones that run for real; here their forwards take as
long as a machine's numbers say, and nothing waits. Deterministic to the last bit.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from torch import Tensor

from doublespec.bench.replay import ReplayedModel
from doublespec.compiled.guesser import Guesser
from doublespec.drafting.base import Drafter, Guess
from doublespec.drafting.lookup import Helper
from doublespec.drafting.messages import FromDraft, Ready, Rest, ToDraft
from doublespec.drafting.worker import Worker
from doublespec.models.base import Branch, Chain, Worth
from doublespec.noise import Heat
from doublespec.retrieval.recurrence import Foresight, Judged
from doublespec.sampling import Request
from doublespec.tokens import Tokens, common_prefix

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
    for each branch. `after` is called when one is over. If it goes on by itself, a forward that
    follows another one in the same call takes `spared` seconds less."""

    can_branch = True

    def __init__(
        self,
        model: ReplayedModel,
        seconds: Seconds,
        clock: VirtualClock,
        after: Callable[[], None] | None = None,
        branch_seconds: float = 0.0,
        spared: float | None = None,
    ) -> None:
        self.model = model
        self._seconds = seconds
        self._clock = clock
        self._after = after
        self._branch_seconds = branch_seconds
        self._spared = spared
        self.can_settle = self.can_chain = spared is not None
        self.max_length = model.max_length
        self.forwards = 0

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        logits = self.model.logits(tokens, last, prompt_length)
        self._pass_time()
        return logits

    def settle(
        self,
        tokens: Tokens,
        guess: Tokens,
        passes: int,
        ends: Collection[int],
        heat: Heat | None,
        guesser: Guesser | None = None,
        most: int | None = None,
    ) -> list[int]:
        """As `SettlingModel` says, at temperature 0; leaves a single forward to others."""
        assert heat is None
        text, new, most = list(tokens), list[int](), len(guess) + passes if most is None else most
        guess = list(guess)
        for number in range(passes if passes > 1 else 0):
            chosen = self._choices([*text, *guess], len(guess) + 1, follows=number > 0)
            settled, guess = chosen[: common_prefix(chosen, guess) + 1], []
            for left, token in zip(reversed(range(len(settled))), settled, strict=True):
                text.append(token)
                new.append(token)
                is_over = token in ends or len(new) == most
                if guesser is not None:
                    guess = guesser.hear(token, more=left > 0 and not is_over)
                    guess = guess[: max(0, min(guesser.most, most - len(new) - 1))]
                if is_over:
                    return new
        return new

    def chain(
        self,
        tokens: Tokens,
        most: int,
        size: int,
        ends: Collection[int],
        worth: Worth,
        heat: Heat | None = None,
    ) -> Chain:
        """As `ChainingModel` says, at temperature 0."""
        assert heat is None
        text, chain, reach = list(tokens), Chain([], []), 1.0
        while len(chain.tokens) < most and (not chain.tokens or reach > worth.least):
            (row,) = self._rows(text, 1, follows=bool(chain.tokens))
            (first, second), (token, _) = (found.tolist() for found in row[:size].int().topk(2))
            chain.tokens.append(token)
            chain.behind.append(float(first - second))
            text.append(token)
            reach *= worth.chances[bisect_right(worth.edges, chain.behind[-1])]
            if token in ends:
                break
        return chain

    def _choices(self, text: list[int], last: int, *, follows: bool) -> list[int]:
        chosen: list[int] = self._rows(text, last, follows=follows).argmax(dim=-1).tolist()
        return chosen

    def _rows(self, text: list[int], last: int, *, follows: bool) -> Tensor:
        """Of a forward that may follow another one in the same call."""
        logits = self.model.logits(list(text), last, 1)
        self._pass_time(self._spared or 0.0 if follows else 0.0)
        return logits

    def branch_logits(
        self, tokens: Tokens, last: int, branches: Sequence[Branch], prompt_length: int
    ) -> tuple[Tensor, Tensor]:
        logits = self.model.branch_logits(tokens, last, branches, prompt_length)
        self._clock.now += self._branch_seconds * len(branches)
        self._pass_time()
        return logits

    def _pass_time(self, spared: float = 0.0) -> None:
        self._clock.now += max(0.0, self._seconds(self.model.rows) - spared)
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


class TimedForesight:
    """Guesses that are judged in virtual time: in so many seconds by their tokens."""

    def __init__(self, foresight: Foresight, seconds: Seconds) -> None:
        self._foresight = foresight
        self._seconds = seconds
        self.guesser = foresight.guesser
        self.shorten, self.guess, self.hear = foresight.shorten, foresight.guess, foresight.hear

    def over(self, new: Tokens) -> list[Judged]:
        judged = self._foresight.over(new)
        return [guess._replace(seconds=self._seconds(len(guess.shown))) for guess in judged]


class TimedCompleter:
    """The same as `TimedDrafter` for what completes a draft; what is guessed ahead is judged in so
    many seconds by its tokens."""

    def __init__(
        self, helper: Helper, seconds: float, clock: VirtualClock, judging: Seconds
    ) -> None:
        self._helper = helper
        self._seconds = seconds
        self._clock = clock
        self._judging = judging

    def complete(self, tokens: Tokens, drafted: list[int], limit: int, request: Request) -> Guess:
        self._clock.now += self._seconds
        return self._helper.complete(tokens, drafted, limit, request)

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        return self.complete(tokens, [], limit, request).tokens

    def guess_ahead(self, tokens: Tokens, most: int, request: Request) -> Foresight | None:
        ahead = self._helper.guess_ahead(tokens, most, request)
        return None if ahead is None else TimedForesight(ahead, self._judging)


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
