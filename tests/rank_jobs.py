"""What followers do in tests of ranks: importable by name, so that their processes can have it."""

import torch

from doublespec.errors import ModelError
from doublespec.models.ranks import Member


def add(member: Member) -> None:
    """Adds up rank + 1 over all ranks, as often as it is told to; raises if it is told that."""
    member.send("here")
    group = member.meet()
    while True:
        if member.receive() == "fail":
            raise ValueError("out of luck")
        group.sum(summand(member.place.rank))


def refuse(member: Member) -> None:
    raise ModelError("this model does not fit")


def summand(rank: int) -> torch.Tensor:
    return torch.full((2, 3), rank + 1.0)
