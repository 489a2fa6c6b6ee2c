"""What one side of a method retrieves with: indexes by its settings, and drafters around them."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from doublespec.config import RetrievalSettings
from doublespec.drafting.choice import Choice, RunOrDraft
from doublespec.drafting.lookup import Helper, LookupDrafter, TenantDrafter, WeighingDrafter
from doublespec.retrieval.base import TokenIndex
from doublespec.retrieval.context import NgramIndex, context_sources
from doublespec.retrieval.datastore import Datastore
from doublespec.retrieval.expectation import MOST_TOKENS
from doublespec.retrieval.layered import ROW_COST, LayeredIndex, Prices, Sources, steady_rows
from doublespec.retrieval.recent import RecentNgramIndex

History = Callable[[int], TokenIndex]  # earlier answers by the tenant's number

_MOST_SHOWN = 2 * MOST_TOKENS  # a draft and the run behind it
ASKING_SECONDS = 5e-5  # by which a lookup lengthens a step (docs/log.md)
_MOST_TENANTS = 16  # whose indexes are kept


class Retrieval:
    """Drafters over the same sources: the text, in `history` the tenant's earlier answers, and the
    datastores. Where n-grams are limited it is a published search in the text alone."""

    def __init__(
        self,
        settings: RetrievalSettings,
        history: History | None = None,
        forward_seconds: float = math.inf,
    ) -> None:
        """`forward_seconds` is the time of a forward, of which runs are to save some."""
        self._settings = settings
        self._asking_cost = ASKING_SECONDS / forward_seconds
        stores = [Datastore(Path(p), settings.vocabulary) for p in settings.datastores]

        def make(tenant: int) -> Sources:
            earlier = [] if history is None else [history(tenant)]
            return Sources([*context_sources(), *earlier, *stores])

        self._sources_of = lru_cache(maxsize=_MOST_TENANTS)(make)

    def shared(self, settings: RetrievalSettings, forward_seconds: float) -> "Retrieval":
        """Retrieval over the same sources for another model of this process, whose `settings` name
        the same datastores: what one has asked, the other need not."""
        other = Retrieval(replace(settings, datastores=()), forward_seconds=forward_seconds)
        other._sources_of = self._sources_of
        return other

    def lookup(
        self, row_cost: float = ROW_COST, *, beside: bool = False, prices: Prices | None = None
    ) -> Helper:
        """Proposes retrieved runs, alone or behind a draft; `beside` the target one is made anyway,
        and may be left out where a run promises more. What a shown token costs is set, or
        `row_cost`, or told by `prices`."""
        settings = self._settings
        if settings.ngram is not None:
            kind = RecentNgramIndex if settings.latest else NgramIndex
            return LookupDrafter(kind(settings.ngram, settings.shortest), settings.tokens)
        cost = self._row_cost(row_cost)

        def make(tenant: int) -> WeighingDrafter:
            alone = self._index(tenant, cost) if beside else None
            index = self._index(tenant, cost, prices)
            return WeighingDrafter(index, settings.tokens, cost, alone)

        return TenantDrafter(make, _MOST_TENANTS)

    def choice(self, steps: int, seconds: float, row_cost: float = ROW_COST) -> Choice | None:
        """Where to leave out a draft of so many forwards that take `seconds` (`RunOrDraft`). A
        published search promises nothing, so that it gives no choice."""
        if self._settings.ngram is not None:
            return None
        cost = self._row_cost(row_cost)
        return lru_cache(maxsize=_MOST_TENANTS)(
            lambda tenant: RunOrDraft(self._index(tenant, cost), steps, seconds, cost)
        )

    def _row_cost(self, found: float) -> float:
        return found if self._settings.row_cost is None else self._settings.row_cost

    def _index(self, tenant: int, row_cost: float, prices: Prices | None = None) -> LayeredIndex:
        """An index that learns for itself, over sources that are shared."""
        if prices is None or self._settings.row_cost is not None:
            prices = Prices(steady_rows(row_cost, _MOST_SHOWN), self._asking_cost)
        return LayeredIndex(self._sources_of(tenant), prices)
