"""Drafts in the background: what they draft, what becomes of them when they fail, and what is left
when they end."""

import contextlib
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from doublespec.decoding import Step, decode_parallel
from doublespec.drafting.background import DraftWarning, Patience, RemoteDrafter, StyledDrafter
from doublespec.drafting.base import NoDrafter, Pending
from doublespec.drafting.links import InlineLink, ThreadLink
from doublespec.drafting.messages import FromDraft
from doublespec.drafting.model import ModelDrafter
from doublespec.drafting.tree import DraftTree
from doublespec.models.toy import ToyModel
from doublespec.sampling import Request, SamplingParams
from doublespec.stopping import StopRule
from tests.drafts import (
    FREE,
    LOCKSTEP,
    failing,
    in_process,
    inline,
    threaded,
    toy,
    toy_ahead,
    unbuildable,
)

REQUEST = Request(SamplingParams(), 2)
TEXT = [3, 1, 4, 1, 5, 9, 2, 6]
SHORT = Patience(answer_seconds=0.3)


def _true(text: list[int], count: int, request: Request = REQUEST) -> list[int]:
    """What the toys say."""
    return ModelDrafter(ToyModel(), count, NoDrafter()).propose(text, count, request)


def _guess(background: StyledDrafter, text: list[int], request: Request = REQUEST) -> list[int]:
    """What is drafted after a text, given the time for it: it is asked twice."""
    background.follow(text, 8, request)
    return background.follow(text, 8, request).tokens


@pytest.fixture(scope="module")
def process() -> Iterator[StyledDrafter]:
    background = in_process()
    yield background
    background.close()


def test_all_kinds_draft_the_same(process: StyledDrafter) -> None:
    thread = threaded()
    assert _guess(inline(), TEXT) == _true(TEXT, 4)
    assert _guess(thread, TEXT) == _true(TEXT, 4)
    assert _guess(process, TEXT) == _true(TEXT, 4)
    thread.close()


def test_a_process_follows_a_text_that_grows_shrinks_and_changes(process: StyledDrafter) -> None:
    for text in (TEXT, TEXT[:3], [*TEXT[:3], 9, 9], [8], TEXT * 20, TEXT):
        assert _guess(process, text)[:4] == _true(text, 4)


def test_what_holds_of_a_draft_is_kept_and_the_rest_is_dropped() -> None:
    background = inline()
    drafted = _guess(background, TEXT)
    kept = background.follow([*TEXT, *drafted[:2]], 8, REQUEST)
    assert kept.tokens[:2] == drafted[2:4]
    assert kept.foreseen is None
    other = (kept.tokens[0] + 1) % 32
    dropped = background.follow([*TEXT, *drafted[:2], other], 8, REQUEST)
    assert dropped.tokens == []
    assert dropped.foreseen is False


def test_forwards_are_told_with_their_times_and_tokens(process: StyledDrafter) -> None:
    begun = time.perf_counter()
    process.follow([7, *TEXT], 8, REQUEST)
    forwards = process.follow([7, *TEXT], 8, REQUEST).forwards
    assert [token for f in forwards for token in f.tokens][:4] == _true([7, *TEXT], 4)
    assert all(begun < f.begun and f.seconds > 0 and f.rows >= 1 for f in forwards)
    assert [f.start for f in forwards][:4] == [9, 10, 11, 12]


def test_sampling_parameters_reach_the_process(process: StyledDrafter) -> None:
    warm = Request(SamplingParams(temperature=1.5, seed=3), 2)
    assert _guess(process, TEXT, warm)[:4] == _true(TEXT, 4, warm) != _true(TEXT, 4)


def test_a_free_draft_goes_ahead_by_itself() -> None:
    """Nobody waits for it, and it does not wait to be asked again."""
    background = in_process(toy_ahead, FREE)
    background.follow(TEXT, 20, REQUEST)
    deadline = time.monotonic() + 20
    pending = background.follow(TEXT, 20, REQUEST)
    while len(pending.tokens) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
        pending = background.follow(TEXT, 20, REQUEST)
    assert len(pending.tokens) == 20
    background.close()


def test_closing_is_prompt_and_leaves_no_process_and_no_descriptor() -> None:
    before = _resources()
    background = in_process()
    assert _guess(background, TEXT)
    assert _resources() > before
    begun = time.monotonic()
    background.close()
    background.close()
    assert time.monotonic() - begun < 1.0
    assert _resources() == before


def test_a_thread_ends_with_its_drafter() -> None:
    before = threading.active_count(), psutil.Process().num_fds()
    background = threaded()
    assert _guess(background, TEXT)
    background.close()
    assert (threading.active_count(), psutil.Process().num_fds()) == before


