"""From texts to token ids, on all cores. Knows tokenizer files, not models."""

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

BATCH = 256  # texts handed to the tokenizer at once: it spreads them over the cores


def encode_texts(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[NDArray[np.uint32]]:
    """The ids of each text, without the tokens that begin or end one."""
    waiting = iter(texts)
    while batch := list(islice(waiting, BATCH)):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield np.array(encoding.ids, np.uint32)


def at_most(documents: Iterable[NDArray[np.uint32]], tokens: int) -> Iterator[NDArray[np.uint32]]:
    """Documents up to so many tokens in all, the last one cut there."""
    left = tokens
    for ids in documents:
        yield ids[:left]
        left -= len(ids)
        if left <= 0:
            return
