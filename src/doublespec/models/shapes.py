"""Canonical shapes: in which blocks a text is computed, so that a row's bits depend on its text.

A forward over k + 1 rows and one over a single row may round differently, and attention rounds
by the length of the keys. So each block of rows is padded to a row count from a set that was shown
to give the same bits, and a row attends over a number of keys that follows from its position alone:

    row at position p   attends over   the first multiple of `key_step` above p   keys
    rows of the prompt  come in        row counts from `prompt`
    rows of the answer  come in        row counts from `answer`
    a lone row          attends as     `lone` equal rows

A block that crosses a border of key lengths attends in spans, each over its own number of keys, in
row counts from the same sets (with rows of its neighbours as padding). A span has `key_step` rows
at most; what is padding beyond that does not attend. Where prompt and answer rows have the same
bits too (`alike`), a cached row serves in both roles. `FASTEST` pads nothing: for drafts, whose
bits change nothing but speed, and as the baseline in benchmarks. On a CPU drafts come in `FEW` row
counts, as each new one costs time and memory. Which sets hold on this device is
found by a test of its kernels (`models/kernels.py`).
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, equal

# What a kernel makes of a block of rows, given as indices into its KERNEL_ROWS rows of input.
Kernel = Callable[[Tensor], Tensor]

ANSWER_COUNTS: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
PROMPT_COUNTS: tuple[int, ...] = (16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
KEY_STEP = 256
FINE_KEY_STEP = 32  # for a CPU, where every key costs
KERNEL_ROWS = 16


@dataclass(frozen=True, slots=True)
class Shapes:
    """Row counts (ascending) that blocks of the prompt and of the answer are padded to; `lone` is 1
    or one of the answer's."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    key_step: int | None
    alike: bool
    lone: int = 1

    def is_canonical(self) -> bool:
        return self.key_step is not None


