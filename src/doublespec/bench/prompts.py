"""The demo's dozen prompts, each with a program that tells a right answer from a wrong one."""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """A prompt to watch, and the check of its answer."""

    name: str
    category: str
    text: str
    check: Callable[[str], bool]


def is_greeting(answer: str) -> bool:
    """Whether Marta is greeted by name and told at least four different abilities."""
    bullets = [line for line in _lines(answer) if line.startswith("- ")]
    return "Hello, Marta!" in answer and len(bullets) >= 4 and len(set(bullets)) == len(bullets)


def is_lemon_sum(answer: str) -> bool:
    """Whether every line of the sum holds (7 x 12 - 25 + 30) and the end is 89."""
    return _is_sum(answer, "Answer: 89 lemons")


def is_renamed(answer: str) -> bool:
    """Whether the code is the prompt's with `acc` renamed to `running_total` and nothing else."""
    return _same_code(answer, _RENAME_CODE.replace("acc", "running_total"))


def is_documented(answer: str) -> bool:
    """Whether the function got right types and a docstring that names both parameters."""
    function = _function(answer)
    if function is None:
        return False
    hints = [
        ast.unparse(argument.annotation or ast.Constant("")) for argument in _arguments(function)
    ]
    returns = ast.unparse(function.returns or ast.Constant(""))
    doc = ast.get_docstring(function) or ""
    named = all(argument.arg in doc for argument in _arguments(function))
    body = ast.unparse(ast.Module(function.body[1:], []))
    plain = _function(_DOCUMENT_CODE)
    same = plain is not None and body == ast.unparse(ast.Module(plain.body, []))
    return hints == ["list[str]", "str"] and returns == "list[str]" and named and same


def is_edited_letter(answer: str) -> bool:
    """Whether the letter is the prompt's with Nora replaced by Felix and nothing else."""
    return answer.strip() == _LETTER.replace("Nora", "Felix")


def is_mended(answer: str) -> bool:
    """Whether all typos are mended and nothing else is changed."""
    return answer.strip() == (
        "Klara wants to visit Oscar in Vienna. The library opened a new office. "
        "Please send the letter before Friday. We will receive the answer."
    )


def is_task_list(answer: str) -> bool:
    """Whether there are just three bullets, one a person, with the right tasks and days."""
    lines = _lines(answer)
    wanted = [("Nadia", "blue folder", "Thursday"), ("Pavel", "Ingrid", "9 June")]
    wanted.append(("Tessa", "office", "Monday"))
    return len(lines) == 3 and all(
        line.startswith("- ") and all(part in line for part in parts)
        for line, parts in zip(lines, wanted, strict=True)
    )


def is_grouped(answer: str) -> bool:
    """Whether every tool stands under the heading of its room, and none is lost."""
    found: dict[str, list[str]] = {}
    heading = ""
    for line in _lines(answer):
        if line.startswith("## "):
            heading = line[3:]
        else:
            found.setdefault(heading, []).append(line.removeprefix("- "))
    return found == {
        "Kitchen": ["copper kettle", "bread knife", "teapot"],
        "Office": ["desk lamp", "printer"],
    }


def is_json_of_guests(answer: str) -> bool:
    """Whether the JSON holds the CSV's rows with numbers as numbers."""
    return _json(answer) == [
        {"name": "Amara", "city": "Lisbon", "visits": 3},
        {"name": "Jonas", "city": "Tallinn", "visits": 12},
        {"name": "Yuki", "city": "Porto", "visits": 7},
        {"name": "Brolik", "city": "Graz", "visits": 1},
    ]


def is_table_of_parts(answer: str) -> bool:
    """Whether the Markdown table holds the CSV's cells in order."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in _lines(answer)]
    cells = [line.split(",") for line in _PARTS.splitlines()]
    ruled = len(rows) > 1 and all(re.fullmatch(":?-+:?", cell) for cell in rows[1])
    return ruled and rows[:1] + rows[2:] == cells


def is_sql(answer: str) -> bool:
    """Whether the three statements are the right ones, whatever their case and spaces."""
    wanted = (
        "select name, city from members where age > 40 order by name",
        "select count(*) from members where city = 'oslo'",
        "delete from members where age < 18",
    )
    found = [" ".join(part.lower().split()) for part in answer.split(";") if part.strip()]
    return found == list(wanted)


def is_bridge_answer(answer: str) -> bool:
    """Whether builder, day of rest and price are named as the answers; that the sentence quoted
    behind an answer holds the right word does not count."""
    answers = [line.partition("The text says")[0] for line in _lines(answer)]
    wanted = ("Agnes Lund", "Tuesday", "6 euros")
    return len(answers) == 3 and all(
        part in given for part, given in zip(wanted, answers, strict=True)
    )


_RENAME_CODE = """\
def weighted_sum(values, weights):
    acc = 0.0
    for value, weight in zip(values, weights):
        acc += value * weight
    if acc < 0:
        acc = 0.0
    return acc
"""

_DOCUMENT_CODE = """\
def pick_cities(cities, prefix):
    return [city for city in cities if city.startswith(prefix)]
"""

_LETTER = """\
Dear Nora,

