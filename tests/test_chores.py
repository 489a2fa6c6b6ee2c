"""The training chores are right, and the demo's checks tell right from wrong."""

import ast
import csv
import io
import json
import random
import re
from collections.abc import Callable

import pytest
from training.chores import FAMILIES, Chore, generate
from training.words import FIRST_NAMES, Words, split_pool

from doublespec.bench.prompts import DEMO_PROMPTS, DemoPrompt

SEEDS = range(40)


def chores(family: str) -> list[Chore]:
    return [generate(seed, family) for seed in SEEDS]


def test_a_seed_gives_one_chore() -> None:
    assert [generate(seed) for seed in SEEDS] == [generate(seed) for seed in SEEDS]


def test_seeds_give_different_chores() -> None:
    assert len({generate(seed).prompt for seed in range(300)}) > 280


def test_held_out_chores_are_others() -> None:
    assert all(generate(seed) != generate(seed, held_out=True) for seed in SEEDS)


def test_kept_names_never_occur_in_training() -> None:
    kept, free = split_pool(FIRST_NAMES)
    seen = " ".join(generate(seed).prompt for seed in range(400))
    assert len(kept) > 15
    assert sum(bool(re.search(rf"\b{name}\b", seen)) for name in free) > len(free) / 2
    # A kept name may be spelled like a city, an adjective or a made-up word.
    assert sum(bool(re.search(rf"\b{name}\b", seen)) for name in kept) <= 2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_asks_and_answers(family: str) -> None:
    for chore in chores(family):
        assert chore.prompt.strip() == chore.prompt
        assert chore.answer.strip() == chore.answer != ""
        assert "<|" not in chore.prompt
        assert "|>" not in chore.prompt


@pytest.mark.parametrize("family", ["csv_to_json"])
def test_json_cells_stand_in_the_table(family: str) -> None:
    for chore in chores(family):
        for row in json.loads(chore.answer, parse_float=str, parse_int=str):
            assert all(key in chore.prompt and value in chore.prompt for key, value in row.items())


def test_csv_equals_its_json() -> None:
    for chore in chores("json_to_csv"):
        found = re.search(r"\[.*\]", chore.prompt, re.DOTALL)
        assert found is not None
        wanted = json.loads(found[0], parse_float=str, parse_int=str)
        assert list(csv.DictReader(io.StringIO(chore.answer))) == wanted


def test_markdown_tables_have_equal_rows() -> None:
    for chore in chores("csv_to_markdown"):
        assert len({line.count("|") for line in chore.answer.splitlines()}) == 1


@pytest.mark.parametrize("family", ["rename", "add_hints", "add_doc", "add_hints_and_doc"])
def test_code_answers_are_python(family: str) -> None:
    for chore in chores(family):
        code = re.sub(r"```\w*\n?", "", chore.answer)
        assert ast.dump(ast.parse(code))


def test_a_renamed_name_is_gone() -> None:
    for chore in chores("rename"):
        for before, after in re.findall(r"`(\w+)` (?:to|into) `(\w+)`", chore.prompt):
            assert not re.search(rf"\b{before}\b", chore.answer)
            assert re.search(rf"\b{after}\b", chore.answer)


def test_sorted_lists_are_sorted() -> None:
    for chore in chores("sort_list"):
        items = [re.sub(r"^\d+\. ", "", line).lower() for line in chore.answer.splitlines()]
        assert items == sorted(items)


def test_deduped_lists_have_no_repeats() -> None:
    for chore in chores("dedupe"):
        lines = chore.answer.splitlines()
        assert len(set(lines)) == len(lines)
        assert all(line in chore.prompt for line in lines)


@pytest.mark.parametrize("family", ["plain_sum", "word_problem"])
def test_every_step_of_a_sum_holds(family: str) -> None:
    operations: dict[str, Callable[[int, int], int]] = {
        "+": int.__add__,
        "-": int.__sub__,
        "x": int.__mul__,
    }
    for chore in chores(family):
        for left, sign, right, result in re.findall(r"(\d+) ([x+-]) (\d+) = (\d+)", chore.answer):
            assert operations[sign](int(left), int(right)) == int(result)
        last = re.findall(r"= (\d+)", chore.answer)[-1]
        assert re.search(rf"Answer: {last}\b", chore.answer)


