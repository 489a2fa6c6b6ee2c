"""Ranks: the same sums on all of them, and whatever happens to one, an error and nothing left."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from doublespec.errors import ModelError
from doublespec.models import ranks
from doublespec.models.ranks import Group, Place, Team
from tests import rank_jobs

CPU = torch.device("cpu")
_PATIENCE_SECONDS = 1


def test_a_follower_whose_leader_has_gone_at_once_just_ends() -> None:
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    ranks.main(os.dup(theirs.fileno()))
    theirs.close()


@pytest.fixture(scope="module")
def led() -> Iterator[tuple[int, int]]:
    """The process numbers of a leader, which waits, and of its follower."""
    theirs, ours = os.pipe()
    leader = os.fork()
    if leader == 0:
        team = Team(rank_jobs.add, [CPU, CPU], 1)
        os.write(ours, str(_follower(team)).encode())
        signal.pause()
        os._exit(1)
    yield leader, int(os.read(theirs, 20))
    os.close(theirs)
    os.close(ours)


@pytest.fixture(scope="module")
def teams(led: tuple[int, int]) -> Iterator[list[Team]]:
    """All begun at the same time: most of it is imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks, "_PATIENCE_SECONDS", _PATIENCE_SECONDS)
        teams = [Team(rank_jobs.add, [CPU, CPU], 1) for _ in range(7)]
    yield list(teams)
    for team in teams:
        team.close()


@pytest.fixture
def lost(teams: list[Team]) -> tuple[Team, Group]:
    """For a test that loses it."""
    team = teams.pop()
    assert team.hear() == ["here"]
    return team, team.meet()


@pytest.fixture(scope="module")
def sound(teams: list[Team]) -> tuple[Team, Group]:
    """For tests that leave it as it was."""
    team = teams.pop()
    assert team.hear() == ["here"]
    return team, team.meet()


def _sum(team: Team, group: Group) -> Tensor:
    with team.leading("sum"):
        return group.sum(rank_jobs.summand(0))


def _follower(team: Team) -> int:
    return team._followers[0].child.pid


def _check_lost(team: Team, group: Group, message: str) -> None:
    """Every further call says why, and no process is left."""
    child = _follower(team)
    for _ in range(2):
        with pytest.raises(ModelError, match=message):
            _sum(team, group)
    assert not psutil.pid_exists(child)


# -- sums ------------------------------------------------------------------------------------------


def _sums(folder: Path, summands: list[Tensor]) -> list[Tensor]:
    """What each rank gets; ranks are threads here."""
    count = len(summands)

    def run(rank: int) -> Tensor:
        group = Group(Place(rank, count, CPU, str(folder / "store")), 10)
        return group.sum(summands[rank])

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_all_ranks_get_the_sum_in_the_order_of_ranks(tmp_path: Path) -> None:
    """In float32 and rounded once: 256 + 1 + 1 is 258, in bfloat16 it would stay 256."""
    summands = [torch.full((5, 8), value).bfloat16() for value in (256.0, 1.0, 1.0)]
    wanted = torch.full((5, 8), 258.0).bfloat16()
    assert all(torch.equal(found, wanted) for found in _sums(tmp_path, summands))


def test_a_row_has_the_same_bits_among_any_number_of_rows(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    summands = [torch.randn((64, 96), generator=generator) for _ in range(4)]
    (tmp_path / "one").mkdir()
    many = _sums(tmp_path, summands)[0]
    one = _sums(tmp_path / "one", [summand[17:18] for summand in summands])[3]
    assert torch.equal(one, many[17:18])


# -- what can go wrong -----------------------------------------------------------------------------


def test_ctrl_c_waits_until_all_have_done_the_same(sound: tuple[Team, Group]) -> None:
    team, group = sound
    with pytest.raises(KeyboardInterrupt), team.leading("sum"):
        signal.raise_signal(signal.SIGINT)
        found = group.sum(rank_jobs.summand(0))
    assert torch.equal(found, torch.full((2, 3), 3.0))
    assert torch.equal(_sum(team, group), found)


def test_a_fork_cannot_use_the_ranks_and_leaves_them_alone(sound: tuple[Team, Group]) -> None:
    team, group = sound
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _sum(team, group)
        except ModelError as error:
            code = 0 if "this is a fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert torch.equal(_sum(team, group), torch.full((2, 3), 3.0))


def test_an_error_in_the_middle_ends_the_ranks(lost: tuple[Team, Group]) -> None:
    team, group = lost
    with pytest.raises(ZeroDivisionError), team.leading("sum"):
        _ = 1 / 0
    _check_lost(team, group, "broken off in the middle; load it again")


def test_a_follower_that_is_killed_in_the_middle_is_an_error(lost: tuple[Team, Group]) -> None:
    team, group = lost
    with (
        pytest.raises(ModelError, match="rank 1 on cpu: its process ended with exit code -9"),
        team.leading("sum"),
    ):
        os.kill(_follower(team), signal.SIGKILL)
        group.sum(rank_jobs.summand(0))
        group.sum(rank_jobs.summand(0))
    _check_lost(team, group, "exit code -9; load it again")


def test_a_follower_that_is_killed_between_calls_is_an_error(lost: tuple[Team, Group]) -> None:
    team, group = lost
    os.kill(_follower(team), signal.SIGKILL)
    _check_lost(team, group, "rank 1 on cpu: its process ended with exit code -9; load it again")


def test_a_follower_that_fails_says_why(lost: tuple[Team, Group]) -> None:
    team, group = lost
    message = "rank 1 on cpu: ValueError: out of luck; load it again"
    with pytest.raises(ModelError, match=message), team.leading("fail"):
        group.sum(rank_jobs.summand(0))
    _check_lost(team, group, message)


def test_a_follower_that_is_stopped_is_given_up(lost: tuple[Team, Group]) -> None:
    team, group = lost
    os.kill(_follower(team), signal.SIGSTOP)
    _check_lost(team, group, r"out of touch \(.*\); load it again")


def test_a_follower_that_cannot_begin_is_an_error() -> None:
    team = Team(rank_jobs.refuse, [CPU, CPU], 1)
    child = _follower(team)
    with pytest.raises(ModelError, match=r"^this model does not fit$"):
        team.hear()
    assert not psutil.pid_exists(child)


def test_followers_end_when_their_leader_is_killed(led: tuple[int, int]) -> None:
    leader, pid = led
    follower = psutil.Process(pid)
    assert follower.is_running()
    os.kill(leader, signal.SIGKILL)
    os.waitpid(leader, 0)
    stop = time.monotonic() + 10
    while _is_alive(follower) and time.monotonic() < stop:
        time.sleep(0.05)
    assert not _is_alive(follower)


def _is_alive(process: psutil.Process) -> bool:
    """Where nobody waits for orphans, they stay as zombies."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_interrupt_while_it_closes_leaves_no_rank(lost: tuple[Team, Group]) -> None:
    """Of a rank that is stopped and so does not end by itself; closing it again does nothing."""
    team, _ = lost
    child = psutil.Process(_follower(team))
    child.suspend()
    gc.collect()  # else it may come in a finaliser of what other tests left, which swallows it
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        team.close()
    timer.join()
    assert not child.is_running()
