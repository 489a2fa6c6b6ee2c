"""Pages to look at: figures drawn as SVG, one file that needs no network. Knows no models.

Needs the extra `bench` (matplotlib). The same report gives the same page.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from doublespec.bench.plotting import Axes, pyplot, saved
from doublespec.bench.questions import Item
from doublespec.bench.race import BASELINE, REPLAYED, Run, is_plain, replay_note
from doublespec.bench.timeline import comparison

_COLOURS = [
    *("#8a8f98", "#5b6472", "#e0a030", "#4c8bd6", "#2f5fa8", "#c8443f"),
    *("#e77f5b", "#7a4fa3", "#3c9d74", "#9fc089", "#b08968"),
]
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2430; background: #f5f6f8; margin: 0; }
main { max-width: 1040px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .2rem; } h2 { margin: 2.4rem 0 .6rem; font-size: 1.25rem; }
p.note { color: #5b6472; margin: .2rem 0 1rem; } figure { margin: 0; background: #fff;
border: 1px solid #dfe3e8; border-radius: 8px; padding: 1rem; }
svg { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; background: #fff;
font-variant-numeric: tabular-nums; }
th, td { text-align: right; white-space: nowrap; padding: .4rem .6rem;
border-bottom: 1px solid #e6e9ed; }
th:first-child, td:first-child { text-align: left; } thead th { background: #eef1f4; }
.fault { background: #fdecea; border-left: 4px solid #c8443f; padding: .6rem 1rem; }
.texts { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #fff; padding: .8rem; margin: 0;
border: 1px solid #dfe3e8; border-radius: 6px; font-size: .82rem; }
summary { cursor: pointer; padding: .3rem 0; font-weight: 600; }
@media (max-width: 700px) { .texts { grid-template-columns: 1fr; } }
"""


def bench_page(report: Mapping[str, Any], runs: Sequence[Run], items: Sequence[Item]) -> str:
    """The page of a benchmark."""
    found, origin = report["results"], report["provenance"]
    ours = [name for name, rows in found.items() if rows["all"]["time"]]
    shown = [
        run for run in runs if run.method in ours and run.method.removesuffix(REPLAYED) != BASELINE
    ]
    quantised = f" with {origin['quantize']} layers" if origin.get("quantize") else ""
    precision = f"{origin['dtype']}{quantised}, {origin.get('kernels', 'torch')} kernels"
    intro = (
        f"{origin['cpu']}, {origin['device']}, {origin['threads']} threads, {precision}; "
        f"{origin['prompts']} prompts, {origin['rounds']} rounds; revision {origin['revision']}; "
        f"<code>{escape(origin['command'])}</code>"
    )
    parts = [f"<p class='note'>{intro}</p>"]
    if "replay" in origin:
        parts.append(f"<p class='note'>{escape(replay_note(origin['replay']))}</p>")
    parts += [f"<p class='fault'>{escape(fault)}</p>" for fault in report["faults"]]
    parts += [
        _table(found),
        _section("Speed-up over plain decoding", _speedups(found), "Ratios to the faster of both "
                 "plain decodings; lines are 95 % intervals by a bootstrap over prompts."),
        _section("By category", _by_category(found), ""),
        _section("Tokens settled by a step", _lengths(found), "Share of steps by accepted length."),
        _section("Kept, by position in the guess", _positions(found),
                 "How often a token at this position was kept where it was shown."),
        _section("Where the time goes", _time(found),
                 "Draft: made before the target, or waited for. Wait: for a parallel draft's "
                 "messages, in lock-step for its forwards, too. How long a parallel draft idles "
                 "is in the table."),
        _timelines(shown),
        "<h2>The texts</h2>",
        *_texts(runs, items),
    ]  # fmt: skip
    return _page("doublespec bench", "".join(parts))


def sweep_page(axis: str, values: Sequence[float], curves: Mapping[str, Sequence[float]]) -> str:
    """The curves of a sweep; over c, with the ceiling of PSD."""
    figure, axes = pyplot.subplots(figsize=(9, 5))
    for i, (name, speedups) in enumerate(curves.items()):
        axes.plot(values, speedups, marker="o", color=_colour(i + 2), label=name, linewidth=2)
    if axis == "c":
        axes.plot(values, values, "--", color="#8a8f98", label="ceiling of PSD: c")
        axes.set_ylim(0, 1.3 * max(max(speedups) for speedups in curves.values()))
    axes.set_xlabel({"c": "c = target forward / draft forward"}.get(axis, axis))
    axes.set_ylabel("speed-up over plain decoding")
    axes.legend(frameon=False)
    note = "Replayed answers in virtual time; mean over the trace files."
    title = "Breaking the ceiling" if axis == "c" else f"Speed-up by {axis}"
    return _page("doublespec simulate", _section(title, _svg(figure), note))


def _page(title: str, body: str) -> str:
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{title}</h1>{body}</main></body></html>\n"
    )


def _section(title: str, svg: str, note: str) -> str:
    caption = f"<p class='note'>{note}</p>" if note else ""
    return f"<h2>{title}</h2>{caption}<figure>{svg}</figure>"


