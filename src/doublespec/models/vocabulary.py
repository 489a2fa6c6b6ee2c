"""A draft and a target must speak the same tokens, whatever size their output is padded to."""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from doublespec.errors import ModelError
from doublespec.models.base import (
    Branch,
    Chain,
    LanguageModel,
    Worth,
    can_branch,
    can_chain,
)
from doublespec.models.threads import Threads
from doublespec.noise import Heat
from doublespec.tokens import Tokens


def check_same_vocabulary(target: Mapping[str, int], draft: Mapping[str, int]) -> None:
    """Raises ModelError that names the first token (by id) on which two vocabularies differ."""
    if target == draft:
        return
    target_tokens = {token_id: token for token, token_id in target.items()}
    draft_tokens = {token_id: token for token, token_id in draft.items()}
    for token_id in sorted(target_tokens.keys() | draft_tokens.keys()):
        ours, theirs = target_tokens.get(token_id), draft_tokens.get(token_id)
        if ours != theirs:
            raise ModelError(
                f"target and draft must have the same vocabulary; token {token_id} is {ours!r} in "
                f"the target and {theirs!r} in the draft: choose a draft of the same family"
            )


class CommonVocabulary:
    """A draft model that chooses only among the token ids that the target has too. Ids of the
    target that it does not know are another token to it: what follows is guessed worse."""

    def __init__(self, model: LanguageModel, size: int) -> None:
        self._model = model
        self._size = min(size, model.vocab_size)
        self._knows_all = model.vocab_size >= size

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def max_length(self) -> int:
        return self._model.max_length

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        rows = self._model.logits(self._known(tokens), last, prompt_length)
        return rows if rows.shape[1] == self._size else rows[:, : self._size]

    @property
    def threads(self) -> Threads | None:
        """What chooses the number of its threads, if anything does."""
        chosen: Threads | None = getattr(self._model, "threads", None)
        return chosen

    @property
    def can_chain(self) -> bool:
        return can_chain(self._model)

    def chain(
        self,
        tokens: Tokens,
        most: int,
        size: int,
        ends: Collection[int],
        worth: Worth,
        heat: Heat | None = None,
    ) -> Chain:
        assert can_chain(self._model)
        size = min(size, self._size)
        return self._model.chain(self._known(tokens), most, size, ends, worth, heat)

    @property
    def can_branch(self) -> bool:
        return can_branch(self._model)

    def branch_logits(
        self, tokens: Tokens, last: int, branches: Sequence[Branch], prompt_length: int
    ) -> tuple[Tensor, Tensor]:
        assert can_branch(self._model)
        known = [Branch(b.start, tuple(self._known(b.tokens))) for b in branches]
        rows, ends = self._model.branch_logits(self._known(tokens), last, known, prompt_length)
        return rows[:, : self._size], ends[:, : self._size]

    def _known(self, tokens: Tokens) -> Tokens:
        if self._knows_all:
            return tokens
        return [token if token < self._size else 0 for token in tokens]
