"""Tests share the machine with each other: one thread a product, no hub. What is kept in a
user's cache they keep for each other and for nobody else."""

import os
import signal
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch

from doublespec import kept
from doublespec.llm import LLM

_compiled = tempfile.TemporaryDirectory(prefix="doublespec-tests-")
os.environ.setdefault(kept.FOLDER, _compiled.name)
torch.set_num_threads(1)
if not torch.cuda.is_available():  # kernels for a GPU run in Triton's interpreter then
    os.environ.setdefault("TRITON_INTERPRET", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what it runs behind
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def pytorch():
    """The bundled pair on PyTorch's kernels, in shapes that were found for them."""
    with LLM("bundled", "bundled", kernels="torch", threads=1, gamma=3, history_bytes=0) as llm:
        yield llm


@pytest.fixture(scope="session")
def bundled():
    """The bundled pair, its parallel draft in a process, without memory of other tests."""
    with LLM("bundled", "bundled", threads=1, gamma=3, history_bytes=0) as llm:
        yield llm
