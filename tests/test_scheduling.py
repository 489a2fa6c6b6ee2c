"""`auto`: it finds the fastest method, notices when that changes, and its trials cost little."""

import random
from collections.abc import Callable, Iterator
from itertools import accumulate, count, pairwise
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from doublespec import methods
from doublespec.decoding import Step, Steps, decode_in_turns
from doublespec.drafting.base import NoDrafter
from doublespec.drafting.costs import LookupCosts
from doublespec.drafting.hindsight import Hindsight
from doublespec.drafting.lookup import Helper
from doublespec.drafting.pauses import Pauses
from doublespec.drafting.sounding import LEAST_SOUNDED, Sounding
from doublespec.sampling import Request, SamplingParams
from doublespec.scheduling.promises import Promises
from doublespec.scheduling.records import Record
from doublespec.scheduling.scheduler import (
    FIRST_STEPS,
    MANY_STEPS,
    SETTLING_STEPS,
    TRIAL_STEPS,
    TURN_STEPS,
    Between,
    Scheduler,
    Turn,
)
from doublespec.scheduling.slowness import Slowness
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens

Left = Callable[[], int]

_REQUEST = Request(SamplingParams(), 1)
NAMES = ("double", "double-serial", "lookup", "ar")


def _hindsight(
    drafter: Helper,
    seconds: Callable[[int], float],
    at_once: int = 1,
    make: type[Hindsight] = Hindsight,
    method: str = "lookup",
) -> Hindsight:
    """Judges runs of up to 8 tokens; forwards that follow another one at once take 1 second."""
    expected = lambda shown, searched: seconds(shown[0]) + len(shown) - 1.0  # noqa: E731
    return make(method, drafter, 8, expected, Pauses(lambda: 2.0), at_once)


def _no_hindsight() -> Hindsight:
    return _hindsight(NoDrafter(), lambda shown: 0.01, method="nobody")


def _expected(name: str, shown: int, forwards: int) -> float:
    return 0.01


def _places(turn: Turn) -> Iterator[int]:
    """Those of the steps of a turn, which may be ended early by what is learnt of one."""
    for place in count():
        if place >= turn.steps:
            return
        yield place


def _run(scheduler: Scheduler, rates: dict[str, float], steps: int, seed: int = 0) -> float:
    """Steps of methods with such rates (tokens per second), noisy; tokens per second of all."""
    chance = random.Random(seed)
    tokens = seconds = 0.0
    for _ in range(steps):
        turn = scheduler.choose()
        for place in _places(turn):
            new = 1 if turn.name == "ar" else chance.randint(1, 5)
            took = new / rates[turn.name] * chance.uniform(0.7, 1.3)
            scheduler.learn(turn, place, new, took)
            tokens, seconds = tokens + new, seconds + took
    return tokens / seconds


@pytest.mark.parametrize("best", NAMES)
def test_the_fastest_method_is_found_and_trials_cost_little(best: str) -> None:
    rates = {name: 300.0 if name == best else 150.0 for name in NAMES}
    scheduler = Scheduler(NAMES, {"ar": rates["ar"]})
    _run(scheduler, rates, 150)
    assert _run(scheduler, rates, 800) > 0.97 * 300


def test_steps_that_came_at_once_leave_with_all_their_tokens() -> None:
    """Of twenty in sixteen steps four used to stay for ever."""
    record = Record()
    for _ in range(50):
        record.add_near(20, 0.16, 16)
    assert record.near_rate == pytest.approx(125.0)
    assert record.near_tokens == pytest.approx(20 * len(record.near) / 16)


def test_a_short_answer_is_not_spent_on_trials() -> None:
    """A first trial waits until it is likely to cost no more than a hundredth of the time."""
    scheduler = Scheduler(NAMES, {"ar": 100.0})
    names: list[str] = []
    while len(names) < 640:
        turn = scheduler.choose()
        for place in _places(turn):
            names.append(turn.name)
            scheduler.learn(turn, place, 3, 0.01)
    # Two steps until a draft has taken in the text, and a quarter of six: 350 steps.
    assert set(names[:336]) == {"double"}
    assert set(names) > {"double"}


@pytest.mark.parametrize("off", [0.6, 2.0])
def test_plain_decoding_is_tried_early_where_it_may_be_the_faster_one(off: float) -> None:
    """Forwards behind drafts may take twice as long as was expected, which says nothing of plain
    decoding: it is not left for half of what it makes until trials are due."""
    scheduler, names = Scheduler(("double-serial", "ar"), {"ar": 100.0}), []
    for _ in range(12):
        turn = scheduler.choose()
        for place in _places(turn):
            names.append(turn.name)
            if turn.name == "ar":
                scheduler.learn(turn, place, 1, 0.01)
            else:
                scheduler.learn(turn, place, 3, 0.03 / 0.8, slowness=off)
    assert names.index("ar") <= 64
    assert names[-1] == "ar"


def test_what_a_method_needs_is_got_ready_once_the_time_allows_it() -> None:
    """As a draft beside the target, whose loading takes a core: at once if it is to lead."""
    scheduler = Scheduler(NAMES, {"ar": 100.0})
    assert scheduler.affords("double", 1.0)
    assert not scheduler.affords("double-serial", 1.0)
    for seconds, is_enough in ((99.0, False), (2.0, True)):
        turn = scheduler.choose(lambda name: name == "double")
        scheduler.learn(turn, 0, 3, seconds)
        assert scheduler.affords("double-serial", 1.0) == is_enough


def _share_of_double(seed: int) -> float:
    """Its share of the time over 100 answers to texts that differ tenfold, where steps of one text
    do, too, and methods by an eighth."""
    chance = random.Random(seed)
    rates = {"double": 400.0, "double-serial": 350.0, "lookup": 200.0}
    scheduler, seconds = Scheduler(NAMES, {"ar": 100.0}), dict.fromkeys(NAMES, 0.0)
    for _ in range(100):
        ease, left = chance.choice((1.0, 3.0, 10.0)), chance.randint(20, 200)
        while left > 0:
            turn = scheduler.choose()
            for place in _places(turn):
                new, took = 1, 0.01
                if turn.name != "ar":
                    new, took = chance.choice((1, 1, 2, 4, 30)), 7.6 / ease / rates[turn.name]
                scheduler.learn(turn, place, new, took)
                seconds[turn.name] += took
                left -= new
                if left <= 0:
                    break
    return seconds["double"] / sum(seconds.values())


def test_luck_with_a_text_makes_no_leader() -> None:
    assert median(_share_of_double(seed) for seed in range(7)) > 0.95


def test_where_nothing_pays_plain_decoding_is_hardly_slowed() -> None:
    rates = {"double": 60.0, "double-serial": 50.0, "lookup": 90.0, "ar": 100.0}
    assert _run(Scheduler(NAMES, {"ar": 100.0}), rates, 400) > 0.97 * 100


def test_plain_decoding_that_is_slower_than_expected_is_left_at_once() -> None:
    """A forward measured in a quiet moment promises too much."""
    rates = {"double": 300.0, "double-serial": 250.0, "lookup": 200.0, "ar": 150.0}
    assert _run(Scheduler(NAMES, {"ar": 310.0}), rates, 30) > 0.95 * 300


