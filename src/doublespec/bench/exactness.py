"""Does this model on this device keep the promise? Tested, not assumed.

`check_model` compares logits bit for bit: the same text computed at once, token by token, in random
runs, after wrong guesses, after other texts. `check_methods` compares whole answers: every method
against plain decoding.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from doublespec.llm import LLM
from doublespec.models.base import LanguageModel
from doublespec.models.devices import usable_cores, use_threads
from doublespec.models.threads import Threads
from doublespec.sampling import SamplingParams

# Promised only where an LLM changes its number of threads; elsewhere worth knowing.
OTHER_THREADS = "with another number of threads"
_DISTURBANCES = (
    "in random runs",
    "after another text",
    "after a wrong guess",
    "after the same text as prompt",
    OTHER_THREADS,
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One random text: at which position its logits first differed, None if nowhere."""

    name: str
    differs_at: int | None


def check_model(model: LanguageModel, trials: int, seed: int = 0) -> Iterator[Trial]:
    """Random texts, splits and cache states. The reference is token by token."""
    chance = random.Random(seed)
    longest = min(model.max_length - 1, 700)
    for trial in range(trials):
        length = chance.randint(min(40, longest), longest)
        text = [chance.randrange(model.vocab_size) for _ in range(length)]
        prompt_length = chance.randint(1, length - 1)
        reference = _answer_rows(model, text, prompt_length, [1] * (length - prompt_length))
        splits = _random_splits(chance, length - prompt_length)
        name = _DISTURBANCES[trial % len(_DISTURBANCES)]
        _disturb(name, model, text)
        with _threads(model, usable_cores() if name == OTHER_THREADS else None):
            rows = _answer_rows(model, text, prompt_length, splits)
        differing = (rows != reference).any(dim=-1).nonzero()
        yield Trial(name, prompt_length + int(differing[0]) if len(differing) else None)


@contextmanager
def _threads(model: LanguageModel, count: int | None) -> Iterator[None]:
    """Computes with `count` threads, if given, and leaves the number as it was."""
    before = torch.get_num_threads()
    use_threads(count or before)
    chosen: Threads | None = getattr(model, "threads", None)
    try:
        with chosen.fixed(count) if chosen and count else nullcontext():
            yield
    finally:
        use_threads(before)


def _answer_rows(
    model: LanguageModel, text: list[int], prompt_length: int, splits: Sequence[int]
) -> Tensor:
    """Logits of the last prompt position and of all answer positions, computed in runs."""
    parts = [model.logits(text[:prompt_length], 1, prompt_length).clone()]
    stop = prompt_length
    for size in splits:
        stop += size
        parts.append(model.logits(text[:stop], size, prompt_length).clone())
    return torch.cat(parts)


def _random_splits(chance: random.Random, total: int) -> list[int]:
    splits = []
    while total:
        size = min(total, chance.choice([1, 1, 2, 3, 5, 8, 13, 21, 34, 70]))
        splits.append(size)
        total -= size
    return splits


def _disturb(name: str, model: LanguageModel, text: list[int]) -> None:
    """Leaves something else in the model's cache."""
    middle = len(text) // 2
    if name == "after another text":
        model.logits(text[::-1], 1, middle)
    elif name == "after a wrong guess":
        model.logits([*text[:middle], 1, 2, 3], 1, 1)
    elif name == "after the same text as prompt":
        model.logits(text, 1, len(text))


@dataclass(frozen=True, slots=True)
class Comparison:
    """One answer of a method compared with plain decoding's: tokens, and how many differ."""

    method: str
    prompt: int
    params: SamplingParams
    tokens: int
    differences: int


def check_methods(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    methods: Sequence[str],
    temperatures: Sequence[float],
    max_tokens: int,
) -> Iterator[Comparison]:
    """Answers every prompt with every method at every temperature; a new seed each round, for as
    long as it is iterated."""
    seed = 0
    while True:
        for number, prompt in enumerate(prompts):
            for temperature in temperatures:
                params = SamplingParams(temperature=temperature, seed=seed, max_tokens=max_tokens)
                reference = llm.generate(list(prompt), params, method="ar").tokens
                for method in methods:
                    tokens = llm.generate(list(prompt), params, method=method).tokens
                    yield Comparison(
                        method, number, params, len(tokens), differences(tokens, reference)
                    )
        seed += 1


def differences(tokens: Sequence[int], reference: Sequence[int]) -> int:
    """At how many places two answers differ."""
    unequal = sum(a != b for a, b in zip(tokens, reference, strict=False))
    return unequal + abs(len(tokens) - len(reference))