Thank you for your letter of 2 March. I hope to arrive in Oslo on 12 April. Please bring the blue \
umbrella. Our new address is Brol Street 12, Oslo.

Kind regards,
Martin"""

_PARTS = """\
part,stock,price
hinge,140,2.75
copper pipe,36,11.20
valve QX-48,9,24.90
washer,1200,0.05"""

_LEMONS = """\
Tomas fills 7 crates with 12 lemons each. Then Tomas sells 25 lemons. Later a friend brings 30 \
more lemons. How many lemons are there in the end?"""

_TYPOS = """\
Please fix the spelling mistakes in this text:

Klara wants to vist Oscar in Vienna. The libary opend a new offcie. Please send teh lettre befor \
Friday. We will recieve teh anwser."""

_MEETING = """\
Summarise these notes as a list of tasks: who does what.

The meeting began with coffee. Nadia will order the blue folder by Thursday. It was raining \
outside. Pavel promised to call Ingrid before 9 June. Nobody had questions. Tessa agreed to clean \
the office until Monday. There was cake for everybody."""

_ROOMS = """\
Group these items by room under Markdown headings.

- copper kettle: Kitchen
- bread knife: Kitchen
- teapot: Kitchen
- desk lamp: Office
- printer: Office"""

_GUESTS = """\
Turn this CSV into a JSON list of objects.

name,city,visits
Amara,Lisbon,3
Jonas,Tallinn,12
Yuki,Porto,7
Brolik,Graz,1"""

_MEMBERS = """\
I have a table members(id, name, age, city).
Write SQL queries to:
1. list the name and city where age is over 40, sorted by name
2. count the rows where city is Oslo
3. delete all rows where age is below 18"""

_BRIDGE = """\
Here is a text:

The Marlow Bridge was built in 1874 by Agnes Lund. It stands in Utrecht, near the river Vessa. \
Today Hugo Frost is in charge of it. A ticket costs 6 euros. It is open from 9:00 to 17:30, but it \
is closed on Tuesday.

Answer these questions:
1. Who built the Marlow Bridge?
2. On which day is it closed?
3. How much is a ticket?"""

_RENAME = f"""\
Rename `acc` to `running_total` in this function. Show the whole code.

```python
{_RENAME_CODE}```"""

_DOCUMENT = f"""\
Please add type hints and a docstring to this function.

```python
{_DOCUMENT_CODE}```"""

_EDIT = f"""\
Replace Nora with Felix in this letter. Keep the rest.

{_LETTER}"""

_HELLO = "Hi there! I'm Marta. What can you help me with?"
_TABLE = f"Show this CSV as a Markdown table:\n\n{_PARTS}"

DEMO_PROMPTS: tuple[DemoPrompt, ...] = (
    DemoPrompt("hello", "chat", _HELLO, is_greeting),
    DemoPrompt("lemons", "arithmetic", _LEMONS, is_lemon_sum),
    DemoPrompt("rename", "code", _RENAME, is_renamed),
    DemoPrompt("document", "code", _DOCUMENT, is_documented),
    DemoPrompt("letter", "editing", _EDIT, is_edited_letter),
    DemoPrompt("typos", "editing", _TYPOS, is_mended),
    DemoPrompt("meeting", "summary", _MEETING, is_task_list),
    DemoPrompt("rooms", "structured list", _ROOMS, is_grouped),
    DemoPrompt("guests", "JSON", _GUESTS, is_json_of_guests),
    DemoPrompt("parts", "Markdown", _TABLE, is_table_of_parts),
    DemoPrompt("members", "SQL", _MEMBERS, is_sql),
    DemoPrompt("bridge", "question", _BRIDGE, is_bridge_answer),
)


def _lines(answer: str) -> list[str]:
    return [line.strip() for line in answer.strip().splitlines() if line.strip()]


def _is_sum(answer: str, end: str) -> bool:
    sums = re.findall(r"(\d+) ([x+-]) (\d+) = (\d+)", answer)
    ends = [line for line in _lines(answer) if line.startswith("Answer:")]
    return len(sums) > 2 and all(map(_holds, sums)) and ends == [end] == _lines(answer)[-1:]


def _holds(found: tuple[str, str, str, str]) -> bool:
    left, sign, right, result = found
    a, b = int(left), int(right)
    return {"x": a * b, "+": a + b, "-": a - b}[sign] == int(result)


def _json(answer: str) -> object:
    try:
        return json.loads(_unfenced(answer))
    except json.JSONDecodeError:
        return None


def _unfenced(answer: str) -> str:
    found = re.fullmatch(r"\s*```\w*\n(.*?)\n?```\s*", answer, re.DOTALL)
    return found[1] if found else answer


def _parse(answer: str) -> ast.Module | None:
    try:
        return ast.parse(_unfenced(answer))
    except SyntaxError:
        return None


def _same_code(answer: str, wanted: str) -> bool:
    found, right = _parse(answer), _parse(wanted)
    return found is not None and right is not None and ast.dump(found) == ast.dump(right)


def _function(answer: str) -> ast.FunctionDef | None:
    module = _parse(answer)
    first = module.body[0] if module and len(module.body) == 1 else None
    return first if isinstance(first, ast.FunctionDef) else None


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
    return function.args.args
