"""Is the simulator right? Its speeds beside those of real runs of the same answers.

Both count decoding alone: the first step of an answer reads the prompt, which is not simulated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from doublespec.bench.machine import Machine
from doublespec.bench.race import Run
from doublespec.bench.replay import Replay
from doublespec.bench.simulate import answers, plans
from doublespec.bench.traces import Trace
from doublespec.config import Settings
from doublespec.decoding import Step
from doublespec.errors import ConfigError
from doublespec.methods import METHODS

REFERENCE = "ar"  # what ratios are to, simulated and measured alike


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second after the first step, the ratio to plain decoding, tokens per step, and
    the mean milliseconds of a step."""

    tokens_per_second: float
    ratio: float
    mean_accepted_length: float
    step_milliseconds: float


@dataclass(frozen=True, slots=True)
class Compared:
    """A method as simulated and as measured."""

    simulated: Speed
    measured: Speed

    @property
    def difference(self) -> float:
        """By what share the simulated tokens per second are higher."""
        return self.simulated.tokens_per_second / self.measured.tokens_per_second - 1.0

    @property
    def ratio_difference(self) -> float:
        """By what share the simulated ratio is higher."""
        return self.simulated.ratio / self.measured.ratio - 1.0


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Answers after their first steps: tokens, steps, seconds."""

    tokens: int
    steps: int
    seconds: float


def validate(
    runs: Sequence[Run],
    traces: Sequence[Trace],
    machine: Machine,
    second: float,
    gamma: int | None,
) -> dict[str, Compared]:
    """Every method that has run, simulated on the same answers; `gamma` as given to `bench`. Raises
    ConfigError where the traces are not of these runs."""
    _check(runs, traces)
    replays = [Replay(trace, second) for trace in traces]
    names = [name for name in dict.fromkeys(run.method for run in runs) if _is_method(name)]
    measured = {name: _measured([run for run in runs if run.method == name]) for name in names}
    simulated = {name: _simulated(name, machine, replays, gamma) for name in names}
    return {
        name: Compared(
            _speed(simulated[name], simulated[REFERENCE]),
            _speed(measured[name], measured[REFERENCE]),
        )
        for name in names
    }


def _is_method(name: str) -> bool:
    return name.partition("@")[0] in METHODS


def _check(runs: Sequence[Run], traces: Sequence[Trace]) -> None:
    texts = {run.prompt: run.completion.tokens for run in runs if run.method == REFERENCE}
    if [text for _, text in sorted(texts.items())] != [trace.answer for trace in traces]:
        raise ConfigError(
            "the traces are not the answers of these runs; write both with one command: "
            "`doublespec bench --resume RUNS --record ANSWERS`"
        )


def _measured(runs: Sequence[Run]) -> _Decoded:
    """Of each prompt the median time of its rounds."""
    by_prompt: dict[int, list[_Decoded]] = {}
    for run in runs:
        by_prompt.setdefault(run.prompt, []).append(_decoded(run.steps))
    return _sum(
        [
            _Decoded(
                rounds[0].tokens,
                round(median(decoded.steps for decoded in rounds)),
                median(decoded.seconds for decoded in rounds),
            )
            for rounds in by_prompt.values()
        ]
    )


def _simulated(
    name: str, machine: Machine, replays: Sequence[Replay], gamma: int | None
) -> _Decoded:
    """With the settings that `bench` runs with: gamma = c, but where a serial draft decides."""
    if gamma is None and name != "double-serial":
        gamma = max(1, round(machine.ratio))
    (plan,) = plans(name, machine, gamma, guess_tokens=Settings().guess_tokens)
    return _sum([_decoded(steps) for steps in answers(plan, machine, replays)])


def _decoded(steps: Sequence[Step]) -> _Decoded:
    later = steps[1:]
    tokens, seconds = sum(len(step.new) for step in later), sum(step.seconds for step in later)
    return _Decoded(tokens, len(later), seconds)


def _sum(parts: Sequence[_Decoded]) -> _Decoded:
    return _Decoded(
        sum(part.tokens for part in parts),
        sum(part.steps for part in parts),
        sum(part.seconds for part in parts),
    )


def _speed(decoded: _Decoded, reference: _Decoded) -> Speed:
    rate = decoded.tokens / decoded.seconds
    return Speed(
        rate,
        rate / (reference.tokens / reference.seconds),
        decoded.tokens / decoded.steps,
        1e3 * decoded.seconds / decoded.steps,
    )
