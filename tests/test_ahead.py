"""A draft that goes ahead: its path, its forks, what it learns, and what the target keeps of it."""

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from doublespec.config import ForkSettings
from doublespec.drafting.ahead import DraftAhead
from doublespec.drafting.base import NoDrafter
from doublespec.drafting.lookup import LookupDrafter
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.odds import Odds
from doublespec.drafting.pace import Pace
from doublespec.drafting.tree import DraftTree
from doublespec.models.toy import ToyModel
from doublespec.retrieval.context import NgramIndex
from doublespec.sampling import Ranking, Request, SamplingParams
from doublespec.tokens import Tokens

REQUEST = Request(SamplingParams(), 3)
TEXT = [3, 1, 4]
FORKS = ForkSettings(forks=3, rows=12)


def _ahead(model: ToyModel, forks: ForkSettings = FORKS, limit: int = 6) -> DraftAhead:
    ahead = DraftAhead(model, NoDrafter(), forks)
    ahead.begin(list(TEXT), limit, REQUEST)
    return ahead


def _paths(ahead: DraftAhead) -> list[tuple[int, ...]]:
    """All that is drafted when nothing more is to be done, the draft's own path first."""
    while ahead.has_work():
        ahead.forward()
    return [ahead.path, *((*ahead.path[:place], *fork) for place, fork in ahead.forks)]


def _true(model: ToyModel, text: Sequence[int], count: int) -> list[int]:
    return ModelDrafter(model, count, NoDrafter()).propose(list(text), count, REQUEST)


def test_the_path_is_what_the_model_says_up_to_the_limit() -> None:
    ahead = _ahead(ToyModel(), ForkSettings())
    assert _paths(ahead) == [tuple(_true(ToyModel(), TEXT, 6))]
    assert not ahead.has_work()


def test_forks_leave_the_path_at_its_closest_choices_and_go_on_as_the_model_would() -> None:
    model = ToyModel(sharpness=0.5)  # close choices
    own, *forks = _paths(_ahead(model))
    assert forks
    for fork in forks:
        place = next(i for i, (a, b) in enumerate(zip(fork, own, strict=False)) if a != b)
        prefix = [*TEXT, *fork[: place + 1]]
        assert list(fork[place + 1 :]) == _true(model, prefix, len(fork) - place - 1)


def test_without_forks_no_correction_is_foreseen() -> None:
    assert len(_paths(_ahead(ToyModel(sharpness=0.5), ForkSettings()))) == 1


def test_a_correction_that_was_drafted_becomes_the_path() -> None:
    model = ToyModel(sharpness=0.5)
    ahead = _ahead(model)
    _, *forks = _paths(ahead)
    longest = max(forks, key=len)
    ahead.settle(longest[:-1], 6)
    assert ahead.path[:1] == longest[-1:]


def test_what_is_settled_along_the_path_keeps_the_rest() -> None:
    model = ToyModel()
    ahead = _ahead(model, limit=6)
    own = _paths(ahead)[0]
    ahead.settle(own[:4], 6)
    paths = _paths(ahead)
    assert list(paths[0]) == _true(model, [*TEXT, *own[:4]], 6)


def test_an_unforeseen_correction_begins_a_new_path() -> None:
    model = ToyModel(agreement=0.5)
    ahead = _ahead(model, ForkSettings())
    own = _paths(ahead)[0]
    other = [own[0], (own[1] + 1) % 32]
    ahead.settle(other, 3)
    assert list(_paths(ahead)[0]) == _true(model, [*TEXT, *other], 3)


def test_where_retrieval_disagrees_its_token_becomes_a_fork() -> None:
    model = ToyModel()
    nxt = _true(model, TEXT, 1)[0]
    retrieved = (nxt + 1) % 32

    class Says:
        def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
            return [retrieved, 0, 0][:limit] if len(tokens) == len(TEXT) else []

    ahead = DraftAhead(model, Says(), FORKS)
    ahead.begin(list(TEXT), 6, REQUEST)
    _, *forks = _paths(ahead)
    assert any(fork[0] == retrieved and len(fork) > 1 for fork in forks)


def test_draft_side_retrieval_makes_a_forward_worth_more() -> None:
    model = ToyModel(vocab_size=8, sharpness=4.0)
    text = [1, *_true(model, [1], 60)]
    helped = DraftAhead(model, LookupDrafter(NgramIndex(), 10), ForkSettings())
    helped.begin(list(text), 20, Request(SamplingParams(), len(text)))
    before, made = model.forwards, 0
    while helped.has_work():
        made += len(helped.forward().tokens)
    assert made == 20
    assert model.forwards - before < 20


def test_a_path_ends_at_an_end_token_and_at_the_models_context() -> None:
    free = _true(ToyModel(), TEXT, 8)
    ended = DraftAhead(ToyModel(), NoDrafter(), ForkSettings())
    ended.begin(list(TEXT), 8, Request(SamplingParams(), 3, frozenset({free[3]})))
    assert list(_paths(ended)[0]) == free[: free.index(free[3]) + 1]
    short = DraftAhead(ToyModel(max_length=6), NoDrafter(), FORKS)
    short.begin(list(TEXT), 8, REQUEST)
    assert len(_paths(short)[0]) <= 4


