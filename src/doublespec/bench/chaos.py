"""The promise while the draft's process is killed or stopped: real processes, real signals.

`attack` answers prompts with the methods that draft in a process, while a thread kills or stops
that process at random moments, and compares every answer with plain decoding. `Census` counts what
is left behind, `memory_growth` says by how much the program has grown.
"""

import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from doublespec.bench.exactness import differences
from doublespec.drafting.background import DraftWarning
from doublespec.llm import LLM
from doublespec.sampling import SamplingParams

METHODS = ("double", "psd", "double@lock-step", "double@forks", "auto")
TEMPERATURES = (0.0, 0.7, 1.2)
TIMEOUT_SECONDS = 0.5  # a stopped draft is given up after that, so that it comes back in the test
_SETTLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Attacked:
    """One answer under attack: its tokens, how many differ, whether a draft had a part in it, how
    many signals fell meanwhile, and this program's memory afterwards."""

    tokens: int
    differences: int
    drafted: bool
    signals: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Leaks:
    """What a program has more of than before: processes, descriptors, threads."""

    processes: int
    descriptors: int
    threads: int

    @property
    def total(self) -> int:
        return self.processes + self.descriptors + self.threads


class Census:
    """What belongs to this program now."""

    def __init__(self) -> None:
        self._counts = _count()

    def leaks(self) -> Leaks:
        """What has been added since, after a moment for what is just ending."""
        stop = time.monotonic() + _SETTLE_SECONDS
        while any(self._added()) and time.monotonic() < stop:
            time.sleep(0.05)
        return Leaks(*self._added())

    def _added(self) -> list[int]:
        pairs = zip(_count(), self._counts, strict=True)
        return [max(0, now - before) for now, before in pairs]


def _count() -> tuple[int, int, int]:
    own = psutil.Process()
    return len(own.children(recursive=True)), own.num_fds(), threading.active_count()


def attack(
    load: Callable[[], LLM], prompts: Sequence[Sequence[int]], count: int, seed: int
) -> Iterator[Attacked]:
    """Answers `count` times; the methods, temperatures, seeds and moments of attack are random."""
    chance = random.Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DraftWarning)
        with load() as llm:
            llm.engine.prepare("auto", wait=True)  # what is loaded once is no growth of memory
            for number in range(count):
                prompt = list(prompts[number % len(prompts)])
                params = SamplingParams(
                    temperature=chance.choice(TEMPERATURES),
                    seed=chance.randrange(1000),
                    max_tokens=chance.choice([24, 96, 160]),
                )
                plain = llm.generate(prompt, params, method="ar")
                if number % 2:  # else it may still be on its way back
                    llm.engine.wait_for_draft()
                with _attacker(chance.randrange(1 << 30), plain.stats.seconds) as fallen:
                    completion = llm.generate(prompt, params, method=chance.choice(METHODS))
                yield Attacked(
                    len(completion.tokens),
                    differences(completion.tokens, plain.tokens),
                    completion.stats.draft_acceptance is not None,
                    len(fallen),
                    psutil.Process().memory_info().rss,
                )


@contextmanager
def _attacker(seed: int, longest_calm: float) -> Iterator[list[int]]:
    """Signals to the draft's process, from a thread, for as long as the context lasts, at most so
    many seconds apart: an answer takes about as long."""
    chance, over, fallen = random.Random(seed), threading.Event(), list[int]()

    def run() -> None:
        while not over.wait(longest_calm * chance.random()):
            kind = chance.choice([signal.SIGKILL, signal.SIGSTOP])
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    child.send_signal(kind)
                    fallen.append(kind)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield fallen
    finally:
        over.set()
        thread.join()


def memory_growth(answers: Sequence[Attacked]) -> float:
    """By what share memory has grown since a fifth of the answers was given."""
    first = answers[len(answers) // 5].memory_bytes
    return answers[-1].memory_bytes / first - 1
