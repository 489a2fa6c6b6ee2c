"""All cores while nothing else needs them: never other bits, and never slow for long."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from doublespec import engine
from doublespec.llm import LLM
from doublespec.models import devices, load
from doublespec.models.decoder import Decoder
from doublespec.models.devices import end_idle_threads
from doublespec.models.load import ForwardCost, LocalDecoder, choose_threads
from doublespec.models.native.decoder import NativeDecoder
from doublespec.models.threads import Threads
from doublespec.sampling import SamplingParams

USUAL, EVERY = 1, 2
LAYERS = 10


class Machine:
    """Virtual time, in which a forward of ten layers takes one number of seconds on one core and
    another on two; `stalls` are its layers that wait for a busy core."""

    def __init__(self, one: float = 4e-3, two: float = 3e-3) -> None:
        self.now = 0.0
        self.threads = 0
        self.seconds = {USUAL: one, EVERY: two}
        self.is_busy = False
        self.stall = 0.02
        self.used: list[int] = []  # by each layer
        self.ended: list[float] = []  # when threads were

    def set_threads(self, number: int) -> None:
        self.threads = number

    def layer(self) -> None:
        self.used.append(self.threads)
        stalled = self.is_busy and self.threads == EVERY
        self.now += self.stall if stalled else self.seconds[self.threads] / LAYERS

    def governed(self, *proof: Callable[[], Tensor]) -> Threads:
        threads = Threads(
            USUAL,
            EVERY,
            proof,
            lambda rows: self.seconds[USUAL],
            LAYERS,
            clock=lambda: self.now,
            set_threads=self.set_threads,
            end_threads=lambda: self.ended.append(self.now),
        )
        threads.prove()
        return threads

    def forward(self, threads: Threads, rows: int = 1) -> set[int]:
        """The numbers that a forward has used."""
        self.used.clear()
        threads.begin(rows)
        for _ in range(LAYERS):
            self.layer()
            threads.check()
        threads.end()
        assert self.threads == USUAL  # for whatever comes between forwards
        return {*self.used}


def test_all_cores_are_used_where_they_are_faster() -> None:
    machine = Machine()
    threads = machine.governed()
    used = [machine.forward(threads) for _ in range(500)]
    assert used.count({EVERY}) > 490  # two blocks of a trial are enough where it is clear
    assert {USUAL} in used[250:]  # it goes on comparing
    assert threads.explain() == "1 of 2 threads beside a draft; 2 are 33% faster for 1 rows"


def test_all_cores_are_not_used_where_they_are_slower() -> None:
    machine = Machine(one=3e-3, two=4e-3)
    threads = machine.governed()
    used = [machine.forward(threads) for _ in range(500)]
    assert used.count({USUAL}) > 470
    assert "2 are 25% slower" in threads.explain()


def test_it_is_measured_for_each_number_of_rows() -> None:
    machine = Machine(one=3e-3, two=4e-3)
    threads = machine.governed()
    for _ in range(20):
        machine.forward(threads, rows=1)
    machine.seconds = {USUAL: 9e-3, EVERY: 6e-3}
    for _ in range(20):
        machine.forward(threads, rows=64)
    assert machine.forward(threads, rows=64) == {EVERY}
    machine.seconds = {USUAL: 3e-3, EVERY: 4e-3}
    assert machine.forward(threads, rows=1) == {USUAL}


def test_a_first_prompt_that_finds_nothing_in_caches_decides_nothing() -> None:
    machine = Machine(one=4e-3, two=7e-3)
    threads = machine.governed()
    assert machine.forward(threads, rows=64) == {EVERY}
    machine.seconds[EVERY] = 3e-3
    for _ in range(3):
        machine.forward(threads, rows=64)
    assert [machine.forward(threads, rows=64) for _ in range(10)] == 10 * [{EVERY}]


def test_prompts_take_all_cores_at_once_where_steps_were_faster_with_them() -> None:
    machine = Machine(one=4e-3, two=3e-3)
    threads = machine.governed()
    for _ in range(12):
        machine.forward(threads)
    machine.seconds = {USUAL: 40e-3, EVERY: 20e-3}
    assert [machine.forward(threads, rows=64) for _ in range(20)] == 20 * [{EVERY}]
    later = [machine.forward(threads, rows=64) for _ in range(600)]
    assert {USUAL} not in later  # a trial would hold up an answer's first token
    machine.seconds = {USUAL: 3e-3, EVERY: 4e-3}
    for _ in range(2000):  # the machine has changed
        machine.forward(threads)
    machine.seconds = {USUAL: 40e-3, EVERY: 50e-3}
    assert {USUAL} in [machine.forward(threads, rows=64) for _ in range(60)]


def test_what_all_cores_have_saved_pays_for_delays() -> None:
    machine = Machine()
    threads = machine.governed()
    used = [machine.forward(threads) for _ in range(40)]
    saved = used.count({EVERY}) * (machine.seconds[USUAL] - machine.seconds[EVERY])
    machine.stall = 0.011
    delays = 0
    while True:
        machine.is_busy = True
        assert machine.forward(threads) == {USUAL, EVERY}
        machine.is_busy = False
        delays += 1
        if machine.forward(threads) == {USUAL}:
            break
    assert saved < delays * machine.stall < saved + 0.12  # with a tenth of a second at first


def test_all_cores_that_stay_faster_are_seldom_compared_again() -> None:
    """What makes them slower is noticed by what is late; that they have become faster, by trials
    alone."""
    compared = []
    for machine in (Machine(), Machine(one=3e-3, two=4e-3)):
        threads = machine.governed()
        used = [machine.forward(threads) for _ in range(60_000)]
        slower = {USUAL} if machine.seconds[USUAL] > machine.seconds[EVERY] else {EVERY}
        compared.append(used[30_000:].count(slower))
    assert 0 < 3 * compared[0] < compared[1]


def test_a_machine_that_changes_is_noticed() -> None:
    machine = Machine(one=3e-3, two=4e-3)
    threads = machine.governed()
    for _ in range(300):
        machine.forward(threads)
    machine.seconds = {USUAL: 4e-3, EVERY: 3e-3}
    for _ in range(900):
        machine.forward(threads)
    assert machine.forward(threads) == {EVERY}


def test_one_layer_that_waits_for_a_busy_core_is_enough() -> None:
    machine = Machine()
    threads = machine.governed()
    for _ in range(50):
        machine.forward(threads)
    machine.is_busy, machine.stall = True, 0.3
    machine.forward(threads)
    assert machine.used == [EVERY] + [USUAL] * (LAYERS - 1)
    assert machine.forward(threads) == {USUAL}
    assert "other programs" in threads.explain()


@pytest.mark.parametrize(("seconds", "may_prompt"), [(0.85, False), (60.0, True)])
def test_after_a_delay_all_cores_are_tried_on_few_rows_first(
    seconds: float, may_prompt: bool
) -> None:
    """On a prompt only when it is long ago: that would hold up the first token."""
    machine = Machine()
    threads = machine.governed()
    assert machine.forward(threads, rows=64) == {EVERY}
    machine.is_busy, machine.stall = True, 0.2
    machine.forward(threads)
    machine.is_busy, machine.now = False, seconds  # paused until 0.8
    assert machine.forward(threads, rows=64) == ({EVERY} if may_prompt else {USUAL})
    assert machine.forward(threads, rows=2) == {EVERY}
    assert EVERY in set().union(*(machine.forward(threads, rows=64) for _ in range(3)))


def test_trials_beside_a_busy_program_cost_little_and_end_with_it() -> None:
    machine = Machine()
    threads = machine.governed()
    for _ in range(100):
        machine.forward(threads)
    machine.is_busy, begun, forwards = True, machine.now, 0
    while machine.now < begun + 60.0:
        machine.forward(threads)
        forwards += 1
    assert forwards * machine.seconds[USUAL] > 0.98 * (machine.now - begun)
    machine.is_busy = False
    for _ in range(10_000):  # 40 seconds: the longest pause is over
        machine.forward(threads)
    assert machine.forward(threads) == {EVERY}


def test_a_pause_is_no_longer_than_a_hundred_times_what_was_lost() -> None:
    """However often it has been twice as long: another try costs no more than that."""
    machine = Machine()
    threads = machine.governed()
    machine.stall = 0.3
    machine.is_busy = True
    while machine.now < 60.0:
        machine.forward(threads)
    machine.stall = 5e-3
    while EVERY not in machine.forward(threads):  # whatever the last pause was
        pass
    begun = machine.now
    while EVERY not in machine.forward(threads):
        pass
    assert machine.now - begun < 0.6


def test_an_odd_delay_now_and_then_costs_a_short_pause_only() -> None:
    machine = Machine()
    threads = machine.governed()
    machine.stall, used = 5e-3, []
    for number in range(4000):
        machine.is_busy = number % 800 == 799
        used.append(machine.forward(threads))
    assert used.count({EVERY}) > 0.85 * len(used)


def test_pauses_are_short_again_once_all_cores_pay() -> None:
    """However long they have become: a delay now and then costs less than all cores save."""
    machine = Machine()
    threads = machine.governed()
    machine.is_busy = True
    while machine.now < 60.0:
        machine.forward(threads)
    machine.is_busy, machine.stall = False, 5e-3
    while machine.forward(threads) == {USUAL}:
        pass
    used = []
    for number in range(10_000):
        machine.is_busy = number % 500 == 499
        used.append(machine.forward(threads))
    assert used.count({EVERY}) > 0.85 * len(used)


def test_noise_hides_no_gain() -> None:
    """A seventh, where a forward takes a fifth more or less and now and then one is interrupted."""
    machine = Machine(one=3.4e-3, two=3.0e-3)
    threads, chance = machine.governed(), random.Random(0)
    machine.stall, used = 5e-3, []
    for number in range(10_000):
        noise = chance.uniform(0.8, 1.2)
        machine.seconds = {USUAL: 3.4e-3 * noise, EVERY: 3.0e-3 * noise}
        machine.is_busy = number % 100 == 99
        used.append(machine.forward(threads))
    assert used.count({EVERY}) > 0.85 * len(used)


def test_prompts_of_about_the_same_length_are_tried_together() -> None:
    machine = Machine(one=70e-3, two=50e-3)
    threads = machine.governed()
    used = [machine.forward(threads, rows) for rows in (160, 224, 192, 256, 240, 160, 224, 256)]
    assert used.count({USUAL}) == 2
    assert used[4:] == [{EVERY}] * 4


def test_the_usual_number_is_used_beside_a_draft() -> None:
    machine = Machine()
    threads = machine.governed()
    threads.draft_begins()
    assert {frozenset(machine.forward(threads)) for _ in range(100)} == {frozenset({USUAL})}
    threads.draft_rests()
    assert machine.forward(threads) == {USUAL}  # it may be in the middle of a forward
    assert machine.forward(threads) == {EVERY}


def test_threads_without_work_leave_their_core_to_a_draft() -> None:
    machine = Machine()
    threads = machine.governed()
    machine.forward(threads)
    assert machine.ended == []
    begun = machine.now
    threads.draft_begins()
    threads.draft_begins()  # of another answer
    assert machine.ended == [begun]
    threads.draft_rests()
    threads.draft_rests()
    threads.draft_begins()
    assert len(machine.ended) == 2


def test_a_draft_that_is_being_loaded_has_a_core() -> None:
    machine = Machine()
    threads = machine.governed()
    for is_loading in (True, True, False, False):  # it may be said again
        threads.draft_loads(is_loading)
        used = [machine.forward(threads) for _ in range(20)]
        assert ({EVERY} in used) != is_loading
    assert len(machine.ended) == 2


def test_threads_with_work_go_on_beside_a_draft() -> None:
    """They are the usual ones, and there is another core."""
    machine = Machine()
    threads = Threads(
        2, 3, (), lambda rows: 1e-3, LAYERS, end_threads=lambda: machine.ended.append(0.0)
    )
    threads.draft_begins()
    assert machine.ended == []


def test_ended_threads_come_again_when_they_are_needed() -> None:
    before = torch.get_num_threads()
    x = torch.randn(512, 512)
    try:
        torch.set_num_threads(2)
        wanted = x @ x
        end_idle_threads()
        assert torch.equal(x @ x, wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("others", [[], ["kmp_set_blocktime"]])
def test_only_threads_that_are_its_own_are_ended(
    others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLVM's OpenMP would end those of drafts in other threads, too."""
    paused: list[int] = []
    found = SimpleNamespace(omp_pause_resource_all=paused.append, **dict.fromkeys(others))
    monkeypatch.setattr(devices, "openmp", lambda: found)
    end_idle_threads()
    assert len(paused) == (0 if others else 1)


