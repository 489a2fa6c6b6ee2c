"""Guesses from a draft model, whose every forward may judge a retrieved run."""

from doublespec.drafting.base import Drafter
from doublespec.models.base import LanguageModel, Worth, can_chain
from doublespec.oracle import advance
from doublespec.sampling import Request
from doublespec.tokens import Tokens


class ModelDrafter:
    """Proposes what `steps` forwards of a draft model settle.

    With a `helper` that retrieves, a forward settles 1 + h tokens instead of one: Double's
    draft-side retrieval (arXiv 2601.05524), the reason why its ceiling lies above c = t_T / t_D.
    """

    def __init__(
        self, model: LanguageModel, steps: int, helper: Drafter, *, chains: bool = False
    ) -> None:
        """If it `chains`, a model that can goes on by itself after the first forward, without the
        helper."""
        self._model = model
        self._chains = chains
        self.steps = steps
        self._helper = helper

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        limit = min(limit, self._model.max_length - len(tokens))
        drafted: list[int] = []
        for _ in range(self.steps):
            if len(drafted) >= limit:
                break
            ahead = [*tokens, *drafted]
            asked = ahead if drafted else tokens  # by the same list, sources know a text again
            run = self._helper.propose(asked, limit - len(drafted) - 1, request)
            new = advance(self._model, ahead, run, request).tokens
            end = next((i + 1 for i, token in enumerate(new) if token in request.end_ids), None)
            drafted += new[:end]
            if end is not None:
                break
            more = min(self.steps - 1, limit - len(drafted))
            params = request.params
            if self._chains and more > 0 and params.is_simple and can_chain(self._model):
                told = more, self._model.vocab_size, request.end_ids, Worth(), params.heat
                drafted += self._model.chain([*tokens, *drafted], *told).tokens
                break
        return drafted[: max(limit, 0)]