def test_plain_decoding_that_is_faster_than_expected_is_found_first() -> None:
    """A forward measured in a busy moment promises too little, and a trial tells."""
    rates = {"double": 70.0, "double-serial": 60.0, "lookup": 80.0, "ar": 100.0}
    scheduler = Scheduler(NAMES, {"ar": 65.0})
    _run(scheduler, rates, 3)
    assert {row.name for row in scheduler.explain() if row.steps} == {"double", "ar"}
    assert _run(scheduler, rates, 100) > 0.96 * 100


def _steps_of(
    scheduler: Scheduler, rates: dict[str, float], turns: int, slowness: float = 1.0
) -> dict[str, int]:
    """How many steps of one token each method makes in so many turns."""
    before = {row.name: row.steps for row in scheduler.explain()}
    for _ in range(turns):
        turn = scheduler.choose()
        for place in _places(turn):
            scheduler.learn(turn, place, 1, slowness / rates[turn.name], slowness)
    return {row.name: row.steps - before[row.name] for row in scheduler.explain()}


def test_a_first_method_that_loses_is_left_within_its_turn() -> None:
    rates = {"double": 50.0, "double-serial": 50.0, "lookup": 95.0, "ar": 100.0}
    found = _steps_of(Scheduler(NAMES, {"ar": 100.0}), rates, 20)
    assert found["double"] <= 9 + TRIAL_STEPS  # nine alike, and a trial
    assert found["ar"] > 10 * TURN_STEPS


def test_a_method_that_has_led_for_long_is_not_left_for_a_few_steps() -> None:
    rates = {"double": 200.0, "double-serial": 50.0, "lookup": 95.0, "ar": 100.0}
    scheduler = Scheduler(NAMES, {"ar": 100.0})
    _steps_of(scheduler, rates, 8)
    turn = scheduler.choose()
    for place in range(4):
        scheduler.learn(turn, place, 1, 0.02)
    assert (turn.name, turn.steps) == ("double", 2 * TURN_STEPS)  # choosing costs time, too


def test_an_untried_method_is_expected_to_lose_as_much_as_the_slowest_one() -> None:
    """A second method with the same draft waits for what the first one has cost."""

    def turns_until_it_is_tried(slow: float) -> int:
        scheduler = Scheduler(("double", "double-serial", "ar"), {"ar": 100.0})
        rates = {"double": slow, "double-serial": slow, "ar": 100.0}
        for number in count():
            if _steps_of(scheduler, rates, 1)["double-serial"]:
                return number
        raise AssertionError

    assert turns_until_it_is_tried(90.0) < 4
    assert turns_until_it_is_tried(10.0) > 30


def test_what_was_left_early_is_tried_again_soon() -> None:
    """Its first steps say little of the text that follows."""
    rates = {"double": 50.0, "double-serial": 50.0, "lookup": 95.0, "ar": 100.0}
    scheduler = Scheduler(NAMES, {"ar": 100.0}, "lookup")
    _steps_of(scheduler, rates, 1)
    assert _steps_of(scheduler, rates | {"double": 300.0}, 40)["double"] > 12 * TURN_STEPS


def test_a_stand_in_that_surely_loses_gives_way_to_plain_decoding() -> None:
    """While the draft beside the target is being loaded, say."""
    scheduler = Scheduler(NAMES, {"ar": 100.0})
    names = []
    for _ in range(4):
        turn = scheduler.choose(lambda name: name != "double")
        names.append(turn.name)
        for place in _places(turn):
            scheduler.learn(turn, place, 1, 0.01 if turn.name == "ar" else 0.03)
    assert names == ["double-serial", "lookup", "ar", "ar"]
    assert scheduler.choose().name == "double"


def test_plain_decoding_that_was_measured_in_a_busy_moment_is_known_all_the_same() -> None:
    """Its forwards were slow then, as those of others are not any more."""
    rates = {"double": 90.0, "double-serial": 60.0, "lookup": 80.0, "ar": 100.0}
    scheduler = Scheduler(NAMES, {"ar": 85.0})
    _steps_of(scheduler, rates, 4, slowness=2.0)
    assert _steps_of(scheduler, rates, 60)["ar"] > 40 * TURN_STEPS


def test_one_busy_moment_of_plain_decoding_decides_little() -> None:
    """What was expected of it holds until more is measured."""
    rates = {"double": 94.0, "double-serial": 60.0, "lookup": 80.0, "ar": 110.0}
    found = []
    for seed in range(20):
        scheduler = Scheduler(NAMES, {"ar": rates["ar"]})
        _run(scheduler, rates | {"ar": 75.0}, 6, seed)
        found.append(_run(scheduler, rates, 150, seed))
    assert sum(found) / len(found) > 104.0


def test_a_pause_of_the_machine_is_no_trial_that_failed() -> None:
    """One step of a trial takes ten minutes: others are still tried, and the best one leads."""
    rates = dict.fromkeys(NAMES, 100.0) | {"double": 300.0}
    scheduler = Scheduler(NAMES, {"ar": 100.0})
    _run(scheduler, rates, 300)
    turn = scheduler.choose()
    while not turn.on_trial:
        for place in _places(turn):
            scheduler.learn(turn, place, 3, 0.01)
        turn = scheduler.choose()
    for place in _places(turn):
        scheduler.learn(turn, place, 3, 600.0 if place == 0 else 0.03)
    rates["double-serial"] = 900.0
    assert _run(scheduler, rates, 1500) > 600


def test_a_change_of_the_text_is_noticed() -> None:
    scheduler = Scheduler(NAMES, {"ar": 100.0})
    _run(scheduler, {"double": 300, "double-serial": 200, "lookup": 120, "ar": 100}, 100)
    assert scheduler.explain()[0].name == "double"
    _run(scheduler, {"double": 90, "double-serial": 80, "lookup": 400, "ar": 100}, 400)
    assert scheduler.explain()[0].name == "lookup"


def test_what_was_measured_is_explained() -> None:
    scheduler = Scheduler(("lookup", "ar"), {"ar": 100.0})
    before = {row.name: row for row in scheduler.explain()}
    assert before["lookup"].tokens_per_second is None
    assert before["ar"].tokens_per_second == pytest.approx(100)
    _run(scheduler, {"lookup": 200, "ar": 100}, 50)
    rows = {row.name: row for row in scheduler.explain()}
    assert rows["lookup"].tokens_per_second == pytest.approx(200, rel=0.2)
    assert rows["lookup"].share > 0.8
    assert sum(row.share for row in rows.values()) == pytest.approx(1)


def test_a_turn_ends_the_method_it_leaves() -> None:
    closed: list[str] = []

    def begin(name: str, tokens: Tokens, left: Left) -> Steps:
        try:
            finish = None
            while finish is None:
                position = len(tokens)
                finish = "length" if position >= 2000 else None
                yield Step((position,), (), 0, finish, 0.0, 0.01, 0.0, 0.01)
                tokens = [*tokens, position]
        finally:
            closed.append(name)

    scheduler = Scheduler(("lookup", "ar"), {"ar": 100.0})
    steps = list(
        decode_in_turns(
            begin, lambda name: True, scheduler, _no_hindsight(), [0], _REQUEST, _expected
        )
    )
    assert [step.new[0] for step in steps] == list(range(1, 2001))
    assert sum(known.steps for known in scheduler.explain()) == 1999  # all but the first
    assert len(closed) > 5
    assert set(closed) == {"lookup", "ar"}


