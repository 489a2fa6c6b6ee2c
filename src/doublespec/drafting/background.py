"""Drafters that work while the target does: inline (for tests), in a thread, in a process.

The only file that knows processes and pipes. What crosses a pipe are token ids with absolute
positions, never tensors; a child process builds its own drafter from a recipe, and ends when its
pipe closes, so that it cannot outlive its parent. A drafter that fails answers "nothing".
"""

import contextlib
import os
import signal
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import torch

from doublespec.drafting.base import Drafter
from doublespec.sampling import Request
from doublespec.tokens import Tokens, common_prefix

Recipe = Callable[[], Drafter]  # builds a drafter; importable by name, so that a child can have it

_START_SECONDS = 600.0  # to load a large draft model from a slow disk
_ANSWER_SECONDS = 30.0  # for one guess: far beyond the slowest draft in use
_CLOSE_SECONDS = 0.5


class DraftWarning(UserWarning):
    """The draft failed; the answer goes on without it, slower and the same."""


# -- messages ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """The text is its old first `keep` tokens and then `tail`; draft up to `limit` tokens."""

    number: int
    keep: int
    tail: tuple[int, ...]
    limit: int
    request: Request


@dataclass(frozen=True, slots=True)
class Drafted:
    """The answer to the Begin of that number."""

    number: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """The child has built its drafter."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The child cannot go on; `text` says why."""

    text: str


_Reply = Ready | Drafted | Failed


# -- drafters ------------------------------------------------------------------------------------


class InlineBackground:
    """Drafts when asked to `collect`: no concurrency, for tests and for the simulator."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._work: Callable[[], list[int]] = list

    def start(self, tokens: Tokens, limit: int, request: Request) -> None:
        text = list(tokens)
        self._work = lambda: self._drafter.propose(text, limit, request)

    def collect(self) -> list[int]:
        return self._work()

    def close(self) -> None:
        self._work = list


class ThreadBackground:
    """Drafts in a thread of this process: for a draft on another device, whose work is not
    Python's."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="doublespec-draft")
        self._future: Future[list[int]] | None = None
        self._warn = _WarnOnce()

    def start(self, tokens: Tokens, limit: int, request: Request) -> None:
        self._future = self._pool.submit(self._drafter.propose, list(tokens), limit, request)

    def collect(self) -> list[int]:
        if self._future is None:
            return []
        future, self._future = self._future, None
        error = future.exception()
        if error is not None:
            self._warn(f"{type(error).__name__}: {error}")
            return []
        return future.result()

    def close(self) -> None:
        self._future = None
        self._pool.shutdown(wait=True, cancel_futures=True)


class ProcessBackground:
    """Drafts in a process of its own, which builds its drafter from `recipe`.

    The child starts at the first `start`. If it fails, dies or does not answer in time, the user
    is warned once and every later guess is empty.
    """

    def __init__(self, recipe: Recipe, threads: int = 1) -> None:
        self._recipe = recipe
        self._threads = threads
        self._end: Callable[[], object] | None = None  # also called when this object is lost
        self._pipe: Connection | None = None
        self._sent: list[int] = []  # the text as the child has it
        self._number = 0
        self._failed = False
        self._warn = _WarnOnce()

    def launch(self) -> None:
        """Starts the child and waits until it has built its drafter."""
        if self._pipe is not None or self._failed:
            return
        self._pipe, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import main; main({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        self._end = weakref.finalize(self, _end, self._pipe, child)
        self._send((self._recipe, self._threads))
        self._receive(_START_SECONDS)

    def start(self, tokens: Tokens, limit: int, request: Request) -> None:
        self.launch()
        text = list(tokens)
        keep = common_prefix(self._sent, text)
        self._number += 1
        self._send(Begin(self._number, keep, tuple(text[keep:]), limit, request))
        self._sent = text

    def collect(self) -> list[int]:
        while True:
            message = self._receive(_ANSWER_SECONDS)
            if not isinstance(message, Drafted):
                return []
            if message.number == self._number:
                return list(message.tokens)

    def close(self) -> None:
        self._pipe = None
        self._sent = []
        if self._end is not None:
            self._end()

    def _send(self, message: object) -> None:
        if self._pipe is None:
            return
        try:
            self._pipe.send(message)
        except OSError:
            self._fail("its process ended")

    def _receive(self, seconds: float) -> Ready | Drafted | None:
        """The next message; None if there is no child, or none that answers."""
        if self._pipe is None:
            return None
        try:
            answers = self._pipe.poll(seconds)
            message: _Reply = self._pipe.recv() if answers else Failed("it does not answer")
        except (EOFError, OSError):
            message = Failed("its process ended")
        if isinstance(message, Failed):
            self._fail(message.text)
            return None
        return message

    def _fail(self, reason: str) -> None:
        """Gives the child up."""
        self._failed = True
        self.close()
        self._warn(reason)


def _end(pipe: Connection, child: subprocess.Popen[bytes]) -> None:
    """Ends a child: it goes by itself when its pipe closes, and is killed if it does not."""
    pipe.close()
    try:
        child.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


class _WarnOnce:
    def __init__(self) -> None:
        self._warned = False

    def __call__(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            text = f"the draft failed and is left out ({reason}); the answer stays the same"
            warnings.warn(text, DraftWarning, stacklevel=3)


# -- the child -----------------------------------------------------------------------------------


def main(fileno: int) -> None:
    """Serves an inherited pipe until it closes; Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError), Connection(fileno) as pipe:
        try:
            _serve(pipe)
        except EOFError:
            return  # the parent has gone, or wants no more
        except Exception as error:
            pipe.send(Failed(f"{type(error).__name__}: {error}"))


def _serve(pipe: Connection) -> None:
    """Builds the drafter and answers every Begin."""
    recipe, threads = pipe.recv()
    torch.set_num_threads(threads)
    drafter = recipe()
    pipe.send(Ready())
    text: list[int] = []
    while True:
        message = pipe.recv()
        text = [*text[: message.keep], *message.tail]
        drafted = drafter.propose(text, message.limit, message.request)
        pipe.send(Drafted(message.number, tuple(drafted)))
