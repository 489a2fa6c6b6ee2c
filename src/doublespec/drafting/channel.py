"""Messages over a socket: whole or not at all, and sending never waits.

A frame is a mark, the length and the pickled message; both ends are this program. A receiver that
finds no mark where a frame must begin (bytes were lost to an interrupt, say) gives the channel up.
"""

import pickle
import select
import socket
import struct
from typing import Any

_HEADER = struct.Struct("<4sI")
_MARK = b"dbl1"
_MOST_UNSENT = 8 << 20  # bytes: the other end has long ceased to read
_CHUNK = 1 << 16


class ChannelLost(Exception):
    """The other end is gone, or does not make sense."""


class Channel:
    """One end. Not for several threads at a time."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        end.setblocking(False)
        self._poll = select.poll()
        self._unsent = bytearray()
        self._received = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: object) -> None:
        """Sends what the other end has room for; the rest goes with the next call of any method.
        Raises ChannelLost."""
        data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        self._unsent += _HEADER.pack(_MARK, len(data)) + data
        self._flush()
        if len(self._unsent) > _MOST_UNSENT:
            raise ChannelLost("it does not read its messages")

    def receive(self, seconds: float | None = 0.0) -> list[Any]:
        """The messages that are there; if there are none, waits that long for the first (None:
        without end). Raises ChannelLost."""
        messages = self._read()
        while not messages and (seconds is None or seconds > 0):
            ready = self._wait(seconds)
            messages = self._read()
            if not ready:
                break
        return messages

    def close(self) -> None:
        self._socket.close()

    def _wait(self, seconds: float | None) -> bool:
        events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
        self._poll.register(self._socket, events)
        return bool(self._poll.poll(None if seconds is None else 1e3 * seconds))

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError as error:
            raise ChannelLost("its process ended") from error

    def _read(self) -> list[Any]:
        self._flush()
        try:
            while chunk := self._socket.recv(_CHUNK):
                self._received += chunk
                if len(chunk) < _CHUNK:
                    return self._take()
        except BlockingIOError:
            return self._take()
        except OSError as error:
            raise ChannelLost("its process ended") from error
        messages = self._take()
        if not messages:
            raise ChannelLost("its process ended")
        return messages

    def _take(self) -> list[Any]:
        """The whole messages among what was received."""
        messages = []
        while len(self._received) >= _HEADER.size:
            mark, length = _HEADER.unpack_from(self._received)
            if mark != _MARK:
                raise ChannelLost("its messages are damaged")
            if len(self._received) < _HEADER.size + length:
                break
            frame = bytes(self._received[_HEADER.size : _HEADER.size + length])
            del self._received[: _HEADER.size + length]
            messages.append(pickle.loads(frame))
        return messages
