"""The indexes over this request's text, against a scan that has no memory."""

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doublespec.retrieval.chains import MOST_PLACES, Chains, common_suffix
from doublespec.retrieval.context import RECENT, ContextIndex, NgramIndex, RequestText
from doublespec.retrieval.recent import RecentNgramIndex

Text = list[int]


def edits(vocabulary: int) -> st.SearchStrategy[list[tuple[float, Text]]]:
    """Steps of a text: the share of it that is kept, and what is appended then."""
    new = st.lists(st.integers(0, vocabulary - 1), max_size=12)
    return st.lists(st.tuples(st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.0]), new), max_size=25)


def histories(steps: list[tuple[float, Text]]) -> list[Text]:
    """The texts that the steps lead through."""
    texts, text = [], list[int]()
    for kept, new in steps:
        text = text[: round(kept * len(text))] + new
        texts.append(text)
    return texts


def shared(text: Text, stop: int) -> int:
    """How many tokens before `stop` equal those at the end of the text."""
    depth = 0
    while depth < stop and text[stop - 1 - depth] == text[len(text) - 1 - depth]:
        depth += 1
    return depth


def longest_by_scan(text: Text) -> tuple[int, list[int]]:
    """The depth of the longest match and all its stops, latest first."""
    depths = {stop: shared(text, stop) for stop in range(len(text) - 1, 0, -1)}
    deepest = max(depths.values(), default=0)
    return deepest, [stop for stop, depth in depths.items() if depth == deepest > 0]


def going_on(text: Text, stop: int, depth: int, limit: int) -> Text:
    """What followed a stop; where the text ends sooner, and has repeated all of that, once more."""
    run = text[stop : stop + limit]
    return (run * limit)[:limit] if len(run) <= depth else run


def published_by_scan(text: Text, limit: int) -> tuple[Text, int] | None:
    """The published search: n-grams of 3, 2, 1 tokens, the first match in the text."""
    for size in (3, 2, 1):
        for stop in range(size, len(text)):
            if text[stop - size : stop] == text[len(text) - size :]:
                return text[stop : stop + limit], size
    return None


@pytest.mark.parametrize("vocabulary", [1, 2, 5, 40])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_context_index_finds_the_longest_match_of_a_scan(
    vocabulary: int, data: st.DataObject
) -> None:
    index = ContextIndex()
    for text in histories(data.draw(edits(vocabulary))):
        match, (depth, stops) = index.lookup(text, 5), longest_by_scan(text)
        if match is None:
            assert depth == 0
        else:
            assert match.depth == depth
            runs = [going_on(text, stop, depth, 5) for stop in stops[:MOST_PLACES]]
            assert list(match.tokens) in runs


def test_a_text_that_goes_round_is_expected_to_go_on_so() -> None:
    once, twice = [9, 1, 2, 3, 1], [9, 1, 2, 3, 1, 2, 3]
    for text, run in ((once, (2, 3, 1)), (twice, (1, 2, 3, 1, 2, 3, 1, 2))):
        match = ContextIndex().lookup(text, 8)
        assert match is not None
        assert match.tokens == run


@settings(max_examples=100, deadline=None)
@given(steps=edits(3))
def test_an_index_that_followed_a_text_answers_like_a_fresh_one(
    steps: list[tuple[float, Text]],
) -> None:
    followed = ContextIndex()
    for text in histories(steps):
        assert followed.lookup(text, 7) == ContextIndex().lookup(text, 7)


@settings(max_examples=100, deadline=None)
@given(steps=edits(4))
def test_ngram_index_finds_the_first_match_of_a_scan(steps: list[tuple[float, Text]]) -> None:
    index = NgramIndex()
    for text in histories(steps):
        match = index.lookup(text, 5)
        found = None if match is None else (list(match.tokens), match.depth)
        assert found == published_by_scan(text, 5)


@settings(max_examples=100, deadline=None)
@given(steps=edits(2))
def test_cut_chains_are_those_of_a_fresh_index(steps: list[tuple[float, Text]]) -> None:
    chains = Chains(bits=4)  # few hashes: n-grams share chains
    for text in histories(steps):
        kept = len([a for a, b in zip(chains.tokens, text, strict=False) if a == b])
        kept = next((i for i in range(kept) if chains.tokens[i] != text[i]), kept)
        chains.cut(kept)
        chains.extend(text[kept:])
        fresh = Chains(bits=4)
        fresh.extend(text)
        assert chains.earlier(len(text)) == fresh.earlier(len(text))


def test_a_list_that_grows_is_followed_without_comparing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, new = random.Random(2).choices(range(9), k=300), random.Random(3).choices(range(9), k=50)
    texts = [text + new[:count] for count in range(1, 51)]
    wanted = [ContextIndex().lookup(each, 5) for each in texts]
    index = ContextIndex()
    index.lookup(text, 5)
    monkeypatch.setattr(RequestText, "_agreed", None)
    for token, match in zip(new, wanted, strict=True):
        text.append(token)
        assert index.lookup(text, 5) == index.lookup(text, 5) == match


