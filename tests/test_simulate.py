"""The simulator: the same loops on replayed answers, and figures that can be worked out by hand."""

import gzip
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from doublespec.bench import study
from doublespec.bench.machine import Curve, Machine, parse_curve, read_machine
from doublespec.bench.profile import (
    ForwardTimes,
    PairTimes,
    Profile,
    measure_beside,
    measure_branch,
    measure_chained,
    measure_follow,
    measure_forwards,
    measure_lookup,
    merged,
    save_profile,
)
from doublespec.bench.race import Run
from doublespec.bench.replay import Replay, ReplayedModel
from doublespec.bench.simulate import Outcome, answers, plans, simulate, uses_gamma
from doublespec.bench.study import Question, ask, recommend, sweep_questions
from doublespec.bench.traces import (
    Trace,
    mean_agreement,
    read_traces,
    trace_files,
    with_agreement,
    write_traces,
)
from doublespec.bench.validation import validate
from doublespec.bench.virtual import TimedModel, VirtualClock
from doublespec.config import Settings
from doublespec.drafting.pace import Pace
from doublespec.errors import ConfigError
from doublespec.llm import Completion
from doublespec.models.base import Branch, Worth, can_branch
from doublespec.models.load import ForwardCost
from doublespec.models.toy import ToyModel
from doublespec.retrieval.chains import Chains
from doublespec.retrieval.recurrence import Recurrence
from doublespec.stats import summarise
from doublespec.tokens import Tokens
from tests.commands import run_command
from tests.reference import Counting, settled_by

MACHINE = Machine(Curve(((1, 0.010),)), Curve(((1, 0.002),)), 0.010)  # c = 5


def _trace(agrees: bool = True, length: int = 120) -> Trace:
    """An answer without repetition, so that retrieval finds nothing."""
    answer = tuple(range(1000, 1000 + length))
    return Trace("new", tuple(range(20)), answer, (agrees,) * length)


def _uneven(length: int = 600, every: int = 6) -> Trace:
    """An answer of which the draft is wrong at every sixth place."""
    trace = _trace(length=length)
    return replace(trace, agrees=tuple(place % every != every - 1 for place in range(length)))


def _copied(length: int = 120) -> Trace:
    """An answer that copies its prompt, with a draft that is always wrong."""
    text = tuple(range(100, 100 + length))
    return Trace("copied", (*text, 5, 6, *text[:3]), text[3:], (False,) * (length - 3))


