"""The loops: where answers end, what a Step says, and what a cancelled answer leaves behind."""

from types import SimpleNamespace
from typing import Any

import pytest

from doublespec import methods
from doublespec.compiled.guesser import Guesser
from doublespec.decoding import (
    Step,
    decode_by_lookup,
    decode_parallel,
    decode_plain,
    decode_serial,
)
from doublespec.drafting.background import StyledDrafter
from doublespec.drafting.base import Guess, NoDrafter, Pending
from doublespec.drafting.costs import LookupCosts
from doublespec.drafting.lookup import LookupDrafter
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.pauses import Pauses
from doublespec.models.toy import ToyModel
from doublespec.retrieval.context import ContextIndex, NgramIndex
from doublespec.retrieval.recurrence import Recurrence
from doublespec.sampling import Request, SamplingParams
from doublespec.stats import summarise
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens, common_prefix
from tests.drafts import inline, worker
from tests.reference import answer, naive

PROMPT = [1, 2, 3, 4]
REQUEST = Request(SamplingParams(), len(PROMPT))


class Fixed:
    """Proposes the same tokens each time, also behind a draft."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        return self._tokens[:limit]

    def complete(self, tokens: Tokens, drafted: list[int], limit: int, request: Request) -> Guess:
        return Guess([*drafted, *self._tokens][:limit], len(drafted))


class Recording:
    """Counts what it was asked."""

    def __init__(self, drafter: StyledDrafter) -> None:
        self._drafter = drafter
        self.followed = self.rested = 0

    def follow(self, tokens: Tokens, limit: int, request: Request) -> Pending:
        self.followed += 1
        return self._drafter.follow(tokens, limit, request)

    def wait(self, pending: Pending, shown: int, limit: int) -> list[int]:
        return self._drafter.wait(pending, shown, limit)

    def rest(self) -> None:
        self.rested += 1
        self._drafter.rest()

    def close(self) -> None:
        self._drafter.close()


def _background(agreement: float = 1.0, steps: int = 3) -> StyledDrafter:
    """A lock-step draft of that many forwards a step."""
    return inline(lambda: worker(ToyModel(agreement=agreement), steps))


def _serial(drafter=None, helper=None, max_tokens: int = 50, most: int = 24) -> list[Step]:
    target = ToyModel()
    parts = drafter or NoDrafter(), helper or NoDrafter()
    return list(decode_serial(target, *parts, PROMPT, REQUEST, StopRule(max_tokens), most))


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 50])
def test_an_answer_has_exactly_max_tokens(max_tokens: int) -> None:
    perfect = ModelDrafter(ToyModel(), 6, NoDrafter())
    steps = _serial(perfect, max_tokens=max_tokens)
    assert len(answer(steps)) == max_tokens
    assert steps[-1].finish == "length"


def test_nothing_is_shown_beyond_the_end() -> None:
    """A guess longer than the rest of the answer would be computed in vain."""
    perfect = ModelDrafter(ToyModel(), 6, NoDrafter())
    steps = _serial(perfect, max_tokens=10)
    assert sum(len(step.guess) + 1 for step in steps) == 10


def test_an_end_token_inside_an_accepted_run_ends_the_answer() -> None:
    whole = answer(_serial(max_tokens=30))
    end = whole[9]
    stop = StopRule(30, frozenset({end}))
    perfect = ModelDrafter(ToyModel(), 8, NoDrafter())
    steps = list(decode_serial(ToyModel(), perfect, NoDrafter(), PROMPT, REQUEST, stop, 24))
    assert answer(steps) == whole[: whole.index(end) + 1]
    assert steps[-1].finish == "stop"


def test_a_perfect_draft_settles_gamma_and_one_more_tokens_a_step() -> None:
    steps = _serial(ModelDrafter(ToyModel(), 4, NoDrafter()), max_tokens=51)
    assert [len(step.new) for step in steps] == [1, *[5] * 10]
    assert summarise(steps).draft_acceptance == 1


@pytest.mark.parametrize("loop", [decode_serial, decode_parallel])
def test_nothing_is_shown_before_the_first_token(loop: Any) -> None:
    """A guess would put a forward of its own before it."""
    drafter = Fixed([9, 9]) if loop is decode_serial else _background()
    steps = list(loop(ToyModel(), drafter, Fixed([8]), PROMPT, REQUEST, StopRule(9), 24))
    assert steps[0].guess == ()
    assert all(step.guess for step in steps[1:-1])


def test_a_draft_that_never_agrees_costs_steps_only() -> None:
    steps = _serial(ModelDrafter(ToyModel(agreement=0), 4, NoDrafter()), max_tokens=20)
    assert len(steps) == 20
    assert all(step.num_accepted == 0 for step in steps)


def test_a_step_tells_drafted_from_retrieved_tokens() -> None:
    steps = _serial(Fixed([9, 9]), Fixed([8, 8, 8]), max_tokens=20)
    assert steps[1].guess == (9, 9, 8, 8, 8)
    assert steps[1].num_drafted == 2


class Ticking:
    """A clock that moves only when a drafter is asked: by one second for retrieval, ten for
    a draft."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def drafter(self, seconds: float) -> Any:
        clock = self

        class Slow:
            def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
                clock.now += seconds
                return []

            def complete(
                self, tokens: Tokens, drafted: list[int], limit: int, request: Request
            ) -> Guess:
                clock.now += seconds
                return Guess(drafted, len(drafted))

        return Slow()


