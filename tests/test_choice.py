"""Where a serial draft is left out for a retrieved run."""

from dataclasses import replace
from time import perf_counter

import pytest

from doublespec import LLM, engine
from doublespec.bench.machine import Curve, Machine
from doublespec.bench.replay import Replay
from doublespec.bench.simulate import Outcome, plans, simulate
from doublespec.bench.traces import Trace
from doublespec.config import PRESETS, RetrievalSettings, Settings
from doublespec.decoding import decode_serial
from doublespec.drafting import recipe
from doublespec.drafting.base import Drafter, NoDrafter
from doublespec.drafting.choice import Clock, DraftUnlessRun, RunOrDraft
from doublespec.drafting.confident import ConfidentDrafter
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.recipe import goes_on_by_itself
from doublespec.drafting.retrieved import Retrieval
from doublespec.engine import Engine
from doublespec.models.load import ForwardCost, chained_seconds
from doublespec.models.native.library import can_compile
from doublespec.models.toy import ToyModel
from doublespec.retrieval.base import Match
from doublespec.retrieval.context import ContextIndex
from doublespec.sampling import Request, SamplingParams
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens

MACHINE = Machine(Curve(((1, 0.010),)), Curve(((1, 0.002),)), 0.010, devices=1)  # c = 5
REQUEST = Request(SamplingParams(), 3)


class Promising:
    """An index whose run is expected to settle `rate` tokens in the time of a forward."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        return Match((7,) * limit, 9, "made up", rate=self.rate) if self.rate else None


class Counting:
    """Drafts two tokens by virtual time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.asked = 0
        self.now = 0.0
        self.seconds = seconds

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        if limit <= 0:
            return []
        self.asked += 1
        self.now += self.seconds
        return [1, 2]

    def clock(self) -> float:
        return self.now


def either(drafter: Drafter, choice: RunOrDraft, clock: Clock = lambda: 0.0) -> DraftUnlessRun:
    """For whatever tenant, with forwards of the target that take a second."""
    return DraftUnlessRun(drafter, lambda tenant: choice, clock, 1.0)


def test_a_draft_is_left_out_where_a_run_promises_more_in_the_time() -> None:
    """Four forwards that take as long as one of the target: 1 + 0.7 x 4 tokens in two of them."""
    for rate, asked in ((0.0, 1), (1.5, 1), (3.0, 0)):
        drafter = Counting()
        choice = RunOrDraft(Promising(rate), steps=4, seconds=1.0)
        guess = either(drafter, choice).propose([5], 9, REQUEST)
        assert (guess == [], drafter.asked) == (asked == 0, asked)
    assert not RunOrDraft(Promising(9.0), 4, 1.0).takes_run([5], 0), "no room for a run"


def test_what_a_draft_settles_is_learnt_from_the_text() -> None:
    index, drafter = Promising(0.0), Counting()
    choice, text = RunOrDraft(index, steps=4, seconds=0.0), [1, 2, 3]
    draft = either(drafter, choice)
    for _ in range(40):
        draft.propose(text, 9, REQUEST)
        text += [4] * 12
    index.rate = 6.0
    assert draft.propose(text, 9, REQUEST), "the draft settles 12 tokens a step"
    index.rate = 0.0
    for _ in range(100):
        draft.propose(text, 9, REQUEST)
        text += [5]
    index.rate = 6.0
    assert not draft.propose(text, 9, REQUEST), "and then one"


def test_what_a_draft_takes_is_measured() -> None:
    """Of 12 tokens a step 12 in one forward, in two, and with two rows of half a one in three."""
    for seconds, row_cost, rate in ((0.0, 0.0, 12.0), (1.0, 0.0, 6.0), (1.0, 0.5, 4.0)):
        drafter = Counting(seconds)
        choice, text = RunOrDraft(Promising(0.0), 4, 0.5, row_cost), [1, 2, 3]
        draft = either(drafter, choice, drafter.clock)
        for _ in range(500):
            draft.propose(text, 9, REQUEST)
            text += [4] * 12
        assert choice.rate == pytest.approx(rate, rel=0.05)


