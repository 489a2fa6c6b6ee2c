"""What is heard while a text grows, against a scan that has no memory."""

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
from doublespec.retrieval.chains import Chains
from doublespec.retrieval.context import ContextIndex
from doublespec.retrieval.recurrence import NGRAMS, Recurrence
from doublespec.sampling import Request, SamplingParams
from doublespec.stopping import StopRule
from tests.reference import Counting, answer, naive

Text = list[int]


def stood_before(text: Text, size: int) -> bool:
    """Whether the last tokens of a text stand in it before."""
    places = range(len(text) - size)
    return len(text) > size and any(text[i : i + size] == text[-size:] for i in places)


def heard_by_scan(text: Text, new: Text, least: int) -> list[int]:
    """What is heard behind each of the new tokens."""
    heard, quiet = [], stood_before(text, least)
    for count in range(1, len(new) + 1):
        whole = [*text, *new[:count]]
        size = next((n for n in NGRAMS if n >= least and stood_before(whole, n)), 0)
        quiet = quiet and size > 0
        heard.append(0 if quiet else size)
    return heard


@st.composite
def texts(draw: st.DrawFn) -> tuple[Text, Text]:
    """A text and what it goes on with, which may stand in it."""
    tokens = st.integers(0, draw(st.sampled_from([1, 3, 40])))
    text = draw(st.lists(tokens, max_size=60))
    start = draw(st.integers(0, 60))
    copied = text[start : start + draw(st.integers(0, 20))]
    return text, [*draw(st.lists(tokens, max_size=4)), *copied, *draw(st.lists(tokens, max_size=9))]


@given(texts(), st.sampled_from(NGRAMS))
def test_what_stood_before_is_heard(told: tuple[Text, Text], least: int) -> None:
    """Also what has been heard only since; not what continues a repetition."""
    text, new = told
    chains = Chains()
    chains.extend(text)
    recurrence = Recurrence().begin(chains, least)
    assert [recurrence.hear(token) for token in new] == heard_by_scan(text, new, least)
    again = recurrence.begin(chains, least)  # nothing of it is remembered
    assert [again.hear(token) for token in new] == heard_by_scan(text, new, least)


def test_it_is_over_when_there_is_no_room() -> None:
    chains = Chains()
    chains.extend([1, 2, 3])
    recurrence = Recurrence().begin(chains, 4)
    heard = [recurrence.hear(token) for token in range(1000, 1400)]
    assert set(heard[:260]) == {0}
    assert set(heard[260:]) == {1}


def test_an_index_is_listened_to_behind_the_text_that_it_is_asked_with() -> None:
    index = ContextIndex()
    for text in ([*range(20)], [*range(5)], [*range(9), 3, 4, 5]):
        recurrence = index.listen(text, 4)
        assert recurrence.hear(6) == (4 if text[-1] == 5 else 0)


PROMPT = [1, 2, 3, 4]
REQUEST = Request(SamplingParams(temperature=0.6, seed=3), len(PROMPT))
STOP = StopRule(1000)
AT_ONCE = 32


def _by_lookup(costs: LookupCosts, *, listens: bool) -> tuple[list[Step], int]:
    """The steps of an answer, and how many forwards it took."""
    helper = Retrieval(RetrievalSettings()).lookup(prices=costs.prices)
    if not listens:
        helper.listen = lambda *told: None  # type: ignore[method-assign]
    target = Counting(ToyModel(sharpness=6.0))
    pauses = Pauses(costs.of_search, costs.of_showing)
    told = helper, pauses, costs, PROMPT, REQUEST, STOP, 24, lambda: AT_ONCE
    return list(decode_by_lookup(target, *told)), target.forwards


class _Known(LookupCosts):
    """What steps take is known: it is not learnt from these."""

    def learn(self, shown: int, forwards: int, searching: float, computing: float) -> None:
        return None


def _costs() -> LookupCosts:
    return _Known(1.0, 2.0, 0.02, 0.2, AT_ONCE, 24)


def test_a_run_is_shown_where_its_text_begins_again() -> None:
    """Not only when the pause is over: fewer forwards for the same tokens."""
    (steps, forwards), (others, more) = (_by_lookup(_costs(), listens=way) for way in (True, False))
    assert answer(steps) == answer(others) == naive(ToyModel(sharpness=6.0), PROMPT, REQUEST, STOP)
    assert forwards < 0.85 * more


def test_hindsight_hears_what_lookup_hears() -> None:
    """Forwards in which it would have settled a text are those that it takes."""
    steps, forwards = _by_lookup(_costs(), listens=True)
    costs = _costs()
    hindsight = Hindsight(
        "lookup",
        Retrieval(RetrievalSettings()).lookup(prices=costs.prices),
        24,
        lambda shown, forwards: float(forwards),
        Pauses(costs.of_search, costs.of_showing),
        AT_ONCE,
        lambda: True,
    )
    text = [*PROMPT, *answer(steps)]
    judged = hindsight.seconds(text, len(PROMPT) + 1, len(text), REQUEST)
    assert judged + 1.0 == pytest.approx(forwards, rel=0.1)
