"""The constitution: every method gives the tokens of plain decoding, in every case.

Toys run through every composition with drafts that never, sometimes and always agree; the bundled
pair in its own precision, with drafts in this process, in a thread and in a process of their own.
"""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from doublespec.config import PRESETS, RetrievalSettings, Settings
from doublespec.drafting.base import BackgroundDrafter, Drafter, NoDrafter
from doublespec.drafting.choice import DraftUnlessRun
from doublespec.drafting.costs import LookupCosts
from doublespec.drafting.hindsight import Hindsight
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.pauses import Pauses
from doublespec.drafting.retrieved import Retrieval
from doublespec.drafting.sounding import Sounding
from doublespec.llm import LLM
from doublespec.methods import HINDSIGHT, METHODS, candidates
from doublespec.models.base import LanguageModel
from doublespec.models.native.library import can_compile
from doublespec.models.toy import ToyModel
from doublespec.sampling import Request, SamplingParams
from doublespec.scheduling.scheduler import Scheduler
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens
from tests.drafts import FREE, inline, threaded, worker
from tests.reference import answer, naive, settled_by

TEMPERATURES = (0.0, 0.7, 1.2)


class Patient(ToyModel):
    """Gives a draft in a thread the time for two forwards, however busy the machine is; a draft
    that has nothing to do keeps it a moment only."""

    def __init__(self, draft: ToyModel) -> None:
        super().__init__(draft.vocab_size)
        self._draft = draft

    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> torch.Tensor:
        enough, latest = self._draft.forwards + 2, time.perf_counter() + 0.02
        while self._draft.forwards < enough and time.perf_counter() < latest:
            time.sleep(0.001)
        return super().logits(tokens, last, prompt_length)


class Settling(ToyModel):
    """Goes on by itself, now and then less far than it might, and some texts it does not know."""

    can_settle = True

    def settle(self, tokens: Tokens, guess: Tokens, passes: int, *told: Any) -> list[int]:
        few = (passes + 1) // 2 if len(tokens) % 3 else 0
        return settled_by(self, tokens, guess, few, *told)


class ToyParts:
    """Parts made of toys; `agreement` is the draft's with the target."""

    def __init__(self, agreement: float, gamma: int, *, threads: bool = False) -> None:
        self._draft = ToyModel(32, agreement=agreement)
        self.target: LanguageModel = Patient(self._draft) if threads else Settling(32)
        self.guess_tokens = 24
        self.at_once, self.plain_seconds = 1 + gamma, 0.001
        self.clock = time.perf_counter
        names = candidates(has_draft=True, beside=True, same_device=True)
        self.scheduler = Scheduler(names, {"ar": 1000.0}, HINDSIGHT, sounded=True)
        speeds = lambda kept: {"double": 2.0 * kept, "double-serial": 1.5 * kept}  # noqa: E731
        self.sounding = Sounding(lambda: self._draft, speeds)
        self.pauses = Pauses(lambda: 4.0)
        self.lookup_costs = LookupCosts(0.001, 0.001, 0.1, 0.0001, self.at_once)
        self.hindsight = Hindsight(
            HINDSIGHT,
            self.lookup(),
            24,
            lambda shown, searched: 0.001 * len(shown),
            self.pauses,
            self.at_once,
        )
        self._gamma = gamma
        self._threads = threads
        self._open: list[BackgroundDrafter] = []

    def forward_seconds(self, shown: int, *, beside: bool) -> float:
        return 0.001

    def is_draft_ready(self, may_take: Callable[[float], bool]) -> bool:
        return True

    def lookup(self, behind: str | None = None) -> Drafter:
        return Retrieval(RetrievalSettings()).lookup()

    def draft(self, *, retrieval: bool) -> Drafter:
        helper = self.lookup() if retrieval else NoDrafter()
        drafter = ModelDrafter(self._draft, self._gamma, helper)
        choice = Retrieval(RetrievalSettings()).choice(self._gamma, 0.1 * self._gamma)
        if choice is None or not retrieval:
            return drafter
        return DraftUnlessRun(drafter, choice, self.clock, 0.001)

    def background(self, *, retrieval: bool) -> BackgroundDrafter:
        helper = self.lookup() if retrieval else NoDrafter()
        if self._threads:
            free = worker(self._draft, None, helper, forks=3)
            self._open.append(threaded(lambda: free, FREE))
        else:
            lockstep = worker(self._draft, self._gamma, helper)
            self._open.append(inline(lambda: lockstep))
        return self._open[-1]

    def close(self) -> None:
        for background in self._open:
            background.close()


