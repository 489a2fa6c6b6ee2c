"""A serial draft that decides for itself how far to go."""

from collections.abc import Callable

from torch import Tensor

from doublespec.config import ForkSettings
from doublespec.decoding import decode_serial
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.base import Drafter, NoDrafter
from doublespec.drafting.confident import ConfidentDrafter
from doublespec.drafting.model import ModelDrafter
from doublespec.models.toy import ToyModel
from doublespec.sampling import Request, SamplingParams
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
