"""Batches made by other processes. A process that dies is left out; the rest go on."""

import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait

import torch

from training.data import Batch


def batches_of(make: Callable[[int], Iterator[Batch]], count: int) -> Iterator[Batch]:
    """Start `count` processes and yield what `make(0)`, `make(1)` ... yield in them.

    They are forked, so start them before CUDA and before threads. Each holds one batch ready.
    """
    context = get_context("fork")
    readers: list[Connection] = []
    for i in range(count):
        reader, writer = context.Pipe(duplex=False)
        readers.append(reader)
        context.Process(target=_work, args=(make, i, writer, list(readers)), daemon=True).start()
        writer.close()
    return _receive(readers)


def _work(
    make: Callable[[int], Iterator[Batch]], i: int, writer: Connection, readers: list[Connection]
) -> None:
    for reader in readers:
        reader.close()  # so that writing fails once the parent is gone
    os.nice(5)  # they have batches ready, the parent has a GPU waiting
    torch.set_num_threads(1)
    try:
        for batch in make(i):
            writer.send((batch.tokens.int().numpy(), batch.labels.int().numpy()))
    except (BrokenPipeError, KeyboardInterrupt):
        return


def _receive(readers: list[Connection]) -> Iterator[Batch]:
    while readers:
        for reader in wait(readers):
            assert isinstance(reader, Connection)
            try:
                tokens, labels = reader.recv()
            except (EOFError, OSError):
                readers.remove(reader)
                sys.stderr.write(f"a worker died, {len(readers)} are left\n")
                continue
            yield Batch(torch.from_numpy(tokens), torch.from_numpy(labels))
    raise RuntimeError("every worker died; their errors stand above")
