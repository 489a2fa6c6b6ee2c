"""What retrieval is worth and costs: real answers replayed as truth, for every index alike.

A step shows the run that an index finds for the text so far, and settles as much of it as the
answer agrees with, and one token more.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from doublespec.bench.stored import is_stored
from doublespec.bench.traces import trace_files
from doublespec.errors import ConfigError
from doublespec.retrieval.base import Match, TokenIndex
from doublespec.retrieval.context import NgramIndex, context_sources
from doublespec.retrieval.datastore import Datastore
from doublespec.retrieval.history import History
from doublespec.retrieval.layered import LONGEST_RUN, LayeredIndex
from doublespec.tokens import Tokens, common_prefix

Encode = Callable[[str], list[int]]
Indexes = Callable[[int], TokenIndex]  # the index for the answer with this number


@dataclass(frozen=True, slots=True)
class Trace:
    """A prompt and what a model answered."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class Worth:
    """What retrieval alone reaches: `rows_per_token` are the tokens shown per token settled."""

    tokens_per_step: float
    rows_per_token: float


def read_traces(path: Path, limit: int | None, encode: Encode | None) -> dict[str, list[Trace]]:
    """The first answers of a file, or of each one in a folder: `prompt` and `answer` as token ids,
    or, where there is something to encode them with, `prompt` and `completion` as text. Raises
    ConfigError."""
    return {
        name: [_trace(file, record, encode) for record in islice(_records(file), limit)]
        for name, file in trace_files([path]).items()
    }


def peers(traces: Sequence[Trace], datastores: Sequence[Datastore]) -> dict[str, Indexes]:
    """Every index by its name, made anew."""
    made: dict[str, Indexes] = {
        "scan": _always(ScanIndex(), 10),
        "prompt-lookup (transformers)": _always(TransformersIndex(), 10),
        "published (n-grams 3-1, first)": _always(NgramIndex(3, 1), 10),
        "plain (n-grams 2-8, latest)": _always(LatestIndex(8, 2, lambda depth: 10)),
        "by depth (32-1, run 5 x depth)": _always(LatestIndex(32, 1, lambda depth: 5 * depth + 1)),
        "context": _always(LayeredIndex(context_sources())),
        "context + history": OthersSeen(traces),
    }
    if ArcticIndex.is_installed():
        made["suffix tree (arctic-inference)"] = _always(ArcticIndex())
    if datastores:
        made["context + datastore"] = _always(LayeredIndex([*context_sources(), *datastores]))
    return made


def replay(traces: Sequence[Trace], indexes: Indexes) -> Worth:
    """Settle all answers with retrieval alone."""
    steps = settled = shown = 0
    for number, trace in enumerate(traces):
        index, text, stop = indexes(number), [*trace.prompt, *trace.answer], len(trace.prompt)
        while stop < len(text):
            match = index.lookup(text[:stop], min(LONGEST_RUN, len(text) - stop - 1))
            run = list(match.tokens) if match else []
            new = common_prefix(run, text[stop:]) + 1
            steps, settled, shown, stop = steps + 1, settled + new, shown + len(run), stop + new
    return Worth(settled / max(steps, 1), shown / max(settled, 1))


def not_stored(traces: Sequence[Trace], stores: Sequence[Datastore]) -> list[Trace]:
    """The traces whose answers are not in the stores."""
    return [trace for trace in traces if not is_stored(trace.answer, stores)]


class OthersSeen:
    """Context and history, where all other answers of the file have been seen, never its own.

    What is learnt about acceptance is kept from one answer to the next, as in a running program.
    """

    def __init__(self, traces: Sequence[Trace]) -> None:
        self._answers = [trace.answer for trace in traces]
        self._seen = History().index()
        self._layered = LayeredIndex([*context_sources(), self])

    def __call__(self, number: int) -> TokenIndex:
        history = History()
        for answer in [*self._answers[:number], *self._answers[number + 1 :]]:
            history.add(answer)
        self._seen = history.index()
        return self._layered

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        return self._seen.lookup(tokens, limit)


