"""Messages as bytes. Both ends are this program, so pickles will do.

The two messages of every step go as tuples of plain values: pickled as what they are, they take six
times as long (6 against 1 microsecond each way; 2-core EPYC, 2026-11-24).
"""

import pickle
from operator import attrgetter
from typing import Any

from doublespec.drafting.base import DraftForward
from doublespec.drafting.messages import Drafted, Settled

_ANY, _SETTLED, _DRAFTED = range(3)
_of_settled = attrgetter("number", "text", "start", "tokens", "limit")
_of_drafted = attrgetter("number", "text", "start", "paths")
_of_forward = attrgetter("begun", "seconds", "rows", "start", "tokens", "branches")


def encode(message: object) -> tuple[int, bytes]:
    """The kind of a message, and what is in it."""
    if isinstance(message, Drafted):
        forward = None if message.forward is None else _of_forward(message.forward)
        return _DRAFTED, _pickled((*_of_drafted(message), forward, message.done))
    if isinstance(message, Settled):
        return _SETTLED, _pickled(_of_settled(message))
    return _ANY, _pickled(message)


def decode(kind: int, data: bytes) -> Any:
    """The message; whatever was sent."""
    found = pickle.loads(data)
    if kind == _SETTLED:
        return Settled(*found)
    if kind == _DRAFTED:
        number, text, start, paths, forward, done = found
        made = None if forward is None else DraftForward(*forward)
        return Drafted(number, text, start, paths, made, done)
    return found


def _pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
