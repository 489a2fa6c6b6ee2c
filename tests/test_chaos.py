"""The answer's tokens under 10,000 random schedules, each reproducible from its number."""

import random
import warnings
from collections.abc import Callable

import pytest

from doublespec.bench.virtual import VirtualClock
from doublespec.config import RetrievalSettings
from doublespec.drafting.background import DraftWarning, StyledDrafter
from doublespec.drafting.base import BackgroundDrafter, Drafter, NoDrafter
from doublespec.drafting.costs import LookupCosts
from doublespec.drafting.hindsight import Hindsight
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.pauses import Pauses
from doublespec.drafting.retrieved import Retrieval
from doublespec.drafting.sounding import Sounding
from doublespec.methods import BESIDE, HINDSIGHT, METHODS, candidates
from doublespec.models.base import LanguageModel
from doublespec.models.toy import ToyModel
from doublespec.sampling import Request, SamplingParams
from doublespec.scheduling.scheduler import Scheduler
from doublespec.stopping import StopRule
from tests.chaos import TimedToy, chaotic_drafter
from tests.reference import answer, naive

SCHEDULES = 10_000
SHARDS = 10
PARALLEL = sorted([*BESIDE, "auto"])
TARGET = ToyModel(16)
DRAFTS = {agreement: ToyModel(16, agreement=agreement) for agreement in (0.0, 0.8, 1.0)}
WANTED: dict[tuple[float, int, tuple[int, ...], int], list[int]] = {}


class ChaosParts:
    """What methods are made of, in the world of one schedule."""

    def __init__(self, number: int) -> None:
        self.chance = random.Random(number)
        self.clock = VirtualClock()
        self.guess_tokens = self.chance.choice([1, 8, 24])
        self.at_once, self.plain_seconds = 3, 0.005
        self.target: LanguageModel = TimedToy(
            TARGET, self.clock, lambda: 0.01 * self.chance.random()
        )
        names = candidates(has_draft=True, beside=True, same_device=True)
        self.scheduler = Scheduler(names, {"ar": 200.0}, HINDSIGHT, sounded=True)
        self.sounding = Sounding(lambda: self._toy, self._speeds)
        cost = self.chance.choice([0.0, 4.0])
        self.pauses = Pauses(lambda: cost)
        self.lookup_costs = LookupCosts(0.005, 0.006, 0.1, 0.001, self.at_once)
        self.hindsight = Hindsight(
            HINDSIGHT,
            self.lookup(),
            24,
            lambda shown, searched: 0.005 * len(shown),
            self.pauses,
            self.at_once,
        )
        self._toy = DRAFTS[self.chance.choice(sorted(DRAFTS))]
        self._drafter: StyledDrafter | None = None

    def _speeds(self, kept: float) -> dict[str, float]:
        return {name: 3.0 * self.chance.random() for name in ("double", "double-serial")}

    def forward_seconds(self, shown: int, *, beside: bool) -> float:
        return 0.005

    def is_draft_ready(self, may_take: Callable[[float], bool]) -> bool:
        return True

    def lookup(self, behind: str | None = None) -> Drafter:
        return Retrieval(RetrievalSettings()).lookup()

    def draft(self, *, retrieval: bool) -> Drafter:
        return ModelDrafter(self._toy, 2, NoDrafter())

    def background(self, *, retrieval: bool) -> BackgroundDrafter:
        if self._drafter is None:
            make = self.lookup if retrieval else NoDrafter
            remote, style = chaotic_drafter(self.chance, self.clock, self._toy, make)
            self._drafter = StyledDrafter(remote, style)
        return self._drafter


def _run(number: int) -> tuple[list[int], list[int], int]:
    """The tokens of one schedule, those of plain decoding, and how many drafts were kept."""
    parts = ChaosParts(number)
    chance = parts.chance
    temperature, seed = chance.choice([0.0, 0.7, 1.2]), chance.randrange(8)
    prompt = [(seed * 7 + i * i) % 16 for i in range(chance.choice([1, 3, 20]))]
    params = SamplingParams(temperature=temperature, seed=seed)
    request = Request(params, len(prompt), frozenset({15}))
    stop = StopRule(24, request.end_ids)
    steps = list(METHODS[chance.choice(PARALLEL)](parts, prompt, request, stop))
    key = (temperature, seed, tuple(prompt), 24)
    if key not in WANTED:
        WANTED[key] = naive(ToyModel(16), prompt, request, stop)
    kept = sum(min(step.num_drafted, step.num_accepted) for step in steps)
    return answer(steps), WANTED[key], kept


@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_schedule_changes_a_token(shard: int) -> None:
    kept = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DraftWarning)
        for number in range(shard, SCHEDULES, SHARDS):
            found, wanted, drafted = _run(number)
            assert found == wanted, f"schedule {number} changes the answer: reproduce with _run"
            kept += drafted
    assert kept > 100  # drafts did take part


def test_a_schedule_is_reproduced_from_its_number() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DraftWarning)
        assert [_run(number) for number in range(20)] == [_run(number) for number in range(20)]
