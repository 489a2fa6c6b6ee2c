"""Small fakes of a language model, for tests and for measuring the engine without a model.

A toy's logits depend on the last two tokens through a fixed random table, so that its text has the
statistics that matter here: it repeats now and then, and near-ties occur.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from doublespec.models.base import Branch
from doublespec.tokens import Tokens

_ROWS = 1009


class ToyModel:
    """A deterministic toy. Two toys of the same `seed` agree at a share of `agreement` of contexts;
    0 never agrees, 1 always does."""

    def __init__(
        self,
        vocab_size: int = 32,
        *,
        seed: int = 0,
        agreement: float = 1.0,
        max_length: int = 1 << 20,
        sharpness: float = 2.0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(_ROWS, vocab_size, generator=generator) * sharpness
        differs = torch.rand(_ROWS, generator=generator) >= agreement
        table[differs] = table[differs].roll(1, dims=-1)
        self._table = table
        self._max_length = max_length
        self.forwards = 0

    @property
    def vocab_size(self) -> int:
        return self._table.shape[1]

    @property
    def max_length(self) -> int:
        return self._max_length

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        assert 0 < last <= len(tokens) <= self._max_length
        self.forwards += 1
        recent = [0, *tokens[max(len(tokens) - last - 1, 0) :]][-last - 1 :]
        return self._table[[_row(before, token) for before, token in pairwise(recent)]]

    @property
    def can_branch(self) -> bool:
        return True

    def branch_logits(
        self, tokens: Tokens, last: int, branches: Sequence[Branch], prompt_length: int
    ) -> tuple[Tensor, Tensor]:
        assert all(b.start <= len(tokens) and b.stop <= self._max_length for b in branches)
        ends = [[tokens[branch.start - 1], *branch.tokens][-2:] for branch in branches]
        rows = [_row(before, token) for before, token in ends]
        return self.logits(tokens, last, prompt_length), self._table[rows]


def _row(before: int, token: int) -> int:
    return (before * 613 + token * 31) % _ROWS
