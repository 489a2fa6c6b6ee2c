"""The two lanes of a trace, drawn with characters. Reads without colour, and in ASCII too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from rich.text import Text

from doublespec.trace.lanes import DraftEvent, TargetEvent
from doublespec.trace.ruler import Ruler

_FORWARD = 14  # columns of a typical forward of the target, where there is room
_MARGIN = 8  # columns before the lanes, for their names
_KEPT, _RETRIEVED, _REFUSED, _OWN, _FORESEEN, _BUBBLE = "drx+⊕∅"
_IDLE, _WAIT, _RETRIEVE, _SETTLED, _CUT = "·~:=»"
_STYLES = {
    _KEPT: "bold yellow", _RETRIEVED: "bold magenta", _REFUSED: "red", _OWN: "bold blue",
    _FORESEEN: "bold green", _BUBBLE: "bold red", _WAIT: "dim", _RETRIEVE: "magenta",
    _IDLE: "dim", _CUT: "bold", _SETTLED: "bold", "├": "", "*": "bold yellow",
}  # fmt: skip
_LEGEND = {  # by the character that calls for it
    "├": "├3┤ forward (3 tokens drafted)",
    "*": "3*1 and a correction drafted on",
    _KEPT: "d drafted, kept",
    _RETRIEVED: "r retrieved, kept",
    _REFUSED: "x refused",
    _OWN: "+ own choice",
    _FORESEEN: "⊕ own choice, foreseen",
    _BUBBLE: "∅ bubble: nothing drafted",
    _WAIT: "~ waits for the draft",
    _RETRIEVE: ": retrieves",
    _IDLE: "· idle",
    _SETTLED: "= tokens settled",
    _CUT: "» shortened",
}
_ASCII = str.maketrans("⊕∅·»├─┤│", "@0.>[-]|")

Cell = tuple[str, str]  # a character and its style


@dataclass(frozen=True, slots=True)
class _Stave:
    """Some steps in a row, and the places where their drawing begins and ends, in columns."""

    events: Sequence[TargetEvent]
    start: float
    stop: float


class Drawing:
    """The lanes of some steps, in rows of at most `width` columns."""

    def __init__(
        self, target: Sequence[TargetEvent], draft: Sequence[DraftEvent], width: int
    ) -> None:
        self._columns = max(width - _MARGIN, 8)
        self._target = target
        self._draft = draft
        typical = median(event.target_seconds for event in target) or 1e-3
        self._per_second = min(_FORWARD, max(8, self._columns // 6)) / typical
        self._ruler = Ruler(target, self._columns // 3 / self._per_second)
        self._digits = 1 if typical < 0.01 else 0

    def lines(self) -> Iterator[Text]:
        """A time axis, the draft's lane and the target's, again and again."""
        for stave in self._staves():
            yield self._line("ms", self._axis(stave))
            yield self._line("draft", self._draft_cells(stave))
            yield self._line("target", self._target_cells(stave))
            yield Text()

    def _staves(self) -> Iterator[_Stave]:
        """As many steps in a row as fit, one at least."""
        row: list[TargetEvent] = []
        for event in self._target:
            if row and self._place(event.ended) - self._place(row[0].begun) > self._columns:
                yield _Stave(row, self._place(row[0].begun), self._place(event.begun))
                row = []
            row.append(event)
        yield _Stave(row, self._place(row[0].begun), self._place(row[-1].ended))

    def _place(self, moment: float) -> float:
        return self._ruler(moment) * self._per_second

    def _line(self, name: str, cells: Sequence[Cell]) -> Text:
        style = "dim" if name == "ms" else "bold"
        return Text.assemble((name.ljust(_MARGIN), style), *cells, no_wrap=True, overflow="crop")

    def _axis(self, stave: _Stave) -> list[Cell]:
        """The time at which a step begins, above it, where there is room."""
        text = ""
        for event in stave.events:
            column = round(self._place(event.begun) - stave.start)
            label = f"│{event.begun * 1e3:.{self._digits}f}"
            if (column > len(text) or not text) and column + len(label) <= self._columns:
                text = text.ljust(column) + label
        return [(text, "dim")]

    def _draft_cells(self, stave: _Stave) -> list[Cell]:
        cells = [(_IDLE, _STYLES[_IDLE])] * self._length(stave)
        for event in self._draft:
            start, stop = event.begun, event.begun + event.seconds
            label = str(len(event.tokens)) + (f"*{event.branches}" if event.branches else "")
            self._block(cells, stave, start, stop, [(c, "bold yellow") for c in label], "yellow")
        return cells

    def _target_cells(self, stave: _Stave) -> list[Cell]:
        cells = [(" ", "")] * self._length(stave)
        for event in stave.events:
            for start, stop in event.waits:
                self._fill(cells, stave, start, stop, _WAIT)
            self._fill(cells, stave, *event.retrieval, _RETRIEVE)
            start, stop = event.judging
            room = round(self._place(stop)) - round(self._place(start)) - 2
            style = "red" if event.is_bubble else "blue"
            self._block(cells, stave, start, stop, _outcome(event, room), style)
        return cells

    def _length(self, stave: _Stave) -> int:
        return min(self._columns, max(1, round(stave.stop - stave.start)))

    def _span(self, stave: _Stave, start: float, stop: float) -> tuple[int, int]:
        """The columns of a stretch of time, counted from the row's beginning."""
        first = round(self._place(start) - stave.start)
        return first, round(self._place(stop) - stave.start)

    def _fill(self, cells: list[Cell], stave: _Stave, start: float, stop: float, sign: str) -> None:
        first, last = self._span(stave, start, stop)
        _put(cells, first, [(sign, _STYLES[sign])] * (last - first))
        self._mark_shortened(cells, stave, start, stop)

    def _block(
        self,
        cells: list[Cell],
        stave: _Stave,
        start: float,
        stop: float,
        label: Sequence[Cell],
        style: str,
    ) -> None:
        """A forward, one column at least."""
        first, last = self._span(stave, start, stop)
        last = max(last, first + 1)
        _put(cells, first, _bracketed(label, last - first, style))
        self._mark_shortened(cells, stave, start, stop)

    def _mark_shortened(self, cells: list[Cell], stave: _Stave, start: float, stop: float) -> None:
        if self._ruler.is_shortened(start, stop):
            _put(cells, self._span(stave, start, stop)[1] - 2, [(_CUT, _STYLES[_CUT])])