def test_extracted_values_stand_in_the_note() -> None:
    for chore in chores("extract_fields"):
        values = re.findall(r'(?m)^ *"?\w+"?: "?(.*?)"?,?$', chore.answer)
        assert values
        assert all(value in chore.prompt for value in values)


def test_answers_quote_the_text() -> None:
    for chore in chores("answer_question"):
        quotes = re.findall(r'The text says: "(.*?)"', chore.answer)
        assert quotes
        assert all(quote in chore.prompt for quote in quotes)


def test_alternatives_are_spun_from_the_inside() -> None:
    words = Words(random.Random(3))
    assert {words.spin("<a|<b|c>>") for _ in range(60)} == {"a", "b", "c"}


RIGHT = {
    "hello": "Hello, Marta! I can:\n- rename\n- convert\n- sort\n- correct",
    "lemons": """\
7 crates with 12 lemons:
12 x 7 = 84
25 go:
84 - 20 = 64
64 - 5 = 59
30 come:
59 + 30 = 89
Answer: 89 lemons""",
    "meeting": """\
- Nadia: order the blue folder (by Thursday)
- Pavel: call Ingrid (before 9 June)
- Tessa: clean the office (until Monday)""",
    "typos": "Klara wants to visit Oscar in Vienna. The library opened a new office. "
    "Please send the letter before Friday. We will receive the answer.",
    "rooms": """\
## Kitchen
- copper kettle
- bread knife
- teapot

## Office
- desk lamp
- printer""",
    "guests": """\
[
  {"name": "Amara", "city": "Lisbon", "visits": 3},
  {"name": "Jonas", "city": "Tallinn", "visits": 12},
  {"name": "Yuki", "city": "Porto", "visits": 7},
  {"name": "Brolik", "city": "Graz", "visits": 1}
]""",
    "members": """\
SELECT name, city FROM members WHERE age > 40 ORDER BY name;
SELECT COUNT(*) FROM members WHERE city = 'Oslo';
DELETE FROM members WHERE age < 18;""",
    "bridge": """\
1. Agnes Lund. The text says: "The Marlow Bridge was built in 1874 by Agnes Lund."
2. Tuesday. The text says: "It is open from 9:00 to 17:30, but it is closed on Tuesday."
3. 6 euros. The text says: "A ticket costs 6 euros.\"""",
    "document": '''\
```python
def pick_cities(cities: list[str], prefix: str) -> list[str]:
    """Return the items of cities that start with prefix."""
    return [city for city in cities if city.startswith(prefix)]
```''',
}


def right_answer(prompt: DemoPrompt) -> str:
    """The right answer: written above, or made from the prompt by plain replacement."""
    if prompt.name in RIGHT:
        return RIGHT[prompt.name]
    body = prompt.text.partition("\n\n")[2]
    if prompt.name == "rename":
        return body.replace("acc", "running_total")
    if prompt.name == "letter":
        return body.replace("Nora", "Felix")
    rows = [f"| {' | '.join(line.split(','))} |" for line in body.splitlines()]
    return "\n".join([rows[0], "| --- | --- | --- |", *rows[1:]])


@pytest.mark.parametrize("prompt", DEMO_PROMPTS, ids=lambda prompt: prompt.name)
def test_demo_check_accepts_the_right_answer(prompt: DemoPrompt) -> None:
    assert prompt.check(right_answer(prompt))


@pytest.mark.parametrize("prompt", DEMO_PROMPTS, ids=lambda prompt: prompt.name)
def test_demo_check_rejects_wrong_answers(prompt: DemoPrompt) -> None:
    right = right_answer(prompt)
    spoiled = [right[: len(right) // 2], right.replace("e", "a"), "", prompt.text, right * 2]
    assert [answer for answer in spoiled if prompt.check(answer)] == []


def test_a_right_quotation_behind_a_wrong_answer_is_wrong() -> None:
    """The check once took "Saturday", since the sentence quoted behind it says Tuesday."""
    prompt = next(prompt for prompt in DEMO_PROMPTS if prompt.name == "bridge")
    assert not prompt.check(RIGHT["bridge"].replace("2. Tuesday", "2. Saturday"))


def test_demo_has_twelve_prompts_with_different_names() -> None:
    assert len({prompt.name for prompt in DEMO_PROMPTS}) == len(DEMO_PROMPTS) == 12
