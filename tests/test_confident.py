"""A serial draft that decides for itself how far to go."""

from bisect import bisect_right
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from doublespec.config import ForkSettings
from doublespec.decoding import decode_serial
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.base import Drafter, NoDrafter
from doublespec.drafting.confident import ConfidentDrafter
from doublespec.drafting.model import ModelDrafter
from doublespec.models.base import Chain, Worth
from doublespec.models.toy import ToyModel
from doublespec.noise import Heat
from doublespec.sampling import Request, SamplingParams, rank
from doublespec.stats import summarise
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens
from tests.reference import answer, naive

PROMPT = [1, 2, 3]
REQUEST = Request(SamplingParams(), 3)


def _drafted_a_step(agreement: float, seconds: float = 0.1, row_cost: float = 0.0) -> float:
    """Tokens drafted a step, once it has learnt."""
    model = ToyModel(agreement=agreement)
    draft = ConfidentDrafter(model, NoDrafter(), seconds, row_cost=row_cost)
    steps = list(decode_serial(ToyModel(), draft, NoDrafter(), PROMPT, REQUEST, StopRule(600), 24))
    assert answer(steps) == naive(ToyModel(), PROMPT, REQUEST, StopRule(600))
    late = steps[len(steps) // 2 :]
    return sum(step.num_drafted for step in late) / len(late)


def test_it_drafts_further_the_more_often_it_is_right() -> None:
    assert _drafted_a_step(1.0) > 2 * _drafted_a_step(0.7) > 2 * _drafted_a_step(0.0)


def test_a_draft_that_is_always_wrong_drafts_in_one_of_eight_steps() -> None:
    draft = ConfidentDrafter(ToyModel(agreement=0.0), NoDrafter(), 0.1)
    steps = list(decode_serial(ToyModel(), draft, NoDrafter(), PROMPT, REQUEST, StopRule(600), 24))
    assert answer(steps) == naive(ToyModel(), PROMPT, REQUEST, StopRule(600))
    assert sum(step.num_drafted > 0 for step in steps[-400:]) == 50


def test_it_drafts_less_the_more_a_forward_costs() -> None:
    assert _drafted_a_step(0.9, seconds=0.05) > _drafted_a_step(0.9, seconds=0.4) >= 1


def test_it_drafts_less_the_more_a_row_of_the_target_costs() -> None:
    assert _drafted_a_step(0.9, 0.05) > 1.5 * _drafted_a_step(0.9, 0.05, row_cost=0.2) >= 1.5


def test_what_it_drafts_is_the_models_own() -> None:
    draft = ConfidentDrafter(ToyModel(), NoDrafter(), 0.1)
    found = draft.propose(PROMPT, 8, REQUEST)
    assert found == ModelDrafter(ToyModel(), len(found), NoDrafter()).propose(PROMPT, 8, REQUEST)


def test_no_fixed_number_of_forwards_settles_more_in_the_same_time() -> None:
    """At temperature 1 the toy's text does not go in circles, so mistakes come by chance."""
    warm = Request(SamplingParams(temperature=1.0), 3)

    def rate(make: Callable[[ToyModel], Drafter]) -> float:
        model = ToyModel(agreement=0.85)
        draft = make(model)
        loop = decode_serial(ToyModel(), draft, NoDrafter(), PROMPT, warm, StopRule(2000), 24)
        steps = list(loop)
        return summarise(steps).tokens / (len(steps) + 0.1 * model.forwards)

    fixed = [
        rate(lambda model, count=count: ModelDrafter(model, count, NoDrafter()))
        for count in (1, 3, 5, 8, 16)
    ]
    assert rate(lambda model: ConfidentDrafter(model, NoDrafter(), 0.1)) > 0.97 * max(fixed)


def test_it_ends_at_an_end_token_and_at_the_context() -> None:
    free = ModelDrafter(ToyModel(), 6, NoDrafter()).propose(PROMPT, 8, REQUEST)
    ended = Request(SamplingParams(), 3, frozenset({free[1]}))
    assert ConfidentDrafter(ToyModel(), NoDrafter(), 0.01).propose(PROMPT, 8, ended) == free[:2]
    short = ConfidentDrafter(ToyModel(max_length=5), NoDrafter(), 0.01)
    assert len(short.propose(PROMPT, 8, REQUEST)) <= 2


class Strict(ToyModel):
    """Fails on ids that it does not have, as an embedding does."""

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        if max(tokens) >= self.vocab_size:
            raise IndexError("index out of range in self")
        return super().logits(tokens, last, prompt_length)


class Damaged:
    """A store of which a bit has flipped."""

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        return [1, 1 << 20, 2][: max(limit, 0)]


def test_an_id_that_the_model_does_not_have_ends_a_retrieved_run() -> None:
    """Before the target, and beside it."""
    model = Strict()
    drafted = ConfidentDrafter(model, Damaged(), 0.1).propose(PROMPT, 8, REQUEST)
    assert drafted == ModelDrafter(ToyModel(), len(drafted), NoDrafter()).propose(
        PROMPT, 8, REQUEST
    )
    ahead = DraftAhead(model, Damaged(), ForkSettings(0))
    ahead.begin([*PROMPT], 4, REQUEST)
    while ahead.has_work():
        ahead.forward()
    assert [*ahead.path] == ModelDrafter(ToyModel(), 4, NoDrafter()).propose(PROMPT, 4, REQUEST)


def test_a_text_that_was_handed_over_does_not_change() -> None:
    """A model finds out by the last text what is new in the next one, and may keep it as it is."""
    kept: list[tuple[Tokens, list[int]]] = []

    class Keeping(ToyModel):
        def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
            kept.append((tokens, list(tokens)))
            return super().logits(tokens, last, prompt_length)

    class KeepingIndex(NoDrafter):
        def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
            kept.append((tokens, list(tokens)))
            return []

    assert len(ConfidentDrafter(Keeping(), KeepingIndex(), 0.01).propose(PROMPT, 8, REQUEST)) == 8
    assert len(kept) == 16
    assert all(text == before for text, before in kept)


# -- a model that goes on by itself ----------------------------------------------------------------


class _Chaining(ToyModel):
    """A model that can, and counts how often it did."""

    can_chain = True
    chains = 0

    def chain(
        self,
        tokens: Tokens,
        most: int,
        size: int,
        ends: Collection[int],
        worth: Worth,
        heat: Heat | None = None,
    ) -> Chain:
        self.chains += 1
        temperature, seed = heat or (0.0, 0)
        request = Request(SamplingParams(temperature=temperature, seed=seed), 3)
        chain, reach, text = Chain([], []), 1.0, list(tokens)
        while len(chain.tokens) < most and (not chain.tokens or reach > worth.least):
            (ranking,) = rank(self.logits(text, 1, 1)[:, :size], text, len(text), request, 2)
            chain.tokens.append(ranking.tokens[0])
            chain.behind.append(ranking.behind[1])
            text.append(ranking.tokens[0])
            reach *= worth.chances[bisect_right(worth.edges, ranking.behind[1])]
            if ranking.tokens[0] in ends:
                break
        return chain


def test_a_model_that_goes_on_by_itself_drafts_the_same() -> None:
    for steps in (1, 2, 7):
        model = _Chaining()
        drafted = ModelDrafter(model, steps, NoDrafter(), chains=True).propose(PROMPT, 24, REQUEST)
        plain = ModelDrafter(ToyModel(), steps, NoDrafter())
        assert drafted == plain.propose(PROMPT, 24, REQUEST)
        assert len(drafted) == steps
        assert model.chains == 1
    retrieved = [*plain.propose(PROMPT, 24, REQUEST)[:3], 31]  # in a forward before the chain

    class Retrieving(NoDrafter):
        def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
            return retrieved if tokens == PROMPT else []

    model = _Chaining()
    drafted = ModelDrafter(model, 4, Retrieving(), chains=True).propose(PROMPT, 24, REQUEST)
    assert drafted == plain.propose(PROMPT, 24, REQUEST)[: len(drafted)]
    assert len(drafted) >= 3 + model.chains * 3
    ends = frozenset(plain.propose(PROMPT, 24, REQUEST)[3:4])
    ended = Request(SamplingParams(), 3, ends)
    chained = ModelDrafter(_Chaining(), 7, NoDrafter(), chains=True)
    assert chained.propose(PROMPT, 24, ended) == plain.propose(PROMPT, 24, ended)


def test_confidence_decides_how_far_it_goes_by_itself() -> None:
    def run(model: ToyModel, params: SamplingParams, *, chains: bool) -> list[int]:
        drafter = ConfidentDrafter(model, NoDrafter(), 0.1, row_cost=0.1, chains=chains)
        request, stop = Request(params, 3), StopRule(300)
        target = ToyModel()
        steps = list(decode_serial(target, drafter, NoDrafter(), PROMPT, request, stop, 24))
        assert answer(steps) == naive(ToyModel(), PROMPT, request, stop)
        return [step.num_drafted for step in steps]

    for params in (SamplingParams(), SamplingParams(temperature=0.9, seed=4)):
        model = _Chaining(agreement=0.8)
        assert run(model, params, chains=True) == run(ToyModel(agreement=0.8), params, chains=False)
        assert model.chains > 30
    filtered = SamplingParams(temperature=0.9, top_p=0.9)  # not by itself
    model = _Chaining(agreement=0.8)
    assert run(model, filtered, chains=True) == run(ToyModel(agreement=0.8), filtered, chains=False)
    assert model.chains == 0


def test_what_forwards_take_is_measured() -> None:
    """Ten times as long as was said, so that it drafts no further than where that is known."""

    def drafted(seconds: float, took: float) -> float:
        now = 0.0

        class Slow(ToyModel):
            def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
                nonlocal now
                now += took
                return super().logits(tokens, last, prompt_length)

        draft = ConfidentDrafter(
            Slow(agreement=0.9), NoDrafter(), seconds, clock=lambda: now, unit=2.0
        )
        request, stop = Request(SamplingParams(), 3), StopRule(600)
        steps = list(decode_serial(ToyModel(), draft, NoDrafter(), PROMPT, request, stop, 24))
        return sum(step.num_drafted for step in steps[-100:]) / 100

    known, found, unknown = drafted(0.4, 0.8), drafted(0.04, 0.8), drafted(0.04, 0.08)
    assert abs(known - found) < 1.0
    assert unknown > 1.5 * found


def test_what_a_call_takes_makes_no_chain_short() -> None:
    """Measured by chains of one forward, it would look like a dear forward, and chains stay so."""
    now = 0.0

    class Slow(_Chaining):
        def chain(self, *told: Any) -> Chain:
            nonlocal now
            found = super().chain(*told)
            now += 3.5 + 0.8 * len(found.tokens)
            return found

    draft = ConfidentDrafter(
        Slow(agreement=0.97), NoDrafter(), 1.2, row_cost=0.3, clock=lambda: now, unit=4, chains=True
    )
    request, stop = Request(SamplingParams(), 3), StopRule(600)
    steps = list(decode_serial(ToyModel(), draft, NoDrafter(), PROMPT, request, stop, 24))
    late = [step.num_drafted for step in steps[-30:]]
    assert sum(late) > 4 * len(late)