def _patchwork(length: int) -> Trace:
    """An answer of pieces of its prompt, with a draft that is always wrong."""
    text = tuple(range(100, 400))
    starts = [place * 41 % 288 for place in range(length // 6)]
    answer = tuple(token for start in starts for token in text[start : start + 6])
    return Trace("patchwork", text, answer, (False,) * len(answer))


def _outcome(
    name: str, trace: Trace, machine: Machine = MACHINE, gamma: int = 5, second: float = 0.0
) -> Outcome:
    (plan,) = plans(name, machine, gamma)
    return simulate(plan, machine, [Replay(trace, second)])


def test_plain_decoding_is_the_unit() -> None:
    outcome = _outcome("ar", _trace())
    assert outcome.speedup == pytest.approx(1)
    assert outcome.steps == 120


def test_speculation_pays_for_its_draft() -> None:
    """gamma 5 and a perfect draft: 6 tokens for 10 + 5 x 2 milliseconds, against 60."""
    assert _outcome("sd", _trace()).speedup == pytest.approx(3.0, rel=0.02)
    assert _outcome("sd", _trace(agrees=False)).speedup == pytest.approx(0.5, rel=0.05)


def test_a_parallel_draft_reaches_its_ceiling_and_not_more() -> None:
    """With perfect agreement PSD settles gamma = c tokens in the time of one forward."""
    outcome = _outcome("psd", _trace(length=1000))
    assert 4.8 < outcome.speedup <= 5.0 == outcome.ceiling
    assert outcome.bubbles < 0.02


def test_a_draft_that_is_always_wrong_leaves_bubbles() -> None:
    outcome = _outcome("psd@lock-step", _trace(agrees=False))
    assert outcome.speedup == pytest.approx(1, rel=0.02)
    assert outcome.bubbles == 1


def test_a_free_draft_that_is_always_wrong_is_not_waited_for() -> None:
    """One that is mostly right is: without it, one step in three has nothing to judge."""
    quick = replace(MACHINE, draft=Curve(((1, 0.001),)))
    for machine in (MACHINE, quick):
        assert _outcome("psd@free", _trace(agrees=False, length=600), machine).speedup > 0.97
    assert _outcome("psd@free", _uneven(), quick).bubbles < 0.2


@pytest.mark.parametrize("name", ["psd@free", "psd"])
def test_a_free_draft_that_is_always_late_is_hardly_waited_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = replace(MACHINE, draft=Curve(((1, 0.0035),)))  # a wait ends after 2.5 ms
    speed = _outcome(name, _uneven(every=2), slow).speedup
    monkeypatch.setattr(Pace, "may_wait", lambda pace, shown: shown < pace.wanted)
    assert speed > 1.05 * _outcome(name, _uneven(every=2), slow).speedup


def test_lock_step_depends_on_gamma_and_a_free_draft_does_not() -> None:
    """c = 5: with gamma 10 the target waits for the draft in every step, with gamma 2 the draft for
    the target."""
    fitting = _outcome("psd@lock-step", _uneven()).speedup
    for gamma in (2, 10):
        assert _outcome("psd@lock-step", _uneven(), gamma=gamma).speedup < 0.6 * fitting
        assert _outcome("psd@free", _uneven(), gamma=gamma).speedup > 0.85 * fitting


def test_gamma_is_said_where_it_counts_and_nowhere_else() -> None:
    one_device = replace(MACHINE, devices=1)
    for name in ("sd", "double-serial", "psd@lock-step", "double@paper", "auto@paper"):
        assert [plan.gamma for plan in plans(name, MACHINE, gamma=3)] == [3]
    for name in ("ar", "lookup@paper", "psd", "double@forks", "auto", "best"):
        assert [plan.gamma for plan in plans(name, MACHINE, gamma=3)] == [None]
    assert uses_gamma("auto", one_device)  # which has a serial draft there
    assert uses_gamma("best", one_device)
    question = Question(("psd", "best"), MACHINE, None)
    with pytest.raises(ConfigError, match="and for none of psd, best"):
        sweep_questions(question, "gamma", (2, 4))
    assert len(sweep_questions(replace(question, names=("psd", "sd")), "gamma", (2, 4))) == 2


def test_lock_step_waits_for_a_draft_whose_rows_are_dear() -> None:
    """A draft forward that judges a retrieved run of ten takes as long as two of the target's."""
    steep = replace(MACHINE, draft=Curve(((1, 0.002), (11, 0.020))))
    trace = replace(_copied(400), agrees=(True,) * 397)
    free, lockstep = (_outcome(f"double@{way}", trace, steep) for way in ("free", "lock-step"))
    assert free.speedup > 2 * lockstep.speedup


def test_corrections_in_advance_pay_as_often_as_the_second_choice_is_right() -> None:
    """The draft is wrong once in six tokens; nothing but its second choice can help."""
    assert _outcome("psd@free", _uneven(), second=1.0).foreseen == 0
    never, half, always = (_outcome("psd@forks", _uneven(), second=n) for n in (0.0, 0.5, 1.0))
    assert never.speedup == _outcome("psd@free", _uneven()).speedup
    assert never.speedup < 0.92 * half.speedup < 0.85 * always.speedup
    assert never.foreseen == 0
    assert half.foreseen == pytest.approx(0.5, abs=0.15)
    assert always.foreseen > 0.9
    assert always.bubbles < never.bubbles


def test_a_free_draft_hides_the_pipe_and_lock_step_pays_for_it() -> None:
    """A pipe as slow as the target: in lock-step each step takes twice as long."""
    piped = replace(MACHINE, pipe_seconds=0.010)
    lockstep = _outcome("psd@lock-step", _uneven(), piped).speedup
    assert lockstep == pytest.approx(_outcome("psd@lock-step", _uneven()).speedup / 2, rel=0.01)
    assert _outcome("psd@free", _uneven(), piped).speedup > 1.1 * lockstep


def test_auto_comes_close_to_the_best_fixed_method() -> None:
    for devices, drafting in ((2, "double"), (1, "double-serial")):
        machine = replace(MACHINE, devices=devices)
        for trace in (_uneven(), _patchwork(600), _trace(False, 600)):
            replays = [Replay(trace)] * 8
            speedups = [
                simulate(plans(name, machine)[0], machine, replays).speedup
                for name in ("auto", drafting, "lookup", "ar")
            ]
            assert speedups[0] > 0.9 * max(speedups[1:])


@pytest.mark.parametrize("way", ["lock-step", "free"])
def test_one_device_takes_the_sum_of_both_times(way: str) -> None:
    """Five tokens for 10 + 5 x 2 milliseconds; the time that the draft takes from the target, the
    target takes from the draft."""
    shared = replace(MACHINE, devices=1)
    outcome = _outcome(f"psd@{way}", _trace(length=1000), shared)
    assert outcome.speedup == pytest.approx(2.5, rel=0.05)
    assert _outcome("best", _trace(), shared).speedup == pytest.approx(3.0, rel=0.02)


def test_rows_pipe_and_overhead_cost_time() -> None:
    steep = replace(MACHINE, target=Curve(((1, 0.010), (11, 0.020))))
    assert _outcome("sd", _trace(), steep).speedup < _outcome("sd", _trace()).speedup
    piped = replace(MACHINE, pipe_seconds=0.005)
    assert _outcome("psd", _trace(), piped).speedup < _outcome("psd", _trace()).speedup
    slow = replace(MACHINE, overhead_seconds=0.010)
    assert _outcome("ar", _trace(), slow).speedup == pytest.approx(0.5)


def test_agreement_is_reached_in_both_directions_and_seeded() -> None:
    files = {"a": [_trace(False, 500)], "b": [_trace(True, 500)]}
    for wanted in (0.2, 0.82, 1.0):
        changed = with_agreement(files, wanted, seed=3)
        assert mean_agreement([t for ts in changed.values() for t in ts]) == pytest.approx(wanted)
    assert with_agreement(files, 0.7, 1) == with_agreement(files, 0.7, 1)
    assert with_agreement(files, 0.7, 1) != with_agreement(files, 0.7, 2)


def test_a_better_draft_is_faster_and_the_best_gamma_is_found() -> None:
    files = {"new": [_trace(False, 400)]}
    question = Question(("sd", "psd", "double"), MACHINE, 0.6)
    low, high = ask(files, question), ask(files, replace(question, agreement=0.95))
    for name in question.names:
        assert high[name]["new"].speedup > low[name]["new"].speedup
    assert high["sd"]["new"].gamma > low["sd"]["new"].gamma


def test_a_sweep_over_c_keeps_the_target_and_changes_the_draft() -> None:
    question = Question(("psd",), MACHINE, 1.0)
    points = sweep_questions(question, "c", (2, 8))
    assert [round(point.machine.ratio, 6) for point in points] == [2, 8]
    with pytest.raises(ConfigError, match="sweep must be one of c, agreement"):
        sweep_questions(question, "moon", ())


def test_a_sweep_over_c_with_a_profile_changes_the_draft_beside_the_target(tmp_path: Path) -> None:
    """It used to scale the draft alone, which no parallel method runs on, and to lose the padding
    of its rows."""
    (tmp_path / "p.json").write_text(json.dumps(_profile()))
    profiled = read_machine(tmp_path / "p.json")
    slow, fast = sweep_questions(Question(("psd",), profiled, None), "c", (2, 8))
    assert slow.machine.target == fast.machine.target == profiled.target
    assert slow.machine.draft_beside is not None
    assert fast.machine.draft_beside is not None
    for rows in (1, 3, 8):  # three rows are padded to eight
        assert slow.machine.draft(rows) == pytest.approx(profiled.draft(rows) / 2)
        beside = slow.machine.draft_beside(rows) / fast.machine.draft_beside(rows)
        assert beside == pytest.approx(4)
    assert slow.machine.branch_seconds == pytest.approx(4 * fast.machine.branch_seconds)


def test_the_recommendation_depends_on_the_text_and_the_draft() -> None:
    copied, _ = recommend({"a": [_copied(200)]}, Question((), replace(MACHINE, devices=1), None))
    fresh, outcomes = recommend({"a": [_trace(True, 200)]}, Question((), MACHINE, None))
    assert copied == "lookup"
    assert fresh in ("psd", "double")
    assert outcomes["a"].gamma is None  # it would not count


def test_traces_survive_writing_and_reading(tmp_path: Path) -> None:
    for name in ("t.jsonl", "t.jsonl.gz"):
        write_traces(tmp_path / name, [_trace(), _copied()])
        assert read_traces(tmp_path / name, 5000) == [_trace(), _copied()]
        assert trace_files([tmp_path / name]) == {"t": tmp_path / name}


def test_two_trace_files_of_one_name_are_told_apart_by_the_user(tmp_path: Path) -> None:
    """The second used to take the place of the first."""
    for name in ("a/x.jsonl", "b/x.jsonl", "c/x.jsonl", "c/x.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_traces(tmp_path / name, [_trace()])
    for paths in ([tmp_path / "a", tmp_path / "b"], [tmp_path / "c"]):
        with pytest.raises(ConfigError, match=r"two trace files have the name 'x': .*; leave one"):
            trace_files(paths)
    once = trace_files([tmp_path / "a", tmp_path / "b" / ".." / "a" / "x.jsonl"])
    assert once == {"x": tmp_path / "a" / "x.jsonl"}


@pytest.mark.parametrize("damage", [b"", b"\xff" * 20, b"\x01"])  # cut short, or not deflated
def test_a_damaged_trace_file_is_one_sentence(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b"", mtime=0)[:10] + damage)
    with pytest.raises(ConfigError, match="cannot read the trace file"):
        read_traces(tmp_path / "t.jsonl.gz", 5000)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "line 2: expected a JSON object with id"),
        ("nonsense", "line 2: expected a JSON object"),
        ('{"id":1,"prompt":[1],"answer":[-1],"draft_run":[0]}', "line 2: answer must be a list"),
        ('{"id":1,"prompt":[1],"answer":[1],"draft_run":[]}', "line 2: draft_run must have one"),
        ('{"id":1,"prompt":[1],"answer":[9000],"draft_run":[0]}', "token 9000 is beyond the voc"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    write_traces(path, [_trace()])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=message) as found:
        read_traces(path, 8000)
    assert str(path) in str(found.value)


def test_curves_go_through_their_points_and_never_fall_beyond_them() -> None:
    curve = parse_curve("1:10,9:18,17:16", "target-ms")
    assert [curve(rows) for rows in (1, 5, 9)] == pytest.approx([0.010, 0.014, 0.018])
    assert curve(100) >= curve(17)
    for text in ("", "fast", "-1", "8:1,2:3", "1:0"):
        with pytest.raises(ConfigError, match="target-ms must be milliseconds"):
            parse_curve(text, "target-ms")


def _profile() -> dict[str, object]:
    times = {"context": 400, "seconds": {"1": 0.004, "8": 0.005}}
    slow = {"context": 400, "seconds": {"1": 0.008, "8": 0.010}}
    return {
        "version": 4,
        **{name: times for name in ("target", "fastest", "draft")},
        **{name: {"target": slow, "draft": slow} for name in ("in_turns", "beside")},
        "branch_seconds": 0.0001,
        "pipe_seconds": 0.001,
        "follow_seconds": 0.0002,
        "lookup_seconds": 0.00005,
        "step_seconds": 0.00001,
        **{f"{name}_chained_seconds": None for name in ("target", "fastest", "draft")},
    }


def test_a_profile_of_the_doctor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(_profile()))
    machine = read_machine(path)
    assert (machine.ratio, machine.pipe_seconds) == (1, 0.001)
    assert machine.beside_draft is not None
    assert machine.beside_draft(2) == 0.010  # padded to 8 rows
    path.write_text(json.dumps({**_profile(), "version": 1}))
    with pytest.raises(ConfigError, match="version 1, and this program reads version 4; write it"):
        read_machine(path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is no profile"):
        read_machine(path)


@pytest.mark.parametrize(
    "change",
    [
        {"target": {"seconds": {"1": 0.0}}},
        {"draft": {"seconds": {"1": math.nan}}},
        {"fastest": {"seconds": {"0": 0.01}}},
        {"pipe_seconds": -1.0},
        {"lookup_seconds": math.inf},
        {"target_chained_seconds": 0.0},
    ],
)
def test_a_profile_of_impossible_times_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**_profile(), **change}))
    with pytest.raises(ConfigError, match="is no profile"):
        read_machine(path)


