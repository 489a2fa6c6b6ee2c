"""Figures of a benchmark: pure functions of its runs. Also what must not be believed."""

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from doublespec.bench.race import BASELINE, Run
from doublespec.decoding import Step
from doublespec.stats import repeated_ngrams, summarise

SAMPLES = 1000  # of the bootstrap
SLOWER = 0.8  # a baseline below this share of `ar` is not in its fastest shape
_POSITIONS = 16  # of a guess, that acceptance is given for

Row = dict[str, Any]


def results(
    runs: Sequence[Run],
    categories: Sequence[str],
    own_plain: Mapping[str, str],
    seed: int = 0,
) -> dict[str, dict[str, Row]]:
    """The figures by name and category. `categories` are those of the prompts; `own_plain` says
    with whose texts a peer's are compared (methods: with `ar`)."""
    names = list(dict.fromkeys(run.method for run in runs))
    found: dict[str, dict[str, Row]] = {name: {} for name in names}
    for category in ["all", *dict.fromkeys(categories)]:
        inside = [r for r in runs if category in ("all", categories[r.prompt])]
        times = {name: _times([r for r in inside if r.method == name]) for name in names}
        plain = [name for name in (BASELINE, "ar") if times.get(name)]
        if not plain:
            continue
        base = max(plain, key=lambda name: _speed(times[name]))
        for name in names:
            mine = [run for run in inside if run.method == name]
            if mine:
                reference = _texts(inside, own_plain.get(name, "ar"))
                row = _figures(mine, reference)
                if name in own_plain:
                    row |= {"rows_per_token": None, "time": None}  # a peer does not tell
                ratio = _ratio(times[name], times[base], seed)
                found[name][category] = {"ratio_to": base, **ratio, **row}
    return found


def faults(
    runs: Sequence[Run], peers: Collection[str], end_ids: frozenset[int], max_tokens: int
) -> list[str]:
    """What makes the figures worthless, one sentence each; [] if nothing does."""
    return [
        *_different_texts([run for run in runs if run.method not in peers]),
        *_past_the_end(runs, end_ids, max_tokens),
        *_slow_baseline(runs),
    ]


def _different_texts(runs: Sequence[Run]) -> list[str]:
    reference = _texts(runs, "ar")
    ours = [run for run in runs if run.method != BASELINE]
    wrong = [
        run for run in ours if reference.get(run.prompt, run.completion.tokens) != _tokens(run)
    ]
    counts = Counter(run.method for run in wrong)
    return [
        f"{name}: {count} of its texts differ from plain decoding's"
        for name, count in counts.items()
    ]


def _past_the_end(runs: Sequence[Run], end_ids: frozenset[int], max_tokens: int) -> list[str]:
    wrong = [
        run.method
        for run in runs
        if end_ids.intersection(_tokens(run)[:-1]) or len(_tokens(run)) > max_tokens
    ]
    return [
        f"{name}: {count} of its answers go on after the end token or after max_tokens"
        for name, count in Counter(wrong).items()
    ]


def _slow_baseline(runs: Sequence[Run]) -> list[str]:
    """The baseline must be plain decoding, and about as fast as `ar` at least."""
    plain = [run for run in runs if run.method == BASELINE]
    if any(step.guess or len(step.new) > 1 for run in plain for step in run.steps):
        return ["the baseline is not plain decoding: it settles more than one token a forward"]
    times = {name: _times([r for r in runs if r.method == name]) for name in (BASELINE, "ar")}
    common = times[BASELINE].keys() & times["ar"].keys()
    shares = [_rate(times[BASELINE][p]) / _rate(times["ar"][p]) for p in sorted(common)]
    if shares and median(shares) < SLOWER:
        return [
            f"the baseline is not in its fastest shape: it reaches {median(shares):.0%} of the "
            "speed of plain decoding as all methods compute"
        ]
    return []


def _tokens(run: Run) -> tuple[int, ...]:
    return run.completion.tokens


def _texts(runs: Sequence[Run], name: str) -> dict[int, tuple[int, ...]]:
    return {run.prompt: _tokens(run) for run in runs if run.method == name}


# -- speed ---------------------------------------------------------------------------------------

Times = dict[int, tuple[int, float]]  # by prompt: tokens, and the median of seconds


