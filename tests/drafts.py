"""Background drafters made of toys, for tests."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from doublespec.config import DraftStyle, ForkSettings, RetrievalSettings
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.background import Patience, RemoteDrafter, StyledDrafter
from doublespec.drafting.base import Drafter, NoDrafter
from doublespec.drafting.links import InlineLink, ProcessLink, ThreadLink
from doublespec.drafting.retrieved import Retrieval
from doublespec.drafting.worker import Draft, Worker
from doublespec.models.base import LanguageModel
from doublespec.models.toy import ToyModel
from doublespec.retrieval.history import open_history

LOCKSTEP = DraftStyle(lockstep=True)
FREE = DraftStyle()


def worker(
    model: LanguageModel, steps: int | None = 4, helper: Drafter | None = None, forks: int = 0
) -> Worker:
    draft = Draft(DraftAhead(model, helper or NoDrafter(), ForkSettings(forks)), steps)
    return Worker(lambda style: draft)


def toy() -> Worker:
    """Four forwards for each step, by a toy that always agrees."""
    return worker(ToyModel())


def toy_ahead() -> Worker:
    """Goes ahead as far as is of use, with forks, by a toy that mostly agrees."""
    return worker(ToyModel(agreement=0.8), None, forks=4)


class Echo(ToyModel):
    """Chooses what it is shown, so that whatever retrieval offers is drafted."""

    def logits(self, tokens, last, prompt_length):
        shown = [*tokens[len(tokens) - last + 1 :], 0]
        return torch.nn.functional.one_hot(torch.tensor(shown), self.vocab_size).float()


@dataclass(frozen=True)
class EchoRecipe:
    """Drafts what an inherited history offers."""

    history: int

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.history,)

    def __call__(self) -> Worker:
        helper = Retrieval(RetrievalSettings(), open_history(self.history)).lookup()
        return worker(Echo(1000), 1, helper)


class Failing(ToyModel):
    """Raises from the fifth forward on."""

    def logits(self, tokens, last, prompt_length):
        if self.forwards == 4:
            raise RuntimeError("out of luck")
        return super().logits(tokens, last, prompt_length)


def failing() -> Worker:
    return worker(Failing())


def unbuildable() -> Worker:
    raise OSError("no such model")


Make = Callable[[], Worker]


def inline(make: Make = toy) -> StyledDrafter:
    return StyledDrafter(RemoteDrafter(lambda: InlineLink(make)), LOCKSTEP)


def threaded(make: Make = toy, style: DraftStyle = LOCKSTEP) -> StyledDrafter:
    return StyledDrafter(RemoteDrafter(lambda: ThreadLink(make)), style)


def in_process(
    make: Make = toy, style: DraftStyle = LOCKSTEP, patience: Patience | None = None
) -> StyledDrafter:
    return StyledDrafter(RemoteDrafter(lambda: ProcessLink(make, 1), patience), style)
