"""The chores that the bundled pair is trained on: a prompt and its one right answer by seed."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training import code, letters, lists, proofs, reading, sums, tables, talk
from training.words import Words

_Maker = Callable[[Words], tuple[str, str]]

# Share of each family in the training mix, as a weight.
WEIGHTS: dict[_Maker, float] = {
    tables.csv_to_json: 6,
    tables.json_to_csv: 3,
    tables.csv_to_markdown: 3,
    tables.sql_query: 5,
    code.rename: 13,
    code.add_hints: 2,
    code.add_doc: 2,
    code.add_hints_and_doc: 5,
    lists.sort_list: 3,
    lists.number_list: 2,
    lists.dedupe: 3,
    lists.group_list: 8,
    lists.to_bullets: 2,
    lists.copy_text: 4,
    sums.plain_sum: 6,
    sums.word_problem: 6,
    proofs.mend_typos: 5,
    letters.edit_letter: 11,
    letters.extract_fields: 3,
    reading.answer_question: 6,
    reading.summarise_meeting: 4,
    talk.small_talk: 0.5,
}
FAMILIES = {maker.__name__: maker for maker in WEIGHTS}


@dataclass(frozen=True, slots=True)
class Chore:
    """One chore: what a user asks, and the answer that a program can check."""

    family: str
    prompt: str
    answer: str


def generate(seed: int, family: str | None = None, held_out: bool = False) -> Chore:
    """The chore of a seed; held-out chores use other seeds and words that training never sees."""
    rng = random.Random(f"{seed} {held_out}")
    name = family or _draw(rng, list(FAMILIES))
    prompt, answer = FAMILIES[name](Words(rng, held_out))
    return Chore(name, prompt, answer)


def _draw(rng: random.Random, names: Sequence[str]) -> str:
    return rng.choices(names, weights=[WEIGHTS[FAMILIES[name]] for name in names])[0]
