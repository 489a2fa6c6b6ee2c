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
        """If it `chains`, a model that can goes on by itself where the helper has no run, and
        without it from then on."""
        self._model = model
        self._chains = chains
        self.steps = steps
        self._helper = helper

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        limit = min(limit, self._model.max_length - len(tokens))
        chains = self._chains and request.params.is_simple
        drafted: list[int] = []
        for made in range(self.steps):
            left = limit - len(drafted)
            if left <= 0:
                break
            ahead = [*tokens, *drafted]
            run: Tokens = []
            if not chains or not made:
                asked = ahead if drafted else tokens  # by the same list, sources know a text again
                run = self._helper.propose(asked, left - 1, request)
            if chains and not run and can_chain(self._model):
                told = self._model.vocab_size, request.end_ids, Worth(), request.params.heat
                chain = self._model.chain(ahead, min(self.steps - made, left), *told)
                if chain.tokens:
                    drafted += chain.tokens
                    break
            new = advance(self._model, ahead, run, request).tokens
            end = next((i + 1 for i, token in enumerate(new) if token in request.end_ids), None)
            drafted += new[:end]
            if end is not None:
                break
        return drafted[: max(limit, 0)]
