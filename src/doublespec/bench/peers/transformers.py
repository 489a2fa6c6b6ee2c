"""transformers' own `generate`, and what its peers share: models and arguments."""

from typing import Any

import torch

from doublespec.bench.peers.base import Pair, Recorder
from doublespec.decoding import Step
from doublespec.sampling import Request
from doublespec.stopping import StopRule
from doublespec.tokens import Tokens


class TransformersPeer:
    """`generate` with `extra` arguments: none for plain decoding."""

    def __init__(self, pair: Pair, **extra: Any) -> None:
        self._model = pair.target_model
        self._extra = extra

    @torch.inference_mode()
    def answer(self, tokens: Tokens, request: Request, stop: StopRule) -> list[Step]:
        recorder = Recorder()
        ids = torch.tensor([list(tokens)], device=self._model.device)
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            streamer=recorder,
            max_new_tokens=stop.max_tokens,
            eos_token_id=sorted(request.end_ids) or None,
            pad_token_id=min(request.end_ids, default=0),
            **_sampling(request),
            **self._extra,
        )
        return recorder.steps(request)


def transformers(pair: Pair) -> TransformersPeer:
    """Plain decoding."""
    return TransformersPeer(pair)


def _sampling(request: Request) -> dict[str, Any]:
    params = request.params
    if params.temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    torch.manual_seed(params.seed)
    return {
        "do_sample": True,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k or 0,
    }
