"""Ranks: processes that compute one model together. Knows processes and sums, no models.

The calling process is rank 0 and leads: before each computation it tells the others what all are
about to do (`Team.leading`). The others are its children and end when it does, however it ends: a
thread of theirs listens for nothing but the end of their connection. If one of them ends first, or
does not take part, the team is lost, and rank 0 gets a ModelError. A team's group is its own, so
that a program may have several teams, and a torch.distributed of its own.
"""

import contextlib
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from doublespec.errors import ConfigError, DoubleError, ModelError, reason

_PATIENCE_SECONDS = 60  # for a rank that does not take part; all of them do the same work
_CLOSE_SECONDS = 1.0

_open_teams: "weakref.WeakSet[Team]" = weakref.WeakSet()


class OutOfTouch(Exception):
    """A sum did not come about, since another rank did not take part."""


class Group:
    """Sums over all ranks: the same bits on each of them, for any number of rows.

    What is exchanged are the summands, which every rank adds up in the order of ranks, in float32:
    an all-reduce adds in an order of its own, which may change with the size of the message. For
    the few rows of a step that is as cheap. Summands travel in the model's own precision.
    """

    def __init__(self, place: "Place", patience_seconds: float) -> None:
        """Waits until all ranks are there; raises OutOfTouch."""
        self._count = place.count
        self._device = place.device
        self._is_aborted = False
        store = dist.FileStore(place.store, place.count)  # type: ignore[attr-defined]
        kind = _nccl if place.device.type == "cuda" else _gloo
        with _out_of_touch():
            self._group = kind(store, place.rank, place.count, timedelta(seconds=patience_seconds))

    def sum(self, summand: Tensor) -> Tensor:
        """The sum of what all ranks call this with, (n, size) each; raises OutOfTouch."""
        parts = summand.new_empty((self._count * len(summand), summand.shape[1]))
        with _out_of_touch():
            self._group._allgather_base(parts, summand.contiguous()).wait()
        first, *others = parts.chunk(self._count)
        total = first.float()
        for other in others:
            total += other
        return total.to(summand.dtype)

    def finish(self) -> None:
        """Waits for the sums that the device is still at; raises OutOfTouch."""
        if self._device.type == "cuda":
            with _out_of_touch():
                torch.cuda.synchronize(self._device)
        if self._is_aborted:
            raise OutOfTouch("a process has ended")

    def abort(self) -> None:
        """A rank has ended: lets go who waits for it. Connections of gloo notice by themselves,
        NCCL would wait on."""
        self._is_aborted = True
        if self._device.type == "cuda":
            self._group.abort()


@contextlib.contextmanager
def _out_of_touch() -> Iterator[None]:
    """What torch.distributed raises is of one meaning here."""
    try:
        yield
    except RuntimeError as error:
        raise OutOfTouch(reason(error)) from error


def _gloo(store: Any, rank: int, count: int, patience: timedelta) -> Any:
    gloo: Any = dist.ProcessGroupGloo  # whose options its types do not name
    options = gloo._Options()
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    options._timeout = patience
    return gloo(store, rank, count, options)


def _nccl(store: Any, rank: int, count: int, patience: timedelta) -> Any:
    options: Any = dist.ProcessGroupNCCL.Options()
    options._timeout = patience
    return dist.ProcessGroupNCCL(store, rank, count, options)


@dataclass(frozen=True, slots=True)
class Place:
    """Which of `count` ranks a process is, and where: its device, and the file by which ranks find
    each other."""

    rank: int
    count: int
    device: torch.device
    store: str


class Member:
    """A follower's side: rank 1 and up."""

    def __init__(self, place: Place, patience_seconds: float, connection: Connection) -> None:
        self.place = place
        self._patience_seconds = patience_seconds
        self._connection = connection

    def meet(self) -> Group:
        """The group, as soon as the leader wants to make it: reading a model takes its time."""
        self._connection.recv()
        return Group(self.place, self._patience_seconds)

    def send(self, message: object) -> None:
        self._connection.send(message)

    def receive(self) -> Any:
        return self._connection.recv()


