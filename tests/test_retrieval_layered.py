"""Which source is shown, and how much of its run."""

import pytest

from doublespec.retrieval.base import Match
from doublespec.retrieval.context import ContextIndex, EditIndex, RequestText, context_sources
from doublespec.retrieval.expectation import Expectation, drafted_ahead
from doublespec.retrieval.history import History
from doublespec.retrieval.layered import LayeredIndex, Prices, Sources
from doublespec.tokens import Tokens

FREE = [1.0] * 97
DEEP = Match(tuple(range(100, 196)), 40, "deep")
SHALLOW = Match(tuple(range(500, 596)), 1, "shallow", likeness=0.1, share=0.4)


class FixedIndex:
    """Answers the same whatever the text."""

    def __init__(self, match: Match | None) -> None:
        self._match = match

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        return self._match._replace(tokens=self._match.tokens[:limit]) if self._match else None


def replay(index: LayeredIndex, steps: int, truth: list[int]) -> list[Match | None]:
    """Lookups for a text that goes on with `truth` after each."""
    text, matches = [1, 2, 3], []
    for _ in range(steps):
        matches.append(index.lookup(text, 96))
        text = text + truth
    return matches


@pytest.mark.parametrize("order", [1, -1])
def test_the_source_with_more_to_gain_is_shown(order: int) -> None:
    sources = [FixedIndex(SHALLOW), FixedIndex(None), FixedIndex(DEEP)][::order]
    match = LayeredIndex(sources).lookup([1, 2, 3], 96)
    assert match is not None
    assert match.source == "deep"


def test_a_run_behind_a_shaky_draft_is_shorter() -> None:
    """It is of use only if the whole draft holds, and its rows cost the same."""
    index = LayeredIndex([FixedIndex(DEEP)], Prices([1 + n / 40 for n in range(200)]))

    def length(count: int, kept: float) -> int:
        match = index.lookup([1], 96, drafted_ahead(count, kept))
        return 0 if match is None else len(match.tokens)

    assert length(0, 0.5) > length(2, 0.5) > length(4, 0.5) > length(10, 0.5) == 0
    assert length(4, 0.9) > length(4, 0.5)


def test_nothing_found_is_nothing_shown() -> None:
    assert LayeredIndex([FixedIndex(None)]).lookup([1], 96) is None
    assert LayeredIndex([]).lookup([1], 96) is None
    assert LayeredIndex([FixedIndex(DEEP)]).lookup([1], 0) is None


def test_a_deeper_match_shows_a_longer_run() -> None:
    def length(depth: int) -> int:
        match = LayeredIndex([FixedIndex(DEEP._replace(depth=depth))]).lookup([1], 96)
        return 0 if match is None else len(match.tokens)

    assert 0 < length(1) < length(5) < length(10) < length(40) <= 96


def test_dear_rows_shorten_the_run_and_then_nothing_is_shown() -> None:
    def length(row_cost: float) -> int:
        costs = [1 + row_cost * n for n in range(97)]
        match = LayeredIndex([FixedIndex(DEEP._replace(depth=8))], Prices(costs)).lookup([1], 96)
        return 0 if match is None else len(match.tokens)

    assert length(0.0) > length(0.05) > length(0.3) > length(2.0) == 0


def test_a_step_in_the_costs_is_filled() -> None:
    """Where 8 rows cost as much as one, 8 are shown, however doubtful the run."""
    costs = [1.0] * 9 + [100.0] * 90
    match = LayeredIndex([FixedIndex(SHALLOW)], Prices(costs)).lookup([1], 96)
    assert match is not None
    assert len(match.tokens) == 8


def test_a_source_whose_runs_never_hold_is_shown_less_and_less() -> None:
    index = LayeredIndex([FixedIndex(DEEP)], Prices([1 + n / 5 for n in range(97)]))
    shown = [len(match.tokens) if match else 0 for match in replay(index, 400, [7])]
    assert shown[0] > 10
    assert shown[-1] == 0


def test_what_is_not_shown_is_learnt_as_well() -> None:
    """The shallow source is right every time, the deep one never: soon the roles are changed."""
    right = SHALLOW._replace(tokens=(7, 8, 9))
    index = LayeredIndex([FixedIndex(DEEP), FixedIndex(right)])
    sources = [match.source for match in replay(index, 300, [7, 8, 9]) if match]
    assert (sources[0], sources[-1]) == ("deep", "shallow")


