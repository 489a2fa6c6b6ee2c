"""The two lanes of a trace as a picture for documents: the draft above, the target below.

Needs the extra `bench` (matplotlib). The same trace gives the same bytes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from doublespec.bench.plotting import INK, Patch, PictureFormat, pyplot, saved
from doublespec.decoding import Step
from doublespec.trace.lanes import (
    DraftEvent,
    TargetEvent,
    Timeline,
    draft_lane,
    from_zero,
    target_lane,
)
from doublespec.trace.ruler import Ruler

_ROW = 9.2  # typical forwards of the target in a row
_WINDOW = 12.2  # the same, in a comparison
_LONGEST = 1.6  # of a stretch, in typical forwards; what is longer is shortened
_COLOURS = {
    "draft": "#e0a030",
    "retrieved": "#7a4fa3",
    "refused": "#ffffff",
    "own": "#2f5fa8",
    "foreseen": "#3c9d74",
    "bubble": "#fdecea",
    "wait": "#c9ced6",
}
_LABELS = {
    "draft": "drafted",
    "retrieved": "retrieved",
    "refused": "refused",
    "own": "the target's own choice",
    "foreseen": "a correction drafted in advance",
    "bubble": "bubble: nothing drafted to judge",
    "wait": "waits for the draft",
}
_RED, _JUDGE, _LANE = "#c8443f", "#dfe8f5", "#f5f6f8"
_DRAFT_Y, _TARGET_Y = (1.12, 1.72), (0.0, 0.92)  # where the lanes lie


def draw_timeline(timeline: Timeline, chosen: range, kind: PictureFormat, title: str) -> bytes:
    """The chosen steps, counted from 0, as a file."""
    steps = from_zero(timeline.steps)
    shown = target_lane(steps)[chosen.start : chosen.stop]
    typical = median(event.target_seconds for event in shown) or 1e-3
    picture = _Picture(shown, draft_lane(steps), typical, _LONGEST * typical, _ROW * typical)
    rows = list(picture.rows())
    figure, grid = pyplot.subplots(
        len(rows), figsize=(11, 1.45 * len(rows) + 0.9), squeeze=False, layout="constrained"
    )
    for axes, row in zip(grid[:, 0], rows, strict=True):
        picture.draw(axes, row)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, color=INK)
    figure.legend(handles=list(_handles(shown)), loc="outside lower left", ncols=7, frameon=False,
                  fontsize=8, handlelength=1.2, columnspacing=1.4)  # fmt: skip
    return saved(figure, kind)


def comparison(answers: Mapping[str, Sequence[Step]]) -> Any:
    """A figure of what methods settle in the same time, from each one's second step on."""
    lanes = {name: from_zero(steps[1:]) for name, steps in answers.items()}
    typical = median(s.target_seconds for steps in lanes.values() for s in steps) or 1e-3
    figure, grid = pyplot.subplots(
        len(lanes), figsize=(11, 1.25 * len(lanes) + 0.6), squeeze=False, layout="constrained"
    )
    shown = []
    for axes, (name, steps) in zip(grid[:, 0], lanes.items(), strict=True):
        picture = _Picture(
            target_lane(steps), draft_lane(steps), typical, math.inf, _WINDOW * typical
        )
        row = next(picture.rows())
        picture.draw(axes, row)
        settled = sum(event.settled for event in row)
        axes.set_title(f"{name}: {settled} tokens, {len(row)} steps", loc="left", fontsize=9)
        shown += row
    figure.legend(handles=list(_handles(shown)), loc="outside lower left", ncols=7, frameon=False,
                  fontsize=8)  # fmt: skip
    return figure


