"""The table of a benchmark, for people."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from doublespec.bench.race import BASELINE, replay_note

_COLUMNS = ("method", "tokens/s", "ratio", "95 %", "M", "first", "rep.", "equal")


def table(report: Mapping[str, Any]) -> Table:
    """A row for each method, over all categories; fits 80 columns."""
    origin = report["provenance"]
    note = replay_note(origin["replay"]) + " " if "replay" in origin else ""
    found = Table(
        *(Column(name, no_wrap=name != "method") for name in _COLUMNS),
        title=f"{origin['prompts']} prompts, {origin['rounds']} interleaved rounds",
        caption=note
        + f"'{BASELINE}': plain decoding in its fastest shape. ratio: to it or to 'ar', the "
        "faster one, with a 95 % interval. M: tokens a step. first: milliseconds to the first "
        "token. rep.: share of 8-grams that stood in the text before. equal: texts equal to those "
        "of 'ar'; of a peer: to its own plain decoding's.",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name, rows in report["results"].items():
        row = rows["all"]
        found.add_row(
            name,
            f"{row['tokens_per_second']:.1f}",
            *_ratio(row),
            f"{row['mean_accepted_length']:.2f}",
            f"{row['ttft_seconds'] * 1e3:.0f}",
            f"{row['repeated_8grams']:.0%}",
            f"{row['identical']}/{row['compared']}",
        )
    return found


def _ratio(row: Mapping[str, Any]) -> tuple[str, str]:
    """The ratio and its interval; nothing where plain decoding has answered none of the prompts."""
    if row["ratio"] is None:
        return "-", "-"
    low, high = row["ratio_interval"]
    return f"{row['ratio']:.2f}", f"{low:.2f}-{high:.2f}"
