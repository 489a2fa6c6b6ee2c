"""A world in which everything goes wrong that can, in virtual time and from a seed.

Messages between target and draft are lost, late, doubled and out of order; the draft dies, hangs,
raises, never starts. The drafter, its worker and the loops are the real ones.
"""

import random
from bisect import insort
from collections.abc import Callable

from torch import Tensor

from doublespec.bench.virtual import VirtualClock, VirtualLink
from doublespec.config import DraftStyle, ForkSettings
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.background import Patience, RemoteDrafter
from doublespec.drafting.channel import ChannelLost
from doublespec.drafting.messages import Ready
from doublespec.drafting.worker import Draft, Worker
from doublespec.models.base import Branch, BranchingModel
from doublespec.models.toy import ToyModel
from doublespec.tokens import Tokens


class Faults:
    """How bad it is: chances for each message, the longest delay, and how a worker ends."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.lost = chance.choice([0.0, 0.0, 0.05, 0.3])
        self.doubled = chance.choice([0.0, 0.1, 0.3])
        self.delay = chance.choice([0.0, 0.001, 0.02])  # forwards take 0.001 to 0.01
        self.dies = chance.choice([0.0, 0.01, 0.1])
        self.raises = chance.choice([0.0, 0.0, 0.02])
        self.never_ready = chance.random() < 0.1


class ChaosLink(VirtualLink):
    """A link on which messages suffer, to a worker that may die at any call."""

    def __init__(
        self, worker: Worker, clock: VirtualClock, beside: VirtualClock, faults: Faults
    ) -> None:
        self._faults = faults
        super().__init__(worker, clock, beside)

    def send(self, message: object) -> None:
        self._may_die()
        super().send(message)  # type: ignore[arg-type]

    def receive(self, seconds: float) -> list:
        self._may_die()
        return super().receive(seconds)

    def _post(self, box: list, time: float, message: object) -> None:
        faults, chance = self._faults, self._faults.chance
        if chance.random() < faults.lost or (isinstance(message, Ready) and faults.never_ready):
            return
        for _ in range(1 + (chance.random() < faults.doubled)):
            arrival = time + faults.delay * chance.random()
            insort(box, (arrival, message), key=lambda entry: entry[0])

    def _may_die(self) -> None:
        if self._faults.chance.random() < self._faults.dies:
            raise ChannelLost("its process ended")


class TimedToy:
    """A toy whose forwards take virtual time, and that may raise."""

    can_branch = True

    def __init__(
        self,
        model: ToyModel,
        clock: VirtualClock,
        seconds: Callable[[], float],
        raises: Callable[[], bool] = lambda: False,
    ) -> None:
        self._model: BranchingModel = model
        self._clock = clock
        self._seconds = seconds
        self._raises = raises
        self.vocab_size = model.vocab_size
        self.max_length = model.max_length

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        self._pass_time()
        return self._model.logits(tokens, last, prompt_length)

    def branch_logits(
        self, tokens: Tokens, last: int, branches: list[Branch], prompt_length: int
    ) -> tuple[Tensor, Tensor]:
        self._pass_time()
        return self._model.branch_logits(tokens, last, branches, prompt_length)

    def _pass_time(self) -> None:
        self._clock.now += self._seconds()
        if self._raises():
            raise ChannelLost("it raised")


def chaotic_drafter(
    chance: random.Random, clock: VirtualClock, draft: ToyModel, make_helper: Callable
) -> tuple[RemoteDrafter, DraftStyle]:
    """A remote drafter in such a world, and a style for it."""
    faults = Faults(chance)
    style = DraftStyle(
        lockstep=chance.random() < 0.3,
        gamma=chance.randint(1, 5),
        forks=ForkSettings(chance.choice([0, 1, 4]), chance.choice([2, 16])),
    )

    def open_link() -> ChaosLink:
        beside = VirtualClock()
        beside.now = clock.now
        model = TimedToy(
            draft,
            beside,
            lambda: 0.001 * chance.random(),
            lambda: chance.random() < faults.raises,
        )
        steps = style.gamma if style.lockstep else None

        def make(style: DraftStyle) -> Draft:
            return Draft(DraftAhead(model, make_helper(), style.forks), steps)

        return ChaosLink(Worker(make, beside), clock, beside, faults)

    patience = Patience(start_seconds=0.05, load_seconds=0.1, answer_seconds=0.05)
    return RemoteDrafter(open_link, patience, clock), style
