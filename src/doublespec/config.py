"""Settings: frozen, checked once, never written to. Knows nothing but plain values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from doublespec.errors import ConfigError

Background = Literal["process", "thread", "inline"]
BACKGROUNDS = ("process", "thread", "inline")
Schedule = Literal["free", "lock-step"]
SCHEDULES = ("free", "lock-step")
Kernels = Literal["native", "torch"]
KERNELS = ("native", "torch")
Quantize = Literal["int8", "fp8"]
QUANTIZATIONS = ("int8", "fp8")
DEFAULT_FORKS = 4
_MOST_THREADS = 1024  # with 100,000 of them PyTorch crashes
_OPTIONAL = (("gamma", 1, 1 << 31), ("max_length", 2, 1 << 31), ("threads", 1, _MOST_THREADS))


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """How runs are found and how long they may be. `ngram` takes a published search, with n-grams
    of so many tokens down to `shortest` and the first match, or the `latest` (None: the longest
    match, as much of it as pays). `tokens` bounds a run. `row_cost` is what each shown token adds
    to the time of a target forward, as a share of it (None: measured). `datastores` are searched
    beside the text; `vocabulary` is the fingerprint of the tokenizer that they must have been
    built with."""

    ngram: int | None = None
    tokens: int = 48
    row_cost: float | None = None
    shortest: int = 1
    latest: bool = False
    datastores: tuple[str, ...] = ()
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        if self.ngram is not None:
            _check("ngram", self.ngram, 1, 64)
        _check("shortest", self.shortest, 1, self.ngram or 64)
        _check("tokens", self.tokens, 1, 255)
        if self.row_cost is not None and not 0.0 <= self.row_cost <= 1.0:
            raise ConfigError(f"row_cost must be a number from 0 to 1, got {self.row_cost!r}")


@dataclass(frozen=True, slots=True)
class ForkSettings:
    """Corrections in advance (`drafting/ahead.py`): how many forks of its own path a draft goes on
    with in each forward, and the most rows that they may add to it. 0 forks: none."""

    forks: int = 0
    rows: int = 16

    def __post_init__(self) -> None:
        _check("forks", self.forks, 0, 64)
        _check("rows", self.rows, 1, 255)


@dataclass(frozen=True, slots=True)
class DraftStyle:
    """How a draft works beside the target: which retrieved runs its forwards judge (None: none);
    whether it makes `gamma` forwards for each step (None: as many as fit in one of the target's)
    and each waits for the other, or goes ahead as far as is of use; and along which forks."""

    retrieval: RetrievalSettings | None = None
    lockstep: bool = False
    gamma: int | None = None
    forks: ForkSettings = field(default_factory=ForkSettings)


@dataclass(frozen=True, slots=True)
class Settings:
    """How an LLM runs. What is None is found by the program: see docs/architecture.md.

    `schedule` is how a draft works beside the target: "free" (it drafts ahead and never waits) or
    "lock-step" (`gamma` forwards a step, and each waits for the other, as in the paper). `gamma`
    counts there and for a draft before the target; a free draft goes on by itself. `forks` are the
    corrections that a free draft goes on from in advance. A draft that has said nothing for
    `draft_timeout` seconds, or is not loaded after twenty times that, is given up and begun again.
    `quantize` rounds the target's layers to 8 bits while they are read: answers are then exactly
    those of the quantised target, not of the one on disk. `kernels` are native, compiled for the
    CPU or the GPU when a model is loaded, or PyTorch's; each have bits of their own.
    `history_bytes` of memory hold earlier answers (0: none), with `history_prompts` their prompts,
    too. A `target_device` of several, such as "cuda:0,cuda:1", divides the target among them;
    answers are exact for that many ranks, since another number of them sums in another order.
    """

    method: str = "auto"
    gamma: int | None = None
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    schedule: Schedule = "free"
    forks: int = DEFAULT_FORKS
    draft_timeout: float = 30.0
    guess_tokens: int = 48
    background: Background = "process"
    target_device: str | tuple[str, ...] | None = None
    draft_device: str | None = None
    dtype: str | None = None
    quantize: Quantize | None = None
    kernels: Kernels | None = None
    graphs: bool = True
    max_length: int | None = None
    threads: int | None = None
    draft_threads: int = 1
    history_bytes: int = 64 << 20
    history_prompts: bool = False

    def __post_init__(self) -> None:
        for name, low, high in _OPTIONAL:
            value = getattr(self, name)
            if value is not None:
                _check(name, value, low, high)
        _check("draft_threads", self.draft_threads, 1, _MOST_THREADS)
        if self.history_bytes != 0:
            _check("history_bytes", self.history_bytes, 1 << 16, 1 << 36)
        for name in ("graphs", "history_prompts"):
            _check_choice(name, getattr(self, name), (False, True))
        if not isinstance(self.retrieval, RetrievalSettings):
            raise ConfigError(f"retrieval must be RetrievalSettings, got {self.retrieval!r}")
        _check("guess_tokens", self.guess_tokens, 1, 255)
        _check("forks", self.forks, 0, 64)
        if self.target_device is not None:
            _check_devices(self.target_devices)
        _check_choice("background", self.background, BACKGROUNDS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        if self.quantize is not None:
            _check_choice("quantize", self.quantize, QUANTIZATIONS)
        if self.kernels is not None:
            _check_choice("kernels", self.kernels, KERNELS)
        timeout = self.draft_timeout
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise ConfigError(f"draft_timeout must be seconds above 0, got {timeout!r}")

    @property
    def target_devices(self) -> tuple[str | None, ...]:
        """The names of the target's devices, one for each rank."""
        names = self.target_device
        if names is None:
            return (None,)
        return tuple(part.strip() for part in names.split(",")) if isinstance(names, str) else names

    @property
    def draft_runs_on(self) -> str | None:
        """The name of the draft's device: the target's first, if none is set."""
        return self.draft_device or self.target_devices[0]


def _check(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def _check_devices(names: tuple[str | None, ...]) -> None:
    is_list = isinstance(names, tuple | list) and len(names) > 0
    if not is_list or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            "target_device must be like 'cuda:0', or 'cuda:0,cuda:1' for a target on two devices, "
            f"got {names!r}"
        )


def _check_choice(name: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings that a method's name may carry behind an @; None leaves them as they are."""

    retrieval: RetrievalSettings | None = None
    schedule: Schedule | None = None
    forks: int | None = None


# The authors' scripts (arXiv 2601.05524): n-grams of 3 down to 1 tokens, 10 retrieved tokens,
# lock-step, about c = t_T / t_D draft forwards a step (`gamma=None` measures c).
# "pld": prompt lookup as it is usually run: n-grams of 8 down to 2 tokens, the last match.
# "lock-step", "free" and "forks" are the three ways of a draft beside the target, to compare them.
PRESETS: Final = {
    "paper": Preset(RetrievalSettings(ngram=3, tokens=10), "lock-step", forks=0),
    "pld": Preset(RetrievalSettings(ngram=8, tokens=10, shortest=2, latest=True)),
    "lock-step": Preset(None, "lock-step", forks=0),
    "free": Preset(None, "free", forks=0),
    "forks": Preset(None, "free", forks=DEFAULT_FORKS),
}