def _table(found: Mapping[str, Any]) -> str:
    head = (
        "method",
        "tokens/s",
        "ratio",
        "M",
        "first token",
        "rows/token",
        "bubbles",
        "draft idle",
        "foreseen",
        "repeated",
        "identical",
    )
    rows = []
    for name, by_category in found.items():
        row = by_category["all"]
        cells = (
            escape(name),
            f"{row['tokens_per_second']:.1f}",
            "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
            f"{row['mean_accepted_length']:.2f}",
            f"{row['ttft_seconds'] * 1e3:.1f} ms",
            _number(row["rows_per_token"]),
            *map(_percent, (row["bubbles"], row["draft_idle"], row["foreseen"])),
            f"{row['repeated_8grams']:.0%}",
            f"{row['identical']} of {row['compared']}",
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _speedups(found: Mapping[str, Any]) -> str:
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(found) + 1))
    for i, rows in enumerate(found.values()):
        row = rows["all"]
        ratio, (low, high) = row["ratio"] or 0.0, row["ratio_interval"] or (0.0, 0.0)
        axes.barh(i, ratio, color=_colour(i), height=0.62)
        axes.plot([low, high], [i, i], color="#1c2430", linewidth=1.5)
        axes.text(max(high, ratio) + 0.04, i, f"{ratio:.2f}", va="center", fontsize=9)
    axes.axvline(1, color="#1c2430", linewidth=0.8)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlabel("times plain decoding")
    return _svg(figure)


def _by_category(found: Mapping[str, Any]) -> str:
    names = [name for name in found if not is_plain(name)] or list(found)
    categories = [c for c in dict.fromkeys(c for n in names for c in found[n]) if c != "all"]
    figure, axes = pyplot.subplots(figsize=(9, 4))
    width = 0.85 / len(names)
    for i, name in enumerate(names):
        heights = [found[name].get(category, {}).get("ratio") or 0.0 for category in categories]
        places = [place + (i - (len(names) - 1) / 2) * width for place in range(len(categories))]
        colour = _colour(list(found).index(name))
        axes.bar(places, heights, width, color=colour, label=name)
    axes.axhline(1, color="#1c2430", linewidth=0.8)
    axes.set_xticks(range(len(categories)), categories, rotation=20, ha="right")
    axes.set_ylabel("times plain decoding")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)


def _lengths(found: Mapping[str, Any]) -> str:
    figure, axes = pyplot.subplots(figsize=(9, 3.4))
    for i, (name, rows) in enumerate(found.items()):
        counts = {int(n): count for n, count in rows["all"]["accepted_lengths"].items()}
        if is_plain(name) or max(counts) == 1:
            continue
        total, longest = sum(counts.values()), max(counts)
        tail = [sum(c for n, c in counts.items() if n >= x) / total for x in range(1, longest + 1)]
        axes.step(range(1, longest + 1), tail, where="mid", color=_colour(i), label=name)
    axes.set_xlabel("tokens settled by a step, at least")
    axes.set_ylabel("share of steps")
    axes.set_ylim(0, 1.02)
    _legend(axes)
    return _svg(figure)


def _positions(found: Mapping[str, Any]) -> str:
    figure, axes = pyplot.subplots(figsize=(9, 3.4))
    for i, (name, rows) in enumerate(found.items()):
        shares = rows["all"]["acceptance_by_position"]
        known = [(place, share) for place, share in enumerate(shares, 1) if share is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker=".", color=_colour(i), label=name)
    axes.set_xlabel("position in the guess")
    axes.set_ylabel("share kept")
    axes.set_ylim(0, 1.02)
    _legend(axes)
    return _svg(figure)


def _time(found: Mapping[str, Any]) -> str:
    shown = {n: rows["all"]["time"] for n, rows in found.items() if rows["all"]["time"]}
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(shown) + 1.2))
    left = [0.0] * len(shown)
    kinds = {
        **{"target": "#2f5fa8", "draft": "#e0a030", "retrieval": "#3c9d74"},
        **{"wait": "#c9ced6", "rest": "#8a8f98"},
    }
    for kind, colour in kinds.items():
        shares = [time[kind] for time in shown.values()]
        axes.barh(range(len(shown)), shares, left=left, color=colour, label=kind, height=0.62)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set_yticks(range(len(shown)), list(shown))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the time")
    axes.legend(frameon=False, fontsize=8, ncols=5, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)


def _timelines(runs: Sequence[Run]) -> str:
    """Nothing if no answer has more than its first step."""
    long = [run for run in runs if len(run.steps) > 1]
    if not long:
        return ""
    steps = {run.method: run.steps for run in reversed(long) if run.prompt == long[0].prompt}
    first = {name: steps[name] for name in dict.fromkeys(r.method for r in long) if name in steps}
    note = "One answer by each method, from its second step on: the draft above, the target below."
    return _section("Steps in the same time", _embedded(comparison(first)), note)


def _texts(runs: Sequence[Run], items: Sequence[Item]) -> list[str]:
    parts = []
    for number, item in enumerate(items):
        answers: dict[str, list[str]] = {}
        for run in runs:
            if run.prompt == number and run.round == 0:
                answers.setdefault(run.completion.text, []).append(run.method)
        blocks = "".join(
            f"<div><p class='note'>{escape(', '.join(names))}</p><pre>{escape(text)}</pre></div>"
            for text, names in answers.items()
        )
        prompt = escape(item.messages[-1]["content"])
        parts.append(
            f"<details><summary>{escape(item.id)}</summary><div class='texts'>"
            f"<div><p class='note'>prompt</p><pre>{prompt}</pre></div>{blocks}</div></details>"
        )
    return parts


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _svg(figure: Any) -> str:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return _embedded(figure)


def _embedded(figure: Any) -> str:
    text = saved(figure, "svg", transparent=True).decode()
    return text[text.index("<svg") :]