@pytest.mark.parametrize("agreement", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("method", METHODS)
def test_toys_give_the_tokens_of_plain_decoding(method: str, agreement: float) -> None:
    for gamma, temperature, seed in itertools.product((1, 4), TEMPERATURES, range(4)):
        params = SamplingParams(temperature=temperature, seed=seed, max_tokens=90)
        prompt = [(seed * 7 + i * i) % 32 for i in range(1 + 9 * seed)]
        request = Request(params, len(prompt), frozenset({31}))
        stop = StopRule(params.max_tokens, request.end_ids)
        parts = ToyParts(agreement, gamma)
        found = answer(list(METHODS[method](parts, prompt, request, stop)))
        assert found == naive(ToyModel(32), prompt, request, stop)


@pytest.mark.parametrize("method", ["psd", "double"])
def test_a_draft_in_a_thread_changes_nothing(method: str) -> None:
    with closing(ToyParts(0.8, 3, threads=True)) as parts:
        for temperature in TEMPERATURES:
            request = Request(SamplingParams(temperature=temperature), 3)
            stop = StopRule(120)
            steps = list(METHODS[method](parts, [1, 2, 3], request, stop))
            assert answer(steps) == naive(ToyModel(32), [1, 2, 3], request, stop)
            assert sum(step.num_drafted for step in steps) > 0


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_parameters_of_every_kind_change_nothing(data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(sorted(METHODS)))
    params = SamplingParams(
        temperature=data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
        top_k=data.draw(st.sampled_from([None, 1, 5])),
        top_p=data.draw(st.sampled_from([1.0, 0.9, 0.3])),
        min_p=data.draw(st.sampled_from([0.0, 0.1])),
        seed=data.draw(st.integers(0, 2**63 - 1)),
        max_tokens=data.draw(st.integers(1, 60)),
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.3])),
        presence_penalty=data.draw(st.sampled_from([0.0, 0.7])),
        frequency_penalty=data.draw(st.sampled_from([0.0, 0.4])),
        logit_bias=data.draw(st.sampled_from([{}, {3: 4.0, 5: -100.0}])),
    )
    prompt = data.draw(st.lists(st.integers(0, 31), min_size=1, max_size=40))
    request = Request(params, len(prompt), frozenset({30}))
    stop = StopRule(params.max_tokens, request.end_ids, ("7,9", "11"), _spell)
    parts = ToyParts(data.draw(st.sampled_from([0.0, 0.8, 1.0])), data.draw(st.integers(1, 6)))
    found = answer(list(METHODS[method](parts, prompt, request, stop)))
    assert found == naive(ToyModel(32), prompt, request, stop)


def _spell(tokens: list[int]) -> str:
    return ",".join(map(str, tokens))


PROMPTS = (
    "Sort these words: pear, fig, apple, cherry, banana.",
    "Convert this CSV to JSON:\nname,city\nAnna,Oslo\nTom,Paris\nLena,Rome",
)


KERNELS = ("native", "torch") if can_compile() else ("torch",)


@pytest.fixture(scope="module", params=[("process", name) for name in KERNELS] + [("thread", None)])
def pair(request: pytest.FixtureRequest) -> Iterator[LLM]:
    """The bundled pair in its own precision, reused by all tests: caches hold what was before."""
    background, kernels = request.param
    settings = {"threads": 1, "gamma": 3, "background": background, "kernels": kernels}
    with LLM("bundled", "bundled", **settings) as llm:
        yield llm


def _plain(llm: LLM, prompt: list[int], params: SamplingParams) -> tuple[int, ...]:
    """Naive decoding by a model of its own, which has seen nothing else."""
    request, stop = llm.request(prompt, params)
    return tuple(naive(llm.target.fresh(), prompt, request, stop))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_bundled_pair_gives_the_tokens_of_plain_decoding(pair: LLM, temperature: float) -> None:
    for seed, text in enumerate(PROMPTS):
        prompt = pair.codec.encode_chat([{"role": "user", "content": text}])
        params = SamplingParams(temperature=temperature, seed=seed, max_tokens=48)
        wanted = _plain(pair, prompt, params)
        for method in [*METHODS, *(f"double@{preset}" for preset in PRESETS)]:
            assert pair.generate(prompt, params, method=method).tokens == wanted, method