Job = Callable[[Member], None]  # importable by name, so that a child can have it


@dataclass(frozen=True, slots=True)
class _Failed:
    """What a follower says last."""

    reason: str


class Team:
    """Rank 0's side. Closed when it is no longer referred to, at the latest."""

    def __init__(self, job: Job, devices: Sequence[torch.device], threads: int) -> None:
        """Starts a child for each device but the first, on so many threads each."""
        folder = tempfile.mkdtemp(prefix="doublespec-")
        store = str(Path(folder) / "store")
        places = [Place(i, len(devices), device, store) for i, device in enumerate(devices)]
        self._place = places[0]
        self._patience_seconds = _PATIENCE_SECONDS
        self._pid = os.getpid()
        self._lost: str | None = None
        self._group: Group | None = None
        self._followers: list[_Follower] = []
        self._end = weakref.finalize(self, _end, self._followers, self._pid, folder)
        _open_teams.add(self)
        for place in places[1:]:
            self._followers.append(_Follower(place))
            self._followers[-1].connection.send((job, place, threads, self._patience_seconds))

    def hear(self) -> list[Any]:
        """A message from each follower. Raises ModelError if one ends before."""
        messages = []
        for follower in self._followers:
            try:
                messages.append(follower.connection.recv())
            except (EOFError, OSError) as error:
                raise ModelError(self._lose(self._cause(error))) from error
            if isinstance(messages[-1], _Failed):
                self.close()
                raise ModelError(messages[-1].reason)
        return messages

    def meet(self) -> Group:
        """Makes the group, as every follower must, too. Raises ModelError."""
        try:
            for follower in self._followers:
                follower.connection.send("meet")
            self._group = Group(self._place, self._patience_seconds)
        except (OSError, OutOfTouch) as error:
            raise ModelError(self._lose(self._cause(error))) from error
        for follower in self._followers:
            follower.watch(self._group)
        return self._group

    def tell(self, message: object) -> None:
        """Tells all followers, who will hear it in time. Raises ModelError."""
        with self.leading(message):
            pass

    @contextlib.contextmanager
    def leading(self, message: object) -> Iterator[None]:
        """The followers do what the message says, while the caller does the same.

        Either all get to the end of it, or the team is lost, since ranks that have not done the
        same are of no use to each other. So Ctrl-C waits for the end; on any other error the team
        is closed. Raises ModelError if a follower has ended or does not take part.
        """
        self._check()
        with _uninterrupted():
            try:
                for follower in self._followers:
                    follower.connection.send(message)
                yield
                if self._group is not None:
                    self._group.finish()
                self._check()
            except (OSError, OutOfTouch) as error:
                raise ModelError(self._lose(self._cause(error))) from error
            except BaseException:
                self._lose("a computation was broken off in the middle")
                raise

    def close(self) -> None:
        """Ends the followers; may be called again."""
        self._lost = self._lost or "the model was closed"
        self._end()

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise ModelError(
                "the ranks of the target belong to the process that loaded it, and this is a fork "
                "of it; load the model here"
            )
        if self._lost is not None:
            raise ModelError(self._lose(self._lost))
        if any(follower.child.poll() is not None for follower in self._followers):
            raise ModelError(self._lose(self._cause(OutOfTouch("a process has ended"))))

    def _lose(self, why: str) -> str:
        """Closes the team, and says why in a sentence."""
        self._lost = self._lost or why
        self.close()
        return f"the ranks of the target have ended: {self._lost}; load it again"

    def _cause(self, error: Exception) -> str:
        """What the first follower that failed has to say; if none has, what went wrong here."""
        for follower in self._followers:
            if (last := follower.last_words()) is not None:
                return f"rank {follower.place.rank} on {follower.place.device}: {last}"
        return f"they are out of touch ({reason(error)})"