def test_a_step_that_may_show_nothing_says_nothing_of_drafts() -> None:
    """Right after a prompt: it settles one token."""
    drafter = Counting(1.0)
    choice, text = RunOrDraft(Promising(0.0), 4, 1.0), [1, 2, 3]
    before = choice.rate
    draft = either(drafter, choice, drafter.clock)
    for _ in range(50):
        assert draft.propose(text, 0, REQUEST) == []
        text += [4]
    assert choice.rate == before


def test_what_held_up_a_draft_once_is_not_what_drafts_take() -> None:
    drafter = Counting(1.0)
    choice, text = RunOrDraft(Promising(0.0), 4, 1.0), [1, 2, 3]
    draft = either(drafter, choice, drafter.clock)
    rates = []
    for number in range(50):
        drafter.seconds = 1000.0 if number == 40 else 1.0
        draft.propose(text, 9, REQUEST)
        text += [4] * 4
        rates.append(choice.rate)
    assert min(rates[40:]) > 0.9 * rates[40]


@pytest.mark.parametrize("between", ["a run", "another method"])
def test_only_the_step_that_was_shown_a_draft_teaches_what_it_settles(between: str) -> None:
    """What others settle before the next draft is not its own."""
    index = Promising(0.0)
    confident = ConfidentDrafter(ToyModel(), NoDrafter(), 1.0)
    choice, text = RunOrDraft(index, steps=1, seconds=1.0), [1, 2, 3]
    draft = either(confident, choice)
    for _ in range(200):
        index.rate = 0.0
        draft.propose(text, 9, REQUEST)
        text += [4, 5]
        index.rate = 99.0
        if between == "another method":
            text = text.copy()
        else:
            assert not draft.propose(text, 9, REQUEST)
        text += [6] * 50
    assert choice.rate <= 2.0
    if between == "another method":
        assert confident._settled / confident._spent <= 2.0


def test_published_searches_promise_nothing() -> None:
    paper = PRESETS["paper"].retrieval
    assert paper is not None
    assert Retrieval(paper).choice(4, 1.0) is None


def test_a_step_that_shows_a_run_has_nothing_drafted() -> None:
    """The toy's text goes round: soon runs are long, and the draft, always wrong, costs."""
    side = Retrieval(RetrievalSettings(row_cost=0.0))
    drafter = Counting()
    choice = side.choice(2, 2.0)
    assert choice is not None
    steps = list(
        decode_serial(
            ToyModel(8),
            DraftUnlessRun(drafter, choice, perf_counter, 1.0),
            side.lookup(),
            [1, 2, 3],
            REQUEST,
            StopRule(300),
            most=24,
        )
    )
    shown = [step for step in steps if step.num_drafted == 0 and step.guess]
    assert len(shown) > 5
    assert drafter.asked == sum(step.num_drafted > 0 for step in steps)


def test_a_draft_in_this_process_searches_what_the_target_has_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether to draft, and the run that the draft's first forward judges: one search for both."""
    found = []

    def lookup(self: ContextIndex, tokens: Tokens, limit: int) -> Match | None:
        found.append(len(tokens))
        return work(self, tokens, limit)

    work = ContextIndex.lookup
    monkeypatch.setattr(ContextIndex, "lookup", lookup)
    settings = RetrievalSettings()
    side = Retrieval(settings)
    choice, helper = side.choice(2, 2.0), side.shared(settings, 0.001).lookup()
    assert choice is not None
    for drafter in (
        ModelDrafter(ToyModel(8), 2, helper),
        ConfidentDrafter(ToyModel(8), helper, seconds=0.1),
    ):
        found.clear()
        assert DraftUnlessRun(drafter, choice, perf_counter, 1.0).propose([1, 2, 3], 6, REQUEST)
        assert found.count(3) == 1
        assert len(found) > 1, "behind its own first choice the draft searches itself"


