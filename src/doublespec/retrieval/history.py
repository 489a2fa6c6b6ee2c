"""What was answered before in this process, as a source of runs. Knows tenants, not models."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from doublespec.errors import DatastoreError
from doublespec.retrieval.base import Match
from doublespec.retrieval.chains import BORDER, Chains
from doublespec.retrieval.files import replacing
from doublespec.retrieval.ranking import follow_most_alike
from doublespec.tokens import Tokens

FORMAT = "doublespec history 1"


@dataclass(frozen=True, slots=True)
class Entry:
    """One text and whose it is."""

    tenant: str
    tokens: list[int]


class History:
    """Earlier texts, in two halves: when the young half has its share of the bytes, the old one is
    dropped whole and the young one takes its place.

    Each tenant's texts are chained apart: no lookup reaches those of another.
    """

    def __init__(self, most_bytes: int = 64 << 20) -> None:
        self._most_bytes = most_bytes
        self._young: dict[str, Chains] = {}
        self._old: dict[str, Chains] = {}

    @property
    def num_bytes(self) -> int:
        return _num_bytes(self._young) + _num_bytes(self._old)

    def add(self, tokens: Tokens, tenant: str = "") -> None:
        """Keep a text for the lookups of `tenant`. One larger than half the bytes is not kept."""
        half, new = self._most_bytes // 2, len(tokens) + 1
        if Chains().bytes_with(new) > half:
            return
        chains = self._young.get(tenant, Chains())
        if _num_bytes(self._young) - chains.num_bytes + chains.bytes_with(new) > half:
            self._old, self._young, chains = self._young, {}, Chains()
        chains.extend([*tokens, BORDER])
        self._young[tenant] = chains

    def index(self, tenant: str = "") -> "TenantIndex":
        """The texts of one tenant, those that are still to come included."""
        return TenantIndex(self, tenant)

    def chains_of(self, tenant: str) -> list[Chains]:
        """The chained texts of one tenant, the later ones first."""
        return [half[tenant] for half in (self._young, self._old) if tenant in half]

    def entries(self) -> Iterator[Entry]:
        """All texts; those of one tenant in the order in which they came."""
        for half in (self._old, self._young):
            for tenant, chains in half.items():
                for tokens in _texts(chains.tokens):
                    yield Entry(tenant, tokens)

    def save(self, path: Path, vocabulary: str) -> None:
        """Write all texts to a file; `vocabulary` names the tokenizer that they belong to."""
        with replacing(path) as file:
            file.write(_line({"format": FORMAT, "vocabulary": vocabulary}))
            for entry in self.entries():
                file.write(_line({"tenant": entry.tenant, "tokens": entry.tokens}))

    def load(self, path: Path, vocabulary: str) -> None:
        """Add the texts of a file. Raises DatastoreError, and adds nothing, if one line of it is
        not as `save` writes it or another tokenizer's."""
        for entry in _read(path, vocabulary):
            self.add(entry.tokens, entry.tenant)


class TenantIndex:
    """One tenant's earlier texts."""

    def __init__(self, history: History, tenant: str) -> None:
        self._history = history
        self._tenant = tenant

    def lookup(self, tokens: Tokens, limit: int) -> Match | None:
        """What followed the longest suffix of `tokens` in an earlier text."""
        text = tokens if isinstance(tokens, list) else list(tokens)
        best: Match | None = None
        for chains in self._history.chains_of(self._tenant):
            match = lookup_in(chains, text, limit)
            if match is not None and (best is None or match.depth > best.depth):
                best = match
        return best


def lookup_in(chains: Chains, text: list[int], limit: int) -> Match | None:
    """What followed the longest suffix of `text` in one of the chained texts."""
    places = chains.longest(text)
    if not places.stops or limit < 1:
        return None
    run, choice = follow_most_alike(text, chains.tokens, places.stops, limit)
    run = run[: run.index(BORDER)] if BORDER in run else run
    return Match(tuple(run), places.depth, "history", choice.likeness, choice.share)


def _num_bytes(half: dict[str, Chains]) -> int:
    return sum(chains.num_bytes for chains in half.values())


def _texts(tokens: list[int]) -> Iterator[list[int]]:
    start = 0
    while start < len(tokens):
        stop = tokens.index(BORDER, start)
        yield tokens[start:stop]
        start = stop + 1


def _line(value: dict[str, object]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _read(path: Path, vocabulary: str) -> list[Entry]:
    try:
        header, *lines = path.read_bytes().splitlines()
        about = json.loads(header)
        entries = [_entry(json.loads(line)) for line in lines]
    except OSError as error:
        raise DatastoreError(f"cannot read the history {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise DatastoreError(f"{path} is not a history of doublespec, or damaged") from error
    if about != {"format": FORMAT, "vocabulary": vocabulary}:
        raise DatastoreError(f"{path} is not a history of this version and this tokenizer")
    return entries


def _entry(value: dict[str, object]) -> Entry:
    tenant, tokens = value["tenant"], value["tokens"]
    if not isinstance(tenant, str) or not isinstance(tokens, list):
        raise ValueError("not an entry")
    if not all(type(token) is int and token >= 0 for token in tokens):
        raise ValueError("not token ids")
    return Entry(tenant, tokens)