def test_a_profile_that_was_measured_is_read(tmp_path: Path) -> None:
    toy, counts = ToyModel(64), (1, 4)
    (alone,) = measure_forwards([toy], counts)
    both = PairTimes(*measure_forwards([toy, ToyModel(64)], counts))
    beside = measure_beside(toy, ToyModel, counts, 1)
    branch = measure_branch(toy, alone)
    lookup = measure_lookup(toy)
    follow = measure_follow(toy, 3, repeats=5)
    profile = Profile(alone, alone, alone, both, beside, branch, 0.001, follow, lookup, 0.0, 1)
    assert measure_chained(toy) is None
    chained = measure_chained(Counting(toy))
    assert chained is not None
    assert chained > 0
    profile = replace(profile, target_chained_seconds=chained, draft_chained_seconds=None)
    save_profile(merged([profile, profile]), tmp_path / "p.json")
    machine = read_machine(tmp_path / "p.json")
    assert (machine.chained_seconds, machine.draft_chained_seconds) == (chained, None)
    assert machine.baseline_seconds == alone.seconds[1]
    assert machine.cost.at_once == ForwardCost(1.0, 0.0, chained=chained).at_once > 1
    assert machine.target(1) == alone.seconds[1]
    assert machine.draft_beside is not None
    assert machine.draft_beside(4) == beside.draft.seconds[4]


