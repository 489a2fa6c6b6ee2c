"""Traces: real answers with the places where a draft model agreed. Knows the files, no methods.

A file holds one JSON object a line: `id`, `prompt` and `answer` (token ids), and `draft_run`: for
each answer position how many of the next tokens a draft, started there on the true text, got right
in a row. Names end in .jsonl or .jsonl.gz.
"""

import gzip
import json
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from doublespec.bench.outputs import replace_file
from doublespec.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Trace:
    """One answer, and at which of its positions the draft agreed with the target."""

    id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    agrees: tuple[bool, ...]


def trace_files(paths: Iterable[Path]) -> dict[str, Path]:
    """The trace files by name (without endings); a folder stands for those in it. Raises
    ConfigError where there are none, or two of one name."""
    found: dict[str, Path] = {}
    for path in paths:
        if not path.exists():
            raise ConfigError(f"there is no trace file or folder {path}")
        inside = [p for ending in ("jsonl", "jsonl.gz") for p in path.glob(f"*.{ending}")]
        for file in sorted(inside) if path.is_dir() else [path]:
            name = file.name.removesuffix(".gz").removesuffix(".jsonl")
            if found.setdefault(name, file).resolve() != file.resolve():
                raise ConfigError(
                    f"two trace files have the name {name!r}: {found[name]} and {file}; leave one "
                    "out, or give it another name"
                )
        if path.is_dir() and not inside:
            raise ConfigError(f"the folder {path} holds no .jsonl or .jsonl.gz file")
    return found


def read_traces(path: Path, vocab_size: int, limit: int | None = None) -> list[Trace]:
    """The first `limit` traces of a file. Raises ConfigError with file and line number."""
    try:
        with _open(path) as lines:
            numbered = enumerate(islice(lines, limit), start=1)
            traces = [_parse(line, vocab_size, f"{path}, line {n}") for n, line in numbered]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace file {path}: {error}") from error
    if not traces:
        raise ConfigError(f"the trace file {path} is empty")
    return traces


def write_traces(path: Path, traces: Iterable[Trace]) -> None:
    """Writes a trace file: whole, or not at all; the same traces give the same bytes."""
    text = "".join(json.dumps(_as_record(trace), separators=(",", ":")) + "\n" for trace in traces)
    data = text.encode()
    replace_file(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def mean_agreement(traces: Sequence[Trace]) -> float:
    """The share of answer positions where the draft agrees."""
    return sum(sum(t.agrees) for t in traces) / sum(len(t.agrees) for t in traces)


def with_agreement(
    files: Mapping[str, Sequence[Trace]], agreement: float, seed: int
) -> dict[str, list[Trace]]:
    """The traces as a better (or worse) draft would have met them: wrong positions turned right
    (or right ones wrong) at random, in all files alike, until the mean over all is `agreement`.
    Same seed, same positions."""
    flags = [flag for traces in files.values() for trace in traces for flag in trace.agrees]
    missing = round(agreement * len(flags)) - sum(flags)
    candidates = [place for place, flag in enumerate(flags) if flag == (missing < 0)]
    for place in random.Random(seed).sample(candidates, min(abs(missing), len(candidates))):
        flags[place] = missing > 0
    rest = iter(flags)
    return {name: [_with_flags(trace, rest) for trace in traces] for name, traces in files.items()}


def _with_flags(trace: Trace, flags: Iterator[bool]) -> Trace:
    return replace(trace, agrees=tuple(islice(flags, len(trace.answer))))


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _parse(line: str, vocab_size: int, place: str) -> Trace:
    try:
        record: dict[str, Any] = json.loads(line)
        name, prompt, answer = str(record["id"]), record["prompt"], record["answer"]
        runs = record.get("draft_run", [0] * len(answer))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = "expected a JSON object with id, prompt, answer and draft_run"
        raise ConfigError(f"{place}: {message} ({type(error).__name__}: {error})") from error
    for field, tokens in (("prompt", prompt), ("answer", answer), ("draft_run", runs)):
        if not _is_numbers(tokens) or (field != "draft_run" and not tokens):
            raise ConfigError(f"{place}: {field} must be a list of whole numbers from 0 up")
    if len(runs) != len(answer):
        raise ConfigError(
            f"{place}: draft_run must have one number for each of the {len(answer)} answer tokens, "
            f"got {len(runs)}"
        )
    largest = max(*prompt, *answer)
    if largest >= vocab_size:
        raise ConfigError(
            f"{place}: token {largest} is beyond the vocabulary of {vocab_size} tokens; the trace "
            "comes from a model with a larger one"
        )
    return Trace(name, tuple(prompt), tuple(answer), tuple(run > 0 for run in runs))


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _as_record(trace: Trace) -> dict[str, object]:
    runs, run = [], 0
    for agrees in reversed(trace.agrees):
        run = run + 1 if agrees else 0
        runs.append(run)
    return {
        "id": trace.id,
        "prompt": trace.prompt,
        "answer": trace.answer,
        "draft_run": runs[::-1],
    }
