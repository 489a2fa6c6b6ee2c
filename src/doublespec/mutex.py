"""A lock under which things are tidied up from anywhere.

What Python's garbage collector finalises runs in the middle of whatever a thread is doing, also of
what it does under a lock: there, to wait for that lock would be to wait for ever. So nobody waits
to tidy up: who holds the lock does it after letting go.
"""

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable


class Mutex:
    """`with mutex.lock: ...`, then `mutex.catch_up()`. (An interrupt cannot fall between taking
    such a lock and the block under it, as it could if this were a context manager itself.) In a
    process that was forked nobody holds it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._later: deque[Callable[[], None]] = deque()
        _every.add(self)

    def tidy(self, action: Callable[[], None]) -> None:
        """Does it while nobody holds the lock: now, or when its holder catches up."""
        self._later.append(action)
        self.catch_up()

    def catch_up(self) -> None:
        """Does what is left to do, unless somebody holds the lock, who will."""
        lock = self.lock
        while self._later and not _is_owned(lock):
            try:
                if not lock.acquire(blocking=False):
                    return
                while self._later:
                    self._later.popleft()()
            finally:  # an interrupt may have come as soon as it was taken
                if _is_owned(lock):
                    lock.release()

    def forget_holder(self) -> None:
        """After a fork: the thread that held it is not there any more."""
        self.lock = threading.RLock()


def _is_owned(lock: "threading.RLock") -> bool:
    """Whether this very thread holds it (as `threading.Condition` asks)."""
    return bool(lock._is_owned())  # type: ignore[attr-defined]


_every: "weakref.WeakSet[Mutex]" = weakref.WeakSet()


def _forget_holders() -> None:
    for mutex in list(_every):
        mutex.forget_holder()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_holders)
