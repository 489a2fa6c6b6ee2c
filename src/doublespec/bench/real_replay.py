"""Real models that replay traces: every forward is computed, only what is chosen is known.

A forward goes through the model as ever, cache and shapes included. In the rows of its logits the
trace's token is raised above all others (and a draft's second choice above the rest), so that the
choice that follows reads as much, and waits for the device as long, as any.
"""

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from doublespec.bench.race import REPLAYED
from doublespec.bench.replay import MOST_WRONG, Script, draft_choices
from doublespec.bench.traces import Trace, read_traces, trace_files, with_agreement
from doublespec.errors import ConfigError
from doublespec.models.base import (
    Branch,
    Chain,
    LanguageModel,
    LoadedModel,
    Worth,
    can_branch,
    can_chain,
)
from doublespec.noise import Heat
from doublespec.tokens import Tokens
from doublespec.transfer import upload

SECOND_CHOICE = 0.5  # share of a draft's mistakes where its second choice is right

# Far above the logits of any model, and apart by 1, as in a simulation, also in bfloat16. (To look
# for each row's own maximum would cost as much as the choice.)
_FIRST, _SECOND = 256.0, 255.0

Choices = list[tuple[int, int]]  # first and second, at each place of an answer
Scripts = Mapping[tuple[int, ...], Script]  # by prompt


