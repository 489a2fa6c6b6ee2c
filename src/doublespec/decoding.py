"""The loops: in which order target and draft work, and when an answer ends.

A loop is handed the parts of a method and yields one Step for each forward of the target. It may
begin in the middle of an answer, and to stop early is to stop iterating: the generator's `finally`
lets the draft rest.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from functools import cache, partial
from time import perf_counter
from typing import NamedTuple

from doublespec.drafting.base import (
    BackgroundDrafter,
    Completer,
    Drafter,
    DraftForward,
    Guess,
    Pending,
)
from doublespec.drafting.costs import LookupCosts
from doublespec.drafting.hindsight import Hindsight
from doublespec.drafting.lookup import Helper
from doublespec.drafting.pauses import Pauses, Searches
from doublespec.drafting.sounding import LEAST_SOUNDED, Sounding
from doublespec.models.base import LanguageModel
from doublespec.oracle import Settled, advance
from doublespec.retrieval.recurrence import MOST_AHEAD, Judged
from doublespec.sampling import Request, TokenLogprobs
from doublespec.scheduling.scheduler import Between, Scheduler, Turn
from doublespec.stopping import Finish, StopRule
from doublespec.tokens import Tokens, common_prefix

Clock = Callable[[], float]  # seconds; virtual ones in simulations
Steps = Generator["Step"]  # to stop early, close it

_RETRIEVED_FOR_DRAFTED = (
    8  # so many retrieved tokens spare the wait for a drafted one (docs/log.md)
)


class Step(NamedTuple):  # of which every forward makes one: cheap to make
    """One forward of the target: the event from which every metric is computed.

    `guess` is what the target was shown; its first `num_drafted` tokens came from the draft, the
    others from retrieval. `new` is what the step settled, cut where the answer ends. Seconds are
    those the loop spent waiting: for a draft and for retrieval before the forward (`guess_seconds`,
    of which `retrieval_seconds` for the latter), for the forward with its choices
    (`target_seconds`), for a draft in lock-step and its messages after it (`wait_seconds`), and in
    all (`seconds`), from `begun` on; a `Stream` counts in all what is spent around the loop, too.
    Of several steps that were computed at once each counts the same share, and `earlier_seconds` is
    what was spent of it before the step was asked for: less than 0 for the first of them; so many
    more of them are `ready`.
    `foreseen` says, where the step departed from what was drafted, whether the draft had gone on
    from that correction in advance (None: it did not depart). `forwards` are the draft's, as far as
    they were heard of.
    """

    new: tuple[int, ...]
    guess: tuple[int, ...]
    num_drafted: int
    finish: Finish | None
    guess_seconds: float
    target_seconds: float
    wait_seconds: float
    seconds: float
    begun: float = 0.0
    foreseen: bool | None = None
    forwards: tuple[DraftForward, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    retrieval_seconds: float = 0.0
    earlier_seconds: float = 0.0
    ready: int = 0

    @property
    def num_accepted(self) -> int:
        """How many tokens of the guess were kept. (The last of `new` is the target's own choice,
        unless the answer was cut before it.)"""
        return common_prefix(self.new, self.guess)


def decode_plain(
    target: LanguageModel,
    prompt: Tokens,
    request: Request,
    stop: StopRule,
    at_once: Callable[[], int],
    clock: Clock = perf_counter,
    costs: LookupCosts | None = None,
) -> Steps:
    """Nothing is guessed. `at_once` says how many steps may be computed before the first of them is
    yielded; `costs` learn what they take, but for the first ones (see `decode_by_lookup`)."""
    tokens = list(prompt)
    is_first = True
    finish: Finish | None = None
    while finish is None:
        begun = clock()
        most = _most_at_once(tokens, request, stop, at_once)
        settled = advance(target, tokens, [], request, most)
        if costs is not None and not is_first:
            costs.learn_plain(len(settled.tokens), clock() - begun)
        is_first = False
        forwards = _forwards(settled.tokens)
        finish = yield from _made_at_once(forwards, settled, tokens, request, stop, begun, clock)


def decode_by_lookup(
    target: LanguageModel,
    helper: Helper,
    pauses: Pauses,
    costs: LookupCosts,
    prompt: Tokens,
    request: Request,
    stop: StopRule,
    most: int,
    at_once: Callable[[], int],
    clock: Clock = perf_counter,
) -> Steps:
    """Retrieve, then judge; where nothing is found, as plain decoding until it is time to search
    again, with what is guessed ahead meanwhile. `most` bounds the tokens shown to the target in one
    step, `at_once` is as there. The first step is not learnt of: it reads the
    prompt, or enters a text that others have settled."""
    tokens = list(prompt)
    searches, is_first = Searches(pauses), True
    finish: Finish | None = None
    while finish is None:
        begun = clock()
        count, is_due = _most_at_once(tokens, request, stop, at_once), searches.left <= 0
        most_now = min(count + MOST_AHEAD, request.prompt_length + stop.max_tokens - len(tokens))
        room = most_now if is_due else min(most_now, searches.left)  # tokens that may be settled
        ahead = helper.guess_ahead(tokens, room, request) if count > 1 else None
        guessed, searched = list[int](), None
        if ahead is not None:
            guessed = ahead.guess()
        if not guessed and (ahead is None or is_due):
            guess = helper.complete(tokens, [], _room_to_show(tokens, request, stop, most), request)
            shown = clock()
            searched = shown - begun
            searches.learn(len(guess.tokens))
            if guess.tokens:
                settled = advance(target, tokens, guess.tokens, request)
                if not is_first:
                    costs.learn_shown(len(guess.tokens), searched, clock() - shown)
                is_first = False
                searches.go_on(len(settled.tokens))
                step = _judged(settled, guess, tokens, request, stop, (begun, begun, shown), clock)
                finish = step.finish
                yield step
                continue
            room = min(most_now, searches.left)
            if ahead is not None:
                ahead.shorten(room)
        asked, guesser = clock(), None if ahead is None else ahead.guesser
        room = min(room, count) if ahead is None else room
        settled = advance(target, tokens, guessed, request, min(count, room), guesser, room)
        computed = clock() - asked
        judged = [] if ahead is None else ahead.over(settled.tokens)
        if guessed and not judged:  # the model did not go on by itself
            judged = [Judged(0, tuple(guessed), computed)]
        forwards = _forwards(settled.tokens, judged)
        if not is_first:
            costs.learn(len(forwards), computed, judged, searched)
        is_first = False
        searches.go_on(len(settled.tokens))
        told = forwards, settled, tokens, request, stop, begun, clock
        finish = yield from _made_at_once(*told, searched or 0.0)
    searches.are_over()


def decode_serial(
    target: LanguageModel,
    drafter: Drafter,
    helper: Completer,
    prompt: Tokens,
    request: Request,
    stop: StopRule,
    most: int,
    clock: Clock = perf_counter,
) -> Steps:
    """Draft, then judge. `most` bounds the tokens shown to the target in one step."""
    tokens = list(prompt)
    finish: Finish | None = None
    while finish is None:
        begun = clock()
        room = _room_to_show(tokens, request, stop, most)
        drafted = drafter.propose(tokens, room, request)
        asked = clock()
        guess = helper.complete(tokens, drafted, room, request)
        shown = clock()
        settled = advance(target, tokens, guess.tokens, request)
        step = _judged(settled, guess, tokens, request, stop, (begun, asked, shown), clock)
        finish = step.finish
        yield step


def decode_parallel(
    target: LanguageModel,
    drafter: BackgroundDrafter,
    helper: Completer,
    prompt: Tokens,
    request: Request,
    stop: StopRule,
    most: int,
    clock: Clock = perf_counter,
) -> Steps:
    """Draft while the target judges what was drafted before (PEARL, arXiv 2408.11850; with a
    `helper` that retrieves, Double, arXiv 2601.05524)."""
    tokens = list(prompt)
    finish: Finish | None = None
    begun = clock()
    try:
        pending = drafter.follow(tokens, _room(tokens, request, stop, most), request)
        heard = pending.forwards
        while finish is None:
            room = _room_to_show(tokens, request, stop, most)
            drafted = pending.tokens[:room]
            asked = clock()
            guess = helper.complete(tokens, drafted, room, request)
            retrieving = clock() - asked
            is_cut = guess.num_drafted < len(drafted)  # more are not worth it, nor waiting for them
            more = drafted if is_cut else drafter.wait(pending, _worth(guess), room)
            if len(more) > len(drafted):
                asked = clock()
                guess = helper.complete(tokens, more, room, request)
                retrieving += clock() - asked
            shown = clock()
            settled = advance(target, tokens, guess.tokens, request)
            judged = clock()
            new, finish = stop.cut(tokens[request.prompt_length :], settled.tokens)
            tokens += new
            pending = Pending([])
            if finish is None:
                pending = drafter.follow(tokens, _room(tokens, request, stop, most), request)
            done = clock()
            yield Step(
                new=tuple(new),
                guess=tuple(guess.tokens),
                num_drafted=guess.num_drafted,
                finish=finish,
                guess_seconds=shown - begun,
                target_seconds=judged - shown,
                wait_seconds=done - judged,
                seconds=done - begun,
                begun=begun,
                foreseen=pending.foreseen,
                forwards=(*heard, *pending.forwards),
                logprobs=settled.logprobs[: len(new)],
                retrieval_seconds=retrieving,
            )
            heard = ()
            begun = clock()
    finally:
        drafter.rest()


def decode_in_turns(
    begin: Callable[[str, Tokens, Callable[[], int]], Steps],
    can_run: Callable[[str], bool],
    scheduler: Scheduler,
    hindsight: Hindsight,
    prompt: Tokens,
    request: Request,
    expected: Callable[[str, int, int], float],
    clock: Clock = perf_counter,
    sounding: Sounding | None = None,
) -> Steps:
    """Decodes with the method that the scheduler names, turn by turn; `begin` begins one anywhere
    in the answer, told how to ask for how many steps at once it may make, and one that is named
    again goes on. `expected` gives the seconds of a forward of that method that shows so
    many tokens, as one of so many forwards in a row. The first step is not measured: it reads the
    prompt. What it takes to judge turns in hindsight, and a draft (`sounding`), counts as time of
    the step before it."""
    tokens = list(prompt)
    finish: Finish | None = None
    steps: Steps | None = None
    turn: Turn | None = None
    made: list[Step] = []  # in this turn,
    learnt = told = 0  # the first ones: of so many all is known, and so many tell something
    over: deque[tuple[Turn, int]] = deque()  # turns to be judged, and where what they tell ended
    expected = cache(expected)

    def left() -> int:  # what is not measured comes apart: a draft may not have let go of cores
        if turn is None:
            return 1
        if len(made) < turn.settling:
            return turn.settling - len(made)
        return max(1, turn.steps - len(made)) if turn.on_trial else turn.at_once

    def learn() -> None:
        nonlocal learnt, told
        if turn is None:
            return
        while learnt < min(len(made), turn.telling):
            place, first = learnt, made[learnt]
            learnt += 1  # and those behind it that were computed at once with it
            ends = turn.settling, len(made)
            while learnt not in ends and made[learnt].earlier_seconds > 0:
                learnt += 1
            told = learnt
            group = made[place:learnt]
            shown = [len(step.guess) for step in group]
            plain = shown.count(0)  # which share their time, where there are any
            one = group[shown.index(0)] if plain else first
            forward, steps = one.target_seconds, len(group)
            slowness = forward / expected(turn.name, len(one.guess), plain or 1)
            whole = between = _between(group)
            if plain < steps and any(step.guess and not step.num_drafted for step in group):
                between = _between([step for step in group if step.num_drafted or not step.guess])
            settled, seconds = whole.tokens, whole.seconds
            beside = seconds / sum(step.target_seconds for step in group) if forward else None
            scheduler.learn(turn, place, settled, seconds, slowness, steps, beside, between)
            hindsight.learn(turn.name, shown, seconds, searched=first.retrieval_seconds > 0)
        others = [step.seconds for step in made[learnt:]]
        if others:
            scheduler.count(turn, len(others), sum(others))
            hindsight.count(sum(others))
        learnt = len(made)

    def sound(sounding: Sounding) -> float:
        """If it is time to, and the answer is long enough; seconds that it took."""
        unread = partial(sounding.unread, tokens)
        if len(tokens) - len(prompt) < LEAST_SOUNDED or not scheduler.wants_sounding(unread):
            return 0.0
        read, begun = unread(), clock()
        speeds = sounding.speeds(tokens, request)
        took = clock() - begun
        scheduler.sound(speeds, read, took)
        return took

    try:
        while finish is None:
            name = turn.name if turn else ""
            turn = scheduler.choose(can_run)
            if steps is None or turn.name != name:
                if steps is not None:
                    steps.close()
                steps = begin(turn.name, list(tokens), left)
            made, told = [], 0
            learnt = int(len(tokens) == len(prompt))
            while True:
                came = ready_steps(steps)
                made += came
                if turn.in_doubt:
                    learn()
                finish = came[-1].finish
                if finish is not None or len(made) >= turn.steps:
                    break
                yield from came
            learn()
            asked = clock()
            if turn.judged and hindsight.is_ready:
                over.append((turn, len(tokens) + sum(len(step.new) for step in made[:told])))
            tokens += [token for step in made for token in step.new]
            while over and (finish or over[0][0] is not turn):  # what follows a text judges runs
                past, stop = over.popleft()
                start = stop - past.tokens
                scheduler.compare(past, hindsight.seconds(tokens, start, stop, request))
            judging = clock() - asked
            hindsight.spend(judging)
            if sounding is not None and finish is None:
                judging += sound(sounding)
            *others, last = came
            yield from others
            yield last._replace(seconds=last.seconds + judging)
    finally:
        if steps is not None:
            steps.close()
        learn()


def _between(steps: list[Step]) -> Between:
    """All of them, as `Between` counts those that it is of."""
    if len(steps) == 1:  # of a draft, always: it can be had faster
        return Between(1, len(steps[0].new), steps[0].seconds)
    tokens, seconds = sum(len(step.new) for step in steps), sum(step.seconds for step in steps)
    return Between(len(steps), tokens, seconds)


def ready_steps(steps: Steps) -> list[Step]:
    """The next step, with all that were computed at once with it; none at the end."""
    made: list[Step] = []
    for step in steps:
        made.append(step)
        if not step.ready:
            break
    return made


def _judged(
    settled: Settled,
    guess: Guess,
    tokens: list[int],
    request: Request,
    stop: StopRule,
    times: tuple[float, float, float],
    clock: Clock,
) -> Step:
    """The step of a forward that has judged a guess just now: the `times` are when it was begun,
    when retrieval was asked, and when the guess was shown. What it settled is put to `tokens`."""
    begun, asked, shown = times
    judged = clock()
    new, finish = stop.cut(tokens[request.prompt_length :], settled.tokens)
    tokens += new
    return Step(
        new=tuple(new),
        guess=tuple(guess.tokens),
        num_drafted=guess.num_drafted,
        finish=finish,
        guess_seconds=shown - begun,
        target_seconds=judged - shown,
        wait_seconds=0.0,
        seconds=clock() - begun,
        begun=begun,
        logprobs=settled.logprobs[: len(new)],
        retrieval_seconds=shown - asked,
    )


class _Forward(NamedTuple):
    """One of several that were made at once: what it was shown, how many tokens it has settled, and
    in what time, if it was shown something."""

    shown: tuple[int, ...]
    settled: int
    seconds: float


_PLAIN_FORWARD = _Forward((), 1, 0.0)


def _forwards(new: list[int], judged: Sequence[Judged] = ()) -> list[_Forward]:
    """Those that have settled `new`, one token each but for those that have `judged` a guess."""
    forwards, place = list[_Forward](), 0
    for start, shown, seconds in judged:
        if shown:
            settled = common_prefix(shown, new[start:]) + 1
            forwards += [_PLAIN_FORWARD] * (start - place)
            forwards.append(_Forward(shown, settled, seconds))
            place = start + settled
    return forwards + [_PLAIN_FORWARD] * (len(new) - place)


def _made_at_once(
    forwards: Sequence[_Forward],
    settled: Settled,
    tokens: list[int],
    request: Request,
    stop: StopRule,
    begun: float,
    clock: Clock,
    searching: float = 0.0,
) -> Generator[Step, None, Finish | None]:
    """The steps of forwards that were made at once, since `begun`; seconds of `searching` came
    before the first. Ends where the answer does, and says why. There are many of them, so little is
    done for each."""
    new, finish = stop.cut(tokens[request.prompt_length :], settled.tokens)
    tokens += new
    if finish is not None:
        forwards = _first_ones(forwards, len(new))
    shown_something = [forward.seconds for forward in forwards if forward.shown]
    computed, plain = clock() - begun, len(forwards) - len(shown_something) or 1
    share, searched = max(0.0, computed - sum(shown_something)) / plain, searching / plain
    place, left, earlier = 0, len(forwards), -computed
    for shown, count, seconds in forwards:
        took, guessing = (seconds, 0.0) if shown else (share, searched)
        left -= 1
        yield Step(
            new=tuple(new[place : place + count]),
            guess=shown,
            num_drafted=0,
            finish=None if left else finish,
            guess_seconds=guessing,
            target_seconds=took - guessing,
            wait_seconds=0.0,
            seconds=took,
            begun=begun,
            logprobs=settled.logprobs[place : place + count],
            retrieval_seconds=guessing,
            earlier_seconds=earlier + took,
            ready=left,
        )
        begun += took
        place += count
        earlier = 0.0
    return finish


def _first_ones(forwards: Sequence[_Forward], tokens: int) -> Sequence[_Forward]:
    """Those that have settled so many tokens."""
    count = 0
    while tokens > 0:
        tokens -= forwards[count].settled
        count += 1
    return forwards[:count]


def _most_at_once(
    tokens: list[int], request: Request, stop: StopRule, at_once: Callable[[], int]
) -> int:
    """How many forwards may be made before the first token is seen: one, if it is the answer's
    first."""
    answered = len(tokens) - request.prompt_length
    return min(at_once(), stop.max_tokens - answered) if answered else 1


def _worth(guess: Guess) -> int:
    """How many drafted tokens a guess is worth, as far as waiting for more goes."""
    retrieved = len(guess.tokens) - guess.num_drafted
    return guess.num_drafted + retrieved // _RETRIEVED_FOR_DRAFTED


def _room(tokens: list[int], request: Request, stop: StopRule, most: int) -> int:
    """How many tokens the target may be shown: one of a step is its own."""
    return min(most, stop.max_tokens - (len(tokens) - request.prompt_length) - 1)


def _room_to_show(tokens: list[int], request: Request, stop: StopRule, most: int) -> int:
    """As `_room`, but none right after the prompt: rows of the prompt and of the answer come apart
    (`models/shapes.py`), so a guess would put another forward before the first token."""
    if len(tokens) == request.prompt_length:
        return 0
    return _room(tokens, request, stop, most)
