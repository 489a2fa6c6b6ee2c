"""Figures of an answer, from its Steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doublespec.decoding import Step
from doublespec.stats import find_bubbles, repeated_ngrams, summarise
from tests.timelines import parallel_steps


def step(new: list[int], guess: list[int], num_drafted: int, seconds: float = 0.5) -> Step:
    return Step(
        new=tuple(new),
        guess=tuple(guess),
        num_drafted=num_drafted,
        finish="length",
        guess_seconds=0.1,
        target_seconds=0.3,
        wait_seconds=0.1,
        seconds=seconds,
    )


def test_figures_of_an_answer() -> None:
    stats = summarise(
        [
            step([1, 2, 3, 4], [1, 2, 3, 9], 2, seconds=1.0),  # both drafted, 1 of 2 retrieved kept
            step([5], [6, 7], 2),  # both drafted refused
            step([8, 9], [8], 0),  # retrieval alone, kept
        ]
    )
    assert (stats.steps, stats.tokens, stats.finish) == (3, 7, "length")
    assert stats.mean_accepted_length == pytest.approx(7 / 3)
    assert stats.draft_acceptance == pytest.approx(2 / 4)
    assert stats.retrieval_acceptance == pytest.approx(2 / 3)
    assert stats.rows_per_token == pytest.approx((5 + 3 + 2) / 7)
    assert (stats.ttft_seconds, stats.seconds) == (1.0, 2.0)
    assert stats.tpot_seconds == pytest.approx(1.0 / 3)
    assert stats.tokens_per_second == pytest.approx(3.5)


def test_nothing_shown_is_no_rate() -> None:
    stats = summarise([step([1], [], 0), step([2], [], 0)])
    assert stats.draft_acceptance is None
    assert stats.retrieval_acceptance is None
    assert stats.mean_accepted_length == 1.0


def test_an_answer_that_was_cancelled_at_once_has_figures_too() -> None:
    stats = summarise([])
    assert (stats.steps, stats.tokens, stats.mean_accepted_length) == (0, 0, 0.0)
    assert (stats.tokens_per_second, stats.finish) == (0.0, None)


def test_a_guess_that_was_kept_and_cut_at_the_end_counts_as_kept() -> None:
    assert summarise([step([1, 2], [1, 2, 3, 4], 4)]).draft_acceptance == pytest.approx(0.5)


def test_a_bubble_is_a_later_step_with_nothing_drafted_to_judge() -> None:
    steps = parallel_steps()
    assert [i for i, is_bubble in enumerate(find_bubbles(steps)) if is_bubble] == [3, 9]
    assert summarise(steps).bubbles == pytest.approx(2 / 11)
    assert summarise([*steps, *steps]).bubbles == pytest.approx(2 / 11)  # two answers
    assert summarise(steps[:1]).bubbles is None
    retrieval = [step([1], [2], 0), step([1, 2], [1], 0)]
    assert summarise(retrieval).bubbles is None


def test_a_draft_idles_where_it_makes_no_forward() -> None:
    steps = parallel_steps()
    busy = sum(forward.seconds for one in steps for forward in one.forwards)
    assert summarise(steps).draft_idle == pytest.approx(1 - busy / summarise(steps).seconds)
    assert summarise([step([1], [1], 1)]).draft_idle is None


def test_corrections_are_foreseen_where_there_were_any() -> None:
    assert summarise(parallel_steps()).foreseen == pytest.approx(3 / 5)
    assert summarise([step([1], [1], 1)]).foreseen is None


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 5))
def test_repeated_ngrams_are_those_that_stood_before(tokens: list[int], size: int) -> None:
    ngrams = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
    repeated = sum(ngram in ngrams[:i] for i, ngram in enumerate(ngrams))
    assert repeated_ngrams(tokens, size) == pytest.approx(repeated / max(len(ngrams), 1))
