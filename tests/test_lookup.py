"""Retrieved runs alone and behind a draft."""

from functools import partial

import pytest

from doublespec.drafting.costs import CallTimes, Case, LookupCosts
from doublespec.drafting.lookup import LookupDrafter, WeighingDrafter, worth_showing
from doublespec.drafting.pauses import Pauses, Searches
from doublespec.ratio import Ratio
from doublespec.retrieval.base import Match
from doublespec.retrieval.expectation import NOTHING, Ahead
from doublespec.retrieval.layered import LayeredIndex, Prices
from doublespec.retrieval.recurrence import Judged
from doublespec.sampling import Request, SamplingParams
from doublespec.tokens import Tokens

PROMPT = [1, 2, 3]
REQUEST = Request(SamplingParams(), 3)
RUN = (7, 8, 9, 7, 8, 9)


class Fixed(LayeredIndex):
    """Finds the same run after every text, of which a step is said to settle `rate` tokens in the
    time of a forward, and so many to hold from any place on. It is as deep as is said."""

    def __init__(self, run: tuple[int, ...] = RUN, rate: float = 0.0, holds: float = 0.0) -> None:
        self.prices = Prices()
        super().__init__([], self.prices)
        self._run = run
        self._rate = rate
        self.holds = holds
        self.depth = 9
        self.ahead: list[Ahead] = []

    def lookup(self, tokens: Tokens, limit: int, ahead: Ahead = NOTHING) -> Match | None:
        self.ahead.append(ahead)
        run = self._run[:limit]
        return Match(run, self.depth, "made up", rate=self._rate) if self._run else None

    def holds_on(self, match: Match, place: int) -> float:
        return self.holds


def _follow(drafter: WeighingDrafter, drafted: list[int], new: list[int], steps: int) -> list[int]:
    """Steps in which that was drafted, and the text went on with `new`; the text then."""
    text = list(PROMPT)
    for _ in range(steps):
        drafter.complete(text, drafted, 24, REQUEST)
        text += new
    return text


def test_a_guess_is_a_draft_and_a_run_within_the_limit() -> None:
    for drafter in (LookupDrafter(Fixed(), 4), WeighingDrafter(Fixed(), 4)):
        assert drafter.complete(PROMPT, [5, 6], 24, REQUEST) == ([5, 6, 7, 8, 9, 7], 2)
        assert drafter.complete(PROMPT, [5, 6], 3, REQUEST) == ([5, 6, 7], 2)
        assert drafter.complete(PROMPT, [5, 6], 2, REQUEST) == ([5, 6], 2)
        assert drafter.complete(PROMPT, [], 3, REQUEST) == ([7, 8, 9], 0)


@pytest.mark.parametrize(
    ("holds", "guess"),
    [
        (3.0, ([5, 6], 2)),  # 1 + 0.55 * (1 + 0.8) tokens, the run 1 + 0.15 * (1 + 3)
        (12.0, ([7, 8, 9, 7], 0)),
    ],
)
def test_a_run_that_departs_from_a_draft_is_shown_if_it_promises_more(
    holds: float, guess: tuple[list[int], int]
) -> None:
    drafter = WeighingDrafter(Fixed(()), 4, alone=Fixed(holds=holds))
    assert drafter.complete(PROMPT, [5, 6], 24, REQUEST) == guess
    assert drafter.complete(PROMPT, [7, 8], 24, REQUEST) == ([7, 8], 2), "it says the same"
    assert drafter.complete(PROMPT, [7], 1, REQUEST) == ([7], 1), "it says the same so far"


def test_runs_beside_drafts_are_searched_for_seldom_while_that_costs_and_none_is_of_use() -> None:
    for is_costly, most in ((False, 80), (True, 20)):
        alone = Fixed()
        alone.prices.search = 0.2 if is_costly else 0.0
        drafter = WeighingDrafter(Fixed(()), 4, alone=alone)
        text = _follow(drafter, [5, 6], [5, 6, 4], steps=80)
        assert most - 5 < len(alone.ahead) <= most
        alone.holds = 200.0
        for _ in range(8):
            drafter.complete(text, [5, 6], 24, REQUEST)
        alone.ahead.clear()
        _follow(drafter, [5, 6], [5, 6, 4], steps=8)
        assert len(alone.ahead) == 8, "one was of use just now"
        drafter.complete(text, [], 24, REQUEST)
        assert len(alone.ahead) == 8, "there is no draft"


def test_what_stands_behind_a_draft_counts_for_it() -> None:
    for behind, num_drafted in ((Fixed(rate=4.0), 2), (Fixed(()), 0)):
        drafter = WeighingDrafter(behind, 4, alone=Fixed(holds=12.0))
        assert drafter.complete(PROMPT, [5, 6], 24, REQUEST).num_drafted == num_drafted


