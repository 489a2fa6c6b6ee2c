"""The report of `doublespec bench-shapes` as a section of a document."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from doublespec.bench.race import replay_note

Rows = Mapping[str, Mapping[str, Any]]

_REPLAYED = (
    "method",
    "tokens/s",
    "ratio",
    "M",
    "first token (ms)",
    "p50 / p99 a token (ms)",
    "rows/token",
    "bubbles",
    "draft idle",
)


def as_markdown(report: Mapping[str, Any]) -> str:
    """The section; the same report gives the same bytes."""
    parts, origin = report["parts"], report["provenance"]
    versions = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    commands = dict.fromkeys(part["command"] for part in parts.values())
    text = [
        f"# Shapes: {report['title']}\n",
        "Written by a command, not to be edited; random weights:\n",
        "\n".join(f"    {command}" for command in commands) + "\n",
        f"{origin['device']}, {origin['dtype']}{_quantised(origin)}; {origin['cpu']}, "
        f"{origin['cores']} cores; revision {origin['revision']}; {versions}.\n",
    ]
    for name, section in _SECTIONS.items():
        if name in parts:
            text += section(parts[name]["found"])
    return "\n".join(text + _failures(parts))


def _quantised(origin: Mapping[str, Any]) -> str:
    return f" with {origin['quantize']} layers" if origin.get("quantize") else ""


def _load(found: Rows) -> list[str]:
    times = found.get("target")
    if times is None:
        return []
    return [
        f"Loading takes {times['seconds']:.1f} s, {times['weights_seconds']:.1f} s of them for "
        "making the weights.\n"
    ]


def _memory(found: Rows) -> list[str]:
    return [
        f"Memory: {_gigabytes(row['predicted_bytes'])} predicted, peak "
        f"{_gigabytes(row['peak_bytes'])} ({row['differs']:+.1%}), "
        f"{_gigabytes(row['reserved_bytes'])} reserved.\n"
        for row in found.values()
        if "peak_bytes" in row
    ]


def _bandwidth(found: Rows) -> list[str]:
    rates = [f"{name} {row['bytes_per_second'] / 1e12:.2f} TB/s" for name, row in found.items()]
    return [f"Measured bandwidth: {', '.join(rates)}.\n"]


def _decoded(title: str, found: Rows) -> list[str]:
    header = (
        "context",
        "tokens/s",
        "limit",
        "share of it",
        "ms a token",
        "slowest",
        "on the host",
        "prompt tokens read",
        "in s",
    )
    lines = [
        (
            name,
            f"{row['tokens_per_second']:.1f}",
            f"{row['limit_tokens_per_second']:.1f}",
            f"{row['share_of_limit']:.0%}",
            _ms(row["seconds"]),
            _ms(row["slowest_seconds"]),
            _ms(row["host_seconds"]),
            "-" if row["read"] is None else f"{row['read']:,}",
            f"{row['prompt_seconds']:.2f}",
        )
        for name, row in found.items()
        if "share_of_limit" in row
    ]
    return [f"## {title}\n", _table(header, lines), *_rows(found)] if lines else []


def _rows(found: Rows) -> list[str]:
    rows = {name: row for name, row in found.items() if "shares" in row}
    if not rows:
        return []
    counts = list(next(iter(rows.values()))["shares"])
    lines = [
        (
            name,
            *(f"{_ms(row['seconds_by_rows'][n])} ({row['shares'][n]:.2f})" for n in counts),
        )
        for name, row in rows.items()
    ]
    return [_table(("ms a forward (and share of the first)", *counts), lines)]


def _kernels(found: Rows) -> list[str]:
    text = []
    for row in found.values():
        lines = [
            (f"`{kernel['name'][:80]}`", f"{kernel['launches']:.0f}", _ms(kernel["seconds"]))
            for kernel in row["kernels"]
        ]
        title = f"## Kernels of a step ({_ms(row['step_seconds'])} ms while watched)\n"
        text += [title, _table(("kernel", "launches", "ms"), lines)]
    return text


def _replay(found: Rows) -> list[str]:
    text = []
    for name, row in found.items():
        lines = [(method, *_figures(rows["all"])) for method, rows in row["results"].items()]
        size = f"{row['answers']} answers, at most {row['max_tokens']} tokens"
        note = "" if row["complete"] else " Stopped before its end."
        text += [
            f"## Replayed, {name}\n",
            f"{replay_note(row['replay'])} {size}.{note}\n",
            _table(_REPLAYED, lines),
            *(f"- NOT TO BE BELIEVED: {fault}.\n" for fault in row["faults"]),
        ]
    return text


def _figures(row: Mapping[str, Any]) -> Iterable[str]:
    p50, p99 = row["tpot_p50_seconds"] or 0.0, row["tpot_p99_seconds"] or 0.0
    ratio = "-"
    if row["ratio"] is not None:
        low, high = row["ratio_interval"]
        ratio = f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"
    return (
        f"{row['tokens_per_second']:.1f}",
        ratio,
        f"{row['mean_accepted_length']:.2f}",
        f"{row['ttft_seconds'] * 1e3:.0f}",
        f"{_ms(p50)} / {_ms(p99)}",
        f"{row['rows_per_token']:.1f}",
        _percent(row["bubbles"]),
        _percent(row["draft_idle"]),
    )


def _simulate(found: Rows) -> list[str]:
    header = ("method", "tokens/s", "differs", "ratio to `ar`", "M", "ms a step")
    text = []
    for name, methods in found.items():
        lines = []
        for method, row in methods.items():
            both = row["simulated"], row["measured"]
            lines.append(
                (
                    method,
                    " / ".join(f"{speed['tokens_per_second']:.0f}" for speed in both),
                    f"{row['differs']:+.0%}",
                    " / ".join(f"{speed['ratio']:.2f}" for speed in both),
                    " / ".join(f"{speed['mean_accepted_length']:.2f}" for speed in both),
                    " / ".join(f"{speed['step_milliseconds']:.2f}" for speed in both),
                )
            )
        text += [f"## Simulated / measured (replayed), {name}\n", _table(header, lines)]
    return text


def _peer(found: Rows) -> list[str]:
    lines = [
        (
            f"transformers, {name}",
            f"{1 / row['seconds']:.1f}",
            _ms(row["seconds"]),
            _ms(row["first_seconds"]),
            f"{row['prepare_seconds']:.0f}",
        )
        for name, row in found.items()
    ]
    header = ("peer", "tokens/s", "ms a token", "first token (ms)", "first answer (s)")
    return ["## Peer\n", _table(header, lines)]


_SECTIONS = {
    "load": _load,
    "memory": _memory,
    "bandwidth": _bandwidth,
    "plain": lambda found: _decoded("Plain decoding in its fastest shape", found),
    "canonical": lambda found: _decoded("Plain decoding as all methods compute", found),
    "draft": lambda found: _decoded("The draft", found),
    "kernels": _kernels,
    "peer": _peer,
    "replay": _replay,
    "simulate": _simulate,
}


def _failures(parts: Mapping[str, Any]) -> list[str]:
    lines = [f"- {name}: {part['stopped']}" for name, part in parts.items() if part["stopped"]]
    return ["## Not measured to the end\n", "\n".join(lines) + "\n"] if lines else []


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
