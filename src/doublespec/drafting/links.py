"""Ways to a worker: in a process of its own, in a thread, in this very call. The only file that
knows processes and threads.

A child process builds its own draft from a recipe and ends when its socket closes, so that it
cannot outlive its parent.
"""

import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable

import torch

from doublespec.drafting.channel import Channel, ChannelLost
from doublespec.drafting.messages import FromDraft, Ready, ToDraft
from doublespec.drafting.worker import Worker, serve
from doublespec.models.devices import usable_cores

Recipe = Callable[[], Worker]  # importable by name, so that a child can have it

_CLOSE_SECONDS = 0.3
_AWAKE_SECONDS = 1e-4  # of a process that waits, where there is a core for each of the two

# Ctrl-C is the parent's business, also while the child imports torch, which takes a fourth longer
# where garbage is looked for meanwhile.
_CHILD = (
    "import gc, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); gc.disable(); "
    f"from {__name__} import main; main({{}})"
)

_open_links: "weakref.WeakSet[ProcessLink | ThreadLink]" = weakref.WeakSet()


class ProcessLink:
    """To a worker in a process of its own."""

    def __init__(self, recipe: Recipe, threads: int) -> None:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-c", _CHILD.format(theirs.fileno())],
                pass_fds=[theirs.fileno(), *getattr(recipe, "fds", ())],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        self._channel = Channel(ours, _awake_seconds())
        self.pid = child.pid
        self._end = weakref.finalize(self, _end, self._channel, child, os.getpid())
        _open_links.add(self)
        self._channel.send((recipe, threads))

    def send(self, message: ToDraft) -> None:
        self._channel.send(message)

    def receive(self, seconds: float) -> list[FromDraft]:
        return self._channel.receive(seconds)

    def close(self) -> None:
        self._end()


def _end(channel: Channel, child: "subprocess.Popen[bytes]", parent: int) -> None:
    """Ends a child: it goes by itself when its socket closes, and is killed if it does not. A
    process that was forked from the parent only closes its copy of the socket."""
    if os.getpid() != parent:
        channel.close()
        child.returncode = 0  # it is not ours to wait for
        return
    try:
        channel.hang_up()
        child.wait(_CLOSE_SECONDS)
    except BaseException as error:  # time is over, or an interrupt, after which nobody asks again
        child.kill()
        child.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def _close_copies() -> None:
    """After a fork: a copy of a socket would keep the draft from seeing that its target is gone."""
    for link in list(_open_links):
        link.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)


def main(fileno: int) -> None:
    """The child: serves an inherited socket until it closes, and ends at once: it has nothing to
    tidy up, which takes Python with torch more than the 0.3 seconds that a close waits."""
    gc.freeze()  # what was imported is looked at no more
    gc.enable()
    channel = Channel(socket.socket(fileno=fileno), _awake_seconds())
    with contextlib.suppress(ChannelLost):
        recipe, threads = _first(channel)
        torch.set_num_threads(threads)
        serve(channel, recipe)
    os._exit(0)


def _awake_seconds() -> float:
    return _AWAKE_SECONDS if usable_cores() > 1 else 0.0


def _first(channel: Channel) -> tuple[Recipe, int]:
    messages = channel.receive(None)
    assert len(messages) == 1  # nothing more is sent before the draft is ready
    first: tuple[Recipe, int] = messages[0]
    return first


class ThreadLink:
    """To a worker in a thread of this process: for a draft on another device, whose work is not
    Python's."""

    def __init__(self, make: Recipe) -> None:
        ours, theirs = socket.socketpair()
        self._channel, self._far_end = Channel(ours), Channel(theirs)
        self._owner = os.getpid()
        self._thread = threading.Thread(
            target=_serve_and_close, args=(self._far_end, make), name="doublespec-draft"
        )
        self._thread.daemon = True
        try:
            self._thread.start()
        except RuntimeError as error:
            self._channel.close()
            self._far_end.close()
            raise ChannelLost(str(error)) from error
        _open_links.add(self)

    def send(self, message: ToDraft) -> None:
        self._channel.send(message)

    def receive(self, seconds: float) -> list[FromDraft]:
        return self._channel.receive(seconds)

    def close(self) -> None:
        """The thread ends when it next looks at its messages, which nobody waits for longer than
        for a process."""
        if os.getpid() != self._owner:  # forked from it: without the thread, with both sockets
            self._channel.close()
            self._far_end.close()
            return
        self._channel.hang_up()
        if self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_SECONDS)


def _serve_and_close(channel: Channel, make: Recipe) -> None:
    try:
        serve(channel, make)
    finally:
        channel.close()


class InlineLink:
    """To a worker that works when it is listened to: no concurrency, for tests."""

    def __init__(self, make: Recipe) -> None:
        self._worker = make()
        self._replies: list[FromDraft] = [Ready()]

    def send(self, message: ToDraft) -> None:
        self._replies += self._worker.take(message)

    def receive(self, seconds: float) -> list[FromDraft]:
        replies, self._replies = self._replies, []
        try:
            if seconds and not replies and not self._worker.is_idle():
                replies.append(self._worker.work())
        except Exception as error:
            raise ChannelLost(f"{type(error).__name__}: {error}") from error
        return replies

    def close(self) -> None:
        self._replies = []
