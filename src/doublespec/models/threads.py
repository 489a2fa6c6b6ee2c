"""How many CPU threads: a choice of speed alone, made only where it cannot change a bit."""

import os

_WORTHWHILE = 1.1  # a second thread must pay for making the machine's other programs wait


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