class _Picture:
    """Draws steps on axes, all at one scale."""

    def __init__(
        self,
        target: Sequence[TargetEvent],
        draft: Sequence[DraftEvent],
        typical: float,
        longest: float,
        width: float,
    ) -> None:
        """`typical` is how long a forward of the target takes, `longest` what is not shortened,
        `width` what fits in a row, all in seconds."""
        self._target = target
        self._draft = draft
        self._typical = typical
        self._place = Ruler(target, longest)
        self._width = width
        self._digits = 1 if self._typical < 0.01 else 0

    def rows(self) -> Iterator[list[TargetEvent]]:
        """The steps, as many in a row as fit."""
        row: list[TargetEvent] = []
        for event in self._target:
            if row and self._place(event.ended) - self._place(row[0].begun) > self._width:
                yield row
                row = []
            row.append(event)
        yield row

    def draw(self, axes: Any, row: Sequence[TargetEvent]) -> None:
        start = self._place(row[0].begun)
        for low, high in (_DRAFT_Y, _TARGET_Y):
            axes.axhspan(low, high, color=_LANE, linewidth=0)
        for event in self._draft:
            if row[0].begun <= event.begun < row[-1].ended:
                self._draw_draft(axes, event)
        for step in row:
            self._draw_step(axes, step)
        axes.set_xlim(start, start + self._width)
        axes.set_ylim(-0.05, 1.8)
        axes.set_yticks([sum(_TARGET_Y) / 2, sum(_DRAFT_Y) / 2], ["target", "draft"])
        begun = [event.begun for event in row]
        labels = [f"{moment * 1e3:.{self._digits}f}" for moment in begun]
        labels[0] += " ms"
        axes.set_xticks([self._place(moment) for moment in begun], labels, ha="left")
        axes.tick_params(length=3, color=_COLOURS["wait"], labelsize=8, labelcolor=INK)
        axes.tick_params(axis="y", length=0)
        axes.spines[:].set_visible(False)

    def _draw_draft(self, axes: Any, event: DraftEvent) -> None:
        stop = event.begun + event.seconds
        left, width = self._box(axes, event.begun, stop, _DRAFT_Y, _COLOURS["draft"])
        low, high = _DRAFT_Y
        if event.branches:
            axes.bar(left, 0.12, width, high, align="edge", color=_COLOURS["foreseen"], ec="white")
        if width > 0.05 * self._typical:
            label = str(len(event.tokens))
            axes.text(left + width / 2, (low + high) / 2, label, color="white", fontsize=8,
                      ha="center", va="center", clip_on=True)  # fmt: skip

    def _draw_step(self, axes: Any, event: TargetEvent) -> None:
        for wait in event.waits:
            self._thin(axes, wait, _COLOURS["wait"])
        self._thin(axes, event.retrieval, _COLOURS["retrieved"])
        start, stop = event.judging
        edge = _RED if event.is_bubble else _COLOURS["own"]
        left, width = self._box(axes, start, stop, _TARGET_Y, _COLOURS["bubble"] if event.is_bubble
                                else _JUDGE, edge)  # fmt: skip
        label = f"{event.settled} new" if width > 0.3 * self._typical else f"{event.settled}"
        if event.is_bubble:
            label = f"bubble: {label}" if width > 0.8 * self._typical else "bubble"
        axes.text(left + 0.06 * self._typical, 0.66, label, color=edge, fontsize=8, va="center",
                  clip_on=True)  # fmt: skip
        self._draw_tokens(axes, event, left, width)
        if self._place.is_shortened(event.begun, event.ended):
            axes.text(left, 0.46, "//", color=INK, fontsize=11, ha="right", va="center")

    def _draw_tokens(self, axes: Any, event: TargetEvent, left: float, width: float) -> None:
        """A square for each token that was shown, and one for the target's own."""
        kinds = list(_outcomes(event))
        margin = 0.06 * self._typical
        size = min(0.1 * self._typical, (width - 2 * margin) / max(len(kinds), 1))
        for number, kind in enumerate(kinds):
            refused = kind == "refused"
            axes.bar(left + margin + number * size, 0.3, size * 0.86, 0.14, align="edge",
                     color=_COLOURS[kind], ec=_RED, linewidth=0.6 if refused else 0)  # fmt: skip

    def _box(
        self, axes: Any, start: float, stop: float, lane: tuple[float, float], colour: str,
        edge: str = "white",
    ) -> tuple[float, float]:  # fmt: skip
        left, width = self._place(start), self._place(stop) - self._place(start)
        axes.bar(left, lane[1] - lane[0], width, lane[0], align="edge", color=colour, ec=edge,
                 linewidth=1)  # fmt: skip
        return left, width

    def _thin(self, axes: Any, stretch: tuple[float, float], colour: str) -> None:
        start, stop = map(self._place, stretch)
        axes.bar(start, 0.1, stop - start, 0.41, align="edge", color=colour, linewidth=0)


def _outcomes(event: TargetEvent) -> Iterator[str]:
    kept = event.kept_drafted + event.kept_retrieved
    yield from ["draft"] * event.kept_drafted
    yield from ["retrieved"] * event.kept_retrieved
    yield from ["refused"] * (event.drafted + event.retrieved - kept)
    if event.has_own_token:
        yield "foreseen" if event.foreseen else "own"


def _handles(shown: Sequence[TargetEvent]) -> Iterator[Any]:
    """The legend: what there is in these steps."""
    found = {kind for event in shown for kind in _outcomes(event)}
    found |= {"bubble"} if any(event.is_bubble for event in shown) else set()
    found |= {"wait"} if any(event.waits for event in shown) else set()
    for kind, label in _LABELS.items():
        if kind in found:
            edge = _RED if kind in ("refused", "bubble") else _COLOURS[kind]
            yield Patch(fc=_COLOURS[kind], ec=edge, label=label)