def _times(runs: Iterable[Run]) -> Times:
    seconds: dict[int, list[float]] = {}
    tokens: dict[int, int] = {}
    for run in runs:
        seconds.setdefault(run.prompt, []).append(run.completion.stats.seconds)
        tokens[run.prompt] = run.completion.stats.tokens
    return {prompt: (tokens[prompt], median(values)) for prompt, values in seconds.items()}


def _rate(time: tuple[int, float]) -> float:
    return time[0] / time[1]


def _speed(times: Times, prompts: Sequence[int] | None = None) -> float:
    chosen = [times[p] for p in (times if prompts is None else prompts)]
    return sum(t for t, _ in chosen) / sum(s for _, s in chosen)


def _ratio(mine: Times, base: Times, seed: int) -> Row:
    """The ratio over the prompts that both have answered, with a 95 % interval: a bootstrap over
    prompts, which are drawn with replacement."""
    common = sorted(mine.keys() & base.keys())
    if not common:
        return {"ratio": None, "ratio_interval": None}
    chance = random.Random(seed)
    samples = []
    for _ in range(SAMPLES):
        drawn = chance.choices(common, k=len(common))
        samples.append(_speed(mine, drawn) / _speed(base, drawn))
    samples.sort()
    low, high = samples[round(0.025 * SAMPLES)], samples[round(0.975 * SAMPLES) - 1]
    return {"ratio": _speed(mine, common) / _speed(base, common), "ratio_interval": [low, high]}


# -- everything else -----------------------------------------------------------------------------


def _figures(runs: Sequence[Run], reference: Mapping[int, tuple[int, ...]]) -> Row:
    rates = [_rate((r.completion.stats.tokens, r.completion.stats.seconds)) for r in runs]
    steps = [step for run in runs for step in run.steps]
    latencies = sorted(_latencies(runs))
    stats = summarise(steps)
    compared = [run for run in runs if run.prompt in reference]
    answers = list(_texts(runs, runs[0].method).values())
    return {
        "tokens_per_second": _speed(_times(runs)),
        "tokens_per_second_spread": [min(rates), median(rates), max(rates)],
        "ttft_seconds": median(run.completion.stats.ttft_seconds for run in runs),
        "tpot_p50_seconds": _quantile(latencies, 0.5),
        "tpot_p99_seconds": _quantile(latencies, 0.99),
        "steps": stats.steps,
        "tokens": stats.tokens,
        "mean_accepted_length": stats.mean_accepted_length,
        "accepted_lengths": _histogram(steps),
        "draft_acceptance": stats.draft_acceptance,
        "retrieval_acceptance": stats.retrieval_acceptance,
        "acceptance_by_position": _by_position(steps),
        "rows_per_token": stats.rows_per_token,
        "bubbles": stats.bubbles,
        "draft_idle": stats.draft_idle,
        "foreseen": stats.foreseen,
        "repeated_8grams": sum(map(repeated_ngrams, answers)) / len(answers),
        "time": _where_time_goes(steps),
        "identical": sum(_tokens(run) == reference[run.prompt] for run in compared),
        "compared": len(compared),
        "texts": len(runs),
    }


def _latencies(runs: Sequence[Run]) -> list[float]:
    """Seconds for each token after an answer's first step; a step's tokens share its time."""
    return [
        step.seconds / len(step.new) for run in runs for step in run.steps[1:] for _ in step.new
    ]


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else None


def _histogram(steps: Sequence[Step]) -> dict[str, int]:
    return {str(n): count for n, count in sorted(Counter(len(s.new) for s in steps).items())}


def _by_position(steps: Sequence[Step]) -> list[float | None]:
    """For each position of a guess: how often it was kept where it was shown."""
    shown = [sum(len(s.guess) > i for s in steps) for i in range(_POSITIONS)]
    kept = [sum(s.num_accepted > i for s in steps) for i in range(_POSITIONS)]
    return [k / n if n else None for k, n in zip(kept, shown, strict=True)]


def _where_time_goes(steps: Sequence[Step]) -> Row:
    """Shares of the time: drafting before the target or waiting for drafted tokens, retrieval, the
    target, the messages of a parallel draft (in lock-step the wait for it, too), the rest."""
    total = sum(s.seconds for s in steps) or 1.0
    guess, retrieval, target, wait = (
        sum(getattr(s, field) for s in steps) / total
        for field in ("guess_seconds", "retrieval_seconds", "target_seconds", "wait_seconds")
    )
    return {
        "target": target,
        "draft": guess - retrieval,
        "retrieval": retrieval,
        "wait": wait,
        "rest": max(0.0, 1 - guess - target - wait),
    }
