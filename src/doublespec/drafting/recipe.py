"""The recipe of a draft: plain values from which this process, or another one, builds it."""

from dataclasses import dataclass

from doublespec.config import RetrievalSettings
from doublespec.drafting.base import Drafter, NoDrafter
from doublespec.drafting.lookup import LookupDrafter
from doublespec.drafting.model import ModelDrafter
from doublespec.models.base import LanguageModel
from doublespec.models.devices import find_device, find_dtype
from doublespec.models.load import forward_seconds, load_model
from doublespec.models.vocabulary import CommonVocabulary
from doublespec.models.weights import open_checkpoint
from doublespec.retrieval.base import TokenIndex
from doublespec.retrieval.context import NgramIndex, context_sources
from doublespec.retrieval.layered import LayeredIndex

_MOST_STEPS = 16


@dataclass(frozen=True, slots=True)
class DraftRecipe:
    """A draft model: where it is, where it runs, and how many forwards it makes a guess.

    `steps` None means as many as fit in one forward of the target, `target_seconds`; `retrieval`
    None leaves draft-side retrieval out.
    """

    name: str
    device: str | None
    dtype: str | None
    vocab_size: int
    max_length: int
    steps: int | None
    target_seconds: float
    retrieval: RetrievalSettings | None

    def load(self) -> LanguageModel:
        checkpoint = open_checkpoint(self.name)
        device = find_device(self.device)
        dtype = find_dtype(self.dtype, device)
        model = load_model(checkpoint, device, dtype, canonical=False, max_length=self.max_length)
        return CommonVocabulary(model, self.vocab_size)

    def __call__(self) -> Drafter:
        return self.drafter(self.load())

    def drafter(self, model: LanguageModel) -> Drafter:
        """The drafter around a model that is loaded already."""
        helper = NoDrafter() if self.retrieval is None else make_lookup(self.retrieval)
        return ModelDrafter(model, self.steps or self._measured_steps(model), helper)

    def _measured_steps(self, model: LanguageModel) -> int:
        ratio = self.target_seconds / forward_seconds(model)
        return max(1, min(round(ratio), _MOST_STEPS))


def make_index(settings: RetrievalSettings) -> TokenIndex:
    """The published search where n-grams are limited, else the best there is."""
    if settings.ngram is not None:
        return NgramIndex(settings.ngram, 1)
    if settings.row_cost is None:
        return LayeredIndex(context_sources())
    costs = [1.0 + settings.row_cost * n for n in range(settings.tokens + 1)]
    return LayeredIndex(context_sources(), costs)


def make_lookup(settings: RetrievalSettings) -> LookupDrafter:
    return LookupDrafter(make_index(settings), settings.tokens)
