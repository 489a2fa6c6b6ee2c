"""Two lanes of events, the draft's and the target's: pure functions of an answer's Steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from doublespec.decoding import Step
from doublespec.stats import find_bubbles


@dataclass(frozen=True, slots=True)
class Timeline:
    """The Steps of one answer, and whose they are. `texts` are those of its tokens, by id, as far
    as they are known."""

    method: str
    target: str
    draft: str | None
    prompt_tokens: int
    steps: tuple[Step, ...]
    texts: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DraftEvent:
    """What the draft made in one stretch of time: in a forward beside the target or, before step
    `step`, in all forwards of a serial draft (whose `rows` are not known)."""

    step: int
    begun: float
    seconds: float
    rows: int | None
    tokens: tuple[int, ...]
    branches: int


@dataclass(frozen=True, slots=True)
class TargetEvent:
    """One step. From `begun` on the target waits for the draft, if one takes part, and retrieves;
    then it judges and waits for a parallel draft. Of the tokens shown `drafted` came from the draft
    and `retrieved` did not; `settled` are new."""

    step: int
    begun: float
    draft_seconds: float
    retrieval_seconds: float
    target_seconds: float
    wait_seconds: float
    drafted: int
    retrieved: int
    kept_drafted: int
    kept_retrieved: int
    settled: int
    is_bubble: bool
    foreseen: bool | None

    @property
    def judging(self) -> tuple[float, float]:
        """When the forward begins and ends."""
        begun = self.begun + self.draft_seconds + self.retrieval_seconds
        return begun, begun + self.target_seconds

    @property
    def ended(self) -> float:
        return self.judging[1] + self.wait_seconds

    @property
    def waits(self) -> list[tuple[float, float]]:
        """When the target waits for the draft."""
        found = [(self.begun, self.begun + self.draft_seconds), (self.judging[1], self.ended)]
        return [(start, stop) for start, stop in found if stop > start]

    @property
    def retrieval(self) -> tuple[float, float]:
        """When the target's side retrieves."""
        stop = self.judging[0]
        return stop - self.retrieval_seconds, stop

    @property
    def has_own_token(self) -> bool:
        """Whether the last settled token is the target's own choice (the end may cut it off)."""
        return self.settled > self.kept_drafted + self.kept_retrieved


def from_zero(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The Steps on a clock that begins with the first of them (or with a draft's forward that
    began before)."""
    begun = chain(
        (step.begun for step in steps), (f.begun for step in steps for f in step.forwards)
    )
    zero = min(begun, default=0.0)
    return tuple(
        step._replace(
            begun=step.begun - zero,
            forwards=tuple(f._replace(begun=f.begun - zero) for f in step.forwards),
        )
        for step in steps
    )


def draft_lane(steps: Sequence[Step]) -> list[DraftEvent]:
    """What the draft did, in order."""
    return sorted(
        chain.from_iterable(_drafts(i, step) for i, step in enumerate(steps)),
        key=lambda event: event.begun,
    )


def target_lane(steps: Sequence[Step]) -> list[TargetEvent]:
    """What the target did, a step at a time."""
    bubbles = find_bubbles(steps)
    return [_target(i, step, bubbles[i]) for i, step in enumerate(steps)]


def _is_serial(step: Step) -> bool:
    """Whether the draft worked before the forward, not beside it."""
    return step.num_drafted > 0 and not step.forwards and step.wait_seconds == 0


def _drafts(number: int, step: Step) -> Iterator[DraftEvent]:
    if _is_serial(step):
        tokens = step.guess[: step.num_drafted]
        seconds = step.guess_seconds - step.retrieval_seconds
        yield DraftEvent(number, step.begun, seconds, None, tokens, 0)
    for forward in step.forwards:
        yield DraftEvent(
            number, forward.begun, forward.seconds, forward.rows, forward.tokens, forward.branches
        )


def _target(number: int, step: Step, is_bubble: bool) -> TargetEvent:
    kept_drafted = min(step.num_accepted, step.num_drafted)
    has_draft = step.num_drafted or step.forwards or step.wait_seconds
    retrieval = step.retrieval_seconds if has_draft else step.guess_seconds
    return TargetEvent(
        step=number,
        begun=step.begun,
        draft_seconds=step.guess_seconds - retrieval,
        retrieval_seconds=retrieval,
        target_seconds=step.target_seconds,
        wait_seconds=step.wait_seconds,
        drafted=step.num_drafted,
        retrieved=len(step.guess) - step.num_drafted,
        kept_drafted=kept_drafted,
        kept_retrieved=step.num_accepted - kept_drafted,
        settled=len(step.new),
        is_bubble=is_bubble,
        foreseen=step.foreseen,
    )
