"""Lists of tokens, against their definitions."""

from hypothesis import given
from hypothesis import strategies as st

from doublespec.tokens import common_prefix, rebase

token_lists = st.lists(st.integers(0, 2), max_size=12)


@st.composite
def relatives(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two lists that begin alike, now and then one the prefix of the other."""
    shared = draw(st.lists(st.integers(0, 9), max_size=200))
    return shared + draw(token_lists), shared + draw(token_lists)


@given(relatives())
def test_the_common_prefix_is_as_long_as_tokens_are_equal(
    pair: tuple[list[int], list[int]],
) -> None:
    a, b = pair
    length = common_prefix(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]


@given(relatives())
def test_any_sequence_of_tokens_will_do(pair: tuple[list[int], list[int]]) -> None:
    a, b = pair
    assert common_prefix(tuple(a), b) == common_prefix(a, tuple(b)) == common_prefix(a, b)
    assert rebase(a, tuple(b)) == rebase(a, b)


@given(token_lists, token_lists)
def test_the_rest_of_a_guess_holds_if_what_was_settled_is_its_prefix(
    guess: list[int], settled: list[int]
) -> None:
    rest = rebase(guess, settled)
    assert rest == [] or settled + rest == guess
    if settled == guess[: len(settled)]:
        assert settled + rest == guess


def test_a_guess_that_was_settled_beyond_its_end_leaves_nothing() -> None:
    assert rebase([1, 2], [1, 2, 3]) == []