def test_an_answer_leaves_a_first_method_that_loses_within_its_turn() -> None:
    made: list[str] = []

    def begin(name: str, tokens: Tokens, left: Left) -> Steps:
        for position in range(len(tokens), 60):
            made.append(name)
            seconds = 0.05 if name == "double" else 0.01
            yield Step(
                (position,), (), 0, "length" if position == 59 else None, 0, 0.01, 0, seconds
            )

    scheduler = Scheduler(("double", "ar"), {"ar": 100.0})
    asked = lambda name: True, scheduler, _no_hindsight(), [0], _REQUEST, _expected
    assert len(list(decode_in_turns(begin, *asked))) == 59
    assert made[:26] == ["double"] * 10 + ["ar"] * 16  # the first step of all is not measured


def test_what_was_expected_of_plain_decoding_may_be_wrong_otherwise_than_of_others() -> None:
    """Its forwards take less than expected where they are made several at once, those of others
    more. It is known how fast it is all the same, while another one leads."""
    scheduler = Scheduler(("lookup", "ar"), {"ar": 100.0})
    for times in (1.0, 2.0):  # the second time the machine is half as fast
        for _ in range(60):
            turn = scheduler.choose()
            for place in _places(turn):
                if turn.name == "ar":
                    scheduler.learn(turn, place, 1, 0.0085 * times, 0.8 * times, beside=0.85 / 0.8)
                else:
                    scheduler.learn(turn, place, 2, 0.0125 * times, slowness=1.2 * times)
        assert turn.leader == "lookup"
        rates = {row.name: row.tokens_per_second for row in scheduler.explain()}
        assert rates["ar"] == pytest.approx(1 / (0.0085 * times), rel=0.01)


def test_forwards_of_several_kinds_tell_of_plain_decoding_by_their_mean() -> None:
    """Of prompt lookup three of four steps come in long calls, and one takes four times as long."""
    slowness = Slowness({"ar"})
    slowness.add("ar", 1.0, 32)
    for step in range(400):
        slowness.add("lookup", 4.0 if step % 4 == 3 else 1.0, 1)
    assert slowness.of_known == pytest.approx(1.0)
    for step in range(400):  # the machine becomes half as fast
        slowness.add("lookup", 8.0 if step % 4 == 3 else 2.0, 1)
    assert slowness.of_known == pytest.approx(2.0)


def test_a_few_steps_of_plain_decoding_itself_say_more_than_many_of_others() -> None:
    slowness = Slowness({"ar"})
    slowness.add("ar", 1.0, 32)
    slowness.add("lookup", 1.0, 300)
    slowness.add("ar", 1.5, 15)
    slowness.add("lookup", 1.0, 50)
    # what changes said before counts, too
    assert slowness.of_known == pytest.approx(1.36, abs=0.01)
    slowness.add("ar", 1.5, 1)
    assert slowness.of_known == pytest.approx(1.5)
    slowness.add("lookup", 1.0, 256)  # so long ago that others are asked
    assert slowness.of_known == pytest.approx(1.35, abs=0.01)


def test_no_forward_counts_for_longer_than_some_others() -> None:
    slowness = Slowness({"ar"})
    slowness.add("ar", 1.0, 99)
    slowness.add("ar", 1000.0, 1)  # the machine was stopped
    assert slowness.of_known == pytest.approx(1.07)


def test_a_short_call_of_plain_decoding_is_expected_to_take_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trial makes few forwards at once, which tell of plain decoding that makes many."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(methods, "decode_in_turns", lambda *parts: asked.append(parts))
    parts: Any = SimpleNamespace(
        plain_seconds=0.4,
        lookup_costs=LookupCosts(0.4, 0.6, 0.03, 0.1, at_once=64),
        forward_seconds=lambda shown, *, beside: 0.6,
        **dict.fromkeys(("scheduler", "hindsight", "clock", "sounding")),
    )
    methods.auto(parts, [0], _REQUEST, StopRule(8))
    expected = asked[0][6]
    assert expected("ar", 0, 64) == pytest.approx(0.4)
    in_a_call = [number * expected("ar", 0, number) for number in (1, 16, 64)]
    assert in_a_call[1] - in_a_call[0] == pytest.approx(15 / 63 * (in_a_call[2] - in_a_call[0]))
    assert expected("ar", 0, 1) / expected("ar", 0, 64) == pytest.approx(0.6 * 64 / 25.8)


def test_a_method_that_cannot_run_now_is_left_out() -> None:
    scheduler = Scheduler(NAMES, {"ar": 100.0})
    turns = [scheduler.choose(lambda name: not name.startswith("double")) for _ in range(20)]
    assert {turn.name for turn in turns} <= {"lookup", "ar"}
    assert scheduler.choose().name == "double"


# -- one method is judged by text that others have settled -----------------------------------------


def _run_judged(scheduler: Scheduler, rates: dict[str, float], turns: int, seed: int) -> list[str]:
    """Turns on texts whose ease differs tenfold, alike for all methods; who led."""
    chance, leaders = random.Random(seed), []
    for _ in range(turns):
        turn, ease = scheduler.choose(), chance.choice((1.0, 3.0, 10.0))
        leaders.append(turn.leader)
        for place in _places(turn):
            new = chance.choice((1, 1, 2, 4, 30))
            scheduler.learn(turn, place, new, new / (ease * rates[turn.name]))
        if turn.judged:
            luck = chance.uniform(0.8, 1.25)
            scheduler.compare(turn, turn.tokens / (ease * rates["lookup"]) * luck)
    return leaders


def test_hindsight_finds_the_better_method_soon_and_stays_with_it() -> None:
    rates = {"double": 400.0, "double-serial": 350.0, "lookup": 480.0, "ar": 30.0}
    soon = 0
    for seed in range(40):
        leaders = _run_judged(Scheduler(NAMES, {"ar": 30.0}, "lookup"), rates, 150, seed)
        soon += "lookup" in leaders[:25]  # a few hundred steps
        assert leaders[60:].count("lookup") > 80
    assert soon >= 36


def test_hindsight_leads_back_when_the_text_changes() -> None:
    """Mostly: what was seen before the change counts for a while."""
    rates, back = {"double": 300.0, "double-serial": 250.0, "lookup": 480.0, "ar": 30.0}, 0
    for seed in range(40):
        scheduler = Scheduler(NAMES, {"ar": 30.0}, "lookup")
        assert _run_judged(scheduler, rates, 100, seed)[-1] == "lookup"
        back += _run_judged(scheduler, {**rates, "double": 700.0}, 400, seed)[-1] == "double"
    assert back >= 28


def test_a_worse_method_is_judged_in_a_few_turns_only() -> None:
    scheduler, chance = Scheduler(NAMES, {"ar": 30.0}, "lookup"), random.Random(0)
    judged = []
    for _ in range(60):
        turn = scheduler.choose()
        for place in _places(turn):
            scheduler.learn(turn, place, chance.randint(1, 9), 0.01)
        if turn.judged:
            scheduler.compare(turn, 1.5 * turn.seconds)
        judged.append(turn.judged)
    assert all(judged[:2])
    assert 8 <= sum(judged) <= 20


