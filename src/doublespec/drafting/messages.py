"""What crosses between a target and its draft: token ids with absolute positions, never tensors.

Every message says for itself what it is about, so that one that is lost, late, repeated or out of
order costs speed and nothing else; and what a worker says repeats all that it said about the text
before, so that of several such messages only the last has to be read:

    Begin     text number t is this; draft after it                  } answered by at least one
    Settled   text number t goes on from position p with these       } Drafted of the same number
    Rest      nothing need be drafted for now
    Drafted   after the first p tokens of text t: this path and these forks; the forwards since n
    Lost      text t is unknown, or what stands before position p: begin again
"""

from dataclasses import dataclass
from typing import NamedTuple

from doublespec.config import DraftStyle
from doublespec.drafting.base import DraftForward
from doublespec.sampling import Request


@dataclass(frozen=True, slots=True)
class Begin:
    """A whole text (`tokens` as int32), how many tokens after it are of use, how to draft, and of
    how many of the worker's forwards the target has heard."""

    number: int
    text: int
    tokens: bytes
    limit: int
    heard: int
    request: Request
    style: DraftStyle


class Settled(NamedTuple):  # the messages of every step are tuples: cheap to make and to send
    """A text that goes on with `tokens` from position `start`; `limit` and `heard` as in Begin."""

    number: int
    text: int
    start: int
    tokens: tuple[int, ...]
    limit: int
    heard: int


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing need be drafted until the next message."""


class Drafted(NamedTuple):
    """All that is drafted after the first `start` tokens of a text: the draft's own choices
    (`path`), and what it went on with from others (`forks`: after how many of its own, and which).
    `done`: nothing more is to come for message `number`. `forwards` are the worker's, from the
    one with number `first` on."""

    number: int
    text: int
    start: int
    path: tuple[int, ...]
    forks: tuple[tuple[int, tuple[int, ...]], ...]
    done: bool
    first: int
    forwards: tuple[DraftForward, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """Message `number` could not be understood: something before it is missing."""

    number: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The draft is loaded."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The draft cannot go on; `reason` says why."""

    reason: str


ToDraft = Begin | Settled | Rest
FromDraft = Ready | Drafted | Lost | Failed
