"""Messages over a socket: whole or not at all, and sending never waits.

A frame is a mark, the message's kind, the length and the message (`codec.py`). A receiver that
finds no mark where a frame must begin (bytes were lost to an interrupt, say) gives the channel up.
"""

import contextlib
import os
import select
import socket
import struct
from time import perf_counter
from typing import Any

from doublespec.drafting.codec import decode, encode, is_superseded

_HEADER = struct.Struct("<3sBI")
_MARK = b"dbl"
_MOST_UNSENT = 8 << 20  # bytes: the other end has long ceased to read
_CHUNK = 1 << 13
# To yield an idle core and have it back takes 1 microsecond, or 80 where a virtual machine is
# interrupted for a moment; another process keeps it for a millisecond or more.
_CORE_IS_WANTED_SECONDS = 200e-6
_FEWEST_SLEEPS, _MOST_SLEEPS = 64, 4096  # after that; on a busy core a yield takes milliseconds


class ChannelLost(Exception):
    """The other end is gone, or does not make sense."""


class Channel:
    """One end. Not for several threads at a time.

    A receiver looks for messages for `awake_seconds` before it sleeps: to be woken takes longer
    than a short message's way. When another process wants its core it sleeps, and the next times,
    too: such a process keeps the core for long."""

    def __init__(self, end: socket.socket, awake_seconds: float = 0.0) -> None:
        self._socket = end
        end.setblocking(False)
        self._awake_seconds = awake_seconds
        self._sleeps = self._next_sleeps = 0  # waits to sleep through, now and the next time
        self._poll = select.poll()
        self._poll.register(end, select.POLLIN)
        self._unsent = bytearray()
        self._received = b""  # the beginning of a message

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: object) -> None:
        """Sends what the other end has room for; the rest goes with the next call of any method.
        Raises ChannelLost."""
        kind, data = encode(message)
        self._unsent += _HEADER.pack(_MARK, kind, len(data)) + data
        self._flush()
        if len(self._unsent) > _MOST_UNSENT:
            raise ChannelLost("it does not read its messages")

    def receive(self, seconds: float | None = 0.0) -> list[Any]:
        """The messages that are there; if there are none, waits that long for the first (None:
        without end). Raises ChannelLost."""
        messages = self._read()
        if messages or seconds == 0:
            return messages
        if self._may_look():
            messages = self._look(self._awake_seconds if seconds is None else seconds)
        stop = None if seconds is None else perf_counter() + seconds
        while not messages:
            left = None if stop is None else stop - perf_counter()
            if left is not None and left <= 0:
                break
            self._wait(left)
            messages = self._read()
        return messages

    def close(self) -> None:
        self._socket.close()

    def hang_up(self) -> None:
        """Closes for all that have a copy of this end, in other processes, too."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _may_look(self) -> bool:
        if self._sleeps:
            self._sleeps -= 1
            return False
        return self._awake_seconds > 0

    def _look(self, seconds: float) -> list[Any]:
        """Looks for messages again and again, but no longer than it may stay awake."""
        now = perf_counter()
        stop = now + min(seconds, self._awake_seconds)
        messages: list[Any] = []
        while not messages and now < stop:
            os.sched_yield()
            before, now = now, perf_counter()
            if now - before > _CORE_IS_WANTED_SECONDS:
                self._next_sleeps = min(max(2 * self._next_sleeps, _FEWEST_SLEEPS), _MOST_SLEEPS)
                self._sleeps = self._next_sleeps
                return []
            messages = self._read()
        self._next_sleeps = 0
        return messages

    def _wait(self, seconds: float | None) -> None:
        """Until there is something to read, or room to send."""
        room = select.POLLOUT if self._unsent else 0
        self._poll.modify(self._socket, select.POLLIN | room)
        self._poll.poll(None if seconds is None else 1e3 * seconds)

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelLost("its process ended") from error

    def _read(self) -> list[Any]:
        if self._unsent:
            self._flush()
        try:
            while chunk := self._socket.recv(_CHUNK):
                self._received += chunk
                if len(chunk) < _CHUNK:
                    return self._take()
        except BlockingIOError:
            return self._take() if self._received else []
        except OSError as error:
            raise ChannelLost("its process ended") from error
        messages = self._take()
        if not messages:
            raise ChannelLost("its process ended")
        return messages

    def _take(self) -> list[Any]:
        """The whole messages among what was received, but for those that are superseded."""
        frames: list[tuple[int, int, int]] = []  # kind, begin and stop
        start, received = 0, self._received
        while len(received) >= start + _HEADER.size:
            mark, kind, length = _HEADER.unpack_from(received, start)
            if mark != _MARK:
                raise ChannelLost("its messages are damaged")
            begin = start + _HEADER.size
            if len(received) < begin + length:
                break
            start = begin + length
            if frames and is_superseded(frames[-1][0], kind):
                frames.pop()
            frames.append((kind, begin, start))
        self._received = received[start:]
        return [decode(kind, received[begin:stop]) for kind, begin, stop in frames]
