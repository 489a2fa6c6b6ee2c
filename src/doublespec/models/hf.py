"""Any other causal language model of transformers, through its own cache.

A model from outside is a black box, so its blocks are aligned: a position is always computed in the
same block, at the same row, over the same number of keys. A block that holds new rows is computed
whole, padded at its end, and what is padding is dropped from the cache.

    prompt position p            block [p - p % 64, p - p % 64 + 64)
    answer position p            block of 16 that counts from the first answer position
"""

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from doublespec.errors import ModelError
from doublespec.models.layers import Progress
from doublespec.models.shapes import STRICT, reusable
from doublespec.models.weights import Checkpoint
from doublespec.tokens import Tokens, common_prefix

_PROMPT_ROWS = 64
_ANSWER_ROWS = 16


class TransformersModel:
    """A language model under the full-sequence contract (`models/base.py`)."""

    def __init__(self, model: Any, *, canonical: bool, max_length: int) -> None:
        self._model = model
        self._canonical = canonical
        self._max_length = max_length
        self._cache = DynamicCache(config=model.config)
        self._cached: list[int] = []
        self._cached_prompt_length = 0
        self._check_cache()

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        canonical: bool = True,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Reads a checkpoint with transformers; raises ModelError if it cannot be used."""
        config = checkpoint.config
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder, dtype=dtype, use_safetensors=True
            )
        except (ValueError, OSError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"transformers cannot load {checkpoint.folder}: {reason}") from error
        length = getattr(config, "max_position_embeddings", None) or 2048
        model = model.to(device).eval().requires_grad_(False)
        return cls(model, canonical=canonical, max_length=min(length, max_length or length))

    def fastest(self) -> Self:
        """The same weights in the fastest shapes: the baseline of benchmarks."""
        return type(self)(self._model, canonical=False, max_length=self._max_length)

    @property
    def vocab_size(self) -> int:
        size: int = self._model.config.get_text_config().vocab_size
        return size

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def row_counts(self) -> tuple[int, ...]:
        """The row counts that blocks of an answer come in."""
        return (_ANSWER_ROWS,)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._model.dtype
        return dtype

    @torch.inference_mode()
    def logits(self, tokens: Tokens, last: int, prompt_length: int) -> Tensor:
        tokens = list(tokens)
        assert 0 < last <= len(tokens) <= self._max_length
        wanted = len(tokens) - last
        start = min(self._kept(tokens, prompt_length), wanted)
        if self._canonical:
            start = _block_start(start, prompt_length)
        self._crop(start)
        self._cached_prompt_length = prompt_length
        parts = []
        for begin, end, rows in self._blocks(start, len(tokens), prompt_length):
            block = self._forward(tokens[begin:end], begin, rows)
            self._cached += tokens[begin:end]
            if end > wanted:
                parts.append(block[max(wanted - begin, 0) :])
        return torch.cat(parts)

    def _kept(self, tokens: list[int], prompt_length: int) -> int:
        common = common_prefix(self._cached, tokens)
        if not self._canonical:
            return common
        return reusable(common, self._cached_prompt_length, prompt_length, STRICT)

    def _blocks(self, start: int, stop: int, prompt_length: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, rows) of each block that computes positions [start, stop)."""
        if not self._canonical:
            yield start, stop, stop - start
            return
        while start < stop:
            in_prompt = start < prompt_length
            rows = _PROMPT_ROWS if in_prompt else _ANSWER_ROWS
            end = min(start + rows, stop, prompt_length if in_prompt else stop)
            yield start, end, rows
            start = end

    def _forward(self, tokens: list[int], start: int, rows: int) -> Tensor:
        """Logits (n, V) of n tokens, computed as `rows` rows."""
        padding = rows - len(tokens)
        device = self._model.device
        ids = torch.tensor([[*tokens, *[tokens[-1]] * padding]], device=device)
        positions = torch.arange(start, start + rows, device=device).clamp_(max=self._longest - 1)
        out = self._model(
            input_ids=ids,
            position_ids=positions[None],
            past_key_values=self._cache,
            use_cache=True,
        )
        if padding:
            self._cache.crop(-padding)
        logits: Tensor = out.logits[0, : len(tokens)]
        return logits

    @property
    def _longest(self) -> int:
        config = self._model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or self._max_length

    def _crop(self, start: int) -> None:
        surplus = self._cache.get_seq_length() - start
        self._cached = self._cached[:start]
        if surplus > 0:
            self._cache.crop(-surplus)

    @torch.inference_mode()
    def _check_cache(self) -> None:
        """Refuses a model whose cache cannot forget: what a wrong guess wrote would stay."""
        try:
            self._model(
                input_ids=torch.tensor([[0, 0]], device=self._model.device),
                past_key_values=self._cache,
                use_cache=True,
            )
            fits = all(type(layer) is DynamicLayer for layer in self._cache.layers)
            self._cache.crop(-self._cache.get_seq_length())
        except (TypeError, ValueError, AttributeError):
            fits = False
        if not fits or self._cache.get_seq_length() != 0:
            raise ModelError(
                f"model type {self._model.config.model_type!r} has a cache that cannot be cropped "
                "(state-space or sliding-window layers); choose a model with full attention"
            )


def _block_start(position: int, prompt_length: int) -> int:
    """Where the block begins in which `position` is computed."""
    if position < prompt_length:
        return position // _PROMPT_ROWS * _PROMPT_ROWS
    return prompt_length + (position - prompt_length) // _ANSWER_ROWS * _ANSWER_ROWS