def _run_texts(scheduler: Scheduler, gain: float, steps: int, seed: int = 0) -> dict[str, int]:
    """Retrieval settles `gain` times as much as plain decoding on the whole, in texts of some
    hundred steps that differ; how many steps each method made."""
    chance, made, ease = random.Random(seed), dict.fromkeys(NAMES, 0), 1.0
    while sum(made.values()) < steps:
        turn = scheduler.choose()
        for place in _places(turn):
            if chance.random() < 0.01:
                ease = chance.choice((0.85, 0.95, 1.2))
            rate = {"lookup": 100 * gain * ease, "ar": 100.0}.get(turn.name, 60.0)
            new = chance.choice((1, 1, 1, 5)) if turn.name == "lookup" else 1
            seconds = new / rate if turn.name != "lookup" else 2.0 / rate
            scheduler.learn(turn, place, new, seconds)
            made[turn.name] += 1
        if turn.judged:
            scheduler.compare(turn, turn.tokens / (100 * gain * ease))
    return made


def test_retrieval_leads_instead_of_plain_decoding_where_it_pays_on_the_whole() -> None:
    mostly = often = 0
    for seed in range(20):
        scheduler = Scheduler(("double", "lookup", "ar"), {"ar": 100.0}, "lookup")
        made = _run_texts(scheduler, 1.15, 4000, seed)
        mostly += made["lookup"] > made["ar"]
        often += made["lookup"] > 4 * made["ar"]
    assert mostly >= 18
    assert often >= 16


def test_plain_decoding_leads_where_retrieval_does_not_pay() -> None:
    for seed in range(10):
        scheduler = Scheduler(("double", "lookup", "ar"), {"ar": 100.0}, "lookup")
        made = _run_texts(scheduler, 0.8, 4000, seed)
        assert made["ar"] > 4 * made["lookup"]


def test_retrieval_leads_instead_of_plain_decoding_unless_it_loses_more_than_a_little() -> None:
    """It is as fast as soon as something repeats, and costs next to nothing else."""
    for slower, leads in ((1.06, True), (0.995, True), (0.95, False), (0.9, False)):
        scheduler = Scheduler(("double", "lookup", "ar"), {"ar": 100.0}, "lookup")
        made = dict.fromkeys(NAMES, 0)
        while sum(made.values()) < 2000:
            turn = scheduler.choose()
            for place in _places(turn):
                rate = {"lookup": 100.0 * slower, "ar": 100.0}.get(turn.name, 60.0)
                scheduler.learn(turn, place, 1, 1.0 / rate)
                made[turn.name] += 1
            if turn.judged:
                scheduler.compare(turn, turn.tokens / (100.0 * slower))
        assert (made["lookup"] > made["ar"]) == leads


def test_retrieval_comes_back_when_the_text_has_changed() -> None:
    """It is tried beside plain decoding as often as that costs little, whatever others have cost
    before."""
    back = 0
    for seed in range(40):
        scheduler = Scheduler(("double", "lookup", "ar"), {"ar": 100.0}, "lookup")
        _run_texts(scheduler, 0.85, 1500, seed)
        made = _run_texts(scheduler, 1.6, 2000, seed)
        back += made["lookup"] > made["ar"]
    assert back >= 32


def _turns_of(scheduler: Scheduler, found: int, steps: int, retrieving: float = 90.0) -> list[Turn]:
    """Plain decoding is the fastest at 100 tokens per second, and retrieval finds so many tokens a
    step; the turns."""
    turns: list[Turn] = []
    made = 0
    while made < steps:
        turn = scheduler.choose()
        turns.append(turn)
        new = 1 + found if turn.name == "lookup" else 1
        rate = {"ar": 100.0, "lookup": retrieving}.get(turn.name, 60.0)
        for place in _places(turn):
            if place < turn.telling:
                scheduler.learn(turn, place, new, new / rate)
            else:
                scheduler.count(turn, 1, new / rate)
            made += 1
        if turn.judged:
            scheduler.compare(turn, turn.tokens / retrieving)
    return turns


def test_where_retrieval_leads_and_finds_nothing_little_else_is_done() -> None:
    """Plain decoding would do the same, so that its trials say next to nothing, though each takes a
    call of many forwards apart."""
    seldom, often = (
        _turns_of(Scheduler(("lookup", "ar"), {"ar": 100.0}, "lookup"), found, 12000, 100.5)
        for found in (0, 1)
    )
    assert {turn.steps for turn in seldom[-8:] if turn.name == "lookup"} == {8 * TURN_STEPS}
    assert max(turn.steps for turn in often) == 2 * TURN_STEPS
    for turns, apart in ((seldom, 4096), (often, 2048)):
        made = accumulate(turn.steps for turn in turns)
        tried = [place for place, turn in zip(made, turns, strict=True) if turn.name == "ar"]
        assert apart <= tried[-1] - tried[-2] < apart + 16 * TURN_STEPS


def test_plain_decoding_that_is_far_slower_is_hardly_tried_again() -> None:
    """How fast it is, the forwards of others tell as well."""
    scheduler = Scheduler(("double-serial", "ar"), {"ar": 100.0})
    made = list[str]()
    while len(made) < 6000:
        turn = scheduler.choose()
        for place in _places(turn):
            made.append(turn.name)
            scheduler.learn(turn, place, *((3, 0.015) if turn.name != "ar" else (1, 0.01)))
    assert "ar" in made
    assert made.count("ar") <= 2 * TURN_STEPS


def test_where_nothing_repeats_plain_decoding_is_asked_seldom() -> None:
    """All that `auto` does between its steps costs time that nothing brings back."""
    seldom, often = (
        _turns_of(Scheduler(("double", "lookup", "ar"), {"ar": 100.0}, "lookup"), found, 6000)
        for found in (0, 1)
    )
    assert [turn.steps for turn in seldom[-8:] if turn.name == "ar"].count(4 * TURN_STEPS) >= 5
    assert max(turn.steps for turn in often) == 2 * TURN_STEPS
    assert sum(turn.name == "lookup" for turn in seldom[-40:]) < 16
    assert len(seldom) < 0.7 * len(often)
    for turns in (seldom, often):
        plain = [turn for turn in turns if turn.name == "ar"]
        assert all(turn.steps == turn.at_once == TURN_STEPS for turn in plain[:8])
        assert all((turn.steps > TURN_STEPS) <= (turn.at_once > 64) for turn in turns)


def test_retrieval_is_left_the_sooner_the_more_it_loses() -> None:
    def steps_led(speed: float) -> int:
        scheduler, made = Scheduler(("lookup", "ar"), {"ar": 100.0}, "lookup"), 0
        while True:
            turn = scheduler.choose()
            if turn.leader != "lookup":
                return made
            for place in _places(turn):
                rate = 100.0 if turn.name == "ar" else 100.0 * speed
                scheduler.learn(turn, place, 1, 1.0 / rate)
                made += turn.name == "lookup"

    assert steps_led(0.7) == 48
    assert steps_led(0.92) == 128
    assert steps_led(0.95) == 512


def test_retrieval_that_was_left_just_now_does_not_lead_instead_of_plain_decoding() -> None:
    rates = {"double": 50.0, "lookup": 70.0, "ar": 100.0}
    scheduler = Scheduler(("double", "lookup", "ar"), {"ar": 100.0}, "lookup")
    leaders = []
    for _ in range(60):
        turn = scheduler.choose()
        leaders.append(turn.leader)
        for place in _places(turn):
            scheduler.learn(turn, place, 1, 1.0 / rates[turn.name])
    changes = [after for before, after in pairwise(leaders) if before != after]
    assert changes == ["lookup", "ar"]