def test_a_text_that_is_not_the_last_one_gone_on_teaches_nothing() -> None:
    index = LayeredIndex([FixedIndex(DEEP)])
    first = index.lookup([1, 2, 3], 96)
    for i in range(500):
        assert index.lookup([i + 1000, *range(40)], 96) == first


def test_what_is_expected_follows_what_happened() -> None:
    hopeful, doubtful = Expectation(), Expectation()
    for _ in range(200):
        hopeful.learn(DEEP, DEEP.tokens)
        doubtful.learn(DEEP, [7])
    assert doubtful.best_run(DEEP, FREE).rate < Expectation().best_run(DEEP, FREE).rate
    assert Expectation().best_run(DEEP, FREE).rate < hopeful.best_run(DEEP, FREE).rate


def test_how_many_tokens_of_a_run_hold_is_expected_from_any_place_on() -> None:
    expectation = Expectation()
    all_of_it = expectation.holds_on(DEEP, 0)
    assert expectation.best_run(DEEP, FREE).rate == pytest.approx(1.0 + all_of_it)
    first = all_of_it / (1.0 + expectation.holds_on(DEEP, 1))  # the chance of the first token
    assert 0.5 < first < 1.0
    assert expectation.holds_on(DEEP, len(DEEP.tokens)) == 0.0


def test_an_edited_token_does_not_end_a_copy() -> None:
    """No token 99 was seen before: only the passage around it tells what follows."""
    passage = list(range(10, 60))
    text = [*passage, 5, *passage[:20], 99]
    assert ContextIndex().lookup(text, 8) is None
    match = EditIndex().lookup(text, 4)
    assert match is not None
    assert match.tokens == (31, 32, 33, 34)
    layered = LayeredIndex(context_sources()).lookup(text, 4)
    assert layered is not None
    assert (layered.tokens, layered.source) == ((31, 32, 33, 34), "edit")


def test_what_the_context_goes_on_with_is_no_edit() -> None:
    text = [1, 2, 3, 4, 1, 2, 3]
    assert EditIndex().lookup(text, 4) is None


def test_sources_of_one_text_may_be_asked_in_any_order() -> None:
    text = RequestText()
    context, edit = ContextIndex(text), EditIndex(text)
    for tokens in ([1, 2, 3, 1, 2], [1, 2, 3, 1, 2, 9], [1, 2, 3], [4, 5, 4]):
        assert edit.lookup(tokens, 3) == EditIndex().lookup(tokens, 3)
        assert context.lookup(tokens, 3) == ContextIndex().lookup(tokens, 3)


# -- lookups that do not pay -----------------------------------------------------------------------


class _Counting(FixedIndex):
    """Counts how often it is asked."""

    asked = 0

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        self.asked += 1
        return super().lookup(tokens, limit)


def _asked(index: LayeredIndex, source: _Counting, count: int) -> int:
    """Of so many lookups, the text growing by one other token each."""
    before = source.asked
    for number in range(count):
        index.lookup([*range(1000, 1000 + number + before)], 96)
    return source.asked - before


def test_where_nothing_is_found_it_seldom_looks() -> None:
    source = _Counting(None)
    costly, cheap = (LayeredIndex([source], Prices(search=cost)) for cost in (0.2, 0.01))
    assert 8 <= _asked(costly, source, 40) <= 20
    assert 10 <= _asked(costly, source, 400) <= 30  # up to 32 lookups apart
    assert _asked(cheap, source, 400) == 400  # a run may begin anywhere


def test_it_looks_each_time_again_as_soon_as_runs_hold() -> None:
    source = _Counting(None)
    index = LayeredIndex([source], Prices(search=0.2))
    text = list(range(1000, 1400))
    for stop in range(1, 400):
        index.lookup(text[:stop], 96)
    source._match = DEEP._replace(tokens=tuple(range(10)))
    text += [*range(10)] * 80
    before = source.asked
    for stop in range(400, 1200, 10):  # 32 of these may pass before it looks
        index.lookup(text[:stop], 96)
    assert source.asked - before > 45
    for stop in range(1200, 1240):  # nothing holds any more
        text.append(7777 + stop)
        index.lookup(text[:stop], 96)
    before = source.asked
    for stop in range(1240, 1340):
        text.append(7777 + stop)
        index.lookup(text[:stop], 96)
    assert source.asked - before < 20