def test_a_call_that_a_trial_of_threads_cut_short_is_no_call_of_many() -> None:
    """It used to be taken for one, so that forwards looked too fast."""

    class Trying(Counting):
        calls = 0

        def settle(self, tokens: Tokens, guess: Tokens, passes: int, *told: Any) -> list[int]:
            self.calls += 1
            time.sleep(0.0005 * (passes if self.calls % 3 else 1))
            return super().settle(tokens, guess, passes if self.calls % 3 else 1, *told)

    class Stuck(Counting):
        def settle(self, tokens: Tokens, guess: Tokens, passes: int, *told: Any) -> list[int]:
            return super().settle(tokens, guess, 1, *told)

    chained = measure_chained(Trying(ToyModel(64)))
    assert chained is not None
    assert chained >= 0.0004
    assert measure_chained(Stuck(ToyModel(64))) is None


def test_merged_profiles_leave_out_what_was_disturbed() -> None:
    quiet = ForwardTimes(400, {1: 0.004, 8: 0.005})
    loud = ForwardTimes(400, {1: 0.040, 8: 0.005})
    profiles = [
        Profile(times, quiet, None, None, None, None, None, None, 0.0, 0.0, 1)
        for times in (quiet, loud, quiet)
    ]
    assert merged(profiles) == profiles[0]


