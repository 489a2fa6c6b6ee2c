"""Canonical shapes: in which blocks a text is computed, so that a row's bits depend on its text.

A forward over k + 1 rows and one over a single row may round differently, and attention rounds
by the length of the keys. So each block of rows is padded to a row count from a set that was shown
to give the same bits, and a row attends over a number of keys that follows from its position alone:

    row at position p   attends over   the first multiple of `key_step` above p   keys
    rows of the prompt  come in        row counts from `prompt`
    rows of the answer  come in        row counts from `answer`

Where prompt and answer rows have the same bits too (`alike`), a cached row serves in both roles.
`FASTEST` pads nothing: for drafts, whose bits change nothing but speed, and as the baseline in
benchmarks. Which sets hold on this device is found by `find_shapes`, from the model's own kernels.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, equal

ANSWER_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32, 48, 64)
PROMPT_COUNTS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
KEY_STEP = 256
PROBE_INPUTS = 16

# A computation that a model makes, on inputs that show how it rounds: results (n, X) for a block
# of those of its PROBE_INPUTS inputs whose indices (n,) it is given, or NaN, which equals nothing.
Probe = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Shapes:
    """Row counts (ascending) that blocks of the prompt and of the answer are padded to."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    key_step: int | None
    alike: bool

    def is_canonical(self) -> bool:
        return self.key_step is not None


FASTEST = Shapes(tuple(range(1, 257)), tuple(range(1, 257)), key_step=None, alike=True)
# Safe on any device whose kernels treat equal shapes equally: one row count per role.
STRICT = Shapes((256,), (16,), key_step=KEY_STEP, alike=False)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows [start, stop) of a block, counted from its first row, that attend over `keys` keys."""

    start: int
    stop: int
    keys: int


@dataclass(frozen=True, slots=True)
class Block:
    """Positions [start, stop), computed as `rows` rows (the last one repeated as padding)."""

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
        yield Block(start, end, pad(end - start, counts), _spans(start, end, shapes.key_step))
        start = end


def _without_waste(rows: int, counts: Sequence[int]) -> int:
    """`rows`, or fewer of them for now, where most of the block would be padding."""
    smaller = bisect_left(counts, rows) - 1
    return counts[smaller] if smaller >= 0 and pad(rows, counts) > 2 * rows else rows


def pad(rows: int, counts: Sequence[int]) -> int:
    """The smallest allowed row count that holds `rows` rows."""
    return counts[bisect_left(counts, rows)]


def _spans(start: int, stop: int, key_step: int | None) -> tuple[Span, ...]:
    if key_step is None:
        return (Span(0, stop - start, stop),)
    spans = []
    row = start
    while row < stop:
        keys = (row // key_step + 1) * key_step
        end = min(stop, keys)
        spans.append(Span(row - start, end - start, keys))
        row = end
    return tuple(spans)


def reusable(common: int, cached_prompt_length: int, prompt_length: int, shapes: Shapes) -> int:
    """How many of `common` equal leading tokens have cached rows with the right bits."""
    if shapes.alike or cached_prompt_length == prompt_length:
        return common
    return min(common, cached_prompt_length, prompt_length)


def find_shapes(probes: Iterable[Probe]) -> Shapes:
    """The largest sets of row counts that all probes show to give equal bits on this device.

    Answers are computed in counts that agree with 16 rows, prompts in counts that agree with 256;
    where 256 rows do not even agree with themselves (a CPU divides them among its threads, and the
    sums with them), in the counts of answers. `STRICT` if 16 rows do not agree with themselves.
    """
    few_rows, many_rows = STRICT.answer[0], STRICT.prompt[0]
    answer: tuple[int, ...] = ANSWER_COUNTS
    small: tuple[int, ...] = PROMPT_COUNTS
    large: tuple[int, ...] = PROMPT_COUNTS
    alike = True
    for probe in probes:
        few, many = _reference(probe, few_rows), _reference(probe, many_rows)
        answer = tuple(n for n in answer if _agrees(probe, n, few))
        small = tuple(n for n in small if _agrees(probe, n, few))
        large = tuple(n for n in large if _agrees(probe, n, many))
        alike = alike and equal(few, many)
    if few_rows not in answer:
        return STRICT
    if many_rows not in large:
        return Shapes(small, answer, KEY_STEP, alike=True)
    return Shapes(large, answer, KEY_STEP, alike)


def _reference(probe: Probe, rows: int) -> Tensor:
    """What a probe gives for each of its inputs in a block of `rows` rows."""
    return probe(torch.arange(rows) % PROBE_INPUTS)[:PROBE_INPUTS]


def _agrees(probe: Probe, rows: int, wanted: Tensor) -> bool:
    """Whether blocks of `rows` rows give the `wanted` bits for every row of a block, each input
    standing elsewhere in its block than in the reference."""
    count = -(-PROBE_INPUTS // rows) * rows
    inputs = (torch.arange(count) + 5) % PROBE_INPUTS
    blocks = [inputs[first : first + rows] for first in range(0, count, rows)]
    return all(equal(probe(block), wanted[block]) for block in blocks)
