"""What is tidied up from anywhere waits for nobody, and nobody waits for a thread that is gone."""

import os
import threading

from doublespec.mutex import Mutex
from tests.locks import held_by_another_thread


def test_what_comes_while_the_lock_is_free_is_done_at_once() -> None:
    done: list[int] = []
    mutex = Mutex()
    mutex.tidy(lambda: done.append(1))
    assert done == [1]


def test_what_comes_from_under_the_lock_is_done_after_it() -> None:
    """As when the garbage collector runs there: neither at once nor never."""
    done: list[int] = []
    mutex = Mutex()
    with mutex.lock:
        mutex.tidy(lambda: done.append(1))
        assert done == []
    mutex.catch_up()
    assert done == [1]


def test_what_comes_while_another_thread_holds_the_lock_is_done_by_it() -> None:
    done: list[str] = []
    mutex, held, may_end = Mutex(), threading.Event(), threading.Event()

    def hold() -> None:
        with mutex.lock:
            held.set()
            may_end.wait(10)
        mutex.catch_up()

    thread = threading.Thread(target=hold, name="holder")
    thread.start()
    held.wait(10)
    mutex.tidy(lambda: done.append(threading.current_thread().name))
    assert done == []
    may_end.set()
    thread.join()
    assert done == ["holder"]


def test_an_action_that_raises_keeps_no_lock() -> None:
    mutex = Mutex()
    done: list[int] = []

    def fail() -> None:
        raise KeyboardInterrupt

    try:
        mutex.tidy(fail)
    except KeyboardInterrupt:
        done.append(1)
    thread = threading.Thread(target=mutex.tidy, args=(lambda: done.append(2),))
    thread.start()
    thread.join(10)
    assert done == [1, 2]


def test_a_forked_process_does_not_wait_for_a_thread_that_it_lacks() -> None:
    mutex = Mutex()
    with held_by_another_thread(mutex.lock):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if mutex.lock.acquire(timeout=1) else 1)
        assert os.waitpid(pid, 0)[1] == 0