def test_a_fixed_number_is_kept() -> None:
    machine = Machine()
    threads = machine.governed()
    for number in (USUAL, EVERY):
        with threads.fixed(number):
            assert [machine.forward(threads) for _ in range(100)] == [{number}] * 100


# -- the proof -------------------------------------------------------------------------------------


def test_a_model_whose_bits_depend_on_the_number_keeps_it() -> None:
    machine = Machine()
    same, other = torch.ones(3), lambda: torch.tensor([1.0, float(machine.threads)])
    threads = machine.governed(lambda: same, other, lambda: same)
    assert {frozenset(machine.forward(threads)) for _ in range(500)} == {frozenset({USUAL})}
    assert "bits depend on the number" in threads.explain()


def test_an_interrupted_proof_proves_nothing() -> None:
    """Computations are made one after the other, and those behind an interrupt are lost."""
    machine, is_first = Machine(), True

    def computations() -> Iterator[Callable[[], Tensor]]:
        yield lambda: torch.ones(3)
        if is_first:
            raise KeyboardInterrupt
        yield lambda: torch.tensor([1.0, float(machine.threads)])

    threads = Threads(
        USUAL,
        EVERY,
        computations(),
        lambda rows: machine.seconds[USUAL],
        LAYERS,
        clock=lambda: machine.now,
        set_threads=machine.set_threads,
    )
    with pytest.raises(KeyboardInterrupt):
        threads.prove()
    is_first = False
    assert {frozenset(machine.forward(threads)) for _ in range(50)} == {frozenset({USUAL})}
    assert not threads.may_change