class ScanIndex:
    """The longest match, the latest of equals, by looking everywhere: the definition."""

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        best, best_stop = 0, 0
        for stop in range(len(tokens) - 1, 0, -1):
            depth = 0
            while depth < stop and tokens[stop - 1 - depth] == tokens[-1 - depth]:
                depth += 1
            if depth > best:
                best, best_stop = depth, stop
        run = tuple(tokens[best_stop : best_stop + limit])
        return Match(run, best, "scan") if best and run else None


class LatestIndex:
    """The latest match of the longest n-gram, in one table for each length."""

    def __init__(self, longest: int, shortest: int, run: Callable[[int], int]) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._run = run
        self._text: list[int] = []
        self._latest: dict[tuple[int, ...], int] = {}

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        text = list(tokens)
        if text[: len(self._text)] != self._text:
            self._text, self._latest = [], {}
        for stop in range(len(self._text) + 1, len(text)):
            for size in self._sizes:
                if size <= stop:
                    self._latest[tuple(text[stop - size : stop])] = stop
        self._text = text[:-1]
        for size in self._sizes:
            found = self._latest.get(tuple(text[-size:]))
            if found is not None and limit > 0:
                run = tuple(text[found : found + min(limit, self._run(size))])
                return Match(run, size, "latest")
        return None


class TransformersIndex:
    """The candidate generator behind `prompt_lookup_num_tokens`."""

    def __init__(self) -> None:
        from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

        self._make: Any = PromptLookupCandidateGenerator

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        generator: Any = self._make(num_output_tokens=max(limit, 1), max_length=1 << 30)
        found, _ = generator.get_candidates(torch.tensor([list(tokens)]))
        run = tuple(found[0, len(tokens) :].tolist()[: max(limit, 0)])
        return Match(run, 0, "transformers") if run else None


class ArcticIndex:
    """The suffix trees of arctic-inference, with its own default settings."""

    def __init__(self) -> None:
        self._text: list[int] = []
        self._cache: Any = None

    @staticmethod
    def is_installed() -> bool:
        return find_spec("arctic_inference") is not None

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        text = list(tokens)
        if self._cache is None or text[: len(self._text)] != self._text:
            module: Any = import_module("arctic_inference.suffix_decoding")
            self._cache = module.SuffixDecodingCache(max_tree_depth=64, max_cached_requests=0)
            self._cache.start_request(0, text)
        else:
            self._cache.add_active_response(0, text[len(self._text) :])
        self._text = text
        draft = self._cache.speculate(0, text[-64:], max_spec_tokens=min(limit, 32))
        run = tuple(draft.token_ids)
        return Match(run, draft.match_len, "arctic") if run else None


class _Bounded:
    def __init__(self, index: TokenIndex, most: int) -> None:
        self._index = index
        self._most = most

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        match = self._index.lookup(tokens, min(limit, self._most))
        return match._replace(tokens=match.tokens[: self._most]) if match else None


def _always(index: TokenIndex, most: int = LONGEST_RUN) -> Indexes:
    bounded = _Bounded(index, most)
    return lambda number: bounded


def _records(path: Path) -> Iterator[Any]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield _record(line, f"{path} is not JSON in line {number}")
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"cannot read the trace file {path}: {error}") from error


def _record(line: bytes, complaint: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigError(complaint) from error


def _trace(path: Path, record: Any, encode: Encode | None) -> Trace:
    try:
        if encode is None:
            return Trace(list(record["prompt"]), list(record["answer"]))
        return Trace(encode(record["prompt"]), encode(record["completion"]))
    except (KeyError, TypeError) as error:
        expected = "prompt and answer (token ids)" if encode is None else "prompt and completion"
        raise ConfigError(f"{path}: each line needs {expected}") from error