def test_a_processor_that_both_share_makes_both_slower() -> None:
    """Forwards beside the draft take twice as long; in lock-step it works half of that time."""
    slow = replace(MACHINE, beside_draft=Curve(((1, 0.020),)))
    alone = _outcome("psd@lock-step", _trace(length=1000))
    beside = _outcome("psd@lock-step", _trace(length=1000), slow)
    assert beside.speedup == pytest.approx(alone.speedup * 10 / 15, rel=0.01)
    assert _outcome("sd", _trace(), slow).speedup == _outcome("sd", _trace()).speedup
    after = replace(MACHINE, after_draft=Curve(((1, 0.020),)))
    assert _outcome("sd", _trace(length=1000), after).speedup == pytest.approx(2.0, rel=0.02)


def test_the_messages_of_a_parallel_draft_take_the_targets_time() -> None:
    slow = replace(MACHINE, follow_seconds=0.010)
    told = _outcome("psd@lock-step", _trace(length=1000), slow)
    free = _outcome("psd@lock-step", _trace(length=1000))
    assert told.speedup == pytest.approx(free.speedup / 2, rel=0.02)
    assert _outcome("sd", _trace(), slow).speedup == _outcome("sd", _trace()).speedup


def test_a_draft_that_is_always_wrong_is_told_in_one_of_eight_steps() -> None:
    slow = replace(MACHINE, follow_seconds=0.010)
    told = _outcome("psd", _trace(agrees=False, length=1000), slow)
    assert told.speedup == pytest.approx(8 / 9, rel=0.02)