@dataclass(frozen=True, slots=True)
class Replays:
    """Which answers are replayed, in plain values, so that a draft's process can read them, too.
    All of them, or the first of each file, `limit` in all; `agreement` (None: as recorded) is the
    share of places where the draft is right. Token ids must be below `vocab_size`. Put around an
    LLM's models (`llm.Wrap`)."""

    paths: tuple[Path, ...]
    vocab_size: int
    agreement: float | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.agreement is not None and not 0.0 <= self.agreement <= 1.0:
            raise ConfigError(f"agreement must be a share from 0 to 1, got {self.agreement!r}")

    def read(self) -> dict[str, list[Trace]]:
        """The traces by the names of their files; of several with the same prompt the first alone,
        since a model cannot tell them apart. Raises ConfigError."""
        found = trace_files(self.paths)
        files = {
            name: read_traces(path, self.vocab_size, count)
            for (name, path), count in zip(found.items(), self._counts(len(found)), strict=True)
            if count != 0
        }
        every = [trace for traces in files.values() for trace in traces]
        first = {trace.prompt: trace for trace in reversed(every)}
        files = {n: [t for t in traces if first[t.prompt] is t] for n, traces in files.items()}
        if self.agreement is not None:
            files = with_agreement(files, self.agreement, self.seed)
        return files

    def _counts(self, files: int) -> list[int | None]:
        """How many traces to read from each file."""
        if self.limit is None:
            return [None] * files
        return [self.limit // files + (place < self.limit % files) for place in range(files)]

    def target(self, model: LoadedModel) -> LoadedModel:
        """Right everywhere."""
        return ReplayingTarget(model, self._scripts(_target_choices))

    def draft(self, model: LanguageModel) -> LanguageModel:
        """Wrong where the trace says so, and after any text but the true one."""
        return Replaying(model, self._scripts(self._draft_choices))

    def _draft_choices(self, trace: Trace, wrong: Sequence[int]) -> Choices:
        return draft_choices(trace, trace.answer, wrong, SECOND_CHOICE, self.seed)

    def _scripts(self, choices: Callable[[Trace, Sequence[int]], Choices]) -> Scripts:
        scripts = {}
        for traces in self.read().values():
            for trace in traces:
                wrong = self._wrong(trace)
                rows = torch.tensor(choices(trace, wrong))  # (answer, 2)
                text = [*trace.prompt, *trace.answer]
                scripts[trace.prompt] = Script(text, rows, torch.tensor([[w, w] for w in wrong]))
        return scripts

    def _wrong(self, trace: Trace) -> list[int]:
        """Tokens that are never right in this answer."""
        used = {*trace.prompt, *trace.answer}
        unused = (token for token in range(self.vocab_size) if token not in used)
        wrong = list(islice(unused, MOST_WRONG))
        if not wrong:
            raise ConfigError(
                f"the answer {trace.id} uses all {self.vocab_size} tokens of the vocabulary, so "
                "that a draft could not be wrong in it; replay others"
            )
        return wrong


def _target_choices(trace: Trace, wrong: Sequence[int]) -> Choices:
    return [(token, wrong[0]) for token in trace.answer]


class Replaying:
    """A language model with the choices of scripts, by the prompt it answers; with its own after a
    prompt that is none of theirs."""

    def __init__(self, model: LanguageModel, scripts: Scripts) -> None:
        self._model = model
        self._scripts = scripts
        self.vocab_size = model.vocab_size
        self.max_length = model.max_length
        self.can_branch = can_branch(model)
        self.can_chain = can_chain(model)

    @torch.inference_mode()
    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        logits = self._model.logits(tokens, last, prompt_length)
        script = self._scripts.get(tuple(tokens[:prompt_length]))
        return logits if script is None else _raised(logits, script.rows(tokens, last))

    def chain(
        self,
        tokens: Tokens,
        most: int,
        size: int,
        ends: Collection[int],
        worth: Worth,
        heat: Heat | None = None,
    ) -> Chain:
        """The script's tokens, after as many forwards of the model as a chain of them takes. These
        read the model's own tokens, so its next forward has a few rows more to read than a real
        one's. A chain is not told where the prompt ends: it is the longest that the text begins
        with."""
        assert can_chain(self._model)
        prompts = (
            p for p in self._scripts if len(p) <= len(tokens) and [*p] == [*tokens[: len(p)]]
        )
        script = self._scripts.get(max(prompts, key=len, default=()))
        if script is None:
            return self._model.chain(tokens, most, size, ends, worth, heat)
        chain, reach = Chain([], []), 1.0
        while len(chain.tokens) < most and reach > worth.least:
            rows = script.rows([*tokens, *chain.tokens], 1)
            token = int(rows[0, 0]) if len(rows) else 0  # behind the answer's end, any
            chain.tokens.append(token)
            chain.behind.append(_FIRST - _SECOND)
            reach *= worth.chances[bisect_right(worth.edges, chain.behind[-1])]
            if token in ends:
                break
        self._model.chain(tokens, len(chain.tokens), size, (), Worth(), heat)
        return chain

    @torch.inference_mode()
    def branch_logits(
        self, tokens: Tokens, last: int, branches: Sequence[Branch], prompt_length: int
    ) -> tuple[Tensor, Tensor]:
        assert can_branch(self._model)
        logits, ends = self._model.branch_logits(tokens, last, branches, prompt_length)
        script = self._scripts.get(tuple(tokens[:prompt_length]))
        if script is None:
            return logits, ends
        rows = script.rows(tokens, last)
        return _raised(logits, rows), _raised(ends, script.branch_rows(branches))


class ReplayingTarget:
    """The same, of a model that is asked for its shapes."""

    def __init__(self, model: LoadedModel, scripts: Scripts) -> None:
        self._model = model
        self._scripts = scripts
        self.logits = Replaying(model, scripts).logits
        self.vocab_size = model.vocab_size
        self.max_length = model.max_length
        self.device = model.device
        self.dtype = model.dtype
        self.row_counts = model.row_counts

    def fastest(self) -> "ReplayingTarget":
        return ReplayingTarget(self._model.fastest(), self._scripts)


def _raised(logits: Tensor, choices: Tensor) -> Tensor:
    """`logits` (n, V), changed such that each row's best tokens are those of `choices` (n, 2);
    rows past the end of the script, which nobody chooses from, stay as they are."""
    first, second = upload(choices, logits.device).unbind(1)
    rows = torch.arange(len(choices), device=logits.device)
    logits[rows, second] = _SECOND
    logits[rows, first] = _FIRST
    return logits


def as_replayed(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results by method, each said to be replayed."""
    return {
        name + REPLAYED: {
            category: {**row, "ratio_to": row["ratio_to"] + REPLAYED}
            for category, row in rows.items()
        }
        for name, rows in results.items()
    }
