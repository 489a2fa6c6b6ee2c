"""What a benchmark is measured on: the turns of questions, each as a prompt of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from doublespec.bench.questions import Item, Question, as_items
from doublespec.bench.stored import without_stored
from doublespec.cli.options import errors
from doublespec.errors import ConfigError
from doublespec.llm import LLM
from doublespec.retrieval.datastore import Datastore
from doublespec.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Work:
    """What is measured on: prompts as items and as tokens, and how long answers may be (None: as
    long as all others)."""

    items: list[Item]
    prompts: list[list[int]]
    lengths: list[int] | None = None
    left_out: int = 0


def asked_work(
    llm: LLM, questions: Sequence[Question], stores: Sequence[Datastore], params: SamplingParams
) -> Work:
    """The turns of the questions that may be measured on."""
    every = as_items(llm, questions, params)
    items = _not_stored(llm, every, stores, params)
    prompts = [llm.codec.encode_chat(item.messages) for item in items]
    return Work(items, prompts, left_out=len(every) - len(items))


def _not_stored(
    llm: LLM, items: list[Item], stores: Sequence[Datastore], params: SamplingParams
) -> list[Item]:
    """The prompts that may be measured on; says how many are left out. Raises ConfigError if it is
    all of them."""
    if not stores:
        return items
    kept = without_stored(llm, items, stores, params)
    if not kept:
        raise ConfigError(
            "the answers to all prompts are in the datastore, which would prove nothing; give "
            "other prompts, or a store without these texts"
        )
    if len(kept) < len(items):
        errors.print(
            f"[yellow]left out:[/yellow] {len(items) - len(kept)} of {len(items)} prompts, since "
            "text of their answers is in the datastore",
            highlight=False,
            soft_wrap=True,
        )
    return kept
