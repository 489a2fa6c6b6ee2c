"""Whole answers of the bundled pair while things go wrong: the same tokens, and nothing left."""

import itertools
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from doublespec.bench.chaos import Census, Leaks, attack, memory_growth
from doublespec.drafting.background import DraftWarning
from doublespec.llm import LLM

# Drafts of its answer are often wrong, and it is long enough to be disturbed in the middle.
PROMPT = """\
Sort this list from A to Z.
- pear
- fig
- apple
- cherry
- banana
- plum
- melon
- quince
- lemon
- orange
- grape
- kiwi"""
OTHER = "Convert this CSV to JSON:\nname,city\nAnna,Oslo\nTom,Paris\nLena,Rome"


def _load(**settings) -> LLM:
    return LLM("bundled", "bundled", threads=1, history_bytes=0, **settings)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with _load(method="double", draft_timeout=0.5) as llm:
        yield llm


def _messages(text: str = PROMPT) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _wait_for_draft(llm: LLM) -> None:
    """Also where one was lost so often that the next is begun only after a while."""
    stop = time.monotonic() + 60
    while not llm.engine.wait_for_draft():
        assert time.monotonic() < stop
        time.sleep(0.05)


def _draft(llm: LLM) -> psutil.Process:
    _wait_for_draft(llm)
    return max(psutil.Process().children(), key=psutil.Process.create_time)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_draft_that_is_lost_in_the_middle_changes_no_token(llm: LLM, how: signal.Signals) -> None:
    wanted = llm.chat(_messages(), method="ar").tokens
    assert len(wanted) > 30  # or the second piece is not in the middle
    child = _draft(llm)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream = llm.stream_chat(_messages())
        for place, _ in enumerate(stream):
            if place == 1:
                os.kill(child.pid, how)
        assert stream.completion.tokens == wanted
        assert llm.chat(_messages()).tokens == wanted
    assert sum(warning.category is DraftWarning for warning in caught) <= 1
    if how == signal.SIGKILL:
        assert _draft(llm).pid != child.pid
    else:  # it goes on, unless the answers took so long that another one was begun
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGCONT)
        _wait_for_draft(llm)
    stop = time.monotonic() + 60
    while (completion := llm.chat(_messages())).stats.draft_acceptance is None:
        assert time.monotonic() < stop  # it takes part again, if not at once on a busy machine
    assert completion.tokens == wanted


def test_an_answer_that_is_dropped_half_way_leaves_the_next_one_alone(llm: LLM) -> None:
    wanted = llm.chat(_messages(), method="ar").tokens
    for take in (1, 2, 5):
        stream = llm.stream_chat(_messages(OTHER))
        list(itertools.islice(stream, take))
        del stream
        assert llm.chat(_messages()).tokens == wanted


def test_two_answers_at_a_time_of_two_llms_do_not_meet(llm: LLM) -> None:
    wanted = [llm.chat(_messages(text), method="ar").tokens for text in (PROMPT, OTHER)]
    with _load(method="double") as second:
        streams = [
            llm.stream_chat(_messages(PROMPT)),
            second.stream_chat(_messages(OTHER)),
            llm.stream_chat(_messages(OTHER)),
        ]
        for _ in itertools.zip_longest(*streams):
            pass
        found = [stream.completion.tokens for stream in streams]
    assert found == [wanted[0], wanted[1], wanted[1]]


def test_an_llm_in_a_forked_process_answers_too(llm: LLM) -> None:
    wanted = llm.chat(_messages(), method="ar").tokens
    child = _draft(llm)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if llm.chat(_messages()).tokens == wanted else 2
            llm.close()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert child.is_running()
    assert llm.chat(_messages()).tokens == wanted


FORK = """
import os, sys
from doublespec import LLM
with LLM("bundled", method="lookup", threads=2, history_bytes=0) as llm:
    wanted = llm.generate("Once upon a time", max_tokens=8).tokens
    pid = os.fork()
    found = llm.generate("Once upon a time", max_tokens=8).tokens
    if pid == 0:
        os._exit(0 if found == wanted else 2)
    sys.exit(os.waitpid(pid, 0)[1] or found != wanted)
"""


def test_a_process_that_was_forked_after_products_in_several_threads_answers() -> None:
    """Threads of a product do not come along; who waits for them waits for ever."""
    assert subprocess.run([sys.executable, "-c", FORK], timeout=120, check=False).returncode == 0


def test_attacks_change_nothing_and_closing_leaves_nothing(llm: LLM) -> None:
    """`lossless --chaos`, in small."""
    prompts = [llm.codec.encode_chat(_messages(text)) for text in (PROMPT, OTHER)]
    census = Census()
    answers = list(attack(lambda: _load(draft_timeout=0.5), prompts, 4, seed=1))
    assert len(answers) == 4
    assert [answer.differences for answer in answers] == [0] * 4
    assert sum(answer.signals for answer in answers) > 0
    assert census.leaks() == Leaks(0, 0, 0)
    assert memory_growth(answers) < 1.0


def test_a_census_sees_what_is_left_behind() -> None:
    census = Census()
    with Path(os.devnull).open() as file:
        assert census.leaks().descriptors == 1
        assert not file.closed
    assert census.leaks().total == 0