def copied(agrees: bool) -> Trace:
    """An answer that copies its prompt."""
    text = tuple(range(100, 220))
    return Trace("copied", (*text, 5, 6, *text[:3]), text[3:], (agrees,) * 117)


def outcome(name: str, trace: Trace) -> Outcome:
    (plan,) = plans(name, MACHINE, 5)
    return simulate(plan, MACHINE, [Replay(trace)] * 4)


def test_a_copy_does_not_wait_for_a_draft_that_is_wrong() -> None:
    """Asked first, the draft would cost 5 x 2 of 20 milliseconds and end every run."""
    alone, both = outcome("lookup", copied(False)), outcome("double-serial", copied(False))
    assert both.speedup > 0.8 * alone.speedup
    assert both.bubbles > 0.5
    assert outcome("double-serial@paper", copied(False)).speedup < both.speedup / 2


def test_behind_a_draft_retrieval_learns_for_itself() -> None:
    """Its runs never hold alone, and nothing is known of them behind a draft."""
    engine = Engine(ToyModel(), None, Settings(history_bytes=0), ForwardCost(0.01, 0.3))
    request, stop = Request(SamplingParams(), 1), StopRule(1)
    list(engine.decode([1], request, stop, "lookup"))
    (parts,) = engine._parts.values()
    pairs = [(1000 + i, 2000 + i) for i in range(80)]
    text = [token for pair in pairs for token in (*pair, pair[0] + 2000)]
    for pair in pairs:  # each comes again, and something else after it
        parts.lookup().propose([*text, *pair], 20, request)
        text += [*pair, pair[0] + 3000]
    assert parts.lookup().propose(text[:-1], 20, request) == []
    for behind in ("serial", "beside"):
        assert parts.lookup(behind).propose(text[:-1], 20, request)


@pytest.mark.parametrize(
    ("cost", "chained", "first"),
    [
        # A row more hardly counts, and two cores gain little: better beside the target.
        (ForwardCost(0.01, 0.02, alone=0.9), 0.001, "double"),
        # Two cores halve a forward, which takes longer with every row: better before it.
        (ForwardCost(0.01, 0.2, alone=0.5), 0.001, "double-serial"),
        # A draft that goes on by itself, as only one before the target does, takes less time there.
        (ForwardCost(0.004, 0.1, alone=0.8), 0.001, "double"),
        (ForwardCost(0.004, 0.1, alone=0.8), 0.0002, "double-serial"),
    ],
)
def test_the_likely_best_is_told_by_what_forwards_take(
    cost: ForwardCost, chained: float, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "undisturbed_seconds", lambda model: 0.001)
    monkeypatch.setattr(engine, "chained_seconds", lambda model: chained)
    monkeypatch.setattr(engine, "usable_cores", lambda: 2)
    with LLM("bundled", "bundled", history_bytes=0, background="thread") as llm:
        made = Engine(llm.target, llm.recipe, llm.settings, cost)
        assert made.make_scheduler().choose().leader == "double"  # before a draft is loaded
        made.draft_model()
        assert made.make_scheduler().choose().leader == first
        made.close()


def test_what_steps_say_to_a_draft_beside_them_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hardly does where a forward takes ten milliseconds, and decides where it takes less than
    one."""
    monkeypatch.setattr(engine, "undisturbed_seconds", lambda model: 0.0001)
    monkeypatch.setattr(engine, "chained_seconds", lambda model: 0.0001)
    monkeypatch.setattr(engine, "usable_cores", lambda: 2)
    with LLM("bundled", "bundled", history_bytes=0, background="thread") as llm:
        made = Engine(llm.target, llm.recipe, llm.settings, ForwardCost(0.0008, 0.13, alone=0.66))
        made.draft_model()
        assert made.make_scheduler().choose().leader == "double-serial"
        monkeypatch.setattr(recipe, "_FOLLOW_SECONDS", 0.0)
        assert made.make_scheduler().choose().leader == "double"
        made.close()


def test_a_draft_beside_the_target_is_slower_than_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which decides where it hardly keeps up with the target as it is."""
    monkeypatch.setattr(engine, "undisturbed_seconds", lambda model: 0.0015)
    monkeypatch.setattr(engine, "chained_seconds", lambda model: 0.001)
    monkeypatch.setattr(engine, "usable_cores", lambda: 2)
    with LLM("bundled", "bundled", history_bytes=0, background="thread") as llm:
        made = Engine(llm.target, llm.recipe, llm.settings, ForwardCost(0.004, 0.02, alone=0.55))
        made.draft_model()
        assert made.make_scheduler().choose().leader == "double-serial"
        monkeypatch.setattr(recipe, "_SHARED", 1.0)
        assert made.make_scheduler().choose().leader == "double"
        made.close()