def test_retrieval_leads_again_where_a_draft_that_took_its_place_is_left() -> None:
    """It was left for that, by a promise that does not hold, not because it lost."""
    rates = {"double-serial": 50.0, "lookup": 100.0, "ar": 100.0}
    names = ("double-serial", "lookup", "ar")
    scheduler = Scheduler(names, {"ar": 100.0}, "lookup", sounded=True)
    leaders = []
    for number in range(200):
        turn = scheduler.choose()
        leaders.append(turn.leader)
        for place in _places(turn):
            scheduler.learn(turn, place, 1, 1.0 / rates[turn.name])
        if scheduler.wants_sounding(lambda: 100):
            scheduler.sound({"double-serial": 0.5 if number < 20 else 4.0}, 100, 0.001)
    changes = [after for before, after in pairwise(leaders) if before != after]
    assert changes[:3] == ["lookup", "double-serial", "lookup"]
    assert "ar" not in changes


def test_what_retrieval_gained_once_keeps_it_at_work_for_a_while_only() -> None:
    """Ahead by 60 tokens, it loses a tenth from then on: left before all is lost again."""
    scheduler, made = Scheduler(("lookup", "ar"), {"ar": 100.0}, "lookup"), 0
    while True:
        turn = scheduler.choose()
        if turn.leader != "lookup":
            break
        for place in _places(turn):
            rate = 100.0 if turn.name == "ar" else 200.0 if made < 120 else 90.0
            scheduler.learn(turn, place, 1, 1.0 / rate)
            made += turn.name == "lookup"
    assert 512 <= made < 1200


def test_retrieval_that_leads_may_pause_for_longer_than_a_turn() -> None:
    """Trials beside it may not."""
    scheduler = Scheduler(("lookup", "ar"), {"ar": 100.0}, "lookup")
    turns: list[Turn] = []
    for _ in range(60):
        turn = scheduler.choose()
        turns.append(turn)
        for place in _places(turn):
            scheduler.learn(turn, place, 1, 1.0 / (130.0 if turn.name == "lookup" else 100.0))
    trials = [turn for turn in turns if turn.on_trial]
    assert trials and {turn.name for turn in trials} == {"ar"}
    assert {turn.at_once for turn in turns if turn.name == "lookup"} == {MANY_STEPS}
    assert {turn.at_once for turn in trials} == {TURN_STEPS}


def test_retrieval_that_gains_in_a_few_places_only_leads_soon() -> None:
    """Nothing repeats for long; then two fifths of the time are saved in two passages of five, a
    seventh is lost in the others. Turns that became longer are short again as soon as some gain."""
    led = 0
    for seed in range(20):
        scheduler, chance, made = (
            Scheduler(("lookup", "ar"), {"ar": 100.0}, "lookup"), random.Random(seed), 0
        )  # fmt: skip
        while made < 4500:
            turn = scheduler.choose()
            saves = made > 1500 and chance.random() < 0.4
            rate = 100.0 if turn.name == "ar" else 100.0 / 0.6 if saves else 88.0
            for place in _places(turn):
                if place < turn.telling:
                    scheduler.learn(turn, place, 1, 1.0 / rate)
                else:
                    scheduler.count(turn, 1, 1.0 / rate)
                made += 1
            if turn.judged:
                scheduler.compare(turn, turn.tokens / (100.0 / 0.6 if saves else 88.0))
        led += turn.leader == "lookup"
    assert led >= 18


def test_the_next_answer_goes_on_with_a_turn_that_the_last_one_has_ended() -> None:
    """Answers may be short, and what is done before the first token delays it."""
    scheduler = Scheduler(("lookup", "ar"), {"ar": 100.0})
    turn = scheduler.choose()
    for place in range(TURN_STEPS - 5):
        scheduler.learn(turn, place, 3, 0.01)
    rest = scheduler.choose()
    assert (rest.name, rest.steps, rest.settling) == (turn.name, 5, 0)
    for place in range(5):
        scheduler.learn(rest, place, 3, 0.01)
    assert scheduler.choose().steps == TURN_STEPS
    assert scheduler.choose(lambda name: name == "ar").name == "ar"  # the other one cannot run now


def test_no_answer_goes_on_with_a_trial() -> None:
    scheduler = Scheduler(("lookup", "double", "ar"), {"ar": 100.0})
    turn = scheduler.choose()
    while not turn.on_trial:
        for place in _places(turn):
            scheduler.learn(turn, place, 3, 0.01)
        turn = scheduler.choose()
    scheduler.learn(turn, 0, 3, 0.01)  # and the answer is over
    after = scheduler.choose()
    assert (after.name, after.steps, after.on_trial) == ("lookup", 2 * TURN_STEPS, False)


def test_what_is_only_counted_counts() -> None:
    scheduler = Scheduler(("ar",), {"ar": 100.0})
    turn = scheduler.choose()
    for place in range(turn.telling):
        scheduler.learn(turn, place, 1, 0.01)
    scheduler.count(turn, 3 * TURN_STEPS, 0.5)
    assert [(known.steps, known.share) for known in scheduler.explain()] == [(4 * TURN_STEPS, 1.0)]


def test_steps_that_were_made_at_once_are_learnt_as_one_by_one() -> None:
    alone, together = (Scheduler(("lookup", "ar"), {"ar": 90.0}, "lookup") for _ in range(2))
    for number in range(40):
        turns = alone.choose(), together.choose()
        assert turns[0].name == turns[1].name
        slowness, steps = 1.0 + number % 5 / 10, turns[0].steps
        for place in range(steps):
            alone.learn(turns[0], place, 1, 0.01 * slowness, slowness)
        settling = turns[1].settling
        if settling:
            together.learn(turns[1], 0, settling, settling * 0.01 * slowness, slowness, settling)
        rest = steps - settling
        together.learn(turns[1], settling, rest, rest * 0.01 * slowness, slowness, rest)
    for one, other in zip(alone.explain(), together.explain(), strict=True):
        assert (one.name, one.steps) == (other.name, other.steps)
        # What was measured comes to count half in the midst of steps made at once, or after them.
        assert one.tokens_per_second == pytest.approx(other.tokens_per_second, rel=1e-3)


class _Listening(Scheduler):
    """Remembers what it was told: places, steps, tokens and seconds."""

    told: list[tuple[int, int, int, float]]

    def learn(
        self,
        turn: Turn,
        place: int,
        tokens: int,
        seconds: float,
        slowness: float = 1.0,
        steps: int = 1,
        *more: Any,
    ) -> None:
        super().learn(turn, place, tokens, seconds, slowness, steps, *more)
        self.told.append((place, steps, tokens, seconds))

    def count(self, turn: Turn, steps: int, seconds: float) -> None:
        super().count(turn, steps, seconds)
        self.told.append((-1, steps, steps, seconds))