def test_it_looks_at_once_where_the_end_of_the_text_was_seen_before() -> None:
    """Lookups that promise little have not paid for long; those that promise more are others."""
    source, context = _Counting(None), ContextIndex()
    index = LayeredIndex([source, context], Prices(search=0.2))
    text = list(range(1000, 1400))
    for stop in range(1, 400):
        index.lookup(text[:stop], 96)
    text += text[100:140]
    before = source.asked
    for stop in range(404, 440):  # four tokens of the copy are there
        match = index.lookup(text[:stop], 96)
        assert match is not None
        assert match.tokens[0] == text[stop - 300]
    assert source.asked - before == 36
    for stop in range(440, 460):  # and it is over
        text.append(7777 + stop)
        index.lookup(text[:stop], 96)
    assert source.asked - before < 42


def test_it_looks_at_once_where_an_earlier_answer_had_the_end_of_the_text() -> None:
    """And whether that pays says nothing of copies in the text itself."""
    history = History()
    earlier = list(range(100, 260))
    history.add(earlier)
    source = _Counting(None)
    index = LayeredIndex([source, ContextIndex(), history.index()], Prices(search=0.2))
    text = list(range(1000, 1400))
    for stop in range(1, 400):
        index.lookup(text[:stop], 96)
    for number in range(40):  # what follows is never what followed there
        text += [*earlier[4 * number : 4 * number + 4], 5000 + number]
        for stop in range(len(text) - 4, len(text) + 1):
            index.lookup(text[:stop], 96)
    text += text[100:140]
    before = source.asked
    for stop in range(len(text) - 36, len(text)):
        assert index.lookup(text[:stop], 96)
    assert source.asked - before == 36
    again = LayeredIndex([source, ContextIndex(), history.index()], Prices(search=0.2))
    for stop in range(1, 400):
        again.lookup(text[:stop], 96)
    text = text[:400] + earlier
    before = source.asked
    for stop in range(404, 440):  # four tokens of the answer are there
        assert again.lookup(text[:stop], 96)
    assert source.asked - before == 36


class Counting(FixedIndex):
    def __init__(self, match: Match) -> None:
        super().__init__(match)
        self.limits: list[int] = []

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        self.limits.append(limit)
        return super().lookup(tokens, limit)


def test_what_several_indexes_want_to_know_of_a_text_is_found_once() -> None:
    source = Counting(DEEP)
    sources = Sources([source, FixedIndex(None)])
    first, second = LayeredIndex(sources, Prices(FREE)), LayeredIndex(sources, Prices(FREE))
    text = [1, 2, 3]
    whole, part = first.lookup(text, 40), second.lookup(text, 30)
    assert whole is not None
    assert part is not None
    assert (len(whole.tokens), part.tokens) == (40, whole.tokens[:30])
    assert source.limits == [40]
    longer = second.lookup(text, 50)
    assert longer is not None
    assert len(longer.tokens) == 50, "more than was found"
    text.append(4)
    first.lookup(text, 40)
    first.lookup([1, 2, 3, 4], 40)
    assert source.limits == [40, 50, 40, 40], "it has grown, and another list is not known"


def test_an_interrupted_search_is_made_again() -> None:
    class Interrupted(FixedIndex):
        def lookup(self, tokens: Tokens, limit: int) -> Match | None:
            if len(tokens) == 4 and not done:
                done.append(True)
                raise KeyboardInterrupt
            return None

    done: list[bool] = []
    source, text = Counting(DEEP), [1, 2, 3]
    index = LayeredIndex(Sources([source, Interrupted(None)]), Prices(FREE))
    index.lookup(text, 9)
    text.append(4)
    with pytest.raises(KeyboardInterrupt):
        index.lookup(text, 9)
    assert index.lookup(text, 9) is not None
    assert source.limits == [9, 9, 9]
