"""Prompts of a benchmark: the built-in suite, files in Spec-Bench's schema, data sets of the hub.

A line of a file is a JSON object with `turns` (a list of texts) and, if there are, `id` (or
`question_id`), `category` and `reference` (a text or several).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from doublespec.bench.race import BASELINE
from doublespec.bench.suite import SUITE
from doublespec.errors import ConfigError
from doublespec.llm import LLM
from doublespec.sampling import SamplingParams
from doublespec.text import Message

SUITE_NAME = "suite"
_HUB = "hf:"


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt of one or several turns."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One turn, with the conversation before it: what every method answers."""

    id: str
    category: str
    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()


def read_questions(names: Sequence[str], limit: int | None) -> list[Question]:
    """The questions of the suite, of files, or of hub data sets ("hf:OWNER/NAME/FILE.jsonl"); the
    first `limit`, spread over the categories. Raises ConfigError with file and line number."""
    questions = [question for name in names for question in _read(name)]
    return questions if limit is None else _spread(questions, limit)


def as_items(llm: LLM, questions: Sequence[Question], params: SamplingParams) -> list[Item]:
    """Every turn as a prompt of its own. Earlier turns are answered by plain decoding beforehand,
    so that all methods meet the same conversation."""
    items = []
    for question in questions:
        messages: list[Message] = []
        for number, turn in enumerate(question.turns):
            messages.append({"role": "user", "content": turn})
            name = question.id if len(question.turns) == 1 else f"{question.id}.{number + 1}"
            items.append(Item(name, question.category, tuple(messages), question.references))
            if number + 1 < len(question.turns):
                answer = llm.chat(messages, params, method="ar").text
                messages.append({"role": "assistant", "content": answer})
    return items


def _read(name: str) -> list[Question]:
    if name == SUITE_NAME:
        return [
            Question(f"{category}-{n}", category, turns)
            for category, prompts in SUITE.items()
            for n, turns in enumerate(prompts, start=1)
        ]
    path = _download(name) if name.startswith(_HUB) else Path(name)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a text may hold other line ends
    except OSError as error:
        raise ConfigError(f"cannot read the prompt file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompt file {path} is not UTF-8 text") from error
    found = [_parse(line, path, n) for n, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise ConfigError(f"the prompt file {path} is empty")
    return found


def _download(name: str) -> Path:
    owner, _, rest = name.removeprefix(_HUB).partition("/")
    repository, _, file = rest.partition("/")
    if not file:
        raise ConfigError(f"a data set must be named hf:OWNER/NAME/FILE.jsonl, got {name!r}")
    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"cannot download {name}: {reason}") from error


def _parse(line: str, path: Path, number: int) -> Question:
    try:
        record: dict[str, Any] = json.loads(line)
        turns = record["turns"]
        name = str(record.get("id", record.get("question_id", number)))
        category = str(record.get("category") or record.get("benchmark") or path.stem)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}, line {number}: expected a JSON object with turns "
            f"({type(error).__name__}: {error})"
        ) from error
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise ConfigError(f"{path}, line {number}: turns must be a list of texts")
    return Question(name, category, tuple(turns), _references(record.get("reference")))


def _references(value: Any) -> tuple[str, ...]:
    """The texts of a reference, which is one or a list; of anything else none."""
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str))


def _spread(questions: list[Question], limit: int) -> list[Question]:
    """The first of each category, then the second of each, ... until there are `limit`."""
    places: dict[str, int] = {}
    order = []
    for question in questions:
        places[question.category] = places.get(question.category, 0) + 1
        order.append(places[question.category])
    ranked = sorted(range(len(questions)), key=lambda i: (order[i], i))
    return [questions[i] for i in sorted(ranked[:limit])]


def check_prompt_names(methods: Sequence[str]) -> None:
    """Raises ConfigError on a method given twice or named like the baseline."""
    if BASELINE in methods:
        raise ConfigError(f"{BASELINE!r} is the baseline and always runs; leave it out")
    twice = next((name for name in methods if methods.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"method {twice!r} is named twice")