def test_a_thread_that_hangs_or_loads_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the answer, when it is given up, nor the end of the program."""
    let_go = threading.Event()
    forward = ToyModel.logits

    def hang(model: ToyModel, *arguments: Any) -> Any:
        if model.forwards == 4:
            let_go.wait(20)
        return forward(model, *arguments)

    monkeypatch.setattr(ToyModel, "logits", hang)
    remote = RemoteDrafter(lambda: ThreadLink(toy), SHORT)
    background = StyledDrafter(remote, LOCKSTEP)
    begun = time.monotonic()
    with pytest.warns(DraftWarning, match="does not answer"):
        for stop in range(5, 9):
            background.follow(TEXT[:stop], 8, REQUEST)
    background.close()
    loading = threaded(lambda: let_go.wait(20) and toy())
    loading.remote.launch()
    loading.close()
    assert time.monotonic() - begun < 10
    let_go.set()


def test_a_forked_process_does_not_keep_a_thread_from_ending() -> None:
    """It has a copy of the sockets."""
    background = threaded()
    _guess(background, TEXT)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    background.close()
    assert "doublespec-draft" not in [thread.name for thread in threading.enumerate()]
    os.close(writing)
    os.close(reading)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_thread_that_cannot_be_begun_is_a_draft_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.warns(DraftWarning, match="can't start new thread"):
        assert threaded().follow(TEXT, 8, REQUEST).tokens == []


def test_an_interrupt_while_it_closes_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a draft that is stopped and so does not end by itself; closing it again does nothing."""
    background = in_process()
    _guess(background, TEXT)
    child = _child()
    child.suspend()
    wait = subprocess.Popen.wait

    def interrupted(process: Any, timeout: float | None = None) -> int:
        if timeout is not None:
            raise KeyboardInterrupt
        return wait(process)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        background.close()
    assert not child.is_running()


def test_a_stream_that_ends_in_a_forked_process_warns_of_nothing() -> None:
    background = in_process(style=FREE)
    _guess(background, TEXT)
    pid = os.fork()
    if pid == 0:
        code = 1
        with warnings.catch_warnings(), contextlib.suppress(BaseException):
            warnings.simplefilter("error")
            background.rest()
            code = 0
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    background.close()


@pytest.mark.parametrize("ask", ["is_ready", "wait_until_ready", "wait", "rest"])
def test_an_interrupt_while_it_listens_or_speaks_costs_a_draft_and_no_patience(
    ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the draft is ready is said once: who was interrupted in the middle of hearing it would
    wait for it in vain."""
    background = inline()
    remote = background.remote
    if ask in ("wait", "rest"):
        remote.wait_until_ready()
    method = {"rest": "_send", "wait": "_await_tokens"}.get(ask, "_hear")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    pending = Pending([], text=remote._text_number)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RemoteDrafter, method, interrupted)
        patch.setattr(RemoteDrafter, "_is_drafting_on", True)
        patch.setattr(remote.pace, "may_wait", lambda shown: True)
        if ask == "wait":
            background.wait(pending, 0, 8)
        else:
            getattr(remote, ask)()
    assert remote._link is None
    assert _guess(background, TEXT) == _true(TEXT, 4)


def test_an_interrupt_while_it_closes_leaves_no_answer_to_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a worker that is gone; the next one was not told anything yet."""
    remote = RemoteDrafter(lambda: InlineLink(toy), SHORT)
    background = StyledDrafter(remote, LOCKSTEP)
    _guess(background, TEXT)

    def interrupted(tree: DraftTree) -> None:
        raise KeyboardInterrupt

    remote._told += 1  # a message that is not answered yet
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DraftTree, "clear", interrupted)
        background.close()
    assert remote.wait_until_ready()
    assert _guess(background, TEXT) == _true(TEXT, 4)  # and no warning that it does not answer


def test_a_closed_drafter_starts_again_when_it_is_asked() -> None:
    background = in_process()
    wanted = _guess(background, TEXT)
    background.close()
    assert _until_it_drafts(background) == wanted
    background.close()


