"""The stop rule: where an answer ends does not depend on the runs it came in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doublespec.stopping import StopRule

# 30 byte tokens, two of which are halves of a character, and longer tokens; 0 shows nothing.
WORDS = [b"", b"\xc3", b"\xa9", b"ab", b"abc ", b"END", *(bytes([97 + i]) for i in range(10))]


def text_of(tokens: list[int]) -> str:
    return b"".join(WORDS[token] for token in tokens).decode(errors="replace")


def rule(
    max_tokens: int = 1000, *, ends: tuple[int, ...] = (), strings: tuple[str, ...] = ()
) -> StopRule:
    return StopRule(max_tokens, frozenset(ends), strings, text_of)


def naive_end(tokens: list[int], stop: StopRule) -> tuple[int, str | None]:
    """How long the answer is, asked after every token of the whole text."""
    for length in range(1, len(tokens) + 1):
        text = text_of(tokens[:length])
        if tokens[length - 1] in stop.end_ids or any(string in text for string in stop.strings):
            return length, "stop"
        if length == stop.max_tokens:
            return length, "length"
    return len(tokens), None


def answer(runs: list[list[int]], stop: StopRule) -> tuple[list[int], str | None]:
    tokens: list[int] = []
    for run in runs:
        new, finish = stop.cut(tokens, run)
        tokens += new
        if finish is not None:
            return tokens, finish
    return tokens, None


runs_of_tokens = st.lists(st.lists(st.integers(1, len(WORDS) - 1), min_size=1, max_size=9))


@given(
    runs_of_tokens,
    st.integers(1, 40),
    st.sets(st.integers(0, 20), max_size=1),
    st.lists(st.sampled_from(["é", "abcd", "bEND", " ab", "jjj", "c E", "a"]), max_size=2),
)
def test_an_answer_ends_at_the_same_token_however_it_is_split(
    runs: list[list[int]], max_tokens: int, ends: set[int], strings: list[str]
) -> None:
    stop = rule(max_tokens, ends=tuple(ends), strings=tuple(strings))
    tokens = [token for run in runs for token in run]
    length, finish = naive_end(tokens, stop)
    for split in (runs, [tokens], [[token] for token in tokens]):
        assert answer([run for run in split if run], stop) == (tokens[:length], finish)


def test_an_end_token_inside_a_run_ends_it_there() -> None:
    assert rule(ends=(7,)).cut([1, 2], [6, 7, 8]) == ([6, 7], "stop")


def test_a_stop_string_across_two_runs_ends_the_second() -> None:
    assert rule(strings=("abcde",)).cut([3], [8, 9, 10, 11]) == ([8, 9, 10], "stop")


def test_an_answer_has_no_more_tokens_than_it_may_have() -> None:
    assert rule(4).cut([8, 8], [9, 9, 9]) == ([9, 9], "length")
    assert rule(5).cut([8, 8], [9, 9]) == ([9, 9], None)


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    assert rule(2, ends=(7,)).cut([8], [7, 9]) == ([7], "stop")


def test_a_stop_string_that_began_many_tokens_ago_is_found() -> None:
    string = "abcdefghij" * 3
    tokens = [6 + i % 10 for i in range(30)]
    assert answer([[token] for token in tokens], rule(strings=(string,))) == (tokens, "stop")


def test_text_is_not_asked_for_without_stop_strings() -> None:
    def refuse(tokens: list[int]) -> str:
        raise AssertionError

    assert StopRule(9, frozenset(), (), refuse).cut([], [6, 7]) == ([6, 7], None)


@pytest.mark.parametrize("between", [20, 100])
def test_tokens_that_show_nothing_do_not_hide_a_stop_string(between: int) -> None:
    """Special tokens that do not end the answer stood between the halves of a stop string, and
    pushed the first out of the window that was looked at."""
    tokens = [6, *[0] * between, 7]
    assert answer([[token] for token in tokens], rule(strings=("ab",))) == (tokens, "stop")