def test_who_is_right_where_draft_and_run_depart_is_learnt() -> None:
    drafter = WeighingDrafter(Fixed(()), 4, alone=Fixed(holds=3.0))
    assert drafter.complete(PROMPT, [5, 6], 24, REQUEST).num_drafted == 2
    text = _follow(drafter, [5, 6], [7, 8, 4], steps=10)
    assert drafter.complete(text, [5, 6], 24, REQUEST) == ([7, 8, 9, 7], 0)
    text = _follow(drafter, [5, 6], [5, 6, 4], steps=40)
    assert drafter.complete(text, [5, 6], 24, REQUEST).num_drafted == 2


def test_what_follows_another_beginning_says_nothing_of_a_departure() -> None:
    drafter = WeighingDrafter(Fixed(()), 4, alone=Fixed(holds=3.0))
    text = _follow(drafter, [7, 6], [4, 8, 4], steps=20)  # the text has left both before
    assert drafter.complete(text, [7, 6], 24, REQUEST).num_drafted == 2


def test_who_is_right_is_learnt_by_what_speaks_for_the_run() -> None:
    alone = Fixed(holds=3.0)
    drafter = WeighingDrafter(Fixed(()), 4, alone=alone)
    alone.depth = 40
    _follow(drafter, [5, 6], [7, 8, 4], steps=10)
    alone.depth = 1
    assert drafter.complete(PROMPT, [5, 6], 24, REQUEST).num_drafted == 2
    alone.depth = 40
    assert drafter.complete(PROMPT, [5, 6], 24, REQUEST).num_drafted == 0


def test_a_bad_draft_is_shown_where_nothing_is_retrieved() -> None:
    drafter = WeighingDrafter(Fixed(()), 4, alone=Fixed(()))
    text = _follow(drafter, [5, 6], [4], steps=40)
    assert drafter.complete(text, [5, 6], 24, REQUEST) == ([5, 6], 2)


def test_how_likely_a_draft_holds_is_learnt_from_the_text() -> None:
    index = Fixed()
    drafter = WeighingDrafter(index, 4)
    _follow(drafter, [5, 6], [5, 6, 4], steps=40)
    good = index.ahead[-1]
    _follow(drafter, [5, 6], [5, 4], steps=40)
    assert good.reach > 0.9 > 0.5 > index.ahead[-1].reach
    assert good.shown == 2
    assert index.ahead[-1].settled < good.settled


def test_of_a_draft_as_much_is_shown_as_settles_most_in_its_time() -> None:
    for kept in (0.3, 0.6, 0.8, 0.95):
        for row_cost in (0.0, 0.02, 0.2):
            rates = [
                sum(kept**place for place in range(shown + 1)) / (1 + row_cost * shown)
                for shown in range(1, 13)
            ]
            assert worth_showing(12, kept, row_cost) == rates.index(max(rates)) + 1
    assert worth_showing(0, 0.8, 0.2) == 0


def test_a_draft_is_cut_where_its_rows_cost_more_than_they_settle() -> None:
    drafted = [5, 6, 5, 6, 5, 6, 5, 6]
    for row_cost, shown in ((0.0, 8), (0.4, 1)):
        drafter = WeighingDrafter(Fixed(()), 4, row_cost)
        text = _follow(drafter, drafted, [5, 4], steps=40)  # one of two holds
        assert drafter.complete(text, drafted, 24, REQUEST) == (drafted[:shown], shown)


def test_another_text_teaches_nothing() -> None:
    index = Fixed()
    drafter = WeighingDrafter(index, 4)
    for number in range(40):
        drafter.complete([number, 1, 2], [5, 6], 24, REQUEST)
    assert len({ahead.reach for ahead in index.ahead}) == 1


def test_pauses_are_short_where_runs_begin_often_and_long_where_none_do() -> None:
    often, never = Pauses(lambda: 0.2), Pauses(lambda: 0.2)
    assert often.tokens(0) == never.tokens(0) == 2
    for _ in range(200):
        often.learn(0, often.tokens(0), 3.0)
        never.learn(0, min(never.tokens(0), 64), 0.0)
    assert often.tokens(0) == 1
    assert never.tokens(0) > 64


def _go_on(searches: Searches, shown: int, settled: int) -> None:
    """A search has found so many tokens, and so many were settled until the next one."""
    searches.learn(shown)
    searches.go_on(settled)


