"""transformers' `generate` with a static cache and torch.compile, on random weights of a shape."""

from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from doublespec.bench.peers.base import Recorder
from doublespec.models.weights import Source

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class StaticPeer:
    """The weights that our decoder has of the same source, in transformers' model."""

    def __init__(
        self, source: Source, config: "PreTrainedConfig", device: torch.device, dtype: torch.dtype
    ) -> None:
        self._device = device
        with device:
            model = _from_config(config, dtype)
        with torch.no_grad():
            for name, values in model.named_parameters():
                values.copy_(source.read(name, tuple(values.shape), (device, dtype)))
        model.generation_config.eos_token_id = None
        self.model = model.eval()

    def answer(self, context: int, tokens: int, *, compiled: bool) -> list[float]:
        """Seconds of each of so many tokens after a prompt of `context`."""
        ids = torch.tensor([[1 + i % 7 for i in range(context)]], device=self._device)
        recorder = Recorder()
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            streamer=recorder,
            max_new_tokens=tokens,
            pad_token_id=0,
            do_sample=False,
            cache_implementation="static",
            disable_compile=not compiled,
        )
        return recorder.seconds


def peer_times(peer: StaticPeer, context: int, tokens: int, *, compiled: bool) -> dict[str, float]:
    """Seconds of a token by the median, of the first one, and of what came before they counted
    (compiling and recording)."""
    begun = perf_counter()
    peer.answer(context, tokens, compiled=compiled)
    prepared = perf_counter() - begun
    times = peer.answer(context, tokens, compiled=compiled)
    return {
        "seconds": median(times[len(times) // 2 :]),
        "first_seconds": times[0],
        "prepare_seconds": prepared,
    }


def _from_config(config: "PreTrainedConfig", dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    make: Any = AutoModelForCausalLM  # its functions have no types
    return make.from_config(config, dtype=dtype)