@given(st.integers(0, 1 << 30))
def test_a_target_that_goes_any_way_finds_only_what_the_draft_would_say(seed: int) -> None:
    """After any settlement the path is the model's own continuation of the text."""
    chance = random.Random(seed)
    model = ToyModel(16, sharpness=0.7)
    ahead = DraftAhead(model, NoDrafter(), ForkSettings(chance.choice([0, 2, 4]), 8))
    text = [1, 2, 3]
    ahead.begin(list(text), 5, REQUEST)
    for _ in range(6):
        for _ in range(chance.randrange(4)):
            if ahead.has_work():
                ahead.forward()
        new = [chance.choice([*_true(model, text, 1), chance.randrange(16)]) for _ in range(2)]
        text += new
        ahead.settle(new, 5)
    if ahead.has_work():
        ahead.forward()
    assert list(ahead.path) == _true(model, text, len(ahead.path))


def _ranking(behind: float) -> Ranking:
    return Ranking((1, 2, 3), (0.0, behind, behind + 1))


def test_odds_begin_with_how_close_the_choice_was_and_learn() -> None:
    odds = Odds()
    close, clear = _ranking(0.1), _ranking(9.0)
    assert odds.of(close, 1) > 10 * odds.of(clear, 1)
    before = odds.of(close, 1)
    for _ in range(50):
        odds.learn(close, 2)
    assert odds.of(close, 1) > 0.8 > before
    assert odds.of(clear, 0) > 0.95


def test_forks_go_where_the_second_choice_has_been_right() -> None:
    model = ToyModel(sharpness=0.5)
    logits = model.logits(TEXT, 1, 3)
    first, second = (int(token) for token in logits[0].topk(2).indices)

    def goes_on(chosen: int) -> bool:
        """Whether the second choice is gone on from, after the target has always `chosen`."""
        ahead = _ahead(model, limit=4)
        for _ in range(200):
            ahead.begin(list(TEXT), 4, REQUEST)
            ahead.forward()
            ahead.settle([chosen], 4)
        ahead.begin(list(TEXT), 4, REQUEST)
        return any(path[0] == second and len(path) > 1 for path in _paths(ahead))

    assert goes_on(second)
    assert not goes_on(first)


def test_a_tree_keeps_what_holds_and_knows_what_was_foreseen() -> None:
    tree = DraftTree()
    tree.replace((1, 2, 3, 4, 5), [(2, (5, 6, 7)), (1, (8, 9))])
    assert tree.best(10) == [1, 2, 3, 4, 5]
    assert tree.best(2) == [1, 2]
    assert tree.settle([1]) == (1, None)
    assert tree.best(10) == [2, 3, 4, 5]
    assert tree.settle([2, 5]) == (1, True)
    assert tree.best(10) == [6, 7]
    assert tree.settle([7]) == (0, False)
    assert tree.settle([8]) == (0, None)  # nothing was drafted there


def test_a_text_that_departs_from_a_fork_has_nothing_drafted() -> None:
    tree = DraftTree()
    tree.replace((1, 2, 3), [(1, (5, 6, 7))])
    assert tree.settle([1, 5, 8]) == (1, True)
    assert tree.best(10) == []


def _pace(kept: int) -> Pace:
    """After a hundred steps of 24 ms with drafts of ten tokens, of which so many are kept."""
    pace = Pace()
    for _ in range(100):
        pace.drafted(0.002)
        pace.stepped(0.024)
        pace.judged(kept, min(kept + 1, 10), kept + 1)
    return pace


def test_a_target_waits_for_a_quarter_of_what_the_draft_makes_in_a_step() -> None:
    assert Pace().worth_waiting_for == 0  # nothing is known yet
    pace = _pace(4)
    assert pace.worth_waiting_for == 3
    pace.stepped(10.0)  # a long prompt
    assert pace.worth_waiting_for <= 4


def test_a_target_does_not_wait_for_a_draft_that_is_always_wrong_until_it_is_right() -> None:
    pace = _pace(0)
    assert pace.worth_waiting_for == 0
    for _ in range(20):
        pace.judged(4, 5, 5)
    assert pace.worth_waiting_for == 3


def test_a_target_hardly_waits_for_a_draft_that_is_late_until_it_is_not() -> None:
    pace = _pace(4)
    for _ in range(20):  # whose first token never comes in time
        pace.waited(0.006, 0, 0)
        pace.judged(0, 0, 1)
    assert pace.worth_waiting_for == 0
    assert sum(pace.may_wait(0) for _ in range(80)) == 10
    for _ in range(20):  # it comes soon
        pace.waited(0.001, 0, 1)
        pace.judged(1, 1, 2)
    assert pace.worth_waiting_for == 3
    assert all(pace.may_wait(2) for _ in range(80))
    assert not any(pace.may_wait(3) for _ in range(80))  # has enough


def test_a_wait_gains_what_would_not_have_been_kept_without_it() -> None:
    paces = [_pace(4), _pace(4)]
    for kept, pace in zip((2, 3), paces, strict=True):
        for _ in range(50):
            pace.waited(0.003, 2, 3)
            pace.judged(kept, 3, kept + 1)
    assert [pace.worth_waiting_for for pace in paces] == [0, 3]


def test_another_text_does_not_judge_what_was_waited_for_in_the_last_one() -> None:
    pace = _pace(4)
    for _ in range(20):
        pace.waited(0.006, 0, 1)
        pace.begins()
        pace.judged(0, 0, 1)
    assert pace.worth_waiting_for == 3


def test_a_draft_that_is_always_wrong_drafts_in_one_of_eight_steps_until_it_is_right() -> None:
    pace = _pace(0)
    assert sum(pace.is_worth_drafting() for _ in range(80)) == 10
    for _ in range(20):
        pace.judged(4, 5, 5)
    assert all(pace.is_worth_drafting() for _ in range(80))
