"""Traces in Chrome's format, which opens in Perfetto and in chrome://tracing."""

from collections.abc import Mapping, Sequence
from typing import Any

from doublespec.decoding import Step
from doublespec.stats import summarise
from doublespec.trace.lanes import (
    DraftEvent,
    TargetEvent,
    Timeline,
    draft_lane,
    from_zero,
    target_lane,
)

_LANES = {"draft": 1, "target": 2}  # thread ids: the order in which they are shown


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """The trace as JSON that opens in Perfetto and chrome://tracing: two threads, "draft" above
    "target", times in microseconds."""
    steps = from_zero(timeline.steps)
    events = [_name_event("process_name", 0, f"doublespec {timeline.method}")]
    events += [_name_event("thread_name", number, name) for name, number in _LANES.items()]
    events += [_chrome_draft(event, timeline) for event in draft_lane(steps)]
    for event in target_lane(steps):
        events += _chrome_target(event, steps[event.step], timeline)
    stats = summarise(steps)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "method": timeline.method,
            "target": timeline.target,
            "draft": timeline.draft,
            "steps": stats.steps,
            "mean_accepted_length": stats.mean_accepted_length,
            "bubbles": stats.bubbles,
            "draft_idle": stats.draft_idle,
            "foreseen": stats.foreseen,
        },
    }


def _name_event(kind: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "ts": 0, "pid": 1, "tid": thread, "name": kind, "args": {"name": name}}


def _chrome_draft(event: DraftEvent, timeline: Timeline) -> dict[str, Any]:
    args = {
        "step": event.step + 1,
        "rows": event.rows,
        "tokens": _shown(event.tokens, timeline),
        "branches": event.branches,
    }
    stop = event.begun + event.seconds
    return _slice("draft", f"draft {len(event.tokens)}", "draft", event.begun, stop, args)


def _chrome_target(event: TargetEvent, step: Step, timeline: Timeline) -> list[dict[str, Any]]:
    args = {
        "step": event.step + 1,
        "rows": len(step.guess) + 1,
        "drafted": _shown(step.guess[: step.num_drafted], timeline),
        "retrieved": _shown(step.guess[step.num_drafted :], timeline),
        "accepted_drafted": event.kept_drafted,
        "accepted_retrieved": event.kept_retrieved,
        "new": _shown(step.new, timeline),
        "bubble": event.is_bubble,
        "foreseen": event.foreseen,
        "finish": step.finish,
    }
    name = f"{'bubble' if event.is_bubble else 'judge'} {len(step.guess)}, settle {event.settled}"
    kind = "bubble" if event.is_bubble else "judge"
    found = [_slice("target", "wait for the draft", "wait", *wait, {}) for wait in event.waits]
    if event.retrieval_seconds:
        found.append(_slice("target", "retrieve", "retrieval", *event.retrieval, {}))
    found.append(_slice("target", name, kind, *event.judging, args))
    return sorted(found, key=lambda slice_: slice_["ts"])


def _slice(
    lane: str, name: str, kind: str, start: float, stop: float, args: Mapping[str, Any]
) -> dict[str, Any]:
    """A complete event. Ends are rounded like beginnings, so that neighbours do not overlap."""
    begun, end = round(start * 1e6, 3), round(stop * 1e6, 3)
    return {
        "ph": "X",
        "ts": begun,
        "dur": round(end - begun, 3),
        "pid": 1,
        "tid": _LANES[lane],
        "name": name,
        "cat": kind,
        "args": dict(args),
    }


def _shown(tokens: Sequence[int], timeline: Timeline) -> list[str]:
    """Tokens for people: their texts, or their ids where no text is known."""
    return [timeline.texts.get(token) or str(token) for token in tokens]