class Settling(ToyModel):
    """Goes on by itself, a second for each forward."""

    can_settle = True

    def __init__(self, clock: Ticking) -> None:
        super().__init__()
        self._clock = clock

    def settle(
        self,
        tokens: Tokens,
        guess: Tokens,
        passes: int,
        ends: object,
        heat: object,
        guesser: Guesser | None = None,
        most: int | None = None,
    ) -> list[int]:
        new = naive(ToyModel(), list(tokens), REQUEST, StopRule(len(guess) + passes))
        kept = common_prefix(new, guess)
        new = new[: kept + passes]
        self._clock.now += len(new) - kept
        return new


def test_steps_that_are_computed_at_once_share_their_time() -> None:
    clock = Ticking()
    stop = StopRule(8)
    loop = decode_plain(Settling(clock), PROMPT, REQUEST, stop, lambda: 4, clock)
    seen, steps = [], []
    for step in loop:
        seen.append(clock.now)
        steps.append(step)
    assert seen == [1.0, 5.0, 5.0, 5.0, 5.0, 8.0, 8.0, 8.0]  # the first token does not wait
    assert [step.begun for step in steps] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert all(step.seconds == step.target_seconds == 1.0 for step in steps)
    assert [step.earlier_seconds for step in steps] == [0, -3, 1, 1, 1, -2, 1, 1]
    assert answer(steps) == naive(ToyModel(), PROMPT, REQUEST, stop)
    assert steps[-1].finish == "length"


class Searched:
    """Retrieval that takes half a second and finds the next two tokens, but not before the answer
    has so many."""

    def __init__(self, clock: Ticking, answer: list[int], begins: int) -> None:
        self._clock = clock
        self._answer = answer
        self._begins = begins
        self.places: list[int] = []  # tokens of the answer at each search

    def complete(self, tokens: Tokens, drafted: list[int], limit: int, request: Request) -> Guess:
        place = len(tokens) - request.prompt_length
        self._clock.now += 0.5
        self.places.append(place)
        found = self._answer[place : place + min(2, limit)] if place >= self._begins else []
        return Guess(found, 0)

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        return self.complete(tokens, [], limit, request).tokens

    def guess_ahead(self, tokens: Tokens, most: int, request: Request) -> Recurrence | None:
        return None


class Threes(Pauses):
    """Of three tokens, whatever was found."""

    def tokens(self, fruitless: int) -> int:
        return 3


def test_lookup_goes_on_by_itself_where_nothing_is_found() -> None:
    whole = naive(ToyModel(), PROMPT, REQUEST, StopRule(20))
    clock = Ticking()
    helper = Searched(clock, whole, begins=14)
    learnt = Threes(lambda: 0.3), LookupCosts(1.0, 1.0, 0.1, 0.5, 5)
    given = helper, *learnt, PROMPT, REQUEST, StopRule(20), 24, lambda: 5, clock
    steps = list(decode_by_lookup(Settling(clock), *given))
    assert answer(steps) == whole
    assert steps[-1].finish == "length"
    assert helper.places == [0, 1, 4, 7, 10, 13, 16, 19]  # the first token does not wait
    assert [step.guess for step in steps if step.guess] == [tuple(whole[16:18])]
    assert [len(step.new) for step in steps] == [1] * 16 + [3, 1]
    for step in steps[1:16]:
        assert step.guess_seconds == step.retrieval_seconds == 0.5 / 3
        assert (step.target_seconds, step.seconds) == (1.0, pytest.approx(3.5 / 3))
    earlier = [step.earlier_seconds for step in steps[1:4]]
    assert earlier == pytest.approx([3.5 / 3 - 3.5, *[3.5 / 3] * 2])
    assert steps[-1].begun + steps[-1].seconds == clock.now == 8 * 0.5 + 18


