"""Guesses from retrieved text."""

from collections.abc import Callable
from functools import lru_cache

from doublespec.drafting.base import Drafter
from doublespec.retrieval.base import TokenIndex
from doublespec.sampling import Request
from doublespec.tokens import Tokens


class LookupDrafter:
    """Proposes the run that an index finds for the text, of at most `most` tokens."""

    def __init__(self, index: TokenIndex, most: int) -> None:
        self._index = index
        self._most = most

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        limit = min(limit, self._most)
        match = self._index.lookup(tokens, limit) if limit > 0 else None
        return list(match.tokens[:limit]) if match is not None else []


class TenantDrafter:
    """A drafter for each tenant, so that nothing of one is offered to another; the `most` that were
    asked last are kept."""

    def __init__(self, make: Callable[[int], Drafter], most: int) -> None:
        self._drafter_of = lru_cache(maxsize=most)(make)

    def propose(self, tokens: Tokens, limit: int, request: Request) -> list[int]:
        return self._drafter_of(request.tenant).propose(tokens, limit, request)
