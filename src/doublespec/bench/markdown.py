"""A benchmark's report as a document: docs/benchmarks.md is written by this, never by hand."""

from collections.abc import Mapping
from typing import Any

from doublespec.bench.race import replay_note

_BEGIN = """\
# Benchmark: {prompts} prompts of {sources}

Written by a command, not to be edited:

    {command}

{machine}, {cores} cores, {threads} threads, {precision}; revision {revision}; {versions};
{prompts} prompts, {rounds} interleaved rounds, at most {max_tokens} tokens,
temperature {temperature}.

- `plain` is plain decoding in its fastest shape on as many threads as are fastest; ratios are to it
  or to `ar` (as all methods compute), whichever is faster; in brackets a 95 % interval, by a
  bootstrap over prompts.
- M is the mean accepted length, tokens a step; `repeated` the share of 8-grams that stood in the
  text before.
- `identical`: texts equal to those of `ar`; of a peer, to its own plain decoding's.
"""

_GUESSES = (
    "Drafted and retrieved tokens that were kept; steps after the first with nothing drafted to\n"
    "judge (bubbles); the share of the time in which a parallel draft idles; how often it had\n"
    "drafted on from a correction in advance (foreseen).\n",
    "| method | drafted, kept | retrieved, kept | bubbles | draft idle | foreseen |",
    "|---|---|---|---|---|---|",
)


def as_markdown(report: Mapping[str, Any]) -> str:
    """The document; the same report gives the same bytes."""
    origin = report["provenance"]
    versions = ", ".join(f"{name} {number}" for name, number in origin["versions"].items())
    params = origin["params"]
    quantised = f" with {origin['quantize']} layers" if origin.get("quantize") else ""
    begin = _BEGIN.format(
        **{**origin, "versions": versions},
        machine=", ".join(dict.fromkeys((origin["cpu"], origin["device"]))),
        precision=f"{origin['dtype']}{quantised}, {origin.get('kernels', 'torch')} kernels",
        max_tokens=params["max_tokens"],
        temperature=params["temperature"],
    )
    if "replay" in origin:
        begin += f"\n{replay_note(origin['replay'])}\n"
    parts = [begin, "## All prompts\n", _all(report["results"]), "## Ratio by category\n"]
    parts += [_categories(report["results"]), *_guesses(report["results"]), *_remarks(report)]
    return "\n".join(parts)


def _all(results: Mapping[str, Any]) -> str:
    lines = [
        "| method | tokens/s | ratio | M | first token (ms) | p50 / p99 a token (ms) | rows/token "
        "| repeated | identical |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        row = rows["all"]
        p50, p99 = row["tpot_p50_seconds"] or 0.0, row["tpot_p99_seconds"] or 0.0
        lines.append(
            f"| {name} | {row['tokens_per_second']:.1f} | {_ratio(row)} "
            f"| {row['mean_accepted_length']:.2f} | {row['ttft_seconds'] * 1e3:.1f} "
            f"| {p50 * 1e3:.2f} / {p99 * 1e3:.2f} | {_number(row['rows_per_token'])} "
            f"| {row['repeated_8grams']:.0%} | {row['identical']} of {row['compared']} |"
        )
    return "\n".join(lines) + "\n"


def _categories(results: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(c for rows in results.values() for c in rows if c != "all"))
    lines = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for method, rows in results.items():
        cells = (_ratio(rows[name]) if name in rows else "-" for name in names)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _guesses(results: Mapping[str, Any]) -> list[str]:
    """What became of guesses, for the methods that make some."""
    names = ("draft_acceptance", "retrieval_acceptance", "bubbles", "draft_idle", "foreseen")
    rows = {method: [rows["all"][name] for name in names] for method, rows in results.items()}
    lines = [
        f"| {method} | {' | '.join(map(_percent, row))} |"
        for method, row in rows.items()
        if any(share is not None for share in row)
    ]
    return ["## Guesses\n", "\n".join([*_GUESSES, *lines]) + "\n"] if lines else []


def _remarks(report: Mapping[str, Any]) -> list[str]:
    lines = [f"- NOT TO BE BELIEVED: {fault}." for fault in report["faults"]]
    lines += [f"- Peer {name} failed: {why}" for name, why in report["failures"].items()]
    if not report["provenance"]["complete"]:
        lines.append("- The benchmark was stopped before its end.")
    return ["## Remarks\n", "\n".join(lines) + "\n"] if lines else []


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _ratio(row: Mapping[str, Any]) -> str:
    if row["ratio"] is None:
        return "-"
    low, high = row["ratio_interval"]
    return f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"
