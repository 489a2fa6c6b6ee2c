"""Traces as files of our own: JSON lines with a checksum, read back whole or refused."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

from doublespec.decoding import Step
from doublespec.drafting.base import DraftForward
from doublespec.errors import ConfigError
from doublespec.stopping import Finish
from doublespec.trace.lanes import Timeline, from_zero

FORMAT = "doublespec-trace"
VERSION = 2
_DIGITS = 9  # of seconds
_FINISHES: dict[str | None, Finish | None] = {"stop": "stop", "length": "length", None: None}


def as_jsonl(timeline: Timeline) -> str:
    """The trace as a file: a header, a line for each step and each forward of a draft, and a
    checksum. Times are seconds since the first event, to the nanosecond; logprobs are left out."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "method": timeline.method,
        "target": timeline.target,
        "draft": timeline.draft,
        "prompt_tokens": timeline.prompt_tokens,
        "steps": len(timeline.steps),
        "texts": {str(token): text for token, text in timeline.texts.items()},
    }
    records = chain.from_iterable(_step_records(step) for step in from_zero(timeline.steps))
    body = "".join(_line(record) for record in chain([header], records))
    return body + _line({"event": "end", "crc32": crc32(body.encode())})


def read_jsonl(path: Path) -> Timeline:
    """A trace from a file in our own format. Raises ConfigError, with one sentence, on any other
    file, a newer one, or a damaged one."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the trace {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(_foreign(path)) from error
    header = _parse_header(text, path)
    lines = _checked_lines(text, path)
    try:
        return Timeline(
            method=str(header["method"]),
            target=str(header["target"]),
            draft=None if header["draft"] is None else str(header["draft"]),
            prompt_tokens=int(header["prompt_tokens"]),
            steps=_parse_steps(lines, path),
            texts={int(token): str(text) for token, text in header["texts"].items()},
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}, line 1: this is no header of a trace ({error!r})") from error


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def _step_records(step: Step) -> Iterator[dict[str, Any]]:
    """A line for the step, and one for each forward that was heard of in it."""
    yield {
        "event": "step",
        "begun": round(step.begun, _DIGITS),
        "seconds": round(step.seconds, _DIGITS),
        "guess_seconds": round(step.guess_seconds, _DIGITS),
        "retrieval_seconds": round(step.retrieval_seconds, _DIGITS),
        "target_seconds": round(step.target_seconds, _DIGITS),
        "wait_seconds": round(step.wait_seconds, _DIGITS),
        "guess": step.guess,
        "num_drafted": step.num_drafted,
        "new": step.new,
        "foreseen": step.foreseen,
        "finish": step.finish,
    }
    for forward in step.forwards:
        yield {
            "event": "forward",
            "begun": round(forward.begun, _DIGITS),
            "seconds": round(forward.seconds, _DIGITS),
            "rows": forward.rows,
            "start": forward.start,
            "tokens": forward.tokens,
            "branches": forward.branches,
        }


def _foreign(path: Path) -> str:
    return f"{path} is no trace; give a file that `doublespec generate --trace FILE.jsonl` wrote"


def _parse_header(text: str, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(text.partition("\n")[0])
    except ValueError as error:
        raise ConfigError(_foreign(path)) from error
    if isinstance(header, dict) and "traceEvents" in header:
        raise ConfigError(f"{path} is a Chrome trace: open it in Perfetto, or give the .jsonl file")
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ConfigError(_foreign(path))
    if header.get("version") != VERSION:
        raise ConfigError(
            f"{path} is a trace of version {header.get('version')}, and this program reads "
            f"version {VERSION}; write it again, or use the program that wrote it"
        )
    return header


def _checked_lines(text: str, path: Path) -> list[str]:
    """The lines between header and checksum, if they are all there and as they were written."""
    start = text.rfind("\n", 0, -1) + 1
    body, end = text[:start], text[start:]
    if end != _line({"event": "end", "crc32": crc32(body.encode())}):
        raise ConfigError(f"{path} is damaged: its checksum does not match; record it again")
    return body.split("\n")[1:-1]


def _parse_steps(lines: Sequence[str], path: Path) -> tuple[Step, ...]:
    steps: list[Step] = []
    for number, line in enumerate(lines, start=2):
        try:
            record = json.loads(line)
            if record["event"] == "step":
                steps.append(_parse_step(record))
            else:
                forwards = (*steps[-1].forwards, _parse_forward(record))
                steps[-1] = steps[-1]._replace(forwards=forwards)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ConfigError(
                f"{path}, line {number}: this is no event of a trace ({error!r})"
            ) from error
    return tuple(steps)


def _parse_step(record: Mapping[str, Any]) -> Step:
    guess, num_drafted = _ids(record["guess"]), int(record["num_drafted"])
    if not 0 <= num_drafted <= len(guess):
        raise ValueError(f"num_drafted {num_drafted} of {len(guess)} tokens")
    return Step(
        new=_ids(record["new"]),
        guess=guess,
        num_drafted=num_drafted,
        finish=_FINISHES[record["finish"]],
        guess_seconds=_seconds(record["guess_seconds"]),
        target_seconds=_seconds(record["target_seconds"]),
        wait_seconds=_seconds(record["wait_seconds"]),
        seconds=_seconds(record["seconds"]),
        begun=_seconds(record["begun"]),
        foreseen=None if record["foreseen"] is None else bool(record["foreseen"]),
        retrieval_seconds=_seconds(record["retrieval_seconds"]),
    )


def _parse_forward(record: Mapping[str, Any]) -> DraftForward:
    return DraftForward(
        begun=_seconds(record["begun"]),
        seconds=_seconds(record["seconds"]),
        rows=int(record["rows"]),
        start=int(record["start"]),
        tokens=_ids(record["tokens"]),
        branches=int(record["branches"]),
    )


def _ids(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _seconds(value: float) -> float:
    seconds = float(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{seconds} seconds")
    return seconds