class _Follower:
    """A child process, and the connection to it."""

    def __init__(self, place: Place) -> None:
        ours, theirs = socket.socketpair()
        # To a stopped process, sending must not wait for ever.
        ours.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _PATIENCE_SECONDS, 0)
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        # Ctrl-C is the leader's business from the first moment on.
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            f"from {__name__} import main; main({theirs.fileno()})"
        )
        self.place = place
        with theirs:
            self.child = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        self.connection = Connection(os.dup(ours.fileno()))
        self._socket = ours
        self._watcher: threading.Thread | None = None

    def watch(self, group: Group) -> None:
        """From now on, its end ends waiting for it."""
        self._watcher = threading.Thread(
            target=_after_the_end_of, args=(self._socket.fileno(), group.abort), daemon=True
        )
        self._watcher.start()

    def last_words(self) -> str | None:
        """Why it has ended; None if it has not, or has only gone after another one."""
        try:
            code = self.child.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            return None
        with contextlib.suppress(EOFError, OSError):
            while self.connection.poll():
                if isinstance(message := self.connection.recv(), _Failed):
                    return message.reason
        return f"its process ended with exit code {code}" if code else None

    def end(self) -> None:
        """It goes by itself when its connection ends, and is killed if it does not."""
        with contextlib.suppress(OSError):  # it may have gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self.child.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        if self._watcher is not None:
            self._watcher.join()
        self.drop()

    def drop(self) -> None:
        """Closes this process' copy of the connection."""
        self.connection.close()
        self._socket.close()


def _after_the_end_of(fileno: int, act: Callable[[], None]) -> None:
    """Waits until a connection has ended, and no more than that, then acts."""
    poll = select.poll()
    poll.register(fileno, 0)
    poll.poll()
    act()


def _end(followers: list[_Follower], parent: int, folder: str) -> None:
    """Ends the children; a process that was forked from the parent only closes its copies."""
    if os.getpid() != parent:
        for follower in followers:
            follower.drop()
            follower.child.returncode = 0  # it is not ours to wait for
        return
    with _uninterrupted():  # nobody asks again
        for follower in followers:
            follower.end()
        shutil.rmtree(folder, ignore_errors=True)


def _close_copies() -> None:
    """After a fork: a copy of a connection would keep ranks from seeing that their leader ended."""
    for team in list(_open_teams):
        team.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of what is within. Python interrupts its main thread only."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def check_not_launched() -> None:
    """Raises ConfigError in one of several processes of torchrun, each of which would start ranks
    of its own on the same devices."""
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "several target devices are asked for in each of "
            f"{os.environ['WORLD_SIZE']} processes of torchrun; start one process without "
            "torchrun, it starts the others by itself"
        )


def main(fileno: int) -> None:
    """A follower: does its job, and ends at once when its connection closes, whatever it is at."""
    connection = Connection(fileno)
    try:
        job, place, threads, patience_seconds = connection.recv()
    except (EOFError, ConnectionError):  # the leader has gone before it said what to do
        return
    threading.Thread(
        target=_after_the_end_of, args=(fileno, lambda: _leave(place, 0)), daemon=True
    ).start()
    torch.set_num_threads(threads)
    if place.device.type == "cuda":
        torch.cuda.set_device(place.device)
    try:
        job(Member(place, patience_seconds, connection))
    except (EOFError, ConnectionError, OutOfTouch):
        _leave(place, 0)  # the leader has gone, or another one, which has more to say about it
    except Exception as error:
        kind = "" if isinstance(error, DoubleError) else f"{type(error).__name__}: "
        with contextlib.suppress(OSError):
            connection.send(_Failed(kind + reason(error)))
    _leave(place, 1)


def _leave(place: Place, code: int) -> None:
    """Ends this process without its destructors, in which NCCL may wait for the others; clears up
    after a leader that was killed."""
    shutil.rmtree(Path(place.store).parent, ignore_errors=True)
    os._exit(code)
