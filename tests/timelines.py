"""Steps made by hand, of a draft beside the target: a run, a bubble, corrections, a long wait."""

from doublespec.decoding import Step
from doublespec.drafting.base import DraftForward
from doublespec.trace.lanes import Timeline

# What was drafted, what was retrieved, how much of it was kept, whether a correction was foreseen.
_PLAN: tuple[tuple[int, int, int, bool | None], ...] = (
    (0, 0, 0, None), (4, 6, 10, None), (5, 0, 2, False), (0, 3, 1, None), (4, 0, 4, None),
    (6, 24, 27, True), (3, 2, 0, True), (4, 0, 4, None), (4, 8, 5, False), (0, 0, 0, None),
    (5, 3, 8, None), (4, 0, 1, True),
)  # fmt: skip


def parallel_steps(begun: float = 100.0, target: float = 0.016, wait: float = 0.001) -> list[Step]:
    """A dozen steps of a target that takes 16 ms, with four forwards of the draft in each. The
    draft takes long to start."""
    steps, position = [], 20
    for number, (drafted, retrieved, kept, foreseen) in enumerate(_PLAN):
        guess_seconds = 0.4 if number == 0 else 0.0005
        shown = tuple(range(position, position + drafted + retrieved))
        new = (*shown[:kept], 1000 + number)
        position += len(new)
        shown_at = begun + guess_seconds
        forwards = tuple(
            DraftForward(
                shown_at + target / 4 * i, 0.0035, 2 + i, position, (7,) * (1 + 2 * (i % 2)), i // 3
            )
            for i in range(4 if number % 5 else 3)
        )
        seconds = guess_seconds + target + wait
        last = number == len(_PLAN) - 1
        steps.append(
            Step(new, shown, drafted, "length" if last else None, guess_seconds, target, wait,
                 seconds, begun, foreseen, forwards)
        )  # fmt: skip
        begun += seconds
    return steps


def parallel_timeline() -> Timeline:
    texts = {token: f" t{token}" for token in range(7, 100)}
    return Timeline("double", "a target", "a draft", 20, tuple(parallel_steps()), texts)