def test_retrieval_and_branches_take_their_time() -> None:
    slow = replace(MACHINE, lookup_seconds=0.005)
    assert _outcome("lookup", _trace(False), slow).speedup == pytest.approx(10 / 15, rel=0.01)
    dear = replace(MACHINE, branch_seconds=0.002)
    free, forked = (_outcome(f"psd@{way}", _uneven(), dear) for way in ("free", "forks"))
    assert free.speedup == _outcome("psd@free", _uneven()).speedup
    assert forked.speedup < free.speedup


def test_a_target_that_goes_on_by_itself_makes_many_forwards_in_a_call() -> None:
    """Eight of 4 milliseconds take as long as a screen shows two pictures; the first takes 10. The
    first token comes alone."""
    going_on = replace(MACHINE, chained_seconds=0.004, baseline_seconds=0.004)
    seconds = 0.010 + 14 * (0.010 + 7 * 0.004) + 0.010 + 6 * 0.004
    assert _outcome("ar", _trace(), going_on).speedup == pytest.approx(120 * 0.004 / seconds)


def test_what_is_guessed_ahead_is_not_searched_for() -> None:
    """Where the model goes on by itself, searches may take as long as they like."""
    going_on = replace(MACHINE, chained_seconds=0.004)
    slow = replace(going_on, lookup_seconds=0.005)
    for trace in (_copied(400), _patchwork(600), _trace(False)):
        free, dear = (_outcome("lookup", trace, machine) for machine in (going_on, slow))
        assert dear.speedup > 0.9 * free.speedup  # one or two are made, at first
    assert _outcome("lookup", _copied(400), slow).speedup > 20


def test_a_draft_that_goes_on_by_itself_takes_less_time() -> None:
    """Six tokens for 10 + 1 + 4 x 0.5 milliseconds."""
    quick = replace(MACHINE, draft=Curve(((1, 0.001),)))
    chained = replace(quick, draft_chained_seconds=0.0005)
    assert _outcome("sd", _trace(length=1000), quick).speedup == pytest.approx(60 / 15, rel=0.02)
    assert _outcome("sd", _trace(length=1000), chained).speedup == pytest.approx(60 / 13, rel=0.02)
    after = replace(chained, draft_after=Curve(((1, 0.004),)))  # the first one of a draft
    assert _outcome("sd", _trace(length=1000), after).speedup == pytest.approx(60 / 16, rel=0.02)
    replays = [Replay(_trace(length=1000))]
    serial = [
        simulate(plans("double-serial", machine)[0], machine, replays).speedup
        for machine in (quick, chained)
    ]
    assert serial[0] < serial[1]


def _recurrence(text: list[int]) -> Recurrence:
    """What guesses behind a text, for twenty tokens; rows cost nothing."""
    chains = Chains()
    chains.extend(text)
    return Recurrence().begin(chains, [1.0] * 24, 20)


def test_a_replayed_model_goes_on_as_real_ones_do() -> None:
    """In settling and in a chain; with guesses right and wrong, and where the text has ended."""
    trace = replace(_patchwork(60), agrees=tuple(place % 5 != 4 for place in range(60)))
    replay = Replay(trace, 0.5)
    prompt, clock = [*replay.prompt], VirtualClock()

    def timed(model: ReplayedModel) -> TimedModel:
        return TimedModel(model, lambda rows: 1.0, clock, spared=0.75)

    target = timed(replay.target())
    assert target.settle(prompt, [], 1, (), None) == []  # one forward is chosen from outside
    for guess, passes, most in (([], 4, None), (replay.answer[:9], 3, 20), ([1, 2], 2, 3)):
        begun = clock.now
        recurrences = [_recurrence(prompt) for _ in range(2)]
        mine, other = (recurrence.guesser for recurrence in recurrences)
        found = target.settle(prompt, guess, passes, (), None, mine, most)
        wanted = settled_by(replay.target(), prompt, guess, passes, (), None, other, most)
        assert found == wanted == replay.answer[: len(found)]
        assert clock.now - begun <= 1.0 + 0.25 * (passes - 1)
    end = replay.answer[2]
    stop = replay.answer.index(end) + 1
    assert target.settle(prompt, [], 9, {end}, None) == replay.answer[:stop]
    begun, draft, text = clock.now, timed(replay.draft()), [*prompt]
    chain = draft.chain(prompt, 7, draft.vocab_size, (), Worth())
    for token, behind in zip(chain.tokens, chain.behind, strict=True):
        row = replay.draft().logits(text, 1, 1)[0].int()
        assert token == row.argmax()
        assert behind == row[token] - row.topk(2).values[1]
        text.append(token)
    assert clock.now - begun == 1.0 + 6 * 0.25
    unsure = Worth((0.5,), (1.0, 0.7), 0.4)  # 0.7 x 0.7 is worth another one, 0.343 is not
    assert len(draft.chain(prompt, 7, draft.vocab_size, (), unsure).tokens) == 3
    assert len(draft.chain(prompt, 7, draft.vocab_size, {chain.tokens[1]}, Worth()).tokens) == 2


