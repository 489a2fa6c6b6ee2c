"""What the rest of the program asks of a model: logits for a text."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self, TypeGuard

import torch
from torch import Tensor

from doublespec.compiled.guesser import Guesser
from doublespec.noise import Heat
from doublespec.tokens import Tokens


class LanguageModel(Protocol):
    """A causal language model under the full-sequence contract: it is handed the whole text each
    time, keeps a private cache and finds out itself what changed."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_length(self) -> int:
        """The longest text it can read, in tokens."""
        ...

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        """Logits (last, V) for the last positions of `tokens`; the final row predicts what comes
        next. Tokens before `prompt_length` are the prompt, the others an answer to it (the two
        may be computed in different shapes, see `models/shapes.py`)."""
        ...


class LoadedModel(LanguageModel, Protocol):
    """A language model as it was loaded."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def row_counts(self) -> tuple[int, ...]:
        """The row counts that blocks of an answer come in."""
        ...

    def fastest(self) -> Self:
        """The same weights in the fastest shapes: the baseline of benchmarks. It may share this
        one's cache."""
        ...


@dataclass(frozen=True, slots=True)
class Branch:
    """Another continuation of a text: its first `start` tokens, then `tokens`."""

    start: int
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        assert self.start > 0
        assert self.tokens

    @property
    def stop(self) -> int:
        """The length of the whole text that it stands for."""
        return self.start + len(self.tokens)


class BranchingModel(LanguageModel, Protocol):
    """A language model that can read several continuations of a text at once."""

    @property
    def can_branch(self) -> bool:
        """Whether it can as it was loaded: in canonical shapes it cannot."""
        ...

    def branch_logits(
        self, tokens: Tokens, last: int, branches: Sequence[Branch], prompt_length: int
    ) -> tuple[Tensor, Tensor]:
        """As `logits`, and in the same forward a row (len(branches), V) for each branch: what
        follows its whole text. Branches start within `tokens`, end within `max_length`, and are
        forgotten afterwards."""
        ...


class Worth(NamedTuple):
    """While a chain is worth going on with: as long as the product of its choices' chances is above
    `least`. A choice has the chance `chances[i]`, i being how many of the `edges` the second choice
    lies behind it."""

    edges: Sequence[float] = ()
    chances: Sequence[float] = (1.0,)
    least: float = 0.0


class Chain(NamedTuple):
    """The tokens with which a text goes on, and how far the second choice lay behind each."""

    tokens: list[int]
    behind: list[float]


class ChainingModel(LanguageModel, Protocol):
    """A language model that can go on from its own choices."""

    @property
    def can_chain(self) -> bool: ...

    def chain(
        self,
        tokens: Tokens,
        most: int,
        size: int,
        ends: Collection[int],
        worth: Worth,
        heat: Heat | None = None,
    ) -> Chain:
        """Up to `most` tokens after a text, each the likeliest of the first `size` ids (the lowest
        of several), or sampled with some `heat`: fewer behind one of `ends`, or where more are not
        `worth` it, or where one was held up; none before logits that are not finite. The model must
        have room for all but the last."""
        ...


class SettlingModel(LanguageModel, Protocol):
    """A language model that can choose tokens by itself, exactly as `sampling.choose` does."""

    @property
    def can_settle(self) -> bool: ...

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
        """What up to so many forwards settle after a text: the first of them as much of `guess` as
        equals its choices, and one more, each other the same of what the `guesser` says, or one
        token; `most` at most (None: `len(guess) + passes`). Fewer behind one of `ends`, or where
        one was held up; none where much is unread, and none before logits that are not finite. The
        model must have room for all but the last."""
        ...


def can_chain(model: LanguageModel) -> TypeGuard[ChainingModel]:
    return bool(getattr(model, "can_chain", False))


def can_settle(model: LanguageModel) -> TypeGuard[SettlingModel]:
    return bool(getattr(model, "can_settle", False))


def can_branch(model: LanguageModel) -> TypeGuard[BranchingModel]:
    return bool(getattr(model, "can_branch", False))