def test_pauses_grow_the_longer_nothing_was_found_if_runs_come_close_together() -> None:
    """In a text where a run is found right after another one, or for long not at all."""
    pauses = Pauses(lambda: 0.2)
    for _ in range(100):
        searches = Searches(pauses)
        _go_on(searches, 5, 6)
        _go_on(searches, 0, 1)
        _go_on(searches, 5, 6)  # it is found after one token,
        settled = 0
        while settled < 100:  # and now it is not
            searches.learn(0)
            pause = min(searches.left, 64)
            searches.go_on(pause)
            settled += pause
    assert pauses.tokens(0) == 1
    assert pauses.tokens(50) > 8


def test_a_run_of_which_nothing_held_was_no_run() -> None:
    """What was found in vain, had better been found later."""
    useless, useful = Pauses(lambda: 0.2), Pauses(lambda: 0.2)
    for pauses, settled in ((useless, 1), (useful, 3)):
        searches = Searches(pauses)
        for _ in range(100):
            _go_on(searches, 0, 1)
            _go_on(searches, 2, settled)
    assert useless.tokens(0) > 4 > useful.tokens(0) == 1


def test_the_less_runs_save_the_longer_the_pause() -> None:
    """Two tokens in the time of nearly two forwards had better been made without."""
    showing = lambda shown: 0.45 * shown  # noqa: E731  # of a forward
    free, dear = Pauses(lambda: 0.2), Pauses(lambda: 0.2, showing)
    for pauses in (free, dear):
        searches = Searches(pauses)
        for _ in range(100):
            _go_on(searches, 0, 3)
            _go_on(searches, 2, 2)
    assert dear.tokens(0) > 2 * free.tokens(0)
    costs = LookupCosts(0.4, 0.5, 0.03, 0.1, at_once=16)
    assert costs.of_showing(2) == pytest.approx(0.5 * 0.06 / ((0.5 + 15 * 0.4) / 16))


def test_the_dearer_a_search_the_longer_the_pause() -> None:
    """Until it costs more than what it is likely to gain."""
    costs = (0.0, 0.02, 0.2, 0.4, 0.5)
    pauses = [Pauses(partial(float, cost)).tokens(0) for cost in costs]
    assert pauses == [1, 1, 2, 3, 128]


def test_what_is_not_guessed_ahead_is_searched_for_more_often() -> None:
    """A published search, say, or in earlier answers: at first runs are taken to begin at one token
    of four, and also where few were found a search is made in time."""
    for cost, pause in ((1.0, 2), (4.0, 5)):
        assert Pauses(partial(float, cost)).tokens(0) == 128
        pauses = Pauses(partial(float, cost), foreseen=False)
        assert pauses.tokens(0) == pause
        for _ in range(10):
            pauses.learn(0, 8, None)
        assert pauses.tokens(0) < 32


def test_tokens_settled_in_a_pause_bring_the_next_search_nearer() -> None:
    """However few at a time; a run that is found ends the pause."""
    pauses = Pauses(lambda: 0.2, foreseen=False)
    for _ in range(40):
        pauses.learn(0, 8, None)
    searches = Searches(pauses)
    assert searches.left <= 0  # before the first one
    searches.learn(0)
    pause = searches.left
    assert pause == pauses.tokens(0) > 2
    searches.go_on(1)
    assert searches.left == pause - 1
    searches.go_on(pause)
    assert searches.left < 0
    searches.learn(5)
    searches.go_on(6)
    assert searches.left <= 0


def test_a_search_costs_what_it_takes_and_what_forwards_apart_take_longer() -> None:
    costs = LookupCosts(0.4, 0.5, 0.03, 0.1, at_once=16)
    plain = (0.5 + 15 * 0.4) / 16
    assert costs.of_search() == pytest.approx((0.1 + 0.5 - plain) / plain)
    assert costs.prices.search == 0.0  # there are pauses between them, but not here:
    at_each_token = LookupCosts(0.4, 0.5, 0.03, 0.1, at_once=1)
    assert at_each_token.prices.search == pytest.approx(0.1 / 0.5)
    assert costs.prices.rows[:3] == pytest.approx([1.0, 0.515 / plain, 0.53 / plain])
    assert costs.seconds([2], True) == pytest.approx(0.1 + 0.5 * 1.06)
    assert costs.seconds([0] * 4, True) == pytest.approx(0.1 + 0.5 + 3 * 0.4)
    assert LookupCosts(0.5, 0.5, 0.03, 0.1, at_once=1).of_search() == pytest.approx(0.2)
    assert LookupCosts(0.7, 0.5, 0.03, 0.1, at_once=16).of_search() == pytest.approx(0.1 / 0.7)


