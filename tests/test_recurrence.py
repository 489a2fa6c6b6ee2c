"""What is guessed while a text grows, against a scan that has no memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doublespec.config import RetrievalSettings
from doublespec.decoding import Step, decode_by_lookup
from doublespec.drafting.costs import LookupCosts
from doublespec.drafting.hindsight import Hindsight
from doublespec.drafting.pauses import Pauses
from doublespec.drafting.retrieved import Retrieval
from doublespec.models.toy import ToyModel
from doublespec.oracle import advance
from doublespec.retrieval.chains import SIZES, Chains
from doublespec.retrieval.context import ContextIndex
from doublespec.retrieval.recurrence import MOST_GUESSED, Judged, Recurrence
from doublespec.sampling import Request, SamplingParams
from doublespec.stopping import StopRule
from doublespec.tokens import common_prefix
from tests.reference import Counting, FixedCosts, answer, naive

Text = list[int]

FREE = (1.0,) * (MOST_GUESSED + 1)  # rows cost nothing: as many are shown as there are
DEAR = (1.0, *(9.0,) * MOST_GUESSED)


def chains_of(text: Text) -> Chains:
    chains = Chains()
    chains.extend(text)
    return chains


def guessed_by_scan(text: Text, known: int, room: int) -> Text:
    """What followed the longest suffix of two tokens or more that stood in a text before, the
    latest of several; of equal n-grams among its `known` tokens eight are looked at."""

    def depth(place: int) -> int:
        return common_prefix(text[:place][::-1], text[::-1])

    told = range(known + 1, len(text))
    found = max(((depth(place), place) for place in told), default=(0, 0))
    for size in filter(lambda size: size >= 2, SIZES):
        places = range(min(known, len(text) - 1), size - 1, -1)
        latest = [place for place in places if text[place - size : place] == text[-size:]][:8]
        deeper = [(depth(place), place) for place in latest if depth(place) > found[0]]
        found = max([found, *deeper])
        if latest:
            break
    if found[0] < 2:
        return []
    run: Text = []
    while len(run) < min(room, MOST_GUESSED):  # it goes on as it did, if need be with itself
        run.append([*text, *run][found[1] + len(run)])
    return run


@st.composite
def texts(draw: st.DrawFn) -> tuple[Text, Text]:
    """A text and what it goes on with, which may stand in it."""
    tokens = st.integers(0, draw(st.sampled_from([1, 3, 40])))
    text = draw(st.lists(tokens, min_size=1, max_size=60))
    start = draw(st.integers(0, 60))
    copied = text[start : start + draw(st.integers(0, 20))]
    return text, [*draw(st.lists(tokens, max_size=4)), *copied, *draw(st.lists(tokens, max_size=9))]


@given(texts(), st.integers(1, 60))
def test_what_followed_the_longest_suffix_is_guessed(told: tuple[Text, Text], most: int) -> None:
    """Also what was told only since, as far as there is room for it and a token behind it."""
    text, new = told
    chains, recurrence = chains_of(text), Recurrence()
    wanted = [
        guessed_by_scan([*text, *new[:count]], len(text), most - count - 1)
        for count in range(min(len(new) + 1, most))
    ]
    for _ in range(2):  # nothing of the first time is remembered
        recurrence.begin(chains, FREE, most)
        found = [recurrence.guess(), *(recurrence.hear(token) for token in new[: most - 1])]
        assert found == wanted


def test_behind_the_last_token_but_one_nothing_is_guessed() -> None:
    """Also if fewer are wanted than was said; nor in the midst of what a forward has settled."""
    text = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    recurrence = Recurrence().begin(chains_of(text), FREE, 9)
    assert recurrence.guess() == [3, 4, 5, 6, 7, 8, 1, 2]
    assert recurrence.hear(3, more=True) == recurrence.hear(4, more=True) == []
    recurrence.shorten(6)
    assert recurrence.hear(5) == [6, 7]
    assert [recurrence.hear(token) for token in (6, 7, 8, 1)] == [[7], [], [], []]


def test_what_became_of_guesses_is_told() -> None:
    """As far as their forward has come."""
    recurrence = Recurrence().begin(chains_of([1, 2, 3, 4, 5, 1, 2]), FREE, 8)
    shown = [tuple(recurrence.guess())]
    recurrence.hear(3, more=True)
    shown.append(tuple(recurrence.hear(9)))
    assert shown == [(3, 4, 5, 1, 2, 3, 4), ()]
    recurrence.hear(1)
    shown.append(tuple(recurrence.hear(2)))
    assert shown[-1] == (3, 9, 1)  # where it stood last
    judged = recurrence.over([3, 9, 1, 2])
    assert [(one.place, one.shown) for one in judged] == [(0, shown[0])]
    assert judged[0].seconds > 0


def test_what_is_not_worth_its_rows_is_watched_until_it_is() -> None:
    """One guess of eight is judged without a row, by the text that follows."""
    text = [*range(10), 40, 41]
    recurrence, shown, watched = Recurrence(), list[int](), list[Judged]()
    costs = (1.0, *(2.5,) * MOST_GUESSED)
    for _ in range(8 * 60):
        recurrence.begin(chains_of([*text, 3, 4]), costs, 8)
        shown.append(len(recurrence.guess()))
        for token in (5, 6, 7):
            recurrence.hear(token)
        watched += recurrence.over([5, 6, 7])
    assert shown[0] == 0
    assert any(not one.shown for one in watched)
    assert shown[-1] > 1
    hopeless = Recurrence().begin(chains_of([*text, 3, 4]), DEAR, 8)
    assert hopeless.guess() == []


def test_as_many_tokens_are_shown_as_are_likely_to_hold() -> None:
    """The fewer of them, the more often the first ones turn out to be wrong."""
    costs = tuple(1.0 + 0.2 * count for count in range(MOST_GUESSED + 1))

    def shown(after: Text) -> int:
        recurrence = Recurrence()
        for _ in range(400):
            recurrence.begin(chains_of([*range(40), 3, 4, 5, 6]), costs, 40)
            count = len(recurrence.guess())
            for token in after:
                recurrence.hear(token)
            recurrence.over(after)
        return count

    assert shown([7, 8, 50]) < shown([*range(7, 30)])


def test_an_index_guesses_behind_the_text_that_it_is_asked_with() -> None:
    index = ContextIndex()
    for text in ([*range(20)], [*range(5)], [*range(9), 3, 4, 5]):
        recurrence = index.guess_ahead(text, FREE, 6)
        assert recurrence.guess() == ([6, 7, 8, 3, 4] if text[-1] == 5 else [])


def test_a_text_has_room_for_what_it_may_go_on_with() -> None:
    """Whatever its size is: what is told stands behind it, and the next text is read as well."""
    for count in range(480, 540):
        chains = chains_of([*range(count)])
        recurrence = Recurrence().begin(chains, FREE, 200)
        for token in range(7, 205):
            recurrence.hear(token)
        assert chains.tokens == [*range(count)]
        assert recurrence.hear(205) == []
        chains.extend([7, 8])
        assert Recurrence().begin(chains, FREE, 4).guess() == [9, 10, 11]


PROMPT = [1, 2, 3, 4]
REQUEST = Request(SamplingParams(temperature=0.6, seed=3), len(PROMPT))
STOP = StopRule(1000)
AT_ONCE = 32


def _costs(at_once: int = AT_ONCE) -> LookupCosts:
    return FixedCosts(1.0, 2.0, 0.02, 0.2, at_once, 24)


def _by_lookup(*, ahead: bool, at_once: int = AT_ONCE) -> tuple[list[Step], int]:
    """The steps of an answer, and how many forwards it took."""
    costs = _costs(at_once)
    helper = Retrieval(RetrievalSettings()).lookup(prices=costs.prices)
    if not ahead:
        helper.guess_ahead = lambda *told: None  # type: ignore[method-assign]
    target = Counting(ToyModel(sharpness=6.0))
    pauses = Pauses(costs.of_search, costs.of_showing)
    told = helper, pauses, costs, PROMPT, REQUEST, STOP, 24, lambda: at_once
    return list(decode_by_lookup(target, *told)), target.forwards


def test_a_run_is_judged_where_its_text_begins_again() -> None:
    """Not only when the pause is over: fewer forwards for the same tokens."""
    (steps, forwards), (others, more) = (_by_lookup(ahead=way) for way in (True, False))
    assert answer(steps) == answer(others) == naive(ToyModel(sharpness=6.0), PROMPT, REQUEST, STOP)
    assert forwards < 0.85 * more


def test_each_forward_of_a_call_is_a_step_with_what_it_was_shown() -> None:
    steps, forwards = _by_lookup(ahead=True)
    assert len(steps) == forwards
    for step in steps[:-1]:
        assert len(step.new) == common_prefix(step.new, step.guess) + 1
    inside = [step for step in steps if step.guess and step.earlier_seconds > 0]
    assert sum(len(step.new) for step in inside) > 2 * len(inside)  # some of several tokens
    assert all(step.target_seconds > 0 for step in inside)


def test_a_call_of_few_forwards_is_shown_runs_as_long_as_one_of_many() -> None:
    """`at_once` used to count tokens: a model that makes two forwards a call was shown one token of
    each run (a random 900 x 16 of 12 ms a forward: 1.8 times plain decoding, now 3.7 to 4)."""
    steps, forwards = _by_lookup(ahead=True, at_once=2)
    assert max(len(step.guess) for step in steps) > 8
    assert forwards < 1.05 * _by_lookup(ahead=True)[1]
    calls = [step.ready for step in steps]
    assert max(calls) == 1  # two forwards at once, and no more


@pytest.mark.parametrize("at_once", [2, AT_ONCE])
def test_hindsight_guesses_what_lookup_guesses(at_once: int) -> None:
    """Forwards in which it would have settled a text are those that it takes."""
    steps, forwards = _by_lookup(ahead=True, at_once=at_once)
    costs = _costs(at_once)
    hindsight = Hindsight(
        "lookup",
        Retrieval(RetrievalSettings()).lookup(prices=costs.prices),
        24,
        lambda shown, searched: float(len(shown)),
        Pauses(costs.of_search, costs.of_showing),
        at_once,
        lambda: True,
    )
    text = [*PROMPT, *answer(steps)]
    judged = hindsight.seconds(text, len(PROMPT) + 1, len(text), REQUEST)
    assert judged + 1.0 == pytest.approx(forwards, rel=0.1)


def test_a_guess_ends_before_an_id_that_the_model_does_not_have() -> None:
    """Of a damaged text, say."""
    model = Counting(ToyModel(32))
    request = Request(SamplingParams(), 1)
    wanted = naive(ToyModel(32), [5], request, StopRule(12))
    for odd in (32, 1 << 30):
        text = [*wanted[:4], odd, *wanted[:2]]
        recurrence = Recurrence().begin(chains_of(text), FREE, 12)
        settled = advance(model, [5], [], request, 12, recurrence.guesser)
        assert settled.tokens == wanted
