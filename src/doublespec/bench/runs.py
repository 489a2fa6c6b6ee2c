"""Runs kept in a file while a benchmark goes on, so that it can be stopped and resumed.

One JSON object a line: first what the benchmark is, then its runs. A last line that was cut short
by a crash is dropped.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doublespec.bench.outputs import replace_file
from doublespec.bench.race import Run
from doublespec.decoding import Step
from doublespec.drafting.base import DraftForward
from doublespec.errors import ConfigError
from doublespec.llm import Completion
from doublespec.stats import summarise


class RunLog:
    """The runs of one benchmark in a file. Raises ConfigError if the file holds another one's."""

    def __init__(self, path: Path, what: Mapping[str, Any]) -> None:
        self._path = path
        header = json.dumps({"benchmark": what}, sort_keys=True)
        lines = _lines(path)
        if lines and lines[0] != header:
            raise ConfigError(
                f"{path} holds the runs of another benchmark (other models, prompts, settings or "
                "program); resume it as it was begun, or give another file"
            )
        self.runs = _runs(path, lines)
        text = "".join(line + "\n" for line in lines or [header])
        replace_file(path, text.encode())

    def keep(self, run: Run) -> None:
        """Adds a run to the file; raises ConfigError where the system refuses."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_as_record(run), ensure_ascii=False) + "\n")
        except OSError as error:
            raise ConfigError(f"cannot write {self._path}: {error.strerror}") from error


def read_runs(path: Path) -> list[Run]:
    """The runs of whatever benchmark a file holds. Raises ConfigError where there are none."""
    if not path.exists():
        raise ConfigError(f"there is no file {path}; `doublespec bench --resume` writes one")
    lines = _lines(path)
    if lines and not _is_header(lines[0]):
        raise ConfigError(
            f"{path} is no file of runs; give one that `doublespec bench --resume` kept"
        )
    if len(lines) < 2:
        raise ConfigError(f"{path} holds no runs; measure them with `doublespec bench --resume`")
    return _runs(path, lines)


def _is_header(line: str) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and "benchmark" in record


def _runs(path: Path, lines: list[str]) -> list[Run]:
    return [_as_run(line, f"{path}, line {n}") for n, line in enumerate(lines[1:], 2)]


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the runs in {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no file of runs; give another one") from error
    lines = text.split("\n")[:-1]  # what follows the last line end was cut short
    if text and not lines:
        raise ConfigError(f"{path} is no file of runs; give another one")
    return lines


def _as_record(run: Run) -> dict[str, Any]:
    completion = run.completion
    return {
        "method": run.method,
        "prompt": run.prompt,
        "round": run.round,
        "text": completion.text,
        "prompt_tokens": completion.prompt_tokens,
        "steps": [_step_record(step) for step in run.steps],
    }


def _step_record(step: Step) -> dict[str, Any]:
    forwards = [forward._asdict() for forward in step.forwards]
    return {**step._asdict(), "logprobs": (), "forwards": forwards}


def _as_run(line: str, place: str) -> Run:
    try:
        record = json.loads(line)
        steps = tuple(_as_step(step) for step in record["steps"])
        completion = Completion(
            text=record["text"],
            tokens=tuple(token for step in steps for token in step.new),
            prompt_tokens=record["prompt_tokens"],
            finish_reason=steps[-1].finish if steps else None,
            stats=summarise(steps),
        )
        return Run(record["method"], record["prompt"], record["round"], completion, steps)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{place}: this is no run ({type(error).__name__}: {error})") from error


def _as_step(record: dict[str, Any]) -> Step:
    record["new"], record["guess"] = tuple(record["new"]), tuple(record["guess"])
    forwards = tuple(
        DraftForward(**{**forward, "tokens": tuple(forward["tokens"])})
        for forward in record.get("forwards", ())
    )
    return Step(**{**record, "forwards": forwards, "logprobs": ()})