def test_a_trial_ends_in_time_and_a_turn_with_what_was_computed_at_once() -> None:
    """Ten steps at once, if so many may be made; those that are ready are not thrown away."""
    made: list[tuple[str, int]] = []
    asked_for: list[int] = []

    def begin(name: str, tokens: Tokens, left: Left) -> Steps:
        place = len(tokens)
        while True:
            asked_for.append(left())
            forwards = min(10, asked_for[-1], 2000 - place) if place > 1 else 1
            made.append((name, forwards))
            for number in range(forwards):
                place += 1
                finish = "length" if place == 2000 else None
                took = 0.011 if name == "ar" else 0.01
                step = Step((0,), (), 0, finish, 0, took, 0, took, earlier_seconds=took * number)
                yield step._replace(ready=forwards - number - 1)

    scheduler = Scheduler(("double", "lookup", "ar"), {"ar": 100.0}, "lookup")
    turns: list[Turn] = []
    choose = scheduler.choose
    scheduler.choose = lambda can_run: turns.append(choose(can_run)) or turns[-1]  # type: ignore
    asked = lambda name: True, scheduler, _no_hindsight(), [0], _REQUEST, _expected
    assert len(list(decode_in_turns(begin, *asked))) == 1999
    assert sum(forwards for _, forwards in made) == 1999
    trials = [turn for turn in turns if turn.on_trial]
    assert trials
    assert all(turn.made <= turn.steps for turn in trials)
    assert any(turn.made == turn.steps + 4 for turn in turns)
    assert max(asked_for) == TURN_STEPS, "no call is longer while each turn tells something"


def test_only_where_a_draft_takes_part_a_change_has_to_settle() -> None:
    drafts = {"double", "double-serial"}
    seen, last = set(), ""
    scheduler = Scheduler(NAMES, {"ar": 100.0}, "lookup")
    for number in range(400):
        if number == 200:  # the same without a draft
            scheduler, last = Scheduler(("lookup", "ar"), {"ar": 100.0}, "lookup"), ""
        turn = scheduler.choose()
        settles = turn.name not in (last, "lookup") and not drafts.isdisjoint((turn.name, last))
        assert turn.settling == (SETTLING_STEPS if last and settles else 0)
        seen.add((last, turn.name))
        for place in _places(turn):
            scheduler.learn(turn, place, 1, 0.01)
        last = turn.name
    assert {("lookup", "ar"), ("double", "ar"), ("double", "lookup")} <= seen


def test_what_was_computed_at_once_is_told_at_once() -> None:
    """In calls of four, after the step that reads the prompt, which end no sooner than the turn."""

    def begin(name: str, tokens: Tokens, left: Left) -> Steps:
        while True:
            forwards = 1 if len(tokens) == 1 else min(4, left(), 100 - len(tokens))
            for number in range(forwards):
                tokens.append(0)
                finish = "length" if len(tokens) == 100 else None
                earlier = 0.01 if number else -0.01 * (forwards - 1)
                ready = forwards - number - 1
                step = Step((0,), (), 0, finish, 0, 0.01, 0, 0.01, earlier_seconds=earlier)
                yield step._replace(ready=ready)

    scheduler = _Listening(("ar",), {"ar": 100.0})
    scheduler.told = []
    asked = lambda name: True, scheduler, _no_hindsight(), [0], _REQUEST, _expected
    assert len(list(decode_in_turns(begin, *asked))) == 99
    told = [(place, steps, tokens) for place, steps, tokens, _ in scheduler.told]
    assert told[0] == (1, 4, 4)
    assert sum(steps for _, steps, _ in told) == 98
    assert told[-5:] == [(0, 4, 4), (4, 4, 4), (8, 4, 4), (12, 4, 4), (0, 2, 2)]
    assert sum(seconds for *_, seconds in scheduler.told) == pytest.approx(0.98)


def test_forwards_behind_a_draft_and_behind_a_lookup_err_otherwise() -> None:
    """What one of them tells of plain decoding does not change when the other one leads."""
    told = {"ar": 1.0, "double-serial": 1.3, "lookup": 0.95}
    scheduler = Scheduler(("double-serial", "lookup", "ar"), {"ar": 100.0})
    settled = {"ar": 1, "double-serial": 3, "lookup": 3}
    for best in ("double-serial", "lookup"):
        settled[best] = 4
        for _ in range(200):
            turn = scheduler.choose()
            for place in _places(turn):
                scheduler.learn(turn, place, settled[turn.name], 0.012, told[turn.name])
        settled[best] = 2
    rates = {row.name: row.tokens_per_second for row in scheduler.explain()}
    assert scheduler.choose().leader == "lookup"
    assert rates["ar"] == pytest.approx(1 / 0.012, rel=0.02)


def test_a_loss_that_may_be_luck_changes_no_leader() -> None:
    """Steps with a draft settle one token or five: eighty of them that settle a twentieth less than
    plain decoding say little, a thousand do."""
    scheduler, leaders = Scheduler(("double-serial", "ar"), {"ar": 100.0}), []
    for _ in range(80):
        turn = scheduler.choose()
        leaders.append(turn.leader)
        for place in _places(turn):
            new = 1 if turn.name == "ar" else (1, 5)[place % 2]
            scheduler.learn(turn, place, new, 0.01 if turn.name == "ar" else 0.0316)
    assert leaders[:8] == ["double-serial"] * 8
    assert leaders[-1] == "ar"


def test_what_is_expected_of_plain_decoding_follows_the_forwards_of_others() -> None:
    """They take twice as long as was measured before, so that `double` is not slower than it."""
    for slowness, leads in ((1.0, "ar"), (2.0, "double")):
        scheduler = Scheduler(("double", "ar"), {"ar": 150.0})
        for _ in range(30):
            turn = scheduler.choose()
            for place in _places(turn):
                seconds = slowness / 150.0 if turn.name == "ar" else 0.01
                scheduler.learn(turn, place, 1, seconds, slowness)
        assert scheduler.choose().leader == leads


def _measured(hindsight: Hindsight) -> Hindsight:
    """Its steps took as long as expected."""
    for _ in range(6):
        hindsight.learn("lookup", [3], 4.0)
    return hindsight


class _Parrot(NoDrafter):
    """Guesses that the last four tokens come again."""

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        return [*tokens[-4:]][:limit]


def test_seconds_in_hindsight_are_those_of_the_steps_that_would_have_been() -> None:
    hindsight = _measured(_hindsight(_Parrot(), lambda shown: 1.0 + shown))
    text = [9, 1, 2, 3, 4, 1, 2, 3, 4, 1, 7, 8]
    # after 9 1 2 3 4 the parrot is right four times and settles five tokens by a forward of five
    assert hindsight.seconds(text, 5, 10, _REQUEST) == pytest.approx(5.0)
    # then it is wrong at once: two tokens by two forwards
    assert hindsight.seconds(text, 10, 12, _REQUEST) == pytest.approx(2 * 5.0)
    # of the first step two fifths
    assert hindsight.seconds(text, 5, 7, _REQUEST) == pytest.approx(2.0)


def test_seconds_in_hindsight_are_those_of_forwards_in_a_row_where_nothing_is_found() -> None:
    """A pause is of four tokens here, at first and while nothing is found."""
    hindsight = _measured(_hindsight(NoDrafter(), lambda shown: 1.0 + shown, at_once=16))
    assert hindsight.seconds([*range(20)], 1, 9, _REQUEST) == pytest.approx(2 * (1.0 + 3.0))
    assert hindsight.seconds([*range(20)], 1, 3, _REQUEST) == pytest.approx(4.0 / 2)  # of four
    assert hindsight.seconds([*range(3)], 1, 3, _REQUEST) == pytest.approx(4.0 / 2)  # the end


