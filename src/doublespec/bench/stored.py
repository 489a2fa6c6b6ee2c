"""The rule against flattery: no answer is measured that stands in a datastore."""

from collections.abc import Iterable, Sequence

from doublespec.bench.questions import Item
from doublespec.llm import LLM
from doublespec.retrieval.datastore import CONTEXT, Datastore
from doublespec.sampling import SamplingParams
from doublespec.tokens import Tokens


def is_stored(answer: Tokens, stores: Iterable[Datastore]) -> bool:
    """Whether CONTEXT tokens in a row of an answer are in a store (a shorter one never is)."""
    return any(_is_in(answer, store) for store in stores)


def without_stored(
    llm: LLM, items: Sequence[Item], stores: Sequence[Datastore], params: SamplingParams
) -> list[Item]:
    """The prompts whose answers are not in the stores: neither the references that came with them,
    nor what plain decoding answers, which is what every method will."""

    def is_clean(item: Item) -> bool:
        references = map(llm.codec.encode, item.references)
        if any(is_stored(reference, stores) for reference in references):
            return False
        return not is_stored(llm.chat(item.messages, params, method="ar").tokens, stores)

    return [item for item in items if is_clean(item)]


def _is_in(answer: Tokens, store: Datastore) -> bool:
    for stop in range(CONTEXT, len(answer) + 1):
        match = store.lookup(answer[:stop], 1)
        if match is not None and match.depth >= CONTEXT:
            return True
    return False
