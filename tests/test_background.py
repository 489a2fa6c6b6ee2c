"""Drafters in the background: what they answer, and what is left when they end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings

import psutil
import pytest

from doublespec.drafting.background import (
    DraftWarning,
    InlineBackground,
    ProcessBackground,
    ThreadBackground,
)
from doublespec.drafting.base import Drafter, NoDrafter
from doublespec.drafting.model import ModelDrafter
from doublespec.models.toy import ToyModel
from doublespec.sampling import Request, SamplingParams
from doublespec.tokens import Tokens

REQUEST = Request(SamplingParams(), 2)
TEXT = [3, 1, 4, 1, 5, 9, 2, 6]


def toy() -> Drafter:
    return ModelDrafter(ToyModel(), 4, NoDrafter())


class Failing:
    """Raises from the second guess on."""

    def __init__(self) -> None:
        self._guesses = 0

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        self._guesses += 1
        if self._guesses > 1:
            raise RuntimeError("out of luck")
        return [7]


def unbuildable() -> Drafter:
    raise OSError("no such model")


def _guess(background, tokens: list[int], limit: int = 8) -> list[int]:
    background.start(tokens, limit, REQUEST)
    return background.collect()


@pytest.fixture(scope="module")
def process():
    background = ProcessBackground(toy)
    yield background
    background.close()


def test_all_kinds_draft_the_same(process) -> None:
    wanted = toy().propose(TEXT, 8, REQUEST)
    thread = ThreadBackground(toy())
    assert _guess(InlineBackground(toy()), TEXT) == wanted
    assert _guess(thread, TEXT) == wanted
    assert _guess(process, TEXT) == wanted
    thread.close()


def test_a_process_follows_a_text_that_grows_shrinks_and_changes(process) -> None:
    for text in (TEXT, TEXT[:3], [*TEXT[:3], 9, 9], [8], TEXT * 20, TEXT):
        assert _guess(process, text) == toy().propose(text, 8, REQUEST)


def test_sampling_parameters_reach_the_process(process) -> None:
    warm = Request(SamplingParams(temperature=1.5, seed=3), 2)
    process.start(TEXT, 8, warm)
    assert process.collect() == toy().propose(TEXT, 8, warm)


def test_closing_is_prompt_and_leaves_no_process_and_no_descriptor() -> None:
    before = _resources()
    background = ProcessBackground(toy)
    assert _guess(background, TEXT)
    assert _resources() > before
    begun = time.monotonic()
    background.close()
    background.close()
    assert time.monotonic() - begun < 1.0
    assert _resources() == before


def test_a_closed_drafter_starts_again_when_it_is_asked() -> None:
    background = ProcessBackground(toy)
    wanted = _guess(background, TEXT)
    background.close()
    assert _guess(background, TEXT) == wanted
    background.close()


def test_a_drafter_that_raises_warns_once_and_answers_nothing() -> None:
    for background in (ProcessBackground(Failing), ThreadBackground(Failing())):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert _guess(background, TEXT) == [7]
            assert [_guess(background, TEXT) for _ in range(3)] == [[], [], []]
        assert [warning.category for warning in caught] == [DraftWarning]
        assert "out of luck" in str(caught[0].message)
        background.close()


def test_a_killed_process_costs_the_draft_and_nothing_else() -> None:
    background = ProcessBackground(toy)
    assert _guess(background, TEXT)
    child = max(psutil.Process().children(), key=psutil.Process.create_time)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.warns(DraftWarning, match="process ended"):
        assert _guess(background, TEXT) == []
    assert _guess(background, TEXT) == []
    background.close()
    assert not psutil.pid_exists(child.pid)


def test_a_drafter_that_cannot_be_built_is_left_out() -> None:
    background = ProcessBackground(unbuildable)
    with pytest.warns(DraftWarning, match="no such model"):
        assert _guess(background, TEXT) == []
    background.close()


def test_a_drafter_that_is_forgotten_leaves_no_process() -> None:
    background = ProcessBackground(toy)
    assert _guess(background, TEXT)
    child = max(psutil.Process().children(), key=psutil.Process.create_time)
    del background
    assert not psutil.pid_exists(child.pid)


def test_a_process_ends_with_its_parent() -> None:
    """A parent that is killed closes its pipes; nobody has to tell the child."""
    code = (
        "import os, signal, psutil\n"
        "from tests.test_background import ProcessBackground, TEXT, REQUEST, toy\n"
        "background = ProcessBackground(toy)\n"
        "background.start(TEXT, 8, REQUEST); background.collect()\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(run.stdout)).wait(5)
    assert not psutil.pid_exists(int(run.stdout))


def _resources() -> tuple[int, int]:
    own = psutil.Process()
    return len(own.children(recursive=True)), own.num_fds()