def test_penalties_and_stop_strings_change_nothing(pair: LLM) -> None:
    prompt = pair.codec.encode_chat([{"role": "user", "content": PROMPTS[1]}])
    params = SamplingParams(
        temperature=0.9, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.2, max_tokens=40
    )
    stopped = SamplingParams(max_tokens=80, stop=("city",))
    for method in METHODS:
        assert pair.generate(prompt, params, method=method).tokens == _plain(pair, prompt, params)
        completion = pair.generate(prompt, stopped, method=method)
        assert completion.tokens == _plain(pair, prompt, stopped)
        assert "city" not in completion.text


def test_a_chat_of_several_turns_gives_the_tokens_of_plain_decoding(pair: LLM) -> None:
    for method in METHODS:
        messages = []
        for text in (*PROMPTS, "Thank you!"):
            messages.append({"role": "user", "content": text})
            params = SamplingParams(temperature=0.7, seed=5, max_tokens=24)
            completion = pair.chat(messages, params, method=method)
            assert completion.tokens == _plain(pair, pair.codec.encode_chat(messages), params)
            messages.append({"role": "assistant", "content": completion.text})


@pytest.fixture(scope="module", params=KERNELS)
def alone(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM("bundled", None, kernels=request.param) as llm:
        yield llm


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_random_texts_splits_and_cached_states_give_the_same_bits(
    alone: LLM, data: st.DataObject
) -> None:
    """What the model has read before, and in which runs, never shows in its logits."""
    model = alone.target
    fresh = model.fresh()
    length = data.draw(st.integers(2, 330))
    seed = data.draw(st.integers(0, 1 << 30))
    text = torch.randint(0, 8000, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    prompt_length = data.draw(st.integers(1, length - 1))
    other = data.draw(st.integers(0, length))
    model.logits([*text[:other], 5, 6, 7], 1, data.draw(st.integers(1, length)))
    stop = prompt_length
    wanted = fresh.logits(text, length - prompt_length + 1, prompt_length)
    parts = [model.logits(text[:stop], 1, prompt_length)]
    while stop < length:
        size = min(data.draw(st.integers(1, 40)), length - stop)
        stop += size
        parts.append(model.logits(text[:stop], size, prompt_length))
    assert torch.equal(torch.cat(parts), wanted)


def test_same_seed_same_text_and_another_seed_another_text(bundled: LLM) -> None:
    texts = {
        seed: {
            bundled.generate("Once upon a time", temperature=1.0, seed=seed, method=method).text
            for method in ("ar", "lookup", "double", "double-serial")
        }
        for seed in (1, 2, 3)
    }
    assert all(len(same) == 1 for same in texts.values())
    assert len(set.union(*texts.values())) == 3


def test_same_seed_same_text_in_another_process(bundled: LLM) -> None:
    code = (
        "import json; from doublespec.llm import LLM\n"
        "llm = LLM('bundled', 'bundled', method='double-serial')\n"
        "c = llm.generate('Once upon a time', temperature=1.0, seed=9, max_tokens=40)\n"
        "print(json.dumps(c.tokens))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = bundled.generate("Once upon a time", temperature=1.0, seed=9, max_tokens=40, method="ar")
    assert tuple(json.loads(run.stdout)) == ours.tokens


def test_settings_do_not_reach_the_text(bundled: LLM) -> None:
    params = SamplingParams(temperature=0.8, max_tokens=60, ignore_eos=True)
    for changes in ({"gamma": 1, "guess_tokens": 3}, {"gamma": 7, "guess_tokens": 200}):
        assert Settings(**changes)
        with LLM("bundled", "bundled", background="inline", **changes) as llm:
            for method in ("double", "double-serial"):
                found = llm.generate(PROMPTS[0], params, method=method)
                wanted = bundled.generate(PROMPTS[0], params, method="ar")
                assert found.tokens == wanted.tokens
                assert len(wanted.tokens) == 60