def test_lookup_in_a_turn_goes_on_no_longer_than_the_turn() -> None:
    clock = Ticking()
    helper = Searched(clock, [], begins=20)
    learnt = Pauses(lambda: 2.0), LookupCosts(1.0, 1.0, 0.1, 0.5, 3)
    given = helper, *learnt, PROMPT, REQUEST, StopRule(20), 24, lambda: 3, clock
    assert len(list(decode_by_lookup(Settling(clock), *given))) == 20
    assert helper.places == [0, 1, 4, 7, 10, 13, 16, 19]


def test_calls_of_plain_decoding_say_what_those_of_lookup_will_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By `auto`, so that hindsight need not wait for a trial."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(methods, "decode_in_turns", lambda *parts: asked.append(parts))
    clock = Ticking()
    costs = LookupCosts(0.5, 0.5, 0.0, 0.1, at_once=4)
    parts: Any = SimpleNamespace(
        target=Settling(clock),
        plain_seconds=0.5,
        lookup_costs=costs,
        at_once=4,
        clock=clock,
        **dict.fromkeys(("scheduler", "hindsight", "sounding")),
    )
    methods.auto(parts, PROMPT, REQUEST, StopRule(8))
    begin = asked[0][0]
    for _ in range(8):  # of three calls each, the first of which reads the prompt
        assert not costs.are_seen
        assert len(list(begin("ar", PROMPT, lambda: 4))) == 8
    assert costs.are_seen
    assert costs.seconds([0] * 4, True) == pytest.approx(0.1 + 4 * 1.0, rel=0.05)


def test_an_answer_ends_in_the_midst_of_steps_that_were_computed_at_once() -> None:
    whole = naive(ToyModel(), PROMPT, REQUEST, StopRule(20))
    text = f" {whole[6]} "
    stop = StopRule(20, frozenset(), (text,), lambda tokens: "".join(f" {t} " for t in tokens))
    steps = list(decode_plain(Settling(Ticking()), PROMPT, REQUEST, stop, lambda: 8))
    assert answer(steps) == whole[: whole.index(whole[6]) + 1]
    assert [step.finish for step in steps] == [None] * (len(steps) - 1) + ["stop"]


def test_an_answer_takes_the_time_of_all_that_was_computed_at_once() -> None:
    """Also of forwards behind its end."""
    whole = naive(ToyModel(), PROMPT, REQUEST, StopRule(20))
    end = next(place for place in range(5, 20) if whole[place] not in whole[:place])
    clock, stop = Ticking(), StopRule(20, frozenset({whole[end]}))
    loop = decode_plain(Settling(clock), PROMPT, REQUEST, stop, lambda: end, clock)
    steps = list(loop)
    assert answer(steps) == whole[: end + 1]
    assert [step.ready for step in steps] == [0, *reversed(range(end))]
    assert sum(step.seconds for step in steps) == pytest.approx(clock.now)
    again = Ticking()
    steps = list(decode_plain(Settling(again), PROMPT, REQUEST, stop, lambda: end + 9, again))
    assert [step.ready for step in steps] == [0, *reversed(range(end))]
    assert again.now > clock.now, "more than the answer was computed"
    assert sum(step.seconds for step in steps) == pytest.approx(again.now)
    assert answer(steps) == whole[: end + 1]


def test_a_step_tells_the_time_of_retrieval_from_that_of_a_draft() -> None:
    clock = Ticking()
    parts = ToyModel(), clock.drafter(10.0), clock.drafter(1.0)
    steps = list(decode_serial(*parts, PROMPT, REQUEST, StopRule(2), 24, clock))
    assert {(step.guess_seconds, step.retrieval_seconds) for step in steps} == {(11.0, 1.0)}
    clock = Ticking()
    parts = ToyModel(), _background(), clock.drafter(1.0)
    steps = list(decode_parallel(*parts, PROMPT, REQUEST, StopRule(2), 24, clock))
    assert all(step.retrieval_seconds == step.guess_seconds >= 1.0 for step in steps)


def test_parallel_decoding_judges_what_was_drafted_during_the_last_step() -> None:
    background = Recording(_background())
    stop = StopRule(40)
    steps = list(
        decode_parallel(ToyModel(), background, NoDrafter(), PROMPT, REQUEST, stop, most=24)
    )
    assert [len(step.guess) for step in steps[:3]] == [0, 2, 2]
    assert [len(step.new) for step in steps[:4]] == [1, 3, 3, 3]
    assert (background.followed, background.rested) == (len(steps), 1)