def test_nothing_is_used_that_is_not_proven_yet() -> None:
    """The machine is busy while the model is loaded: the proof goes on when it is not."""
    machine = Machine()
    machine.is_busy = True

    def compute() -> Tensor:
        machine.layer()
        machine.now += 0.6e-3  # so that one is enough before a forward
        return torch.ones(3)

    threads = machine.governed(*[compute] * 8)
    threads.begin(1)
    assert machine.threads == USUAL
    threads.end()
    assert "not known yet" in threads.explain()
    machine.is_busy, machine.now = False, 60.0
    for _ in range(7):
        machine.forward(threads)
        assert {*machine.used[-LAYERS:]} == {USUAL}
    assert {EVERY} in [machine.forward(threads) for _ in range(5)]


def test_the_first_computation_of_a_shape_may_take_long() -> None:
    machine = Machine()
    delays = iter([0.0, 5e-3, 0.0])

    def compute() -> Tensor:
        machine.now += next(delays)
        return torch.ones(3)

    assert machine.forward(machine.governed(compute)) == {EVERY}


def test_kernels_are_compared_with_several_numbers_of_threads(
    pytorch: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row count of canonical shapes, and forwards with the model's own weights."""
    model = pytorch.target.fresh()
    assert isinstance(model, Decoder)
    proof = list(load._proof(model, None, ForwardCost(0.004, 0.05)))
    assert len(proof) > 5 * len(model.shapes.answer)
    with _all_threads():
        found = [compute() for compute in proof]
    assert all(torch.equal(compute(), rows) for compute, rows in zip(proof, found, strict=True))


# -- a real model ----------------------------------------------------------------------------------


@contextmanager
def _all_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(EVERY)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Restless(Threads):
    """Changes the number before any block and after any layer."""

    def __init__(self) -> None:
        super().__init__(USUAL, EVERY, (), lambda rows: 1.0, LAYERS)
        self.chance = random.Random(3)
        self.used = {USUAL: 0, EVERY: 0}

    def begin(self, rows: int) -> None:
        self.check()

    def took(self, seconds: float) -> None:
        self.check()

    def check(self) -> None:
        number = self.chance.choice([USUAL, EVERY])
        self.used[number] += 1
        torch.set_num_threads(number)


def test_tokens_are_the_same_however_often_the_number_changes(bundled: LLM) -> None:
    prompt = bundled.codec.encode_chat([{"role": "user", "content": "Sort: pear, fig, apple."}])
    threads = Restless()
    with LLM("bundled", "bundled", threads=1, gamma=3, background="inline") as llm:
        assert isinstance(llm.target, LocalDecoder)
        llm.target.choose_threads(threads)
        if isinstance(llm.target, NativeDecoder):
            llm.target.call_seconds = 0.0  # each layer by a call
        for method in ("ar", "lookup", "double-serial", "double", "auto"):
            for temperature in (0.0, 0.9):
                params = SamplingParams(temperature=temperature, max_tokens=40)
                wanted = bundled.generate(prompt, params, method="ar").tokens
                assert llm.generate(prompt, params, method=method).tokens == wanted
    assert min(threads.used.values()) > 200


def test_an_answer_with_a_draft_beside_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(load, "usable_cores", lambda: EVERY)
    monkeypatch.setattr(Threads, "prove", lambda threads: None)
    with LLM("bundled", "bundled", threads=1, background="inline") as llm:
        assert isinstance(llm.target, LocalDecoder)
        assert llm.target.threads is None  # a number that is set stays
        cost = choose_threads(llm.target, USUAL, None, ForwardCost(60.0, 0.05))
        assert 0.0 < cost.alone < 0.5  # as measured, of sixty seconds
        of_rows = 1.0 + 20 * cost.row_share(beside=False)
        assert cost.of_alone(21) == pytest.approx(cost.alone * 60.0 * of_rows)
        assert cost.row_share(beside=True) == 0.05
        threads = llm.engine.threads = llm.target.threads
        assert threads is not None
        monkeypatch.setattr(threads, "draft_begins", lambda: said.append("begins"))
        monkeypatch.setattr(threads, "draft_rests", lambda: said.append("rests"))
        begin = threads.begin

        def reads(rows: int) -> None:
            said.extend([] if said else ["reads"])
            begin(rows)

        monkeypatch.setattr(threads, "begin", reads)
        for method, wanted in (("ar", []), ("double", ["begins", "rests"]), ("lookup", [])):
            said.clear()
            llm.generate("One, two, three", max_tokens=20, method=method)
            assert [word for word in said if word != "reads"] == wanted
        assert said[:1] == ["reads"]
        prompt = llm.codec.encode("One, two, three, four")
        for long, first in ((len(prompt), "reads"), (len(prompt) + 1, "begins")):
            monkeypatch.setattr(engine, "_LONG_PROMPT", long)  # read before a draft takes its core
            for seen_before in (False, True):
                said.clear()
                llm.generate([7 + long, *prompt[1:]], max_tokens=9, method="double")
                assert said[0] == ("begins" if seen_before else first)
        monkeypatch.setattr(threads, "begin", begin)
        said.clear()
        answers = [llm.stream("One, two", method="double", max_tokens=9) for _ in range(2)]
        for stream in answers:
            next(iter(stream))
        for stream in answers:
            stream.close()
        assert said == ["begins", "begins", "rests", "rests"]


def test_a_draft_that_is_loaded_gives_back_its_core_to_whatever_method() -> None:
    """None of `ar`'s steps asks for it."""
    with LLM("bundled", "bundled", method="ar", threads=1) as llm:
        threads = llm.engine.threads = Restless()
        llm.engine.prepare("double")
        assert threads.is_loading
        stop = time.monotonic() + 60
        while threads.is_loading and time.monotonic() < stop:
            llm.generate("One, two, three", max_tokens=20, method="ar")
        assert not threads.is_loading


class _Wrapped:
    """A target as a replay wraps it: it answers like one, and is no Decoder."""

    def __init__(self, model: LocalDecoder) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def test_a_draft_beside_a_wrapped_target_takes_its_core_too(
    bundled: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not tell what it has cached, so every long prompt counts as unread."""
    said: list[str] = []
    with LLM("bundled", "bundled", threads=1, background="inline") as llm:
        threads = llm.engine.threads = Restless()
        monkeypatch.setattr(threads, "draft_begins", lambda: said.append("begins"))
        monkeypatch.setattr(threads, "draft_rests", lambda: said.append("rests"))
        monkeypatch.setattr(llm.engine, "_target", _Wrapped(llm.target.fresh()))
        wanted = bundled.generate("One, two, three", max_tokens=20, method="ar").tokens
        assert llm.generate("One, two, three", max_tokens=20, method="double").tokens == wanted
    assert said == ["begins", "rests"]


def test_a_number_that_is_set_is_always_used() -> None:
    with LLM("bundled", threads=1, method="ar") as llm:
        assert llm.threads is None
        assert llm.explain().threads == "always the same number"


def test_other_models_keep_the_usual_number(bundled: LLM) -> None:
    model = bundled.target
    assert isinstance(model, LocalDecoder)
    choose_threads(model, 1 << 10, None, ForwardCost(0.004, 0.05))  # no core is left
    assert model.threads is None
