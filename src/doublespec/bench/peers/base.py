"""What a peer is: another program's decoding, on the same weights, prompts and stop rule."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from doublespec.decoding import Step
from doublespec.sampling import Request
from doublespec.stopping import Finish, StopRule
from doublespec.tokens import Tokens


class Peer(Protocol):
    """Answers a prompt as Steps, of which it knows the new tokens and the time."""

    def answer(self, tokens: Tokens, request: Request, stop: StopRule) -> list[Step]: ...


@dataclass(frozen=True, slots=True)
class Pair:
    """The checkpoints that every peer reads, and how."""

    target: Path
    draft: Path | None
    dtype: str
    device: str
    target_model: Any  # shared by peers of one library
    draft_model: Any


@dataclass(frozen=True, slots=True)
class FailedPeer:
    """A peer that could not be made."""

    error: Exception

    def answer(self, tokens: Tokens, request: Request, stop: StopRule) -> list[Step]:
        raise self.error


class Recorder:
    """Receives tokens while a peer makes them (transformers' streamer protocol) and keeps the
    Steps."""

    def __init__(self) -> None:
        self._begun = perf_counter()
        self._chunks: list[tuple[tuple[int, ...], float]] = []
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        now = perf_counter()
        if not self._prompt_seen:  # the first call holds the prompt
            self._prompt_seen = True
            return
        self._chunks.append((tuple(value.flatten().tolist()), now - self._begun))
        self._begun = now

    def end(self) -> None:
        return

    @property
    def seconds(self) -> list[float]:
        """Of each token or run of them, the first with the prompt."""
        return [seconds for _, seconds in self._chunks]

    def steps(self, request: Request) -> list[Step]:
        """The answer as Steps. Nothing is cut: running past the end must be seen."""
        return [
            _step(new, seconds, _finish(new, request) if last else None)
            for (new, seconds), last in zip(self._chunks, self._lasts(), strict=True)
        ]

    def _lasts(self) -> list[bool]:
        return [i == len(self._chunks) - 1 for i in range(len(self._chunks))]


def _finish(new: tuple[int, ...], request: Request) -> Finish:
    return "stop" if new and new[-1] in request.end_ids else "length"


def _step(new: tuple[int, ...], seconds: float, finish: Finish | None) -> Step:
    return Step(
        new=new,
        guess=(),
        num_drafted=0,
        finish=finish,
        guess_seconds=0.0,
        target_seconds=seconds,
        wait_seconds=0.0,
        seconds=seconds,
    )