def test_a_draft_of_a_fixed_length_settles_most_if_most_tokens_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By what its tokens take, which is less where it goes on by itself, and their rows."""
    forward, chained = 0.001, 0.001
    monkeypatch.setattr(recipe, "undisturbed_seconds", lambda model: forward)
    monkeypatch.setattr(recipe, "chained_seconds", lambda model: chained)
    with LLM("bundled", "bundled", history_bytes=0) as llm:
        assert llm.recipe is not None
        retrieval, model = Retrieval(RetrievalSettings()), llm.engine.draft_model()

        def steps(target_seconds: float, row_cost: float, gamma: int | None = None) -> int:
            made = replace(llm.recipe, gamma=gamma)
            return made.drafter(model, None, retrieval, target_seconds, row_cost).steps

        assert steps(0.003, 0.01) == 3
        assert steps(0.010, 0.01) == 7
        assert steps(0.010, 0.10) == 5
        assert steps(0.010, 0.10, gamma=7) == 7
        chained = 0.0002
        assert steps(0.003, 0.01) == (8 if can_compile() else 3)


@pytest.mark.parametrize("length", [None, 20, 2])
def test_a_chain_is_timed_by_its_tokens(length: int | None) -> None:
    """In a short context by a shorter one."""
    settings = {"history_bytes": 0, "kernels": "native", "max_length": length}
    with LLM("bundled", "bundled", **settings) as llm:
        draft = llm.engine.draft_model()
        assert 0 < chained_seconds(draft) < 0.01
        assert goes_on_by_itself(draft, 0.001)
        assert not goes_on_by_itself(draft, 0.01)
        assert not goes_on_by_itself(ToyModel(), 0.001)


@pytest.mark.skipif(
    engine.usable_cores() < 2 or not can_compile(), reason="needs two cores and our kernels"
)
def test_a_draft_before_the_target_takes_all_cores_but_beside_another_one() -> None:
    """What chooses its threads learns of a draft beside the target as the target's own does."""
    with LLM("bundled", "bundled", history_bytes=0, background="thread") as llm:
        threads = llm.engine.draft_model().threads
        assert llm.engine.governors() == [llm.threads, threads]
        assert (threads.usual, threads.every) == (llm.threads.usual, llm.threads.every)
        steps = llm.stream("Once upon a time", method="psd", max_tokens=40, ignore_eos=True)
        pieces = iter(steps)
        for _ in range(4):
            next(pieces)
        assert (llm.threads._drafting, threads._drafting) == (1, 1)
        steps.close()
        assert (llm.threads._drafting, threads._drafting) == (0, 0)
    with LLM("bundled", "bundled", threads=1) as llm:  # set by the user
        assert llm.engine.draft_model().threads is None


def test_as_many_forwards_come_at_once_as_no_reader_waits_for() -> None:
    costs = {seconds: ForwardCost(seconds, 0.1) for seconds in (1e-4, 1e-3, 0.02, 0.5)}
    assert {cost.at_once for cost in costs.values()} == {1}  # they do not go on by themselves
    made = {seconds: replace(cost, chained=seconds).at_once for seconds, cost in costs.items()}
    assert made == {1e-4: 64, 1e-3: 33, 0.02: 1, 0.5: 1}