def test_seconds_in_hindsight_follow_what_was_measured() -> None:
    hindsight = _hindsight(_Parrot(), lambda shown: 1.0)
    text = [1, 2, 3, 4, 5, 6]
    for seconds in (0.5, 0.5, 0.5, 0.5, 0.5, 3.5):  # one was disturbed, as others are
        assert not hindsight.is_ready
        hindsight.learn("ar", [0], 7.0)
        hindsight.learn("lookup", [4], seconds)
    assert hindsight.is_ready
    hindsight.spend(0.01 * hindsight._worked)
    assert not hindsight.is_ready  # judging has cost enough for now
    hindsight.learn("other", [0], 3 * hindsight._worked)
    assert hindsight.is_ready
    assert hindsight.seconds(text, 4, 6, _REQUEST) == pytest.approx(2 * 1.0)


def test_what_forwards_take_may_be_known_before_the_method_has_run() -> None:
    """Then no trial is needed, and a few steps of it say less than they would alone."""
    is_known = False
    hindsight = Hindsight(
        "lookup",
        NoDrafter(),
        8,
        lambda shown, searched: 1.0 * len(shown),
        Pauses(lambda: 2.0),
        16,
        lambda: is_known,
    )
    hindsight.learn("ar", [0], 1.0)
    assert not hindsight.is_ready
    is_known = True
    assert hindsight.is_ready
    assert hindsight.seconds([*range(20)], 1, 9, _REQUEST) == pytest.approx(8.0)
    for _ in range(8):
        hindsight.learn("lookup", [0], 1.5)
    assert hindsight.seconds([*range(20)], 1, 9, _REQUEST) == pytest.approx(8.0 * 1.25)


@pytest.mark.parametrize("length", [3, 200])
def test_turns_are_judged_by_the_text_that_follows_them(length: int) -> None:
    """Also those of an answer that is over."""
    asked: list[tuple[int, int, int]] = []

    class Asked(Hindsight):
        def seconds(self, tokens: Tokens, start: int, stop: int, request: Request) -> float:
            asked.append((start, stop, len(tokens)))
            return 0.01 * (stop - start)  # no faster and no slower

    def begin(name: str, tokens: Tokens, left: Left) -> Steps:
        for position in range(len(tokens), length + 1):
            finish = "length" if position == length else None
            yield Step((position,), (), 0, finish, 0.0, 0.01, 0.0, 0.01)

    scheduler = Scheduler(("double", "lookup", "ar"), {"ar": 100.0}, "lookup")
    hindsight = _measured(_hindsight(NoDrafter(), lambda shown: 0.01, make=Asked))
    list(decode_in_turns(begin, lambda name: True, scheduler, hindsight, [0], _REQUEST, _expected))
    assert asked[0][0] == 2  # not the first step, which reads the prompt
    assert length > 3 or asked == [(2, 4, 4)]
    assert all(stop < known or known == length + 1 for _, stop, known in asked)


def test_no_turn_is_judged_before_the_time_of_a_step_is_known() -> None:
    class Asked(Hindsight):
        def seconds(self, tokens: Tokens, start: int, stop: int, request: Request) -> float:
            assert self.is_ready
            return 0.01 * (stop - start)

    def begin(name: str, tokens: Tokens, left: Left) -> Steps:
        for position in range(len(tokens), 60):
            yield Step((position,), (), 0, "length" if position == 59 else None, 0, 0.01, 0, 0.01)

    hindsight = _hindsight(NoDrafter(), lambda shown: 0.01, make=Asked)
    scheduler = Scheduler(("double", "lookup", "ar"), {"ar": 90.0}, "lookup")
    list(decode_in_turns(begin, lambda name: True, scheduler, hindsight, [0], _REQUEST, _expected))
    assert not hindsight.is_ready


def _run_sounded(speed: float, real: float, turns: int, *, sounded: bool = True) -> dict[str, int]:
    """A draft is `real` times as fast as plain decoding, and soundings say `speed`, before what is
    known of how much holds; how many steps each method made."""
    names = ("double-serial", "lookup", "ar")
    scheduler = Scheduler(names, {"ar": 100.0}, "lookup", sounded=sounded)
    rates, made = {"ar": 100.0, "lookup": 95.0}, dict.fromkeys(names, 0)
    for _ in range(turns):
        turn = scheduler.choose()
        for place in _places(turn):
            new = (1, 3, 2)[place % 3] if turn.name == "double-serial" else 1
            scheduler.learn(turn, place, new, new / rates.get(turn.name, 100.0 * real))
            made[turn.name] += 1
        if turn.judged:
            scheduler.compare(turn, turn.tokens / 95.0)
        if scheduler.wants_sounding(lambda: 100):
            scheduler.sound({"double-serial": speed}, 100, 0.002)
    return made


def test_a_draft_that_is_often_wrong_is_left_by_a_sounding() -> None:
    """After its first steps, and is not tried again; else it takes some more to be sure."""
    made = _run_sounded(1.0, 0.8, 100)
    assert made["double-serial"] == FIRST_STEPS
    assert made["ar"] > 1000
    assert _run_sounded(1.0, 0.8, 100, sounded=False)["double-serial"] > 4 * FIRST_STEPS


def test_a_draft_leads_again_when_soundings_promise_enough() -> None:
    """And what they promise is worth less where it did not hold."""
    names = ("double-serial", "lookup", "ar")

    def leaders(real: float) -> list[str]:
        scheduler = Scheduler(names, {"ar": 100.0}, "lookup", sounded=True)
        found, speed, made = [], 0.8, 0.8
        for number in range(120):
            turn = scheduler.choose()
            found.append(turn.leader)
            rate = {"ar": 100.0, "lookup": 95.0}.get(turn.name, 100.0 * made)
            for place in _places(turn):
                scheduler.learn(turn, place, 1, 1 / rate)
            if number == 20:
                speed, made = 2.4, real
            if scheduler.wants_sounding(lambda: 100):
                scheduler.sound({"double-serial": speed}, 100, 0.002)
        return found

    assert "double-serial" not in leaders(1.5)[1:20]
    assert leaders(1.5)[-10:] == ["double-serial"] * 10
    assert "double-serial" not in leaders(0.7)[-10:]


def test_what_a_turn_made_in_earlier_answers_tells_of_a_promise() -> None:
    """Answers may be short, and the last of eight steps alone says little."""
    scheduler = Scheduler(("double-serial", "ar"), {"ar": 100.0}, sounded=True)
    for steps in (7, 1):  # two answers
        turn = scheduler.choose()
        for place in range(steps):
            scheduler.learn(turn, place, 2, 0.01)
    scheduler.sound({"double-serial": 0.95}, 100, 0.001)  # but it was twice as fast
    assert scheduler.choose().leader == "double-serial"


def test_runs_that_a_draft_had_no_part_in_speak_for_no_draft() -> None:
    """Retrieval alone would have found them, too."""
    for between in (None, Between(0, 0, 0.0), Between(1, 1, 0.01)):
        scheduler = Scheduler(("double-serial", "lookup", "ar"), {"ar": 100.0}, sounded=True)
        turn = scheduler.choose()
        for place in _places(turn):
            scheduler.learn(turn, place, 3, 0.01, between=between)
        scheduler.sound({"double-serial": 0.95}, 100, 0.001)
        leads = scheduler.choose().leader == "double-serial"
        assert leads == (between is None)