def test_what_is_guessed_ahead_costs_no_search_and_no_forward_apart() -> None:
    costs = LookupCosts(0.4, 0.5, 0.03, 0.1, at_once=16)
    assert costs.prices.chained[:3] == pytest.approx([1.0, 1.03, 1.06])
    apart = 0.5 + 2 * 0.4
    assert costs.seconds([0, 2, 0, 0], False) == pytest.approx(apart + 0.4 * 1.06)
    assert costs.seconds([2, 0, 0, 0], True) == pytest.approx(0.1 + 0.5 * 1.06)  # by a search


def test_what_steps_of_lookup_take_is_learnt_from_them() -> None:
    """Whatever was expected; a delay of the machine is none of theirs."""
    costs = LookupCosts(0.4, 0.4, 0.01, 0.05, at_once=16)
    for number in range(200):
        forwards, shown = 1 + number % 5, number % 7
        if shown:
            costs.learn_shown(shown, 0.2, 1.2 + 0.2 * shown)
        else:
            costs.learn(forwards, 0.5 + 0.7 * forwards, (), 0.2)
    for number in range(16):
        costs.learn_shown(3, 0.2, 1.2 + 0.6 + (50.0 if number == 9 else 0.0))
    plain = (0.5 + 16 * 0.7) / 16
    assert costs.seconds([3], True) == pytest.approx(0.2 + 1.2 + 0.6, rel=0.1)
    assert costs.seconds([0] * 16, True) == pytest.approx(0.2 + 16 * plain, rel=0.1)
    assert costs.prices.rows[6] == pytest.approx((1.2 + 1.2) / plain, rel=0.1)
    assert costs.prices.rows[1] == pytest.approx((1.2 + 0.2) / plain, rel=0.1)


def test_what_guesses_ahead_take_is_learnt_from_their_forwards() -> None:
    """And told when it has changed: the same prices otherwise. Of the first forward of a call only
    the whole is known."""
    costs = LookupCosts(0.4, 0.4, 0.01, 0.05, at_once=16)
    told = costs.prices.chained
    for _ in range(32):
        costs.learn(8, 8 * 0.4 + 0.1, [Judged(3, (1, 2, 3, 4), 0.4 * 1.04)])
    assert costs.prices.chained is told
    for number in range(200):
        shown = number % 8  # none: it is only watched
        took = 0.5 + 0.2 * shown
        guess = Judged(number % 5, (7,) * shown, took)
        costs.learn(8, 7 * 0.5 + took, [guess])
    assert costs.prices.chained[7] == pytest.approx(1 + 0.4 * 7, rel=0.1)
    assert costs.seconds([0, 0, 6, 0], False) == pytest.approx(3 * 0.5 + 1.7, rel=0.1)
    assert costs.seconds([0] * 8, False) == pytest.approx(8 * 0.5, rel=0.1)


def test_what_was_not_seen_takes_as_much_longer_as_what_was() -> None:
    slowness = Ratio(1.0, 0.1, 0.85)
    times = CallTimes(slowness, Case(1, 1.0), Case(16, 8.5))
    other = CallTimes(slowness, Case(0, 1.0), Case(10, 2.0))
    for _ in range(300):
        times.learn(Case(4, 2 * 2.5))
    other.refresh()
    assert times.seconds(4) == pytest.approx(2 * 2.5, rel=0.02)
    assert times.seconds(16) == pytest.approx(2 * 8.5, rel=0.02)
    assert other.seconds(5) == pytest.approx(2 * 1.5, rel=0.02)


def test_a_short_run_is_shown_where_that_takes_little_longer_than_to_show_nothing() -> None:
    """Of one that holds every other time there is less to gain than a token."""
    run = Match((5, 6), 1, "context", likeness=0.3, share=0.5)
    for takes, is_shown in ((1.1, True), (2.2, False)):
        costs = LookupCosts(1.0, 1.0, 0.05, 0.0, at_once=16)
        index = LayeredIndex([Found(run)], costs.prices)
        drafter = WeighingDrafter(index, 8)
        assert drafter.complete([1, 2, 3], [], 8, REQUEST).tokens
        for number in range(200):
            if number % 2:
                costs.learn_shown(1, 0.0, takes)
            else:
                costs.learn(8, 8.0)
        assert bool(drafter.complete([1, 2, 4], [], 8, REQUEST).tokens) == is_shown


class Found:
    """Finds the same run after every text."""

    def __init__(self, run: Match) -> None:
        self._run = run

    def lookup(self, tokens: Tokens, limit: int) -> Match:
        return self._run._replace(tokens=self._run.tokens[:limit])
