"""A machine in numbers: how long forwards take by row count, and what a step takes then."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from doublespec.bench.profile import PROFILE_VERSION
from doublespec.errors import ConfigError
from doublespec.models.load import ForwardCost


@dataclass(frozen=True)
class Curve:
    """Seconds of a forward by its rows: straight lines between what was measured, the last line
    carried on, and never less than before it. `padded`: a block takes as long as the next row
    count that was measured."""

    points: tuple[tuple[int, float], ...]
    padded: bool = False

    @cached_property
    def _table(self) -> list[float]:
        return [self._at(rows) for rows in range(513)]

    def __call__(self, rows: int) -> float:
        return self._table[rows] if rows < len(self._table) else self._at(rows)

    def scaled(self, factor: float) -> "Curve":
        """The same curve with every time multiplied by a factor."""
        points = tuple((rows, factor * seconds) for rows, seconds in self.points)
        return Curve(points, self.padded)

    def _at(self, rows: int) -> float:
        if len(self.points) == 1 or rows <= self.points[0][0]:
            return self.points[0][1]
        inside = [i for i, point in enumerate(self.points[1:], start=1) if rows <= point[0]]
        right = inside[0] if inside else len(self.points) - 1
        (x0, y0), (x1, y1) = self.points[right - 1], self.points[right]
        if self.padded and inside:
            return y1
        return max(y0 + (y1 - y0) * (rows - x0) / (x1 - x0), y0)


@dataclass(frozen=True)
class Machine:
    """What a pair of models costs. `baseline_seconds` is a forward of plain decoding in its fastest
    shape, `pipe_seconds` what a background draft's messages add to its time, `follow_seconds` what
    they take of the target's, `overhead_seconds` what a step costs outside the models,
    `lookup_seconds` a retrieval, `branch_seconds` a correction drafted in advance, for each forward
    of the draft that it is in.

    Where draft and target share a processor, each makes the other's forwards longer: `after_draft`
    are the target's in turns with a draft's and `draft_after` the draft's, `beside_draft` those
    while the draft works, and `draft_beside` the draft's then (None: as long as alone).

    A forward over one row that follows another one in the same call takes `chained_seconds`, of the
    draft `draft_chained_seconds` (None: it does not go on by itself)."""

    target: Curve
    draft: Curve
    baseline_seconds: float
    pipe_seconds: float = 0.0
    follow_seconds: float = 0.0
    overhead_seconds: float = 0.0
    devices: int = 2
    lookup_seconds: float = 0.0
    branch_seconds: float = 0.0
    after_draft: Curve | None = None
    beside_draft: Curve | None = None
    draft_beside: Curve | None = None
    draft_after: Curve | None = None
    chained_seconds: float | None = None
    draft_chained_seconds: float | None = None

    @property
    def ratio(self) -> float:
        """c = t_T / t_D, both over one row: the ceiling of PSD."""
        return self.target(1) / self.draft(1)

    def with_ratio(self, ratio: float) -> "Machine":
        """The same target with a draft of that c, faster or slower in all that its forwards do:
        alone, beside the target, and with corrections in advance."""
        factor = self.ratio / ratio
        return replace(
            self,
            draft=self.draft.scaled(factor),
            draft_beside=self.draft_beside and self.draft_beside.scaled(factor),
            draft_after=self.draft_after and self.draft_after.scaled(factor),
            draft_chained_seconds=self.draft_chained_seconds
            and factor * self.draft_chained_seconds,
            branch_seconds=factor * self.branch_seconds,
        )

    @property
    def row_cost(self) -> float:
        """What each further row adds to a forward of the target alone, as a share of it."""
        return _row_cost(self.target)

    @property
    def cost(self) -> ForwardCost:
        """What an engine measures of it when a model is loaded."""
        beside = self.beside_draft or self.target
        return ForwardCost(
            beside(1),
            _row_cost(beside),
            self.target(1) / beside(1),
            self.row_cost,
            self.chained_seconds,
        )


def read_machine(path: Path) -> Machine:
    """The machine of a profile that `doublespec doctor --save` wrote. Raises ConfigError."""
    try:
        profile = json.loads(path.read_text(encoding="utf-8"))
        if profile["version"] != PROFILE_VERSION:
            raise ConfigError(
                f"{path} is a profile of version {profile['version']}, and this program reads "
                f"version {PROFILE_VERSION}; write it anew with `doublespec doctor --save`"
            )
        return _machine(profile)
    except OSError as error:
        raise ConfigError(f"cannot read the profile {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is no profile of a model pair as `doublespec doctor --save` writes it "
            f"({type(error).__name__}: {error})"
        ) from error


def _machine(profile: Mapping[str, Any]) -> Machine:
    in_turns, beside = profile["in_turns"], profile["beside"]
    names = ("pipe", "follow", "step", "lookup", "branch")
    pipe, follow, step, lookup, branch = (_seconds(profile[f"{name}_seconds"]) for name in names)
    chained, quick, draft = (
        _positive(profile[f"{name}_chained_seconds"]) for name in ("target", "fastest", "draft")
    )
    return Machine(
        _curve(profile["target"]),
        _curve(profile["draft"]),
        quick or _curve(profile["fastest"])(1),
        pipe_seconds=pipe,
        follow_seconds=follow,
        overhead_seconds=step,
        lookup_seconds=lookup,
        branch_seconds=branch,
        after_draft=_curve(in_turns["target"]),
        beside_draft=_curve(beside["target"]),
        draft_beside=_curve(beside["draft"]),
        draft_after=_curve(in_turns["draft"]),
        chained_seconds=chained,
        draft_chained_seconds=draft,
    )


def parse_curve(text: str, name: str) -> Curve:
    """A curve in milliseconds: "24", or "1:24,8:24.5,32:30" by rows. Raises ConfigError."""
    try:
        pairs = [part.split(":") for part in text.split(",")]
        points = [(int(pair[0]), float(pair[1])) for pair in pairs if len(pair) == 2]
        points = points or [(1, float(text))]
    except ValueError:
        points = []
    rows, times = [point[0] for point in points], [point[1] for point in points]
    is_time = all(0 < milliseconds < math.inf for milliseconds in times)
    if not points or rows != sorted(set(rows)) or min(rows) < 1 or not is_time:
        raise ConfigError(
            f"{name} must be milliseconds like 24, or by rows like 1:24,8:24.5,32:30, got {text!r}"
        )
    return Curve(tuple((row, milliseconds / 1e3) for row, milliseconds in points))


def _curve(times: Mapping[str, Mapping[str, float]]) -> Curve:
    points = sorted((int(rows), _seconds(seconds)) for rows, seconds in times["seconds"].items())
    if not points:
        raise ValueError("no times")
    if points[0][0] < 1 or not all(seconds for _, seconds in points):
        raise ValueError("a forward over no rows, or in no time")
    return Curve(tuple(points), padded=True)


def _row_cost(curve: Curve) -> float:
    """By 15 more, as an engine measures it (`models/load.py`)."""
    return max(0.0, curve(16) / curve(1) - 1) / 15


def _positive(value: float | None) -> float | None:
    if value is None:
        return None
    if not _seconds(value):
        raise ValueError("a forward in no time")
    return float(value)


def _seconds(value: float) -> float:
    seconds = float(value)
    if not 0.0 <= seconds < math.inf:
        raise ValueError(f"{value!r} is no time")
    return seconds