def legend(lines: Sequence[Text]) -> list[Text]:
    """What the characters mean that these lines are drawn with."""
    drawn = "".join(line.plain[_MARGIN:] for line in lines)
    known = ((sign, meaning) for sign, meaning in _LEGEND.items() if sign in drawn)
    return [Text(meaning, _STYLES[sign]) for sign, meaning in known]


def in_ascii(text: Text) -> Text:
    """The same for a terminal that knows no other characters."""
    plain = text.copy()
    plain.plain = text.plain.translate(_ASCII)
    return plain


def _put(cells: list[Cell], start: int, new: Sequence[Cell]) -> None:
    """Writes cells as far as they lie inside."""
    for column, cell in enumerate(new, start):
        if 0 <= column < len(cells):
            cells[column] = cell


def _bracketed(label: Sequence[Cell], width: int, style: str) -> list[Cell]:
    """A label between brackets; with one of them, or none, where there is no room for more; and
    without the label where there is none for it."""
    opening, filling, closing = ("├", style), ("─", style), ("┤", style)
    if len(label) + 2 <= width:
        return [opening, *label, *[filling] * (width - 2 - len(label)), closing]
    if len(label) <= width:
        return [*label, *[closing] * (width - len(label))]
    return [opening, *[filling] * (width - 2), closing] if width > 1 else [("│", style)]


def _outcome(event: TargetEvent, room: int) -> list[Cell]:
    """What became of the tokens shown: a character each, counts if there is no room for that, and
    the number of settled tokens if there is still none."""
    kept = event.kept_drafted + event.kept_retrieved
    signs = _BUBBLE * event.is_bubble + _KEPT * event.kept_drafted
    signs += _RETRIEVED * event.kept_retrieved
    signs += _REFUSED * (event.drafted + event.retrieved - kept)
    signs += (_FORESEEN if event.foreseen else _OWN) * event.has_own_token
    counted = [(sign, len(list(same))) for sign, same in groupby(signs)]
    short = [(sign + (str(n) if n > 1 else ""), _STYLES[sign]) for sign, n in counted]
    for cells in ([(sign, _STYLES[sign]) for sign in signs], _split(short)):
        if len(cells) <= room:
            return cells
    return [(character, "bold") for character in f"{_SETTLED}{event.settled}"]


def _split(pieces: Sequence[Cell]) -> list[Cell]:
    return [(character, style) for text, style in pieces for character in text]
