"""A lock that another thread has."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def held_by_another_thread(lock: Any) -> Iterator[None]:
    held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            may_end.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(30)
        yield
    finally:
        may_end.set()
        thread.join()