def _runs(machine: Machine, trace: Trace, slower: float) -> list[Run]:
    """Runs as the machine would make them, or slower by a factor, but for plain decoding."""
    runs = []
    for name in ("ar", "psd"):
        (plan,) = plans(name, machine, 5, guess_tokens=Settings().guess_tokens)
        (steps,) = answers(plan, machine, [Replay(trace, 0.5)])
        factor = 1.0 if name == "ar" else slower
        steps = [step._replace(seconds=factor * step.seconds) for step in steps]
        completion = Completion("", trace.answer, 20, "length", summarise(steps))
        runs.append(Run(name, 0, 0, completion, tuple(steps)))
    return runs


def test_the_simulator_is_validated_against_runs() -> None:
    trace = _uneven()
    exact = validate(_runs(MACHINE, trace, 1.0), [trace], MACHINE, 0.5, None)
    assert list(exact) == ["ar", "psd"]
    assert exact["psd"].difference == pytest.approx(0, abs=1e-9)
    assert exact["psd"].simulated == exact["psd"].measured
    slow = validate(_runs(MACHINE, trace, 1.25), [trace], MACHINE, 0.5, None)
    assert slow["psd"].difference == pytest.approx(0.25)
    assert slow["psd"].measured.step_milliseconds > slow["psd"].simulated.step_milliseconds
    with pytest.raises(ConfigError, match="the traces are not the answers of these runs"):
        validate(_runs(MACHINE, trace, 1.0), [_trace()], MACHINE, 0.5, None)


def _process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "doublespec", "simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_command_is_deterministic_to_the_byte(tmp_path: Path) -> None:
    write_traces(tmp_path / "t.jsonl", [_trace(False), _copied()])
    arguments = ("--traces", str(tmp_path / "t.jsonl"), "--agreement", "0.8", "--json", "-")
    first, second = _process(*arguments), _process(*arguments)
    report = json.loads(first.stdout)
    assert first.stdout == second.stdout
    names = ["lookup@pld", "sd", "psd@lock-step", "double@paper", "best"]
    assert list(report["results"]) == names
    assert report["results"]["best"]["mean"]["speedup"] > 1
    assert report["results"]["double@paper"]["t"]["mean_accepted_length"] > 1


def test_the_overhead_that_a_profile_measured_counts(tmp_path: Path) -> None:
    """It used to be replaced by the flag's default, 0."""
    write_traces(tmp_path / "t.jsonl", [_trace(length=20)])
    (tmp_path / "p.json").write_text(json.dumps({**_profile(), "step_seconds": 0.050}))
    given = ("--traces", str(tmp_path / "t.jsonl"), "--profile", str(tmp_path / "p.json"))
    for flags, seconds in (((), 0.050), (("--overhead-ms", "0"), 0.0)):
        run = run_command("simulate", *given, "--methods", "ar", "--json", "-", *flags)
        report = json.loads(run.stdout)
        assert report["provenance"]["machine"]["overhead_seconds"] == seconds
        speedup = report["results"]["ar"]["mean"]["speedup"]
        assert speedup == pytest.approx(0.004 / (0.004 + seconds))


