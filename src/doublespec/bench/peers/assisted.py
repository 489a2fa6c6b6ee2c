"""transformers' assisted generation, with the same draft."""

from doublespec.bench.peers.base import Pair
from doublespec.bench.peers.transformers import TransformersPeer
from doublespec.errors import ConfigError


def assisted(pair: Pair) -> TransformersPeer:
    """Speculative decoding as `generate` does it; raises ConfigError without a draft."""
    if pair.draft_model is None:
        raise ConfigError(
            "peer 'transformers-assisted' needs a draft model; give one, or leave it out"
        )
    return TransformersPeer(pair, assistant_model=pair.draft_model)
