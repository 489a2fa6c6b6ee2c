"""Canonical shapes: blocks follow from positions, and only counts shown to agree are used."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from doublespec import LLM
from doublespec.models import load
from doublespec.models.decoder import Decoder
from doublespec.models.shapes import (
    ANSWER_COUNTS,
    FASTEST,
    FEW,
    FINE_KEY_STEP,
    KEY_STEP,
    PROMPT_COUNTS,
    STRICT,
    Block,
    Shapes,
    Span,
    attending,
    find_shapes,
    pad,
    plan,
    reusable,
)

FOUND = Shapes((16, 32, 256), (2, 3, 8, 64), KEY_STEP, alike=True)
FINE = Shapes((32, 64, 256), (1, 3, 4, 8, 64), FINE_KEY_STEP, alike=True, lone=3)
ALL_SHAPES = st.sampled_from([FOUND, FINE, STRICT, FASTEST, FEW])


@st.composite
def ranges(draw: st.DrawFn) -> tuple[int, int, int]:
    """(start, stop, prompt_length) of a request."""
    start = draw(st.integers(0, 2000))
    stop = start + draw(st.integers(1, 900))
    return start, stop, draw(st.integers(1, 3000))


def key_lengths(blocks: list[Block]) -> dict[int, int]:
    """How many keys each position attends over."""
    return {
        block.start + row: span.keys
        for block in blocks
        for span in block.spans
        for row in range(span.start, span.stop)
    }


# -- plan ------------------------------------------------------------------------------------------


@given(ranges(), ALL_SHAPES)
def test_blocks_cover_every_position_once_and_in_order(
    request_: tuple[int, int, int], shapes: Shapes
) -> None:
    start, stop, prompt_length = request_
    blocks = list(plan(start, stop, prompt_length, shapes))
    covered = [p for block in blocks for p in range(block.start, block.stop)]
    assert covered == list(range(start, stop))
    assert list(key_lengths(blocks)) == covered


@given(ranges(), ALL_SHAPES)
def test_a_block_has_an_allowed_count_of_rows_of_one_role(
    request_: tuple[int, int, int], shapes: Shapes
) -> None:
    start, stop, prompt_length = request_
    for block in plan(start, stop, prompt_length, shapes):
        in_prompt = block.start < prompt_length
        assert block.rows in (shapes.prompt if in_prompt else shapes.answer)
        assert block.stop - block.start <= block.rows
        assert not block.start < prompt_length < block.stop


@given(ranges(), st.sampled_from([FOUND, FINE, STRICT]))
def test_the_number_of_keys_follows_from_the_position(
    request_: tuple[int, int, int], shapes: Shapes
) -> None:
    for position, keys in key_lengths(list(plan(*request_, shapes))).items():
        assert shapes.key_step is not None
        assert keys == (position // shapes.key_step + 1) * shapes.key_step


@given(ranges(), ALL_SHAPES)
def test_a_span_attends_among_an_allowed_count_of_rows(
    request_: tuple[int, int, int], shapes: Shapes
) -> None:
    """A count in which spans attend, whatever the padding; and only a lone row is repeated."""
    for block in plan(*request_, shapes):
        counts = shapes.prompt if block.start < request_[2] else shapes.answer
        for span in block.spans:
            assert span.rows in attending(counts, shapes.key_step or counts[-1])
            assert span.rows >= shapes.lone
            assert span.first <= span.start < span.stop <= block.rows
            assert block.rows == 1 or span.stop <= span.first + span.rows <= block.rows


@given(ranges())
def test_the_fastest_shapes_pad_nothing(request_: tuple[int, int, int]) -> None:
    for block in plan(*request_, FASTEST):
        assert block.rows == block.stop - block.start
        assert [span.keys for span in block.spans] == [block.stop]


def test_a_block_across_a_border_of_key_lengths_has_two_spans() -> None:
    (block,) = plan(KEY_STEP - 2, KEY_STEP + 1, 10, FOUND)
    assert [(s.start, s.stop, s.keys) for s in block.spans] == [(0, 2, 256), (2, 3, 512)]


def test_a_lone_row_attends_as_several() -> None:
    (block,) = plan(100, 101, 10, FINE)
    assert (block.rows, block.spans) == (1, (Span(0, 1, 128, 0, 3),))


def test_a_span_takes_rows_of_its_neighbours_for_padding() -> None:
    (block,) = plan(126, 131, 10, FINE)
    assert block.rows == 8
    assert block.spans == (Span(0, 2, 128, 0, 3), Span(2, 5, 160, 0, 8))


def test_padding_behind_the_longest_span_does_not_attend() -> None:
    (block,) = plan(0, 200, 200, FINE)
    assert block.rows == 256
    assert [(s.first, s.rows) for s in block.spans] == [(32 * i, 32) for i in range(7)]


def test_a_block_that_would_be_mostly_padding_becomes_smaller_ones() -> None:
    """50 rows of a prompt in a block of 256 would cost five times as much as 32 and 18."""
    blocks = list(plan(0, 50, 100, FOUND))
    assert [(b.start, b.stop, b.rows) for b in blocks] == [(0, 32, 32), (32, 50, 32)]


def test_the_smallest_count_that_holds_the_rows_is_taken() -> None:
    assert [pad(n, (2, 3, 8)) for n in (1, 2, 3, 4, 8)] == [2, 2, 3, 8, 8]


# -- what may be reused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "cached_prompt", "prompt", "kept"),
    [(STRICT, 50, 50, 80), (STRICT, 50, 90, 50), (STRICT, 90, 50, 50), (FOUND, 50, 90, 80)],
)
def test_rows_are_reused_in_the_role_they_were_computed_in(
    shapes: Shapes, cached_prompt: int, prompt: int, kept: int
) -> None:
    assert reusable(80, cached_prompt, prompt, shapes) == kept


# -- find_shapes -----------------------------------------------------------------------------------


def exact(index: Tensor) -> Tensor:
    return index[:, None].float()


def but(condition: Tensor | bool, index: Tensor) -> Tensor:
    """As `exact`, but slightly different where the condition holds."""
    return exact(index) + 1e-3 * torch.as_tensor(condition).reshape(-1, 1).float()


def test_all_counts_are_used_where_all_agree() -> None:
    found = find_shapes([exact], [exact], [exact])
    assert found == Shapes(PROMPT_COUNTS, ANSWER_COUNTS, KEY_STEP, alike=True)


def test_counts_that_differ_in_any_kernel_are_left_out() -> None:
    products = [exact, lambda i: but(len(i) == 4, i)]
    attention = [exact, lambda i: but(len(i) == 8, i)]
    found = find_shapes(products, attention, [lambda i: but(len(i) % 2 == 1, i)])
    assert found.answer == tuple(n for n in ANSWER_COUNTS if n % 2 == 0 and n not in (4, 8))
    assert found.prompt == PROMPT_COUNTS


def test_a_row_comes_alone_where_only_attention_tells_it_from_several() -> None:
    found = find_shapes([exact], [lambda i: but(len(i) < 3, i)], [exact])
    assert (found.answer, found.lone) == ((1, *ANSWER_COUNTS[2:]), 3)


def test_a_row_never_comes_alone_where_products_tell_it_from_several() -> None:
    for products, vocabulary in (([but_alone], []), ([exact], [but_alone])):
        found = find_shapes(products, [exact, but_alone], vocabulary)
        assert (found.answer, found.lone) == (ANSWER_COUNTS[1:], 1)


def but_alone(index: Tensor) -> Tensor:
    return but(len(index) == 1, index)


def test_prompts_keep_their_large_blocks_where_these_differ_from_small_ones() -> None:
    found = find_shapes([exact], [lambda i: but(len(i) > 32, i)], [])
    assert found.prompt == tuple(n for n in PROMPT_COUNTS if n > 32)
    assert found.answer[-1] == 32
    assert not found.alike


@pytest.mark.parametrize("wrong", [16, 32, 48])
def test_attention_is_tested_only_in_counts_that_spans_can_have(wrong: int) -> None:
    """Of 32 rows, the longest span here, all that is larger may differ."""
    tested: list[int] = []

    def attention(index: Tensor) -> Tensor:
        tested.append(len(index))
        return but(len(index) == wrong, index)

    found = find_shapes([exact], [attention] * 2, [exact], FINE_KEY_STEP)
    assert max(tested) == 32
    if wrong == 32:  # which holds the longest span, so that others must agree with it
        assert found.prompt == tuple(n for n in PROMPT_COUNTS if n >= 32)
        assert found.answer == tuple(n for n in ANSWER_COUNTS if n < 32)
    else:
        assert found.prompt == tuple(n for n in PROMPT_COUNTS if n != wrong or n > 32)
        assert found.answer == ((1, 16) if wrong == 16 else tuple(ANSWER_COUNTS))


def test_logits_may_differ_in_counts_that_only_prompts_have() -> None:
    assert find_shapes([exact], [exact], [lambda i: but(len(i) > 64, i)]).prompt == PROMPT_COUNTS


def test_strict_shapes_are_used_where_a_row_depends_on_where_it_stands() -> None:
    def first_row_differs(index: Tensor) -> Tensor:
        return but(torch.arange(len(index)) == 0, index)

    assert find_shapes([exact, first_row_differs], [exact], [exact]) == STRICT
    assert find_shapes([exact], [first_row_differs], [exact]) == STRICT
    assert find_shapes([exact], [exact], [first_row_differs]) == STRICT


@pytest.mark.parametrize("place", [33, 40, 63])
def test_a_count_is_left_out_if_one_row_of_its_block_differs(place: int) -> None:
    found = find_shapes([lambda i: but(torch.arange(len(i)) == place, i)], [exact], [])
    assert found.answer == tuple(n for n in ANSWER_COUNTS if n <= place)


@pytest.mark.parametrize("slow", [(0,), (1,), (0, 1), (1, 2), (0, 1, 2)])
def test_row_counts_over_which_more_rows_are_faster_are_left_out(
    pytorch: LLM, monkeypatch: pytest.MonkeyPatch, slow: tuple[int, ...]
) -> None:
    """And the bits stay."""
    model = pytorch.target
    assert isinstance(model, Decoder)
    counts = model.shapes.answer
    if len(counts) < 4:
        pytest.skip("the kernels of this machine agree for few row counts only")
    left_out = {counts[place] for place in slow}
    monkeypatch.setattr(
        load.Stopwatch, "seconds", lambda watch, rows: 2.0 if rows in left_out else 1.0
    )
    found = load.without_slow_counts(model)
    assert found.shapes.answer == tuple(rows for rows in counts if rows not in left_out)
    text = list(range(5, 65))
    for rows in (1, 2, 5):
        assert torch.equal(found.logits(text, rows, 40), model.logits(text, rows, 40))


def test_row_counts_that_take_equally_long_are_kept(
    pytorch: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load.Stopwatch, "seconds", lambda watch, rows: 1.0)
    assert load.without_slow_counts(pytorch.target) is pytorch.target
