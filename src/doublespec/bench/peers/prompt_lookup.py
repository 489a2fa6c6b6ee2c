"""transformers' prompt lookup."""

from doublespec.bench.peers.base import Pair
from doublespec.bench.peers.transformers import TransformersPeer

_TOKENS = 10  # what its documentation recommends


def prompt_lookup(pair: Pair) -> TransformersPeer:
    """Retrieval in the prompt as `generate` does it."""
    return TransformersPeer(pair, prompt_lookup_num_tokens=_TOKENS)