FASTEST = Shapes(tuple(range(1, 257)), tuple(range(1, 257)), key_step=None, alike=True)
# For each new row count oneDNN makes code of half a megabyte a product, which takes a small draft's
# first forward twice as long (docs/log.md, 2026-11-26).
FEW = Shapes(PROMPT_COUNTS, ANSWER_COUNTS, key_step=None, alike=True)
# Safe on any device whose kernels treat equal shapes equally: one row count per role.
STRICT = Shapes((256,), (16,), key_step=KEY_STEP, alike=False)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of a block, counted from its first, that attend over `keys` keys, among
    rows [first, first + rows) or, if the block has but one row, as `rows` equal ones."""

    start: int
    stop: int
    keys: int
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class Block:
    """Positions [start, stop), computed as `rows` rows: the last ones are padding, and attend as
    part of the last span."""

    start: int
    stop: int
    rows: int
    spans: tuple[Span, ...]


def plan(start: int, stop: int, prompt_length: int, shapes: Shapes) -> Iterator[Block]:
    """The blocks that compute positions [start, stop), in order."""
    while start < stop:
        in_prompt = start < prompt_length
        counts = shapes.prompt if in_prompt else shapes.answer
        end = min(stop, start + counts[-1])
        if in_prompt:  # blocks end at multiples of their size, where key lengths change too
            end = min(end, prompt_length, (start // counts[-1] + 1) * counts[-1])
        end = start + _without_waste(end - start, counts)
        rows = pad(end - start, counts)
        yield Block(start, end, rows, tuple(_spans(start, end, rows, counts, shapes)))
        start = end


def _without_waste(rows: int, counts: Sequence[int]) -> int:
    """`rows`, or fewer of them for now, where most of the block would be padding."""
    smaller = bisect_left(counts, rows) - 1
    return counts[smaller] if smaller >= 0 and pad(rows, counts) > 2 * rows else rows


def pad(rows: int, counts: Sequence[int]) -> int:
    """The smallest allowed row count that holds `rows` rows."""
    return counts[bisect_left(counts, rows)]


def attending(counts: Sequence[int], key_step: int) -> Sequence[int]:
    """Those of the row counts in which spans attend, which have `key_step` rows at most."""
    return counts[: bisect_left(counts, key_step) + 1]


def _spans(
    start: int, stop: int, rows: int, counts: Sequence[int], shapes: Shapes
) -> Iterator[Span]:
    row = start
    while row < stop:
        keys = (row // shapes.key_step + 1) * shapes.key_step if shapes.key_step else stop
        end = min(stop, keys)
        own = end - row if end < stop else min(start + rows - row, shapes.key_step or rows)
        count = pad(max(own, shapes.lone), counts)
        first = max(0, min(row - start, rows - count))
        yield Span(row - start, end - start, keys, first, count)
        row = end


def reusable(common: int, cached_prompt_length: int, prompt_length: int, shapes: Shapes) -> int:
    """How many of `common` equal leading tokens have cached rows with the right bits."""
    if shapes.alike or cached_prompt_length == prompt_length:
        return common
    return min(common, cached_prompt_length, prompt_length)


def find_shapes(
    products: Iterable[Kernel],
    attention: Iterable[Kernel],
    vocabulary: Iterable[Kernel],
    key_step: int = KEY_STEP,
) -> Shapes:
    """The largest sets of row counts whose bits agree in all kernels; `STRICT` if none do. A row
    that only attention would not compute alone comes alone, and attends as several.

    Logits are always computed in row counts of the answer.
    """
    answer, prompt, alike = ANSWER_COUNTS, PROMPT_COUNTS, True
    for kernel in products:
        few, many = _reference(kernel, STRICT.answer[-1]), _reference(kernel, STRICT.prompt[-1])
        answer, prompt = _agreeing(kernel, answer, few), _agreeing(kernel, prompt, many)
        alike = alike and equal(few, many)
    for kernel in vocabulary:
        answer = _agreeing(kernel, answer, _reference(kernel, STRICT.answer[-1]))
    attended = answer
    for kernel in attention:
        if not prompt or not attended:
            return STRICT
        most = attending(prompt, key_step)[-1]
        few, many = _reference(kernel, STRICT.answer[-1]), _reference(kernel, most)
        attended = _agreeing_spans(kernel, attended, few, key_step)
        prompt = _agreeing_spans(kernel, prompt, many, key_step)
        alike = alike and equal(few, many)
    several = tuple(n for n in answer if n > 1 and n in attended)
    if not prompt or not several:
        return STRICT
    lone = several[0] if 1 in answer and 1 not in attended else 1
    return Shapes(prompt, (1, *several) if 1 in answer else several, key_step, alike, lone)


def _agreeing_spans(
    kernel: Kernel, counts: Sequence[int], wanted: Tensor, key_step: int
) -> tuple[int, ...]:
    """The counts that may be used where attention agrees for those in which spans attend: larger
    ones too, if these hold the longest span."""
    tested = attending(counts, key_step)
    agreed = _agreeing(kernel, tested, wanted)
    return (*agreed, *counts[len(tested) :]) if agreed[-1:] == (tested[-1],) else agreed


def key_lengths(max_length: int, key_step: int) -> list[int]:
    """Key lengths to test: multiples of the key step up to 512, which is as many keys as PyTorch
    takes at a time on a CPU, and powers of two up to 8,192."""
    lengths = [*range(key_step, 512, key_step), 512, 1024, 2048, 4096, 8192]
    return [keys for keys in lengths if keys <= max(max_length, key_step)]


def standing(count: int) -> Tensor:
    """A block of so many of a kernel's rows, each elsewhere than in its reference."""
    return (torch.arange(count) + 5) % KERNEL_ROWS


def _reference(kernel: Kernel, count: int) -> Tensor:
    """What a kernel makes of each of its rows in a block of `count` rows."""
    return kernel(torch.arange(count) % KERNEL_ROWS)[:KERNEL_ROWS]


def _agreeing(kernel: Kernel, counts: Sequence[int], wanted: Tensor) -> tuple[int, ...]:
    """The counts for which every row of a block has the `wanted` bits, each standing elsewhere in
    the block than it does in the reference."""
    indices = {count: standing(count) for count in counts}
    return tuple(n for n, index in indices.items() if equal(kernel(index), wanted[index]))