@pytest.mark.parametrize("share", [0.0, 0.85])
def test_a_draft_is_faster_than_retrieval_between_its_runs(share: float) -> None:
    """What it promises is compared with the steps there: that retrieval finds runs is no reason
    not to try it, as it finds them as well behind a draft."""
    names = ("double-serial", "lookup", "ar")
    scheduler, turns = Scheduler(names, {"ar": 100.0}, "lookup", sounded=True), list[str]()
    for number in range(22):
        turn = scheduler.choose()
        turns.append(turn.name)
        for place in _places(turn):
            took = {"ar": 0.01, "lookup": 0.01 / 1.9}.get(turn.name, 0.015)
            scheduler.learn(turn, place, 1, took, between=Between(1, 1, share * took))
        if number == 0:
            scheduler.sound({"double-serial": 0.9}, 100, 0.002)  # it is left at once
        elif number == 20:
            scheduler.sound({"double-serial": 2.0}, 100, 0.002)
    assert "double-serial" not in turns[1:21]
    assert (turns[21] == "double-serial") == (share > 0)


def test_a_promise_made_long_ago_makes_no_method_lead() -> None:
    """Steps do not tell of it any more, so that the method would be turned to again and again."""
    names = ("double-serial", "lookup", "ar")
    scheduler, leaders = Scheduler(names, {"ar": 100.0}, "lookup", sounded=True), []
    for number in range(300):
        turn = scheduler.choose()
        leaders.append(turn.leader)
        speed = {"ar": 1.0, "lookup": 0.95}.get(turn.name, 1.3 if number < 15 else 0.7)
        for place in _places(turn):
            scheduler.learn(turn, place, 1, 0.01 / speed)
        if scheduler.wants_sounding(lambda: 100):
            scheduler.sound({"double-serial": 1.3}, 100, 1.0)  # too dear to be made again
    assert leaders[:15] == ["double-serial"] * 15
    left = [before for before, after in pairwise(leaders) if before != after]
    assert left.count("double-serial") == 1


def test_a_stand_in_that_disappoints_gives_way_to_one_without_a_draft() -> None:
    """While the draft that leads is not loaded yet."""
    scheduler = Scheduler(NAMES, {"ar": 100.0}, "lookup", sounded=True)
    can_run = lambda name: name != "double"  # noqa: E731
    turn = scheduler.choose(can_run)
    assert (turn.name, turn.steps) == ("double-serial", FIRST_STEPS)
    for place in _places(turn):
        scheduler.learn(turn, place, 1, 0.01)
    scheduler.sound({"double": 1.0, "double-serial": 1.2}, 100, 0.001)
    assert scheduler.choose(can_run).name == "lookup"  # which goes on alike
    assert not scheduler.affords("double", 1.0)
    scheduler.sound({"double": 6.0, "double-serial": 1.2}, 100, 0.001)
    assert scheduler.affords("double", 1.0)


def test_soundings_are_due_seldom_and_cost_little() -> None:
    promises = Promises(["double"])
    assert not Promises([])
    assert promises.are_open
    assert promises.speed("double") == 0.0
    assert promises.are_due(0)
    assert promises.are_affordable(lambda: 9999, 0.0, 0.01), "at first"
    promises.add({"double": 2.0}, 100, 0.001, 10)
    assert not promises.are_due(25)
    assert promises.are_due(26)
    assert promises.are_affordable(lambda: 100, 0.0, 0.01)
    assert not promises.are_affordable(lambda: 9999, 0.0, 0.01), (
        "a long prompt, which the draft must read"
    )
    assert promises.are_affordable(lambda: 9999, 100.0, 0.01)
    promises.add({}, 100, 0.001, 26)  # the text was too long
    assert not promises.are_due(57)
    assert promises.are_due(58)
    promises.have_led()
    assert promises.are_due(42)
    promises.add({"double": 2.0}, 100, 10.0, 42)
    assert not promises.are_affordable(lambda: 1, 50.0, 0.01)
    assert promises.are_affordable(lambda: 1, 5000.0, 0.01)


def test_how_much_of_a_promise_holds_is_learnt_soon_after_it() -> None:
    promises = Promises(["double"])
    promises.add({"double": 2.0}, 100, 0.001, 10)
    assert promises.speed("double") == pytest.approx(1.7)
    promises.learn("double", 1.0, 8, 20)
    assert promises.speed("double") == pytest.approx(1.35, abs=0.01)
    promises.learn("double", 9.0, 50, 500)  # another text by now
    promises.learn("lookup", 9.0, 50, 20)
    assert promises.speed("double") == pytest.approx(1.35, abs=0.01)


def test_a_few_bad_steps_do_not_speak_for_all_times() -> None:
    """With each sounding since, what was learnt of a promise counts less."""
    promises = Promises(["double"])
    promises.add({"double": 1.4}, 100, 0.001, 10)
    promises.learn("double", 0.6, 8, 20)
    assert promises.speed("double") < 0.95  # it is left,
    for step in (40, 80, 160, 320, 640):
        assert promises.speed("double") < 1.05  # not tried at first,
        promises.add({"double": 1.4}, 100, 0.001, step)
    assert 1.05 < promises.speed("double") < 0.85 * 1.4  # but in the end


class _Chooser:
    """A model that always chooses the same token, of four."""

    vocab_size, max_length = 4, 64

    def __init__(self, token: int) -> None:
        self.token = token

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        return one_hot(torch.full((last,), self.token), self.vocab_size).float()


def test_a_sounding_tells_how_often_a_draft_would_have_been_right() -> None:
    sounding = Sounding(lambda: _Chooser(2), lambda kept: {"double": kept})
    answer = [2, 2, 1, 2, 2, 2, 0, 2]
    assert sounding.unread([3, *answer]) == 9
    assert sounding.speeds([3, *answer], _REQUEST) == {"double": pytest.approx((6 + 1) / (8 + 2))}
    assert sounding.unread([3, *answer, *answer, *answer]) == 16
    assert sounding.unread([3, *answer]) == LEAST_SOUNDED, "again"
    late = [0] * 20 + [2] * 32  # the latest ones count
    assert sounding.speeds([3, *late], _REQUEST) == {"double": pytest.approx((32 + 1) / (32 + 2))}
    assert sounding.speeds([3] * 65, _REQUEST) == {}, "longer than the draft can read"


def test_a_draft_is_sounded_in_an_answer_and_left_where_it_is_wrong() -> None:
    """And that takes time, which counts."""
    made: list[str] = []
    clock, seconds = count(), {"ar": 0.01}

    def begin(name: str, tokens: Tokens, left: Left) -> Steps:
        for position in range(len(tokens), 61):
            made.append(name)
            finish = "length" if position == 60 else None
            yield Step((1,), (), 0, finish, 0.0, 0.01, 0.0, seconds[name])

    for token in (2, 1):
        made.clear()
        seconds["double-serial"] = 0.012 if token == 2 else 0.005
        scheduler = Scheduler(("double-serial", "ar"), {"ar": 100.0}, sounded=True)
        sounding = Sounding(
            lambda token=token: _Chooser(token),  # type: ignore[misc]
            lambda kept: {"double-serial": 3.0 * kept},
        )
        asked = lambda name: True, scheduler, _no_hindsight(), [0], _REQUEST, _expected
        steps = list(decode_in_turns(begin, *asked, lambda: 1e-4 * next(clock), sounding))
        assert len(steps) == 60
        assert steps[FIRST_STEPS - 1].seconds > steps[0].seconds
        follows = "ar" if token == 2 else "double-serial"
        assert made[: FIRST_STEPS + 8] == ["double-serial"] * FIRST_STEPS + [follows] * 8
