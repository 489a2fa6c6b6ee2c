"""Settings: frozen, checked once, never written to. Knows nothing but plain values."""

from dataclasses import dataclass, field
from typing import Final, Literal

from doublespec.errors import ConfigError

Background = Literal["process", "thread", "inline"]
BACKGROUNDS = ("process", "thread", "inline")


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """How runs are found and how long they may be. `ngram` takes the published search, with n-grams
    of so many tokens (None: the longest match, as much of it as pays). `tokens` bounds a run.
    `row_cost` is what each shown token adds to the time of a target forward, as a share of it
    (None: measured)."""

    ngram: int | None = None
    tokens: int = 48
    row_cost: float | None = None

    def __post_init__(self) -> None:
        if self.ngram is not None:
            _check("ngram", self.ngram, 1, 64)
        _check("tokens", self.tokens, 1, 255)
        if self.row_cost is not None and not 0.0 <= self.row_cost <= 1.0:
            raise ConfigError(f"row_cost must be a number from 0 to 1, got {self.row_cost!r}")


@dataclass(frozen=True, slots=True)
class Settings:
    """How an LLM runs. What is None is found by the program: see docs/architecture.md."""

    method: str = "auto"
    gamma: int | None = None
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    guess_tokens: int = 48
    background: Background = "process"
    target_device: str | None = None
    draft_device: str | None = None
    dtype: str | None = None
    max_length: int | None = None
    threads: int | None = None
    draft_threads: int = 1

    def __post_init__(self) -> None:
        for name in ("gamma", "max_length", "threads"):
            value = getattr(self, name)
            if value is not None:
                _check(name, value, 2 if name == "max_length" else 1, 1 << 31)
        _check("draft_threads", self.draft_threads, 1, 1024)
        _check("guess_tokens", self.guess_tokens, 1, 255)
        if self.background not in BACKGROUNDS:
            known = ", ".join(BACKGROUNDS)
            raise ConfigError(f"background must be one of {known}, got {self.background!r}")


def _check(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


# The authors' scripts (arXiv 2601.05524): n-grams of 3 down to 1 tokens, 10 retrieved tokens,
# lock-step, about c = t_T / t_D draft forwards a step (`gamma=None` measures c).
PRESETS: Final = {"paper": RetrievalSettings(ngram=3, tokens=10)}