def test_the_number_of_processes_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"new": [_trace(False, 40)] * 3, "copied": [_copied(60)] * 2}
    question = Question(("sd", "double@paper", "best", "auto"), MACHINE, 0.8)
    monkeypatch.setattr(study, "WORTH_PROCESSES", 0)
    found = []
    for cores in (1, 2, 3):
        monkeypatch.setattr(study, "usable_cores", lambda cores=cores: cores)
        found.append(ask(files, question))
    assert found[0] == found[1] == found[2]
    assert repr(found[0]) == repr(found[2])  # in the same order, too


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "magic"), "method must be one of auto, ar, lookup"),
        (("--json", "/no/such/folder/x.json"), "there is no folder /no/such/folder"),
        (("--agreement", "2"), "agreement must be from 0 to 1"),
        (("--target-ms", "fast"), "target-ms must be milliseconds"),
        (("--target-ms", "nan"), "target-ms must be milliseconds"),
        (("--draft-ms", "1:2,8:inf"), "draft-ms must be milliseconds"),
        (("--pipe-ms", "nan"), "pipe-ms must be milliseconds from 0 up, got nan"),
        (("--overhead-ms", "inf"), "overhead-ms must be milliseconds from 0 up, got inf"),
        (("--overhead-ms", "-1"), "overhead-ms must be milliseconds from 0 up, got -1"),
        (("--validate", "runs.jsonl"), "--validate needs the --profile"),
        (("--profile", "p.json", "--pipe-ms", "0"), "--profile, which has these times, makes no"),
        (("--recommend", "--sweep", "c"), "give --sweep or --recommend, and not both"),
        (("--gamma", "5", "--methods", "psd,best"), "and for none of psd, best"),
        (("--recommend", "--methods", "sd"), "--recommend makes no use of --methods"),
        (("--validate", "r", "--run-length", "9"), "--validate makes no use of --run-length"),
        (("--values", "2,4"), "a simulation without --sweep makes no use of --values"),
        (("--html", "x.html"), "a simulation without --sweep makes no use of --html"),
        (("--sweep", "c", "--html", "-", "--json", "-"), "two reports cannot both be written"),
        (("--sweep", "c", "--values", "-2"), "values of c must be numbers above 0, got -2"),
        (("--sweep", "c", "--values", "0"), "values of c must be numbers above 0, got 0"),
        (("--sweep", "c", "--values", "nan"), "values of c must be numbers above 0, got nan"),
        (("--sweep", "agreement", "--values", "7"), "values of agreement must be from 0 to 1"),
        (("--sweep", "gamma", "--values", "2.5"), "gamma must be whole numbers from 1 up, got 2.5"),
        (("--sweep", "run-length", "--values", "0"), "run-length must be whole numbers from 1 up"),
        (("--vocab-size", "50"), "line 1: token 1119 is beyond the vocabulary"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    write_traces(tmp_path / "t.jsonl", [_trace()])
    run = run_command("simulate", "--traces", str(tmp_path / "t.jsonl"), *arguments)
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_a_page_of_curves_goes_to_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to be written to a file with the name -."""
    monkeypatch.chdir(tmp_path)
    write_traces(tmp_path / "t.jsonl", [_trace(length=20)])
    given = ("--traces", "t.jsonl", "--methods", "sd", "--sweep", "c", "--values", "2,4")
    run = run_command("simulate", *given, "--html", "-")
    assert run.stdout.startswith("<!")
    assert "speed-up" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]


def test_a_branch_is_replayed_where_it_is_the_true_text() -> None:
    replay = Replay(_trace(length=20))
    model = replay.draft()
    text = [*replay.prompt, *replay.answer]
    wrong = model.vocab_size - 1
    assert can_branch(model)
    model.logits(text[:22], 1, 20)
    guess = [*text[:24], wrong]  # the 25th token is guessed wrong
    branches = [Branch(24, tuple(text[24:27])), Branch(24, (text[25],)), Branch(25, (text[25],))]
    rows, ends = model.branch_logits(guess, 1, branches, 20)
    assert rows.argmax(-1).item() not in text
    right, *others = ends.argmax(-1).tolist()
    assert right == text[27]
    assert not {*others} & {*text}
    assert model.rows == 3 + 5


def test_the_second_choice_is_right_as_often_as_asked() -> None:
    replay = Replay(_trace(False, 1000), second=0.7)
    text = [*replay.prompt, *replay.answer]
    top = replay.draft().logits(text[:-1], 1000, 20).topk(2).indices
    assert not (top[:, 0] == torch.tensor(replay.answer)).any()
    right = (top[:, 1] == torch.tensor(replay.answer)).float().mean()
    assert right == pytest.approx(0.7, abs=0.05)
