"""Peers by name. To add one, write a file with a function of a Pair and put it into PEERS."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from doublespec.bench.peers.assisted import assisted
from doublespec.bench.peers.base import FailedPeer, Pair, Peer
from doublespec.bench.peers.prompt_lookup import prompt_lookup
from doublespec.bench.peers.transformers import transformers
from doublespec.errors import ConfigError
from doublespec.llm import LLM
from doublespec.models.devices import has_fast_bfloat16

PEERS: dict[str, Callable[[Pair], Peer]] = {
    "transformers": transformers,
    "transformers-assisted": assisted,
    "transformers-lookup": prompt_lookup,
}
OWN_PLAIN = {name: "transformers" for name in PEERS}  # whose texts a peer's are compared with


def check_peers(names: Sequence[str]) -> None:
    """Raises ConfigError on a peer that is not known."""
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise ConfigError(f"peers must be of {', '.join(PEERS)}, got {unknown[0]!r}")


def make_peers(names: Sequence[str], llm: LLM) -> dict[str, Peer]:
    """The peers of those names, on the same weights and device as `llm`, in its precision or, where
    PyTorch's kernels are slow in it, in float32. Those whose library cannot read the models fail at
    their first answer, so that it is reported."""
    check_peers(names)
    if not names:
        return {}
    from transformers.utils import logging

    quiet: Any = logging  # its functions have no types
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    target = Path(llm.target_name)
    draft = Path(llm.recipe.source.name) if llm.recipe else None
    is_slow = llm.kernels == "native" and not has_fast_bfloat16()
    dtype = "float32" if is_slow else str(llm.target.dtype).removeprefix("torch.")
    device = str(llm.target.device)
    load = {"dtype": dtype, "device": device}
    try:
        target_model = _load(target, **load)
        draft_model = _load(draft, **load) if draft else None
    except Exception as error:  # what it raises is of many kinds
        return dict.fromkeys(names, FailedPeer(error))
    pair = Pair(target, draft, dtype, device, target_model, draft_model)
    return {name: PEERS[name](pair) for name in names}


def _load(folder: Path, dtype: str, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    return model.to(device).eval()