def test_after_a_mismatch_retrieval_fills_the_bubble() -> None:
    """PSD has nothing to judge then; Double's target-side retrieval has."""

    def bubbles(helper) -> int:
        background = _background(agreement=0.6)
        stop = StopRule(400)
        steps = decode_parallel(ToyModel(), background, helper, PROMPT, REQUEST, stop, most=24)
        return sum(not step.guess for step in steps)

    assert bubbles(LookupDrafter(ContextIndex(), 10)) < bubbles(NoDrafter()) / 2


def test_draft_side_retrieval_makes_a_forward_worth_more_than_a_token() -> None:
    """The reason why Double's ceiling lies above c (arXiv 2601.05524)."""
    text = [*range(20), *range(20), 0, 1, 2]

    class Counting(ToyModel):
        def logits(self, tokens, last, prompt_length):
            following = [(token + 1) % 20 for token in tokens[-last:]]
            self.forwards += 1
            return (
                self._table[:1]
                .new_full((last, 32), 0.0)
                .scatter_(1, self._table.new_tensor(following).long()[:, None], 1.0)
            )

    plain, helped = Counting(), Counting()
    assert len(ModelDrafter(plain, 2, NoDrafter()).propose(text, 30, REQUEST)) == 2
    helper = LookupDrafter(NgramIndex(), 10)
    assert len(ModelDrafter(helped, 2, helper).propose(text, 30, REQUEST)) == 22
    assert plain.forwards == helped.forwards == 2


def test_a_draft_stops_at_an_end_token() -> None:
    free = ModelDrafter(ToyModel(), 12, NoDrafter()).propose(PROMPT, 30, REQUEST)
    ended = Request(REQUEST.params, REQUEST.prompt_length, frozenset({free[4]}))
    drafted = ModelDrafter(ToyModel(), 12, NoDrafter()).propose(PROMPT, 30, ended)
    assert drafted == free[: free.index(free[4]) + 1]


def test_a_draft_with_a_shorter_context_falls_silent_there() -> None:
    drafter = ModelDrafter(ToyModel(max_length=6), 4, NoDrafter())
    assert len(drafter.propose([1, 2, 3, 4], 10, REQUEST)) == 2
    assert drafter.propose([1] * 7, 10, REQUEST) == []


def test_an_answer_goes_on_where_the_draft_cannot() -> None:
    short = ModelDrafter(ToyModel(max_length=20), 4, NoDrafter())
    assert answer(_serial(short, max_tokens=60)) == answer(_serial(max_tokens=60))


def test_cancelling_lets_the_draft_rest() -> None:
    background = Recording(_background())
    steps = decode_parallel(
        ToyModel(), background, NoDrafter(), PROMPT, REQUEST, StopRule(1000), most=24
    )
    next(steps)
    steps.close()
    assert background.rested == 1


def test_an_error_in_the_target_lets_the_draft_rest() -> None:
    class Broken(ToyModel):
        def logits(self, tokens, last, prompt_length):
            raise MemoryError

    background = Recording(_background())
    steps = decode_parallel(Broken(), background, NoDrafter(), PROMPT, REQUEST, StopRule(9), most=4)
    with pytest.raises(MemoryError):
        next(steps)
    assert background.rested == 1


def test_a_guess_that_is_not_in_the_vocabulary_of_the_prompt_is_only_wrong() -> None:
    stop = StopRule(25)
    steps = _serial(Fixed([31, 0, 31]), max_tokens=25)
    assert answer(steps) == naive(ToyModel(), PROMPT, REQUEST, stop)


def test_ids_that_the_target_does_not_have_end_the_guess() -> None:
    """A damaged datastore can propose any id; it must cost a row, not the answer."""
    perfect = answer(_serial(max_tokens=5))
    steps = _serial(Fixed([*perfect[1:3], 4_000_000, -7]), max_tokens=5)
    assert answer(steps) == perfect
    assert steps[1].num_accepted == 2


def test_a_loop_may_begin_in_the_middle_of_an_answer() -> None:
    """What was settled before counts towards the answer's length."""
    whole = answer(_serial(max_tokens=30))
    for loop, drafter in ((decode_serial, NoDrafter()), (decode_parallel, _background())):
        text = [*PROMPT, *whole[:12]]
        steps = list(loop(ToyModel(), drafter, NoDrafter(), text, REQUEST, StopRule(30), 24))
        assert answer(steps) == whole[12:]
        assert steps[-1].finish == "length"
