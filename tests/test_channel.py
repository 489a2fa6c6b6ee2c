"""Messages over a socket."""

import itertools
import os
import socket
import threading
import time

import pytest

from doublespec.drafting import channel
from doublespec.drafting.base import DraftForward
from doublespec.drafting.channel import Channel, ChannelLost
from doublespec.drafting.messages import Drafted, Failed, Lost, Ready, Rest, Settled


@pytest.fixture
def ends():
    pair = [Channel(end) for end in socket.socketpair()]
    yield pair
    for end in pair:
        end.close()


def test_messages_arrive_whole_and_in_order(ends) -> None:
    ours, theirs = ends
    sent = [("a", 1), list(range(50_000)), "end"]
    for message in sent:
        ours.send(message)
    received = []
    while len(received) < 3:
        received += theirs.receive(1.0)
        ours.receive(0.0)  # sends what did not fit
    assert received == sent


def test_sending_never_waits_for_a_reader(ends) -> None:
    ours, _ = ends
    begun = time.monotonic()
    for _ in range(100):
        ours.send(bytes(10_000))
    assert time.monotonic() - begun < 1.0


def test_a_reader_that_never_reads_is_given_up(ends) -> None:
    ours, _ = ends
    with pytest.raises(ChannelLost, match="does not read"):
        for _ in range(100):
            ours.send(bytes(1_000_000))


def test_receiving_waits_as_long_as_it_is_told(ends) -> None:
    ours, theirs = ends
    assert theirs.receive(0.0) == []
    timer = threading.Timer(0.1, ours.send, ["late"])
    timer.start()
    assert theirs.receive(5.0) == ["late"]
    timer.join()


def test_the_last_messages_of_an_end_that_is_gone_are_read_first(ends) -> None:
    ours, theirs = ends
    ours.send("farewell")
    ours.close()
    assert theirs.receive(1.0) == ["farewell"]
    with pytest.raises(ChannelLost):
        theirs.receive(1.0)


def test_bytes_that_are_no_message_are_noticed(ends) -> None:
    ours, theirs = ends
    ours._socket.send(b"12345678 what is this?")
    with pytest.raises(ChannelLost, match="damaged"):
        theirs.receive(1.0)


def test_every_message_arrives_as_what_it_was(ends) -> None:
    ours, theirs = ends
    forward = DraftForward(1.5, 0.25, 3, 70_000, (5, 1 << 20), 2)
    sent = [
        Settled(1, 2, 70_000, (5, 1 << 20), 48, 9),
        Drafted(1, 2, 3, (4, 5), ((1, (6, 7)),), False, 9, (forward, forward)),
        Lost(3),
        Rest(),
        Ready(),
        Failed("why"),
    ]
    for message in sent:
        ours.send(message)
    received = theirs.receive(1.0)
    assert received == sent
    assert [type(message) for message in received] == [type(message) for message in sent]


def test_of_messages_that_repeat_each_other_only_the_last_is_read(ends) -> None:
    ours, theirs = ends
    first, second, third = (Drafted(1, 2, 3, tuple(range(n)), (), False, 0, ()) for n in range(3))
    for message in (first, second, Ready(), third, first):
        ours.send(message)
    assert theirs.receive(1.0) == [second, Ready(), first]


def test_an_interrupted_wait_leaves_none_that_never_ends(ends) -> None:
    """Interrupted while there was no room to send: once all is sent, that there is room is no
    reason to look."""
    ours, theirs = ends
    ours.send(bytes(1_000_000))
    with pytest.raises(KeyboardInterrupt):
        ours._poll = Interrupted(ours._poll)
        ours.receive(1.0)
    ours._poll = ours._poll.poll_object
    while ours._unsent:
        theirs.receive(0.0)
        ours.receive(0.0)
    theirs.receive(0.0)
    ours.receive(0.01)
    assert ours._poll.poll(0) == []


class Interrupted:
    """What is polled like it, until it waits."""

    def __init__(self, poll_object) -> None:
        self.poll_object = poll_object

    def modify(self, *arguments) -> None:
        self.poll_object.modify(*arguments)

    def poll(self, *arguments) -> None:
        raise KeyboardInterrupt


def test_hanging_up_ends_copies_of_the_end_too() -> None:
    """As a process that was forked in between has one."""
    ours, theirs = socket.socketpair()
    with ours.dup(), theirs:
        Channel(ours).hang_up()
        with pytest.raises(ChannelLost):
            Channel(theirs).receive(1.0)


@pytest.mark.parametrize(("yield_seconds", "sleeps"), [(1e-6, False), (1e-3, True)])
def test_a_receiver_stays_awake_for_a_moment_unless_its_core_is_wanted(
    monkeypatch: pytest.MonkeyPatch, yield_seconds: float, sleeps: bool
) -> None:
    """What comes while it looks does not have to wake it. A yield that takes long has let another
    process run."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receiver, sender = Channel(ours, awake_seconds=0.1), Channel(theirs)
        slept = []
        wait = receiver._wait
        monkeypatch.setattr(receiver, "_wait", lambda s: slept.append(s) or wait(s))
        monkeypatch.setattr(os, "sched_yield", lambda: sender.send("now"))
        monkeypatch.setattr(channel, "perf_counter", itertools.count(0, yield_seconds).__next__)
        assert receiver.receive(5.0) == ["now"]
        assert bool(slept) == sleeps
        monkeypatch.setattr(os, "sched_yield", lambda: sender.send("looked"))
        timer = threading.Timer(0.05, sender.send, ["slept"])
        timer.start()
        assert receiver.receive(5.0) == (["slept"] if sleeps else ["looked"])  # the next time, too
        timer.join()
