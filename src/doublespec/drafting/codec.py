"""Messages as bytes. Both ends are this program, so pickles will do.

The two messages of every step go as tuples of plain values: pickled as what they are, they take six
times as long (6 against 1 microsecond each way; 2-core EPYC, 2026-11-24).
"""

import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

from doublespec.drafting.base import DraftForward
from doublespec.drafting.messages import Drafted, Settled

_ANY, _SETTLED, _DRAFTED = range(3)

_pickled: Callable[[object], bytes] = partial(pickle.dumps, protocol=pickle.HIGHEST_PROTOCOL)
# Named tuples from their values, by no function of Python's that would count them.
_make_drafted: Callable[[object], Drafted] = partial(tuple.__new__, Drafted)
_make_forward: Callable[[object], DraftForward] = partial(tuple.__new__, DraftForward)


def encode(message: object) -> tuple[int, bytes]:
    """The kind of a message, and what is in it."""
    if isinstance(message, Drafted):
        *others, forwards = message
        return _DRAFTED, _pickled((*others, tuple(map(tuple, forwards))))
    if isinstance(message, Settled):
        return _SETTLED, _pickled(tuple(message))
    return _ANY, _pickled(message)


def decode(kind: int, data: bytes | memoryview) -> Any:
    """The message; whatever was sent."""
    found = pickle.loads(data)
    if kind == _DRAFTED:
        *others, forwards = found
        return _make_drafted((*others, tuple(map(_make_forward, forwards))))
    return Settled(*found) if kind == _SETTLED else found


def is_superseded(kind: int, next_kind: int) -> bool:
    """Whether the next message says all that a message of this kind says."""
    return kind == next_kind == _DRAFTED