@settings(max_examples=100, deadline=None)
@given(steps=edits(3))
def test_it_says_at_once_whether_four_tokens_were_seen_before(
    steps: list[tuple[float, Text]],
) -> None:
    index = ContextIndex()
    for text in histories(steps):
        depth, _ = longest_by_scan(text)
        assert depth >= 4 or not index.may_know(text)
        copied = [*text, *range(10, 16), *text[-3:], *range(10, 16)]
        assert index.may_know(copied)


@given(
    a=st.lists(st.integers(0, 1)), b=st.lists(st.integers(0, 1)), end=st.lists(st.integers(0, 1))
)
def test_common_suffix_counts_what_two_texts_share(a: Text, b: Text, end: Text) -> None:
    one, other = [7, *a, *end], [8, *b, *end]
    length = common_suffix([*one, *other], len(one), len(one) + len(other))
    assert one[len(one) - length :] == other[len(other) - length :]
    assert one[-length - 1] != other[-length - 1]


def test_a_match_of_thousands_of_tokens_is_measured_whole() -> None:
    passage = random.Random(0).choices(range(1000), k=5000)
    text = [1001, *passage, 1002, 1003, *passage]
    match = ContextIndex().lookup(text, 2)
    assert match is not None
    assert (match.depth, match.tokens) == (5000, (1002, 1003))


def test_an_edited_copy_goes_on_from_the_passage_it_was_copied_from() -> None:
    """The latest match of one token is a decoy; the text before it tells them apart."""
    passage = list(range(10, 40))
    text = [*passage, 5, 7, 25, 6, *passage[:10], 99, *passage[11:15], 98, 25]
    index = ContextIndex()
    match = index.lookup(text, 3)
    assert match is not None
    assert (match.depth, match.tokens) == (1, (26, 27, 28))
    assert text[33] == 6, "what followed the latest 25"


def test_the_continuation_of_most_matches_wins() -> None:
    text = [1, 2, 3, 50, 4, 2, 3, 60, 5, 2, 3, 50, 6, 2, 3, 70, 8, 2, 3]
    match = ContextIndex().lookup(text, 1)
    assert match is not None
    assert (match.depth, match.tokens, match.share) == (2, (50,), 0.5)


@pytest.mark.parametrize("limit", [0, -1])
def test_no_room_means_no_run(limit: int) -> None:
    assert ContextIndex().lookup([1, 2, 1], limit) is None
    assert NgramIndex().lookup([1, 2, 1], limit) is None


def test_another_request_is_noticed_though_its_end_is_the_same() -> None:
    ending = list(range(2 * RECENT))
    index = ContextIndex()
    index.lookup([5000] * 1000 + ending, 4)
    text = [6000, 255, 7000] * 333 + [1] + ending
    match = index.lookup(text, 2)
    assert match is not None
    assert match.tokens == (7000, 1)


@pytest.mark.parametrize("part", ["cut", "extend", "earlier", "_begin"])
@pytest.mark.parametrize("is_done", [False, True])
def test_an_interrupt_leaves_no_half_of_a_text(
    part: str, is_done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a part of the work or after it: the next texts are followed as by a fresh index."""
    first, second = [i * i % 7 for i in range(60)], [i * i % 5 for i in range(2000)]
    index = ContextIndex()
    index.lookup(first, 8)
    work = getattr(Chains, part)

    def interrupted(*arguments: object) -> None:
        if is_done:
            work(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Chains, part, interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.lookup(second, 8)
    for text in (second, first, [*first, 0, 1, 4], first[:30]):
        assert index.lookup(text, 8) == ContextIndex().lookup(text, 8)


@pytest.mark.parametrize("calls", [1, 20, 120])
def test_an_interrupted_baseline_follows_the_next_text(calls: int) -> None:
    first, second = [i * i % 7 for i in range(60)], [i * i % 5 for i in range(50)]
    index = RecentNgramIndex(4, 2)
    index.lookup(first, 8)
    left, ngrams = iter(range(calls)), index._ngrams

    def interrupted(stop: int) -> list[tuple[int, ...]]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return ngrams(stop)

    index._ngrams = interrupted  # type: ignore[method-assign]
    with contextlib.suppress(KeyboardInterrupt):
        index.lookup(second, 8)
    index._ngrams = ngrams  # type: ignore[method-assign]
    for text in (second, first):
        assert index.lookup(text, 8) == RecentNgramIndex(4, 2).lookup(text, 8)


@pytest.mark.parametrize("index", [NgramIndex(), RecentNgramIndex(8, 2)])
def test_texts_that_are_gone_take_no_memory(index: NgramIndex | RecentNgramIndex) -> None:
    chance = random.Random(0)
    for _ in range(30):
        index.lookup([chance.randrange(8000) for _ in range(50)], 8)
    kept = index._first if isinstance(index, NgramIndex) else index._ends
    assert len(kept) <= 50 * 7


def test_a_change_far_back_is_noticed_within_a_few_lookups() -> None:
    """Not every token is compared every time: until it is noticed a match may be missed."""
    text = random.Random(1).choices(range(50, 20_000), k=3000)
    index = ContextIndex()
    index.lookup(text, 4)
    changed = [*text[:1000], 7, 8, *text[1002:], 7]
    runs = [index.lookup(list(changed), 1) for _ in range(100)]
    assert runs[-1] is not None
    assert runs[-1].tokens == (8,)