def test_a_draft_that_raises_warns_once_and_drafts_nothing() -> None:
    for background in (in_process(failing), threaded(failing), inline(failing)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert _guess(background, TEXT) == _true(TEXT, 4)
            for i in range(3):
                assert _guess(background, [*TEXT, i]) == []
        assert [warning.category for warning in caught] == [DraftWarning]
        assert "out of luck" in str(caught[0].message)
        background.close()


def test_a_killed_draft_comes_back_by_itself() -> None:
    background = in_process()
    wanted = _guess(background, TEXT)
    child = _child()
    child.kill()
    child.wait()
    with pytest.warns(DraftWarning, match="process ended"):
        assert background.follow(TEXT, 8, REQUEST).tokens == []
    assert _until_it_drafts(background) == wanted
    assert _child().pid != child.pid
    background.close()
    assert not psutil.pid_exists(child.pid)


def test_a_draft_that_hangs_is_given_up_and_begun_again() -> None:
    background = in_process(toy, patience=SHORT)
    wanted = _guess(background, TEXT)
    child = _child()
    child.suspend()
    with pytest.warns(DraftWarning, match="does not answer"):
        assert _guess(background, [*TEXT, 5]) == []
    assert _until_it_drafts(background) == wanted
    background.close()
    assert not psutil.pid_exists(child.pid)


def test_a_free_target_never_waits_for_a_draft_that_hangs() -> None:
    background = in_process(toy_ahead, FREE, Patience(answer_seconds=0.2))
    background.follow(TEXT, 8, REQUEST)
    child = _child()
    child.suspend()
    begun = time.monotonic()
    for i in range(3000):  # more than a socket holds
        background.follow([*TEXT, *([i % 32] * 40)], 8, REQUEST)
        if time.monotonic() - begun > 0.15:
            break
    assert time.monotonic() - begun < 0.5
    time.sleep(0.2)
    with pytest.warns(DraftWarning, match="does not answer"):
        for i in range(12):
            background.follow([*TEXT, i], 8, REQUEST)
    background.close()
    assert not psutil.pid_exists(child.pid)


def test_a_draft_that_never_starts_is_given_up_and_begun_again() -> None:
    background = in_process(patience=Patience(start_seconds=0.5, load_seconds=0.2))
    background.remote.launch()
    first = _child()
    first.suspend()
    with pytest.warns(DraftWarning, match="does not start"):
        assert background.follow(TEXT, 8, REQUEST).tokens == []
    assert not psutil.pid_exists(first.pid)
    background.remote._patience = Patience()
    assert _until_it_drafts(background) == _true(TEXT, 4)
    background.close()


def test_it_says_how_long_a_draft_loads() -> None:
    """Until it has, or is given up."""
    said: list[bool] = []
    background = in_process(patience=Patience(load_seconds=0.2))
    remote = background.remote
    remote._loads = said.append
    remote.launch()
    remote.launch()
    assert said == [True]
    _child().suspend()
    time.sleep(0.3)
    with pytest.warns(DraftWarning, match="does not start"):
        remote.hear_if_loading()
    assert said == [True, False]
    remote.hear_if_loading()
    assert said == [True, False], "it begins none"
    remote._patience = Patience()
    said.clear()
    stop = time.monotonic() + 60
    while not remote.is_ready() and time.monotonic() < stop:
        time.sleep(0.01)
    assert said == [True, False]
    background.close()


def test_a_draft_that_cannot_be_built_is_left_out() -> None:
    background = in_process(unbuildable)
    with pytest.warns(DraftWarning, match="no such model"):
        assert _guess(background, TEXT) == []
    background.close()


def test_a_draft_that_is_forgotten_leaves_no_process() -> None:
    background = in_process()
    assert _guess(background, TEXT)
    child = _child()
    del background
    gc.collect()
    assert not psutil.pid_exists(child.pid)


def test_an_interrupt_in_the_middle_loses_the_draft_and_nothing_else() -> None:
    background = in_process()
    wanted = _guess(background, TEXT)

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    background.remote._tell = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        background.follow([*TEXT, 1], 8, REQUEST)
    del background.remote._tell  # type: ignore[attr-defined]
    assert _until_it_drafts(background) == wanted
    background.close()


def test_a_forked_process_leaves_its_parents_draft_alone() -> None:
    background = in_process()
    wanted = _guess(background, TEXT)
    child = _child()
    pid = os.fork()
    if pid == 0:  # the fork: its first answer must not disturb the parent's
        code = 1
        with contextlib.suppress(BaseException):
            code = 0 if _until_it_drafts(background) == wanted else 2
            background.close()
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert child.is_running()
    assert _guess(background, TEXT)[:4] == wanted
    background.close()


def test_a_process_ends_with_its_parent() -> None:
    """A parent that is killed closes its sockets; nobody has to tell the child."""
    code = (
        "import os, signal, psutil\n"
        "from tests.test_background import REQUEST, TEXT\n"
        "from tests.drafts import in_process\n"
        "background = in_process()\n"
        "background.follow(TEXT, 8, REQUEST)\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(run.stdout)).wait(5)
    assert not psutil.pid_exists(int(run.stdout))


def test_a_process_does_not_import_what_its_model_does_not_need() -> None:
    """transformers takes seconds; the draft has been handed what a configuration says."""
    code = (
        "import sys\n"
        "import doublespec.drafting.links, doublespec.drafting.recipe\n"
        "sys.exit(bool({'transformers', 'huggingface_hub'} & {*sys.modules}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ctrl_c_ends_both_processes() -> None:
    """The terminal sends it to both; the child leaves it to its parent."""
    code = (
        "import psutil, signal\n"
        "from tests.test_background import REQUEST, TEXT\n"
        "from tests.drafts import in_process\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job's may be ignored
        "background = in_process()\n"
        "background.follow(TEXT, 8, REQUEST)\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "while True: background.follow(TEXT, 8, REQUEST)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    child = int(run.stdout.readline())
    os.killpg(run.pid, signal.SIGINT)
    try:
        _, said = run.communicate(timeout=10)
    finally:
        run.kill()
    assert said.count("\nKeyboardInterrupt") == 1
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(child).wait(5)
    assert not psutil.pid_exists(child)


def _child() -> psutil.Process:
    return max(psutil.Process().children(), key=psutil.Process.create_time)


def _until_it_drafts(background: StyledDrafter) -> list[int]:
    """What is drafted for one step after TEXT by a draft that is begun again."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if background.remote.wait_until_ready():  # else it may be told twice within `_guess`
            return _guess(background, TEXT)
        time.sleep(0.02)
    return []


def _resources() -> tuple[int, int]:
    own = psutil.Process()
    return len(own.children(recursive=True)), own.num_fds()


def _in_turns(remote: StyledDrafter, count: int) -> list[list[Step]]:
    """The steps of so many answers under way at once, which take their steps in turns."""
    answers = []
    for number in range(count):
        prompt = [number + 1, *TEXT]
        request = Request(SamplingParams(), len(prompt))
        drafter = StyledDrafter(remote.remote, LOCKSTEP)
        stop = StopRule(40)
        answers.append(decode_parallel(ToyModel(), drafter, NoDrafter(), prompt, request, stop, 8))
    found: list[list[Step]] = [[] for _ in answers]
    for steps in itertools.zip_longest(*answers):
        for place, step in enumerate(steps):
            found[place] += [step] if step else []
    return found


def test_of_answers_that_take_turns_one_keeps_the_draft() -> None:
    """They took it from each other at every step, so that each step began a text for the draft:
    37 steps for the 40 tokens of each answer."""
    for count in (2, 3):
        background = inline()
        begun = background.remote._text_number
        found = _in_turns(background, count)
        assert all(sum(len(step.new) for step in steps) == 40 for steps in found)
        assert min(len(steps) for steps in found) < 20
        assert background.remote._text_number - begun < 4 * count


def test_a_text_whose_owner_is_gone_gets_the_draft() -> None:
    background = inline()
    mine, others = [1, *TEXT], [2, *TEXT]
    for _ in range(4):
        mine.append(1)
        refused = background.follow(mine, 8, REQUEST).text == 0
        others.append(2)
        background.follow(others, 8, REQUEST)
    assert refused  # the other one has the draft, and is not asked for any more
    for _ in range(8):
        mine.append(1)
        background.follow(mine, 8, REQUEST)
    assert _guess(background, mine)[:4] == _true(mine, 4)


class OnlyTheLast(InlineLink):
    """A link that loses all that a worker says but its last message."""

    def __init__(self) -> None:
        super().__init__(toy_ahead)

    def receive(self, seconds: float) -> list[FromDraft]:
        while self._worker._draft is not None and not self._worker.is_idle():
            self._replies.append(self._worker.work())
        return super().receive(seconds)[-1:]


def test_messages_that_are_lost_are_made_good_by_the_next_one() -> None:
    """Its paths, and the forwards that were not heard of: each is told once."""
    background = StyledDrafter(RemoteDrafter(OnlyTheLast), FREE)
    background.follow(TEXT, 8, REQUEST)
    pending = background.follow(TEXT, 8, REQUEST)
    assert len(pending.tokens) == 8
    again = background.follow([*TEXT, *pending.tokens[:3]], 8, REQUEST)
    more = background.follow([*TEXT, *pending.tokens[:3]], 8, REQUEST)
    assert again.tokens == pending.tokens[3:]
    told = [f for p in (pending, again, more) for f in p.forwards]
    starts = [f.start for f in told if f.tokens]
    assert starts == list(range(len(TEXT), len(TEXT) + 11))
